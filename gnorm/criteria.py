"""Criteria that are not the paper's, under the same protocol: (model, batches) -> (layer, head) scores.

All follow ``scoring.Criterion``: float64, -inf for heads that are gone, low scores go first. Those of a loss need
``labels`` in every batch; a text labelled -100 is in no loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from .engine.batches import MicroBatch, Prepared, by_batch, labels_of, prepare
from .engine.checks import NOT_COUNTED, Batch, check_labels
from .engine.gradients import gradient_norms
from .engine.packing import logits_of
from .engine.products import FasterLinear
from .engine.state import evaluating
from .heads import AttentionBlock, attention_blocks, table_of
from .norms import log_norm
from .scoring import attention_entropy, gnorm_scores


def head_importance(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Head importance of Michel, Levy and Neubig (arXiv 1905.10650): (layer, head), not a logarithm.

    I(h) = mean over texts x of |d L(x) / d m_h|, where L is the cross-entropy of a text and m_h, at 1, multiplies the
    context of head h in every pass through its block. The absolute value is taken text by text, so batches do not
    matter. Not normalised by layer.

    Raises ``ValueError`` for texts without labels, and as ``prepare`` and ``attention_blocks`` do.
    """
    blocks = attention_blocks(model)
    prepared = prepare(batches, model)
    counted = _counted(prepared, model, "head importance")
    sums = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]
    for _index, derivatives in _mask_derivatives(model, blocks, prepared):
        sums = [total + d.abs().sum(0) for total, d in zip(sums, derivatives, strict=True)]
    return table_of(blocks, [total / counted.sum() for total in sums])


def output_saliency(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """TextPruner's importance of heads: (layer, head), not a logarithm.

    S(h) = 1/N sum over batches b of |sum over w of w dL_b/dw|, with w the columns of head h in the output projection,
    L_b the mean cross-entropy of the labelled texts of the batch, N the number of labelled texts. Since the context
    meets nothing but these columns, the inner sum is dL_b/dm_h of ``head_importance``: the two differ in where the
    absolute value is taken.

    Raises ``ValueError`` for texts without labels, and as ``prepare`` and ``attention_blocks`` do.
    """
    blocks = attention_blocks(model)
    prepared = by_batch(prepare(batches, model))
    counted = _counted(prepared, model, "output saliency")
    batch_of = torch.empty(prepared.num_texts, dtype=torch.long)
    for micro in prepared:
        for batch_slice in micro.batch_slices:
            batch_of[micro.index[batch_slice.texts]] = batch_slice.batch
    number = int(batch_of.max()) + 1
    sizes = batch_of[counted].bincount(minlength=number).clamp(min=1)[:, None]  # (batch, 1)
    sums = [torch.zeros(len(sizes), len(block.kept), dtype=torch.float64) for block in blocks]
    for index, derivatives in _mask_derivatives(model, blocks, prepared):
        sums = [total.index_add(0, batch_of[index], d) for total, d in zip(sums, derivatives, strict=True)]
    return table_of(blocks, [(total / sizes).abs().sum(0) / counted.sum() for total in sums])


def weight_magnitude(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Natural logarithm of the L2 norm of a head's weights: (layer, head); rows of query, key and value, columns of
    the output projection, no biases. Looks at no text."""
    blocks = attention_blocks(model)
    norms = []
    for block in blocks:
        rows = [linear.weight for linear in (block.query, block.key, block.value)]
        weights = torch.cat([*rows, block.output.weight.T], dim=1)  # (kept * head_dim, 4 * hidden)
        by_head = weights.detach().unflatten(0, (len(block.kept), block.head_dim))
        norms.append(log_norm(by_head.flatten(1)).cpu())
    return table_of(blocks, norms)


def hies(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    alpha: float = 0.5,
) -> Tensor:
    """Head importance-entropy score (arXiv 2510.13832, version 2, Eq. 1): (layer, head), from 0 to 1.

    HIES(h) = alpha I'(h) + (1 - alpha) (1 - H'(h)): ``head_importance`` and ``attention_entropy``, each brought to 0
    to 1 by its smallest and largest value over the heads that are left. The entropy is the plain one of the paper's
    section 2, in nats, not divided by the logarithm of the text's length as its Eq. 5 has it. The paper tunes alpha
    by task and compression; here it is 0.5 throughout.

    Raises ``ValueError`` as the two criteria do.
    """
    prepared = prepare(batches, model)
    importance = _rescaled(head_importance(model, prepared))
    entropy = _rescaled(attention_entropy(model, prepared.with_observer(None)))  # which were shown before
    return (alpha * importance + (1 - alpha) * (1 - entropy)).masked_fill(importance.isneginf(), -torch.inf)


def gnorm_by_text(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
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
    by_text = prepare([texts[i] for i in range(len(texts))], model)
    return gnorm_scores(model, by_text.with_observer(prepared.observer))


def gnorm_cross_entropy(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """G-norm of the mean cross-entropy of each batch instead of the norm of its logits: (layer, head), natural
    logarithm, -inf where no gradient flows.

    score(h) = log prod_{W in Q, K, V} sum_b || dL_b / dW_h ||. Raises ``ValueError`` for texts without labels, where
    gradients are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """
    prepared = prepare(batches, model)
    counted = _counted(prepared, model, "cross-entropy")
    sizes: list[int] = [0] * (1 + max(batch_slice.batch for micro in prepared for batch_slice in micro.batch_slices))
    for micro in prepared:
        for batch_slice in micro.batch_slices:
            sizes[batch_slice.batch] += int(counted[micro.index[batch_slice.texts]].sum())

    def log_size(logits: Tensor, batch: int) -> Tensor:
        size = math.log(sizes[batch]) if sizes[batch] else -math.inf
        return torch.tensor([size], dtype=torch.float64, device=logits.device)

    return gradient_norms(model, prepared, log_size, _of_cross_entropy)


def _counted(prepared: Prepared, model: nn.Module, purpose: str) -> Tensor:
    """(text,) bool: which texts have a label that counts; all labels are checked."""
    check_labels(prepared.batches, model, purpose)
    return torch.cat([batch["labels"] for batch in prepared.batches]).cpu() != NOT_COUNTED


def _of_cross_entropy(logits: Tensor, micro: MicroBatch) -> Tensor:
    """(text, class) derivative of each text's cross-entropy by its logits; 0 for a text that is not counted.

    It is computed in the model's precision, in fp32 at least.
    """
    labels = labels_of(micro, logits.shape[1])
    counted = (labels != NOT_COUNTED)[:, None]
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    return ((probabilities - one_hot(labels.clamp(min=0), logits.shape[1])) * counted).to(logits.dtype)


def _mask_derivatives(
    model: nn.Module, blocks: Sequence[AttentionBlock], prepared: Prepared
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """For some texts at a time, their positions (text,) in the batches as they were given, and for every block the
    (text, kept head) derivatives of each text's cross-entropy by each head's mask.

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
        for micro in prepared.padded if live else ():
            masks.clear()
            with FasterLinear():
                logits = logits_of(model, micro.inputs)  # (text, class)
                exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
                loss = cross_entropy(exact, labels_of(micro, logits.shape[1]), reduction="sum")
            gradients = torch.autograd.grad(loss, list(masks.values()), allow_unused=True) if masks else ()
            found = dict(zip(masks, gradients, strict=True))
            rows = iter([found.get(i) for i in range(len(live))])
            yield (
                micro.index,
                [_derivatives(next(rows) if block.kept else None, len(logits), block) for block in blocks],
            )
            prepared.notify(logits, micro)


def _derivatives(found: Tensor | None, texts: int, block: AttentionBlock) -> Tensor:
    """(text, kept head) float64 on the CPU; zero where a block is not called or nothing reads what it gives."""
    return torch.zeros(texts, len(block.kept), dtype=torch.float64) if found is None else found.double().cpu()


def _rescaled(scores: Tensor) -> Tensor:
    """Brought to 0 to 1 by the smallest and the largest finite value; all zero where these are the same."""
    left = scores[scores.isfinite()]
    if not len(left) or left.max() == left.min():
        return torch.where(scores.isfinite(), 0.0, scores)
    return (scores - left.min()) / (left.max() - left.min())
