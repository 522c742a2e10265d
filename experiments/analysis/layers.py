"""Layers that an order takes its heads from, and the metric meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gnorm.trajectory import Trajectory, curve

from .paired import Repeated

STEPS = np.arange(0, 1.01, 0.1)  # shares of the heads pruned, at which tables are read


def heads_left(order: Sequence[tuple[int, int]], start: np.ndarray, pruned: int) -> dict[str, Any]:
    """Heads left in each quarter of the layers after ``pruned`` heads of ``order``, and the layers that are empty.

    start: (layer, head) bool, before. A quarter is rounded to whole layers; a model of one layer has one.
    """
    left = start.copy()
    for layer, head in order[:pruned]:
        left[layer, head] = False
    quarters = np.array_split(np.arange(len(left)), min(4, len(left)))
    names = [f"layers {part[0]}-{part[-1]}" if len(part) > 1 else f"layer {part[0]}" for part in quarters]
    empty = np.flatnonzero(~left.any(1) & start.any(1))
    return {
        **{name: int(left[part].sum()) for name, part in zip(names, quarters, strict=True)},
        "empty layers": " ".join(map(str, empty)),
    }


def published_layers(path: str | Path, model: str = "roberta") -> pd.DataFrame:
    """``heads_left`` along the published order of one model, at every tenth of the heads.

    path: a CSV of published orders, columns model, step (from 1), layer, head. Its layers and heads are numbered from
    0; how many there are is read off the order, which may leave out the head that never went.
    """
    orders = pd.read_csv(path)
    order = orders[orders.model == model].sort_values("step")
    start = np.ones((int(order["layer"].max()) + 1, int(order["head"].max()) + 1), dtype=bool)
    pairs = list(zip(order["layer"], order["head"], strict=True))
    return pd.DataFrame(
        [
            {"model": model, "share pruned": float(share), "pruned": pruned, **heads_left(pairs, start, pruned)}
            for share in STEPS
            if (pruned := round(share * start.size)) <= len(pairs)
        ]
    )


def where_it_dips(runs: Mapping[str, Repeated]) -> pd.DataFrame:
    """A row for every model and tenth of its heads: the metric under Greedy-Gnorm, matched random and random pruning.

    Values are means over training seeds, of the states nearest to the share that each method measured. below random:
    in how many seeds Greedy-Gnorm's value is the worse one. empty: how many layers are empty, mean over
    seeds; last layer: how many heads it has left.
    """
    methods = ("greedy_gnorm", "matched_random", "random")
    rows = []
    for model, by_method in runs.items():
        greedy = by_method["greedy_gnorm"]
        sign = 1 if greedy[0].metric.higher_is_better else -1
        for share in STEPS:
            at = {method: np.array([_value_at(run, share) for run in by_method[method]]) for method in methods}
            left = [_mask_at(run, share) for run in greedy]
            rows.append(
                {
                    "model": model,
                    "share pruned": float(share),
                    **{method: float(values.mean()) for method, values in at.items()},
                    "below random": int((sign * at["greedy_gnorm"] < sign * at["random"] - 1e-9).sum()),
                    "seeds": len(greedy),
                    "empty": float(np.mean([(~mask.any(1)).sum() for mask in left])),
                    "last layer": float(np.mean([mask[-1].sum() for mask in left])),
                }
            )
    return pd.DataFrame(rows)


def _value_at(trajectory: Trajectory, share: float) -> float:
    values = curve(trajectory)
    heads = np.asarray(values.index, dtype=float)
    return float(values.iloc[int(np.abs(heads - share * heads[-1]).argmin())])


def _mask_at(trajectory: Trajectory, share: float) -> np.ndarray:
    return trajectory.mask(round(share * int(trajectory.start.sum()))).numpy()
