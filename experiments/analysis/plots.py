"""The figures, a function each: from trajectories or tables to a matplotlib ``Figure``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import scipy
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, ScalarFormatter

from gnorm.engine.model.blocks import QKV
from gnorm.methods import find_method
from gnorm.metrics import METRICS, Metric
from gnorm.trajectory import Trajectory, area, bootstrap, curve, interval

from .paired import ENDPOINTS, Repeated, sides
from .published import published_curve

# The line of each method. Okabe and Ito's colours can be told apart by colour-blind readers, line styles in grey.
LINES: dict[str, dict[str, Any]] = {
    "greedy_gnorm": {"color": "#0072B2", "linestyle": "-", "linewidth": 2.0},
    "inverse_greedy_gnorm": {"color": "#D55E00", "linestyle": "--", "linewidth": 1.5},
    "attention_entropy": {"color": "#009E73", "linestyle": "-.", "linewidth": 1.5},
    "inverse_attention_entropy": {"color": "#CC79A7", "linestyle": ":", "linewidth": 2.0},
    "random": {"color": "#555555", "linestyle": (0, (1, 1, 4, 1)), "linewidth": 1.5},
    "head_importance": {"color": "#E69F00", "linestyle": "-", "linewidth": 1.2},
    "output_saliency": {"color": "#E69F00", "linestyle": ":", "linewidth": 1.8},
    "hies": {"color": "#56B4E9", "linestyle": "--", "linewidth": 1.5},
    "gnorm_by_text": {"color": "#0072B2", "linestyle": (0, (3, 1)), "linewidth": 1.2},
    "gnorm_cross_entropy": {"color": "#0072B2", "linestyle": ":", "linewidth": 1.8},
    "weight_magnitude": {"color": "#000000", "linestyle": "-.", "linewidth": 1.0},
    "matched_random": {"color": "#999999", "linestyle": "--", "linewidth": 1.5},
    "gnorm_once": {"color": "#56B4E9", "linestyle": "-", "linewidth": 1.5},
    "importance_once": {"color": "#F0C05A", "linestyle": "--", "linewidth": 1.5},
    "entropy_every_step": {"color": "#66C2A5", "linestyle": "--", "linewidth": 1.5},
    "fisher": {"color": "#B8860B", "linestyle": ":", "linewidth": 1.8},
    "output_norm": {"color": "#7F3C8D", "linestyle": "--", "linewidth": 1.5},
    "flap": {"color": "#7F3C8D", "linestyle": ":", "linewidth": 1.8},
    "oracle": {"color": "#000000", "linestyle": "-", "linewidth": 1.2},
    "activation_energy": {"color": "#8C6D31", "linestyle": "-.", "linewidth": 1.5},
    "inverse_activation_energy": {"color": "#C5A05B", "linestyle": ":", "linewidth": 2.0},
}

# matplotlib settings of all figures.
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}

Runs = Mapping[str, Mapping[str, Trajectory]]  # runs[model][method]


def _grid(panels: int, width: float = 4.6, height: float = 3.2, most: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with ``panels`` panels, at most ``most`` side by side, two as in the paper. width, height: inches a
    panel."""
    columns = min(most, max(1, panels))
    rows = max(1, -(-panels // columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows + 0.5), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def _title(trajectory: Trajectory, model: str) -> str:
    """The model's title in two lines: the model, and its data after "), "."""
    return str(trajectory.info.get("title", model)).replace("), ", ")\n", 1)


def _seeds(number: int) -> str:
    return f"{number} training seed{'s' if number > 1 else ''}"


def _legend(figure: Figure, axes: Sequence[Axes], columns: int) -> None:
    """One legend above the panels, with every label that any of them has, in at most so many columns."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns, frameon=False)


def _note(figure: Figure, profile: str, texts: Mapping[Any, int], says: str = "") -> None:
    """Write the profile and the number of evaluation texts of each model below the panels, and then ``says``."""
    numbers = ", ".join(f"{model!s} {number}" for model, number in texts.items())
    figure.supxlabel(f"profile {profile}; n = {numbers} evaluation texts{says}", fontsize=7)


def _texts(runs: Mapping[str, Repeated]) -> dict[str, int]:
    """The number of evaluation texts of each model."""
    return {model: next(iter(methods.values()))[0].num_texts for model, methods in runs.items()}


def _caption(figure: Figure, runs: Runs, says: str) -> None:
    """Write the profile and the number of evaluation texts below the panels, and then ``says``."""
    first = {model: next(iter(methods.values())) for model, methods in runs.items()}
    splits = {model: run.info.get("evaluated_on", {}).get("split", "evaluation") for model, run in first.items()}
    split, *other_splits = dict.fromkeys(splits.values())
    texts = ", ".join(
        f"{model} {run.num_texts}{f' ({splits[model]})' if other_splits else ''}" for model, run in first.items()
    )
    where = "" if other_splits else f" of the {split} split"
    profile = next(iter(first.values())).info.get("profile", "-")
    figure.supxlabel(f"profile {profile}; n = {texts} texts{where}. {says}", fontsize=7)


def _curve(axis: Axes, trajectory: Trajectory, method: str, band: bool = True) -> None:
    """Draw the metric against pruned heads; band: with its 95 % bootstrap interval over the texts."""
    values = curve(trajectory)
    axis.plot(values.index, values.to_numpy(), label=find_method(method).title, **LINES.get(method, {}))
    if band:
        low, high = interval(bootstrap(trajectory, samples=1000))
        color = LINES.get(method, {}).get("color")
        axis.fill_between(values.index, low, high, color=color, alpha=0.13, linewidth=0)


def _published(axis: Axes, model: str, methods: Mapping[str, Trajectory], folder: str) -> bool:
    """Draw the published curves of these methods; returns whether there are any."""
    curves = {method: published_curve(model, method, run.metric, folder) for method, run in methods.items()}
    for method, values in curves.items():
        if values is not None:
            color, heads = LINES.get(method, {}).get("color"), int(methods[method].start.sum())
            x = values.index.to_numpy() * heads
            axis.plot(x, values.to_numpy(), color=color, linewidth=0.7, marker=".", markersize=2.5)
    return any(values is not None for values in curves.values())


def _in_percent(axis: Axis) -> None:
    """Label an axis of fractions in percent: "25%", or "0.5%" where whole numbers are too far apart."""
    axis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6) + 0:g}%"))


def _metric_axis(axis: Axes, metric: Metric, heads: int) -> None:
    """Label the axes of a curve: the metric, in percent where it is a fraction, and pruned heads up to ``heads``."""
    axis.set_ylabel(metric.name)
    if metric.fraction:
        _in_percent(axis.yaxis)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlim(0, heads)
    axis.set_xlabel(f"heads pruned (of {heads})")


def pruning_curves(runs: Runs, published: str = "") -> Figure:
    """The metric against pruned heads: a panel for each model, a line for each method (the paper's PruningResults).

    published: the folder of the authors' result files, whose curves are drawn beside ours; "" for none.
    """
    figure, axes = _grid(len(runs))
    theirs = False
    for axis, (model, methods) in zip(axes, runs.items(), strict=True):
        for method, trajectory in methods.items():
            _curve(axis, trajectory, method)
        first = next(iter(methods.values()))
        heads = int(first.start.sum())
        theirs = _published(axis, model, methods, published) or theirs
        axis.set_title(_title(first, model), fontsize=10)
        _metric_axis(axis, first.metric, heads)
    _legend(figure, axes, columns=5)
    overlay = " Thin lines with dots: published." if theirs else ""
    _caption(figure, runs, f"Bands: 95 % bootstrap over the texts.{overlay}")
    return figure


def final_solutions(runs: Runs, pruned: Mapping[str, Mapping[str, int]]) -> Figure:
    """The kept heads: a panel for each model and method, a row for each layer (the paper's allfinalsolutions).

    pruned: the number of pruned heads, ``[model][method]``. Blue heads are kept, grey ones pruned.
    """
    panels = [(model, method) for model, methods in runs.items() for method in methods]
    figure, axes = _grid(len(panels), height=3.4)
    for axis, (model, method) in zip(axes, panels, strict=True):
        trajectory, heads = runs[model][method], pruned[model][method]
        _mask(axis, trajectory.mask(heads).numpy())
        values = curve(trajectory)
        which = f"\n{find_method(method).title}" if len(runs[model]) > 1 else ""
        axis.set_title(
            f"{_title(trajectory, model)}{which}\n{heads} of {int(trajectory.start.sum())} pruned, "
            f"{trajectory.metric.name} {values.iloc[0]:.3f} → {values[heads]:.3f}",
            fontsize=10,
        )
    _caption(figure, runs, "Blue: kept; grey: pruned.")
    return figure


def _mask(axis: Axes, mask: np.ndarray) -> None:
    """Draw a (layer, head) mask: blue heads are kept, grey ones pruned."""
    axis.imshow(mask, cmap=ListedColormap(["#E6E6E6", "#0072B2"]), vmin=0, vmax=1, aspect="equal")
    axis.grid(visible=False)
    for each, count in ((axis.set_xticks, mask.shape[1]), (axis.set_yticks, mask.shape[0])):
        each(np.arange(count), labels=[str(i) for i in range(count)])
    axis.set_xticks(np.arange(-0.5, mask.shape[1]), minor=True)
    axis.set_yticks(np.arange(-0.5, mask.shape[0]), minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5, alpha=1)
    axis.tick_params(which="both", length=0)
    axis.set_xlabel("head")
    axis.set_ylabel("layer")


def measured_values(trajectory: Trajectory) -> list[str]:
    """The metric after 0, 1, 2, ... heads: "0.812", or "0.812 (at 18)" where the last measured state is earlier."""
    values, every = curve(trajectory), range(int(trajectory.start.sum()) + 1)
    measured = values.index.to_numpy(dtype=int)
    last = np.searchsorted(measured, every, side="right") - 1
    texts = [f"{value:.3f}" for value in values]
    return [texts[i] + (f" (at {measured[i]})" if measured[i] != pruned else "") for pruned, i in enumerate(last)]


def lengths_and_labels(texts: Mapping[str, pd.DataFrame], profile: str) -> Figure:
    """For each data set a histogram of lengths in tokens, and the count of each label. Columns: tokens, label."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.6 * len(texts) + 0.3), layout="constrained")
        axes = figure.subplots(len(texts), 2, squeeze=False)
    for (left, right), (name, frame) in zip(axes, texts.items(), strict=True):
        low, high = frame.tokens.min(), frame.tokens.max()
        left.hist(frame.tokens, bins=np.arange(low - 0.5, high + 1.5, -(-(high - low) // 30)).tolist(), color="#0072B2")
        left.set(title=f"{name}: length", xlabel="tokens", ylabel="texts")
        counts = frame.label.value_counts().sort_index()
        right.bar(counts.index.astype(str), counts.to_numpy(), color="#999999")
        right.tick_params(axis="x", rotation=90 if len(counts) > 6 else 0)
        right.set(title=f"{name}: labels", ylabel="texts")
    sizes = ", ".join(f"{name} {len(frame)}" for name, frame in texts.items())
    figure.supxlabel(f"profile {profile}; n = {sizes} texts", fontsize=7)
    return figure


def random_boxes(random: Mapping[str, Trajectory], greedy: Mapping[str, Trajectory]) -> Figure:
    """Random pruning, a box for each number of pruned heads, and Greedy-Gnorm (the paper's RandomPruning)."""
    figure, axes = _grid(len(random))
    for axis, (model, trajectory) in zip(axes, random.items(), strict=True):
        table, name = trajectory.table.drop_duplicates(["trial", "pruned_heads"]), trajectory.metric.name
        groups = {pruned: table[name][table.pruned_heads == pruned] for pruned in table.pruned_heads.unique()}
        heads = int(trajectory.start.sum())
        axis.boxplot(
            list(groups.values()),
            positions=list(groups),
            widths=0.55 * heads / max(1, len(groups) - 1),
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": "#DDDDDD", "edgecolor": "#555555"},
            medianprops={"color": "black"},
            flierprops={"markersize": 3},
        )
        mean = table.groupby("pruned_heads")[name].agg(["mean", "sem", "count"])
        half = mean["sem"] * scipy.special.stdtrit((mean["count"] - 1).clip(lower=1), 0.975)  # Student's t
        axis.errorbar(
            mean.index, mean["mean"], half, label="Random, mean of trials with 95 % interval",
            marker="o", markersize=3, capsize=2, **LINES["random"],
        )  # fmt: skip
        _curve(axis, greedy[model], "greedy_gnorm", band=False)
        axis.set_title(f"{_title(trajectory, model)}, {table.trial.nunique()} trials", fontsize=10)
        _metric_axis(axis, trajectory.metric, heads)
        axis.set_xlim(-0.04 * heads, 1.04 * heads)
    _legend(figure, axes, columns=2)
    _caption(figure, {model: {"random": trajectory} for model, trajectory in random.items()}, "Boxes: over trials.")
    return figure


def all_models(greedy: Mapping[str, Trajectory]) -> Figure:
    """Greedy-Gnorm on all models in one panel: the metric against the share of heads pruned."""
    figure, (axis,) = _grid(1, width=6.5, height=3.8)
    lines = list(LINES.values())
    for line, (model, trajectory) in zip(lines, greedy.items(), strict=False):
        values = curve(trajectory)
        axis.plot(values.index / values.index[-1], values, label=_title(trajectory, model).replace("\n", ", "), **line)
    metric = next(iter(greedy.values())).metric
    axis.set(xlabel="heads pruned", ylabel=metric.name, xlim=(0, 1))
    for each in (axis.xaxis, axis.yaxis) if metric.fraction else (axis.xaxis,):
        _in_percent(each)
    axis.legend(loc="lower left", frameon=False)
    _caption(figure, {model: {"greedy_gnorm": trajectory} for model, trajectory in greedy.items()}, "")
    return figure


def head_maps(
    maps: Mapping[str, np.ndarray], label: str, profile: str, says: str, titles: Mapping[str, str] | None = None
) -> Figure:
    """A (layer, head) heat map for each model, each with its own scale. says: the caption, after the profile."""
    figure, axes = _grid(len(maps), height=3.0)
    for axis, (model, values) in zip(axes, maps.items(), strict=True):
        image = axis.imshow(values, cmap="cividis", aspect="auto")
        axis.grid(visible=False)
        for each, count in ((axis.xaxis, values.shape[1]), (axis.yaxis, values.shape[0])):
            each.set_major_locator(MaxNLocator(nbins=min(count, 12), integer=True, min_n_ticks=1))
        axis.set(xlabel="head", ylabel="layer")
        axis.set_title((titles or {}).get(model, model), fontsize=10)
        figure.colorbar(image, ax=axis, label=label)
    figure.supxlabel(f"profile {profile}; {says}", fontsize=7)
    return figure


def _short(method: str) -> str:
    """The title of a method without what stands in brackets."""
    return find_method(method).title.partition(" (")[0]


def layers_and_heads(table: pd.DataFrame, profile: str) -> Figure:
    """Mean areas by whose layers and whose heads go: a heat map for each model. table: as the function of that name in
    ``layered`` returns it."""
    groups = dict(list(table.groupby("model", sort=False)))
    figure, axes = _grid(len(groups), width=5.0, height=3.4)
    for axis, (model, rows) in zip(axes, groups.items(), strict=True):
        wide = rows.pivot_table(index="layers of", columns="heads by", values="area", sort=False)
        image = axis.imshow(wide, cmap="cividis", aspect="auto")
        axis.grid(visible=False)
        middle = (wide.to_numpy().min() + wide.to_numpy().max()) / 2
        for (row, column), value in np.ndenumerate(wide.to_numpy()):
            axis.text(
                column, row, f"{value:.3f}", ha="center", va="center", color="white" if value < middle else "black"
            )
        axis.set_xticks(range(len(wide.columns)), map(_short, wide.columns), rotation=20, ha="right")
        axis.set_yticks(range(len(wide)), [name if name == "in turn" else _short(name) for name in wide.index])
        axis.set(xlabel="which head of the layer", ylabel="which layer")
        axis.set_title(f"{model!s} ({_seeds(rows.training.nunique())})", fontsize=10)
        figure.colorbar(image, ax=axis, label="area")
    figure.supxlabel(f"profile {profile}. Mean areas under the curve over training seeds.", fontsize=7)
    return figure


def pooled_maps(maps: Mapping[str, np.ndarray], profile: str, says: str) -> Figure:
    """Square maps of signed values by name, zero in white, each with its own scale."""
    figure, axes = _grid(len(maps), width=3.8, height=3.3)
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        limit = float(np.abs(values).max()) or 1.0
        image = axis.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
        axis.grid(visible=False)
        axis.set(xlabel="input, pooled", ylabel="output, pooled")
        axis.set_title(name, fontsize=10)
        powers = ScalarFormatter()
        powers.set_powerlimits((-2, 2))
        figure.colorbar(image, ax=axis, label="G' - G, mean of the pool", shrink=0.8, format=powers)
    figure.supxlabel(f"profile {profile}; {says}", fontsize=7)
    return figure


def rank_correlations(table: pd.DataFrame, profile: str, says: str) -> Figure:
    """Rank correlation of the kept heads' scores with their first scores. Columns model, pruned (a fraction), rho."""
    figure, (axis,) = _grid(1, width=6.0, height=3.4)
    for line, (model, rows) in zip(LINES.values(), table.groupby("model", sort=False), strict=False):
        axis.plot(rows.pruned, rows.rho, label=str(model), marker="o", markersize=4, **line)
    axis.set(
        xlabel="heads pruned", ylabel="Spearman rank correlation\nwith the intact model's scores", ylim=(-1.05, 1.05)
    )
    _in_percent(axis.xaxis)
    axis.legend(loc="lower left", frameon=False)
    figure.supxlabel(f"profile {profile}; {says}", fontsize=7)
    return figure


def costs(tables: Mapping[str, pd.DataFrame], profile: str, says: str) -> Figure:
    """Operations and time saved, as shares: a panel for each model, two bars for each batch size and length.

    tables: as ``gnorm.cost`` returns them, by model.
    """
    figure, axes = _grid(len(tables), height=2.8)
    for axis, (model, table) in zip(axes, tables.items(), strict=True):
        at = np.arange(len(table))
        axis.bar(at - 0.2, table["flops saved"], width=0.38, color="#BBBBBB", label="operations saved")
        axis.bar(at + 0.2, table["time saved"], width=0.38, color="#0072B2", label="time saved")
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xticks(at, [f"{row.batch} x {row.length}" for row in table.itertuples()])
        _in_percent(axis.yaxis)
        axis.set(xlabel="batch x length", ylabel="share of the intact model")
        axis.set_title(model, fontsize=10)
    _legend(figure, axes, columns=2)
    figure.supxlabel(f"profile {profile}; {says}", fontsize=7)
    return figure


def trade_off(table: pd.DataFrame, metric: Metric, chosen: int, profile: str, texts: int) -> Figure:
    """The metric against size and time of the smaller model, as shares of the intact one's: a panel each.

    table: as ``gnorm.shipping.along`` returns it. chosen: the number of pruned heads that is marked; between the states
    of the table by interpolation. texts: how many the metric was measured on.
    """
    figure, axes = _grid(2, height=2.8)
    for axis, (cost, label) in zip(axes, {"parameters": "parameters", "latency": "time of a forward pass"}.items()):
        line = "" if cost == "latency" else "-"  # times are noisy, so neighbours are not joined
        axis.plot(
            table[cost], table[metric.name], marker="o", markersize=4, linestyle=line, color="#0072B2",
            label="states of the run",
        )  # fmt: skip
        at = [float(np.interp(chosen, table.pruned_heads, table[name])) for name in (cost, metric.name)]
        axis.plot(*at, marker="*", markersize=13, linestyle="", color="#D55E00", label=f"chosen: {chosen} heads pruned")
        _in_percent(axis.xaxis)
        if metric.fraction:
            _in_percent(axis.yaxis)
        axis.invert_xaxis()
        axis.set(xlabel=f"{label}, of the intact model's", ylabel=metric.name)
    _legend(figure, axes, columns=2)
    says = f"profile {profile}; n = {texts} texts to choose by. Times are measured, both models in turns."
    figure.supxlabel(says, fontsize=7)
    return figure


def recovered(table: pd.DataFrame, metric: Metric, intact: float, budget: float, profile: str, texts: int) -> Figure:
    """The metric of pruned models, and after training what is left, against pruned heads.

    table: of ``gnorm.shipping.recovered_along``; its rows of texts to test on are drawn. intact: the metric of the
    intact model on them; a line lies ``budget`` below it (above, where lower is better). texts: how many they are.
    """
    figure, (axis,) = _grid(1, width=6.0)
    rows = table[table.texts == "testing"]
    looks = {"pruned": ("#000000", "o", ":"), "trained": ("#0072B2", "s", "--"), "distilled": ("#D55E00", "^", "-")}
    titles = {"pruned": "pruned", "trained": "trained on labels", "distilled": "and on the intact model's logits"}
    for name, (color, marker, style) in looks.items():
        axis.plot(rows.pruned_heads, rows[name], color=color, marker=marker, linestyle=style, label=titles[name])
    limit = intact - budget * (1 if metric.higher_is_better else -1)
    axis.axhline(limit, color="#888888", linewidth=1, label=f"{budget:g} from the intact model's")
    axis.set(xlabel="heads pruned", ylabel=metric.name)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if metric.fraction:
        _in_percent(axis.yaxis)
    _legend(figure, [axis], columns=2)
    figure.supxlabel(f"profile {profile}; n = {texts} texts that nothing was trained on or chosen by.", fontsize=7)
    return figure


def areas(table: pd.DataFrame, profile: str, metric: str = "accuracy") -> Figure:
    """Area under the curve of the metric with its interval: a panel for each model, methods sorted by area, the best on
    top.

    table: as ``tables.summary_table`` returns it.
    """
    groups = dict(list(table.groupby("model", sort=False)))
    figure, axes = _grid(len(groups), width=5.2, height=0.28 * table["method"].nunique() + 0.9)
    for axis, (model, rows) in zip(axes, groups.items(), strict=True):
        ranked = rows.sort_values("area", ascending=METRICS[metric].higher_is_better)
        for at, row in enumerate(ranked.to_dict("records")):
            color = LINES.get(row["method"], {}).get("color", "black")
            axis.plot([row["area_low"], row["area_high"]], [at, at], color=color, linewidth=2)
            axis.plot(row["area"], at, marker="o", markersize=5, color=color)
        axis.set_yticks(range(len(ranked)), [find_method(name).title for name in ranked["method"]])
        axis.set_xlabel(f"area under the {metric} curve")
        axis.set_title(str(model), fontsize=10)
    texts = {model: rows.texts.iloc[0] for model, rows in groups.items()}
    _note(figure, profile, texts, ". Bars: 95 % bootstrap over the texts.")
    return figure


# How a difference is drawn, by where its interval lies (``paired.SIDES``): the mark tells them apart in grey.
MARKS: dict[str, dict[str, Any]] = {
    "above 0": {"color": "#0072B2", "marker": "o", "markerfacecolor": "#0072B2"},
    "across 0": {"color": "#777777", "marker": "o", "markerfacecolor": "white"},
    "below 0": {"color": "#D55E00", "marker": "s", "markerfacecolor": "#D55E00"},
}


def differences(
    table: pd.DataFrame,
    groups: Mapping[str, Iterable[tuple[str, str]]],
    profile: str,
    metric: str = "accuracy",
    endpoint: str = "area",
) -> Figure:
    """Differences with their intervals: a panel for each model, a row for each pair (method, baseline).

    table: as ``paired.differences`` returns it. groups: pairs by heading. Where all pairs have the same method, rows
    are named after the baselines. A pair that a model does not have is marked as not run. endpoint: whose rows are
    drawn.
    """
    table = table[table.endpoint == endpoint]
    pairs = [(heading, pair) for heading, of_heading in groups.items() for pair in of_heading]
    methods = {method for _, (method, _) in pairs}
    models = list(dict.fromkeys(table.model))
    height = 0.23 if len(methods) == 1 else 0.32  # of a row, whose name takes one line or two
    figure, axes = _grid(len(models), width=5.2, height=height * (len(pairs) + len(groups)) + 0.9)
    wanted = {pair for _, pair in pairs}
    drawn = table[[pair in wanted for pair in zip(table["method"], table["baseline"], strict=True)]]
    limit = 1.1 * float(drawn[["low", "high"]].abs().to_numpy().max(initial=1e-3))
    for axis, model in zip(axes, models, strict=True):
        rows = table[table.model == model]
        rows = rows.assign(side=sides(rows)).set_index(["method", "baseline"])
        at, ticks, headings = 0, [], []
        for k, (heading, pair) in enumerate(pairs):
            if len(groups) > 1 and (not k or pairs[k - 1][0] != heading):
                headings.append((at, heading))
                at += 1
            names = [find_method(name).title for name in pair]
            ticks.append((at, names[1] if len(methods) == 1 else "\nless ".join(names)))
            if pair in rows.index:
                row = rows.loc[pair]
                mark = MARKS[row.side]
                axis.plot([row.low, row.high], [at, at], color=mark["color"], linewidth=1.8)
                axis.plot(row.difference, at, markersize=5, linestyle="", **mark)
            else:
                axis.text(0, at, " not run", fontsize=7, color="#777777", va="center")
            at += 1
        axis.axvline(0, color="black", linewidth=0.9)
        axis.set_yticks([y for y, _ in ticks], [name for _, name in ticks], fontsize=8)
        for y, heading in headings:
            axis.text(-limit, y, heading, fontsize=8, fontweight="bold", va="center")
        axis.set(ylim=(at - 0.4, -0.6), xlim=(-limit, limit))
        first = rows.iloc[0]
        axis.set_title(f"{model} ({_seeds(int(first.seeds))})", fontsize=10)
    label = f"difference:\n{ENDPOINTS[endpoint].title}"
    if len(methods) == 1:
        sides_of = [find_method(methods.pop()).title, "the other"]
        one_less_other = " less ".join(sides_of if METRICS[metric].higher_is_better else sides_of[::-1])
        label = f"{one_less_other}:\n{ENDPOINTS[endpoint].title}"
    for axis in axes:
        axis.set_xlabel(label)
    handles = [
        Line2D([], [], linestyle="-", markersize=5, label=f"interval {where}", **mark) for where, mark in MARKS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    texts = {model: table[table.model == model].texts.iloc[0] for model in models}
    _note(figure, profile, texts, ". Bars: 95 %, Student's t over training seeds and texts.")
    return figure


def repeated_curves(runs: Mapping[str, Repeated], methods: Iterable[str], profile: str) -> Figure:
    """The metric against pruned heads: a panel for each model, a line for each of ``methods``, the mean over seeds."""
    methods = list(methods)
    figure, axes = _grid(len(runs))
    for axis, (model, by_method) in zip(axes, runs.items(), strict=True):
        for method in methods:
            curves = pd.DataFrame([curve(trajectory) for trajectory in by_method[method]])
            style = LINES.get(method, {})
            axis.plot(curves.columns, curves.mean(), label=find_method(method).title, **style)
            axis.fill_between(
                curves.columns, curves.min(), curves.max(), color=style.get("color"), alpha=0.1, linewidth=0
            )
        first = by_method[methods[0]]
        axis.set_title(f"{_title(first[0], model)}, {_seeds(len(first))}", fontsize=10)
        _metric_axis(axis, first[0].metric, int(first[0].start.sum()))
    _legend(figure, axes, columns=3)
    _note(figure, profile, _texts(runs), ". Lines: means over training seeds; bands: all seeds.")
    return figure


def seed_areas(runs: Mapping[str, Repeated], profile: str) -> Figure:
    """Area under the metric's curve by training seed: a panel for each model, a line for each method."""
    figure, axes = _grid(len(runs), height=2.8)
    for axis, (model, methods) in zip(axes, runs.items(), strict=True):
        for line, (method, trajectories) in zip(LINES.values(), methods.items(), strict=False):
            style = LINES.get(method, line)
            values = [area(curve(trajectory)) for trajectory in trajectories]
            axis.plot(range(len(values)), values, marker="o", markersize=4, label=find_method(method).title, **style)
        recipes = [run.info.get("weights", {}).get("recipe", {}) for run in next(iter(methods.values()))]
        axis.set_xticks(range(len(recipes)), [str(recipe.get("seed", k)) for k, recipe in enumerate(recipes)])
        axis.set(xlabel="training seed", ylabel="area under the curve")
        axis.set_title(model, fontsize=10)
    _legend(figure, axes, columns=3)
    _note(figure, profile, _texts(runs))
    return figure


def scoring_variants(table: pd.DataFrame, profile: str) -> Figure:
    """Rank correlation and area against the number of scoring texts and the batch size; a line for each model.

    table: as ``stability.scoring_variants`` returns it. Dots are draws, lines their means.
    """
    columns = [column for column in ("rank correlation", "area") if column in table and table[column].notna().any()]
    titles = {"texts": "number of scoring texts", "batch": "texts in a batch"}
    figure, axes = _grid(2 * len(columns), height=2.8)
    for axis, (column, varied) in zip(axes, [(c, v) for c in columns for v in titles], strict=True):
        for line, (model, rows) in zip(
            LINES.values(), table[table.varied == varied].groupby("model", sort=False), strict=False
        ):
            rows = rows.dropna(subset=[column])
            if rows.empty:
                continue
            color = line["color"]
            axis.plot(rows.number, rows[column], marker="o", markersize=3, linestyle="", color=color, alpha=0.6)
            means = rows.groupby("number")[column].mean()
            axis.plot(means.index, means, label=str(model), **line)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(table[table.varied == varied].number.unique()))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set(xlabel=titles[varied], ylabel=column)
    _legend(figure, axes, columns=4)
    figure.supxlabel(
        f"profile {profile}, first training seed; Greedy-Gnorm. Rank correlation (Spearman) of the intact model's "
        "scores: with those of the most texts, and of the profile's batch size.",
        fontsize=7,
    )
    return figure


def rescaling(orders: pd.DataFrame, methods: Sequence[str], profile: str) -> Figure:
    """Rank correlation of the order, and change of the area, against the deviation of log c; a line for each method.

    orders: as ``rewritten.rescaled_orders`` returns it. Two panels for each model. Dots are runs, lines their means.
    """
    columns = {"rank correlation": "rank correlation", "area": "change of the area"}
    models = list(dict.fromkeys(orders.model))
    figure, axes = _grid(2 * len(models), height=2.6)
    for axis, (model, column) in zip(axes, [(m, c) for m in models for c in columns], strict=True):
        of_model = orders[(orders.model == model) & (orders.pair == "values")]
        for method, line in zip(methods, LINES.values(), strict=False):
            rows = of_model[of_model["method"] == method]
            if len(rows):
                start = pd.Series({0.0: 1.0 if column == "rank correlation" else 0.0})
                axis.plot(rows.deviation, rows[column], ".", color=line["color"], alpha=0.5)
                means = pd.concat([start, rows.groupby("deviation")[column].mean()])
                axis.plot(means.index, means, label=find_method(method).title, **line)
        axis.set(xlabel="standard deviation of log c", ylabel=columns[column])
        axis.set_title(model, fontsize=10)
    _legend(figure, axes, columns=2)
    figure.supxlabel(
        f"profile {profile}. Value rows times c, output columns by c: what a model computes is the same.", fontsize=7
    )
    return figure


def sharpness(heads: pd.DataFrame, profile: str) -> Figure:
    """Logarithms of gradient norms of query, key and value against attention entropy: a row of panels for each model,
    a colour for each layer.

    heads: as ``sharpness.sharpness`` returns it. Dots are the heads of the intact models of all trainings; lines join
    the means of a layer with the attention logits times each factor, a square where they are as trained.
    """
    intact = heads[heads.share == 0].replace(-np.inf, np.nan)
    models = list(dict.fromkeys(intact.model))
    figure, axes = _grid(len(QKV) * len(models), width=2.3, height=2.5, most=len(QKV))
    for at, (axis, (model, name)) in enumerate(zip(axes, [(m, n) for m in models for n in QKV], strict=True)):
        if at % len(QKV):
            axis.sharey(axes[at - 1])
        else:
            axis.set_ylabel("log of the gradient norm")
        rows = intact[intact.model == model]
        layers = sorted(rows.layer.unique())
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(layers)))
        for layer, color in zip(layers, colors, strict=True):
            of_layer = rows[rows.layer == layer]
            own = of_layer[of_layer.factor == 1]
            axis.plot(own.entropy, own[name], ".", color=color, alpha=0.6, markersize=6, markeredgewidth=0)
            means = of_layer.groupby("factor")[["entropy", name]].mean()
            axis.plot(means.entropy, means[name], color=color, marker="o", markersize=3)
            label = f"layer {layer}"
            axis.plot(means.entropy[1], means[name][1], "s", color=color, markeredgecolor="white", label=label)
        axis.set(xlabel="attention entropy (nats)")
        axis.set_title(f"{model}: {name}", fontsize=10)
    _legend(figure, axes, columns=6)
    figure.supxlabel(
        f"profile {profile}. Dots: heads as trained. Lines: means of a layer, its logits times 0.5, 1 (square) and 2.",
        fontsize=7,
    )
    return figure


# The line of each curve of ``thresholds.with_refitted_biases``, and its name.
READ_AGAIN: dict[str, dict[str, Any]] = {
    "accuracy": {"label": "accuracy", "color": "#000000", "linestyle": "-", "linewidth": 1.6},
    "refitted": {"label": "accuracy, biases refitted", "color": "#D55E00", "linestyle": "--", "linewidth": 1.6},
    "AUROC": {"label": "AUROC", "color": "#0072B2", "linestyle": ":", "linewidth": 2.0},
}


def thresholds(table: pd.DataFrame, dips: pd.DataFrame, methods: Sequence[str], profile: str) -> Figure:
    """Accuracy, accuracy with refitted biases, and AUROC against heads pruned: a panel for each model and method, of
    the training whose dip is the deepest, with a line at its bottom.

    table: as ``thresholds.with_refitted_biases`` returns it; dips: as ``tables.threshold_dips`` returns it.
    """
    shown = dips[dips["method"].isin(methods)]
    deepest = dips.loc[shown.groupby(["model", "method"], sort=False).dip.idxmax()]
    figure, axes = _grid(len(deepest), width=2.9, height=2.3)
    for axis, row in zip(axes, deepest.to_dict("records"), strict=True):
        found = table[(table.training == row["training"]) & (table["method"] == row["method"])]
        for curve_, line in READ_AGAIN.items():
            axis.plot(found.share, found[curve_], **line)
        if row["verdict"] != "no dip":
            axis.axvline(row["share"], color="#999999", linewidth=0.8, label="deepest dip of accuracy")
        for each in (axis.xaxis, axis.yaxis):
            _in_percent(each)
        axis.set(xlabel="heads pruned", xlim=(0, 1))
        axis.set_title(f"{row['training']}, {_short(row['method'])}", fontsize=9)
    _legend(figure, axes, columns=2)
    figure.supxlabel(f"profile {profile}; of each model the training with the deepest dip", fontsize=7)
    return figure


def cost_quality(table: pd.DataFrame, profile: str, named: Iterable[str], metric: str = "accuracy") -> Figure:
    """Area against seconds of scoring: a panel for each model, a dot for each method with its range over seeds.

    table: as ``tables.method_table`` returns it. named: methods that are marked as in the other figures; the others are
    grey. The step line is the best area of the metric's curve that can be had for that many seconds.
    """
    groups = dict(list(table.groupby("model", sort=False)))
    figure, axes = _grid(len(groups), height=3.4)
    marks = dict(zip(named, "osD^vP*X<>", strict=False))
    for axis, (model, rows) in zip(axes, groups.items(), strict=True):
        rows = rows.assign(cost=rows["scoring seconds"].clip(lower=1e-3)).sort_values("cost")
        best = rows["median"].cummax() if METRICS[metric].higher_is_better else rows["median"].cummin()
        axis.step(rows.cost, best, where="post", color="#BBBBBB", linewidth=1)
        for row in rows.to_dict("records"):
            method = row["method"]
            color = LINES.get(method, {}).get("color", "#333333") if method in marks else "#AAAAAA"
            axis.plot([row["cost"]] * 2, [row["minimum"], row["maximum"]], color=color, linewidth=1, alpha=0.7)
            axis.plot(
                row["cost"], row["median"], linestyle="", marker=marks.get(method, "."), markersize=6, color=color,
                label=find_method(method).title if method in marks else None,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set(xlabel="seconds of scoring in one run", ylabel="area under the curve")
        axis.set_title(f"{model!s} ({_seeds(int(rows.seeds.iloc[0]))})", fontsize=10)
    _legend(figure, axes, columns=3)
    texts = {model: rows.texts.iloc[0] for model, rows in groups.items()}
    _note(figure, profile, texts, ". Dots: median over seeds; bars: smallest to largest.")
    return figure


def fine_tuned(table: pd.DataFrame, profile: str) -> Figure:
    """Accuracy of pruned models and after training them further: a panel for each model, a row for each method.

    table: as ``after_pruning.fine_tuned`` returns it.
    """
    groups = dict(list(table.groupby("model", sort=False)))
    figure, axes = _grid(len(groups), width=5.2, height=0.3 * table["method"].nunique() + 1.0)
    for axis, (model, rows) in zip(axes, groups.items(), strict=True):
        methods = list(dict.fromkeys(rows["method"]))
        for at, method in enumerate(methods):
            of_method = rows[rows["method"] == method]
            pruned, trained = of_method.pruned.mean(), of_method.trained.mean()
            axis.plot([pruned, trained], [at, at], color="#999999", linewidth=1.2)
            axis.plot(of_method.pruned, [at] * len(of_method), ".", color="#D55E00", alpha=0.5, markersize=4)
            axis.plot(of_method.trained, [at] * len(of_method), ".", color="#0072B2", alpha=0.5, markersize=4)
            axis.plot(pruned, at, "s", color="#D55E00", markerfacecolor="white", label="pruned" if not at else None)
            axis.plot(trained, at, "o", color="#0072B2", label="trained for one more epoch" if not at else None)
        axis.axvline(rows.intact.mean(), color="black", linestyle=":", linewidth=1, label="intact")
        trained = rows["intact trained"].mean()
        axis.axvline(trained, color="#0072B2", linestyle=":", linewidth=1, label="intact, trained for one more epoch")
        axis.set_yticks(range(len(methods)), [find_method(method).title for method in methods])
        axis.invert_yaxis()
        _in_percent(axis.xaxis)
        axis.set_xlabel("accuracy")
        axis.set_title(f"{model!s} ({_seeds(rows.repetition.nunique())})", fontsize=10)
    _legend(figure, axes, columns=2)
    share = table.share.iloc[0]
    figure.supxlabel(
        f"profile {profile}; {share:.0%} of the heads removed. Large marks: means over training seeds; dots: each.",
        fontsize=7,
    )
    return figure


def calibration(table: pd.DataFrame, profile: str) -> Figure:
    """Calibration error and agreement with the intact model against heads pruned: a row of panels for each model.

    table: as ``after_pruning.calibration_of_pruned`` returns it; means over training seeds.
    """
    models = list(dict.fromkeys(table.model))
    columns = ("calibration error", "agreement")
    figure, axes = _grid(2 * len(models), height=2.6)
    for axis, (model, column) in zip(axes, [(m, c) for m in models for c in columns], strict=True):
        of_model = table[table.model == model]
        for line, (method, rows) in zip(LINES.values(), of_model.groupby("method", sort=False), strict=False):
            means = rows.groupby("share")[column].mean()
            style = LINES.get(str(method), line)
            axis.plot(means.index, means, marker="o", markersize=3, label=find_method(str(method)).title, **style)
        for each in (axis.xaxis, axis.yaxis):
            _in_percent(each)
        axis.set(xlabel="heads pruned", ylabel=column)
        axis.set_title(model, fontsize=10)
    _legend(figure, axes, columns=3)
    figure.supxlabel(
        f"profile {profile}; means over training seeds. Agreement: texts that get the intact model's answer.",
        fontsize=7,
    )
    return figure
