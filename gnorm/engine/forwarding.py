"""Passes of prepared texts through a model, from the highest cached layer input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from .forward.attention import AbsorbedProjection
from .forward.failures import naming_texts
from .forward.packing import NO_CACHE, LayerInputCache, OnModuleWeights, logits_of, packed_forward
from .forward.padding import PackedTexts
from .forward.products import faster_products
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
def passes(
    prepared: Prepared, grad: bool = False, padded: bool = False, on_weights: OnModuleWeights | None = None
) -> Iterator[Forward]:
    """For a ``with`` block, the function that passes micro-batches of ``prepared`` through its model.

    The model is in eval mode meanwhile, no parameter requires a gradient, and products in fp32 on a CPU go to oneDNN.
    grad: gradients are recorded, of what hooks require them for. padded: the function is called with padded
    micro-batches alone. on_weights: called with the attention weights of packed texts, every token of which then goes
    through all layers.
    """
    subject, packing = prepared.subject, None if padded else prepared.packing
    model = subject.model
    faster = faster_products(subject.parameter, prepared.most_tokens * subject.largest_weight)
    with evaluating(model, subject.modules), faster, torch.set_grad_enabled(grad):
        if packing is None:
            yield lambda micro, cache=NO_CACHE: (logits_of(model, micro.inputs, micro.index), ())
            return
        if on_weights is not None:
            packing = replace(packing, first_token=False, reads="")
        with packed_forward(subject, packing, on_weights) as forward:

            def guarded(
                micro: MicroBatch, cache: LayerInputCache = NO_CACHE
            ) -> tuple[Tensor, Sequence[AbsorbedProjection]]:
                with naming_texts(model, micro.inputs, micro.index, again=False):
                    return forward(micro.inputs, cast(PackedTexts, micro.packed), cache)

            yield guarded


def layer_input_caches(prepared: Prepared) -> list[LayerInputCache]:
    """An empty layer-input cache for each micro-batch.

    It is for all layers, or for every second, third ... where all would take more than ``CACHE_BYTES``; for none where
    one layer would, texts go through padded, or layers share a block. A stream has no micro-batch to keep one for, so
    it gets an empty list.
    """
    subject = prepared.subject
    layers = len(subject.layers)
    if prepared.streamed:
        return []
    if prepared.packing is None or prepared.packing.passes != layers:
        return [NO_CACHE] * len(prepared)
    tokens = sum(int(micro.lengths.sum()) for micro in prepared)
    size = tokens * subject.model.config.hidden_size * subject.parameter.element_size()
    if size > CACHE_BYTES:
        return [NO_CACHE] * len(prepared)
    return [LayerInputCache(range(0, layers, math.ceil(size * layers / CACHE_BYTES))) for _ in prepared]


def with_caches(prepared: Prepared, caches: Sequence[LayerInputCache]) -> Iterator[tuple[MicroBatch, LayerInputCache]]:
    """Each micro-batch with its cache; where there are no caches, with none."""
    if not caches:
        return ((micro, NO_CACHE) for micro in prepared)
    return zip(prepared, caches, strict=True)
