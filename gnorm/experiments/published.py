"""The paper's results: as the authors' files have them, as profiles quote them, beside ours."""

from __future__ import annotations

import functools
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..trajectory import Trajectory, area_under_curve, curve, wilson

# The names under which the authors publish a method's files, in lower case.
PUBLISHED_AS = {
    "greedygnorm": "greedy_gnorm",
    "inversegreedygnorm": "inverse_greedy_gnorm",
    "ae": "attention_entropy",
    "aeinverse": "inverse_attention_entropy",
}


PUBLISHED_CURVE = re.compile(r"pruned_heads_accuracy\((?P<model>[^)]+)\)basedon(?P<method>\w+)\.csv", re.IGNORECASE)


PUBLISHED_TRIALS = re.compile(r"(?P<model>[\w-]+?)randompruned_heads_data.*\.xlsx", re.IGNORECASE)


def published_curves(folder: str | os.PathLike[str] | None = None) -> dict[str, dict[str, pd.Series]]:
    """Accuracy against the share of heads pruned (0 to 1), by model and method, from the authors' result files.

    folder: their experiments_results, or $GNORM_PUBLISHED if None; nothing is published where neither is given. Files
    are known by their names; others are passed over. Random pruning is the mean of the trials. Shares are of the
    largest number in a file, so heads counted once for every pass of a shared block (ALBERT, 12 at a time) fit too.

    Raises ``ValueError`` where the folder is not there, holds no such file, or a file cannot be read.
    """
    folder = folder or os.environ.get("GNORM_PUBLISHED")
    return _published_files(str(folder)) if folder else {}


@functools.cache  # asked for once a curve and once an area, of every method and model
def _published_files(folder: str) -> dict[str, dict[str, pd.Series]]:
    curves: dict[str, dict[str, pd.Series]] = {}
    for path in sorted(Path(folder).glob("*")):
        if found := PUBLISHED_CURVE.fullmatch(path.name):
            method = PUBLISHED_AS.get(found["method"].lower())
        elif found := PUBLISHED_TRIALS.fullmatch(path.name):
            method = "random"
        if found and method:
            model = re.sub(r"[^a-z0-9]", "", found["model"].lower())
            curves.setdefault(model, {})[method] = _published_file(path, method == "random")
    if not curves:
        raise ValueError(
            f"{folder} holds no published results, such as pruned_heads_accuracy(BERT)basedonGreedyGnorm.csv: name the "
            "folder experiments_results of the authors' repository."
        )
    return curves


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


def published_curve(model: str, method: str) -> pd.Series | None:
    """The published curve of a method on a model of a profile; None where none is known."""
    return published_curves().get(re.sub(r"[^a-z0-9]", "", model.lower()), {}).get(method)


def published_area(model: str, method: str, trajectory: Trajectory) -> float | None:
    """The area that was published: of the published curve where there is one, else as the profile quotes it."""
    if (accuracy := published_curve(model, method)) is not None:
        return area_under_curve(accuracy)
    return (trajectory.info.get("published") or {}).get("area", {}).get(method)


def published_solutions(runs: Mapping[str, Trajectory]) -> pd.DataFrame:
    """A row for every model whose profile quotes the paper's final solution, beside the accuracy measured at the same
    share of heads pruned (the nearest state); no rows where none does."""
    rows = []
    for model, trajectory in runs.items():
        if quoted := trajectory.info.get("published"):
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
                    "intact accuracy": against_published(float(accuracy.iloc[0]), trajectory.correct.shape[1], quoted),
                }
            )
    return pd.DataFrame(rows)


AS_PUBLISHED = "as published"  # begins what is said of an intact accuracy that is


def against_published(accuracy: float, texts: int, quoted: Mapping[str, Any]) -> str:
    """In words, whether an intact accuracy, the share of ``texts``, is the one that the profile quotes.

    It is where the quoted one lies in the 95 % Wilson interval of the measured one, or no more than the quoted
    ``tolerance`` outside it.
    """
    low, high = wilson(round(accuracy * texts), texts)
    published, tolerance = quoted["accuracy"][0], quoted.get("tolerance", 0.0)
    near = low - tolerance <= published <= high + tolerance
    return (
        f"{AS_PUBLISHED if near else f'not {AS_PUBLISHED}'}: {accuracy:.4f} on {texts:,} texts "
        f"(95 % {low:.4f} to {high:.4f}), published {published:.4f}, tolerance {tolerance:g}"
    )
