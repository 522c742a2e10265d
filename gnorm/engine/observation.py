"""Means over tokens and texts of what heads show in a forward pass: attention weights, contexts."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..heads import AttentionBlock, attention_blocks, table_of
from .batches import MicroBatch, Prepared
from .packing import NOTHING_KEPT, Rectangle, logits_of, not_finite, packed
from .products import FasterLinear
from .state import evaluating

See = Callable[[int, Tensor, Tensor | None], None]  # layer, what is looked at, (text, token) which tokens are real


Done = Callable[[MicroBatch, Tensor], None]  # texts that have passed, and their logits


def in_padded_texts(
    model: nn.Module,
    prepared: Prepared,
    see: See,
    done: Done,
    tap: Callable[[AttentionBlock, Callable[[Tensor], None]], RemovableHandle],
) -> None:
    """Texts of like length at a time, padded; ``tap(block, look)`` hooks ``look`` up to the tensor to look at."""
    mask: Tensor | None = None
    with ExitStack() as hooks:
        for layer, block in enumerate(attention_blocks(model)):
            if block.kept:
                look = partial(lambda tensor, layer: see(layer, tensor, mask), layer=layer)
                hooks.callback(tap(block, look).remove)
        for micro in (rectangle for row in prepared for rectangle in row.rectangles):
            mask = micro.inputs.get("attention_mask")
            mask = None if mask is None else mask.bool()
            done(micro, logits_of(model, micro.inputs))


def weights_in_rows(model: nn.Module, prepared: Prepared, see: See, done: Done) -> None:
    """Rows of tokens without padding; the attention weights are looked at."""
    layers = {block.module: layer for layer, block in enumerate(attention_blocks(model))}

    def look(module: nn.Module, weights: Tensor, of: Rectangle) -> None:
        see(layers[module], weights, None if of.bias is None else of.bias[:, 0, 0] == 0)

    assert prepared.packing is not None
    with packed(model, dataclasses.replace(prepared.packing, first_token=False), look) as forward:
        for micro in prepared:
            assert micro.row is not None
            done(micro, forward(micro.inputs, micro.row, NOTHING_KEPT)[0])


def mean_over_texts(
    model: nn.Module,
    prepared: Prepared,
    go_through: Callable[[nn.Module, Prepared, See, Done], None],
    values: Callable[[Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Mean over texts of the mean over real tokens of ``values`` (text, head, token), for every (layer, head).

    ``go_through`` shows what is looked at once per pass through a block; passes are summed.
    """
    blocks = attention_blocks(model)
    sums = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]
    finite: list[Tensor] = []  # a flag for each micro-batch, on the device

    def see(layer: int, tensor: Tensor, mask: Tensor | None) -> None:
        per_token = values(tensor, mask).double()  # (text, head, token)
        real = torch.ones_like(per_token[:, 0]) if mask is None else mask.double()  # (text, token)
        means = torch.einsum("bht,bt->bh", per_token, real) / real.sum(1, keepdim=True)
        sums[layer] += means.sum(0).cpu()

    def done(micro: MicroBatch, logits: Tensor) -> None:
        finite.append(logits.isfinite().all())
        prepared.show(logits, micro)

    with evaluating(model), FasterLinear(), torch.inference_mode():
        go_through(model, prepared, see, done)
    if not bool(torch.stack(finite).all()):
        raise ValueError(not_finite("a text"))
    return table_of(blocks, [total / prepared.num_texts for total in sums])


@contextmanager
def asked_for_attentions(model: nn.Module) -> Iterator[None]:
    """Attention modules that hand out their weights only when they are asked to are asked to."""
    with ExitStack() as hooks:
        for block in attention_blocks(model):
            signature = inspect.signature(block.module.forward)
            if "output_attentions" in signature.parameters:

                def ask(
                    _: nn.Module, args: Any, kwargs: Any, signature: inspect.Signature = signature
                ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                    call = signature.bind(*args, **kwargs)
                    call.arguments["output_attentions"] = True
                    return call.args, call.kwargs

                hooks.callback(block.module.register_forward_pre_hook(ask, with_kwargs=True).remove)
        yield
