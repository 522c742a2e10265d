"""The real run_all.py, for the tests that run it."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat

import run_all

ROOT = Path(__file__).parents[1]


def call(*arguments, output, root=ROOT, **environment):
    return subprocess.run(
        [sys.executable, str(root / "run_all.py"), *arguments],
        env=os.environ | {"GNORM_OUTPUT": str(output)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def in_process(output, monkeypatch, *arguments):
    """``run_all.main`` without a process of its own, for what ends before a notebook runs."""
    monkeypatch.setenv("GNORM_OUTPUT", str(output))
    return run_all.main(list(arguments))


def alter(root, name, change):
    path = root / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        change(cell)
    nbformat.write(notebook, path)
