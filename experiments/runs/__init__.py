"""A method on a task, with the sizes of its profile: resumed where it was cut off, saved when it is done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from gnorm.heads import head_mask_of
from gnorm.methods import METHODS, find_method
from gnorm.pruning import prune
from gnorm.storage.files import write_json
from gnorm.trajectory import Trajectory

from ..data import tasks
from ..data.profiles import check_models, model_spec, repetitions
from ..data.tasks import Task
from ..files.locks import locked
from ..files.paths import intact_file, journals_folder, results_folder, shown
from ..files.provenance import commit
from .results import load_trajectory, save_trajectory


def intact(task: Task, fresh: bool = False) -> dict[str, Any]:
    """The accuracy of the intact model on its evaluation texts, and how many they are, measured once and kept.

    It is kept in the profile's run folder and measured again where the task's model, data, sizes or engine changed, or
    ``fresh`` asks for it. Raises ``OSError`` where it cannot be written.
    """
    return cached(
        intact_file(task.profile, task.name),
        task.hash,
        lambda: {"accuracy": task.accuracy, "texts": task.num_texts("evaluation")},
        fresh,
    )


def cached(path: Path, of: str, measure: Callable[[], dict[str, Any]], fresh: bool = False) -> dict[str, Any]:
    """Read a cached measurement from ``path``; measure and store it if it was made of something else than ``of``.

    of: a digest of everything that it depends on. Raises ``OSError`` where it cannot be written.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        if not fresh and found["task"] == of:
            return dict(found["measured"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never measured, or not readable
    measured = measure()
    write_json(path, {"task": of, "measured": measured})
    return measured


def run(task: Task, method: str, progress: bool = True) -> Trajectory:
    """Prune ``task``'s model by ``method`` to the last head and save the trajectory among the results of its profile.

    Finished steps go to a journal named after everything the run depends on, so a run that was cut off goes on, a
    finished one is read and not run again, and a change of model, data, sizes or engine starts anew. Where another
    process is at work on the same run, this waits for it.

    Raises ``ValueError`` for an unknown method and whatever ``prune`` raises.
    """
    find_method(method)
    with locked(task.profile, "jobs", f"{task.name}/{method}"):
        return _run(task, method, progress)


def _run(task: Task, method: str, progress: bool) -> Trajectory:
    row = find_method(method)
    folder = journals_folder(task.profile, task.name)
    journal = folder / f"{method}-{task.hash}.jsonl"
    for stale in set(folder.glob(f"{method}-*.jsonl")) - {journal}:
        stale.unlink()
    options: dict[str, Any] = {}
    if row.seeded:  # what is drawn at random is drawn anew for each training
        options |= dataclasses.asdict(task.spec.random) | {"seed": task.spec.recipe.get("seed", 0)}
    if leader := task.spec.layers_of or row.follows:
        options["layers"] = layers_of(task, leader, progress)
    trajectory = prune(
        task.model,
        task.batches(row.scored_on),
        task.batches("evaluation"),
        method=method,
        journal=journal,
        progress=task.name if progress else False,
        **options,
    )
    about = {
        "profile": task.profile,
        "model": task.name,
        "title": task.spec.title,
        "data": task.spec.about_data,
        "scored_on": dataclasses.asdict(getattr(task.spec, row.scored_on)),
        "evaluated_on": dataclasses.asdict(task.spec.evaluation),
        "weights": task.source,
        "published": dataclasses.asdict(task.spec.published) if task.spec.published else None,
        "commit": commit(),
    }
    trajectory = dataclasses.replace(trajectory, info={**about, **trajectory.info})
    save_trajectory(trajectory, task.profile, task.name, method)
    return trajectory


def layers_of(task: Task, leader: str, progress: bool = False) -> list[int]:
    """The layers that heads go from, step by step, where ``leader`` says it: a method, which is run first on the task
    as it is without this, or "in turn", one layer after the other, from the first, a layer without heads passed by."""
    if leader == "in turn":
        left = head_mask_of(task.model).sum(1).tolist()
        return [layer for turn in range(max(left)) for layer, heads in enumerate(left) if turn < heads]
    if task.spec.layers_of:
        task = task.variant("/".join(part for part in task.name.split("/") if not part.startswith("layers")))
    return [layer for layer, _head in run(task, leader, progress).order()]


def trajectories(
    profile: str, models: Sequence[str], methods: Sequence[str] = tuple(METHODS), device: str | None = None
) -> dict[str, dict[str, Trajectory]]:
    """``trajectories(...)[model][method]``: what is among the results of ``profile`` is read, what is not is run first.

    A model is loaded, on ``device``, only where one of its trajectories is missing. Raises ``ValueError`` for an
    unknown profile, model or method before anything runs, and where methods pruned weights of different trainings;
    and whatever ``results.load_trajectory``, ``tasks.load`` and ``run`` raise.
    """
    check_models(profile, models)
    for method in methods:
        find_method(method)
    by_model: dict[str, dict[str, Trajectory]] = {}
    for model in models:
        load = cache(partial(tasks.load, profile, model, device))
        by_model[model] = {method: _read_or_run(profile, model, method, load) for method in methods}
        check_trainings(profile, model, by_model[model])
    return by_model


def check_trainings(profile: str, model: str, found: Mapping[str, Trajectory], task: Task | None = None) -> None:
    """``ValueError`` where runs that are compared, by name, pruned weights of different trainings, or others than those
    of ``task``."""
    weights = {name: run.info.get("weights") for name, run in found.items()}
    if task is not None:
        weights["the checkpoint that is there"] = json.loads(json.dumps(task.source))  # as runs hold it
    first = next(iter(weights), "")
    for name, of_run in weights.items():
        if of_run != weights[first]:
            raise ValueError(
                f"{model} of profile {profile}: {first} and {name} have weights of different trainings: delete "
                f"{shown(results_folder(profile) / model)} and run again."
            )


def _read_or_run(profile: str, model: str, method: str, load: Callable[[], Task]) -> Trajectory:
    """The saved trajectory of a method on a model; it is run first where there is none, on the task of ``load``."""
    try:
        return load_trajectory(profile, model, method)
    except FileNotFoundError:
        return run(load(), method)


def left_in(profile: str, model: str, methods: Sequence[str]) -> list[str]:
    """Those of ``methods`` that the profile does not leave out for the model."""
    return [method for method in methods if method not in model_spec(profile, model).leave_out]


def repeated(
    profile: str, models: Sequence[str], methods: Sequence[str], device: str | None = None
) -> dict[str, dict[str, list[Trajectory]]]:
    """``repeated(...)[model][method]``: the trajectories of a method, one for each training seed of the model.

    Methods that the profile leaves out for a model are left out. What is missing is run first. Raises as
    ``trajectories`` does.
    """
    check_models(profile, models)
    found = {}
    for model in models:
        chosen = left_in(profile, model, methods)
        by_seed = trajectories(profile, repetitions(profile, model), chosen, device).values()
        found[model] = {method: [of_seed[method] for of_seed in by_seed] for method in chosen}
    return found
