"""The promise of a budget: how far a paired test over texts shows that a metric falls by less."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy
from scipy.special import bdtr, gammaln, xlog1py, xlogy
from scipy.stats import DegenerateDataWarning

from ..engine.tally import hits
from ..metrics import Metric
from ..trajectory import Trajectory

RESAMPLES = 500  # of a bootstrap

GRID = 64  # shares of texts whose hit changes, at which the exact test is computed

BEYOND = 7  # standard deviations from the mean, what lies further away is left out: less than 1e-10


@dataclass(frozen=True)
class Promise:
    """That with ``confidence`` the metric, on texts like those it was measured on, becomes worse by less than
    ``budget``.

    A state of a run keeps the promise if a paired test over texts rejects, at level 1 - confidence, that its loss is
    the budget or more. The states are tested in order until one is not rejected. The first state whose true loss is the
    budget or more is then rejected by chance in no more than 1 - confidence of all draws of texts, so the last state
    before the first failure keeps the promise with that confidence, however many were tested (fixed-sequence testing:
    Angelopoulos et al. 2021, arXiv 2110.01052, section 2.3). The texts must be others than those that heads were scored
    on.

    Raises ``ValueError`` for a budget or a confidence out of range.
    """

    budget: float
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise ValueError(
                f"confidence={self.confidence} is out of range: it is a probability from 0.5, 0.9 for 90 %; "
                "confidence=None promises nothing."
            )
        if not self.budget > 0:
            raise ValueError(
                f"budget={self.budget} is out of range: no number of texts shows that nothing at all is lost. Give a "
                "number above 0, 0.01 for a point of accuracy, or confidence=None."
            )

    def check(self, metric: Metric, texts: int, shares: int = 2) -> None:
        """``ValueError`` where the texts are so few that the intact model itself would not pass the test.

        shares: into how many the texts were split that no head was scored on.
        """
        needed = self.fewest_texts(metric)
        if texts < needed:
            least = math.ceil(1000 * (1 - (1 - self.confidence) ** (1 / max(1, texts)))) / 1000
            larger = f"a budget of at least {least:g}, " if texts else ""  # none will do without a text
            raise ValueError(
                f"{texts} texts to choose by are too few: {needed} are needed to say that {self.says(metric)}. "
                f"Give some {shares * needed + 128} texts in all, {larger}or confidence=None."
            )

    def fewest_texts(self, metric: Metric) -> int:
        """The fewest texts by which a state without any change keeps the promise.

        If a share ``budget`` of all texts were lost, none of n would be with probability (1 - budget)^n. 1 for a metric
        that is no fraction, whose scale says nothing of shares.
        """
        return self._fewest(self.budget) if metric.fraction else 1

    def _fewest(self, share: float) -> int:
        """Of how many texts none is among a ``share`` of all by chance, with probability 1 - confidence or less."""
        return 1 if share >= 1 else math.ceil(math.log(1 - self.confidence) / math.log1p(-share) - 1e-9)

    def check_classes(self, metric: Metric, labels: np.ndarray) -> None:
        """``ValueError`` where one class can decide the metric, and some class has so few texts that losing it would
        not be seen. labels: (text,) class numbers, or (text, class) 0 and 1, of the texts to choose by."""
        if metric.of_class is None:
            return
        counts = labels.astype(int).sum(0) if labels.ndim > 1 else np.unique(labels, return_counts=True)[1]
        counts = counts[counts > 0]
        needed = self._fewest(self.budget * metric.of_class(len(counts)))
        if counts.min(initial=needed) < needed:
            raise ValueError(
                f"one class has {counts.min()} of the {len(labels)} texts to choose by, which are too few: {needed} of "
                f"each are needed to say that {self.says(metric)}, for every class counts in it, however rare. Give "
                "more texts of it, another metric, or confidence=None."
            )

    def broken(self, run: Trajectory) -> bool:
        """True if the last state of ``run`` is not shown to keep the promise. An ``until`` of ``gnorm.prune``.

        Raises ``ValueError`` as ``check`` does.
        """
        return not self._holds(run, -1)

    def last_kept(self, run: Trajectory) -> int:
        """The number of pruned heads of the last state before the first that is not shown to keep the promise.

        Raises ``ValueError`` as ``check`` does.
        """
        states = run.table.pruned_heads.drop_duplicates()
        last = 0
        for row, pruned in zip(states.index, states, strict=True):
            if not self._holds(run, row):
                break
            last = int(pruned)
        return last

    def _holds(self, run: Trajectory, row: int) -> bool:
        labels = np.empty(0) if run.labels is None else run.labels
        return self.holds(run.metric, run.text_values[0], run.text_values[row], labels)

    def holds(self, metric: Metric, before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> bool:
        """Whether the texts show that ``after`` is worse than ``before`` by less than the budget.

        before, after: (text, ...) what the metric keeps of the same texts, of two models; labels: (text, ...) theirs.
        Hits are compared by the exact test of ``paired_hits``, whatever else by the upper end of a one-sided bootstrap
        interval of the loss, bias-corrected and accelerated (Efron 1987).

        A bootstrap is exact for many texts alone, and sees no loss that none of the texts shows.

        Raises ``ValueError`` as ``check`` and ``check_classes`` do.
        """
        self.check(metric, len(before))
        self.check_classes(metric, labels)
        if np.array_equal(before, after):
            return True
        if metric.text_values is hits and metric.per_text is not None:
            lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
            return paired_hits(lost, gained, len(before), self.budget) <= 1 - self.confidence
        return _upper_end(metric, before, after, labels, self.confidence) < self.budget

    def __str__(self) -> str:
        return f"with {100 * self.confidence:.4g} % confidence"

    def says(self, metric: Metric) -> str:
        """The promise in words, a clause."""
        points = f"{100 * self.budget:.4g} point{'s' * (self.budget != 0.01)}"
        less = f"less than {points if metric.fraction else f'{self.budget:g}'}"
        return f"{self} the {metric.name} on texts like these {_becomes_worse(metric)} by {less}"

    def verdict(self, metric: Metric, before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> str:
        """A clause: whether the texts show it, as ``holds`` says. Too few texts do not."""
        try:
            shown = self.holds(metric, before, after, labels)
        except ValueError:
            shown = False
        return f"these {len(before)} texts {'show' if shown else 'do not show'} that {self.says(metric)}"


def check_range(metric: Metric, budget: float) -> None:
    """``ValueError`` for a budget that is no number or is below 0."""
    if not budget >= 0:
        raise ValueError(
            f"budget={budget} is out of range: it is the {metric.name} that may be "
            f"{'lost' if metric.higher_is_better else 'added'}{', 0.01 for a point' * metric.fraction}."
        )


def _becomes_worse(metric: Metric) -> str:
    return "falls" if metric.higher_is_better else "rises"


@cache
def paired_hits(lost: int, gained: int, texts: int, budget: float) -> float:
    """The p-value of: the share of hits falls by ``budget`` or more. An exact unconditional test of paired hits.

    lost, gained: how many of ``texts`` are hit before alone, and after alone. It is the largest probability, over all
    shares of texts that change, of a result as far from the hypothesis as this one, by Tango's score statistic (Hsueh,
    Liu and Chen 2001, Biometrics 57, 478; Tango 1998, Statistics in Medicine 17, 891). budget: above 0 and below 1.
    """
    if budget >= 1:
        return 0.0
    most = _score(np.array(lost), np.array(gained), texts, budget) + 1e-9
    changed = np.arange(texts + 1)
    low, high = np.full(texts + 1, -1), changed.copy()  # the largest number of losses that is as far, by bisection
    while (low < high).any():
        middle = -((low + high) // -2)
        far = (_score(middle, changed - middle, texts, budget) <= most) | (middle < 0)
        low, high = np.where(far, middle, low), np.where(far, high, middle - 1)
    worst = 0.0
    for share in np.geomspace(budget, 1, GRID):
        middle, reach = texts * share, BEYOND * math.sqrt(texts * share * (1 - share)) + BEYOND**2
        some = changed[max(0, math.floor(middle - reach)) : math.ceil(middle + reach) + 1]
        ways = gammaln(texts + 1) - gammaln(some + 1) - gammaln(texts - some + 1)
        chances = np.exp(ways + xlogy(some, share) + xlog1py(texts - some, -share))
        of_losses = np.where(low[some] < 0, 0.0, bdtr(low[some].clip(0), some, min(1.0, (1 + budget / share) / 2)))
        worst = max(worst, float(chances @ of_losses))
    return worst


def _score(lost: np.ndarray, gained: np.ndarray, texts: int, budget: float) -> np.ndarray:
    """Tango's score statistic of a loss of ``budget``; below 0 where less was lost."""
    b = (2 * texts - lost + gained) * budget - lost - gained
    c = -gained * budget * (1 - budget)
    q = (np.sqrt(np.maximum(b * b - 8 * texts * c, 0)) - b) / (4 * texts)  # share of gains, if the loss is the budget
    score: np.ndarray = (lost - gained - texts * budget) / np.sqrt(texts * (2 * q + budget * (1 - budget)))
    return score


def _upper_end(metric: Metric, before: np.ndarray, after: np.ndarray, labels: np.ndarray, confidence: float) -> float:
    """The upper end of the interval of the loss, whose lower end is open."""
    sign, every, of = 1 if metric.higher_is_better else -1, np.arange(len(before)), metric.per_text
    losses: Any = None if of is None else sign * (of(before, labels) - of(after, labels))

    def of_means(texts: np.ndarray, axis: int = -1) -> Any:
        return losses[texts].mean(axis)

    def of_values(texts: np.ndarray) -> float:
        return sign * (metric.value(before[texts], labels[texts]) - metric.value(after[texts], labels[texts]))

    loss: Any = of_values if losses is None else of_means
    options: Any = {"n_resamples": RESAMPLES, "batch": 100, "confidence_level": confidence, "alternative": "less"}
    with np.errstate(invalid="ignore"), warnings.catch_warnings(action="ignore", category=DegenerateDataWarning):
        upper = float(scipy.stats.bootstrap((every,), loss, **options, rng=0).confidence_interval.high)
    return float(loss(every)) if math.isnan(upper) else upper  # no resample changes it
