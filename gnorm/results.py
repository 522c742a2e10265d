"""Reading and writing results, and the tables made from them. Knows only tables."""

from __future__ import annotations

import functools
import io
import json
import os
import platform
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
from IPython.display import Image
from matplotlib.figure import Figure

from .pruning import METHODS, NEAR_TIE, Trajectory

UNFINISHED = ".unfinished"  # ends the names of files that are being written
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the heads: where the paper's tables read the curves
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy", "pandas", "papermill", "matplotlib")

# ------------------------------------------------------------------------------------------ where things lie


def root() -> Path:
    """The folder that holds experiments_results/ and figures/: $GNORM_OUTPUT, else the repository."""
    return Path(os.environ.get("GNORM_OUTPUT") or Path(__file__).parents[1])


def results_folder(profile: str) -> Path:
    return root() / "experiments_results" / profile


def figures_folder(profile: str) -> Path:
    return root() / "figures" / profile


def run_folder(profile: str) -> Path:
    """Journals, executed notebooks and stamps of finished work: rebuilt where they are missing, not committed."""
    return results_folder(profile) / ".run"


def shown(path: Path) -> str:
    """The path as a reader knows it: from the root of the repository."""
    return path.relative_to(root()).as_posix() if path.is_relative_to(root()) else str(path)


# ------------------------------------------------------------------------------------------ writing


def write(path: Path, content: bytes | str) -> Path:
    """Write a file under a temporary name in its folder and rename it, so that it is there whole or not at all.

    Raises ``OSError`` where that fails; a file that was there before is then what it was.
    """
    return write_together({path: content})


def write_together(files: Mapping[Path, bytes | str]) -> Path:
    """Write files that belong together: all under temporary names first, then renamed. Returns the last path.

    An older file of the last name goes before the first is renamed: where there is one, the others are its own.
    Raises ``OSError`` as ``write`` does.
    """
    unfinished: dict[Path, str] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, unfinished[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(unfinished[path], 0o644)
        if len(files) > 1:
            path.unlink(missing_ok=True)
        for path in files:
            os.replace(unfinished[path], path)
            del unfinished[path]
    except BaseException as error:
        for temporary in unfinished.values():
            os.unlink(temporary)
        if isinstance(error, OSError):  # by the name that is meant, not the temporary one
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    return write(path, _json(content))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def save_trajectory(trajectory: Trajectory, profile: str, model: str, method: str) -> Path:
    """``<method>.csv`` with the table as it is, ``.json`` on how it came about, ``.npz`` with what was classified
    correctly, all in experiments_results/<profile>/<model>. Returns the path of the CSV.

    Raises ``OSError`` where a file cannot be written.
    """
    path = results_folder(profile) / model / f"{method}.csv"
    arrays = io.BytesIO()
    bits = np.packbits(trajectory.correct, axis=1)
    np.savez_compressed(arrays, correct=bits, texts=trajectory.correct.shape[1], start=trajectory.start.numpy())
    return write_together(
        {
            path.with_suffix(".npz"): arrays.getvalue(),
            path.with_suffix(".json"): _json(trajectory.info | {"profile": profile, "model": model}),
            path: trajectory.table.to_csv(index=False),
        }
    )


def save_table(table: pd.DataFrame, profile: str, name: str) -> pd.DataFrame:
    """Write a table as CSV, Markdown and LaTeX to experiments_results/<profile>/tables; print where, return it."""
    folder = results_folder(profile) / "tables"
    cells = table.map(lambda cell: f"{cell:.4g}" if isinstance(cell, float) else str(cell)).astype(str)
    right = ["right" if pd.api.types.is_numeric_dtype(kind) else "left" for kind in table.dtypes]
    paths = [
        write(folder / f"{name}.csv", table.to_csv(index=False)),
        write(folder / f"{name}.md", cells.to_markdown(index=False, disable_numparse=True, colalign=right) + "\n"),
        write(folder / f"{name}.tex", _latex(cells, "".join(side[0] for side in right))),
    ]
    print("written:", *map(shown, paths))
    return table


def _latex(cells: pd.DataFrame, columns: str) -> str:
    """A booktabs table, cells escaped."""
    escapes = str.maketrans({"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$"})
    rows = [[str(name) for name in cells.columns], *cells.to_numpy().tolist()]
    head, *body = [" & ".join(cell.translate(escapes) for cell in row) + r" \\" for row in rows]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def save_figure(figure: Figure, profile: str, name: str) -> Image:
    """Write a figure as .png and .pdf to figures/<profile>; print where, and return the picture for a notebook."""
    paths = []
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": ""})):  # same figure, same bytes
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=160, bbox_inches="tight", metadata=metadata)
        paths.append(write(figures_folder(profile) / f"{name}.{suffix}", buffer.getvalue()))
    print("written:", *map(shown, paths))
    return Image(data=buffer.getvalue(), width=100 * figure.get_figwidth())


# ------------------------------------------------------------------------------------------ reading


def load_trajectory(profile: str, model: str, method: str) -> Trajectory:
    """A trajectory that ``save_trajectory`` wrote.

    Raises ``FileNotFoundError`` where it is not there, ``ValueError`` where a file of it is damaged or of another run.
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
            correct = np.unpackbits(arrays["correct"], axis=1, count=int(arrays["texts"])).astype(bool)
            start = torch.from_numpy(arrays["start"])
        of = {name: info[name] for name in ("profile", "model", "method")}
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{shown(path)} or the files beside it are damaged ({error}): delete them and run again."
        ) from None
    if of != {"profile": profile, "model": model, "method": method}:
        raise ValueError(
            f"{shown(path)} holds the results of {of['method']} on {of['model']} of profile {of['profile']}: results "
            "do not move between folders; delete them and run again."
        )
    if len(table) != len(correct) or not np.allclose(correct.mean(1), table.accuracy):
        raise ValueError(f"{shown(path)} does not match the files beside it: delete them and run again.")
    return Trajectory(table, correct, start, info)


def saved_methods(profile: str, model: str) -> list[str]:
    """The methods of METHODS whose trajectory is there, in the order of METHODS."""
    return [name for name in METHODS if (results_folder(profile) / model / f"{name}.csv").exists()]


# ------------------------------------------------------------------------------------------ what was published

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


def wilson(hits: int, texts: int) -> tuple[float, float]:
    """The 95 % Wilson interval of the share of ``hits`` among ``texts``."""
    interval = scipy.stats.binomtest(hits, texts).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


# ------------------------------------------------------------------------------------------ what curves say


def curve(trajectory: Trajectory) -> pd.Series:
    """Accuracy by number of pruned heads, the mean over trials."""
    return trajectory.table.drop_duplicates(["trial", "pruned_heads"]).groupby("pruned_heads").accuracy.mean()


def area_under_curve(accuracy: pd.Series) -> float:
    """Trapezoid area under accuracy against the fraction of heads pruned; x from 0 to 1."""
    return float(np.trapezoid(accuracy, accuracy.index / accuracy.index[-1]))


def bootstrap(trajectory: Trajectory, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """(sample, state) accuracies, the evaluation texts drawn with replacement, the same texts for every state.

    States are the distinct numbers of pruned heads; trials are averaged.
    """
    table = trajectory.table.reset_index(drop=True)
    states = table.drop_duplicates(["trial", "pruned_heads"])
    mean = np.stack(
        [trajectory.correct[rows.index].mean(0) for _, rows in states.groupby("pruned_heads")]  # (state, text)
    )
    texts = mean.shape[1]
    draws = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=samples)
    return draws @ mean.T / texts


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The middle ``level`` of bootstrap samples (sample, ...), by percentile."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def area_interval(trajectory: Trajectory) -> tuple[float, float]:
    """95 % bootstrap interval, over evaluation texts, of the area under the curve."""
    heads = curve(trajectory).index
    low, high = interval(np.trapezoid(bootstrap(trajectory), heads / heads[-1], axis=1))
    return float(low), float(high)


def summary_row(trajectory: Trajectory) -> dict[str, Any]:
    """Accuracy at 0/25/50/75/100 % of heads pruned (the nearest state measured) and the area under the curve."""
    accuracy = curve(trajectory)
    low, high = area_interval(trajectory)
    heads = np.asarray(accuracy.index, dtype=float)
    nearest = {f"{f:.0%}": float(accuracy.iloc[int(np.abs(heads - f * heads[-1]).argmin())]) for f in FRACTIONS}
    return {**nearest, "area": area_under_curve(accuracy), "area_low": low, "area_high": high}


def summary_table(runs: Mapping[str, Mapping[str, Trajectory]]) -> pd.DataFrame:
    """A row for every model and method in ``runs[model][method]``; where an area was published, it and the difference
    to it."""
    rows: list[dict[str, Any]] = []
    for model, methods in runs.items():
        for method, trajectory in methods.items():
            row = {"model": model, "method": method, "texts": trajectory.correct.shape[1], **summary_row(trajectory)}
            if (published := published_area(model, method, trajectory)) is not None:
                row |= {"published": published, "difference": row["area"] - published}
            rows.append(row)
    return pd.DataFrame(rows)


def closeness_table(runs: Mapping[str, Trajectory]) -> pd.DataFrame:
    """A row for every model: how close the choices between its heads were, see ``Trajectory.info``."""
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


def verdict(table: pd.DataFrame) -> pd.DataFrame:
    """Per model of a ``summary_table``: the method with the largest area, the runner-up, and whether their intervals
    overlap."""
    rows = []
    for model, group in table.groupby("model", sort=False):
        ranked = group.sort_values("area", ascending=False)
        if len(ranked) > 1:
            first, second = ranked.iloc[0], ranked.iloc[1]
            rows.append(
                {
                    "model": model,
                    "largest area": first.method,
                    "area": first.area,
                    "runner-up": second.method,
                    "its area": second.area,
                    "intervals overlap": "yes" if first.area_low <= second.area_high else "no",
                }
            )
    return pd.DataFrame(rows)


def solution(trajectory: Trajectory, budget: float) -> int:
    """The most heads that can be pruned while accuracy stays within ``budget`` of the intact model's."""
    accuracy = curve(trajectory)
    return int(accuracy.index[accuracy >= accuracy.iloc[0] - budget - 1e-12][-1])


# ------------------------------------------------------------------------------------------ how it came about


def environment() -> dict[str, Any]:
    """Versions, device and commit: what results were made with."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit the code is at, with a + where tracked files differ from it; None outside a repository."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parents[1]), *arguments], capture_output=True, text=True, check=False
        )

    try:
        head = git("rev-parse", "--short=12", "HEAD")
    except FileNotFoundError:
        return None
    if head.returncode:
        return None
    code = git("status", "--porcelain", "--untracked-files=no", "--", "gnorm", "notebooks", "run_all.py")
    return head.stdout.strip() + ("+" if code.stdout.strip() else "")
