"""How often a budget is broken on texts that nothing was chosen by, over the study's trajectories."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.files.paths import results_folder
from experiments.runs.results import load_trajectory
from gnorm.shipping.promise import Promise
from gnorm.trajectory import Trajectory, curve, of_texts, solution

METHODS = ("greedy_gnorm", "head_importance")

DRAWS = 50  # of each trajectory: half of its texts to choose by, half to test on


def promise() -> Iterator[dict[str, Any]]:
    """By model and budget: the share of draws in which the budget is broken, by more than it and by more than twice it,
    and the heads that go, with a confidence of 0.9 and without one."""
    study = results_folder("study")
    for model in sorted(path.name for path in study.iterdir() if (path / "seed0").is_dir()):
        seeds = sorted(path.name for path in (study / model).glob("seed*") if (path / f"{METHODS[0]}.csv").exists())
        runs = [load_trajectory("study", f"{model}/{seed}", method) for seed in seeds for method in METHODS]
        for budget in (0.01, 0.02):
            generator = np.random.default_rng(0)
            found = [loss(run, budget, generator) for run in runs for _ in range(DRAWS)]
            losses, heads = np.array([one[0] for one in found]), np.array([one[1] for one in found])
            row = {"model": model, "budget": budget, "draws": len(found)}
            for i, name in enumerate(("confidence 0.9", "none")):
                row[f"broken, {name}"] = float((losses[:, i] > budget + 1e-12).mean())
                row[f"twice, {name}"] = float((losses[:, i] > 2 * budget + 1e-12).mean())
                row[f"heads, {name}"] = float(heads[:, i].mean())
            yield row


def loss(run: Trajectory, budget: float, generator: np.random.Generator) -> tuple[list[float], list[int]]:
    """Of one draw: the accuracy lost on the half to test on, and the heads that went, with confidence and without."""
    texts = generator.permutation(run.num_texts)
    chosen, tested = (of_texts(run, half) for half in np.array_split(texts, 2))
    heads = [Promise(budget).last_kept(chosen), solution(chosen, budget)]
    values = curve(tested)
    return [float(values.iloc[0] - values[number]) for number in heads], heads
