"""Pruning heads and feed-forward neurons together, by what each costs and what the loss says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..criteria.of_loss import unit_importance
from ..engine.model.blocks import AttentionBlock
from ..engine.model.projections import Units, size_of_module
from ..engine.model.sizes import Batch
from ..engine.model.subject import Subject
from ..engine.texts.batches import Prepared
from ..engine.texts.ranks import raising_together
from ..engine.trials.trial import try_out
from ..methods import find_method
from ..metrics import Measure, Metric, find_metric
from ..pruning import Gone, _checked_counts, _environment, _run, _start_mask, _Texts, checked_int
from ..trajectory import Trajectory

UNITS = ("heads", "neurons")

MULTIPLE = 16  # of neurons in a block: what products are fast at


@raising_together
@torch.inference_mode(False)
def prune_units(
    model: nn.Module,
    scoring: Iterable[Batch] | Prepared,
    evaluation: Iterable[Batch] | Prepared | None = None,
    units: Sequence[str] = UNITS,
    metric: str | Measure | Metric | None = None,
    steps: int | None = None,
    block: int | None = None,
    journal: Any = None,
    progress: bool | str = True,
    *,
    process_group: Any = None,
    until: Callable[[Trajectory], bool] | None = None,
) -> Trajectory:
    """Prune ``model`` by heads and blocks of feed-forward neurons and measure it after every step, as ``gnorm.prune``
    does by heads; the model itself is left as it was.

    The score of a unit is its ``head_importance``, the mean over scoring texts of |dL / dm|, divided by the operations
    that it costs (``operations_of``). That of a block of neurons is the sum of their importances by the sum of their
    operations. In every step all are scored afresh, and the lowest goes: a head, or of one layer those ``block``
    neurons that have the lowest scores, in the end as many as are left. The table holds the natural logarithm of the
    score.

    units: "heads", "neurons", or both. block: neurons in a block; if None, the multiple of ``MULTIPLE`` that saves
    about as much as a head does. scoring, evaluation, metric, steps, journal, progress, process_group, until: as of
    ``prune``.

    Of the trajectory, ``start`` and ``mask(pruned_heads)`` are (layer, head + neuron) masks for ``remove_units``, in
    which ``info["heads"]`` columns are heads; ``pruned_heads`` counts heads and neurons that are gone.

    Raises as ``prune`` and ``unit_mask_of`` do, and ``ValueError`` for units that are not known.
    """
    if not units or not {*units} <= {*UNITS}:
        raise ValueError(f"units={units!r} is not known: name some of {', '.join(UNITS)}.")
    row, subject = find_method("head_importance"), Subject(model)
    model, start = subject.model, _start_mask(subject, neurons=True)
    metric = find_metric(metric, model)
    texts = _Texts.of(model, scoring, evaluation, metric, process_group)
    for neurons in (False, True):
        try_out(model, lambda: next(iter(texts.evaluation)).padded[0].inputs, removal=True, neurons=neurons)
    operations = operations_of(subject, texts.scoring)
    heads, sizes = subject.blocks[0].num_heads, None if block is None else checked_int("block", block, 1)
    blocks = [sizes or _block_of(subject, operations, i) for i in range(len(subject.feed_forwards))]
    choice = _Lowest(operations, heads, blocks, tuple(units))
    most = choice.steps(start)
    if steps is not None and checked_int("steps", steps, 0) > most:
        raise ValueError(f"steps={steps} is out of range: this model has {most} heads and blocks of neurons.")
    counts = _checked_counts("head_importance", most, 0, 1, steps, 1)
    info = {"method": "head_importance", **counts, "rescore_every": 1, **_environment(model)}
    info |= {"units": list(units), "heads": heads, "blocks": blocks}
    row = replace(row, title="Importance for each operation", criterion=unit_importance)
    return _run(row, model, start, texts, info, counts, None, journal, progress, process_group, until, choice)


def operations_of(subject: Subject, texts: Prepared) -> Tensor:
    """(layer, head + neuron) float64: the operations that a unit costs for each token, at the mean length of ``texts``;
    a multiplication and an addition are one.

    A head has its rows of query, key and value, its columns of the output projection, and attention to every token; a
    neuron its rows and its column.
    """
    length = float(torch.cat([micro.lengths for micro in texts]).double().mean())

    def cost(of: Units) -> float:
        sides = (size_of_module(part.module)[not part.of_input] * part.rows.shape[1] for part in of.projections)
        return sum(sides) + (2 * length * of.context_dim if isinstance(of, AttentionBlock) else 0)

    return subject.unit_table([torch.full((len(each.kept),), cost(each)) for each in subject.units])


def _block_of(subject: Subject, operations: Tensor, layer: int) -> int:
    """The multiple of ``MULTIPLE`` neurons of a layer that costs about as much as a head does in the mean."""
    heads = subject.blocks[0].num_heads
    of_heads, of_neurons = operations[:, :heads], operations[layer, heads:]
    if not subject.live or not bool(of_neurons.isfinite().any()):
        return MULTIPLE
    each = float(of_heads[of_heads.isfinite()].mean() / of_neurons.max())
    return MULTIPLE * max(1, round(each / MULTIPLE))


@dataclass(frozen=True)
class _Lowest:
    """What goes next: of all heads, and of one block of neurons a layer, that of the lowest score.

    operations: (layer, head + neuron). heads: how many columns they are. blocks: neurons of a block, by layer. Of equal
    scores the lowest (layer, column) goes.
    """

    operations: Tensor
    heads: int
    blocks: Sequence[int]
    units: tuple[str, ...]

    def steps(self, mask: Tensor) -> int:
        """How many steps take all units of ``mask``."""
        neurons = mask[:, self.heads :].sum(1).tolist()
        of_neurons = sum(math.ceil(n / size) for n, size in zip(neurons, self.blocks, strict=False))
        counts = {"heads": int(mask[:, : self.heads].sum()), "neurons": of_neurons}
        return sum(counts[name] for name in {*self.units})

    def __call__(self, importance: Tensor, mask: Tensor) -> tuple[Gone, float]:
        if bool(importance[mask].isnan().any()):
            raise ValueError("a score is NaN, so units cannot be ordered: look for NaN or infinity in the weights.")
        each = (importance / self.operations).log()  # NaN where a unit is gone
        found: list[tuple[float, float, int, list[int]]] = []  # score, gap within the layer, layer, columns
        for layer, left in enumerate(mask):
            columns = left.nonzero()[:, 0]
            if "heads" in self.units:
                found += [(float(each[layer, c]), math.inf, layer, [c]) for c in columns[columns < self.heads].tolist()]
            neurons = columns[columns >= self.heads]
            if "neurons" in self.units and len(neurons):
                size, values = self.blocks[layer], each[layer, neurons]
                order = values.argsort(stable=True)
                block = neurons[order[:size]]
                of_block = (importance[layer, block].sum() / self.operations[layer, block].sum()).log()
                within = _gap(*values[order[size - 1 : size + 1]].tolist()) if len(order) > size else math.inf
                found.append((float(of_block), within, layer, block.tolist()))
        found.sort(key=lambda one: one[0])
        score, within, layer, goes = found[0]
        gap = min(within, _gap(score, found[1][0])) if len(found) > 1 else within
        return [(layer, column, score) for column in goes], gap


def _gap(lower: float, higher: float) -> float:
    """The distance of two logarithms; of those of zero too."""
    return 0.0 if lower == higher else higher - lower
