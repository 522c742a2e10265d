"""Where entropy and products of norms give out in floating point, and the remedies beside them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from gnorm import scoring
from gnorm.engine.model import norms

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def entropies(distances: Sequence[float], keys: int = 8) -> pd.DataFrame:
    """Entropy (nats) of attention whose first key lies ``distance`` logits above the others, by form and type.

    A row a distance and type: distance, type, weights at 0, truth (of float64), and a column a form.
    """
    rows = []
    for distance in distances:
        logits = torch.zeros(keys, dtype=torch.float64)
        logits[0] = distance
        truth = torch.special.entr(logits.softmax(0)).sum().item()
        for dtype in DTYPES:
            attention = logits.softmax(0).to(dtype)
            row = {"distance": distance, "type": name_of(dtype), "weights at 0": int((attention == 0).sum())}
            forms = {form: terms(attention, 1e-7).sum().item() for form, terms in scoring.ENTROPY_FORMS.items()}
            rows.append({**row, "truth (nats)": truth, **forms})
    return pd.DataFrame(rows)


def products(gradients: Tensor, heads: int, factors: Sequence[float]) -> pd.DataFrame:
    """Products of norms and sums of their logarithms, of gradients times ever smaller factors, by factor and type.

    gradients: (layer, 3, rows, hidden) of query, key and value weights. heads: of a layer. The order that is left is
    Spearman's rank correlation with that of unscaled norms in float64; empty where all values are equal.
    """
    by_head = gradients.unflatten(2, (heads, -1)).transpose(1, 2).flatten(3).flatten(0, 1)  # (head, 3, values)
    truth = pd.Series(by_head.double().norm(dim=-1).log().sum(1))
    rows = []
    for factor in factors:
        for dtype in DTYPES:
            scaled = (by_head.double() * factor).to(dtype)
            product = scaled.norm(dim=-1).prod(1)
            logs = norms.log_norm(scaled.flatten(0, 1)).view(-1, 3).sum(1)
            rows.append(
                {
                    "factor": f"{factor:.0e}",
                    "type": name_of(dtype),
                    "heads": len(truth),
                    "products at 0": int((product == 0).sum()),
                    "distinct products": product.unique().numel(),
                    "order kept by products": _order_kept(product, truth),
                    "distinct sums of logs": logs.unique().numel(),
                    "order kept by sums of logs": _order_kept(logs, truth),
                }
            )
    return pd.DataFrame(rows)


def _order_kept(values: Tensor, truth: pd.Series) -> float | None:
    return pd.Series(values.double()).corr(truth, "spearman") if values.unique().numel() > 1 else None
