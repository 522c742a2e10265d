"""The pages that show a profile's results: what came out, tables, figures, notebooks; they need no network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from gnorm.storage.files import write
from gnorm.trajectory import Trajectory

from ..analysis.published import AS_PUBLISHED
from ..files.paths import explore_page, figures_folder, report_folder, report_page, tables_folder
from ..runs.stamps import OUTDATED, UNRECORDED, freshness
from . import explore, sentences
from .captions import COLUMNS, ROWS, Caption

MAIN = ("claims", "pruning_results")  # the main figure is the first of these that is there
TEXTS = {"evaluation": "evaluation_texts", "scoring": "scoring_texts"}  # where a trajectory says how many there were
NAMED = 12  # as many trajectories are named that are not current
METHOD_COLUMNS = ("method", "baseline", "largest area", "runner-up", "layers of", "heads by")


@dataclass(frozen=True)
class Item:
    """A table, a figure, or both of one name, as the page shows them. marks: as ``Freshness.marks`` returns them."""

    name: str
    title: str
    caption: str
    about: str
    figure: str
    table: dict[str, Any] | None
    marks: dict[str, str]


@dataclass(frozen=True)
class Freshness:
    """The freshness of files to the last runs of the notebooks. stamps, stale: as ``stamps.freshness`` takes them."""

    profile: str
    stamps: Mapping[str, Mapping[str, Any]]
    stale: Sequence[str]

    def marks(self, files: Mapping[str, Path]) -> dict[str, str]:
        """A few words on files that are not current, by ``OUTDATED`` and ``UNRECORDED``. files: "table" -> its file."""
        found: dict[str, list[str]] = {}
        for what, path in files.items():
            if state := freshness(path, self.stamps, self.stale):
                found.setdefault(state, []).append(what)
        return {state: f"{sentences.listed(whats).capitalize()} {state}." for state, whats in found.items()}

    def notes(self, foreign: Sequence[str]) -> list[str]:
        """Sentences on the notebooks that are out of date and on the items, by title, that are of another run."""
        notes = []
        if self.stale:
            notes.append(
                f"Out of date: {sentences.listed(self.stale)}. The code, the profile or the versions changed since they"
                f" ran. To run them again: python run_all.py --profile {self.profile} --only {','.join(self.stale)}"
            )
        if foreign:
            why = "no notebook of the runs that are recorded here wrote these files as they are"
            notes.append(f"Of another run: {'; '.join(foreign)}. That is, {why}.")
        return notes

    def of_trajectories(self, files: Mapping[str, Path]) -> list[str]:
        """Sentences on the trajectories, by name, that are not current."""
        states = {name: freshness(path, self.stamps, self.stale) for name, path in files.items()}
        notes = []
        for state in (OUTDATED, UNRECORDED):
            found = [name for name, each in states.items() if each == state]
            if found and len(found) == len(states):
                notes.append(f"All {len(states)} trajectories are {state}.")
            elif found:
                rest = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
                notes.append(f"Trajectories {state}: {'; '.join(found[:NAMED])}{rest}.")
        return notes


def write_report(
    profile: str,
    description: str,
    manifest: Mapping[str, Any],
    executed: Mapping[str, Path],
    stale: Sequence[str] = (),
) -> Path:
    """experiments_results/<profile>/report: index.html, explore.html, a page for each notebook; returns the index.

    manifest: its ``notebooks`` are the stamps of the last runs. executed: the executed copies that are there. stale:
    the notebooks whose last run was of other code, versions or another profile.
    """
    folder = report_folder(profile)
    for name, path in executed.items():
        write(folder / f"{name}.html", notebook_page(path))
    stamps = manifest["notebooks"]
    status = Freshness(profile, stamps, stale)
    runs, damaged = explore.saved(profile)
    tables = {path.stem: pd.read_csv(path) for path in tables_folder(profile).glob("*.csv") if path.stat().st_size > 1}
    items = [_item(name, tables.get(name), profile, runs, manifest, status) for name in names_in_order(profile, tables)]
    notes = status.notes([item.title for item in items if UNRECORDED in item.marks])
    of_runs = status.of_trajectories(explore.files(profile, runs)) + [f"Left out: {why}" for why in damaged.values()]
    environment = jinja2.Environment(loader=jinja2.PackageLoader("experiments.report", ""), autoescape=True)
    environment.globals |= {"profile": profile}
    if runs:
        write(explore_page(profile), _explore_page(environment, runs, of_runs, manifest))
    page = environment.get_template("report.html.j2").render(
        description=description,
        manifest=manifest,
        as_published=AS_PUBLISHED,
        claims=sentences.of_claims(tables),
        methods=sentences.of_methods(tables),
        notes=notes + of_runs,
        overall=sentences.overall(tables),
        main=next((item for name in MAIN for item in items if item.name == name and item.figure), None),
        explore=bool(runs),
        items=items,
        outdated=OUTDATED,
        notebooks=[
            {
                "name": name,
                "page": f"{name}.html" if name in executed else "",
                "seconds": stamp["seconds"],
                "stale": name in stale,
            }
            for name, stamp in stamps.items()
        ],
    )
    return write(report_page(profile), page)


def notebook_page(path: Path) -> str:
    """An executed notebook as a page without scripts from elsewhere: it holds text, tables and embedded images."""
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="", widget_renderer_url="")
    body, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
    return re.sub(r'<script[^>]*src=""[^>]*>\s*</script>', "", body)


def names_in_order(profile: str, tables: Collection[str]) -> list[str]:
    """Names of the tables and figures that are there: those of ``ROWS`` in their order, then the others by name."""
    there = {*tables, *(path.stem for path in figures_folder(profile).glob("*.png"))}
    return [name for name in ROWS if name in there] + sorted(there - ROWS.keys())


def _item(
    name: str,
    table: pd.DataFrame | None,
    profile: str,
    runs: Mapping[str, Mapping[str, Trajectory]],
    manifest: Mapping[str, Any],
    status: Freshness,
) -> Item:
    row = ROWS.get(name, Caption(name, "", texts=""))
    figure = figures_folder(profile) / f"{name}.png"
    files = {"table": tables_folder(profile) / f"{name}.csv", "figure": figure}
    there = {what: path for what, path in files.items() if path.exists()}
    return Item(
        name=name,
        title=row.title,
        caption=row.caption,
        about=_about(profile, row.texts, runs, manifest),
        figure=Path(os.path.relpath(figure, report_folder(profile))).as_posix() if figure.exists() else "",
        table=None if table is None else _cells(table, row.columns),
        marks=status.marks(there),
    )


def _about(profile: str, texts: str, runs: Mapping[str, Mapping[str, Trajectory]], manifest: Mapping[str, Any]) -> str:
    """Profile, number of texts of each model and device: as far as the trajectories and the manifest know."""
    parts = [f"Profile {profile}"]
    if texts and (numbers := number_of_texts(runs, TEXTS[texts])):
        parts.append(f"n = {numbers} {texts} texts")
    if device := manifest.get("device"):
        parts.append(f"device {device}")
    return f"{'; '.join(parts)}."


def number_of_texts(runs: Mapping[str, Mapping[str, Trajectory]], which: str) -> str:
    """ "bert 400, albert 500", from ``which`` of the information of each model's first trajectory."""
    numbers = {model.split("/")[0]: next(iter(of_model.values())).info.get(which) for model, of_model in runs.items()}
    return ", ".join(f"{model} {number}" for model, number in numbers.items() if number is not None)


# ---------------------------------------------------------------- tables


def _cells(table: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    """The heading and the rows of a table, each cell with its class in the page."""
    kinds = {
        str(name): "number" if pd.api.types.is_numeric_dtype(values) else "says" if name == "says" else ""
        for name, values in table.items()
    }
    shown = {str(name): _in_words(str(name), values) for name, values in table.items()}
    headings = {name: columns.get(name, COLUMNS.get(name, name)) for name in shown}
    return {
        "head": [(headings[name], kind) for name, kind in kinds.items()],
        "rows": [list(zip(row, kinds.values(), strict=True)) for row in zip(*shown.values(), strict=True)],
    }


def _in_words(name: str, values: pd.Series) -> list[str]:
    """The cells of a column: methods by their titles; three decimals where that keeps four digits of none."""
    if name in METHOD_COLUMNS:
        return [sentences.title(str(value)) for value in values]
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return ["" if pd.isna(value) else str(value) for value in values]
    if pd.api.types.is_integer_dtype(values):
        return [f"{value:,}" for value in values]
    sizes = values.abs()[values != 0]
    form = "{:.3f}" if sizes.max() < 100 and sizes.min() >= 5e-4 else "{:,.4g}"
    return ["" if pd.isna(value) else form.format(value) for value in values]


# ---------------------------------------------------------------- the page to drag on


def _explore_page(
    environment: jinja2.Environment,
    runs: Mapping[str, Mapping[str, Trajectory]],
    notes: Sequence[str],
    manifest: Mapping[str, Any],
) -> str:
    specifications = {model: explore.specification(methods) for model, methods in runs.items()}
    markup = jinja2.utils.markupsafe.Markup
    return environment.get_template("explore.html.j2").render(
        titles=explore.model_titles(runs),
        notes=notes,
        texts=number_of_texts(runs, TEXTS["evaluation"]),
        device=manifest.get("device", "unknown"),
        mask=explore.MASK,
        gap=explore.GAP,
        library=markup(explore.library()),
        specifications=markup(json.dumps(specifications, separators=(",", ":")).replace("<", "\\u003c")),
    )
