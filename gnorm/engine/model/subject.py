"""A model as it is read once, at a public door, and handed on."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from .blocks import AttentionBlock, blocks_of, layers_of, mask_of
from .problems import Problem, problem_of
from .projections import is_plain


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
