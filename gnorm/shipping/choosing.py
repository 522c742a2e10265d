"""The number of heads to remove: as many as a metric allows, a number, or as few as make the model cheap enough."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from ..engine.model.sizes import num_texts
from ..engine.model.state import copy_of
from ..engine.tally import labels_in_order
from ..engine.texts.batches import prepare
from ..metrics import Measure, Metric, find_metric
from ..surgery import remove_units
from ..trajectory import Trajectory, curve, solution
from .costs import flops_of, num_parameters, seconds_of
from .export import Inputs
from .loading import Own
from .promise import Promise, check_range


def _parameters(intact: nn.Module, smaller: nn.Module, _: Inputs) -> float:
    return num_parameters(smaller) / num_parameters(intact)


def _operations(intact: nn.Module, smaller: nn.Module, inputs: Inputs) -> float:
    return flops_of(smaller, inputs) / flops_of(intact, inputs)


def _latency(intact: nn.Module, smaller: nn.Module, inputs: Inputs) -> float:
    """The median over turns of the ratio of seconds."""
    seconds = seconds_of([intact, smaller], inputs, rounds=30, seconds=2.0)
    return float(np.median(seconds[:, 1] / seconds[:, 0]))


@dataclass(frozen=True)
class Costs:
    """The costs of the models along runs with ``own``, as shares of those of ``own.model``.

    Operations and latency are those of one forward pass of the first batch of ``own.choosing``.
    """

    own: Own
    inputs: Inputs

    @classmethod
    def of(cls, own: Own) -> Costs:
        """Raises as ``prepare`` does."""
        first = next(prepare(own.choosing[:1], own.model).padded)
        return cls(own, first.inputs)

    def share(self, run: Trajectory, pruned: int, cost: str) -> float:
        """The share that is left of ``cost``, a budget of a cost in ``BUDGETS``, in a state of a run."""
        return self.shares(pruned_copy(self.own, run, pruned), [cost])[cost]

    def shares(self, model: nn.Module, costs: Iterable[str]) -> dict[str, float]:
        """The shares of ``costs`` that ``model`` takes."""
        measures = {name: BUDGETS[name].cost for name in costs}
        return {name: measure(self.own.model, model, self.inputs) for name, measure in measures.items() if measure}


def pruned_copy(own: Own, run: Trajectory, pruned: int) -> Any:
    """A copy of ``own.model`` without the first ``pruned`` heads, or heads and neurons, of the run."""
    model = copy_of(own.model)
    remove_units(model, run.mask(pruned))
    return model


def along(own: Own, run: Trajectory) -> pd.DataFrame:
    """Measure what pruning costs and saves: a row for each of 13 states of the run, evenly spread, ends included.

    Columns: pruned_heads; the run's metric by its name, on the texts to choose by; parameters, operations and latency,
    fractions of the intact model's, see ``Costs``. Latency is measured, the two models in turns.
    """
    values, costs = curve(run), Costs.of(own)
    chosen = np.unique(np.linspace(0, len(values) - 1, 13).round().astype(int))
    rows = []
    for pruned in values.index[chosen]:
        model = pruned_copy(own, run, int(pruned))
        row = {"pruned_heads": int(pruned), run.metric.name: float(values[pruned])}
        rows.append(row | costs.shares(model, BUDGETS))
    return pd.DataFrame(rows)


def _by_metric(own: Own, run: Trajectory, budget: float, confidence: float | None) -> int:
    if confidence is not None:
        return Promise(budget, confidence).last_kept(run)
    check_range(run.metric, budget)
    return solution(run, budget)


def _by_number(own: Own, run: Trajectory, budget: float, _: float | None) -> int:
    states = curve(run).index
    if run.gone is not None:
        raise ValueError(f"heads={budget:g} is for heads alone, and neurons went too: give another budget.")
    if budget not in states:
        raise ValueError(f"the run has no state with {budget:g} heads removed: give one of 0 to {states[-1]}.")
    return int(budget)


def _by_cost(cost: str, own: Own, run: Trajectory, budget: float, _: float | None) -> int:
    """The fewest heads whose removal brings ``cost`` down to the share ``budget``; found by bisection."""
    _check_share(cost, budget)
    states, costs = curve(run).index.tolist(), Costs.of(own)
    at = bisect_left(states, True, key=lambda pruned: costs.share(run, pruned, cost) <= budget)
    if at == len(states):
        left = costs.share(run, states[-1], cost)
        whole, units = states[-1] == int(run.start.sum()), "heads" if run.gone is None else "heads and neurons"
        raise ValueError(
            f"with {'all' if whole else states[-1]} {units} removed the model still has {left:.0%} of the {cost}, more "
            f"than {budget:.0%}: give a larger share{', or prune more' * (not whole)}."
        )
    return int(states[at])


def _check_share(cost: str, budget: float) -> None:
    if not 0 < budget <= 1:
        raise ValueError(f"{cost}={budget:g} is out of range: it is a share of the intact model's, 0.8 for 80 %.")


def _until_broken(own: Own, budget: float, confidence: float | None, metric: Metric, epochs: int) -> Until | None:
    if confidence is None:
        check_range(metric, budget)
        return None
    promise = Promise(budget, confidence)
    texts, shares = (own.choosing[1::2], 4) if epochs else (own.choosing, 2)
    promise.check(metric, num_texts(texts), shares)
    if metric.of_class is not None:
        promise.check_classes(metric, labels_in_order(prepare(texts, own.model)).numpy())
    return Promise(FURTHER * budget, confidence).broken if epochs else promise.broken


def _until_cheap(cost: str, own: Own, budget: float, *_: Any) -> Until | None:
    _check_share(cost, budget)
    costs = Costs.of(own)
    return lambda run: costs.share(run, int(curve(run).index[-1]), cost) <= budget


def _never(cost: str, own: Own, budget: float, *_: Any) -> None:
    _check_share(cost, budget)


def _promised(budget: float, metric: Metric, confidence: float | None) -> str:
    if confidence is None:
        return (
            f"as many went as keep the {metric.name} on the texts to choose by within {budget:.4g} of the intact "
            "model's, which promises nothing of other texts"
        )
    return f"as many went as keep a promise: {Promise(budget, confidence).says(metric)}"


FURTHER = 5  # budgets that a run loses before what is left is trained, which brings some of that back

Until = Callable[[Trajectory], bool]

Cost = Callable[[nn.Module, nn.Module, Inputs], float]  # (intact, smaller, inputs of a pass) -> share, 1 for as much


@dataclass(frozen=True)
class Budget:
    """A row of ``BUDGETS``: how a budget becomes a number of heads, and what a terminal and the model card say of that.

    choose: (own, run, budget, confidence) -> how many go. help: of the command's flag. says: (budget, metric,
    confidence) -> a clause. until: (own, budget, confidence, metric, epochs) -> what ends a run once the number is
    known, None where the whole run is needed. cost: of which the budget is a share, if it is of one. flag: of the
    command, if it is not the name. kind: of the number.
    """

    choose: Callable[[Own, Trajectory, float, float | None], int]
    help: str
    says: Callable[[float, Metric, float | None], str]
    until: Callable[[Own, float, float | None, Metric, int], Until | None] = lambda *_: None
    cost: Cost | None = None
    flag: str = ""
    kind: Callable[[str], float] = float


def _of_cost(name: str, what: str, cost: Cost, **of_row: Any) -> Budget:
    return Budget(
        partial(_by_cost, name),
        f"as few heads as leave this share of the {what}, such as 0.8",
        lambda budget, *_: f"as few went as bring the {what} down to {budget:.4g} of the intact model's",
        cost=cost,
        **of_row,
    )


BUDGETS: dict[str, Budget] = {
    "metric": Budget(
        _by_metric,
        "as many heads as can go while the metric gets worse by less than N; the default, with 0.01",
        _promised,
        _until_broken,
        flag="budget",
    ),
    "heads": Budget(_by_number, "N heads", lambda budget, *_: f"that number was given, {budget:g}", kind=int),
    "parameters": _of_cost("parameters", "parameters", _parameters, until=partial(_until_cheap, "parameters")),
    "operations": _of_cost(
        "operations", "operations of a forward pass", _operations, until=partial(_until_cheap, "operations")
    ),
    "latency": _of_cost("latency", "measured time of a forward pass", _latency, until=partial(_never, "latency")),
}


def choose(own: Own, run: Trajectory, budget: float = 0.01, by: str = "metric", confidence: float | None = 0.9) -> int:
    """The number of heads that a budget lets go, of the states of a run of ``prune`` with ``own``.

    by: what the budget is of. "metric": how much worse the run's metric may become; as many heads as keep this
    ``Promise`` with ``confidence``. With None, the largest number whose metric on the texts to choose by is within the
    budget, which promises nothing of other texts. "heads": their number. "parameters", "operations", "latency": the
    share of the intact model's that may remain, 0.8 for 80 %; as few heads as bring it there. Operations and latency
    are those of a forward pass of the first batch to choose by; latency is measured, so it differs from time to time.

    Raises ``ValueError`` for an unknown ``by``, for a budget out of range, for a share that no state comes down to, and
    where the texts to choose by are too few for the promise.
    """
    return _row(by).choose(own, run, budget, confidence)


def until_known(
    own: Own,
    budget: float = 0.01,
    by: str = "metric",
    confidence: float | None = 0.9,
    metric: str | Measure | Metric | None = None,
    epochs: int = 0,
) -> Until | None:
    """What ends a run of ``prune`` with ``own`` as soon as ``choose`` has its answer: its ``until``.

    Arguments as of ``choose``; metric: of the run; epochs: of training what is left, as of ``ship``. None where the
    whole run is needed. Raises as ``choose`` and ``find_metric`` do, before anything long begins.
    """
    return _row(by).until(own, budget, confidence, find_metric(metric, own.model), epochs)


def _row(by: str) -> Budget:
    if by not in BUDGETS:
        raise ValueError(f"by={by!r} is not known: choose one of {', '.join(BUDGETS)}.")
    return BUDGETS[by]
