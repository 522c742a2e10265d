"""Run the notebooks in order and regenerate every table and figure of a profile.

python run_all.py [--profile auto|paper|local|smoke] [--only NAME,...] [--models NAME,...] [--device ...] [--fresh]
                  [--list] [--published DIR] [--strict]

Exit codes: 0 done; 1 a notebook failed; 2 wrong usage, missing assets, or with --strict assets not as accurate as
published; 130 and 143 interrupted, to be taken up by the same command.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
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
    from huggingface_hub import constants
    from jupyter_client.kernelspec import NoSuchKernel
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from gnorm.engine.state import default_device
    from gnorm.experiments import hub, provenance, report, runs, tasks
    from gnorm.experiments.paths import PROFILES, figures_folder, results_folder, root, run_folder, shown
    from gnorm.experiments.profiles import Profile, check_models, profile_names, read_profile
    from gnorm.experiments.published import AS_PUBLISHED, against_published, published_curves
    from gnorm.storage.files import UNFINISHED, write_json
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


def fail(message: str) -> NoReturn:
    """Something went wrong on the way: say what, and stop. What is finished stays."""
    print(message, file=sys.stderr)
    sys.exit(1)


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
    parser.add_argument("--profile", default="auto", help=f"auto, {', '.join(profile_names())} (default: auto)")
    parser.add_argument("--only", default=",".join(NOTEBOOKS), metavar="NAME,...", help="these notebooks alone")
    parser.add_argument("--models", metavar="NAME,...", help="these models of the profile alone")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the first accelerator, else the CPU")
    parser.add_argument("--fresh", action="store_true", help="run finished work again (trained models are kept)")
    parser.add_argument("--list", action="store_true", help="name the notebooks and say which are done, and stop")
    parser.add_argument("--published", metavar="DIR", help="compare with the authors' result files in this folder")
    parser.add_argument(
        "--strict", action="store_true", help="stop where an intact model is not as accurate as was published"
    )
    return parser.parse_args(arguments)


def names_in(flag: str, text: str) -> list[str]:
    """The names behind a flag, each once."""
    names = text.split(",")
    if "" in names:
        refuse(f"{flag} {text!r} holds an empty name: give names with commas in between, and no spaces.")
    if twice := [name for name in names if names.count(name) > 1]:
        refuse(f"{flag} names {twice[0]!r} twice; name it once.")
    return names


def choose_profile(asked: str, device: str) -> str:
    """The profile to run; the first line printed says which and why."""
    if asked != "auto":
        return asked
    if device == "cpu":
        print("profile local, chosen by auto: there is no accelerator, and without one the paper's models take days.")
        return "local"
    paper = read_profile("paper")
    missing = [f for f in hub.look_up(paper.assets(list(paper.models))) if f.status == "missing"]
    if missing:
        print(
            f"profile local, chosen by auto: {len(missing)} of the paper's assets are neither cached nor reachable, the "
            f"first of them {missing[0].name} ({missing[0].why})."
        )
        return "local"
    print(f"profile paper, chosen by auto: its assets are cached or reachable, and {device} is there.")
    return "paper"


def preflight(profile: str, known: Profile, models: list[str], needed: list[hub.Asset], device: str) -> list[hub.Found]:
    """Say what of the hub is cached, reachable or missing and about how long it will take; then bring it all here.

    Ends the program with 2 where something is missing, cannot be fetched, or is not what the profile says. Returns
    every asset, cached; what is only looked at stops nothing, and is said to be missing.
    """
    found = hub.look_up(needed)
    if not found:
        return []
    print(f"{'asset':76} {'state':9} {'commit':12} {'MB':>8}")
    for asset in found:
        size = "" if asset.megabytes is None else f"{asset.megabytes:,.1f}"
        print(f"{asset.name:76} {asset.status:9} {asset.commit[:12]:12} {size:>8}")
    missing = [asset for asset in found if asset.status == "missing"]
    if any(asset.asset not in known.inspected for asset in missing):
        each = "\n".join(f"  {asset.name}: {asset.why}" for asset in missing)
        refuse(
            f"{len(missing)} of the {len(found)} assets of profile {profile} are missing:\n{each}\n"
            f"Either fill HF_HOME ({constants.HF_HOME}) on a machine that reaches the hub and copy it here, or run "
            "`python run_all.py --profile local`, which needs no hub."
        )
    fetched = [model for model in models if known.models[model].checkpoint]
    try:
        for model in fetched:
            (checkpoint,) = (asset for asset in found if asset.asset == known.models[model].checkpoint)
            seconds = tasks.estimate(known.models[model], hub.load_config(checkpoint), device)
            took = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
            print(f"{model}: about {took} on {device}, for texts of {tasks.ASSUMED_TOKENS} tokens", flush=True)
        found = [fetched_or_said(asset) if asset.asset in known.inspected else hub.fetch(asset) for asset in found]
        for model in fetched:
            task = tasks.load(profile, model, device="cpu")
            task.batches("scoring")  # every text is tokenised here once, before anything runs
            tokens, rows = len(task.tokenizer), task.model.config.vocab_size
            if tokens != rows:
                print(f"{model}: its tokenizer knows {tokens} tokens, its model {rows}; see that they belong together.")
            for split, rows in task.source["dataset"]["rows"].items():
                if rows != (published := known.models[model].published_rows.get(split, rows)):
                    print(f"{model}: {split} has {rows} rows, the paper's had {published}; the results say so.")
    except (hub.AssetError, ValueError) as error:
        refuse(str(error))
    return found


def hold_against_published(known: Profile, models: list[str], device: str, fresh: bool, strict: bool) -> dict[str, str]:
    """Measure every intact model whose accuracy was published, and say in words whether it is as published.

    Ends the program with 2 where it is not and ``strict`` asks for it: its assets are not what was published with.
    Returns what was said, by model.
    """
    verdicts = {}
    for model in models:
        if (published := known.models[model].published) is None:
            continue
        print(
            f"{model}: its intact accuracy is measured, once, and held against the published one; on a CPU this can "
            "take many minutes",
            flush=True,
        )
        try:
            measured = runs.intact(tasks.load(known.name, model, device=device), fresh)
        except (hub.AssetError, ValueError) as error:
            refuse(str(error))
        except RuntimeError as error:
            fail(f"{model}: its intact accuracy could not be measured on {device}: {error}")
        verdicts[model] = against_published(**measured, quoted=dataclasses.asdict(published))
        print(f"{model}: intact accuracy {verdicts[model]}", flush=True)
    if device == "cuda":
        torch.cuda.empty_cache()  # the kernels need it
    others = [model for model, verdict in verdicts.items() if not verdict.startswith(AS_PUBLISHED)]
    if others:
        remedy = (
            "name in the profile the `revision` of checkpoint and data set that the published results were made with"
        )
        if strict:
            each = "\n".join(f"  {model}: {verdicts[model]}" for model in others)
            refuse(f"intact accuracy not as published, and --strict is given; nothing was pruned:\n{each}\n{remedy}.")
        print(f"{', '.join(others)}: results cannot be compared with the published ones; {remedy}.", flush=True)
    return verdicts


def fetched_or_said(found: hub.Found) -> hub.Found:
    """What is only looked at, cached; or missing, and the reason is printed."""
    try:
        hub.load_splits(whole := hub.fetch(found))
    except hub.AssetError as error:
        print(f"{error} It is only looked at: the rest runs without it.", flush=True)
        return hub.Found(found.asset, "missing", why=str(error))
    return whole


def assets_of(known: Profile, models: list[str], chosen: list[str]) -> list[hub.Asset]:
    """What the models need of the hub, and what is only looked at if the notebook that looks at it runs."""
    return known.assets(models) + (known.inspected if "data_processing" in chosen else [])


def check_parameters(name: str, parameters: dict[str, Any]) -> None:
    """Refuse parameters that the notebook's cell tagged `parameters` does not declare, or declares of another type.

    papermill only warns of the one and writes whatever it is given; the values themselves are names that the profile
    knows by the time this is called.
    """
    declared = papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))
    for parameter, value in parameters.items():
        if parameter not in declared:
            refuse(f"notebook {name} has no parameter {parameter!r}: name it in the cell tagged `parameters`.")
        kind = declared[parameter]["inferred_type_name"].partition("[")[0]
        if kind != type(value).__name__:
            refuse(f"notebook {name} declares {parameter!r} as {kind}, it is given a {type(value).__name__}: mend one.")


def fingerprint(name: str, parameters: dict[str, Any], device: str, others: list[Any]) -> str:
    """What the notebook's outputs depend on: itself, its parameters, the package, its profile, versions and device; and
    ``others``, such as the commits of what the hub brings."""
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"))
    environment = provenance.environment()
    del environment["commit"]  # the code itself counts
    return provenance.digest(
        [
            [cell["source"] for cell in notebook["cells"]],
            parameters,
            provenance.package_code(),
            (PROFILES / f"{parameters['profile']}.toml").read_text("utf-8"),
            environment,
            device,
            others,
        ]
    )


def stamp_of(profile: str, name: str) -> dict[str, Any]:
    """What is known of the notebook's last finished run; empty where there was none, or where a file that it wrote is
    gone or was altered since."""
    try:
        stamp = json.loads((run_folder(profile) / "stamps" / f"{name}.json").read_text("utf-8"))
        intact = all(digest_of(root() / path) == content for path, content in stamp["written"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return stamp if intact else {}


def digest_of(path: Path) -> str:
    """SHA-256, 16 digits, of a file; empty for JSON, whose seconds and commit differ where the results do not."""
    with path.open("rb") as file:
        return "" if path.suffix == ".json" else hashlib.file_digest(file, "sha256").hexdigest()[:16]


def written_since(profile: str, moment: float) -> list[Path]:
    """Files under the profile's results and figures that were written after ``moment``, in seconds since the epoch."""
    folders = (results_folder(profile), figures_folder(profile))
    return sorted(
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix != UNFINISHED
        and run_folder(profile) not in path.parents
        and path.stat().st_mtime >= moment
    )


def execute(name: str, parameters: dict[str, Any], label: str, wanted: str) -> dict[str, Any]:
    """Run one notebook and stamp it as done; the executed copy is kept. Ends the program with 1 where a cell fails."""
    profile = parameters["profile"]
    copy = run_folder(profile) / "executed" / f"{name}.ipynb"
    unfinished = copy.with_name(f"{name}{UNFINISHED}.ipynb")  # papermill wants the suffix
    copy.parent.mkdir(parents=True, exist_ok=True)
    terminal, began, clock = Terminal(label), time.time() - 0.1, time.perf_counter()  # clocks of disks are coarse
    try:
        papermill.execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            unfinished,
            parameters,
            cwd=ROOT,
            progress_bar=False,
            stderr_file=terminal,
            coalesce_streams=True,  # a progress bar leaves one line in the executed copy
            kernel_manager_class=QuietKernelManager,
            shutdown_kernel="immediate",  # its work is done and on disk; taking Python down by the book takes a second
        )
    except PapermillExecutionError as error:
        terminal.close()
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        os.replace(unfinished, copy)
        fail(
            f"{label} failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}\n"
            f"the executed copy, with the traceback, is {shown(copy)}; finished steps are kept, and once the cause "
            "is mended the same command goes on from them"
        )
    except DeadKernelError:
        terminal.close()
        fail(
            f"{label} ended with its kernel killed, perhaps for want of memory; finished steps are kept and the same "
            f"command goes on from them (the kernel's log is {shown(run_folder(profile) / 'kernel.log')})"
        )
    except NoSuchKernel as error:
        fail(f"{label} needs the Jupyter kernel {error.name!r}, which is not installed: run `make setup`.")
    except RuntimeError as error:
        terminal.close()
        fail(f"{label} could not be run to its end: {str(error) or type(error).__name__}")
    os.replace(unfinished, copy)
    terminal.close()
    stamp = {
        "fingerprint": wanted,
        "parameters": parameters,
        "seconds": round(time.perf_counter() - clock, 1),
        "written": {
            path.relative_to(root()).as_posix(): digest_of(path) for path in [*written_since(profile, began), copy]
        },
    }
    write_json(run_folder(profile) / "stamps" / f"{name}.json", stamp)
    return stamp


def main(arguments: list[str] | None = None) -> int:
    asked = parse(arguments)
    device = asked.device or default_device()
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device):
        refuse(f"device {device} is not there; leave --device and $GNORM_DEVICE out to take what is.")
    profile = choose_profile(asked.profile, device)
    try:
        known = read_profile(profile)
        models = list(known.models) if asked.models is None else names_in("--models", asked.models)
        check_models(profile, models)
    except ValueError as error:
        refuse(str(error))
    chosen = names_in("--only", asked.only)
    for name in chosen:
        if name not in NOTEBOOKS + OPTIONAL:
            refuse(f"notebook {name!r} is not known; choose from {', '.join(NOTEBOOKS + OPTIONAL)}.")
    published = str(Path(asked.published).resolve()) if asked.published else ""
    try:
        curves = [(m, k, c.to_dict()) for m, by in published_curves(published).items() for k, c in by.items()]
    except ValueError as error:
        refuse(str(error))
    parameters = {"profile": profile, "models": models}
    for name in chosen:
        check_parameters(name, parameters)
    chosen = [name for name in NOTEBOOKS + OPTIONAL if name in chosen]
    needed = assets_of(known, models, chosen)
    found = (
        [hub.in_cache(asset) for asset in needed] if asked.list else preflight(profile, known, models, needed, device)
    )
    wanted = {}
    for name in chosen:
        assets = [asset.record() for asset in found if asset.asset in assets_of(known, models, [name])]
        wanted[name] = fingerprint(name, parameters, device, [assets, curves])
    if asked.list:
        for name in chosen:
            print(f"{name:32} {'done' if stamp_of(profile, name).get('fingerprint') == wanted[name] else 'to do'}")
        return 0

    # What the hub brings is in the cache by now: kernels read it there and ask nobody.
    os.environ |= {
        "GNORM_DEVICE": device,
        "GNORM_PUBLISHED": published,
        "HF_HUB_OFFLINE": "1",
        hub.CHECKED: ",".join(asset.commit for asset in found),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "15")
    os.environ["GNORM_KERNEL_LOG"] = str(run_folder(profile) / "kernel.log")
    lock = filelock.FileLock(run_folder(profile) / "run.lock", timeout=0)
    try:
        run_folder(profile).mkdir(parents=True, exist_ok=True)
        with lock:
            verdicts = hold_against_published(known, models, device, asked.fresh, asked.strict)
            about = {"assets": [f.record() for f in found], "intact_accuracy": verdicts}
            return run(profile, known.description, parameters, wanted, asked.fresh, device, about)
    except filelock.Timeout:
        refuse(f"another run is at work in {shown(results_folder(profile))}; wait for it or stop it.")
    except OSError as error:
        fail(
            f"run_all.py: a file in {root()} could not be read or written ({error}); what is finished is kept: "
            "make room or grant access, and the same command goes on, or name another folder in $GNORM_OUTPUT."
        )


def run(
    profile: str,
    description: str,
    parameters: dict[str, Any],
    wanted: dict[str, str],
    fresh: bool,
    device: str,
    about: dict[str, Any],
) -> int:
    """Run what is not done yet, and write the manifest, with what it is to say ``about`` the run, and the report."""
    folder = run_folder(profile)
    for path in results_folder(profile).rglob(f"*{UNFINISHED}*"):
        path.unlink()  # of a run that was killed while it wrote
    if fresh:
        journals = [path for model in parameters["models"] for path in folder.glob(f"journals/{model}/*.jsonl")]
        for path in [*journals, *(folder / "stamps" / f"{name}.json" for name in wanted)]:
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
    index = results_folder(profile) / "report" / "index.html"
    if ran or not index.exists():
        # Notebooks that an earlier run finished belong to the results as much as those of this one.
        stamps = {name: stamp for name in NOTEBOOKS + OPTIONAL if (stamp := stamp_of(profile, name))}
        manifest = {
            "profile": profile,
            "models": parameters["models"],
            "device": device,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - clock, 1),
            "environment": provenance.environment(),
            **about,
            "notebooks": stamps,
        }
        write_json(results_folder(profile) / "manifest.json", manifest)
        report.write_report(profile, description, manifest, {n: folder / "executed" / f"{n}.ipynb" for n in stamps})
    print(f"done in {time.perf_counter() - clock:.0f} s; everything on one page: {shown(index)}")
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
