"""The metrics, a row each, and a function of one's own in the place of a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from .engine.forward.packing import LayerInputCache
from .engine.forwarding import passes, with_caches
from .engine.measures import Measure, by_scipy, by_sklearn, perplexity, ratio, share_of_hits, span_f1
from .engine.model.blocks import config_of
from .engine.model.problems import PROBLEMS, problem_of
from .engine.model.sizes import Batch
from .engine.model.state import in_use
from .engine.tally import Tally, TextValues, hits, labels_in_order, losses, predictions, token_hits
from .engine.texts.batches import Prepared, prepare


@dataclass(frozen=True)
class Metric:
    """A row: a function of predictions and labels, which end is better, and the problems that it is for.

    text_values: what is computed of each text in the place of its prediction; ``of`` gets it as predictions.
    problems: names in ``PROBLEMS``; any if empty. fraction: whether it goes from 0 to 1, as a share does, so that
    figures show percent.
    per_text: of a metric that is a mean over texts, each text's term (text,), of the same arguments as ``of``;
    intervals and paired differences are then made of these terms.
    of_class: of a metric that one class can decide, however few texts it has: from the number of classes, in budgets,
    the share of a class's texts that is lost where the metric falls by the budget; exact for classes of one size.
    """

    name: str
    of: Measure
    problems: tuple[str, ...] = ()
    text_values: TextValues = predictions
    higher_is_better: bool = True
    fraction: bool = False
    per_text: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    of_class: Callable[[int], int] | None = None

    def value(self, values: np.ndarray, labels: np.ndarray) -> float:
        """The metric of ``text_values`` of texts, and of their labels; ``ValueError`` where it is not a number."""
        value = float(self.of(values, labels))
        if np.isnan(value):
            raise ValueError(
                f"{self.name} of {len(values)} texts is not a number: choose another metric, or more texts."
            )
        return value


_CLASSES = ("single_label_classification", "multiple_choice")
_NUMBERS = ("regression", "binary_classification")
_LABELS = (*_CLASSES, "multi_label_classification")
_LANGUAGE = ("masked_lm", "causal_lm", "seq2seq_lm")


def _itself(values: np.ndarray, _: np.ndarray) -> np.ndarray:
    return values.astype(float)


def _squared_error(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    squares: np.ndarray = (predictions.astype(float) - labels) ** 2
    return squares.reshape(len(labels), -1).mean(1)


_ROWS = (
    Metric("accuracy", share_of_hits, (*_CLASSES, "binary_classification"), hits, fraction=True, per_text=_itself),
    Metric(
        "f1_macro",
        by_sklearn("f1_score", average="macro", zero_division=0.0),
        _LABELS,
        fraction=True,
        of_class=lambda classes: classes,
    ),
    Metric("f1_micro", by_sklearn("f1_score", average="micro", zero_division=0.0), _LABELS, fraction=True),
    Metric("matthews", by_sklearn("matthews_corrcoef"), _CLASSES, of_class=lambda classes: max(1, classes - 1)),
    Metric("pearson", by_scipy("pearsonr"), _NUMBERS),
    Metric("spearman", by_scipy("spearmanr"), _NUMBERS),
    Metric("r2", by_sklearn("r2_score"), _NUMBERS),
    Metric("mse", by_sklearn("mean_squared_error"), _NUMBERS, higher_is_better=False, per_text=_squared_error),
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


def text_values_of(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    metric: Metric,
    caches: Sequence[LayerInputCache] | None = None,
) -> Tensor:
    """(text, ...) the ``text_values`` of ``metric``, in order; texts labelled -100 are left out.

    caches: ``layer_input_caches`` of the model and the prepared batches, for evaluations of a model that changes.

    Raises ``ValueError`` as ``check_labels`` and ``prepare`` do, and where logits are not finite.
    """
    config_of(model)  # refuses what is not a model
    with in_use(model):
        prepared = prepare(batches, model, together=True)
        tally = Tally(prepared, metric.text_values, metric.name)
        with passes(prepared) as forward:
            for micro, cache in with_caches(prepared.mine, caches or []):
                tally(forward(micro, cache)[0], micro)
        return tally.result()


def measure(
    model: nn.Module, batches: Iterable[Batch] | Prepared, metric: str | Measure | Metric | None = None
) -> float:
    """The metric of the model on the texts, as ``prune`` measures it; the one of the model's problem if None.

    Raises as ``find_metric`` and ``text_values_of`` do.
    """
    row, prepared = find_metric(metric, model), prepare(batches, model, together=True)
    return row.value(text_values_of(model, prepared, row).numpy(), labels_in_order(prepared).numpy())


def correct_texts(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """(text,) bool: which texts the model classifies as their ``labels`` say; those labelled -100 are left out.

    Raises ``ValueError`` as ``find_metric``, ``check_labels`` and ``prepare`` do, and where logits are not finite.
    """
    config_of(model)
    return text_values_of(model, batches, find_metric("accuracy", model))


def accuracy(model: nn.Module, batches: Iterable[Batch] | Prepared) -> float:
    """Fraction of texts classified as their ``labels`` say; divided by the number of texts that were counted.

    Raises ``ValueError`` as ``correct_texts`` does.
    """
    return correct_texts(model, batches).double().mean().item()
