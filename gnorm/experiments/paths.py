"""Where results, figures and run records lie."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
REPOSITORY = PACKAGE.parent
PROFILES = Path(__file__).with_name("profiles")


def root() -> Path:
    """The folder that holds experiments_results/ and figures/: $GNORM_OUTPUT, else the repository."""
    return Path(os.environ.get("GNORM_OUTPUT") or REPOSITORY)


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
