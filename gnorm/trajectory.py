"""The trajectory of a pruning run, and numbers read off its curve: area, interval, solution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy
from torch import Tensor

from .engine.tally import hits
from .metrics import METRICS, Metric

# Scores closer than this may change order with the number of threads or the device, because fp32 sums are then rounded
# in another order. Between one and two threads, scores of G-norm were measured to differ by less than a tenth of it.
NEAR_TIE = 1e-4


@dataclass(frozen=True)
class Trajectory:
    """The steps of a pruning run and how good the model was after each.

    table: columns trial, pruned_heads, layer, head, score, and the metric by its name, such as accuracy. The first row
    of a trial is the intact model (no layer, head, score); after it comes a row for each head that was removed, in
    order. Heads removed in the same step share ``pruned_heads`` (the number removed after the step) and the metric
    (measured after the step).
    text_values: (row, text, ...) the metric's ``text_values`` of each evaluation text: its prediction, or whether
    it was classified correctly. labels: (text, ...) what the metric compares it with; may be None where it needs none.
    start: (layer, head) bool mask of the model before the run.
    info: how the run was made (method, seed, sizes, device, precision, versions, seconds), and how close its choices
    were. The gap of a step lies between the last head that was removed and the first that was kept, in units of the
    score: smallest_gap is the smallest one, ties counts gaps of zero, near_ties counts gaps below ``NEAR_TIE``.
    gone: of a run of heads and neurons (``gnorm.shipping.prune_units``), the (layer, column) that went in each row;
    None of a run of heads. ``start`` and ``mask`` are then (layer, head + neuron), a row of the table is a step, which
    names the first that went, and ``pruned_heads`` counts neurons too.
    """

    table: pd.DataFrame
    text_values: np.ndarray
    start: Tensor
    info: dict[str, Any]
    metric: Metric = METRICS["accuracy"]
    labels: np.ndarray | None = None
    gone: Sequence[Sequence[tuple[int, int]]] | None = None

    @property
    def correct(self) -> np.ndarray:
        """(row, text) bool, which texts were classified correctly; ``AttributeError`` for another metric."""
        if self.metric.text_values is not hits:
            raise AttributeError(f"this run was measured by {self.metric.name}: look at its text_values and labels.")
        return self.text_values

    @property
    def predictions(self) -> np.ndarray:
        """The former name of ``text_values``; it goes with the next version."""
        warnings.warn("Trajectory.predictions is called text_values now", DeprecationWarning, stacklevel=2)
        return self.text_values

    @property
    def num_texts(self) -> int:
        """The number of texts that the model was measured on."""
        return int(self.text_values.shape[1])

    def order(self, trial: int = 0) -> list[tuple[int, int]]:
        """The removed heads, (layer, head), in order; ``ValueError`` for a trial that was not run.

        Of a run of heads and neurons, the (layer, column) of ``start`` of both.
        """
        if trial not in set(self.table.trial):
            raise ValueError(f"there is no trial {trial}: this run has trials 0 to {self.table.trial.max()}.")
        if self.gone is not None:
            return [unit for of_step in self.gone for unit in of_step]
        removed = self.table[(self.table.trial == trial) & self.table["layer"].notna()]
        return [(int(layer), int(head)) for layer, head in zip(removed["layer"], removed["head"], strict=True)]

    def mask(self, pruned_heads: int, trial: int = 0) -> Tensor:
        """(layer, head) bool mask after ``pruned_heads`` removed heads; ``ValueError`` where the run removed fewer."""
        mask, order = self.start.clone(), self.order(trial)
        if not 0 <= pruned_heads <= len(order):
            raise ValueError(f"pruned_heads={pruned_heads} is out of range: this run pruned {len(order)} heads.")
        for layer, head in order[:pruned_heads]:
            mask[layer, head] = False
        return mask


def wilson(hits: int, texts: int) -> tuple[float, float]:
    """The 95 % Wilson interval, as fractions, of the share of ``hits`` among ``texts``."""
    interval = scipy.stats.binomtest(hits, texts).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def curve(trajectory: Trajectory) -> pd.Series:
    """The metric by number of pruned heads; the mean over trials."""
    states = trajectory.table.drop_duplicates(["trial", "pruned_heads"]).groupby("pruned_heads")
    return states[trajectory.metric.name].mean()


def area(values: pd.Series, until: float = 1.0) -> float:
    """Trapezoid area under a ``curve`` against the fraction of heads pruned, up to the fraction ``until`` and over it;
    0 to 1 where the metric is a fraction."""
    shares = values.index / values.index[-1]
    grid = np.union1d(shares[shares <= until], until)
    return float(np.trapezoid(np.interp(grid, shares, values), grid) / until)


def of_texts(trajectory: Trajectory, texts: np.ndarray) -> Trajectory:
    """The run as it was measured on some of its texts: their numbers, or a mask (text,)."""
    values = trajectory.text_values[:, texts]
    labels = None if trajectory.labels is None else trajectory.labels[texts]
    metric = trajectory.metric
    measured = [metric.value(each, np.empty(0) if labels is None else labels) for each in values]
    return replace(
        trajectory, text_values=values, labels=labels, table=trajectory.table.assign(**{metric.name: measured})
    )


def per_text(trajectory: Trajectory) -> pd.DataFrame:
    """(state, text) each text's term of a metric that is a mean over texts, such as hit or miss; the mean over trials.

    A state is a number of pruned heads that was measured; it is the index. ``ValueError`` where the metric is not
    such a mean.
    """
    metric, table = trajectory.metric, trajectory.table.reset_index(drop=True)
    if metric.per_text is None:
        raise ValueError(f"{metric.name} is not a mean over texts: its row in METRICS has no per_text.")
    labels = np.empty(0) if trajectory.labels is None else trajectory.labels
    terms = [metric.per_text(values, labels) for values in trajectory.text_values]
    states = table.drop_duplicates(["trial", "pruned_heads"]).groupby("pruned_heads")
    return pd.DataFrame({pruned: np.mean([terms[row] for row in rows.index], axis=0) for pruned, rows in states}).T


def text_areas(trajectory: Trajectory) -> np.ndarray:
    """(text,) the area under each text's own curve; their mean is the area under the curve. ``ValueError`` as
    ``per_text``.
    """
    by_state = per_text(trajectory)
    return np.trapezoid(by_state.to_numpy(), by_state.index / by_state.index[-1], axis=0)


def bootstrap(trajectory: Trajectory, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """(sample, state) values of the metric; each sample draws evaluation texts with replacement, the same for every
    state. A metric that is not a mean over texts is computed anew for every sample, of which there are a tenth.
    """
    texts, mean = trajectory.num_texts, trajectory.metric.per_text is not None
    samples = samples if mean else math.ceil(samples / 10)
    draws = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=samples)
    if mean:
        return draws @ per_text(trajectory).to_numpy().T / texts
    table, labels = trajectory.table.reset_index(drop=True), trajectory.labels
    assert labels is not None
    values = np.empty((samples, len(table)))
    states = table.drop_duplicates(["trial", "pruned_heads"])
    for sample, counts in zip(values, draws):
        drawn = np.repeat(np.arange(texts), counts)
        for row in states.index:
            sample[row] = trajectory.metric.value(trajectory.text_values[row][drawn], labels[drawn])
    by_state = states.groupby("pruned_heads")
    return np.stack([values[:, rows.index].mean(1) for _, rows in by_state], axis=1)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the middle 95 % of bootstrap samples (sample, ...), by percentile."""
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high


def area_interval(trajectory: Trajectory) -> tuple[float, float]:
    """95 % bootstrap interval of the area under the curve, over evaluation texts."""
    heads = curve(trajectory).index
    low, high = interval(np.trapezoid(bootstrap(trajectory), heads / heads[-1], axis=1))
    return float(low), float(high)


def solution(trajectory: Trajectory, budget: float) -> int:
    """The largest number of pruned heads whose metric is worse than the intact model's by no more than ``budget``."""
    values = curve(trajectory)
    loss = (values.iloc[0] - values) * (1 if trajectory.metric.higher_is_better else -1)
    return int(values.index[loss <= budget + 1e-12][-1])
