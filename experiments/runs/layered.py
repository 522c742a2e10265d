"""The layers of one method with the heads of another: which of the two an order owes its area to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from gnorm.trajectory import area, curve

from .. import runs
from ..data.profiles import LAYERS_OF, read_profile, repetitions

HEADS_BY = ("greedy_gnorm", "gnorm_once", "head_importance", "random")  # which head of the layer goes


def variants(profile: str, model: str) -> Iterator[tuple[str, str, str, str]]:
    """(repetition, layers of, heads by, variant) of all runs of a model that the profile's study names; the variant is
    the repetition itself where both are one method."""
    for name in repetitions(profile, model) if model in read_profile(profile).study.layered else ():
        for number, layers in enumerate(LAYERS_OF):
            for heads in HEADS_BY:
                yield name, layers, heads, name if layers == heads else f"{name}/layers{number}"


def layers_and_heads(profile: str, models: Sequence[str], device: str | None = None) -> pd.DataFrame:
    """A row for every run of the ``variants`` of the models.

    Columns model, training (the repetition), layers of, heads by, area. Trajectories that are missing are run first.
    Raises as ``runs.trajectories`` does.
    """
    rows = []
    for model in models:
        for name, layers, heads, variant in variants(profile, model):
            found = runs.trajectories(profile, [variant], [heads], device)[variant][heads]
            rows.append((model, name, layers, heads, area(curve(found))))
    return pd.DataFrame(rows, columns=["model", "training", "layers of", "heads by", "area"])
