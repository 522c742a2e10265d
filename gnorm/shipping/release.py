"""From a run to a folder: remove heads within a budget, save the model with its tokenizer and model card."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch

from ..engine.answers import labels_in_order
from ..engine.batches import prepare
from ..engine.checks import num_texts
from ..heads import head_mask_of
from ..methods import find_method
from ..metrics import kept_of
from ..storage.folders import free_folder
from ..storage.saving import check_saving, save_pruned
from ..surgery import remove_heads
from ..trajectory import Trajectory, curve, solution
from .costs import cost
from .loading import Own
from .model_card import card


def ship(
    own: Own, run: Trajectory, folder: str | os.PathLike[str], budget: float = 0.01, overwrite: bool = False
) -> Path:
    """Remove as many heads as the budget allows; save the smaller model, its tokenizer and card; return the folder.

    run: of ``prune`` with ``own.model``, ``own.scoring`` and ``own.choosing``. budget: how much worse the run's metric,
    such as accuracy, may become on the texts to choose by (0.01 is a percentage point of it). overwrite: replace
    a folder that holds files; an empty folder needs no ``overwrite``. ``own.model`` stays as it was.

    Raises, before anything is measured: ``FileExistsError`` where the folder holds files; ``ValueError`` where the run
    is not of this model or has several trials, and for a budget below 0; and as ``check_saving`` does.
    """
    folder = free_folder(folder, overwrite)
    if not budget >= 0:
        raise ValueError(
            f"budget={budget} is out of range: it is the {run.metric.name} that may be "
            f"{'lost' if run.metric.higher_is_better else 'added'}{', 0.01 for a point' * run.metric.fraction}."
        )
    if run.info["trials"] > 1:
        raise ValueError(f"the run has {run.info['trials']} trials, whose mean is no model: prune with trials=1.")
    if not torch.equal(run.start, head_mask_of(own.model)):
        raise ValueError("the run began with other heads than the model has: prune own.model itself.")
    check_saving(own.model, own.tokenizer)
    pruned = solution(run, budget)
    smaller = copy.deepcopy(own.model)
    remove_heads(smaller, run.mask(pruned))
    before, after = (kept_of(model, own.testing, run.metric).numpy() for model in (own.model, smaller))
    states = curve(run)
    text = card(
        name=folder.resolve().name,
        checkpoint=own.checkpoint,
        data=own.data,
        model=smaller,
        pruned=pruned,
        of=int(run.start.sum()),
        method=find_method(run.info["method"]).title,
        heads_per_step=run.info["heads_per_step"],
        budget=budget,
        chosen={"before": float(states.iloc[0]), "after": float(states[pruned])},
        metric=run.metric,
        kept={"before": before, "after": after},
        labels=labels_in_order(prepare(own.testing, own.model), own.model).numpy(),
        texts={name: num_texts(getattr(own, name)) for name in ("scoring", "choosing", "testing")},
        costs=cost(smaller),
        versions=run.info["versions"],
    )
    return save_pruned(smaller, folder, own.tokenizer, text, overwrite)
