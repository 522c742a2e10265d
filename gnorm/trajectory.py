"""What a pruning run leaves, and what its curve says: area, interval, solution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from torch import Tensor

# Scores that are closer than this may change places with the number of threads or the device: fp32 sums are rounded in
# another order. Measured on one and two threads, scores of G-norm differ by less than a tenth of it.
NEAR_TIE = 1e-4


@dataclass(frozen=True)
class Trajectory:
    """What a run did, step by step.

    table: columns trial, pruned_heads, layer, head, score, accuracy. The first row of a trial is the intact model (no
    layer, head, score); after it comes a row for each head that went, in the order in which they went. Heads removed
    in the same step share ``pruned_heads`` (how many are gone after the step) and ``accuracy`` (measured after it).
    correct: (row, text) bool, which evaluation texts were classified correctly.
    start: (layer, head) bool mask of the model before the run.
    info: how the run was made: method, seed, sizes, device, precision, versions, seconds; and how close the choices
    were: smallest_gap (between the last head that went and the first that stayed, in units of the score), ties, and
    near_ties, steps whose gap is below ``NEAR_TIE``.
    """

    table: pd.DataFrame
    correct: np.ndarray
    start: Tensor
    info: dict[str, Any]

    def order(self, trial: int = 0) -> list[tuple[int, int]]:
        """The heads, (layer, head), in the order in which they went; ``ValueError`` for a trial that was not run."""
        if trial not in set(self.table.trial):
            raise ValueError(f"there is no trial {trial}: this run has trials 0 to {self.table.trial.max()}.")
        gone = self.table[(self.table.trial == trial) & self.table["layer"].notna()]
        return [(int(layer), int(head)) for layer, head in zip(gone["layer"], gone["head"], strict=True)]

    def mask(self, pruned_heads: int, trial: int = 0) -> Tensor:
        """(layer, head) bool mask after ``pruned_heads`` heads have gone; ``ValueError`` where so many never went."""
        mask, order = self.start.clone(), self.order(trial)
        if not 0 <= pruned_heads <= len(order):
            raise ValueError(f"pruned_heads={pruned_heads} is out of range: this run pruned {len(order)} heads.")
        for layer, head in order[:pruned_heads]:
            mask[layer, head] = False
        return mask


def wilson(hits: int, texts: int) -> tuple[float, float]:
    """The 95 % Wilson interval of the share of ``hits`` among ``texts``."""
    interval = scipy.stats.binomtest(hits, texts).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def curve(trajectory: Trajectory) -> pd.Series:
    """Accuracy by number of pruned heads, the mean over trials."""
    return trajectory.table.drop_duplicates(["trial", "pruned_heads"]).groupby("pruned_heads").accuracy.mean()


def area_under_curve(accuracy: pd.Series) -> float:
    """Trapezoid area under accuracy against the fraction of heads pruned; x from 0 to 1."""
    return float(np.trapezoid(accuracy, accuracy.index / accuracy.index[-1]))


def bootstrap(trajectory: Trajectory, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """(sample, state) accuracies, the evaluation texts drawn with replacement, the same texts for every state.

    States are the distinct numbers of pruned heads; trials are averaged.
    """
    table = trajectory.table.reset_index(drop=True)
    states = table.drop_duplicates(["trial", "pruned_heads"])
    mean = np.stack(
        [trajectory.correct[rows.index].mean(0) for _, rows in states.groupby("pruned_heads")]  # (state, text)
    )
    texts = mean.shape[1]
    draws = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=samples)
    return draws @ mean.T / texts


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The middle ``level`` of bootstrap samples (sample, ...), by percentile."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def area_interval(trajectory: Trajectory) -> tuple[float, float]:
    """95 % bootstrap interval, over evaluation texts, of the area under the curve."""
    heads = curve(trajectory).index
    low, high = interval(np.trapezoid(bootstrap(trajectory), heads / heads[-1], axis=1))
    return float(low), float(high)


def solution(trajectory: Trajectory, budget: float) -> int:
    """The most heads that can be pruned while accuracy stays within ``budget`` of the intact model's."""
    accuracy = curve(trajectory)
    return int(accuracy.index[accuracy >= accuracy.iloc[0] - budget - 1e-12][-1])
