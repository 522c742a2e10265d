"""The page that shows a profile's results: tables, figures, executed notebooks, manifest; needs no network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd
from nbconvert import HTMLExporter

from ..storage.files import write
from .paths import figures_folder, report_folder, report_page, tables_folder
from .published import AS_PUBLISHED


def write_report(profile: str, description: str, manifest: Mapping[str, Any], executed: Mapping[str, Path]) -> Path:
    """experiments_results/<profile>/report/index.html and one page for each executed notebook; returns the index."""
    folder = report_folder(profile)
    # No scripts from elsewhere: the notebooks hold text, tables and embedded images, and no mathematics to typeset.
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="", widget_renderer_url="")
    for name, path in executed.items():
        body, _ = exporter.from_notebook_node(nbformat.read(path, as_version=4))
        write(folder / f"{name}.html", re.sub(r'<script[^>]*src=""[^>]*>\s*</script>', "", body))
    tables = {
        path.stem: pd.read_csv(path).to_html(
            index=False, float_format="{:.4g}".format, border=0, na_rep="", escape=True
        )
        for path in sorted(tables_folder(profile).glob("*.csv"))
    }
    figures = {
        path.stem: Path(os.path.relpath(path, folder)).as_posix()
        for path in sorted(figures_folder(profile).glob("*.png"))
    }
    environment = jinja2.Environment(loader=jinja2.PackageLoader("gnorm.experiments", ""), autoescape=True)
    page = environment.get_template("report.html.j2").render(
        profile=profile,
        description=description,
        manifest=manifest,
        as_published=AS_PUBLISHED,
        tables={name: jinja2.utils.markupsafe.Markup(table) for name, table in tables.items()},
        figures=figures,
    )
    return write(report_page(profile), page)
