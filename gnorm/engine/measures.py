"""Functions (predictions, labels) -> one number, of arrays (text, ...): what rows of ``METRICS`` are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy  # which loads its parts when they are first used

Measure = Callable[[np.ndarray, np.ndarray], float]


def share_of_hits(hits: np.ndarray, _: np.ndarray) -> float:
    """The share of True in (text,) bool."""
    return float(hits.mean())


def by_sklearn(name: str, **options: Any) -> Measure:
    """A function of scikit-learn, by its name there; it is imported when it is first called, which takes a second."""

    def measure(predictions: np.ndarray, labels: np.ndarray) -> float:
        import sklearn.metrics

        return float(getattr(sklearn.metrics, name)(labels, predictions, **options))

    return measure


def by_scipy(name: str) -> Measure:
    """A correlation of two (text,), by its name in scipy.stats; of (text, number) the mean over numbers; 0 where one of
    the two is constant."""

    def measure(predictions: np.ndarray, labels: np.ndarray) -> float:
        correlation = getattr(scipy.stats, name)
        pairs = zip(np.atleast_2d(predictions.T), np.atleast_2d(labels.T), strict=True)
        return float(np.mean([correlation(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0 for a, b in pairs]))

    return measure


def ratio(sums: np.ndarray, _: np.ndarray) -> float:
    """Of (text, 2): the sum of the first column by that of the second; 0 where that is 0."""
    first, second = sums.sum(0)
    return float(first / max(second, 1))


def perplexity(sums: np.ndarray, labels: np.ndarray) -> float:
    """exp(``ratio``) of (text, 2), the negative log-likelihood and the number of tokens of each text."""
    with np.errstate(over="ignore"):  # infinity is what it is
        return float(np.exp(ratio(sums, labels)))


def span_f1(spans: np.ndarray, labels: np.ndarray) -> float:
    """The mean over texts of 2 |common tokens| / (|predicted| + |labelled|), of spans (text, 2): first, last token."""
    common = np.minimum(spans, labels)[:, 1] - np.maximum(spans, labels)[:, 0] + 1
    sizes = (np.diff(spans) + np.diff(labels))[:, 0] + 2
    return float((2 * common.clip(min=0) / sizes).mean())
