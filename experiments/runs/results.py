"""Trajectories, tables and figures on disk."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from IPython.display import Image

from gnorm.engine.tally import hits
from gnorm.metrics import METRICS, Metric
from gnorm.storage.files import as_json, record, write, write_together
from gnorm.trajectory import Trajectory, solution

from ..data.profiles import model_spec
from ..files.paths import figures_folder, results_folder, shown, tables_folder

if TYPE_CHECKING:  # half a second that run_all.py does without
    from matplotlib.figure import Figure


def save_trajectory(trajectory: Trajectory, profile: str, model: str, method: str) -> Path:
    """Write a trajectory to experiments_results/<profile>/<model>; returns the path of the CSV file.

    ``<method>.csv`` holds its table, ``<method>.json`` its info, ``<method>.npz`` its predictions, the labels that its
    metric compares them with, and its first mask. Hits are packed, eight to a byte.
    Raises ``OSError`` where a file cannot be written.
    """
    path = results_folder(profile) / model / f"{method}.csv"
    content: dict[str, Any] = {"start": trajectory.start.numpy()}
    if trajectory.metric.text_values is hits:
        content = {"correct": np.packbits(trajectory.correct, axis=1), "texts": trajectory.num_texts, **content}
    else:
        content = {"predictions": trajectory.text_values, "labels": trajectory.labels, **content}
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **content)
    return write_together(
        {
            path.with_suffix(".npz"): arrays.getvalue(),
            path.with_suffix(".json"): as_json(trajectory.info | {"profile": profile, "model": model}),
            path: trajectory.table.to_csv(index=False),
        }
    )


def save_masks(
    runs: Mapping[str, Mapping[str, Trajectory]], profile: str, budget: float | None = None
) -> dict[str, dict[str, int]]:
    """Write the mask of every run within the budget to experiments_results/<profile>/<model>/<method>_mask.csv.

    runs: ``runs[model][method]``. A row a head: layer, head, kept (1 or 0). budget: how much worse the metric may
    become; what the profile says of the model, if None. Returns how many heads are pruned, ``[model][method]``.
    """
    pruned: dict[str, dict[str, int]] = {}
    for model, methods in runs.items():
        of_model = model_spec(profile, model).budget if budget is None else budget
        pruned[model] = {method: solution(run, of_model) for method, run in methods.items()}
        for method, run in methods.items():
            kept = run.mask(pruned[model][method]).int()
            rows = [(layer, head, int(kept[layer, head])) for layer, head in np.ndindex(*kept.shape)]
            table = pd.DataFrame(rows, columns=["layer", "head", "kept"])
            path = write(results_folder(profile) / model / f"{method}_mask.csv", table.to_csv(index=False))
            print("written:", shown(path))
    return pruned


def save_table(table: pd.DataFrame, profile: str, name: str) -> pd.DataFrame:
    """Write a table as CSV, Markdown and LaTeX to experiments_results/<profile>/tables, print the paths, return it."""
    folder = tables_folder(profile)
    cells = table.map(lambda cell: f"{cell:.4g}" if isinstance(cell, float) else str(cell)).astype(str)
    sides = ["right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in table.dtypes]
    columns = "".join(side[0] for side in sides)  # "lrr"
    paths = [
        write(folder / f"{name}.csv", table.to_csv(index=False)),
        write(folder / f"{name}.md", cells.to_markdown(index=False, disable_numparse=True, colalign=sides) + "\n"),
        write(folder / f"{name}.tex", cells.to_latex(index=False, escape=True, column_format=columns)),
    ]
    print("written:", *map(shown, paths))
    return table


def save_figure(figure: Figure, profile: str, name: str) -> Image:
    """Write a figure as .png and .pdf to figures/<profile>, print the paths, return the image for a notebook."""
    contents = {suffix: _drawn(figure, suffix) for suffix in ("pdf", "png")}
    paths = [write(figures_folder(profile) / f"{name}.{suffix}", content) for suffix, content in contents.items()]
    print("written:", *map(shown, paths))
    return Image(data=contents["png"], width=100 * figure.get_figwidth())


def _drawn(figure: Figure, suffix: str) -> bytes:
    """A figure as a PDF or PNG file; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    metadata = {"pdf": {"CreationDate": None}, "png": {"Software": ""}}[suffix]
    figure.savefig(buffer, format=suffix, dpi=160, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def load_trajectory(profile: str, model: str, method: str) -> Trajectory:
    """A trajectory that ``save_trajectory`` wrote.

    Raises ``FileNotFoundError`` where it was not saved, ``ValueError`` where a file is damaged or of another run.
    """
    path = results_folder(profile) / model / f"{method}.csv"
    if not path.exists():
        raise FileNotFoundError(
            f"{shown(path)} is not there: run `python run_all.py --profile {profile} --models {model}` first."
        )
    try:
        table = pd.read_csv(path).astype({"layer": "Int64", "head": "Int64"})
        info = json.loads(path.with_suffix(".json").read_text("utf-8"))
        with np.load(io.BytesIO(path.with_suffix(".npz").read_bytes()), allow_pickle=False) as arrays:
            if "correct" in arrays:
                bits, texts = arrays["correct"], int(arrays["texts"])
                predictions, labels = np.unpackbits(bits, axis=1, count=texts).astype(bool), None
            else:
                predictions, labels = arrays["predictions"], arrays["labels"]
            start = torch.from_numpy(arrays["start"])
        identity = {name: info[name] for name in ("profile", "model", "method")}
        metric = info.get("metric", "accuracy")
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{shown(path)} or the files beside it are damaged ({error}): delete them and run again."
        ) from None
    if identity != {"profile": profile, "model": model, "method": method}:
        raise ValueError(
            f"{shown(path)} holds the results of {identity['method']} on {identity['model']} of profile "
            f"{identity['profile']}: results do not move between folders; delete them and run again."
        )
    if metric not in METRICS:
        raise ValueError(f"{shown(path)} was measured by {metric!r}: give it a row in gnorm.METRICS before reading it.")
    row = METRICS[metric]
    if (
        metric not in table
        or len(table) != len(predictions)
        or not np.allclose(_values(row, predictions, labels), table[metric])
    ):
        raise ValueError(f"{shown(path)} does not match the files beside it: delete them and run again.")
    record("read", [path, path.with_suffix(".json"), path.with_suffix(".npz")])
    return Trajectory(table, predictions, start, info, row, labels)


def _values(metric: Metric, predictions: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """(row,) the metric of each row of predictions (row, text, ...)."""
    of_texts = np.empty(0) if labels is None else labels
    return np.array([metric.value(values, of_texts) for values in predictions])
