"""Tables made from trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from gnorm.engine.model.blocks import QKV
from gnorm.trajectory import NEAR_TIE, Trajectory, area, area_interval, curve

from .paired import Repeated, differences, seed_interval, sides
from .published import published_area

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the heads pruned: the points at which the paper's tables read the curves


def summary_row(trajectory: Trajectory) -> dict[str, Any]:
    """The metric at 0/25/50/75/100 % of heads pruned (the nearest state measured), area under the curve, interval."""
    values = curve(trajectory)
    low, high = area_interval(trajectory)
    heads = np.asarray(values.index, dtype=float)
    nearest = {f"{f:.0%}": float(values.iloc[int(np.abs(heads - f * heads[-1]).argmin())]) for f in FRACTIONS}
    return {**nearest, "area": area(values), "area_low": low, "area_high": high}


def summary_table(runs: Mapping[str, Mapping[str, Trajectory]], published: str = "") -> pd.DataFrame:
    """A row for every model and method in ``runs[model][method]``: ``summary_row``, and the published area if any.

    published: the folder of the authors' result files, "" for what the profile quotes. Columns model, method, texts,
    those of ``summary_row``, and, where an area was published, published and difference.
    """
    rows: list[dict[str, Any]] = []
    for model, methods in runs.items():
        for method, trajectory in methods.items():
            row = {"model": model, "method": method, "texts": trajectory.num_texts, **summary_row(trajectory)}
            if (theirs := published_area(model, method, trajectory, published)) is not None:
                row |= {"published": theirs, "difference": row["area"] - theirs}
            rows.append(row)
    return pd.DataFrame(rows)


def closeness_table(runs: Mapping[str, Trajectory]) -> pd.DataFrame:
    """A row for every model: how close the scores of removed and kept heads came, see ``Trajectory.info``."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "steps": trajectory.info["steps"],
                "smallest gap": trajectory.info["smallest_gap"],
                f"near-ties (gap below {NEAR_TIE:g})": trajectory.info["near_ties"],
                "ties": trajectory.info["ties"],
            }
            for model, trajectory in runs.items()
        ]
    )


def winners(runs: Mapping[str, Mapping[str, Trajectory]]) -> pd.DataFrame:
    """A row for every model of ``runs[model][method]`` with several methods: the best area and the runner-up.

    The best is the largest, or the smallest where lower values of the metric are better; its column says which.
    difference: how much better the area is, on the same texts; low, high: its 95 % bootstrap interval over the texts.
    """
    rows = []
    for model, methods in runs.items():
        if len(methods) < 2:
            continue
        areas = {method: area(curve(trajectory)) for method, trajectory in methods.items()}
        higher = next(iter(methods.values())).metric.higher_is_better
        first, second = sorted(areas, key=areas.__getitem__, reverse=higher)[:2]
        both = {method: [methods[method]] for method in (first, second)}
        table = differences({model: both}, [(first, second)])
        (found,) = table[table.endpoint == "area"].to_dict("records")
        rows.append(
            {
                "model": model,
                f"{'largest' if higher else 'smallest'} area": first,
                "area": areas[first],
                "runner-up": second,
                "its area": areas[second],
                **{name: found[name] for name in ("difference", "low", "high")},
            }
        )
    return pd.DataFrame(rows)


def rescaling_table(orders: pd.DataFrame) -> pd.DataFrame:
    """A row for every model, method, pair and deviation of ``rewritten.rescaled_orders``.

    trainings, draws; rank correlation: mean, smallest and largest; same order: how many of all; area, low, high: the
    mean change over trainings, of each the mean over draws, with Student's 95 % interval, empty for one training.
    """
    rows = []
    for group, found in orders.groupby(["model", "method", "pair", "deviation"], sort=False):
        rho = found["rank correlation"]
        changes = found.groupby("training").area.mean().to_numpy()
        low, high = seed_interval(changes)
        rows.append(
            dict(zip(("model", "method", "pair", "deviation"), group, strict=True))
            | {"trainings": len(changes), "draws": found.draw.nunique(), "rank correlation": rho.mean()}
            | {"smallest": rho.min(), "largest": rho.max(), "same order": int(found["same order"].sum())}
            | {"runs": len(found), "area": changes.mean(), "low": low, "high": high}
        )
    return pd.DataFrame(rows)


# Of which methods the table ``layers_or_heads`` asks what the difference of their areas comes from.
LAYERS_OR_HEADS = (("greedy_gnorm", "gnorm_once"), ("head_importance", "greedy_gnorm"))


def layers_or_heads(areas: pd.DataFrame) -> pd.DataFrame:
    """A row for every model, pair (method, baseline) of ``LAYERS_OR_HEADS``, and what is the method's: layers and
    heads, layers alone, heads alone; the rest is the baseline's. areas: of ``layered.layers_and_heads``.

    difference, low, high: how much larger the area is than the baseline's, the mean over trainings with Student's 95 %
    interval, empty for one training.
    """
    rows = []
    for model, found in areas.groupby("model", sort=False):
        of = found.pivot(index="training", columns=["layers of", "heads by"], values="area")
        for method, baseline in LAYERS_OR_HEADS:
            changes = {
                "layers and heads": (method, method),
                "layers alone": (method, baseline),
                "heads alone": (baseline, method),
            }
            for changed, at in changes.items():
                difference = (of[at] - of[baseline, baseline]).to_numpy()
                low, high = seed_interval(difference)
                rows.append((model, method, baseline, changed, len(difference), difference.mean(), low, high))
    return pd.DataFrame(
        rows, columns=["model", "method", "baseline", "changed", "trainings", "difference", "low", "high"]
    )


FEWEST = 3  # heads of a layer whose ranks are compared
# What was expected before it was measured, where gradients of query and key vanish with sharp attention, or with a
# single token that is read: the side of 0 of an effect; of a change, where the factor is larger than 1.
EXPECTED = {
    **{f"rho {name}": 1 for name in ("query", "key", "query less value", "key less value")},
    **{f"change of {name} less value": -1 for name in ("query", "key")},
    **{f"last layer, {name} less value": -1 for name in ("query", "key")},
}


def _sharpness_of_trainings(heads: pd.DataFrame) -> pd.DataFrame:
    """Means and effects of every model, training, factor, share and layer of ``sharpness.sharpness``.

    heads; entropy, query, key, value and G-norm, as it is scored, the factor in it: means over heads with a gradient,
    and change of each, of the same heads, from factor 1. rho query, ...: Spearman's correlation with entropy over the
    heads of the layer, of at least ``FEWEST``. last layer, query less value: of the last layer, less the mean of the
    others.
    """
    state, head = ["model", "training", "factor", "share"], ["model", "training", "layer", "head"]
    measured = ["entropy", *QKV, "G-norm"]
    heads = heads.assign(**{"G-norm": heads[[*QKV]].sum(axis=1) + np.log(heads.factor)})
    finite = heads.replace(-np.inf, np.nan)
    own = finite[(finite.factor == 1) & (finite.share == 0)].set_index(head)[measured]
    changes = finite[measured] - own.reindex(pd.MultiIndex.from_frame(heads[head])).to_numpy()
    both = pd.concat([finite, changes.where(finite.factor != 1).add_prefix("change of ")], axis=1)
    groups = both.drop(columns="head").groupby([*state, "layer"], sort=False)
    found = groups.mean().assign(heads=groups.size())
    for group, rows in heads.groupby([*state, "layer"], sort=False):
        ranks = rows[measured].rank().corr()["entropy"] if len(rows) >= FEWEST else pd.Series(np.nan, measured)
        found.loc[group, [f"rho {name}" for name in QKV]] = ranks[[*QKV]].round(12).to_numpy()  # 0 is 0
    found = found.reset_index()
    last = found.layer == found.groupby("model").layer.transform("max")
    for name in ("query", "key"):
        for what in ("rho", "change of"):
            found[f"{what} {name} less value"] = found[f"{what} {name}"] - found[f"{what} value"]
        less = found[name] - found.value
        others = less.where(~last).groupby([found[column] for column in state]).transform("mean")
        found[f"last layer, {name} less value"] = (less - others).where(last)
    return found


def sharpness_by_layer(heads: pd.DataFrame) -> pd.DataFrame:
    """A row for every model, factor, share and layer of ``sharpness.sharpness``: trainings, heads, and means over
    trainings of entropy, query, key, value and of the rank correlations of entropy with each of these."""
    found = _sharpness_of_trainings(heads)
    groups = found.groupby(["model", "factor", "share", "layer"], sort=False)
    means = groups[["heads", "entropy", *QKV, *(f"rho {name}" for name in QKV)]].mean()
    means.insert(0, "trainings", groups.training.nunique())
    return means.reset_index()


def sharpness_effects(heads: pd.DataFrame) -> pd.DataFrame:
    """A row for every model, factor, share and effect of ``sharpness.sharpness``.

    mean, low, high: of the means over layers, the mean over trainings with Student's 95 % interval, empty for one
    training. layers: of all trainings; positive: how many of them have a positive effect. expected: the side of 0 of
    ``EXPECTED``, "" where nothing was; found: where the interval lies.
    """
    found = _sharpness_of_trainings(heads)
    names, kinds = [str(name) for name in found], ("rho ", "change of ", "last layer, ")
    effects = [name for kind in kinds for name in names if name.startswith(kind)]
    rows = []
    for state, of_state in found.groupby(["model", "factor", "share"], sort=False):
        of_all = dict(zip(("model", "factor", "share"), state, strict=True))
        smaller = of_state.factor.iloc[0] < 1
        for effect in effects:
            values = of_state[["training", effect]].dropna()
            if values.empty:
                continue
            means = values.groupby("training")[effect].mean().to_numpy()
            low, high = seed_interval(means)
            side = EXPECTED.get(effect, 0) * (-1 if effect.startswith("change") and smaller else 1)
            row = {**of_all, "effect": effect, "trainings": len(means)}
            row |= {"mean": means.mean(), "low": low, "high": high, "layers": len(values)}
            row |= {"positive": int((values[effect] > 0).sum()), "expected": ["", "above 0", "below 0"][side]}
            rows.append(row)
    table = pd.DataFrame(rows)
    return table.assign(found=sides(table).where(table.low.notna(), ""))


CURVES = ("accuracy", "refitted", "AUROC")  # of ``thresholds.with_refitted_biases``
DEEP = 0.05  # of accuracy: dips that are less deep are not judged
HALF = 0.5  # of a dip: what refitting gives back where the threshold made it


def depths(values: np.ndarray) -> np.ndarray:
    """(state,) how far a curve lies, at each state, below the lower of its best before and its best after it.

    The largest is the largest of min(values[i], values[k]) - values[j] with i < j < k, and 0 where none is above 0.
    """
    before, after = np.maximum.accumulate(values), np.maximum.accumulate(values[::-1])[::-1]
    return np.asarray(np.minimum(before, after) - values)


def threshold_dips(table: pd.DataFrame) -> pd.DataFrame:
    """A row for every model, training and method of ``thresholds.with_refitted_biases``: its deepest dip of accuracy.

    share: of the heads pruned at its bottom, the first of equal ones; empty where accuracy never recovers. dip: its
    depth; refitted there, AUROC there: the ``depths`` of these curves at that state. given back: the share of the dip
    that is none once biases are refitted; negative where the dip becomes deeper. verdict: "threshold" where at least
    ``HALF`` is given back, else "heads"; "no dip" where it is less deep than ``DEEP``. refitted dip, AUROC dip: the
    deepest of each curve of its own. area and so on: under each curve.
    """
    rows = []
    for group, found in table.groupby(["model", "training", "method"], sort=False):
        below = {curve: depths(found[curve].to_numpy()) for curve in CURVES}
        bottom = int(below["accuracy"].argmax())
        dip, refitted, ranked = (float(below[curve][bottom]) for curve in CURVES)
        given_back = 1 - refitted / dip if dip else np.nan
        areas = (area(found.set_index("share")[curve]) for curve in CURVES)
        rows.append(
            dict(zip(("model", "training", "method"), group, strict=True))
            | {"states": len(found), "share": float(found.share.iloc[bottom]) if dip else np.nan, "dip": dip}
            | {"refitted there": refitted, "AUROC there": ranked, "given back": given_back}
            | {"verdict": "no dip" if dip < DEEP else "threshold" if given_back >= HALF else "heads"}
            | {f"{curve} dip": float(below[curve].max()) for curve in CURVES[1:]}
            | dict(zip(("area", "refitted area", "AUROC area"), areas, strict=True))
        )
    return pd.DataFrame(rows)


def method_table(runs: Mapping[str, Repeated], seconds: bool = False) -> pd.DataFrame:
    """A row for every model and method of repeated runs, the best median area first.

    minimum, median, maximum: of the area under the metric's curve over training seeds. intact: the metric of the intact
    model, the median over seeds. With ``seconds``, the columns scoring seconds and seconds: of one run, in the
    criterion and in all; the median over seeds, as measured.
    """
    rows = []
    for model, methods in runs.items():
        of_model = []
        for method, trajectories in methods.items():
            areas = [area(curve(trajectory)) for trajectory in trajectories]
            took = {
                name.replace("_", " "): float(np.median([trajectory.info[name] for trajectory in trajectories]))
                for name in (("scoring_seconds", "seconds") if seconds else ())
            }
            of_model.append(
                {
                    "model": model,
                    "method": method,
                    "minimum": min(areas),
                    "median": float(np.median(areas)),
                    "maximum": max(areas),
                    "intact": float(np.median([curve(trajectory).iloc[0] for trajectory in trajectories])),
                    "seeds": len(areas),
                    "texts": trajectories[0].num_texts,
                    "trials": trajectories[0].info["trials"],
                    **took,
                }
            )
        higher = next(iter(methods.values()))[0].metric.higher_is_better
        rows += sorted(of_model, key=lambda row: -row["median"] if higher else row["median"])
    return pd.DataFrame(rows)
