"""The paper's results: read from the authors' files, quoted in profiles, and compared with ours."""

from __future__ import annotations

import functools
import re
import zipfile
from collections.abc import Mapping
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


def published_curves(folder: str) -> dict[str, dict[str, pd.Series]]:
    """Accuracy against the share of heads pruned (0 to 1), by model and method, from the authors' result files.

    folder: their experiments_results; with "", the result is empty. Files are recognised by their names; other files
    are ignored. Random pruning is the mean of the trials. A share is the number
    of heads divided by the largest number in the file, so files that count a shared block's heads once for every pass
    (ALBERT, 12 at a time) are read correctly too.

    Raises ``ValueError`` where the folder does not exist or holds no such file, or where a file cannot be read.
    """
    return _published_files(folder) if folder else {}


@functools.cache  # called for every curve and every area of every method and model
def _published_files(folder: str) -> dict[str, dict[str, pd.Series]]:
    curves: dict[str, dict[str, pd.Series]] = {}
    for path in sorted(Path(folder).glob("*")):
        if name := PUBLISHED_CURVE.fullmatch(path.name):
            method = PUBLISHED_AS.get(name["method"].lower())
        elif name := PUBLISHED_TRIALS.fullmatch(path.name):
            method = "random"
        if name and method:
            model = _plain(name["model"])
            curves.setdefault(model, {})[method] = _published_file(path, method == "random")
    if not curves:
        raise ValueError(
            f"{folder} holds no published results, such as pruned_heads_accuracy(BERT)basedonGreedyGnorm.csv: name the "
            "folder experiments_results of the authors' repository."
        )
    return curves


def _plain(model: str) -> str:
    """The name of a model in lower-case letters and digits: the authors' files and profiles spell it differently."""
    return re.sub(r"[^a-z0-9]", "", model.lower())


def _published_file(path: Path, trials: bool) -> pd.Series:
    heads, wanted = ("Heads Pruned", r"Trial_\d+") if trials else ("Pruned_Heads", "Accuracy")
    try:
        table = pd.read_excel(path) if trials else pd.read_csv(path)
        columns = [name for name in table.columns if re.fullmatch(wanted, str(name).strip())]
        if not columns:
            raise KeyError(wanted)
        accuracy = table.set_index(heads)[columns].astype(float).mean(axis=1).dropna().sort_index()
        accuracy.index = accuracy.index.astype(float)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}): it needs the columns {heads} and {wanted}.") from None
    if len(accuracy) < 2 or accuracy.index[0] != 0 or not accuracy.between(0, 1).all():
        raise ValueError(f"{path} is not a curve: {heads} has to begin at 0, accuracies lie between 0 and 1.")
    return accuracy.set_axis(accuracy.index / accuracy.index[-1])


MEASURED_BY = METRICS["accuracy"]  # what is published


def published_curve(model: str, method: str, metric: Metric, folder: str) -> pd.Series | None:
    """The published curve of a method on a model, by share of heads pruned; None where none is known by this metric."""
    return published_curves(folder).get(_plain(model), {}).get(method) if metric == MEASURED_BY else None


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
