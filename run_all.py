"""Run the notebooks in order and regenerate every table and figure of a profile.

python run_all.py [--profile auto|local|smoke] [--only NAME,...] [--models NAME,...] [--device ...] [--fresh] [--list]

Exit codes: 0 done; 1 a notebook failed; 2 wrong usage; 130 and 143 interrupted, to be taken up by the same command.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

try:
    import filelock
    import papermill
    import torch
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from gnorm import report, results, tasks
except ModuleNotFoundError as missing:
    print(
        f"run_all.py needs the package {missing.name}: run `make setup`, then .venv/bin/python run_all.py",
        file=sys.stderr,
    )
    sys.exit(2)

# The order is the order of dependence: what reads trajectories comes after what makes them.
NOTEBOOKS = (
    "data_processing",
    "greedy_pruning",
    "inverse_greedy_gnorm_pruning",
    "ae_pruning",
    "ae_inverse_pruning",
    "random_pruning",
    "greedyprune_all_models",
    "gradient_test",
    "four_models",
    "custom_bert_pruning",
    "solve_underflow",
    "show_pruning_result",
    "pruning_summary",
)
# Beyond the paper: run by name alone, `--only NAME`.
OPTIONAL = ("criteria_comparison", "prune_your_model")


def refuse(message: str) -> NoReturn:
    """Wrong usage: say what and how to mend it, and stop before anything runs."""
    print(f"run_all.py: {message}", file=sys.stderr)
    sys.exit(2)


class Terminal:
    """What a notebook's progress bars print, shown live behind the notebook's place in the order.

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


class QuietKernelManager(AsyncKernelManager):
    """Starts kernels whose own log goes to a file: the terminal shows what notebooks print, not what kernels think."""

    def start_kernel(self, *arguments: Any, **options: Any) -> Any:
        log = os.open(os.environ["GNORM_KERNEL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)  # the kernel's to keep
        return super().start_kernel(*arguments, **{**options, "stderr": log})


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_all.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--profile", default="auto", help=f"auto, {', '.join(tasks.profile_names())} (default: auto)")
    parser.add_argument("--only", default=",".join(NOTEBOOKS), metavar="NAME,...", help="these notebooks alone")
    parser.add_argument("--models", metavar="NAME,...", help="these models of the profile alone")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the first accelerator, else the CPU")
    parser.add_argument("--fresh", action="store_true", help="run finished work again (trained models are kept)")
    parser.add_argument("--list", action="store_true", help="name the notebooks and say which are done, and stop")
    return parser.parse_args(arguments)


def choose_profile(asked: str) -> str:
    """The profile to run; the first line printed says which and why."""
    if asked != "auto":
        return asked
    print("profile local, chosen by auto: a profile of the paper's own checkpoints is not part of this version.")
    return "local"


def parameters_of(path: Path) -> set[str]:
    """Names that the notebook's parameters cell assigns."""
    return set(papermill.inspect_notebook(str(path)))


def fingerprint(name: str, parameters: dict[str, Any], device: str) -> str:
    """What the notebook's outputs depend on: itself, its parameters, the package, its profile, versions and device."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    package = sorted([*(ROOT / "gnorm").glob("*.py"), ROOT / "gnorm" / "profiles" / f"{parameters['profile']}.toml"])
    environment = results.environment()
    del environment["commit"]  # the code itself counts
    return tasks.digest(
        [
            [cell["source"] for cell in notebook["cells"]],
            parameters,
            [path.read_text("utf-8") for path in package],
            environment,
            device,
        ]
    )


def stamp_of(profile: str, name: str) -> dict[str, Any]:
    """What is known of the notebook's last finished run; empty where there was none or a file it wrote is gone."""
    try:
        stamp = json.loads((results.run_folder(profile) / "stamps" / f"{name}.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if all((results.root() / path).exists() for path in stamp["written"]) else {}


def written_since(profile: str, moment: float) -> list[str]:
    """Files under the profile's results and figures that were written after ``moment``, in seconds since the epoch."""
    folders = (results.results_folder(profile), results.figures_folder(profile))
    return sorted(
        path.relative_to(results.root()).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".jsonl", ".lock", ".log"} and path.stat().st_mtime >= moment
    )


def execute(name: str, parameters: dict[str, Any], label: str, wanted: str) -> dict[str, Any]:
    """Run one notebook and stamp it as done; the executed copy is kept. Ends the program with 1 where a cell fails."""
    profile = parameters["profile"]
    copy = results.run_folder(profile) / "executed" / f"{name}.ipynb"
    copy.parent.mkdir(parents=True, exist_ok=True)
    terminal, began, clock = Terminal(label), time.time() - 1, time.perf_counter()
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            copy,
            parameters,
            cwd=ROOT,
            progress_bar=False,
            stderr_file=terminal,
            coalesce_streams=True,  # a progress bar leaves one line in the executed copy
            kernel_manager_class=QuietKernelManager,
        )
    except PapermillExecutionError as error:
        terminal.close()
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        print(
            f"{label} failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
            f"the executed copy, with the traceback, is {results.shown(copy)}",
            file=sys.stderr,
        )
        sys.exit(1)
    except DeadKernelError:
        terminal.close()
        print(
            f"{label} ended with its kernel killed, perhaps for want of memory; finished steps are kept and the same "
            f"command goes on from them (the kernel's log is {results.shown(results.run_folder(profile) / 'kernel.log')})",
            file=sys.stderr,
        )
        sys.exit(1)
    except (RuntimeError, OSError) as error:
        terminal.close()
        print(f"{label} could not be run to its end: {str(error) or type(error).__name__}", file=sys.stderr)
        sys.exit(1)
    terminal.close()
    stamp = {
        "fingerprint": wanted,
        "parameters": parameters,
        "seconds": round(time.perf_counter() - clock, 1),
        "written": written_since(profile, began),
    }
    results.write_json(results.run_folder(profile) / "stamps" / f"{name}.json", stamp)
    return stamp


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    profile = choose_profile(asked.profile)
    try:
        known = tasks.read_profile(profile)
        models = asked.models.split(",") if asked.models else list(known.models)
        tasks.check_models(profile, models)
    except ValueError as error:
        refuse(str(error))
    chosen = asked.only.split(",")
    for name in chosen:
        if name not in NOTEBOOKS + OPTIONAL:
            refuse(f"notebook {name!r} is not known; choose from {', '.join(NOTEBOOKS + OPTIONAL)}.")
    device = asked.device or tasks.default_device()
    if not {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]:
        refuse(f"device {device} is not there; leave --device out to take what is.")
    parameters = {"profile": profile, "models": models}
    for name in chosen:
        unknown = sorted(parameters.keys() - parameters_of(ROOT / "notebooks" / f"{name}.ipynb"))
        if unknown:
            refuse(f"notebook {name} has no parameter {unknown[0]!r}: name it in the cell tagged `parameters`.")
    chosen = [name for name in NOTEBOOKS + OPTIONAL if name in chosen]
    wanted = {name: fingerprint(name, parameters, device) for name in chosen}
    if asked.list:
        for name in chosen:
            print(f"{name:32} {'done' if stamp_of(profile, name).get('fingerprint') == wanted[name] else 'to do'}")
        return 0

    os.environ |= {"GNORM_DEVICE": device, "HF_HUB_OFFLINE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "15")
    results.run_folder(profile).mkdir(parents=True, exist_ok=True)
    os.environ["GNORM_KERNEL_LOG"] = str(results.run_folder(profile) / "kernel.log")
    lock = filelock.FileLock(results.run_folder(profile) / "run.lock", timeout=0)
    try:
        with lock:
            return run(profile, known.description, parameters, wanted, asked.fresh, device)
    except filelock.Timeout:
        refuse(f"another run is at work in {results.shown(results.results_folder(profile))}; wait for it or stop it.")


def run(
    profile: str, description: str, parameters: dict[str, Any], wanted: dict[str, str], fresh: bool, device: str
) -> int:
    folder = results.run_folder(profile)
    if fresh:
        for path in [*folder.glob("journals/*/*.jsonl"), *(folder / "stamps" / f"{name}.json" for name in wanted)]:
            path.unlink(missing_ok=True)
    print(f"profile {profile}, models {', '.join(parameters['models'])}, device {device}", flush=True)
    clock, ran = time.perf_counter(), 0
    for k, name in enumerate(wanted, start=1):
        label = f"[{k}/{len(wanted)}] {name}"
        stamp = stamp_of(profile, name)
        if stamp.get("fingerprint") == wanted[name]:
            print(f"{label}: unchanged, not run again", flush=True)
        else:
            stamp, ran = execute(name, parameters, label, wanted[name]), ran + 1
            print(f"{label}: {stamp['seconds']:.1f} s", flush=True)
    index = results.results_folder(profile) / "report" / "index.html"
    if ran or not index.exists():
        # Notebooks that an earlier run finished belong to the results as much as those of this one.
        stamps = {name: stamp for name in NOTEBOOKS + OPTIONAL if (stamp := stamp_of(profile, name))}
        manifest = {
            "profile": profile,
            "models": parameters["models"],
            "device": device,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 1),
            "environment": results.environment(),
            "notebooks": stamps,
        }
        results.write_json(results.results_folder(profile) / "manifest.json", manifest)
        report.write_report(profile, description, manifest, {n: folder / "executed" / f"{n}.ipynb" for n in stamps})
    print(f"done in {time.perf_counter() - clock:.0f} s; everything on one page: {results.shown(index)}")
    return 0


class Terminated(BaseException):
    """SIGTERM came."""


def _on_sigterm(*_: object) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        sys.exit(main())
    except (KeyboardInterrupt, Terminated) as stopped:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130 if isinstance(stopped, KeyboardInterrupt) else 143)
