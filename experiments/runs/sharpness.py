"""Gradients of query and key where attention is sharp: entropy and gradient norms of every head, logits scaled, heads
gone."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gnorm.criteria.rescaling import scale
from gnorm.engine.model.blocks import QKV
from gnorm.heads import attention_blocks, masked
from gnorm.scoring import attention_entropy, gnorm_scores
from gnorm.trajectory import Trajectory

from ..data.profiles import models_for
from ..data.tasks import Task
from .after_pruning import SHARES, cached_along, mask_at, pruned_by

METHOD = "greedy_gnorm"
FACTORS = (0.5, 1.0, 2.0)  # of the attention logits: powers of two, so that nothing is rounded
STATES = (*((factor, 0.0) for factor in FACTORS), *((1.0, share) for share in SHARES))


def sharpness(profile: str, models: Sequence[str], device: str | None = None) -> pd.DataFrame:
    """A row for every model, training, state and head that is left: its attention entropy beside the logarithms of the
    three norms whose product is its G-norm, on the scoring texts.

    Columns model, training, factor (of the attention logits of all heads), share (of the heads pruned, along the order
    of Greedy-Gnorm), layer, head, entropy, and as ``head_rows`` has them query, key, value. Trajectories that are
    missing are run first. Models that classify texts alone. Raises as ``models_for`` and ``runs.trajectories`` do.
    """
    rows, models = [], models_for("single_label_classification", profile, models)
    for about, task, trajectory in pruned_by(profile, models, [METHOD], device):
        state = {"model": about["model"], "training": about["repetition"]}
        for factor, share in STATES:
            measure = partial(_measured, task, trajectory, factor, share)
            found = cached_along(task, trajectory, f"sharpness-{factor:g}-{share:g}", [], measure)
            rows += [state | {"factor": factor, "share": share} | row for row in found["rows"]]
    return pd.DataFrame(rows)


def _measured(task: Task, trajectory: Trajectory, factor: float, share: float) -> dict[str, Any]:
    model = sharpened(task.model, factor)
    kept = mask_at(trajectory, share)
    with masked(model, kept):
        return {"rows": head_rows(model, task.batches("scoring"), kept, factor)}


def sharpened(model: Any, factor: float) -> Any:
    """A copy of ``model`` whose attention logits are ``factor`` times its own: query weights and biases are multiplied
    by it. A norm of queries would undo that. Raises ``ValueError`` for logits that a head adds something else to."""
    model = copy.deepcopy(model)
    for block in attention_blocks(model):
        if factor != 1 and (block.per_head or block.by_head or block.also):
            raise ValueError(
                f"{type(block.module).__name__} adds a bias or positions to its attention logits, which a factor of "
                "query does not reach: leave this model out."
            )
        scale(block, "query", torch.full((len(block.kept),), factor))
    return model


def head_rows(model: Any, batches: list[dict[str, Tensor]], kept: Tensor, factor: float = 1.0) -> list[dict[str, Any]]:
    """A row for every head of ``kept`` (layer, head) bool: layer, head, entropy, query, key, value. factor: that of
    ``sharpened``, whose copy ``model`` is.

    entropy: nats, ``attention_entropy``; the mean over the passes of layers that share a block. query, key, value: the
    natural logarithm of the summed gradient norms of the projection, as ``gnorm_scores`` has it, -inf without a
    gradient; that of key less log factor. With logits s = factor q k the gradients are, with the derivative D by s, of
    query as it is written D k, and of key D factor q: so the factor alone, which says nothing of the softmax, is taken
    out, and what is left of a change is that of D, of q and of k.
    """
    passes = model.config.num_hidden_layers / len(kept)
    table = {"entropy": attention_entropy(model, batches) / passes}
    table |= {name: gnorm_scores(model, batches, projections=[name]) for name in QKV}
    table["key"] = table["key"] - math.log(factor)
    heads = ((int(layer), int(head)) for layer, head in kept.nonzero())
    return [{"layer": at[0], "head": at[1]} | {name: float(of[at]) for name, of in table.items()} for at in heads]
