"""Orders of removal of models whose heads are written otherwise and do the same: what a score owes to the writing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from gnorm.criteria.rescaling import PAIRS, factors, imbalance
from gnorm.heads import attention_blocks
from gnorm.trajectory import area, curve

from .. import runs
from ..data import tasks
from ..data.profiles import StudyGrid, read_profile, repetitions

# Value rows times c and output columns by c change the gradient of the value rows, and with it the first three scores.
# Query rows times c and key rows by c cancel in a product of both norms, and in no sum.
MOVED = {"values": ("greedy_gnorm", "gnorm_v", "gnorm_sum"), "keys": ("gnorm_sum",)}
KEPT = {
    "values": ("gnorm_qk", "gnorm_qkvo", "gnorm_weighted", "gnorm_balanced", "head_importance"),
    "keys": ("greedy_gnorm", "gnorm_balanced", "head_importance"),
}
METHODS = (*MOVED["values"], *KEPT["values"])

COLUMNS = ("model", "training", "method", "pair", "deviation", "draw", "rank correlation", "same order", "area", "half")


def variants(profile: str, model: str, grid: StudyGrid) -> Iterator[tuple[str, str, int, int, str]]:
    """(repetition, pair, deviation in hundredths, draw, method) of all runs, with its heads rescaled, of a model that
    the grid names.

    Scores that the pair moves are tried with every deviation of value and output and every draw; those that it leaves
    as they are, and query and key, with the largest deviation and one draw. What all are compared with is run beside
    them, with deviation 0 and draw 0.
    """
    largest = max(grid.deviations)
    for name in repetitions(profile, model)[: grid.rescaled_seeds] if model in grid.rescaled else ():
        for method in METHODS:
            yield name, "values", 0, 0, method
        for pair, moved in MOVED.items():
            for method in moved:
                for deviation in grid.deviations if pair == "values" else [largest]:
                    for draw in range(1, grid.rescaled_draws + 1 if pair == "values" else 2):
                        yield name, pair, deviation, draw, method
            for method in KEPT[pair]:
                yield name, pair, largest, 1, method


def variant(name: str, pair: str, deviation: int, draw: int) -> str:
    """The name of a repetition with its heads rescaled."""
    return f"{name}/{pair}{deviation}/drawn{draw}"


def rescaled_orders(profile: str, models: Sequence[str], device: str | None = None) -> pd.DataFrame:
    """A row for every run of the ``variants`` of the models.

    Columns model, training (the repetition), method, pair, deviation (of log c), draw; rank correlation (Spearman) of
    the steps at which heads go with those of the model as it was trained; same order, 1 or 0; area and half, how much
    larger the area and that up to half of the heads are than those of the model as it was trained. Trajectories that
    are missing are run first. Raises as ``runs.trajectories`` does.
    """
    grid, rows = read_profile(profile).study, []
    for model in models:
        for name, pair, deviation, draw, method in variants(profile, model, grid):
            as_trained, here = variant(name, "values", 0, 0), variant(name, pair, deviation, draw)
            if here == as_trained:
                continue
            found = runs.trajectories(profile, [as_trained, here], [method], device)
            own, other = found[as_trained][method], found[here][method]
            runs.check_trainings(profile, model, {as_trained: own, here: other})
            steps = ({head: step for step, head in enumerate(run.order())} for run in (own, other))
            first, second = (pd.Series(of_run) for of_run in steps)
            rows.append(
                {
                    "model": model,
                    "training": name,
                    "method": method,
                    "pair": pair,
                    "deviation": deviation / 100,
                    "draw": draw,
                    "rank correlation": float(first.corr(second, method="spearman")),
                    "same order": int(own.order() == other.order()),
                    "area": area(curve(other)) - area(curve(own)),
                    "half": area(curve(other), until=0.5) - area(curve(own), until=0.5),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def logits_moved(profile: str, models: Sequence[str], device: str | None = None) -> pd.DataFrame:
    """A row for every pair and model that ``rescaled_orders`` names: of the first training, with the largest deviation
    and the first draw, the largest factor, and the largest change of a logit on the evaluation texts.

    Columns model, pair, factor, texts, change; as trained: the standard deviation over heads of log c, with c the
    factor that would give both projections of the pair one norm. Raises as ``tasks.load`` does.
    """
    grid, rows = read_profile(profile).study, []
    for model in models:
        name = repetitions(profile, model)[0]
        for pair in PAIRS if model in grid.rescaled else ():
            own, other = (
                tasks.load(profile, of, device) for of in (name, variant(name, pair, max(grid.deviations), 1))
            )
            drawn = factors(own.model, max(grid.deviations) / 100, 1)
            with torch.no_grad():
                changes = [
                    (own.model(**batch).logits - other.model(**batch).logits).abs().max()
                    for batch in own.batches("evaluation")
                ]
            largest = float(torch.maximum(drawn, 1 / drawn).max())
            spread = torch.cat([imbalance(block, *PAIRS[pair]) for block in attention_blocks(own.model)]).std()
            texts = own.num_texts("evaluation")
            rows.append((model, pair, largest, texts, max(map(float, changes)), float(spread)))
    return pd.DataFrame(rows, columns=["model", "pair", "factor", "texts", "change", "as trained"])
