"""Paired differences of areas: the statistics that decide between two methods (docs/protocol.md).

Two methods are compared on the same trained models and the same evaluation texts. Where a metric is a mean over texts,
as accuracy is, so is the area under its curve, and samples are made of each text's own area. Another metric is computed
anew for every sample. A difference above 0 says that a method is better, also where lower values of the metric are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy

from gnorm.metrics import Metric
from gnorm.trajectory import Trajectory, area, bootstrap, curve, interval, text_areas

COLUMNS = ("model", "method", "baseline", "difference", "low", "high", "p", "p_holm", "seeds", "texts")

Repeated = Mapping[str, Sequence[Trajectory]]  # by method, a trajectory for each training seed


def bootstrap_means(areas: np.ndarray, samples: int = 10_000, seed: int = 0) -> np.ndarray:
    """(sample, method) means of areas (method, seed, text), resampled on two levels.

    Each sample draws training seeds with replacement, and for each drawn seed evaluation texts with replacement. All
    methods meet the same draws, so differences between columns are paired.
    """
    methods, seeds, texts = areas.shape
    generator = np.random.default_rng(seed)
    by_text = areas.transpose(2, 1, 0).reshape(texts, seeds * methods)
    means = np.zeros((samples, methods))
    for _ in range(seeds):
        drawn = generator.integers(seeds, size=samples)
        weights = generator.multinomial(texts, np.full(texts, 1 / texts), size=samples)
        of_every_seed = (weights @ by_text / texts).reshape(samples, seeds, methods)
        means += of_every_seed[np.arange(samples), drawn]
    return means / seeds


def resampled_areas(runs: Repeated, samples: int = 200, seed: int = 0) -> np.ndarray:
    """(sample, method) mean areas under the curves of any metric, resampled on two levels as ``bootstrap_means`` does.

    The metric is computed anew for every sample, drawn seed and state, so there are fewer samples.
    """
    seeds = len(next(iter(runs.values())))
    drawn = np.random.default_rng(seed).integers(seeds, size=(samples, seeds))  # of each sample
    means = np.empty((samples, len(runs)))
    for method, trajectories in enumerate(runs.values()):
        areas = np.empty((seeds, samples, seeds))  # of each seed, for every place in a sample that it may be drawn to
        for k, trajectory in enumerate(trajectories):
            heads = curve(trajectory).index
            values = bootstrap(trajectory, 10 * samples * seeds, seed=k)  # the same texts for every method
            areas[k] = np.trapezoid(values, heads / heads[-1], axis=1).reshape(samples, seeds)
        means[:, method] = np.take_along_axis(areas, drawn[None], axis=0)[0].mean(1)
    return means


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p-value of a mean difference, exact, under differences (seed,) whose signs are arbitrary.

    The smallest that n seeds can give is 2 / 2^n: 0.0625 for five, 0.25 for three, 1 for one.
    """
    if len(differences) < 2:
        return 1.0
    test = scipy.stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=2**16)
    return min(1.0, float(np.asarray(test.pvalue)))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values (comparison,) corrected for their number by Holm's step-down method."""
    values = np.asarray(p, dtype=float)
    order = values.argsort()
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = steps.clip(max=1)
    return corrected


def differences(runs: Mapping[str, Repeated], families: Iterable[Sequence[tuple[str, str]]]) -> pd.DataFrame:
    """A row for every model and pair (method, baseline): how much better the area of the method is than the baseline's.

    difference: the mean over seeds of area(method) less area(baseline), or the other way round where lower values of
    the metric are better. low, high: its 95 % interval by ``bootstrap_means``, of a metric that is not a mean over
    texts by ``resampled_areas``. p: by ``sign_flip`` over the seeds. p_holm: corrected over the pairs of a family that
    this model has. A pair is left out where a model has not been pruned by both methods.

    Raises ``ValueError`` where two methods were not measured on the same texts and seeds, by the same metric.
    """
    families = [list(pairs) for pairs in families]
    rows: list[dict[str, Any]] = []
    for model, methods in runs.items():
        metric, texts = _measured(model, methods)
        names, sign = list(methods), 1 if metric.higher_is_better else -1
        if metric.per_text:
            areas = np.stack([[text_areas(run) for run in of_method] for of_method in methods.values()])
            means, by_seed = bootstrap_means(areas), areas.mean(2)  # (sample, method), (method, seed)
        else:
            means = resampled_areas(methods)
            by_seed = np.array([[area(curve(run)) for run in of_method] for of_method in methods.values()])
        for pairs in families:
            family = []
            for method, baseline in pairs:
                if method in methods and baseline in methods:
                    one, other = names.index(method), names.index(baseline)
                    low, high = interval(sign * (means[:, one] - means[:, other]))
                    gains = sign * (by_seed[one] - by_seed[other])
                    numbers = (gains.mean(), float(low), float(high), sign_flip(gains), 1.0, len(gains), texts)
                    family.append(dict(zip(COLUMNS, (model, method, baseline, *numbers), strict=True)))
            for row, corrected in zip(family, holm([row["p"] for row in family]), strict=True):
                rows.append(row | {"p_holm": float(corrected)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _measured(model: str, methods: Repeated) -> tuple[Metric, int]:
    """The metric of all runs, and the number of their texts."""
    every = [run for runs in methods.values() for run in runs]
    sizes = {name: [run.num_texts for run in runs] for name, runs in methods.items()}
    if len({tuple(of_method) for of_method in sizes.values()}) > 1 or len({run.num_texts for run in every}) > 1:
        raise ValueError(f"{model}: methods were not measured on the same seeds and texts: {sizes}.")
    metrics = {run.metric.name: run.metric for run in every}
    if len(metrics) > 1:
        raise ValueError(f"{model}: methods were measured by {' and by '.join(metrics)}: compare runs of one metric.")
    return every[0].metric, every[0].num_texts


SIDES = ("above 0", "across 0", "below 0")  # where an interval may lie


def sides(table: pd.DataFrame) -> pd.Series:
    """Where the interval of each row of ``differences`` lies, one of ``SIDES``."""
    above, across, below = SIDES
    return pd.Series(np.select([table.low > 0, table.high < 0], [above, below], across), table.index)


def verdict(table: pd.DataFrame) -> str:
    """Verdict on a claim that one method beats another, from the rows of ``differences`` for it, one for each model.

    The rule, written before the runs: "supported" where the interval lies above 0 on at least three of the models and
    below 0 on none; "contradicted" where it lies below 0 on at least two; else "open".
    """
    above, _, below = (int((sides(table) == side).sum()) for side in SIDES)
    if above >= 3 and not below:
        return "supported"
    return "contradicted" if below >= 2 else "open"
