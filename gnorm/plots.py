"""Every figure, one function each; they take trajectories and tables and return a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from . import results
from .pruning import METHODS, Trajectory

# One look a method: Okabe and Ito's colours for the colour-blind, and a line style that tells them apart in grey.
LOOKS: dict[str, dict[str, Any]] = {
    "greedy_gnorm": {"color": "#0072B2", "linestyle": "-", "linewidth": 2.0},
    "inverse_greedy_gnorm": {"color": "#D55E00", "linestyle": "--", "linewidth": 1.5},
    "attention_entropy": {"color": "#009E73", "linestyle": "-.", "linewidth": 1.5},
    "inverse_attention_entropy": {"color": "#CC79A7", "linestyle": ":", "linewidth": 2.0},
    "random": {"color": "#555555", "linestyle": (0, (1, 1, 4, 1)), "linewidth": 1.5},
}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}
Runs = Mapping[str, Mapping[str, Trajectory]]


def _grid(panels: int, width: float = 4.6, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Panels two in a row, as in the paper; a single one alone."""
    columns = min(2, panels)
    rows = -(-panels // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def _title(trajectory: Trajectory, model: str) -> str:
    return str(trajectory.info.get("title", model))


def _caption(figure: Figure, runs: Runs, says: str) -> None:
    """Below the panels: the profile, how many texts were counted, and what the marks mean."""
    some = next(iter(next(iter(runs.values())).values()))
    texts = ", ".join(f"{model} {next(iter(methods.values())).correct.shape[1]}" for model, methods in runs.items())
    split = some.info.get("evaluated_on", {}).get("split", "evaluation")
    figure.supxlabel(
        f"profile {some.info.get('profile', '-')}; n = {texts} texts of the {split} split. {says}", fontsize=7
    )


def _curve(axis: Axes, trajectory: Trajectory, method: str, label: str | None = None, band: bool = True) -> None:
    accuracy = results.curve(trajectory)
    axis.plot(accuracy.index, accuracy.to_numpy(), label=label or METHODS[method].title, **LOOKS.get(method, {}))
    if band:
        low, high = results.interval(results.bootstrap(trajectory, samples=1000))
        color = LOOKS.get(method, {}).get("color")
        axis.fill_between(accuracy.index, low, high, color=color, alpha=0.13, linewidth=0)


def _accuracy_axis(axis: Axes, heads: int) -> None:
    axis.set_ylabel("accuracy")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(0, heads)
    axis.set_xlabel(f"heads pruned (of {heads})")


def pruning_curves(runs: Runs) -> Figure:
    """Accuracy against pruned heads: a panel a model, a line a method (the paper's PruningResults)."""
    figure, axes = _grid(len(runs))
    for axis, (model, methods) in zip(axes, runs.items(), strict=True):
        for method, trajectory in methods.items():
            _curve(axis, trajectory, method)
        some = next(iter(methods.values()))
        axis.set_title(_title(some, model))
        _accuracy_axis(axis, int(some.start.sum()))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)))
    _caption(figure, runs, "Bands: 95 % bootstrap over the texts.")
    return figure


def final_solutions(runs: Mapping[str, Trajectory], pruned: Mapping[str, int]) -> Figure:
    """Which heads are left: a panel a model, a row a layer, dark kept, light pruned (the paper's allfinalsolutions)."""
    figure, axes = _grid(len(runs), height=3.4)
    for axis, (model, trajectory) in zip(axes, runs.items(), strict=True):
        mask = trajectory.mask(pruned[model]).numpy()
        axis.imshow(mask, cmap=ListedColormap(["#E6E6E6", "#0072B2"]), vmin=0, vmax=1, aspect="equal")
        axis.grid(visible=False)
        for side, count in ((axis.set_xticks, mask.shape[1]), (axis.set_yticks, mask.shape[0])):
            side(np.arange(count), labels=[str(i) for i in range(count)])
        axis.set_xticks(np.arange(-0.5, mask.shape[1]), minor=True)
        axis.set_yticks(np.arange(-0.5, mask.shape[0]), minor=True)
        axis.grid(which="minor", color="white", linewidth=1.5, alpha=1)
        axis.tick_params(which="both", length=0)
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        accuracy = results.curve(trajectory)
        axis.set_title(
            f"{_title(trajectory, model)}\n{pruned[model]} of {int(trajectory.start.sum())} pruned, "
            f"accuracy {accuracy.iloc[0]:.3f} → {accuracy[pruned[model]]:.3f}"
        )
    single = {model: {"greedy_gnorm": trajectory} for model, trajectory in runs.items()}
    _caption(figure, single, "Blue: kept; grey: pruned.")
    return figure


def lengths_and_labels(texts: Mapping[str, pd.DataFrame], profile: str) -> Figure:
    """Per data set: how long its texts are in tokens, and how often each label occurs. Frames: tokens, label."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.6 * len(texts) + 0.3), layout="constrained")
        axes = figure.subplots(len(texts), 2, squeeze=False)
    for (left, right), (name, frame) in zip(axes, texts.items(), strict=True):
        left.hist(frame.tokens, bins=min(30, int(frame.tokens.max())), color="#0072B2")
        left.set(title=f"{name}: length", xlabel="tokens", ylabel="texts")
        counts = frame.label.value_counts().sort_index()
        right.bar(counts.index.astype(str), counts.to_numpy(), color="#999999")
        right.tick_params(axis="x", rotation=90 if len(counts) > 6 else 0)
        right.set(title=f"{name}: labels", ylabel="texts")
    sizes = ", ".join(f"{name} {len(frame)}" for name, frame in texts.items())
    figure.supxlabel(f"profile {profile}; n = {sizes} texts", fontsize=7)
    return figure


def method_order(methods: Sequence[str]) -> list[str]:
    """The methods in the order of METHODS, which is the order of every legend."""
    return [name for name in METHODS if name in methods]
