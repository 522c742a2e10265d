"""Passes of prepared texts through a model, from the highest cached layer input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from .forward.attention import AbsorbedProjection
from .forward.failures import naming_texts
from .forward.packing import NO_CACHE, LayerInputCache, logits_of, packed_forward
from .forward.padding import PackedTexts
from .model.blocks import layers_of
from .model.sizes import Batch, parameter_of
from .model.state import evaluating
from .texts.batches import Prepared, _inputs_on
from .texts.checks import checked
from .texts.micro_batches import MicroBatch

CACHE_BYTES = 2**30  # the most that the layer-input caches of one model hold together


def try_pass(batch: Batch, model: nn.Module, numbers: Tensor | None = None) -> Tensor:
    """The logits of a batch as it is, all texts together. numbers: (text,) what errors call them.

    Raises as ``prepare`` does, and ``PassError`` where the model fails.
    """
    (one,) = checked([batch], model)
    with evaluating(model), torch.no_grad():
        return logits_of(model, _inputs_on(parameter_of(model).device, one), numbers)


class Forward(Protocol):
    """A micro-batch -> its logits (text, ...), and the projections that the pass absorbed."""

    def __call__(
        self, micro: MicroBatch, cache: LayerInputCache = ...
    ) -> tuple[Tensor, Sequence[AbsorbedProjection]]: ...


@contextmanager
def forwarding(model: nn.Module, prepared: Prepared) -> Iterator[Forward]:
    """For a ``with`` block, the function that passes micro-batches of ``prepared`` through ``model``."""
    if prepared.packing is None:
        yield lambda micro, cache=NO_CACHE: (logits_of(model, micro.inputs, micro.index), ())
        return
    with packed_forward(model, prepared.packing) as forward:

        def guarded(
            micro: MicroBatch, cache: LayerInputCache = NO_CACHE
        ) -> tuple[Tensor, Sequence[AbsorbedProjection]]:
            with naming_texts(model, micro.inputs, micro.index, again=False):
                return forward(micro.inputs, cast(PackedTexts, micro.packed), cache)

        yield guarded


def layer_input_caches(model: nn.Module, prepared: Prepared) -> list[LayerInputCache]:
    """An empty layer-input cache for each micro-batch.

    It is for all layers, or for every second, third ... where all would take more than ``CACHE_BYTES``; for none where
    one layer would, texts go through padded, or layers share a block. A stream has no micro-batch to keep one for, so
    it gets an empty list.
    """
    layers, parameter = len(layers_of(model)), next(model.parameters())
    if prepared.streamed:
        return []
    if prepared.packing is None or prepared.packing.passes != layers:
        return [NO_CACHE] * len(prepared)
    tokens = sum(int(micro.lengths.sum()) for micro in prepared)
    hidden: int = model.config.hidden_size  # type: ignore[union-attr, assignment]
    size = tokens * hidden * parameter.element_size()
    if size > CACHE_BYTES:
        return [NO_CACHE] * len(prepared)
    return [LayerInputCache(range(0, layers, math.ceil(size * layers / CACHE_BYTES))) for _ in prepared]


def with_caches(prepared: Prepared, caches: Sequence[LayerInputCache]) -> Iterator[tuple[MicroBatch, LayerInputCache]]:
    """Each micro-batch with its cache; where there are no caches, with none."""
    if not caches:
        return ((micro, NO_CACHE) for micro in prepared)
    return zip(prepared, caches, strict=True)
