"""Pruned models beside their accuracy: calibration, agreement with the intact model, accuracy after more training."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gnorm.engine.forwarding import passes
from gnorm.engine.model.sizes import Batch
from gnorm.engine.texts.batches import Prepared, prepare
from gnorm.heads import masked
from gnorm.journal import digest
from gnorm.metrics import accuracy
from gnorm.surgery import remove_heads
from gnorm.trajectory import Trajectory

from .. import runs
from ..data import tasks
from ..data.profiles import repetitions
from ..data.tasks import Task
from ..data.training import Recipe, train
from ..files.paths import after_pruning_folder
from ..files.provenance import code_of

SHARES = (0.25, 0.5, 0.75)  # of the heads pruned
FINE_TUNED, EPOCHS = 0.5, 1  # the share of heads that goes before training, and how long that lasts
BINS = 10  # of confidence, for the calibration error


def class_logits(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """(text, class) float64, in the order in which the batches were given."""
    prepared = prepare(batches, model, together=True)
    index, logits = [], []
    with passes(prepared) as forward:
        for micro in prepared:
            index.append(micro.index)
            logits.append(forward(micro)[0].double().cpu())
    return torch.cat(logits)[torch.cat(index).argsort()]


def class_probabilities(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """(text, class) float64, in the order in which the batches were given."""
    return class_logits(model, batches).softmax(1)


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Expected calibration error, 0 to 1 (Guo et al. 2017, arXiv 1706.04599, Eq. 3): over ``BINS`` bins of equal width,
    the mean distance between confidence and accuracy, weighted by the number of texts.

    probabilities (text, class), labels (text,). The confidence of a text is its largest probability.
    """
    confidence, predicted = probabilities.max(1)
    of_text = np.minimum((confidence.numpy() * BINS).astype(int), BINS - 1)
    frame = pd.DataFrame({"confidence": confidence.numpy(), "right": (predicted == labels).numpy()})
    means = frame.groupby(of_text).agg(["mean", "size"])
    gaps = (means["confidence"]["mean"] - means["right"]["mean"]).abs()
    return float((gaps * means["right"]["size"]).sum() / len(labels))


def calibration_of_pruned(
    profile: str, models: Sequence[str], methods: Sequence[str], device: str | None = None
) -> pd.DataFrame:
    """A row for every model, training seed, method and share of heads pruned, and one for the intact model, share 0.

    Columns model, repetition, method, share, accuracy, calibration error (0 to 1), agreement: the share of texts that
    get the intact model's answer, right or wrong. Of methods that draw at random, the first trial. On the evaluation
    texts. Trajectories that are missing are run first. Raises as ``runs.trajectories`` does.
    """
    rows = []
    for about, task, trajectory in pruned_by(profile, models, methods, device):
        measure = partial(_calibration, task, trajectory)
        rows += [about | row for row in cached_along(task, trajectory, "answers", [*SHARES], measure)["rows"]]
    return pd.DataFrame(rows)


def pruned_by(
    profile: str, models: Sequence[str], methods: Sequence[str], device: str | None, seeds: int | None = None
) -> Iterator[tuple[dict[str, str], Task, Trajectory]]:
    """Every repetition and method of every model: what it is called in a table, its task, its trajectory.

    seeds: how many repetitions of each model; all, if None.
    """
    for model in models:
        chosen = runs.left_in(profile, model, methods)
        for name in repetitions(profile, model)[:seeds]:
            of_name = runs.trajectories(profile, [name], chosen, device)[name]
            task = tasks.load(profile, name, device)
            runs.check_trainings(profile, name, of_name, task)
            for method in chosen:
                yield {"model": model, "repetition": name, "method": method}, task, of_name[method]


def _calibration(task: Task, trajectory: Trajectory) -> dict[str, Any]:
    batches = task.batches("evaluation")
    labels = torch.cat([batch["labels"] for batch in batches])
    probabilities = {}
    for share in (0.0, *SHARES):
        with masked(task.model, mask_at(trajectory, share)):
            probabilities[share] = class_probabilities(task.model, batches)
    predicted = {share: found.argmax(1) for share, found in probabilities.items()}
    return {
        "rows": [
            {
                "share": share,
                "accuracy": float((predicted[share] == labels).double().mean()),
                "calibration error": calibration_error(found, labels),
                "agreement": float((predicted[share] == predicted[0.0]).double().mean()),
            }
            for share, found in probabilities.items()
        ]
    }


def fine_tuned(
    profile: str, models: Sequence[str], methods: Sequence[str], seeds: int, device: str | None = None
) -> pd.DataFrame:
    """A row for every model, training seed and method: accuracy with ``FINE_TUNED`` of the heads removed, and after
    training what is left for ``EPOCHS`` more; beside it the intact model, trained for as many more.

    Columns model, repetition, method, share, intact, pruned, trained, intact trained. seeds: how many of each model's.
    The training texts, the learning rate and the batches are those of the model's own training. Of methods that draw at
    random, the first trial. Raises as ``runs.trajectories`` does.
    """
    rows = []
    for about, task, trajectory in pruned_by(profile, models, methods, device, seeds):
        measure = partial(_fine_tuned, task, trajectory)
        found = cached_along(task, trajectory, "recovery", [FINE_TUNED, EPOCHS], measure)
        control = runs.cached(
            after_pruning_folder(profile, task.name) / "intact-recovery.json",
            digest([task.hash, EPOCHS]),
            partial(_intact_trained, task),
        )
        rows.append({**about, "share": FINE_TUNED, **found, "intact trained": control["trained"]})
    return pd.DataFrame(rows)


def _fine_tuned(task: Task, trajectory: Trajectory) -> dict[str, float]:
    model = copy.deepcopy(task.model)
    remove_heads(model, mask_at(trajectory, FINE_TUNED))
    pruned = accuracy(model, task.batches("evaluation"))
    return {"intact": task.accuracy, "pruned": pruned, **_trained(task, model)}


def _intact_trained(task: Task) -> dict[str, float]:
    return _trained(task, copy.deepcopy(task.model))


def _trained(task: Task, model: nn.Module) -> dict[str, float]:
    """Accuracy of a model, which is changed, after ``EPOCHS`` of the task's own training."""
    recipe, texts = Recipe.read(task.spec.recipe), task.splits["train"]
    texts = texts.select(range(min(len(texts), recipe.train_texts or len(texts))))
    train("what is left", dataclasses.replace(recipe, epochs=EPOCHS), model, task.tokenizer, texts, progress=False)
    return {"trained": accuracy(model, task.batches("evaluation"))}


def mask_at(trajectory: Trajectory, share: float) -> Tensor:
    """(layer, head) bool: the heads that are left of the first trial where ``share`` of them are gone, rounded."""
    return trajectory.mask(round(share * int(trajectory.start.sum())))


def cached_along(task: Task, trajectory: Trajectory, what: str, options: Sequence[Any], measure: Any) -> dict[str, Any]:
    """``runs.cached`` in a file of its own, for this task and order of heads; ``measure`` is a partial, and what is
    cached by other code than that of its module is measured again."""
    path = after_pruning_folder(task.profile, task.name) / f"{trajectory.info['method']}-{what}.json"
    return runs.cached(
        path, digest([task.hash, trajectory.order(), what, code_of(measure.func.__module__), *options]), measure
    )
