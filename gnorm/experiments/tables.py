"""Tables made from trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..trajectory import NEAR_TIE, Trajectory, area, area_interval, curve
from .published import published_area

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the heads pruned: the points at which the paper's tables read the curves


def summary_row(trajectory: Trajectory) -> dict[str, Any]:
    """Accuracy at 0/25/50/75/100 % of heads pruned (the nearest state measured), area under the curve, its interval."""
    accuracy = curve(trajectory)
    low, high = area_interval(trajectory)
    heads = np.asarray(accuracy.index, dtype=float)
    nearest = {f"{f:.0%}": float(accuracy.iloc[int(np.abs(heads - f * heads[-1]).argmin())]) for f in FRACTIONS}
    return {**nearest, "area": area(accuracy), "area_low": low, "area_high": high}


def summary_table(runs: Mapping[str, Mapping[str, Trajectory]]) -> pd.DataFrame:
    """A row for every model and method in ``runs[model][method]``: ``summary_row``, and the published area if any.

    Columns model, method, texts, those of ``summary_row``, and, where an area was published, published and difference.
    """
    rows: list[dict[str, Any]] = []
    for model, methods in runs.items():
        for method, trajectory in methods.items():
            row = {"model": model, "method": method, "texts": trajectory.correct.shape[1], **summary_row(trajectory)}
            if (published := published_area(model, method, trajectory)) is not None:
                row |= {"published": published, "difference": row["area"] - published}
            rows.append(row)
    return pd.DataFrame(rows)


def closeness_table(runs: Mapping[str, Trajectory]) -> pd.DataFrame:
    """A row for every model: how close the scores of removed and kept heads came, see ``Trajectory.info``."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "steps": trajectory.info["steps"],
                "smallest gap": trajectory.info["smallest_gap"],
                f"near-ties (gap below {NEAR_TIE:g})": trajectory.info["near_ties"],
                "ties": trajectory.info["ties"],
            }
            for model, trajectory in runs.items()
        ]
    )


def verdict(table: pd.DataFrame) -> pd.DataFrame:
    """A row for every model of a ``summary_table`` with several methods: the largest area and the runner-up.

    "intervals overlap" says whether the intervals of the two areas overlap.
    """
    rows = []
    for model, group in table.groupby("model", sort=False):
        ranked = group.sort_values("area", ascending=False)
        if len(ranked) > 1:
            first, second = ranked.iloc[0], ranked.iloc[1]
            rows.append(
                {
                    "model": model,
                    "largest area": first.method,
                    "area": first.area,
                    "runner-up": second.method,
                    "its area": second.area,
                    "intervals overlap": "yes" if first.area_low <= second.area_high else "no",
                }
            )
    return pd.DataFrame(rows)
