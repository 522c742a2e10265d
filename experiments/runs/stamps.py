"""Stamps of finished notebooks, which need not run again: a stamp holds what it depended on and which files it used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gnorm.journal import digest

from ..data.profiles import read_profile
from ..files import paths, provenance


def fingerprint(notebook: str, parameters: Mapping[str, Any], others: list[Any]) -> str:
    """Digest of what a notebook's outputs depend on: its cells, its parameters, the package, the profile, versions.

    others: whatever else counts, such as the commits of what the hub brings.
    """
    cells = json.loads(paths.notebook_file(notebook).read_text("utf-8"))["cells"]
    environment = provenance.environment()
    del environment["commit"]  # the code itself counts
    return digest(
        [
            [cell["source"] for cell in cells],
            parameters,
            provenance.package_code(),
            dataclasses.asdict(read_profile(parameters["profile"])),
            environment,
            others,
        ]
    )


def read_stamp(profile: str, notebook: str) -> dict[str, Any]:
    """The stamp of the notebook's last finished run.

    Empty where the notebook never finished, or where a file that it wrote or a trajectory that it read is gone or was
    altered since.
    """
    try:
        stamp = json.loads(paths.stamp_file(profile, notebook).read_text("utf-8"))
        used = {**stamp.get("read", {}), **stamp["written"]}
        intact = all(digest_of(paths.root() / path) == content for path, content in used.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return stamp if intact else {}


OUTDATED, UNRECORDED = "out of date", "of another run"  # what ``freshness`` says of a file that is not current


def freshness(path: Path, stamps: Mapping[str, Mapping[str, Any]], stale: Collection[str]) -> str:
    """The freshness of a file to the notebooks' last runs: "" where one that is not in ``stale`` wrote or read it.

    ``OUTDATED`` where only notebooks in ``stale`` did; ``UNRECORDED`` where none wrote or read it as it is.
    """
    name, content = path.relative_to(paths.root()).as_posix(), digest_of(path)
    used = {notebook: {**stamp.get("read", {}), **stamp["written"]} for notebook, stamp in stamps.items()}
    users = {notebook for notebook, files in used.items() if files.get(name) == content}
    return UNRECORDED if not users else OUTDATED if users <= set(stale) else ""


def digest_of(path: Path) -> str:
    """SHA-256, 16 digits, of a file; empty for JSON, whose seconds and commit differ where the results do not."""
    with path.open("rb") as file:
        return "" if path.suffix == ".json" else hashlib.file_digest(file, "sha256").hexdigest()[:16]
