"""Criteria that are not the paper's, under the same protocol: (model, batches) -> (layer, head) scores.

All follow ``scoring.Criterion``: float64, -inf for heads that are gone, low scores go first. Those of a loss need
``labels`` in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .batches import Batch, Prepared, prepare
from .heads import AttentionBlock, attention_blocks
from .norms import log_norm
from .packing import evaluating
from .scoring import Tally, attention_entropy, gnorm_scores


def head_importance(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """Head importance of Michel, Levy and Neubig (arXiv 1905.10650): (layer, head), not a logarithm.

    I(h) = mean over texts x of |d L(x) / d m_h|, where L is the cross-entropy of a text and m_h, at 1, multiplies the
    context of head h in every pass through its block. The absolute value is taken text by text, so the batches do not
    matter. Not normalised by layer.

    Raises ``ValueError`` for texts without labels, and as ``prepare`` and ``attention_blocks`` do.
    """
    blocks = attention_blocks(model)
    prepared = prepare(batches, model)
    sums = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]
    for derivatives in _mask_derivatives(model, blocks, prepared, on_logits):
        sums = [total + d.abs().sum(0) for total, d in zip(sums, derivatives, strict=True)]
    return _table(blocks, [total / prepared.num_texts for total in sums])


def output_saliency(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """TextPruner's importance of heads: (layer, head), not a logarithm.

    S(h) = 1/N sum over batches b of |sum over w of w dL_b/dw|, with w the columns of head h in the output projection,
    L_b the mean cross-entropy of the batch, N the number of texts. Since the context meets nothing but these columns,
    the inner sum is dL_b/dm_h of ``head_importance``: the two differ in where the absolute value is taken.

    Raises ``ValueError`` for texts without labels, and as ``prepare`` and ``attention_blocks`` do.
    """
    blocks = attention_blocks(model)
    prepared = prepare(batches, model)
    sums = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]
    for derivatives in _mask_derivatives(model, blocks, prepared, on_logits):
        sums = [total + d.mean(0).abs() for total, d in zip(sums, derivatives, strict=True)]
    return _table(blocks, [total / prepared.num_texts for total in sums])


def weight_magnitude(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """Natural logarithm of the L2 norm of a head's weights: (layer, head); rows of query, key and value, columns of
    the output projection, no biases. Looks at no text."""
    blocks = attention_blocks(model)
    norms = []
    for block in blocks:
        rows = [linear.weight for linear in (block.query, block.key, block.value)]
        weights = torch.cat([*rows, block.output.weight.T], dim=1)  # (kept * head_dim, 4 * hidden)
        norms.append(log_norm(weights.detach().reshape(len(block.kept), -1)).cpu())
    return _table(blocks, norms)


def hies(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    alpha: float = 0.5,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """Head importance-entropy score (arXiv 2510.13832, version 2, Eq. 1): (layer, head), from 0 to 1.

    HIES(h) = alpha I'(h) + (1 - alpha) (1 - H'(h)): ``head_importance`` and ``attention_entropy``, each brought to 0
    to 1 by its smallest and largest value over the heads that are left. The entropy is the plain one of the paper's
    section 2, in nats, not divided by the logarithm of the text's length as its Eq. 5 has it. The paper tunes alpha
    by task and compression; here it is 0.5 throughout.

    Raises ``ValueError`` as the two criteria do.
    """
    prepared = prepare(batches, model)
    importance = _rescaled(head_importance(model, prepared, on_logits=on_logits))
    entropy = _rescaled(attention_entropy(model, prepared))
    return (alpha * importance + (1 - alpha) * (1 - entropy)).masked_fill(importance.isneginf(), -torch.inf)


def gnorm_by_text(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """G-norm with every text a batch of its own: (layer, head), natural logarithm.

    score(h) = log prod_{W in Q, K, V} sum_x || d||z_x|| / dW_h || over the texts x. The paper's score depends on which
    texts share a batch, since gradients of the same batch cancel; this one does not. Raises as ``gnorm_scores``.
    """
    prepared = prepare(batches, model)
    texts = {
        int(index): {name: tensor[i : i + 1] for name, tensor in micro.inputs.items()}
        | ({} if micro.labels is None else {"labels": micro.labels[i : i + 1]})
        for micro in prepared
        for i, index in enumerate(micro.index)
    }
    return gnorm_scores(model, prepare([texts[i] for i in range(len(texts))], model), on_logits=on_logits)


def gnorm_cross_entropy(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    generator: torch.Generator | None = None,
    on_logits: Tally | None = None,
) -> Tensor:
    """G-norm of the mean cross-entropy of each batch instead of the norm of its logits: (layer, head), natural
    logarithm, -inf where no gradient flows.

    score(h) = log prod_{W in Q, K, V} sum_b || dL_b / dW_h ||. Raises ``ValueError`` for texts without labels, where
    gradients are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """
    blocks = attention_blocks(model)
    live = [block for block in blocks if block.kept]
    weights = [linear.weight for block in live for linear in (block.query, block.key, block.value)]
    sums = [torch.full((len(block.kept),), -torch.inf, dtype=torch.float64) for block in live for _ in "QKV"]
    with evaluating(model, weights):
        for _, parts in groupby(_losses(model, prepare(batches, model), on_logits) if live else [], itemgetter(0)):
            texts, total = 0, [torch.zeros_like(weight) for weight in weights]
            for _batch, losses in parts:
                texts += len(losses)
                total = [t.add_(g) for t, g in zip(total, torch.autograd.grad(losses.sum(), weights), strict=True)]
            norms = [log_norm(t.view(len(s), -1)).cpu() for t, s in zip(total, sums, strict=True)]
            sums = [torch.logaddexp(s, n - math.log(texts)) for s, n in zip(sums, norms, strict=True)]
    if not all(bool((s < torch.inf).all()) for s in sums):
        raise ValueError("the gradients are not finite: look for NaN or infinity in the weights, or use float32.")
    products = iter([q + k + v for q, k, v in zip(sums[0::3], sums[1::3], sums[2::3], strict=True)])
    return _table(blocks, [next(products) if block.kept else torch.zeros(0) for block in blocks])


def _mask_derivatives(
    model: nn.Module, blocks: Sequence[AttentionBlock], prepared: Prepared, on_logits: Tally | None
) -> Iterator[list[Tensor]]:
    """For every batch, for every block: (text, kept head) derivatives of each text's loss by each head's mask.

    The mask is a tensor of ones, one for each text and head, that multiplies the contexts at the input of the output
    projection; passes through a shared block share it, so their derivatives add up.
    """
    live = [block for block in blocks if block.kept]
    masks: dict[int, Tensor] = {}

    def multiply(_: nn.Module, inputs: tuple[Tensor, ...], i: int) -> tuple[Tensor]:
        context = inputs[0]  # (text, token, kept * head_dim)
        if i not in masks:
            masks[i] = context.new_ones(len(context), len(live[i].kept)).requires_grad_()
        return (context * masks[i].repeat_interleave(live[i].head_dim, dim=1)[:, None],)

    with evaluating(model), ExitStack() as hooks:
        for i, block in enumerate(live):
            hooks.callback(block.output.register_forward_pre_hook(partial(multiply, i=i)).remove)
        for _, parts in groupby(_losses(model, prepared, on_logits) if live else [], itemgetter(0)):
            found = []
            for _batch, losses in parts:
                found.append(torch.autograd.grad(losses.sum(), [masks[i] for i in range(len(live))]))
                masks.clear()
            rows = iter([torch.cat(of_block).double().cpu() for of_block in zip(*found, strict=True)])
            yield [next(rows) if block.kept else torch.zeros(1, 0, dtype=torch.float64) for block in blocks]


def _losses(model: nn.Module, prepared: Prepared, on_logits: Tally | None) -> Iterator[tuple[int, Tensor]]:
    """(batch, (text,) cross-entropy of each text) for texts of one batch and of like length at a time."""
    for micro in prepared:
        if micro.labels is None:
            raise ValueError(f"text {int(micro.index[0])} has no label: this criterion needs `labels` in every batch.")
        logits: list[Tensor] = []
        begin = 0
        for inputs in micro.rectangles():
            z = model(**inputs).logits  # (text, class)
            batch = next(part.batch for part in micro.parts if part.texts.start <= begin < part.texts.stop)
            logits.append(z.detach())
            yield batch, cross_entropy(z, micro.labels[begin : begin + len(z)], reduction="none")
            begin += len(z)
        if on_logits is not None:
            on_logits(torch.cat(logits), micro)


def _rescaled(scores: Tensor) -> Tensor:
    """Brought to 0 to 1 by the smallest and the largest finite value; all zero where these are the same."""
    left = scores[scores.isfinite()]
    if not len(left) or left.max() == left.min():
        return torch.where(scores.isfinite(), 0.0, scores)
    return (scores - left.min()) / (left.max() - left.min())


def _table(blocks: Sequence[AttentionBlock], values: Sequence[Tensor]) -> Tensor:
    """(layer, head) float64 from the values of the heads that are left in each block; -inf elsewhere."""
    scores = torch.full((len(blocks), blocks[0].num_heads), -torch.inf, dtype=torch.float64)
    for row, block, of_block in zip(scores, blocks, values, strict=True):
        row[list(block.kept)] = of_block.double()
    return scores
