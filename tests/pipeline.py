"""The real run_all.py and the cells of notebooks, for the tests that run them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nbformat

import run_all
from experiments.files import paths
from gnorm.methods import METHODS

ROOT = Path(__file__).parents[1]


def copy_of_the_project(root):
    """The files of the project that a run needs, in the folder ``root``."""
    for name in ("gnorm", "experiments", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_all.py", root)
    return root


def call(*arguments, output, root=ROOT, **environment):
    return subprocess.run(
        [sys.executable, str(root / "run_all.py"), *arguments],
        env=os.environ | {"GNORM_OUTPUT": str(output)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


def in_process(output, monkeypatch, *arguments, root=ROOT):
    """``run_all.main`` without a process of its own, whose imports take five seconds; notebooks get kernels as ever."""
    monkeypatch.setenv("GNORM_OUTPUT", str(output))
    monkeypatch.setattr(paths, "REPOSITORY", root)
    with mock.patch.dict(os.environ):  # what a run sets for its kernels goes again
        return run_all.main(list(arguments))


def execute(name, **parameters):
    """The code cells of a notebook, one after the other in one namespace, as a kernel runs them; the namespace."""
    namespace = {}
    for cell in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{name}: {cell.id}", "exec"), namespace)  # noqa: S102
        if "parameters" in cell.metadata.get("tags", []):
            assert parameters.keys() <= namespace.keys()
            namespace |= parameters
    return namespace


def alter(root, name, change):
    path = root / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        change(cell)
    nbformat.write(notebook, path)


def trajectories_of(stamp, what):
    """The trajectories among the files that a notebook has "written" or "read", such as "bert/random"."""
    folder = "experiments_results/smoke/"
    names = [path.removeprefix(folder) for path in stamp[what] if path.startswith(folder)]
    return {name.removesuffix(".npz") for name in names if name.endswith(".npz")}


def saved_methods(profile, model):
    """The methods of METHODS with a saved trajectory, in the order of METHODS."""
    return [name for name in METHODS if (paths.results_folder(profile) / model / f"{name}.csv").exists()]
