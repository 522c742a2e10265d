"""What the published numbers say by themselves: the paper's claims, held against the authors' own files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gnorm.trajectory import area, wilson

from ..data.profiles import ModelSpec, read_profile
from .published import PublishedResults, plain_name, published_results

POINT = 0.01  # of accuracy
ROUNDED = 1e-3  # how far accuracy times n may lie from a whole number: published to six digits or more
ROUNDING = 1e-9  # of differences of accuracies
COLUMNS = (
    *("model", "greedy_gnorm", "attention_entropy", "inverse_attention_entropy", "random", "random sd", "trials"),
    *("difference", "low", "high", "larger", "larger low", "larger high", "below", "states"),
    *("half greedy_gnorm", "half random", "half larger", "half larger low", "half larger high"),
    *("within greedy_gnorm", "within attention_entropy", "within inverse_attention_entropy", "within random"),
    *("rho", "p", "accuracies", "multiples", "texts", "solution", "prefix", "lowest entropy"),
)


def published_claims(folder: str, models: Sequence[str]) -> pd.DataFrame:
    """A row for every model of the authors' files that is among ``models``, in the order of the paper's profile.

    folder, and what is raised: see ``published_results``. Columns without a value where the files do not hold what
    they need.

    greedy_gnorm, attention_entropy, inverse_attention_entropy, random: area under the accuracy curve; random is the
    mean over trials, and random sd their standard deviation. In the columns that compare Greedy-Gnorm with trials, it
    is read at the states that the trials measured. difference, low, high: its area less the mean of the trials, and the
    95 % t-interval over trials. larger: how many trials have a larger area, larger low, larger high: the 95 % Wilson
    interval of their share; with ``half``, the same of the area up to half of the heads. below: at how many states,
    of states, Greedy-Gnorm is below the mean of the trials.

    within and a method: the share of heads that go before accuracy is for the first time more than a point below the
    intact model's; of random pruning the mean over trials. rho, p: rank correlation of attention entropy and the step
    at which Greedy-Gnorm takes a head, mean over layers; p by drawing orders within layers. accuracies, multiples: how
    many there are, and how many are a multiple of 1/n for an n of texts. solution: heads that the final solution
    prunes; prefix: whether they are the first of Greedy-Gnorm's order; lowest entropy: whether they are those of
    lowest attention entropy.
    """
    rows = [
        {"model": model, **_of_curves(found), **_of_heads(found), **_granularity(found, spec)}
        for model, spec, found in _of_paper(folder, models)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def published_dip(folder: str, models: Sequence[str]) -> pd.DataFrame:
    """The steps of Greedy-Gnorm's largest fall and largest recovery up to half of the heads, a row each.

    Of the models whose published curve is there more than a point below the mean of the random trials. A fall or a
    recovery is a run of steps: it begins and ends with one that changes accuracy by a point or more, and from one such
    step to the next there are at most half as many as a layer has heads. Before its first step comes the step before,
    ``run`` is "before" there. accuracy: after the step. change: by the step. left: heads left in the layer. empty: the
    layers without heads, or none. Without columns where there is no such model.
    """
    runs = [
        run.assign(model=model)[["model", *run.columns]]
        for model, _, found in _of_paper(folder, models)
        if found.order and _dips(found)
        for run in _runs(found)
    ]
    return pd.concat(runs, ignore_index=True) if runs else pd.DataFrame()


def _of_paper(folder: str, models: Sequence[str]) -> list[tuple[str, ModelSpec, PublishedResults]]:
    found = published_results(folder)
    paper = read_profile("paper").models
    return [
        (model, spec, found[plain_name(model)])
        for model, spec in paper.items()
        if model in models and plain_name(model) in found
    ]


# ---------------------------------------------------------------- curves


def _of_curves(found: PublishedResults) -> dict[str, Any]:
    curves = found.curves
    methods = ("greedy_gnorm", "attention_entropy", "inverse_attention_entropy")
    areas = {method: area(curves[method]) if method in curves else np.nan for method in methods}
    shares = {f"within {method}": _within(curves[method]) if method in curves else np.nan for method in methods}
    if found.trials is None or "greedy_gnorm" not in curves:
        return areas | shares
    trials, greedy = found.trials, _at(curves["greedy_gnorm"], found.trials.index)
    whole = trials.apply(area)
    difference = area(greedy) - whole
    interval = stats.ttest_1samp(difference, 0).confidence_interval()
    low, high = wilson(int((difference < 0).sum()), len(whole))
    half = trials.apply(area, until=0.5)
    of_half = area(greedy, until=0.5)
    half_low, half_high = wilson(int((half > of_half).sum()), len(half))
    return {
        **areas,
        "random": whole.mean(),
        "random sd": whole.std(),
        "trials": len(whole),
        "difference": difference.mean(),
        "low": interval.low,
        "high": interval.high,
        "larger": int((difference < 0).sum()),
        "larger low": low,
        "larger high": high,
        "half greedy_gnorm": of_half,
        "half random": half.mean(),
        "half larger": int((half > of_half).sum()),
        "half larger low": half_low,
        "half larger high": half_high,
        "below": int((greedy < trials.mean(axis=1) - ROUNDING).sum()),
        "states": len(greedy),
        **shares,
        "within random": trials.apply(_within).mean(),
    }


def _at(curve: pd.Series, shares: pd.Index) -> pd.Series:
    return pd.Series(np.interp(shares, curve.index, curve), shares)


def _within(curve: pd.Series) -> float:
    """The share of heads pruned in the last state before accuracy is for the first time more than a point lower."""
    lost = (curve.iloc[0] - curve > POINT + ROUNDING).to_numpy()
    return float(curve.index[lost.argmax() - 1] if lost.any() else curve.index[-1])


def _granularity(found: PublishedResults, spec: ModelSpec) -> dict[str, Any]:
    """How many accuracies are multiples of 1/n, where n texts are those of the evaluation or of their whole split."""
    rows = spec.published_rows.get(spec.evaluation.split, 0)
    stated = [rows] if spec.evaluation.texts == "all" else [int(spec.evaluation.texts), rows]
    tables = [curve.to_numpy() for method, curve in found.curves.items() if method != "random"]
    tables += [] if found.trials is None else [found.trials.to_numpy().ravel()]
    accuracies, used = np.concatenate(tables), []
    unexplained = np.ones(len(accuracies), dtype=bool)
    for texts in stated:
        hits = accuracies * texts
        explained = unexplained & (np.abs(hits - hits.round()) <= ROUNDED)
        used += [texts] if explained.any() else []
        unexplained &= ~explained
    return {
        "accuracies": len(accuracies),
        "multiples": int((~unexplained).sum()),
        "texts": " and ".join(map(str, used)),
    }


# ---------------------------------------------------------------- which heads


def _of_heads(found: PublishedResults) -> dict[str, Any]:
    row: dict[str, Any] = {}
    entropy = found.entropy
    if found.order and entropy is not None:
        shape = np.max(found.order, axis=0) + 1
        if shape[0] == 1:  # layers that share a block: its entropies are summed over them
            entropy = entropy.sum(axis=0, keepdims=True)
        row["rho"], row["p"] = _low_entropy_first(found.order, entropy)
    if found.order and found.solution:
        count = len(found.solution)
        row |= {"solution": count, "prefix": found.solution == set(found.order[:count])}
        if entropy is not None:
            lowest = np.argsort(entropy, axis=None, kind="stable")[:count]
            heads = {(int(layer), int(head)) for layer, head in zip(*np.unravel_index(lowest, entropy.shape))}
            row["lowest entropy"] = found.solution == heads
    return row


def _low_entropy_first(order: Sequence[tuple[int, int]], entropy: np.ndarray) -> tuple[float, float]:
    """Rank correlation of step and entropy (layer, head), mean over layers; its p among orders drawn within layers."""
    steps = np.full(entropy.shape, len(order) + 1)  # a head that never went went last
    steps[tuple(np.transpose(order))] = np.arange(len(order))
    ranks, random = stats.rankdata(entropy, axis=1), np.random.default_rng(0)

    def rho(drawn: np.ndarray, axis: int = -1) -> Any:
        by_layer = drawn.reshape(*drawn.shape[:axis], *entropy.shape)
        return stats.pearsonr(stats.rankdata(by_layer, axis=-1), ranks, axis=-1).statistic.mean(axis=-1)

    def orders(*, size: Any) -> Any:
        return random.permuted(np.tile(steps, (size[0], 1, 1)), axis=-1).reshape(size)

    found = stats.monte_carlo_test(steps.ravel(), orders, rho, vectorized=True, n_resamples=9999)
    return float(found.statistic), float(found.pvalue)


# ---------------------------------------------------------------- a dip, step by step


def _dips(found: PublishedResults) -> bool:
    if found.trials is None or "greedy_gnorm" not in found.curves:
        return False
    first = found.trials.index <= 0.5
    gap = found.trials.mean(axis=1) - _at(found.curves["greedy_gnorm"], found.trials.index)
    return bool((gap[first] > POINT).any())


def _runs(found: PublishedResults) -> list[pd.DataFrame]:
    """The steps of the largest fall and of the largest recovery, each with the step before it."""
    layers, heads = np.max(found.order, axis=0) + 1
    accuracy = found.curves["greedy_gnorm"].to_numpy()
    change = np.diff(accuracy, prepend=accuracy[0]).round(9)  # by step; of the intact model 0
    half = (len(accuracy) - 1) // 2
    large = np.flatnonzero(np.abs(change[: half + 1]) >= POINT - ROUNDING)
    groups = np.split(large, np.flatnonzero(np.diff(large) > heads // 2) + 1) if len(large) else []
    net = {(int(run[0]), int(run[-1])): accuracy[run[-1]] - accuracy[run[0] - 1] for run in groups}
    left, rows = np.ones((layers, heads), dtype=bool), []
    for step, (layer, head) in enumerate(found.order, start=1):
        left[layer, head] = False
        row = {"step": step, "layer": layer, "head": head, "accuracy": accuracy[step], "change": change[step]}
        empty = " ".join(map(str, np.flatnonzero(~left.any(1)))) or "none"
        rows.append(row | {"left": int(left[layer].sum()), "empty": empty})
    steps = pd.DataFrame(rows).set_index("step", drop=False)
    chosen = [("fall", min(net, key=net.__getitem__)), ("recovery", max(net, key=net.__getitem__))] if net else []
    found_runs = []
    for name, (first, last) in chosen:
        if (net[first, last] < 0) == (name == "fall"):
            names = np.where(np.arange(max(first - 1, 1), last + 1) < first, "before", name)
            run = steps.loc[max(first - 1, 1) : last]
            found_runs.append(run.assign(run=names)[["run", *steps.columns]])
    return found_runs
