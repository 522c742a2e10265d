"""Criteria of the loss: what the loss of labelled texts, the model's own, says about a head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..engine.backward.mask_derivatives import mask_derivatives
from ..engine.model.blocks import table_of
from ..engine.model.projections import Units
from ..engine.model.sizes import Batch
from ..engine.texts.batches import Prepared, by_batch, prepare
from ..engine.texts.ranks import gather, in_order
from ..engine.texts.streams import batch_of_texts
from ..scoring import attention_entropy


def head_importance(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Head importance of Michel, Levy and Neubig (arXiv 1905.10650): (layer, head), not a logarithm.

    I(h) = mean over texts x of |d L(x) / d m_h|, where L is the loss of a text and m_h, at 1, multiplies the
    context of head h in every pass through its block. The absolute value is taken text by text, so batches do not
    matter. Not normalised by layer.

    Raises ``ValueError`` for texts without labels, and as ``prepare`` and ``attention_blocks`` do.
    """
    prepared = prepare(batches, model)
    blocks = prepared.subject.blocks
    return table_of(blocks, _importance(prepared, blocks))


def unit_importance(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """``head_importance`` of heads and of feed-forward neurons, whose activation is their context: (layer,
    head + neuron), -inf where ``gnorm.unit_mask_of`` is false. Raises as both do."""
    prepared = prepare(batches, model)
    subject = prepared.subject
    return subject.unit_table(_importance(prepared, subject.units))


def _importance(prepared: Prepared, blocks: Sequence[Units]) -> list[Tensor]:
    """For each block (kept,) the mean over texts of the absolute derivative of the loss by the mask of a unit."""
    terms = loss_terms(prepared, "head importance")
    return [total / (terms > 0).sum() for total in _sums_over_texts(prepared, blocks, terms, torch.abs)]


def fisher(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Fisher information of the masks of heads (Kwon et al., arXiv 2204.09656): (layer, head), not a logarithm.

    F(h) = sum over texts x of (d L(x) / d m_h)^2, with L and m_h of ``head_importance``: the diagonal of the empirical
    Fisher matrix. Raises as ``head_importance`` does.
    """
    prepared = prepare(batches, model)
    blocks, terms = prepared.subject.blocks, loss_terms(prepared, "Fisher information")
    return table_of(blocks, _sums_over_texts(prepared, blocks, terms, torch.square))


def _sums_over_texts(
    prepared: Prepared, blocks: Sequence[Units], terms: Tensor, of: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """For each block (kept,) the sum over texts of ``of`` (text, kept) the derivatives of their losses by the masks.

    terms: (text,) the terms of each text's loss, which is their mean.
    """
    sums = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]

    def summands() -> Iterator[tuple[int, list[Tensor]]]:
        for micro, derivatives in mask_derivatives(prepared, blocks):
            each = terms[micro.index].clamp(min=1)[:, None]
            yield micro.number, [of(d / each).sum(0) for d in derivatives]

    for of_blocks in in_order(prepared.group, summands()):
        sums = [total + one for total, one in zip(sums, of_blocks, strict=True)]
    return sums


def output_saliency(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """TextPruner's importance of heads: (layer, head), not a logarithm.

    S(h) = 1/N sum over batches b of |sum over w of w dL_b/dw|, with w the columns of head h in the output projection,
    L_b the loss of the batch, N the number of labelled texts. Since the context
    meets nothing but these columns, the inner sum is dL_b/dm_h of ``head_importance``: the two differ in where the
    absolute value is taken.

    Raises ``ValueError`` for texts without labels, and as ``prepare`` and ``attention_blocks`` do.
    """
    prepared = by_batch(prepare(batches, model))
    blocks = prepared.subject.blocks
    terms = loss_terms(prepared, "output saliency")
    batch_of = batch_of_texts(prepared.batches)
    sizes = torch.zeros(int(batch_of.max()) + 1, dtype=torch.long).index_add(0, batch_of, terms)
    sizes = sizes.clamp(min=1)[:, None]  # (batch, 1)
    sums = [torch.zeros(len(sizes), len(block.kept), dtype=torch.float64) for block in blocks]
    for micro, derivatives in mask_derivatives(prepared):
        sums = [total.index_add(0, batch_of[micro.index], d) for total, d in zip(sums, derivatives, strict=True)]
    sums = [torch.stack(of_ranks).sum(0) for of_ranks in zip(*gather(prepared.group, sums), strict=True)]  # 0 elsewhere
    return table_of(blocks, [(total / sizes).abs().sum(0) / (terms > 0).sum() for total in sums])


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


def _rescaled(scores: Tensor) -> Tensor:
    """Brought to 0 to 1 by the smallest and the largest finite value; all zero where these are the same."""
    left = scores[scores.isfinite()]
    if not len(left) or left.max() == left.min():
        return torch.where(scores.isfinite(), 0.0, scores)
    return (scores - left.min()) / (left.max() - left.min())


def loss_terms(prepared: Prepared, purpose: str) -> Tensor:
    """(text,) int64: how many terms the loss of each text has; all labels are checked."""
    prepared.check_labels(purpose)
    problem = prepared.subject.problem

    def terms() -> Tensor:
        found = map(problem.counted_labels_in, prepared.batches)
        return torch.cat([problem.terms_of(labels).cpu() for labels in found if labels is not None])

    return prepared.once(("terms", problem), terms)
