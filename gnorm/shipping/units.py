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
from ..pruning import Gone, _checked_counts, _choose, _environment, _run, _start_mask, _Texts, checked_int, distance
from ..trajectory import Trajectory

UNITS = ("heads", "neurons")

MULTIPLE = 16  # of neurons in a block: what products are fast at

HEADS = 2  # that a block costs about as much as


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
    """As ``gnorm.prune``, by heads and blocks of feed-forward neurons: in every step all are scored afresh, and the
    head, or block of one layer, with the lowest score goes.

    The score is the natural logarithm of ``head_importance``, of a block the root of the sum of squares, divided by the
    operations that it saves (``operations_of``). A head's derivative is the sum of those of its dimensions; that of a
    block is not taken, for which neurons are in it follows from the scores. A block holds the ``block`` neurons of its
    layer with the lowest scores; if None, as many as cost about what ``HEADS`` heads do, a multiple of ``MULTIPLE``; at
    the end those that are left. units: "heads", "neurons", or both. The other arguments are those of ``prune``.

    Of the trajectory, ``start`` and ``mask(pruned_heads)`` are (layer, head + neuron) masks for ``remove_units``, in
    which ``info["heads"]`` columns are heads; ``pruned_heads`` counts both.

    Raises as ``prune`` and ``unit_mask_of`` do, and ``ValueError`` for units that are not known.
    """
    if not units or not {*units} <= {*UNITS}:
        raise ValueError(f"units={units!r} is not known: name some of {', '.join(UNITS)}.")
    row, subject = find_method("head_importance"), Subject(model)
    model, start = subject.model, _start_mask(subject, neurons=True)
    texts = _Texts.of(model, scoring, evaluation, find_metric(metric, model), process_group)
    for neurons in (False, True):
        try_out(model, lambda: next(iter(texts.evaluation)).padded[0].inputs, removal=True, neurons=neurons)
    lowest = _Lowest.of(subject, texts.scoring, units, None if block is None else checked_int("block", block, 1))
    most = sum(math.ceil(int(group.sum()) / size) for group, size in lowest.groups(start))
    counts = _checked_counts("head_importance", most, 0, 1, steps, 1)
    info = {"method": "head_importance", **counts, "rescore_every": 1, **_environment(model)}
    info |= {"units": [*units], "heads": lowest.heads, "blocks": lowest.blocks}
    row = replace(row, title="Importance for each operation", criterion=unit_importance)
    return _run(row, model, start, texts, info, journal, progress, process_group, until, lowest)


def operations_of(subject: Subject, texts: Prepared) -> Tensor:
    """(layer, head + neuron) float64: the multiplications and additions that a unit costs for each token, at the mean
    length of ``texts``: by its rows and columns, and those of a head in attention to every token."""
    length = float(torch.cat([micro.lengths for micro in texts]).double().mean())

    def cost(of: Units) -> float:
        sides = (size_of_module(part.module)[not part.of_input] * part.rows.shape[1] for part in of.projections)
        return sum(sides) + (2 * length * of.context_dim if isinstance(of, AttentionBlock) else 0)

    return subject.unit_table([torch.full((len(each.kept),), cost(each)) for each in subject.units])


@dataclass(frozen=True)
class _Lowest:
    """What goes next: the head or, of one layer, the block of neurons with the lowest score; of equal ones the head,
    then the lowest layer. operations: (layer, head + neuron). heads: how many columns they are. blocks: neurons of a
    block, by layer."""

    operations: Tensor
    heads: int
    blocks: list[int]
    units: Sequence[str]

    @classmethod
    def of(cls, subject: Subject, texts: Prepared, units: Sequence[str], block: int | None) -> _Lowest:
        operations, heads = operations_of(subject, texts), subject.blocks[0].num_heads
        of_heads = operations[:, :heads]
        each = float(of_heads[of_heads.isfinite()].mean().nan_to_num()) / MULTIPLE  # 0 without heads
        of_neurons = [max([1.0, *row.tolist()]) for row in operations[: len(subject.feed_forwards), heads:]]
        blocks = [block or MULTIPLE * max(1, round(HEADS * each / one)) for one in of_neurons]
        return cls(operations, heads, blocks, units)

    def groups(self, mask: Tensor) -> list[tuple[Tensor, int]]:
        """The heads of ``mask``, and the neurons of each layer, as masks; and how many of them go together."""
        of_heads, layers = torch.arange(mask.shape[1]) < self.heads, torch.arange(len(mask))[:, None]
        heads, neurons = (name in self.units for name in UNITS)
        found = [(mask & of_heads & heads, 1)]
        found += [(mask & ~of_heads & neurons & (layers == i), size) for i, size in enumerate(self.blocks)]
        return [(group, size) for group, size in found if group.any()]

    def __call__(self, importance: Tensor, mask: Tensor) -> tuple[Gone, float]:
        each = (importance / self.operations).log()  # NaN where a unit is gone
        chosen = [_choose(each, group, size, highest_first=False) for group, size in self.groups(mask)]
        of_units = [torch.tensor([score for *_, score in units], dtype=torch.float64) for units, _ in chosen]
        # The sum of a block's derivatives, of one size and random signs, is about the root of their squares' sum.
        scores = [float((2 * logs).logsumexp(0)) / 2 - math.log(len(logs)) for logs in of_units]  # of equal operations
        first, *others = sorted(range(len(scores)), key=scores.__getitem__)
        gaps = [chosen[first][1], *(distance(scores[first], scores[other]) for other in others[:1])]
        return [(layer, column, scores[first]) for layer, column, _ in chosen[first][0]], min(gaps)
