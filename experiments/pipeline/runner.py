"""A run of the notebooks: what is done is not run again, what is interrupted goes on, all ends in one page."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from gnorm.engine.model.state import default_device
from gnorm.storage.files import delete_unfinished, write_json

from ..analysis.published import published_digests, published_results
from ..data import hub
from ..data.hub import Asset, AssetState
from ..data.profiles import Profile, check_models, read_profile
from ..files import paths, provenance
from ..files.errors import NotebookError, RunError, UsageError
from ..files.locks import locked
from ..files.paths import shown
from ..report import rendering
from ..runs.stamps import fingerprint, read_stamp
from . import execution, jobs, preflight, workers

OF_PUBLISHED = "published_claims"  # the notebook on the published numbers: it runs where --published names their folder
NOT_WRITTEN = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Plan:
    """The settings of a run, checked before anything runs.

    notebooks: those to run, in order. order: all that there are. published: the folder of the authors' result files,
    "" for none. fresh: run finished work again. strict: stop where an intact model is not as accurate as published.
    jobs, dask: how many workers, or which scheduler's, make trajectories before the notebooks run; as many as the
    profile says or the machine has room for, if neither. One worker is the notebooks' own kernels.
    """

    profile: Profile
    models: list[str]
    notebooks: list[str]
    order: tuple[str, ...]
    device: str
    published: str = ""
    fresh: bool = False
    strict: bool = False
    jobs: int | None = None
    dask: str | None = None

    def parameters(self, notebook: str) -> dict[str, Any]:
        """The parameters of a notebook: profile, models, device and, if its parameters cell names it, published."""
        given = {"profile": self.profile.name, "models": self.models, "device": self.device}
        return given | ({"published": self.published} if "published" in execution.declared(notebook) else {})

    def recorded(self, notebook: str) -> dict[str, Any]:
        """The parameters as stamps hold them: of published results their digests by file, wherever the folder is."""
        given = self.parameters(notebook)
        return given | {"published": published_digests(self.published)} if "published" in given else given

    def assets(self, notebooks: Sequence[str]) -> list[Asset]:
        """The assets of the models, and the inspected ones if the notebook that shows them runs."""
        return self.profile.assets(self.models) + (self.profile.inspected if "data_processing" in notebooks else [])


def make_plan(
    order: tuple[str, ...],
    notebooks: Sequence[str] | None,
    profile: str = "auto",
    models: list[str] | None = None,
    device: str | None = None,
    published: str | None = None,
    fresh: bool = False,
    strict: bool = False,
    default: Sequence[str] = (),
    jobs: int | None = None,
    dask: str | None = None,
) -> Plan:
    """The plan that these names and flags ask for; for the profile "auto", the first line printed says which it is.

    notebooks: those that the profile names, if None, or else ``default``. models: all of the profile but the extra
    ones, if None. device: the first accelerator, else the CPU, if None. The others are those of ``Plan``.

    Raises ``UsageError`` for a name that is not known, a device that is not there, published results that cannot be
    read, a notebook that does not declare its parameters, and workers without Dask.
    """
    workers.check(jobs, dask)
    device = device or default_device()
    preflight.check_device(device)
    name = preflight.choose_profile(profile, device)
    folder = str(Path(published).resolve()) if published else ""
    try:
        known = read_profile(name)
        models = known.usual_models if models is None else models
        if notebooks is None:
            notebooks = [*(known.notebooks or default), *([OF_PUBLISHED] if folder else [])]
        check_models(name, models)
        for notebook in notebooks:
            if notebook not in order:
                raise UsageError(f"notebook {notebook!r} is not known; choose from {', '.join(order)}.")
        published_results(folder)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen = [notebook for notebook in order if notebook in notebooks]
    plan = Plan(known, models, chosen, order, device, folder, fresh, strict, jobs, dask)
    for notebook in chosen:
        execution.check_parameters(notebook, plan.parameters(notebook))
    return plan


def done(plan: Plan) -> dict[str, bool]:
    """By name, True for each notebook of the plan that is done; nothing is fetched and nothing is run."""
    wanted = fingerprints(plan, [hub.in_cache(asset) for asset in plan.assets(plan.notebooks)])
    return {name: _is_done(plan.profile.name, name, wanted) for name in plan.notebooks}


def _is_done(profile: str, notebook: str, wanted: Mapping[str, str]) -> bool:
    """True if the notebook's stamp has the ``wanted`` fingerprint; reads every file that the stamp names."""
    return read_stamp(profile, notebook).get("fingerprint") == wanted[notebook]


def fingerprints(plan: Plan, assets: Sequence[AssetState]) -> dict[str, str]:
    """By name, a digest of everything that a notebook's outputs depend on."""
    return {name: _fingerprint(plan, name, plan.recorded(name), assets) for name in plan.notebooks}


def _fingerprint(plan: Plan, notebook: str, recorded: Mapping[str, Any], assets: Sequence[AssetState]) -> str:
    needed = plan.assets([notebook])
    return fingerprint(notebook, recorded, [[each.record() for each in assets if each.asset in needed]])


def run(plan: Plan) -> None:
    """Fetch what the plan needs, run what is not done yet, and write the manifest and the report.

    Raises ``UsageError`` where an asset is missing, another run is at work on the same notebook and model, a worker
    cannot take part, or a strict plan finds an intact model not as published; ``NotebookError`` where a notebook fails;
    ``RunError`` where a job fails, a file cannot be read or written, or an intact model not measured;
    ``KeyboardInterrupt`` where a person interrupts it.
    """
    assets = preflight.bring_assets(plan.profile, plan.models, plan.assets(plan.notebooks), plan.device)
    wanted = fingerprints(plan, assets)
    _tell_kernels(plan, assets)
    try:
        with _held_alone(plan):
            verdicts = preflight.compare_with_published(plan.profile, plan.models, plan.device, plan.fresh, plan.strict)
            records = [each.record() for each in assets]
            run_notebooks(plan, wanted, {"assets": records, "intact_accuracy": verdicts}, _environment(plan, assets))
    except OSError as error:
        what, remedy = f"run_all.py: the run ended in {type(error).__name__} ({error})", "fix that"
        if error.errno in NOT_WRITTEN:
            what = f"run_all.py: a file in {paths.root()} could not be read or written ({error})"
            remedy = "make room or grant access, or name another folder in $GNORM_OUTPUT"
        raise RunError(f"{what}; what is finished is kept: {remedy}, and the same command goes on.") from error


@contextmanager
def _held_alone(plan: Plan) -> Iterator[None]:
    """Hold the locks of every notebook of the plan with every model of the plan, against other runs of the same."""
    profile = plan.profile.name
    with ExitStack() as locks:
        for model in plan.models:
            for notebook in plan.notebooks:
                try:
                    locks.enter_context(locked(profile, "runs", f"{model}/{notebook}", wait=False))
                except filelock.Timeout as error:
                    raise UsageError(
                        f"another run is at work in {shown(paths.results_folder(profile))} on {notebook} with {model}; "
                        "wait for it or stop it."
                    ) from error
        yield


def _environment(plan: Plan, assets: Sequence[AssetState]) -> dict[str, str]:
    """Variables for processes that work for a run: what to read and write, and that the hub is not to be asked."""
    return {
        "GNORM_OUTPUT": str(paths.root().absolute()),
        "GNORM_CACHE": str(paths.cache_folder().absolute()),
        "HF_HUB_OFFLINE": "1",
        hub.CHECKED: ",".join(each.commit for each in assets),
    }


def _tell_kernels(plan: Plan, assets: Sequence[AssetState]) -> None:
    """Set the environment that notebooks' kernels inherit."""
    os.environ |= {
        **_environment(plan, assets),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    os.environ.setdefault("TQDM_MININTERVAL", "0.5" if sys.stderr.isatty() else "15")


def run_notebooks(plan: Plan, wanted: dict[str, str], about: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Run the notebooks whose stamp has not the ``wanted`` fingerprint; then write the manifest and the report.

    With workers, these first make the trajectories that the notebooks ask for. about: what the manifest says of the run
    beside what is known here. environment: variables that workers need. Raises as ``workers.make_jobs`` and
    ``execution.execute`` do.
    """
    profile, clock, ran = plan.profile.name, time.perf_counter(), set[str]()
    altered = False  # whether this run may have written what a notebook that was done reads
    _clear(plan)
    print(f"profile {profile}, models {', '.join(plan.models)}, device {plan.device}", flush=True)
    to_do = [name for name in plan.notebooks if not _is_done(profile, name, wanted)]
    if to_do:
        print(_outlook(profile, to_do), flush=True)
    asked_for = jobs.missing(profile, jobs.asked_for(profile, plan.models, to_do))
    at_once = 1 if plan.dask else plan.jobs or plan.profile.jobs or workers.that_fit(len(asked_for), plan.device)
    if asked_for and (at_once > 1 or plan.dask):
        altered = True
        workers.make_jobs(asked_for, profile, plan.device, environment, None if plan.dask else at_once, plan.dask)
        print(f"{len(asked_for)} trajectories: {time.perf_counter() - clock:.1f} s", flush=True)
    if at_once > 1 and len(to_do) > 1:
        ran |= _side_by_side(plan, wanted, to_do, at_once)
    for name in plan.notebooks:
        if name in ran:
            continue
        if name in to_do or altered or ran:
            ran |= _run_one(plan, wanted, name)
        else:
            print(f"{_label(plan, name)}: unchanged, not run again", flush=True)
    if ran or not paths.report_page(profile).exists():
        with locked(profile, "notebooks", "report"):
            _write_report(plan, round(time.perf_counter() - clock, 1), about)
    print(f"done in {time.perf_counter() - clock:.0f} s; everything on one page: {shown(paths.report_page(profile))}")


def _label(plan: Plan, notebook: str) -> str:
    """The notebook's name behind its place in the order."""
    return f"[{plan.notebooks.index(notebook) + 1}/{len(plan.notebooks)}] {notebook}"


def _run_one(plan: Plan, wanted: Mapping[str, str], notebook: str) -> set[str]:
    """Run a notebook unless it is done; returns its name if it ran. Raises as ``execution.execute`` does."""
    with locked(plan.profile.name, "notebooks", notebook):
        if _is_done(plan.profile.name, notebook, wanted):
            print(f"{_label(plan, notebook)}: unchanged, not run again", flush=True)
            return set()
        label, parameters = _label(plan, notebook), plan.parameters(notebook)
        stamp = execution.execute(notebook, parameters, label, wanted[notebook], plan.recorded(notebook))
        print(f"{label}: {stamp['seconds']:.1f} s", flush=True)
        return {notebook}


def _side_by_side(plan: Plan, wanted: Mapping[str, str], notebooks: Sequence[str], at_once: int) -> set[str]:
    """Run notebooks whose trajectories are made, ``at_once`` at a time; returns the names of those that ran.

    Where one fails, those that run are finished, no other begins, and what it raised is raised.
    """
    ran = set[str]()
    with ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(_run_one, plan, wanted, notebook) for notebook in notebooks]
        try:
            for finished in as_completed(running):
                ran |= finished.result()
        except NotebookError:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            execution.kill_kernels()
            raise
    return ran


def _outlook(profile: str, notebooks: Sequence[str]) -> str:
    """The number of notebooks to run, and the time that they took last time, in a sentence or two. The manifest times
    notebooks alone, not the workers that make trajectories for them."""
    says = f"{len(notebooks)} notebook{'s' if len(notebooks) > 1 else ''} to run; stopped, the same command goes on."
    try:
        last = json.loads(paths.manifest_file(profile).read_text("utf-8"))
        seconds = sum(last["notebooks"][name]["seconds"] for name in notebooks)
    except (OSError, ValueError, KeyError, TypeError):
        return says  # they never ran, or nobody can read how long
    took = f"{max(1, round(seconds / 60))} min (device {last.get('device')})"
    return f"{says} Last time they took {took}, not counting trajectories."


def _clear(plan: Plan) -> None:
    """Delete what killed runs were writing and, for a fresh run, what says that its work is done."""
    profile = plan.profile.name
    delete_unfinished(paths.results_folder(profile))
    delete_unfinished(paths.figures_folder(profile))
    if plan.fresh:
        finished = [
            path
            for model in plan.models
            for folder, kind in (
                (paths.journals_folder(profile, model), "**/*.jsonl"),
                (paths.after_pruning_folder(profile, model), "**/*.json"),
                (paths.results_folder(profile) / model, "seed*/**/*.csv"),  # of repetitions, read where they are there
            )
            for path in folder.glob(kind)
        ]
        for path in [*finished, *(paths.stamp_file(profile, name) for name in plan.notebooks)]:
            with _not_in_use(profile, path):
                path.unlink(missing_ok=True)


@contextmanager
def _not_in_use(profile: str, path: Path) -> Iterator[None]:
    """Hold the lock of the job whose journal or trajectory this is; none for other files."""
    above = {".jsonl": paths.journals_folder(profile, ""), ".csv": paths.results_folder(profile)}
    with ExitStack() as lock:
        if folder := above.get(path.suffix):
            method = path.stem.rpartition("-")[0] or path.stem  # journals have a hash behind
            lock.enter_context(locked(profile, "jobs", f"{path.parent.relative_to(folder).as_posix()}/{method}"))
        yield


def _write_report(plan: Plan, seconds: float, about: dict[str, Any]) -> None:
    """Write the manifest and the report, of earlier runs' notebooks as well: they belong to the same results."""
    profile = plan.profile.name
    stamps = {name: stamp for name in plan.order if (stamp := read_stamp(profile, name))}
    manifest = {
        "profile": profile,
        "models": plan.models,
        "device": plan.device,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "environment": provenance.environment(),
        "processor": provenance.processor(),
        **about,
        "notebooks": stamps,
    }
    write_json(paths.manifest_file(profile), manifest)
    _write_page(plan, manifest)


def write_report_again(plan: Plan) -> Path:
    """Write the report of what is there and run nothing; returns its page.

    The manifest stays as it is, since it says what the results were made with. Raises ``UsageError`` where no run has
    ended, or the manifest cannot be read.
    """
    path = paths.manifest_file(plan.profile.name)
    try:
        manifest = json.loads(path.read_text("utf-8"))
        stamps = {name: read_stamp(plan.profile.name, name) or manifest["notebooks"].get(name) for name in plan.order}
        return _write_page(plan, manifest | {"notebooks": {name: stamp for name, stamp in stamps.items() if stamp}})
    except FileNotFoundError:
        why = "is not there"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"is damaged ({error})"
    raise UsageError(f"{shown(path)} {why}: run `python run_all.py --profile {plan.profile.name}` first.")


def _write_page(plan: Plan, manifest: dict[str, Any]) -> Path:
    """Write the report; of the notebooks in the manifest those have a page whose executed copy is there."""
    profile, stamps = plan.profile.name, manifest["notebooks"]
    copies = {name: paths.executed_file(profile, name) for name in stamps}
    executed = {name: path for name, path in copies.items() if path.exists()}
    stale = [name for name, stamp in stamps.items() if _is_stale(plan, name, stamp)]
    return rendering.write_report(profile, plan.profile.description, manifest, executed, stale)


def _is_stale(plan: Plan, notebook: str, stamp: dict[str, Any]) -> bool:
    """True if the notebook would run again with the parameters that its last run had."""
    models = stamp["parameters"]["models"]
    if not set(models) <= plan.profile.models.keys():
        return True
    alone = dataclasses.replace(plan, models=models, notebooks=[notebook])
    assets = [hub.in_cache(asset) for asset in alone.assets([notebook])]
    recorded = alone.recorded(notebook)
    if "published" in recorded:  # the files that the last run read, whether or not they are here
        recorded |= {"published": stamp["parameters"].get("published")}
    return _fingerprint(alone, notebook, recorded, assets) != stamp["fingerprint"]
