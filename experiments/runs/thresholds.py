"""Orders of removal read again: accuracy, accuracy once class biases are refitted, and AUROC of every state.

Accuracy that falls as heads go, and recovers, may have lost what the model knows, or its thresholds alone. Biases that
are fitted on other texts give back what a threshold took and nothing else; AUROC has no threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor

from gnorm.engine.model.problems import NOT_COUNTED
from gnorm.engine.texts.batches import prepare
from gnorm.heads import masked
from gnorm.trajectory import Trajectory, curve

from ..data.profiles import models_for
from ..data.tasks import Task
from .after_pruning import cached_along, class_logits, pruned_by

METHODS = ("greedy_gnorm", "head_importance", "random")
STATES = 49  # of an order, the most that are read: evenly spread over those that the run measured

COLUMNS = ("model", "training", "method", "pruned heads", "share", "accuracy", "refitted", "AUROC")


def with_refitted_biases(profile: str, models: Sequence[str], device: str | None = None) -> pd.DataFrame:
    """A row for every model that classifies texts, training, method of ``METHODS`` and state of its first trial.

    Columns model, training (the repetition), method, pruned heads, share; of the evaluation texts accuracy, refitted
    (accuracy with the ``refitted_biases`` of all texts of the split that heads are scored on), AUROC. Trajectories that
    are missing are run first.

    Raises ``ValueError`` where heads are scored and measured on one split, and as ``models_for``,
    ``refitted_biases``, ``auroc`` and ``runs.trajectories`` do.
    """
    rows = []
    for about, task, trajectory in pruned_by(
        profile, models_for("single_label_classification", profile, models), METHODS, device
    ):
        numbers = states(trajectory)
        found = cached_along(task, trajectory, "thresholds", numbers, partial(_read_again, task, trajectory))
        named = {"model": about["model"], "training": about["repetition"], "method": about["method"]}
        rows += [named | row for row in found["rows"]]
    return pd.DataFrame(rows, columns=COLUMNS)


def states(trajectory: Trajectory) -> list[int]:
    """Numbers of pruned heads that the run measured, ``STATES`` at most, the first and the last among them."""
    measured = curve(trajectory).index
    spread = np.linspace(0, len(measured) - 1, min(len(measured), STATES)).round().astype(int)
    return [int(number) for number in measured[spread]]


def _read_again(task: Task, trajectory: Trajectory) -> dict[str, Any]:
    split = task.spec.scoring.split
    if split == task.spec.evaluation.split:
        raise ValueError(
            f"{task.name} of profile {task.profile} is scored and measured on the split {split!r}, and biases are "
            "refitted on texts that nothing is measured on: take a profile with two splits."
        )
    own, others = (
        prepare(batches, task.model, together=True) for batches in (task.batches("evaluation"), task.texts(split))
    )
    labels, other_labels = (torch.cat([batch["labels"] for batch in each.batches]) for each in (own, others))
    counted = other_labels != NOT_COUNTED
    rows = []
    for pruned in states(trajectory):
        with masked(task.model, trajectory.mask(pruned)):
            logits, other_logits = (class_logits(task.model, each) for each in (own, others))
        biases = refitted_biases(other_logits[counted], other_labels[counted])
        rows.append(
            {
                "pruned heads": pruned,
                "share": pruned / int(trajectory.start.sum()),
                "accuracy": _accuracy(logits, labels),
                "refitted": _accuracy(logits + biases, labels),
                "AUROC": auroc(logits, labels),
            }
        )
    return {"rows": rows}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def refitted_biases(logits: Tensor, labels: Tensor) -> Tensor:
    """(class,) float64, the first 0: what is added to the logits (text, class) of each class for the least mean
    cross-entropy of their softmax with labels (text,).

    The loss is convex, and there is one such minimum where every class has a text. ``ValueError`` where one has none,
    or where there is one class; ``RuntimeError`` where the minimum is not found.
    """
    classes = logits.shape[1]
    counts = labels.bincount(minlength=classes)
    if classes < 2 or len(counts) != classes or not counts.all():
        raise ValueError(
            f"biases of {classes} classes cannot be fitted on texts of the classes {labels.unique().tolist()}: there "
            "must be two classes or more, and texts of each."
        )
    above = (logits.double() - logits.double().gather(1, labels[:, None])).numpy()  # the logit of the label
    shares = (counts.double() / len(labels)).numpy()

    def probabilities(free: np.ndarray) -> np.ndarray:
        return scipy.special.softmax(above + np.append(0, free), axis=1)

    def loss(free: np.ndarray) -> float:
        biases = np.append(0, free)
        return float(scipy.special.logsumexp(above + biases, axis=1).mean() - shares @ biases)

    def gradient(free: np.ndarray) -> np.ndarray:
        return (probabilities(free).mean(0) - shares)[1:]

    def curvature(free: np.ndarray) -> np.ndarray:
        found = probabilities(free)[:, 1:]
        return np.diag(found.mean(0)) - found.T @ found / len(found)

    found = scipy.optimize.minimize(
        loss,
        np.zeros(classes - 1),
        method="trust-exact",
        jac=gradient,
        hess=curvature,
        options={"gtol": 1e-7},  # of the shares of classes; below it, float64 does not tell losses apart
    )
    if not found.success:
        raise RuntimeError(f"no biases of {classes} classes were found that fit {len(labels)} texts: {found.message}")
    return torch.from_numpy(np.append(0, found.x))


def auroc(logits: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve of logits (text, class) for labels (text,): the mean over the classes that texts have,
    each against the rest, a tie counted half.

    Texts are ranked by the log odds of the class. So of two classes both areas are the usual one, and no biases change
    it; of more, biases change it where they change the order of the odds. ``ValueError`` where all texts are of one
    class.
    """
    areas = []
    for label in labels.unique().tolist():
        own = labels == label
        above = logits.double() - logits[:, [label]].double()  # texts whose logits differ by a constant tie
        odds = -torch.cat([above[:, :label], above[:, label + 1 :]], 1).logsumexp(1)
        ranks = torch.from_numpy(scipy.stats.rankdata(odds.numpy()))
        number, of_rest = int(own.sum()), int((~own).sum())
        if not of_rest:
            raise ValueError(f"all {number} texts are of class {label}: AUROC needs texts of two classes.")
        areas.append((float(ranks[own].sum()) - number * (number + 1) / 2) / (number * of_rest))
    return float(np.mean(areas))
