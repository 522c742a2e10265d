"""Dragging over the number of pruned heads: which heads each method keeps and how accurate the model still is.

The page is drawn by Vega-Lite, whose JavaScript vl-convert brings: 0.9 MB in the page, where plotly.js has 4.8 MB and
would need the masks of every step as a frame of its own. Here a slider is a parameter, and a head turns grey where it
is smaller than the step at which the head went.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import vl_convert

from gnorm.methods import METHODS, MORE_METHODS, find_method
from gnorm.storage.files import write
from gnorm.trajectory import Trajectory, curve

from ..analysis import plots
from ..data.profiles import read_profile
from ..files.paths import cache_folder, results_folder
from ..runs.results import load_trajectory

MASK, GAP = 132, 16  # pixels, of a mask and between two: two fit beside each other on a phone
KEPT, PRUNED = "#0072B2", "#E6E6E6"  # as in plots.final_solutions


def saved(profile: str) -> tuple[dict[str, dict[str, Trajectory]], dict[Path, str]]:
    """``runs[model][method]``: the trajectories of a profile, "bert/seed0" for a training seed; and unreadable files.

    The other mapping holds, for every file that cannot be read, why.
    """
    folder = results_folder(profile)
    models = [
        path for name in read_profile(profile).models for path in (folder / name, *sorted(folder.glob(f"{name}/seed*")))
    ]
    runs: dict[str, dict[str, Trajectory]] = {}
    damaged: dict[Path, str] = {}
    for model in models:
        name = model.relative_to(folder).as_posix()
        for method in METHODS | MORE_METHODS:
            path = model / f"{method}.csv"
            if path.exists():
                try:
                    runs.setdefault(name, {})[method] = load_trajectory(profile, name, method)
                except ValueError as error:
                    damaged[path] = str(error)
    return runs, damaged


def files(profile: str, runs: Mapping[str, Mapping[str, Trajectory]]) -> dict[str, Path]:
    """The files of trajectories, by "<model>, <method>"."""
    folder = results_folder(profile)
    return {
        f"{model}, {find_method(method).title}": folder / model / f"{method}.csv"
        for model, methods in runs.items()
        for method in methods
    }


# ---------------------------------------------------------------- the page


def library() -> str:
    """The JavaScript of Vega, Vega-Lite and vega-embed, kept beside trained models: bundling it takes two seconds."""
    path = cache_folder() / f"vega-{version('vl-convert-python')}.js"
    if not path.exists():
        write(path, vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub asks for a snippet
    return path.read_text("utf-8")


def specification(runs: Mapping[str, Trajectory]) -> dict[str, Any]:
    """The Vega-Lite specification of one model: a slider, the metric by method, and below it a mask for each method."""
    heads = max(int(trajectory.start.sum()) for trajectory in runs.values())
    titles = {method: find_method(method).title for method in runs}
    metric = next(iter(runs.values())).metric
    axis = {"format": ".0%"} if metric.fraction else {}
    colors = [plots.LINES.get(method, {}).get("color", "#888888") for method in runs]
    named = {"select": {"type": "point", "fields": ["method"], "toggle": "true"}, "bind": "legend", "name": "named"}
    slider = {"input": "range", "min": 0, "max": heads, "step": 1, "name": "heads pruned "}
    curves = {
        "height": 220,
        "width": 500,
        "layer": [
            {
                "data": {"values": [_states(titles[method], trajectory) for method, trajectory in runs.items()]},
                "transform": [{"flatten": ["pruned", "value"]}],
                "params": [{**named, "value": [{"method": titles[method]} for method in runs if method in METHODS]}],
                "mark": {"type": "line", "interpolate": "linear", "strokeWidth": 2, "tooltip": True},
                "encoding": {
                    "x": {
                        "field": "pruned",
                        "type": "quantitative",
                        "scale": {"domain": [0, heads], "nice": False},
                        "title": f"heads pruned (of {heads})",
                    },
                    "y": {"field": "value", "type": "quantitative", "axis": axis, "title": metric.name},
                    "color": {
                        "field": "method",
                        "type": "nominal",
                        "scale": {"domain": list(titles.values()), "range": colors},
                        "title": "method",
                        "legend": {"title": "tap a method to bring its line out, or to let it fade"},
                    },
                    "opacity": {"condition": {"param": "named", "value": 1}, "value": 0.15},
                },
            },
            {
                "data": {"values": [{}]},
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {"x": {"datum": {"expr": "pruned"}, "type": "quantitative"}},
            },
        ],
    }
    masks = [_mask(titles[method], trajectory) for method, trajectory in runs.items()]
    return {
        "params": [{"name": "pruned", "value": heads // 2, "bind": slider}],
        "vconcat": [curves, {"concat": masks, "columns": 2, "spacing": GAP}],
        "resolve": {"scale": {"color": "independent"}},
        "config": {
            "view": {"stroke": None},
            "axis": {"labelFontSize": 12, "titleFontSize": 12},
            "legend": {
                "orient": "bottom",
                "columns": 2,
                "labelFontSize": 12,
                "labelLimit": 0,
                "titleLimit": 0,
                "unselectedOpacity": 0.65,
            },
            "title": {"fontSize": 12, "anchor": "start", "fontWeight": "normal"},
        },
    }


def _states(title: str, trajectory: Trajectory) -> dict[str, Any]:
    values = curve(trajectory)
    return {"method": title, "pruned": list(map(int, values.index)), "value": values.round(4).tolist()}


def _mask(title: str, trajectory: Trajectory) -> dict[str, Any]:
    """The specification of one method's mask: a head is grey from the step on at which it went."""
    layers, heads = trajectory.start.shape
    gone = np.where(trajectory.start.numpy(), layers * heads + 1, 0)  # heads that stay to the end of the run
    for step, head in enumerate(trajectory.order(), start=1):
        gone[head] = step
    trials = trajectory.table.trial.nunique()
    above = textwrap.wrap(f"{title}{', first of ' + str(trials) + ' trials' if trials > 1 else ''}", 22)
    values, metric = plots.measured_values(trajectory), trajectory.metric.name
    columns = {
        "layer": np.repeat(np.arange(layers), heads).tolist(),
        "head": np.tile(np.arange(heads), layers).tolist(),
        "gone": gone.flatten().tolist(),
    }
    scale = {"paddingInner": 0.12}
    return {
        "width": MASK,
        "height": max(16, round(MASK / heads * layers)),
        "title": {"text": {"expr": f"[{json.dumps(above)[1:-1]}, '{metric} ' + {json.dumps(values)}[pruned]]"}},
        "data": {"values": [columns]},
        "transform": [{"flatten": list(columns)}],
        "mark": {"type": "rect", "tooltip": {"expr": "'layer ' + datum.layer + ', head ' + datum.head"}},
        "encoding": {
            "x": {"field": "head", "type": "ordinal", "axis": None, "scale": scale},
            "y": {"field": "layer", "type": "ordinal", "axis": None, "scale": scale},
            "color": {"condition": {"test": "datum.gone <= pruned", "value": PRUNED}, "value": KEPT},
        },
    }


def model_titles(runs: Mapping[str, Mapping[str, Trajectory]]) -> dict[str, str]:
    """The choices of a reader, by model: its title and, in a study, the training seed."""
    firsts = {model: next(iter(methods.values())).info for model, methods in runs.items()}
    return {
        model: f"{info.get('title', model)}{', training seed ' + model.rpartition('/seed')[2] if '/' in model else ''}"
        for model, info in firsts.items()
    }
