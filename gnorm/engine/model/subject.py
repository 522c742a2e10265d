"""A model as it is read once, at a public door, and handed on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import AttentionBlock, blocks_of, layers_of, mask_of
from .feed_forward import FeedForward, feed_forwards_of
from .problems import Problem, problem_of
from .projections import Units, is_plain


class Subject:
    """Everything that is read of a model: true until its heads change or a module is exchanged.

    model: the one behind ``torch.compile``. Everything else is read at its first use. ``blocks`` raises as
    ``blocks_of`` does; the model has been tried, or is about to be.
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = getattr(model, "_orig_mod", model)  # of a compiled model
        self.own_config = False  # whether no other model shares its configuration
        self.packs: bool | None = None  # what ``packable`` says of it; None until it is asked

    @cached_property
    def modules(self) -> tuple[nn.Module, ...]:
        """All modules, as ``model.modules()`` gives them."""
        return tuple(self.model.modules())

    @cached_property
    def blocks(self) -> tuple[AttentionBlock, ...]:
        """The attention blocks, in the order of the mask's rows."""
        return tuple(blocks_of(self.model))

    @cached_property
    def live(self) -> tuple[AttentionBlock, ...]:
        """The blocks that have heads."""
        return tuple(block for block in self.blocks if block.kept)

    @cached_property
    def layers(self) -> tuple[nn.Module, ...]:
        """The module that owns each block."""
        return tuple(layers_of(self.model))

    @cached_property
    def mask(self) -> Tensor:
        """(layer, head) bool: the heads that are left."""
        return mask_of(self.blocks)

    @cached_property
    def feed_forwards(self) -> tuple[FeedForward, ...]:
        """The feed-forward blocks; raises as ``feed_forwards_of`` does."""
        return tuple(feed_forwards_of(self.model))

    @property
    def units(self) -> tuple[Units, ...]:
        """The attention blocks, then the feed-forward blocks."""
        return *self.blocks, *self.feed_forwards

    @cached_property
    def unit_mask(self) -> Tensor:
        """(layer, head + neuron) bool: the heads that are left of the intact model, then the neurons that there are."""
        return self.unit_table([torch.ones(len(each.kept)) for each in self.units]) > 0

    def unit_rows(self, table: Tensor) -> list[Tensor]:
        """What is each of ``units``' of a table (layer, head + neuron), whose row i holds the heads of attention block
        i and, behind them, the neurons of feed-forward block i: views (head,), then (neuron,)."""
        heads = self.blocks[0].num_heads
        of_neurons = zip(table[:, heads:], self.feed_forwards, strict=False)
        return [*table[: len(self.blocks), :heads], *(row[: len(each.kept)] for row, each in of_neurons)]

    def unit_table(self, values: Sequence[Tensor]) -> Tensor:
        """The table (layer, head + neuron) float64 of ``values``, (kept,) for each of ``units``; -inf elsewhere."""
        neurons = max(len(each.kept) for each in self.feed_forwards)
        shape = max(len(self.blocks), len(self.feed_forwards)), self.blocks[0].num_heads + neurons
        table = torch.full(shape, -torch.inf, dtype=torch.float64)
        for row, each, of_units in zip(self.unit_rows(table), self.units, values, strict=True):
            row[list(each.kept)] = of_units.double()
        return table

    @cached_property
    def problem(self) -> Problem:
        """The problem that the model is for."""
        return problem_of(self.model)

    @cached_property
    def parameter(self) -> Tensor:
        """The first parameter, whose device and dtype are the model's."""
        parameter: Tensor = next(self.model.parameters())
        return parameter

    @cached_property
    def largest_weight(self) -> int:
        """The number of entries of the largest weight of a linear layer."""
        weights: Iterable[Any] = (module.weight for module in self.modules if is_plain(module))
        return max((weight.numel() for weight in weights if weight is not None), default=0)
