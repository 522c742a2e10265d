"""Derivatives of each text's loss by the masks of heads and neurons, of all layers in one backward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from ..forwarding import passes
from ..model.projections import Units
from ..texts.batches import Prepared
from ..texts.micro_batches import MicroBatch, labels_of


def mask_derivatives(
    prepared: Prepared, blocks: Sequence[Units] | None = None
) -> Iterator[tuple[MicroBatch, list[Tensor]]]:
    """For each micro-batch of this rank: itself, and for every block the (text, kept head) derivatives, by each
    head's mask, of the sum of the terms of each text's loss (``Problem``).

    blocks: the attention blocks if None; feed-forward blocks, whose neurons are their heads, may be among them. The
    mask m_h, at 1, multiplies the context c_h at the input of the output projection. So no mask is needed:
    dL / dm_h = sum over tokens of <c_h, dL / dc_h>. Passes through a shared block share its mask, and so do the choices
    of a text: their derivatives add up. They are zero where a block is not called, or nothing reads what it gives.
    """
    blocks, problem = prepared.subject.blocks if blocks is None else blocks, prepared.subject.problem
    live = [i for i, block in enumerate(blocks) if block.kept]
    calls: list[tuple[int, Tensor]] = []  # the number of a block, and the contexts that it gave in one call

    def record(_: nn.Module, inputs: tuple[Tensor, ...], i: int) -> None:
        calls.append((i, inputs[0].requires_grad_()))

    with passes(prepared, grad=True) as forward, ExitStack() as hooks:
        for i in live:
            hooks.callback(blocks[i].output.register_forward_pre_hook(partial(record, i=i)).remove)
        for micro in prepared.mine if live else ():
            calls.clear()
            logits = forward(micro)[0]  # (text, ...)
            loss = problem.loss_sum(logits, labels_of(micro, logits))
            contexts = [context for _, context in calls]
            reads = loss.requires_grad  # not where nothing reads any context
            gradients = torch.autograd.grad(loss, contexts, allow_unused=True) if reads else [None] * len(calls)
            found = [torch.zeros(len(micro.index), len(block.kept), dtype=torch.float64) for block in blocks]
            for (i, context), gradient in zip(calls, gradients, strict=True):
                if gradient is not None:
                    found[i] += _by_text(context.detach(), gradient, blocks[i], micro).cpu()
            yield micro, found
            prepared.notify(logits, micro)


def _by_text(context: Tensor, gradient: Tensor, block: Units, micro: MicroBatch) -> Tensor:
    """The inner product of contexts and their gradients, for each text and kept head: (text, kept head) float64.

    Both are (text, token, kept * context_dim), or packed: (1, token, ...), and (1, text, ...) for first tokens alone.
    Some feed-forward blocks join the first two axes.
    """
    wide, texts = torch.promote_types(context.dtype, torch.float32), len(micro.index)
    terms = (context.to(wide) * gradient).flatten(0, -2)  # (token, kept * context_dim)
    if len(block.kept) < terms.shape[1]:
        terms = terms.unflatten(-1, (len(block.kept), -1)).sum(-1)
    if micro.packed is not None and len(terms) > texts:
        if terms.device.type == "cpu":  # without padding; elsewhere a launch for each text costs more
            return torch.stack([one.sum(0, dtype=torch.float64) for one in terms.split(micro.lengths.tolist())])
        terms = micro.packed.pad(terms[None])  # (1, token, kept head) -> (text, longest, kept head)
    terms = terms.double()
    return terms.reshape(texts, -1, len(block.kept)).sum(1)
