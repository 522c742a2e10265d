"""The paper's results: read from the authors' files, quoted in profiles, and compared with ours."""

from __future__ import annotations

import functools
import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gnorm.metrics import METRICS, Metric
from gnorm.trajectory import Trajectory, area, curve, wilson

# How the authors' files name a method, in lower case.
PUBLISHED_AS = {
    "greedygnorm": "greedy_gnorm",
    "inversegreedygnorm": "inverse_greedy_gnorm",
    "ae": "attention_entropy",
    "aeinverse": "inverse_attention_entropy",
}

PUBLISHED_CURVE = re.compile(r"pruned_heads_accuracy\((?P<model>[^)]+)\)basedon(?P<method>\w+)\.csv", re.IGNORECASE)

PUBLISHED_TRIALS = re.compile(r"(?P<model>[\w-]+?)randompruned_heads_data.*\.xlsx", re.IGNORECASE)

# Files that hold all models, by name, and their columns. Orders, solutions and entropies are in the authors' notebooks
# and tensors; who takes them out of there names them so.
TABLES = {
    "curves.csv": ("model", "method", "pruned_heads", "accuracy"),
    "random.csv": ("model", "trial", "pruned_heads", "accuracy"),
    "greedy_order.csv": ("model", "step", "layer", "head"),
    "solutions.csv": ("model", "layer", "head", "kept"),
    "attention_entropy.csv": ("model", "layer", "head", "entropy"),
}


@dataclass
class PublishedResults:
    """What the authors' files hold of a model; empty or None where they hold none.

    curves: accuracy by share of heads pruned (0 to 1), by method; of random pruning the mean of the trials. trials:
    accuracies of random pruning, (share, trial). order: the heads that Greedy-Gnorm took, (layer, head), in order.
    solution: the heads that the final solution prunes. entropy: attention entropy in nats, (layer, head).
    """

    curves: dict[str, pd.Series] = field(default_factory=dict)
    trials: pd.DataFrame | None = None
    order: list[tuple[int, int]] = field(default_factory=list)
    solution: set[tuple[int, int]] = field(default_factory=set)
    entropy: np.ndarray | None = None

    def add(self, method: str, accuracies: pd.DataFrame) -> None:
        """Add a curve, and the trials of random pruning. accuracies: (share, trial)."""
        self.curves[method] = accuracies.mean(axis=1)
        if method == "random":
            self.trials = accuracies


def published_results(folder: str) -> dict[str, PublishedResults]:
    """What the authors' result files hold, by model in lower-case letters and digits.

    folder: their experiments_results, or a folder with the files of ``TABLES``; with "", the result is empty. Files are
    recognised by their names; other files are ignored. A share is the number of heads divided by the largest number in
    the curve, so files that count a shared block's heads once for every pass (ALBERT, 12 at a time) are read correctly
    too. Layers and heads are numbered from 0.

    Raises ``ValueError`` where the folder does not exist or holds no such file, or where a file cannot be read.
    """
    return _published_results(folder) if folder else {}


def published_curves(folder: str) -> dict[str, dict[str, pd.Series]]:
    """Accuracy by share of heads pruned (0 to 1), by model and method; raises as ``published_results``."""
    return {model: found.curves for model, found in published_results(folder).items()}


def published_digests(folder: str) -> dict[str, str]:
    """By name, the SHA-256 of each file that ``published_results`` reads; empty with ""."""
    files = _published_files(folder) if folder else []
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _published_files(folder: str) -> list[Path]:
    names = (PUBLISHED_CURVE, PUBLISHED_TRIALS)
    files = sorted(Path(folder).glob("*"))
    return [path for path in files if path.name in TABLES or any(name.fullmatch(path.name) for name in names)]


@functools.cache  # called for every curve and every area of every method and model
def _published_results(folder: str) -> dict[str, PublishedResults]:
    found: dict[str, PublishedResults] = defaultdict(PublishedResults)
    for path in _published_files(folder):
        if path.name in TABLES:
            for model, rows in _read(path, TABLES[path.name]).groupby("model", sort=False):
                _add_rows(found[plain_name(str(model))], path, rows)
        elif name := PUBLISHED_CURVE.fullmatch(path.name):
            if method := PUBLISHED_AS.get(name["method"].lower()):
                found[plain_name(name["model"])].add(method, _published_file(path, trials=False))
        elif name := PUBLISHED_TRIALS.fullmatch(path.name):
            found[plain_name(name["model"])].add("random", _published_file(path, trials=True))
    if not any(results.curves for results in found.values()):
        raise ValueError(
            f"{folder} holds no published results, such as pruned_heads_accuracy(BERT)basedonGreedyGnorm.csv: name the "
            "folder experiments_results of the authors' repository."
        )
    for model, results in found.items():
        _check_heads(folder, model, results)
    return dict(found)


def _check_heads(folder: str, model: str, found: PublishedResults) -> None:
    """Raise ``ValueError`` where the tables of one model do not speak of the same heads."""
    named = {*found.order, *found.solution}
    if found.entropy is not None:
        layers, heads = found.entropy.shape
        beyond = [head for head in named if not (0 <= head[0] < layers and 0 <= head[1] < heads)]
        if beyond or np.isnan(found.entropy).any():
            what = f"no entropy of the head {min(beyond)}" if beyond else "no entropy of some heads"
            raise ValueError(f"{folder}: attention_entropy.csv has {what} of {model}; add it, or remove the file.")
    states = len(found.curves.get("greedy_gnorm", ()))
    if found.order and states and states - 1 - len(found.order) not in (0, 1):
        raise ValueError(
            f"{folder}: greedy_order.csv takes {len(found.order)} heads of {model} one by one, and its Greedy-Gnorm "
            f"curve has {states} states; it needs a state for the intact model and one after every head."
        )


def plain_name(model: str) -> str:
    """The name of a model in lower-case letters and digits: the authors' files and profiles spell it differently."""
    return re.sub(r"[^a-z0-9]", "", model.lower())


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A file of ``TABLES``: its columns, numbers where they are none of model and method."""
    try:
        table = pd.read_csv(path)[list(columns)]
        numbers = [name for name in columns if name not in ("model", "method")]
        table = table.astype(dict.fromkeys(numbers, float))
        if not np.isfinite(table[numbers].to_numpy()).all():
            raise ValueError("a number is missing")
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): it needs the columns {', '.join(columns)}.") from None
    return table


def _add_rows(found: PublishedResults, path: Path, rows: pd.DataFrame) -> None:
    """Add the rows of one model, of a file of ``TABLES``."""
    if "accuracy" in rows:
        columns = "trial" if "trial" in rows else "method"
        if rows.duplicated([columns, "pruned_heads"]).any():
            raise ValueError(f"{path} is not a curve: a {columns} has two accuracies for one number of pruned_heads.")
        wide = rows.pivot(index="pruned_heads", columns=columns, values="accuracy")
        if columns == "trial":
            found.add("random", _by_share(wide, path, "pruned_heads"))
        else:
            for method in wide:
                found.add(str(method), _by_share(wide[[method]], path, "pruned_heads"))
        return
    heads = list(zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True))
    if len(set(heads)) < len(heads):
        raise ValueError(f"{path} names a head of {rows['model'].iloc[0]} twice.")
    if "step" in rows:
        found.order = [heads[row] for row in np.argsort(rows["step"], kind="stable")]
    elif "kept" in rows:
        found.solution = {head for head, kept in zip(heads, rows["kept"], strict=True) if not kept}
    else:
        found.entropy = rows.pivot(index="layer", columns="head", values="entropy").to_numpy()


def _published_file(path: Path, trials: bool) -> pd.DataFrame:
    heads, wanted = ("Heads Pruned", r"Trial_\d+") if trials else ("Pruned_Heads", "Accuracy")
    try:
        table = pd.read_excel(path) if trials else pd.read_csv(path)
        columns = [name for name in table.columns if re.fullmatch(wanted, str(name).strip())]
        if not columns:
            raise KeyError(wanted)
        accuracies = table.set_index(heads)[columns].astype(float)
        accuracies.index = accuracies.index.astype(float)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}): it needs the columns {heads} and {wanted}.") from None
    return _by_share(accuracies, path, heads)


def _by_share(accuracies: pd.DataFrame, path: Path, heads: str) -> pd.DataFrame:
    """Accuracies (number of heads pruned, trial) by the share of heads pruned."""
    accuracies = accuracies.dropna(how="all").sort_index()
    heads_pruned, values = accuracies.index.to_numpy(), accuracies.to_numpy()
    rises = len(accuracies) > 1 and heads_pruned[0] == 0 and (np.diff(heads_pruned) > 0).all()
    if not rises or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{path} is not a curve: {heads} has to begin at 0, accuracies lie between 0 and 1.")
    return accuracies.set_axis(accuracies.index / accuracies.index[-1])


MEASURED_BY = METRICS["accuracy"]  # what is published


def published_curve(model: str, method: str, metric: Metric, folder: str) -> pd.Series | None:
    """The published curve of a method on a model, by share of heads pruned; None where none is known by this metric."""
    return published_curves(folder).get(plain_name(model), {}).get(method) if metric == MEASURED_BY else None


def published_area(model: str, method: str, trajectory: Trajectory, folder: str) -> float | None:
    """The published area under a curve: of the published curve if it is known, else as the profile quotes it; None
    where there is none by the run's metric."""
    if (values := published_curve(model, method, trajectory.metric, folder)) is not None:
        return area(values)
    return _quoted(trajectory).get("area", {}).get(method)


def _quoted(trajectory: Trajectory) -> dict[str, Any]:
    """The profile's quotation of the paper for the run's model; empty for a run by a metric that the paper has not."""
    return (trajectory.info.get("published") or {}) if trajectory.metric == MEASURED_BY else {}


def published_solutions(runs: Mapping[str, Trajectory]) -> pd.DataFrame:
    """A row for every model whose profile quotes the paper's final solution.

    Beside the quoted numbers: the accuracy measured at the same share of heads pruned (the nearest state).
    """
    rows = []
    for model, trajectory in runs.items():
        if quoted := _quoted(trajectory):
            accuracy = curve(trajectory)
            share = quoted["heads_pruned"] / quoted["heads"]
            nearest = int(np.abs(np.asarray(accuracy.index) / accuracy.index[-1] - share).argmin())
            rows.append(
                {
                    "model": model,
                    "share pruned": share,
                    "published before": quoted["accuracy"][0],
                    "accuracy": float(accuracy.iloc[0]),
                    "difference": float(accuracy.iloc[0]) - quoted["accuracy"][0],
                    "published after": quoted["accuracy"][1],
                    "accuracy after": float(accuracy.iloc[nearest]),
                    "difference after": float(accuracy.iloc[nearest]) - quoted["accuracy"][1],
                    "published parameters": quoted["parameters"][1],
                    "intact accuracy": against_published(float(accuracy.iloc[0]), trajectory.num_texts, quoted),
                }
            )
    return pd.DataFrame(rows)


AS_PUBLISHED = "as published"  # the first words on an intact accuracy that agrees with the quoted one


def against_published(accuracy: float, texts: int, quoted: Mapping[str, Any]) -> str:
    """Says in words whether a measured intact accuracy, a share of ``texts``, agrees with the one a profile quotes.

    They agree where the quoted one lies in the 95 % Wilson interval of the measured one, or outside it by no more than
    the quoted ``tolerance``.
    """
    low, high = wilson(round(accuracy * texts), texts)
    published, tolerance = quoted["accuracy"][0], quoted.get("tolerance", 0.0)
    near = low - tolerance <= published <= high + tolerance
    return (
        f"{AS_PUBLISHED if near else f'not {AS_PUBLISHED}'}: {accuracy:.4f} on {texts:,} texts "
        f"(95 % {low:.4f} to {high:.4f}), published {published:.4f}, tolerance {tolerance:g}"
    )
