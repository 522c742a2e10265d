"""Dependence of Greedy-Gnorm on its scoring texts, on their number, and on how they are batched."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import scipy
import torch
from torch import Tensor

from gnorm.scoring import gnorm_scores
from gnorm.trajectory import area, curve

from .. import runs
from ..data import tasks
from ..data.profiles import StudyGrid, model_spec, repetitions
from ..data.tasks import Task

METHOD = "greedy_gnorm"


def scoring_variants(profile: str, models: Sequence[str], grid: StudyGrid, device: str | None = None) -> pd.DataFrame:
    """A row for every model and every number and draw of scoring texts and every batch size.

    Columns model, varied ("texts" or "batch"), number, draw, rank correlation, area. The rank correlation (Spearman) is
    that of the intact model's scores with those of the largest number of texts, or with those of the profile's own
    batch size. area: under the curve of Greedy-Gnorm scored this way; missing for models that the grid does not name.
    The first training seed. Trajectories that are missing are run first. Raises as ``runs.trajectories`` does.
    """
    rows = []
    for model in models:
        name = repetitions(profile, model)[0]
        task = tasks.load(profile, name, device)
        reference = {"texts": _scores(task, f"{name}/texts{max(grid.texts)}"), "batch": _scores(task, name)}
        for varied, number, draw, variant in variants(profile, model, grid):
            rho = scipy.stats.spearmanr(_scores(task, variant), reference[varied]).statistic
            row = {"model": model, "varied": varied, "number": number, "draw": draw, "rank correlation": float(rho)}
            if model in grid.varied:
                found = runs.trajectories(profile, [variant], [METHOD], device)[variant][METHOD]
                row["area"] = area(curve(found))
            rows.append(row)
    return pd.DataFrame(rows)


def variants(profile: str, model: str, grid: StudyGrid) -> list[tuple[str, int, int, str]]:
    """Of the first training seed of a model: the size that is varied ("texts" or "batch"), the number, the draw, and
    the name of the variant. Where a batch size is the profile's own, the name is that of the repetition itself."""
    name, most = repetitions(profile, model)[0], max(grid.texts)
    own = model_spec(profile, name).scoring.batch
    of_texts = [
        ("texts", number, draw, f"{name}/texts{number}" + (f"/draw{draw}" if draw else ""))
        for number in grid.texts
        for draw in (range(1, grid.draws + 1) if number < most else (0,))
    ]
    of_batch = [("batch", number, 0, name if number == own else f"{name}/batch{number}") for number in grid.batches]
    return of_texts + of_batch


def _scores(task: Task, variant: str) -> Tensor:
    """(head,) G-norm of the heads of an intact model, scored as ``variant`` says, those that score -inf lowest."""
    task = task.variant(variant)
    return torch.nan_to_num(gnorm_scores(task.model, task.batches("scoring")).flatten(), neginf=-1e300)
