"""Variants of G-norm: other objectives, texts instead of batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ..engine.batches import MicroBatch, Prepared, labels_of, prepare
from ..engine.checks import NOT_COUNTED, Batch
from ..engine.gradients import gradient_norms
from ..engine.packing import not_finite
from ..scoring import gnorm_scores
from .of_loss import counted_labels


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
    counted = counted_labels(prepared, model, "cross-entropy")
    sizes: list[int] = [0] * (1 + max(batch_slice.batch for micro in prepared for batch_slice in micro.batch_slices))
    for micro in prepared:
        for batch_slice in micro.batch_slices:
            sizes[batch_slice.batch] += int(counted[micro.index[batch_slice.texts]].sum())

    def log_size(logits: Tensor, batch: int) -> Tensor:
        size = math.log(sizes[batch]) if sizes[batch] else -math.inf
        return torch.tensor([size], dtype=torch.float64, device=logits.device)

    return gradient_norms(model, prepared, log_size, _of_cross_entropy)


def gnorm_margin(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """G-norm of the margin, the mean over a batch's texts of the difference between the two largest logits, instead of
    the norm of all logits: (layer, head), natural logarithm. Labels are not used.

    Raises ``ValueError`` for a model with one logit, and as ``gnorm_scores`` does.
    """

    def of_margin(logits: Tensor, _: MicroBatch) -> Tensor:
        if logits.shape[1] < 2:
            raise ValueError("the model gives one number a text, so there is no margin between two of them.")
        if not bool(logits.isfinite().all()):
            raise ValueError(not_finite("a text"))
        first, second = (one_hot(at, logits.shape[1]) for at in logits.topk(2).indices.unbind(1))
        return (first - second).to(logits.dtype)

    def log_size(logits: Tensor, _: int) -> Tensor:
        return torch.tensor([math.log(len(logits))], dtype=torch.float64, device=logits.device)

    return gradient_norms(model, batches, log_size, of_margin)


def _of_cross_entropy(logits: Tensor, micro: MicroBatch) -> Tensor:
    """(text, class) derivative of each text's cross-entropy by its logits; 0 for a text that is not counted.

    It is computed in the model's precision, in fp32 at least.
    """
    labels = labels_of(micro, logits.shape[1])
    counted = (labels != NOT_COUNTED)[:, None]
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    return ((probabilities - one_hot(labels.clamp(min=0), logits.shape[1])) * counted).to(logits.dtype)
