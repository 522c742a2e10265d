"""Criteria that look at no labels and no gradients: what heads weigh, and what they hand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..engine.backward.observation import mean_over_texts, run_padded, sums_over_contexts
from ..engine.model.blocks import AttentionBlock, table_of
from ..engine.model.norms import log_norm
from ..engine.model.sizes import Batch
from ..engine.texts.batches import Prepared, prepare, subject_of


def weight_magnitude(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Natural logarithm of the L2 norm of a head's weights: (layer, head); rows of query, key and value, columns of
    the output projection, no biases. Looks at no text."""
    blocks = subject_of(model, batches).blocks
    norms = []
    for block in blocks:
        if not block.kept:
            norms.append(torch.zeros(0))
            continue
        parts = [block.projection(name) for name in ("query", "key", "value", "output")]
        by_head = [part.by_head(part.matrix) for part in parts]  # each (kept, rows of a head, other side)
        alike = [w.reshape(len(w), block.head_dim, w.shape[1] // block.head_dim * w.shape[2]) for w in by_head]
        norms.append(log_norm(torch.cat(alike, dim=2).flatten(1)).cpu())
    return table_of(blocks, norms)


def output_norm(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Mean L2 norm of what each head adds to its layer: (layer, head) float64, not a logarithm.

    N(h) = mean over texts of mean over tokens of ||W_O,h c_h||, with c_h (context_dim,) the context of head h and W_O,h
    its columns of the output projection; padding left out, passes through a shared block summed. It is the criterion
    of AHON (arXiv 2504.03889) without its layer normalisation. Looks at no labels.

    Raises ``ValueError`` where logits are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """

    def register_hook(block: AttentionBlock, call: Callable[[Tensor], None]) -> RemovableHandle:
        matrix = block.projection("output").matrix.double()
        columns = matrix.unflatten(1, (-1, block.context_dim))  # (hidden, kept, context_dim)
        gram = torch.einsum("okd,oke->kde", columns, columns)

        def norms(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            context = inputs[0].double().unflatten(-1, (-1, block.context_dim))  # (text, token, kept, context_dim)
            call(torch.einsum("btkd,kde,btke->bkt", context, gram, context).clamp(min=0).sqrt())

        return block.output.register_forward_pre_hook(norms)

    run = partial(run_padded, register_hook=register_hook)
    return mean_over_texts(prepare(batches, model), run, lambda norms, _mask: norms)


def flap(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Fluctuation of each head's context, weighted, standardised by layer (FLAP, arXiv 2312.11983): (layer, head).

    S(h) = sum over the dimensions d of head h of Var(c_d) ||W_O,d||^2, with Var over all tokens of all texts, unbiased,
    and W_O,d a column of the output projection; then less its mean over the layer's heads and divided by their standard
    deviation. A layer with one head left, or with heads that are all alike, scores 0. Passes through a shared block
    are one sample. Looks at no labels.

    Raises ``ValueError`` where logits are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """
    prepared = prepare(batches, model)
    blocks = prepared.subject.blocks
    widths = [len(block.kept) * block.context_dim for block in blocks]
    zeros = [torch.zeros(3, width, dtype=torch.float64) for width in widths]

    def moments(context: Tensor, mask: Tensor | None) -> Tensor:  # sums of 1, c, c^2
        tokens = (context.flatten(0, 1) if mask is None else context[mask]).double()  # (token, kept * context_dim)
        return torch.stack([torch.ones_like(tokens), tokens, tokens.square()]).sum(1)

    sums = sums_over_contexts(prepared, moments, zeros)
    scores = []
    for block, (count, total, squares) in zip(blocks, sums, strict=True):
        if not block.kept:
            scores.append(torch.zeros(0))
            continue
        variance = (squares - total.square() / count.clamp(min=1)) / (count - 1).clamp(min=1)
        columns = block.projection("output").matrix.double().cpu().square().sum(0)
        by_head = (variance * columns).unflatten(0, (len(block.kept), block.context_dim)).sum(1)
        spread = by_head.std() if len(by_head) > 1 else by_head.new_zeros(())
        scores.append((by_head - by_head.mean()) / spread if spread > 0 else torch.zeros_like(by_head))
    return table_of(blocks, scores)
