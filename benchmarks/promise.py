"""How often a budget is broken on texts that nothing was chosen by, over the study's trajectories."""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import numpy as np

from experiments.data import tasks
from experiments.data.profiles import models_for
from experiments.files.paths import results_folder
from experiments.runs.results import load_trajectory
from gnorm import prune
from gnorm.metrics import METRICS, correct_texts
from gnorm.shipping import Own, recover
from gnorm.shipping.choosing import pruned_copy
from gnorm.shipping.promise import Promise
from gnorm.shipping.recovery import SHARES
from gnorm.trajectory import Trajectory, curve, of_texts, solution

METHODS = ("greedy_gnorm", "head_importance")

BUDGETS = (0.01, 0.02)

DRAWS = 50  # of each trajectory: half of its texts to choose by, half to test on

TRAINED_DRAWS = 500  # of each model whose pruned states are trained


def promise() -> Iterator[dict[str, Any]]:
    """By model and budget: the share of draws in which the budget is broken, by more than it and by more than twice it,
    and the heads that go, with a confidence of 0.9 and without one."""
    study = results_folder("study")
    for model in sorted(path.name for path in study.iterdir() if (path / "seed0").is_dir()):
        seeds = sorted(path.name for path in (study / model).glob("seed*") if (path / f"{METHODS[0]}.csv").exists())
        runs = [load_trajectory("study", f"{model}/{seed}", method) for seed in seeds for method in METHODS]
        for budget in BUDGETS:
            generator = np.random.default_rng(0)
            found = [loss(run, budget, generator) for run in runs for _ in range(DRAWS)]
            losses, heads = np.array([one[0] for one in found]), np.array([one[1] for one in found])
            row = {"model": model, "budget": budget, "draws": len(found)}
            for i, name in enumerate(("confidence 0.9", "none")):
                row |= {f"{word}, {name}": share for word, share in beyond(losses[:, i], budget).items()}
                row[f"heads, {name}"] = float(heads[:, i].mean())
            yield row


def beyond(losses: np.ndarray, budget: float) -> dict[str, float]:
    """The shares of draws that lose more than the budget, and more than twice it."""
    return {word: float((losses > times * budget + 1e-12).mean()) for word, times in (("broken", 1), ("twice", 2))}


def loss(run: Trajectory, budget: float, generator: np.random.Generator) -> tuple[list[float], list[int]]:
    """Of one draw: the accuracy lost on the half to test on, and the heads that went, with confidence and without."""
    texts = generator.permutation(run.num_texts)
    chosen, tested = (of_texts(run, half) for half in np.array_split(texts, 2))
    heads = [Promise(budget).last_kept(chosen), solution(chosen, budget)]
    values = curve(tested)
    return [float(values.iloc[0] - values[number]) for number in heads], heads


def trained_promise() -> Iterator[dict[str, Any]]:
    """By model of profile local and budget, for states of head importance that are trained after pruning: the share of
    draws in which the budget is broken, by more than it and by more than twice it, the heads that go, with a confidence
    of 0.9, and the share of draws in which no state is shown to keep it."""
    for model in models_for("single_label_classification", "local", []):
        before, trained = hits_of_trained(model)
        for budget in BUDGETS:
            generator = np.random.default_rng(0)
            draws = [trained_loss(before, trained, budget, generator) for _ in range(TRAINED_DRAWS)]
            losses, heads, kept = (np.array(column) for column in zip(*draws, strict=True))
            row = {"model": model, "budget": budget, "draws": len(draws)} | beyond(losses, budget)
            yield row | {"heads": float(heads.mean()), "refused": 1 - float(kept.mean())}


def hits_of_trained(model: str) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """(text,) bool: the test texts that a model of profile local answers rightly; and by number of pruned heads, those
    of its pruned models, each trained for an epoch on all of the validation split and the intact model's logits."""
    task = tasks.load("local", model, progress=False)
    learnt, tested = task.texts("validation"), task.texts("test")
    run = prune(task.model, task.batches("scoring"), method="head_importance", progress=False)
    own = Own(task.model, task.tokenizer, task.batches("scoring"), learnt, tested, model, model)
    trained, heads = {}, int(run.start.sum())
    for pruned in range(0, heads, max(1, heads // SHARES)):
        smaller = pruned_copy(own, run, pruned)
        recover(smaller, learnt, task.model, progress=False)
        trained[pruned] = correct_texts(smaller, tested).numpy()
    return correct_texts(task.model, tested).numpy(), trained


def trained_loss(
    before: np.ndarray, trained: dict[int, np.ndarray], budget: float, generator: np.random.Generator
) -> tuple[float, int, bool]:
    """Of one draw: the accuracy lost on the half to test on, the heads that went, and whether any state was shown to
    keep the budget on the half to choose by."""
    chosen, tested = np.array_split(generator.permutation(len(before)), 2)

    def holds(pruned: int) -> bool:
        return Promise(budget).holds(METRICS["accuracy"], before[chosen], trained[pruned][chosen], np.empty(0))

    kept = list(takewhile(holds, trained))
    lost = float(before[tested].mean() - trained[kept[-1]][tested].mean()) if kept else 0.0
    return lost, kept[-1] if kept else 0, bool(kept)
