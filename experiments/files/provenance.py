"""Provenance of results: versions, commit, and the code that they depend on."""

from __future__ import annotations

import ast
import functools
import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gnorm.journal import digest

from .paths import REPOSITORY

CODE = ("gnorm", "experiments")  # the packages of this repository that results depend on
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy", "pandas", "papermill", "matplotlib")


def code_of(*modules: str) -> str:
    """Digest of the sources of modules of this repository, and of all of it that they import, at any depth.

    modules: names such as "gnorm.pruning". A change to a module that none of them imports changes nothing.
    """
    waiting, sources = list(modules), dict[str, str]()
    while waiting:
        if (name := waiting.pop()) not in sources:
            path = _file_of(name)
            assert path is not None, name
            sources[name] = path.read_text("utf-8")
            waiting += _imported_by(name, path, sources[name])
    return digest(sources)


def _file_of(module: str) -> Path | None:
    """The file of a module of this repository; None where there is no module of that name."""
    path = REPOSITORY.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _imported_by(module: str, path: Path, source: str) -> Iterator[str]:
    """The modules of this repository that a source imports, within functions too; packages on the way as well."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for name in _names_imported(package, source):
        parts = name.split(".")
        if parts[0] in CODE:  # whose own __init__ decides nothing
            yield from filter(_file_of, (".".join(parts[:i]) for i in range(2, len(parts) + 1)))


@functools.cache  # reading all sources takes a quarter of a second, and every task asks
def _names_imported(package: str, source: str) -> tuple[str, ...]:
    """The names of modules, and of what may be modules, that a source in ``package`` imports."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = f"{above}{node.module or ''}".rstrip(".")
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(found)


def package_code() -> str:
    """Digest of every source and template of the two packages."""
    files = sorted(path for name in CODE for path in (REPOSITORY / name).rglob("*") if path.suffix in (".py", ".j2"))
    return digest([[path.relative_to(REPOSITORY).as_posix(), path.read_text("utf-8")] for path in files])


def environment() -> dict[str, Any]:
    """Versions, device and commit: what results were made with."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name, which times are given with."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit the code is at, with a + where tracked files differ from it; None outside a repository."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
    except FileNotFoundError:
        return None
    if head.returncode:
        return None
    code = git("status", "--porcelain", "--untracked-files=no", "--", *CODE, "notebooks", "run_all.py")
    return head.stdout.strip() + ("+" if code.stdout.strip() else "")
