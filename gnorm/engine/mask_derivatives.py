"""Derivatives of each text's loss by the masks of heads, of all layers in one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ..heads import AttentionBlock
from .batches import MicroBatch, Prepared, labels_of
from .packing import logits_of
from .problems import problem_of
from .products import FasterLinear
from .state import evaluating


def mask_derivatives(
    model: nn.Module, blocks: Sequence[AttentionBlock], prepared: Prepared
) -> Iterator[tuple[MicroBatch, list[Tensor]]]:
    """For each padded micro-batch of this rank: itself, and for every block the (text, kept head) derivatives, by each
    head's mask, of the sum of the terms of each text's loss (``Problem``).

    The mask is a tensor of ones, one for each text and head, that multiplies the contexts at the input of the output
    projection; passes through a shared block share it, and so do the choices of a text: their derivatives add up.
    """
    live, problem = [block for block in blocks if block.kept], problem_of(model)
    masks: dict[int, Tensor] = {}
    texts = 0  # that are in the pass

    def multiply(_: nn.Module, inputs: tuple[Tensor, ...], i: int) -> tuple[Tensor]:
        context = inputs[0]  # (text, token, kept * context_dim); of choices, (text * choice, token, kept * context_dim)
        if i not in masks:
            masks[i] = context.new_ones(texts, len(live[i].kept)).requires_grad_()
        by_sequence = masks[i].repeat_interleave(len(context) // texts, dim=0)
        return (context * by_sequence.repeat_interleave(live[i].context_dim, dim=1)[:, None],)

    with evaluating(model), ExitStack() as hooks:
        for i, block in enumerate(live):
            hooks.callback(block.output.register_forward_pre_hook(partial(multiply, i=i)).remove)
        for micro in prepared.mine.padded if live else ():
            masks.clear()
            texts = len(micro.index)
            with FasterLinear():
                logits = logits_of(model, micro.inputs)  # (text, ...)
                loss = problem.loss_sum(logits, labels_of(micro, logits))
            gradients = torch.autograd.grad(loss, list(masks.values()), allow_unused=True) if masks else ()
            found = dict(zip(masks, gradients, strict=True))
            rows = iter([found.get(i) for i in range(len(live))])
            yield (
                micro,
                [_derivatives(next(rows) if block.kept else None, len(logits), block) for block in blocks],
            )
            prepared.notify(logits, micro)


def _derivatives(found: Tensor | None, texts: int, block: AttentionBlock) -> Tensor:
    """(text, kept head) float64 on the CPU; zero where a block is not called or nothing reads what it gives."""
    return torch.zeros(texts, len(block.kept), dtype=torch.float64) if found is None else found.double().cpu()
