"""Metrics of a model, a row a metric, and a function of one's own in the place of a row."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .engine.answers import PerText, Tally, hits, labels_in_order, losses, predictions, token_hits
from .engine.batches import Prepared, forwarding, prepare, with_caches
from .engine.checks import Batch
from .engine.measures import Measure, by_scipy, by_sklearn, mean, perplexity, ratio, span_f1
from .engine.packing import LayerInputCache
from .engine.problems import PROBLEMS, problem_of
from .engine.products import faster_products
from .engine.state import evaluating, in_use
from .heads import config_of


@dataclass(frozen=True)
class Metric:
    """A row: a function of predictions and labels, the end that is better, and the problems that it is for.

    per_text: the values of each text that ``of`` gets as predictions, if they are not its prediction. problems: names
    in ``PROBLEMS``; any if empty. fraction: it goes from 0 to 1, as a share does, so that figures show percent.
    """

    name: str
    of: Measure
    problems: tuple[str, ...] = ()
    per_text: PerText = predictions
    higher_is_better: bool = True
    fraction: bool = False
    kept: InitVar[PerText | None] = None  # the name of ``per_text`` in version 1.0

    def __post_init__(self, kept: PerText | None) -> None:
        if kept is not None and kept is not self.per_text:
            warnings.warn("kept is called per_text now.", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "per_text", kept)

    @property
    def is_mean(self) -> bool:
        """The metric is the mean over texts of one number each, its ``per_text`` value, such as a hit or a miss."""
        return self.of is mean

    def value(self, per_text: np.ndarray, labels: np.ndarray) -> float:
        """The metric of texts by their ``per_text`` values and labels; ``ValueError`` where it is not a number."""
        value = float(self.of(per_text, labels))
        if np.isnan(value):
            raise ValueError(
                f"{self.name} of {len(per_text)} texts is not a number: choose another metric, or more texts."
            )
        return value


def _kept(metric: Metric) -> PerText:
    warnings.warn("Metric.kept is called per_text now.", DeprecationWarning, stacklevel=2)
    return metric.per_text


Metric.kept = property(_kept)  # type: ignore[attr-defined]


_CLASSES = ("single_label_classification", "multiple_choice")
_NUMBERS = ("regression", "binary_classification")
_LABELS = (*_CLASSES, "multi_label_classification")
_LANGUAGE = ("masked_lm", "causal_lm", "seq2seq_lm")

_ROWS = (
    Metric("accuracy", mean, (*_CLASSES, "binary_classification"), hits, fraction=True),
    Metric("f1_macro", by_sklearn("f1_score", average="macro", zero_division=0.0), _LABELS, fraction=True),
    Metric("f1_micro", by_sklearn("f1_score", average="micro", zero_division=0.0), _LABELS, fraction=True),
    Metric("matthews", by_sklearn("matthews_corrcoef"), _CLASSES),
    Metric("pearson", by_scipy("pearsonr"), _NUMBERS),
    Metric("spearman", by_scipy("spearmanr"), _NUMBERS),
    Metric("r2", by_sklearn("r2_score"), _NUMBERS),
    Metric("mse", by_sklearn("mean_squared_error"), _NUMBERS, higher_is_better=False),
    Metric("token_accuracy", ratio, ("token_classification", *_LANGUAGE), token_hits, fraction=True),
    Metric("span_f1", span_f1, ("question_answering",), fraction=True),
    Metric("perplexity", perplexity, _LANGUAGE, losses, higher_is_better=False),
)

METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}


def find_metric(metric: str | Measure | Metric | None, model: nn.Module) -> Metric:
    """The row called ``metric``, or the row of a function; the one of the model's problem if None.

    Raises ``ValueError`` for a name that has no row and a metric that is not for the model's problem, ``TypeError`` for
    what is neither.
    """
    problem = problem_of(model)
    fitting = [row.name for row in METRICS.values() if not row.problems or problem.name in row.problems]
    if metric is None:
        return METRICS[problem.metric]
    if isinstance(metric, str):
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}.")
        metric = METRICS[metric]
    if not isinstance(metric, Metric):
        if not callable(metric):
            raise TypeError(f"metric={metric!r} is neither a name nor a function (predictions, labels) -> number.")
        metric = Metric(getattr(metric, "__name__", type(metric).__name__), metric)
    if metric.problems and problem.name not in metric.problems:
        raise ValueError(
            f"{metric.name} needs a model that gives {' or '.join(PROBLEMS[name].gives for name in metric.problems)}; "
            f"this model gives {problem.gives}: choose one of {', '.join(fitting)}."
        )
    return metric


def per_text_values(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    metric: Metric,
    caches: Sequence[LayerInputCache] | None = None,
) -> Tensor:
    """(text, ...) the values of each text that ``metric`` is computed from, in order, without texts labelled -100.

    caches: ``layer_input_caches`` of the model and the prepared batches, for evaluations of a model that changes.

    Raises ``ValueError`` as ``check_labels`` and ``prepare`` do, and where logits are not finite.
    """
    config_of(model)  # refuses what is not a model
    with in_use(model):
        prepared = prepare(batches, model, together=True)
        tally = Tally(prepared, model, metric.per_text, metric.name)
        with evaluating(model), faster_products(model), forwarding(model, prepared) as forward, torch.no_grad():
            for micro, cache in with_caches(prepared.mine, caches or []):
                tally(forward(micro, cache)[0], micro)
        return tally.result()


def measure(
    model: nn.Module, batches: Iterable[Batch] | Prepared, metric: str | Measure | Metric | None = None
) -> float:
    """The metric of the model on the texts, as ``prune`` measures it; the one of the model's problem if None.

    Raises as ``find_metric`` and ``per_text_values`` do.
    """
    row, prepared = find_metric(metric, model), prepare(batches, model, together=True)
    return row.value(per_text_values(model, prepared, row).numpy(), labels_in_order(prepared, model).numpy())


def correct_texts(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """(text,) bool: the model classifies the text as its ``labels`` say; texts labelled -100 are left out.

    Raises ``ValueError`` as ``find_metric``, ``check_labels`` and ``prepare`` do, and where logits are not finite.
    """
    config_of(model)
    return per_text_values(model, batches, find_metric("accuracy", model))


def accuracy(model: nn.Module, batches: Iterable[Batch] | Prepared) -> float:
    """Fraction of texts classified as their ``labels`` say; divided by the number of texts that were counted.

    Raises ``ValueError`` as ``correct_texts`` does.
    """
    return correct_texts(model, batches).double().mean().item()
