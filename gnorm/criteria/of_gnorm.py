"""Variants of G-norm: other objectives, texts instead of batches, heads balanced or beside those of their layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..engine.backward.gradients import gradient_norms
from ..engine.forward.packing import not_finite
from ..engine.model.blocks import table_of
from ..engine.model.sizes import Batch, size_of
from ..engine.texts.batches import Prepared, prepare
from ..engine.texts.micro_batches import MicroBatch, labels_of
from ..engine.texts.streams import batch_of_texts, remade
from ..scoring import gnorm_scores
from .of_loss import loss_terms
from .rescaling import imbalance


def gnorm_by_text(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """G-norm with every text a batch of its own: (layer, head), natural logarithm.

    score(h) = log prod_{W in Q, K, V} sum_x || d||z_x|| / dW_h || over the texts x. The paper's score depends on which
    texts share a batch, since gradients of the same batch cancel; this one does not. Raises as ``gnorm_scores``.
    """
    prepared = prepare(batches, model)

    def texts(given: Iterable[Batch]) -> Iterator[Batch]:
        return ({name: t[i : i + 1] for name, t in batch.items()} for batch in given for i in range(size_of(batch)))

    by_text = prepare(remade(prepared.batches, texts), model).over(prepared.group)
    return gnorm_scores(model, by_text.with_observer(prepared.observer))


def gnorm_balanced(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """G-norm of every head as it is written where its value rows and output columns have the same norm: (layer, head),
    natural logarithm.

    score(h) = gnorm_scores(h) + (log ||W_V,h|| - log ||W_O,h||) / 2, L2 norms, no biases. Value rows times c and output
    columns by c leave what a head does as it is, and take log c from the paper's score; this one stays. Raises as
    ``gnorm_scores``.
    """
    prepared = prepare(batches, model)
    scores = gnorm_scores(model, prepared)
    blocks = prepared.subject.blocks
    shifts = [imbalance(block, "value", "output") if block.kept else torch.zeros(0) for block in blocks]
    return torch.where(scores.isneginf(), scores, scores + table_of(blocks, shifts))


def gnorm_by_layer(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """G-norm less its mean over the heads of the layer: (layer, head), natural logarithm.

    The mean is over heads with a gradient. So what all heads of a layer have in common does not count, and the last
    head of a layer scores 0. Where one block is all there is, as in ALBERT, the order is that of the paper's score.
    Raises as ``gnorm_scores``.
    """
    scores = gnorm_scores(model, batches)
    return scores - scores.where(scores.isfinite(), torch.nan).nanmean(1, keepdim=True).nan_to_num()


def gnorm_cross_entropy(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """G-norm of the loss of each batch, such as its mean cross-entropy, instead of the norm of its logits: (layer,
    head), natural logarithm, -inf where no gradient flows.

    score(h) = log prod_{W in Q, K, V} sum_b || dL_b / dW_h ||. Raises ``ValueError`` for texts without labels, where
    gradients are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """
    prepared = prepare(batches, model)
    problem, terms = prepared.subject.problem, loss_terms(prepared, "cross-entropy")

    def of_loss(logits: Tensor, micro: MicroBatch) -> Tensor:
        return problem.loss_derivative(logits, labels_of(micro, logits))

    return gradient_norms(model, prepared, _log_sizes(prepared, terms), of_loss)


def _log_sizes(prepared: Prepared, counts: Tensor) -> Callable[[Tensor, int], Tensor]:
    """The divisor of ``gradient_norms``: the logarithm of the sum over a batch's texts of ``counts`` (text,)."""
    batch_of = batch_of_texts(prepared.batches)
    sizes = counts.new_zeros(int(batch_of.max()) + 1).index_add(0, batch_of, counts).tolist()

    def log_size(start: Tensor, batch: int) -> Tensor:
        size = math.log(sizes[batch]) if sizes[batch] else -math.inf
        return torch.tensor([size], dtype=torch.float64, device=start.device)

    return log_size


def gnorm_margin(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """G-norm of the margin, the mean over a batch's texts (or tokens, or boundaries of answers) of the difference
    between the two largest logits, instead of the norm of all logits: (layer, head), natural logarithm. Labels are not
    used.

    Raises ``ValueError`` for a model with one logit, and as ``gnorm_scores`` does.
    """

    def of_margin(logits: Tensor, micro: MicroBatch) -> Tensor:
        if logits.shape[-1] < 2:
            raise ValueError("the model gives one number a text, so there is no margin between two of them.")
        if not bool(micro.mask_padding(logits).isfinite().all()):
            raise ValueError(not_finite("a text"))
        best = micro.mask_padding(logits, -torch.inf).topk(2).indices.unbind(-1)
        first, second = (one_hot(at, logits.shape[-1]) for at in best)
        return micro.mask_padding((first - second).to(logits.dtype))

    def log_size(start: Tensor, _: int) -> Tensor:
        return start.double().clamp(min=0).sum().log().reshape(1)  # each margin has one entry of 1, and one of -1

    return gradient_norms(model, batches, log_size, of_margin)
