"""Layers that an order takes its heads from, and the metric meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from gnorm.trajectory import Trajectory, curve

from .paired import Repeated

STEPS = np.arange(0, 1.01, 0.1)  # shares of the heads pruned, at which tables are read


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
