"""Paired differences of two methods: the statistics that decide between them (docs/protocol.md).

Two methods are compared on the same trained models and the same evaluation texts, by each of ``ENDPOINTS``. A
difference above 0 says that a method is better, also where lower values of the metric are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import scipy

from gnorm.metrics import Metric
from gnorm.trajectory import Trajectory, bootstrap, curve, per_text

Repeated = Mapping[str, Sequence[Trajectory]]  # by method, a trajectory for each training seed

EQUAL = 0.01  # two methods are equal where the 90 % interval lies within this of 0


@dataclass(frozen=True)
class Endpoint:
    """What two curves are compared by.

    of: (shares of heads pruned (state,), values of the metric (..., state), metric) -> (...,), larger is better.
    linear: whether it is linear in the values, so that it is a mean over texts where the metric is one.
    """

    title: str
    of: Callable[[np.ndarray, np.ndarray, Metric], np.ndarray]
    linear: bool


def area_until(until: float, shares: np.ndarray, values: np.ndarray, metric: Metric) -> np.ndarray:
    """The trapezoid area under curves up to a share ``until`` of the heads, over ``until``; its negative for a metric
    that is better where it is lower."""
    grid = np.union1d(shares[shares <= until], until)
    weights = np.trapezoid([np.interp(grid, shares, one) for one in np.eye(len(shares))], grid, axis=1) / until
    areas: np.ndarray = values @ weights * (1 if metric.higher_is_better else -1)
    return areas


def share_within(budget: float, shares: np.ndarray, values: np.ndarray, metric: Metric) -> np.ndarray:
    """The largest share of heads pruned whose metric is worse than the intact model's by no more than ``budget``."""
    loss = (values[..., :1] - values) * (1 if metric.higher_is_better else -1)
    last = len(shares) - 1 - np.flip(loss <= budget + 1e-12, axis=-1).argmax(-1)
    found: np.ndarray = shares[last]
    return found


ENDPOINTS: dict[str, Endpoint] = {
    "half": Endpoint("area up to half of the heads", partial(area_until, 0.5), linear=True),
    "within": Endpoint("share of heads within two points", partial(share_within, 0.02), linear=False),
    "area": Endpoint("whole area", partial(area_until, 1.0), linear=True),
}


@dataclass(frozen=True)
class Estimate:
    """A mean difference, its standard error and degrees of freedom. of_seeds, of_texts, of_rest: the components of the
    variance of one seed's difference on one text."""

    mean: float
    error: float
    freedom: float
    of_seeds: float
    of_texts: float = 0.0
    of_rest: float = 0.0

    def interval(self, level: float) -> tuple[float, float]:
        """Student's interval."""
        half = self.error * float(scipy.stats.t.ppf((1 + level) / 2, self.freedom)) if self.error else 0.0
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided p-value of no difference."""
        if not self.error:
            return float(self.mean == 0)
        return float(2 * scipy.stats.t.sf(abs(self.mean) / self.error, self.freedom))


def crossed(differences: np.ndarray) -> Estimate:
    """The mean of differences (seed, text), of several seeds that share their texts.

    se^2 = (MS_seed + MS_text - MS_rest) / (S N), of the mean squares of an analysis of variance in two ways, and the
    degrees of freedom that Satterthwaite gives this sum. Where it is not above 0, MS_seed takes its place.
    """
    seeds, texts = differences.shape
    mean, by_seed, by_text = differences.mean(), differences.mean(1), differences.mean(0)
    rest = differences - by_seed[:, None] - by_text + mean
    squares = np.array([texts * ((by_seed - mean) ** 2).sum(), seeds * ((by_text - mean) ** 2).sum(), (rest**2).sum()])
    freedoms = np.array([seeds - 1, texts - 1, (seeds - 1) * (texts - 1)])
    of_seed, of_text, of_rest = squares / freedoms
    error, freedom = _error(squares / freedoms, freedoms, seeds * texts)
    components = max(0.0, (of_seed - of_rest) / texts), max(0.0, (of_text - of_rest) / seeds), of_rest
    return Estimate(float(mean), float(error), float(freedom), *map(float, components))


def _error(squares: np.ndarray, freedoms: np.ndarray, cells: Any) -> tuple[np.ndarray, np.ndarray]:
    """The standard error of the mean of ``cells`` differences and its degrees of freedom, as ``crossed`` has them.

    squares: (3, ...) the mean squares of seeds, of texts and of the rest; freedoms: (3, ...) theirs.
    """
    total = squares[0] + squares[1] - squares[2]
    with np.errstate(invalid="ignore"):  # 0 / 0, where nothing differs
        freedom = np.where(total > 0, total**2 / (squares**2 / freedoms).sum(0), freedoms[0])
    return np.sqrt(np.where(total > 0, total, squares[0]) / cells), freedom


def over_seeds(differences: np.ndarray) -> Estimate:
    """The mean of differences (seed,), of several seeds; what texts add to all of them alike is not seen."""
    seeds = len(differences)
    variance = float(differences.var(ddof=1))
    return Estimate(float(differences.mean()), float(np.sqrt(variance / seeds)), seeds - 1, variance)


def seed_interval(differences: np.ndarray) -> tuple[float, float]:
    """Student's 95 % interval of ``over_seeds``; NaN for one seed."""
    return over_seeds(differences).interval(0.95) if len(differences) > 1 else (np.nan, np.nan)


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values (comparison,) corrected for their number by Holm's step-down method."""
    values = np.asarray(p, dtype=float)
    order = values.argsort()
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = steps.clip(max=1)
    return corrected


def differences(runs: Mapping[str, Repeated], pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """A row for every model, endpoint and pair (method, baseline): how much better the method is than the baseline.

    difference: the mean over seeds. low, high: its 95 % interval; low90, high90: that of 90 %; p: of no difference, all
    by Student's t: over seeds and texts, ``crossed``, where the endpoint is a mean over texts, else over seeds. Of one
    seed they are percentiles of a bootstrap over texts, and say nothing of another training. of_seeds, of_texts,
    of_rest: the components of the variance. same_as: the first method before the baseline whose runs are the same text
    by text, so that the comparison is one by construction; "" if there is none. An endpoint in points is left out for
    a metric that is not a fraction, a pair where a model has not been pruned by both methods.

    Raises ``ValueError`` where two methods were not measured on the same texts and seeds, by the same metric.
    """
    pairs, rows = list(pairs), list[dict[str, Any]]()
    for model, methods in runs.items():
        metric, texts = _measured(model, methods)
        asked = [pair for pair in pairs if {*pair} <= {*methods}]
        same = {baseline: _same_as(methods, baseline) for _, baseline in asked}
        for name, endpoint in ENDPOINTS.items():
            if not (metric.fraction or endpoint.linear):
                continue
            measured = {method: _values(methods[method], endpoint) for method in {*sum(asked, ())}}
            for method, baseline in asked:
                about = {"model": model, "method": method, "baseline": baseline, "endpoint": name}
                size = {"seeds": len(methods[method]), "texts": texts, "same_as": same[baseline]}
                rows.append(about | _compared(measured[method], measured[baseline], len(methods[method])) | size)
    return pd.DataFrame(rows, columns=list(COLUMNS))


NUMBERS = ("difference", "low", "high", "low90", "high90", "p", "of_seeds", "of_texts", "of_rest")

COLUMNS = ("model", "method", "baseline", "endpoint", *NUMBERS, "seeds", "texts", "same_as")


def _values(runs: Sequence[Trajectory], endpoint: Endpoint) -> np.ndarray:
    """What a method is compared by: (seed, text) where the endpoint is a mean over texts, else (seed,); of one seed its
    value and those of a bootstrap over texts, which draws the same for every method."""
    metric = runs[0].metric

    def of(run: Trajectory, values: Any) -> np.ndarray:
        heads = curve(run).index.to_numpy()
        return endpoint.of(heads / heads[-1], np.asarray(values), metric)

    if len(runs) == 1:
        return np.append(of(runs[0], curve(runs[0])), of(runs[0], bootstrap(runs[0])))
    if endpoint.linear and metric.per_text is not None:
        return np.stack([of(run, per_text(run).T) for run in runs])
    return np.array([of(run, curve(run)) for run in runs])


def _compared(ones: np.ndarray, others: np.ndarray, seeds: int) -> dict[str, float]:
    """``NUMBERS`` of the ``_values`` of two methods."""
    gains = ones - others
    if seeds == 1:
        mean, drawn = gains[0], gains[1:]
        ends = np.quantile(drawn, [0.025, 0.975, 0.05, 0.95])
        p, parts = min(1.0, 2 * min((drawn <= 0).mean(), (drawn >= 0).mean())), [np.nan] * 3
    else:
        found = crossed(gains) if gains.ndim == 2 else over_seeds(gains)
        mean, ends, p = found.mean, np.array([*found.interval(0.95), *found.interval(0.9)]), found.p
        parts = [found.of_seeds, found.of_texts, found.of_rest]
    return dict(zip(NUMBERS, map(float, (mean, *ends, p, *parts)), strict=True))


def _same_as(methods: Repeated, baseline: str) -> str:
    """The first method that answered every text as ``baseline`` did, in all seeds and states; "" if that is itself."""
    same = next(
        name
        for name, runs in methods.items()
        if all(np.array_equal(a.text_values, b.text_values) for a, b in zip(runs, methods[baseline], strict=True))
    )
    return "" if same == baseline else same


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


def verdict(side: Sequence[str], equal: Sequence[bool]) -> str:
    """The verdict on one comparison by one endpoint, from where the interval of each model lies, and which are equal.

    The rule: "supported" where the interval lies above 0 on at least three of the models and below 0 on none;
    "contradicted" where it lies below 0 on at least two; "equal" where the 90 % interval lies within ``EQUAL`` of 0 on
    all; else "open".
    """
    above, _, below = (list(side).count(name) for name in SIDES)
    if above >= 3 and not below:
        return "supported"
    if below >= 2:
        return "contradicted"
    return "equal" if len(equal) and all(equal) else "open"


def error_rates(table: pd.DataFrame, effect: float = 0.02, draws: int = 4000, seed: int = 0) -> pd.DataFrame:
    """How often the rule says each word where the truth is known, by simulation, and how often intervals hold it.

    table: rows of ``differences`` of one comparison and an endpoint that is a mean over texts, one for each model of
    several seeds, whose seeds, texts and components of variance are taken, all normal. A row for each truth: no effect,
    ``effect`` on two of the models, on all. Columns: truth, one for each word, coverage.
    """
    generator, rows = np.random.default_rng(seed), []
    names = "seeds", "texts", "of_seeds", "of_texts", "of_rest"
    seeds, texts, of_seeds, of_texts, of_rest = (table[name].to_numpy() for name in names)
    expected = np.stack([texts * of_seeds + of_rest, seeds * of_texts + of_rest, of_rest])
    freedoms = np.stack([seeds - 1, texts - 1, (seeds - 1) * (texts - 1)])
    for truth, models in (("no effect", 0), (f"{effect:g} on two models", 2), (f"{effect:g} on all", len(table))):
        mean = np.where(np.arange(len(table)) < models, effect, 0.0)
        squares = np.stack([m * generator.chisquare(f, (draws, len(table))) / f for m, f in zip(expected, freedoms)])
        error, freedom = _error(squares, freedoms[:, None], seeds * texts)
        spread = np.sqrt((expected[0] + expected[1] - expected[2]) / (seeds * texts))
        found = mean + spread * generator.standard_normal((draws, len(table)))
        half, half90 = (error * scipy.stats.t.ppf(level, freedom) for level in (0.975, 0.95))
        side = np.select([found > half, found < -half], [SIDES[0], SIDES[2]], SIDES[1])
        equal = np.abs(found) + half90 < EQUAL
        words = [verdict(one, other) for one, other in zip(side.tolist(), equal.tolist(), strict=True)]
        rows.append(
            {"truth": truth}
            | {word: words.count(word) / draws for word in ("supported", "contradicted", "equal", "open")}
            | {"coverage": float((np.abs(found - mean) <= half).mean())}
        )
    return pd.DataFrame(rows)
