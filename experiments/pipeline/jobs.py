"""The jobs of a run: trajectories, each of which any process can make, and which of them a notebook asks for.

A job has files for inputs and outputs, a lock and a journal. So it can be made anywhere, goes on elsewhere from its
last finished step, and is never made twice at once. What a notebook finds made it reads, what it misses it makes
itself: a wrong row of ``TRAJECTORIES_OF`` costs time and changes no result.
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch

from gnorm.methods import METHODS, MORE_METHODS, names_of
from gnorm.shipping.costs import memory_mb

from .. import runs
from ..analysis import claims
from ..data import tasks
from ..data.checkpoints import RECIPE_VERSION
from ..data.profiles import as_trained, model_spec, models_for, pretrained, read_profile, repetitions
from ..data.tasks import Task
from ..data.training import Recipe
from ..files import provenance
from ..files.errors import UsageError
from ..files.locks import is_held
from ..files.paths import results_folder
from ..runs import layered, rewritten, stability, thresholds
from . import preflight

CODE = provenance.package_code()  # as it was when this process imported it
ALONE = threading.RLock()  # a process makes one job at a time: training draws from torch's one generator


@dataclass(frozen=True)
class Job:
    """A method on a model of a profile, or on a variant of one such as "roberta/seed2/batch8".

    afresh: made by ``runs.run``, which reads its journal where it is finished and runs anew where what it depends on
    has changed. Otherwise a saved trajectory is taken as it is.
    """

    model: str
    method: str
    afresh: bool = False

    def __str__(self) -> str:
        return f"{self.model}/{self.method}"


# A row of TRAJECTORIES_OF: a profile and models -> jobs.
AsksFor = Callable[[str, Sequence[str]], Iterator[Job]]


def _run(*methods: str) -> AsksFor:
    """Jobs that the notebook makes by ``runs.run``, for each model."""
    return lambda _profile, models: (Job(model, method, True) for method in methods for model in models)


def _read(*methods: str) -> AsksFor:
    """Jobs that the notebook reads by ``runs.trajectories``."""
    return lambda _profile, models: (Job(model, method) for model in models for method in methods)


def _repeated(*methods: str) -> AsksFor:
    """Jobs that the notebook reads by ``runs.repeated``."""
    return lambda profile, models: (
        Job(name, method)
        for model in models
        for name in repetitions(profile, model)
        for method in runs.left_in(profile, model, methods)
    )


def _varied(profile: str, models: Sequence[str]) -> Iterator[Job]:
    """Jobs of ``stability.scoring_variants``."""
    grid = read_profile(profile).study
    for model in models:
        if model in grid.varied:
            for *_, name in stability.variants(profile, model, grid):
                yield Job(name, stability.METHOD)


def _layered(profile: str, models: Sequence[str]) -> Iterator[Job]:
    """Jobs of ``layered.layers_and_heads``."""
    for model in models:
        yield from (Job(name, heads) for _, _, heads, name in layered.variants(profile, model))


def _rescaled(profile: str, models: Sequence[str]) -> Iterator[Job]:
    """Jobs of ``rewritten.rescaled_orders``."""
    grid = read_profile(profile).study
    for model in models:
        for name, pair, deviation, draw, method in rewritten.variants(profile, model, grid):
            yield Job(rewritten.variant(name, pair, deviation, draw), method)


def _both(first: AsksFor, second: AsksFor) -> AsksFor:
    return lambda profile, models: (job for asks in (first, second) for job in asks(profile, models))


def _of_task(task: str, asks: AsksFor) -> AsksFor:
    """The same of those models alone that have this task; of none where the profile has no such model."""

    def jobs(profile: str, models: Sequence[str]) -> Iterator[Job]:
        if any(spec.task == task for spec in read_profile(profile).models.values()):
            yield from asks(profile, models_for(task, profile, models))

    return jobs


# What each notebook asks for, with its parameters as they are stored. Notebooks that ask for none have no row.
TRAJECTORIES_OF: dict[str, AsksFor] = {
    "greedy_pruning": _run("greedy_gnorm"),
    "inverse_greedy_gnorm_pruning": _run("inverse_greedy_gnorm"),
    "ae_pruning": _run("attention_entropy", "activation_energy"),
    "ae_inverse_pruning": _run("inverse_attention_entropy", "inverse_activation_energy"),
    "random_pruning": _run("random", "greedy_gnorm"),
    "greedyprune_all_models": _run("greedy_gnorm"),
    "gradient_test": _run("greedy_gnorm"),
    "show_pruning_result": _read(*METHODS),
    "pruning_summary": _read(*METHODS),
    "criteria_comparison": _run("greedy_gnorm", "attention_entropy", "random", *names_of("criterion")),
    "decoder_pruning": _of_task("causal_lm", _run("greedy_gnorm", "head_importance", "random", "inverse_greedy_gnorm")),
    "recovery": lambda profile, models: _run("head_importance")(profile, models[:1]),
    "claims": _repeated(*METHODS, *MORE_METHODS),
    "pretrained": lambda profile, models: _repeated(*claims.methods_of(claims.OF_PRETRAINED))(
        profile, pretrained(profile, models)
    ),
    "cost_quality": _repeated(*METHODS, *MORE_METHODS),
    "ablations": _both(
        _repeated(
            *("greedy_gnorm", *(method for group in claims.factors().values() for method in group)),
            *(method for pairs in claims.schedules().values() for pair in pairs for method in pair),
            *claims.other_criteria(),
        ),
        _layered,
    ),
    "stability": _both(
        _repeated(
            *("greedy_gnorm", "gnorm_once", "head_importance", "attention_entropy", "matched_random", "random"),
            *("gnorm_shuffled_weights", "importance_shuffled_labels"),
        ),
        _varied,
    ),
    "rescaling": _rescaled,
    "sharpness": _of_task("single_label_classification", _repeated("greedy_gnorm")),
    "thresholds": _of_task("single_label_classification", _repeated(*thresholds.METHODS)),
}


def asked_for(profile: str, models: Sequence[str], notebooks: Iterable[str]) -> list[Job]:
    """The jobs that these notebooks ask for, each once, in the order in which they ask."""
    found: dict[str, Job] = {}
    for notebook in notebooks:
        for job in TRAJECTORIES_OF[notebook](profile, models) if notebook in TRAJECTORIES_OF else ():
            if job.afresh or str(job) not in found:
                found[str(job)] = job
    return list(found.values())


def missing(profile: str, jobs: Sequence[Job]) -> list[Job]:
    """Those that are to be made: all but saved ones that are taken as they are.

    One whose model was trained by another recipe is made again: runs are compared on the same weights.
    """
    return [job for job in jobs if job.afresh or not _is_saved(profile, job)]


def _is_saved(profile: str, job: Job) -> bool:
    path, spec = results_folder(profile) / job.model / f"{job.method}.csv", model_spec(profile, job.model)
    if not path.exists() or spec.checkpoint:
        return path.exists()
    try:
        weights = json.loads(path.with_suffix(".json").read_text("utf-8"))["weights"]
        found = weights["recipe_version"], weights["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # reading it says what is wrong with it
    return found == (RECIPE_VERSION, Recipe.read(spec.recipe).identity())


# ---------------------------------------------------------------- in a worker


@dataclass(frozen=True)
class WorkerContext:
    """The run that a worker works for.

    run: the name of the run, whose lock ("runs", run) is held while it lasts. environment: variables to set. threads:
    of torch; as the worker has them, if None. gpus: as CUDA_VISIBLE_DEVICES names them; the worker of name i takes the
    one at i. Where there are none, it takes what it sees. versions: see ``versions``.
    """

    run: str
    profile: str
    device: str
    environment: Mapping[str, str]
    versions: Mapping[str, str]
    threads: int | None = None
    gpus: tuple[str, ...] = ()


def versions() -> dict[str, str]:
    """Versions that have to be the same in every process of a run, since results depend on them."""
    packages = {name: version(name) for name in provenance.PACKAGES}
    return {"gnorm": CODE, "python": platform.python_version(), **packages}


def make(around: WorkerContext, job: Job) -> None:
    """Make one job, unless it is to be taken as it is and was saved meanwhile.

    Raises ``UsageError`` where this process cannot take part in the run, and whatever ``tasks.load`` and ``runs.run``
    raise.
    """
    with ALONE:
        load(around, job.model)
        if missing(around.profile, [job]):
            runs.run(_task(around.run, around.profile, job.model, around.device), job.method, progress=False)


def load(around: WorkerContext, model: str) -> None:
    """Load a model with its texts. It is trained where it never was. Raises as ``make`` does."""
    with ALONE:
        os.environ |= around.environment
        if around.gpus:
            from distributed import get_worker

            os.environ["CUDA_VISIBLE_DEVICES"] = around.gpus[int(get_worker().name) % len(around.gpus)]
        if around.threads:
            torch.set_num_threads(around.threads)
        _refuse_outsiders(around.run, around.profile, around.device, tuple(around.versions.items()))
        _task(around.run, around.profile, model, around.device)


KEPT = 1e9  # bytes of weights that a worker keeps loaded, beside those at work
_LOADED: dict[tuple[str, ...], Task] = {}  # the last used is the last


def _task(run: str, profile: str, model: str, device: str) -> Task:
    """A model with its texts. What is trained once is loaded once, as long as it fits."""
    key = run, profile, as_trained(model), device
    found = _LOADED.pop(key) if key in _LOADED else tasks.load(profile, as_trained(model), device, progress=False)
    _LOADED[key] = found
    while len(_LOADED) > 1 and sum(2**20 * memory_mb(task.model) for task in _LOADED.values()) > KEPT:
        del _LOADED[next(iter(_LOADED))]
    return found.variant(model)


@cache
def _refuse_outsiders(run: str, profile: str, device: str, expected: tuple[tuple[str, str], ...]) -> None:
    """Raise ``UsageError`` where this process would give other results than the run's own, or spoil them."""
    here = versions()
    for name, there in expected:
        if here[name] != there:
            raise UsageError(
                f"a worker on {platform.node()} has another {name} ({here[name]}) than the run ({there}): install the "
                "same and start the workers anew."
            )
    if not is_held(profile, "runs", run):
        raise UsageError(
            f"a worker on {platform.node()} does not see the run's lock in {results_folder(profile)}: it needs the "
            "same folder under the same name, on a file system whose locks reach every machine (docs/scaling.md)."
        )
    preflight.check_device(device)
