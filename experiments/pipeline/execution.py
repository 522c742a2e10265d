"""One notebook in a kernel of its own: its parameters checked, its progress shown, its executed copy kept."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakSet

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from gnorm.storage.files import RECORD, UNFINISHED, recorded, write_json

from ..files import paths
from ..files.errors import NotebookError, UsageError
from ..files.paths import shown
from ..runs.stamps import digest_of

# Of torch, in every kernel and worker, so that results do not depend on how many there are.
THREADS = int(os.environ.get("OMP_NUM_THREADS") or 1)


def _not_of_a_killed_kernel(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], DeadKernelError))


# An interrupt leaves nbclient's task for the cell behind. Where it still sees its kernel killed, asyncio would print a
# traceback of that; ``execute`` raises what there is to say.
logging.getLogger("asyncio").addFilter(_not_of_a_killed_kernel)

STARTS = threading.Lock()  # kernels that start at once could be given one port


def declared(notebook: str) -> dict[str, Any]:
    """The parameters of a notebook, by name, as papermill reads them off the cell tagged `parameters`."""
    return dict(papermill.inspect_notebook(str(paths.notebook_file(notebook))))


def check_parameters(notebook: str, parameters: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` for parameters that the notebook's cell tagged `parameters` does not declare with this type.

    papermill only warns of the one and writes whatever it is given. The values are names that the profile knows.
    """
    known = declared(notebook)
    for parameter, value in parameters.items():
        if parameter not in known:
            raise UsageError(
                f"notebook {notebook} has no parameter {parameter!r}: name it in the cell tagged `parameters`."
            )
        kind = known[parameter]["inferred_type_name"].partition("[")[0]
        if kind != type(value).__name__:
            raise UsageError(
                f"notebook {notebook} declares {parameter!r} as {kind}, it is given a "
                f"{type(value).__name__}: correct one."
            )


def execute(
    notebook: str, parameters: dict[str, Any], label: str, fingerprint: str, stamped: Mapping[str, Any]
) -> dict[str, Any]:
    """Run one notebook, keep the executed copy, and return the stamp that says it is done, which is written too.

    parameters: hold the ``profile``. label: the notebook's place in the order, which begins every line of progress.
    stamped: the parameters as the stamp holds them.

    Raises ``NotebookError`` where a cell fails, the kernel dies or does not start, ``KeyboardInterrupt`` where a person
    interrupts it.
    """
    profile = parameters["profile"]
    copy = paths.executed_file(profile, notebook)
    copy.parent.mkdir(parents=True, exist_ok=True)
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gnorm-") as folder:
        environment = {RECORD: str(record := Path(folder) / "record"), "OMP_NUM_THREADS": str(THREADS)}
        _run_cells(notebook, parameters, label, copy, environment)
        written, read = (_digests(profile, recorded(what, record)) for what in ("written", "read"))
    stamp = {
        "fingerprint": fingerprint,
        "parameters": dict(stamped),
        "seconds": round(time.perf_counter() - clock, 1),
        "written": {**written, copy.relative_to(paths.root()).as_posix(): digest_of(copy)},
        "read": {path: content for path, content in read.items() if path not in written},
    }
    write_json(paths.stamp_file(profile, notebook), stamp)
    return stamp


def _digests(profile: str, files: Sequence[Path]) -> dict[str, str]:
    """``digest_of`` those files that are among the profile's results and figures, by their path from the root."""
    folders = (paths.results_folder(profile).absolute(), paths.figures_folder(profile).absolute())
    kept_apart = paths.run_folder(profile).absolute()
    return {
        path.relative_to(paths.root().absolute()).as_posix(): digest_of(path)
        for path in files
        if any(path.is_relative_to(folder) for folder in folders)
        and not path.is_relative_to(kept_apart)
        and path.exists()  # another run may write it anew at this moment
    }


def _run_cells(
    notebook: str, parameters: dict[str, Any], label: str, copy: Path, environment: Mapping[str, str]
) -> None:
    """Run the cells of a notebook; ``copy``, whole or where a cell failed, is what papermill makes of it."""

    class Manager(QuietKernelManager):
        variables = environment
        log_file = paths.kernel_log(parameters["profile"])

    unfinished = copy.with_name(f"{notebook}{UNFINISHED}.ipynb")  # papermill wants the suffix
    with closing(Terminal(label)) as terminal, _failures(label, parameters["profile"], unfinished, copy):
        papermill.execute_notebook(
            paths.notebook_file(notebook),
            unfinished,
            parameters,
            cwd=paths.REPOSITORY,
            progress_bar=False,
            stderr_file=terminal,
            coalesce_streams=True,  # a progress bar leaves one line in the executed copy
            kernel_manager_class=Manager,
            shutdown_kernel="immediate",  # its work is done and on disk; taking Python down by the book takes a second
        )
        os.replace(unfinished, copy)


@contextmanager
def _failures(label: str, profile: str, unfinished: Path, copy: Path) -> Iterator[None]:
    """Turns what papermill raises into ``NotebookError``; the executed copy of a cell that failed is kept."""
    try:
        yield
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        os.replace(unfinished, copy)
        raise NotebookError(
            f"{label} failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
            f"the executed copy, with the traceback, is {shown(copy)}; finished steps are kept, and once the cause "
            "is fixed the same command goes on from them"
        ) from error
    except DeadKernelError as error:
        raise NotebookError(
            f"{label} ended with its kernel killed, perhaps out of memory; finished steps are kept and the same "
            f"command goes on from them (the kernel's log is {shown(paths.kernel_log(profile))})"
        ) from error
    except RuntimeError as error:
        raise NotebookError(
            f"{label} could not be run to its end: {str(error) or type(error).__name__} (the kernel's log is "
            f"{shown(paths.kernel_log(profile))})"
        ) from error


class QuietKernelManager(AsyncKernelManager):
    """Starts kernels in this very Python, whatever kernels Jupyter knows under the name that a notebook gives.

    variables: added to the kernel's environment. log_file: where the kernel's own log goes; the terminal shows what
    notebooks print.
    """

    variables: Mapping[str, str]
    log_file: Path
    kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )

    async def start_kernel(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]
        log = os.open(self.log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # the kernel's to keep
        with STARTS:
            started = await super().start_kernel(
                *arguments, **{**options, "env": {**os.environ, **self.variables}, "stderr": log}
            )
        _RUNNING.add(self)
        return started


_RUNNING: WeakSet[QuietKernelManager] = WeakSet()


def kill_kernels() -> None:
    """Kill the kernels of notebooks that run in other threads; ``execute`` then raises there."""
    for manager in list(_RUNNING):
        if manager.provisioner is not None and (process := getattr(manager.provisioner, "process", None)):
            process.kill()


class Terminal:
    """Shows what a notebook's progress bars print, behind the notebook's place in the order.

    On a terminal a bar redraws its line; in a log every update would be a line, so bars are told to update rarely.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.live = sys.stderr.isatty()

    def write(self, text: str) -> None:
        for piece in text.replace("\r", "\n").split("\n"):
            if piece.strip():
                line = f"{self.label} {piece.strip()}"
                print(
                    f"\r\x1b[2K{line[: os.get_terminal_size(2).columns - 1]}" if self.live else line,
                    end="" if self.live else "\n",
                    file=sys.stderr,
                    flush=True,
                )

    def flush(self) -> None:
        sys.stderr.flush()

    def close(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
