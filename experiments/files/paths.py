"""The one place that says where files lie: sources, trained models, results, figures and the records of a run."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROFILES = REPOSITORY / "experiments" / "profiles"


def notebook_file(notebook: str) -> Path:
    """A notebook as it is stored, without outputs."""
    return REPOSITORY / "notebooks" / f"{notebook}.ipynb"


def cache_folder() -> Path:
    """The folder of trained models: $GNORM_CACHE, else ~/.cache/gnorm."""
    return Path(os.environ.get("GNORM_CACHE") or Path.home() / ".cache" / "gnorm")


def root() -> Path:
    """The folder that holds experiments_results/ and figures/: $GNORM_OUTPUT, else the repository."""
    return Path(os.environ.get("GNORM_OUTPUT") or REPOSITORY)


def shown(path: Path) -> str:
    """The path as a reader knows it: from the root of the repository."""
    return path.relative_to(root()).as_posix() if path.is_relative_to(root()) else str(path)


# ---------------------------------------------------------------- what a reader opens


def figures_folder(profile: str) -> Path:
    return root() / "figures" / profile


def results_folder(profile: str) -> Path:
    return root() / "experiments_results" / profile


def tables_folder(profile: str) -> Path:
    """The tables made from trajectories, each as .csv, .md and .tex."""
    return results_folder(profile) / "tables"


def manifest_file(profile: str) -> Path:
    """The record of what the results of a profile were made with."""
    return results_folder(profile) / "manifest.json"


def report_folder(profile: str) -> Path:
    """index.html, which shows everything, explore.html, to drag on, and a page for each executed notebook."""
    return results_folder(profile) / "report"


def report_page(profile: str) -> Path:
    return report_folder(profile) / "index.html"


def explore_page(profile: str) -> Path:
    return report_folder(profile) / "explore.html"


# ---------------------------------------------------------------- what the pipeline keeps for itself


def run_folder(profile: str) -> Path:
    """Journals, executed notebooks and stamps of finished work: rebuilt where they are missing, not committed."""
    return results_folder(profile) / ".run"


def journals_folder(profile: str, model: str) -> Path:
    """The finished steps of a model's runs, a file for each method."""
    return run_folder(profile) / "journals" / model


def intact_file(profile: str, model: str) -> Path:
    """The accuracy of the intact model."""
    return run_folder(profile) / "intact" / f"{model}.json"


def after_pruning_folder(profile: str, model: str) -> Path:
    """Cached measurements of pruned models, and of pruned models trained further."""
    return run_folder(profile) / "after_pruning" / model


def stamp_file(profile: str, notebook: str) -> Path:
    """The record of a notebook's last finished run."""
    return run_folder(profile) / "stamps" / f"{notebook}.json"


def executed_file(profile: str, notebook: str) -> Path:
    """The executed copy of a notebook."""
    return run_folder(profile) / "executed" / f"{notebook}.ipynb"


def kernel_log(profile: str) -> Path:
    """The log of Jupyter's kernels."""
    return run_folder(profile) / "kernel.log"


def lock_file(profile: str, what: str, name: str) -> Path:
    """Held by the process that makes a job, runs a notebook or writes the report; see ``locks``."""
    return run_folder(profile) / "locks" / what / f"{name}.lock"
