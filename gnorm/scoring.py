"""Criteria: (model, batches) -> (layer, head) scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .engine.backward.gradients import gradient_norms, log_norm_of
from .engine.backward.observation import mean_over_texts, returning_attentions, run_on_contexts, run_packed, run_padded
from .engine.model.blocks import QKV, AttentionBlock
from .engine.model.known_models import plain_attention
from .engine.model.sizes import Batch
from .engine.model.state import attention_implementation, in_use
from .engine.texts.batches import Prepared, prepare, subject_of
from .engine.texts.micro_batches import MicroBatch


class Criterion(Protocol):
    """A function that scores heads: (layer, head) float64, -inf for heads that are gone.

    The model is scored as it is. A criterion that draws at random takes a ``generator`` too, see ``Method.scores``.
    Other options are bound in the row, by ``functools.partial``. A criterion that makes logits shows them to
    ``Prepared.notify``, so that the metric costs no pass of its own.
    """

    def __call__(self, model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor: ...


PROJECTIONS = (*QKV, "output")

# What joins the norms of a head's projections, as logarithms: log ab = log a + log b.
COMBINATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": torch.add,  # the paper's
    "sum": torch.logaddexp,
    "max": torch.maximum,
}


def gnorm_scores(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    projections: Sequence[str] = QKV,
    combine: str = "product",
    weighted: bool = False,
    centred: bool = False,
    parts: Sequence[str] | None = None,
) -> Tensor:
    """G-norm of every head: (layer, head) float64, natural logarithm, -inf where no gradient flows.

    score(h) = log prod_{W in Q, K, V} sum_b || d||Z_b|| / dW_h ||  over the batches b, where Z_b are the logits
    (text, ...) of batch b, padding left out, and W_h the (head_dim, hidden) block of head h (arXiv 2602.04491). Labels
    are not used.

    One backward gives the gradients of all layers. Each batch goes through in micro-batches: since
    d||Z|| = sum_i <z_i, dz_i> / ||Z||, backward from the logits themselves, summed over micro-batches and divided by
    ||Z|| at the end, is the gradient of the whole batch. Logits of zero have no gradient. In fp16 the backward pass is
    scaled by a power of two, lowered until nothing overflows, and the scale is taken out of the logarithm.

    Variants of the paper's score: projections names some of query, key, value and output. combine is a name in
    ``COMBINATIONS``. weighted takes the norm of weight times gradient, elementwise. centred takes the norm of the
    logits less their mean over the classes, which is what a prediction depends on.

    parts: the old name of projections, with a ``DeprecationWarning``.

    Raises ``ValueError`` for unknown projections and an unknown combination, as ``prepare`` and ``attention_blocks``
    do, and where logits or gradients are not finite.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f"combine={combine!r} is not known; choose one of {', '.join(COMBINATIONS)}.")
    if parts is not None:
        warnings.warn("gnorm_scores(parts=) is now called projections=.", DeprecationWarning, stacklevel=2)
        projections = parts
    known = {*projections} <= {*PROJECTIONS}
    if not projections or len(set(projections)) < len(projections) or not known:
        raise ValueError(f"projections={projections!r} must name some of {', '.join(PROJECTIONS)}, each once.")

    def objective(logits: Tensor, micro: MicroBatch) -> Tensor:
        z = micro.mask_padding(logits)
        if not centred:
            return z
        if micro.real is None:
            return z - z.mean(-1, keepdim=True)
        classes = micro.real.expand_as(z).sum(-1, keepdim=True).clamp(min=1)  # of question answering: tokens
        return micro.mask_padding(z - z.sum(-1, keepdim=True) / classes)

    # Taking the mean away is a projection, so that of the logits starts the backward pass of their norm.
    return gradient_norms(
        model, batches, log_norm_of, objective, projections, combine=COMBINATIONS[combine], weighted=weighted
    )


ENTROPY_FORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "exact": lambda a, eps: torch.special.entr(a),  # 0 at a = 0, no eps
    "plain": lambda a, eps: -a * a.log(),  # NaN where an attention weight underflows to 0
    "eps_inside": lambda a, eps: -a * (a + eps).log(),
    "eps_both": lambda a, eps: -(a + eps) * (a + eps).log(),  # what the paper reports
}


def attention_entropy(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    *,
    form: str = "exact",
    eps: float = 1e-7,
) -> Tensor:
    """Attention entropy of every head: (layer, head) float64, nats, -inf for heads that are gone.

    H(h) = mean over texts of mean over query tokens of sum over key tokens of -a log a, padding left out on both
    axes; passes through a shared block are summed. Of a head with several query heads it is their mean. ``form`` and
    ``eps`` name the variants in ``ENTROPY_FORMS``. Holds the attention weights of one layer and one micro-batch at a
    time.

    Raises ``ValueError`` for an unknown form, where the attention modules do not return their weights, where logits are
    not finite, and as ``prepare`` and ``attention_blocks`` do. In the plain form a score may be NaN.
    """
    if form not in ENTROPY_FORMS:
        raise ValueError(f"entropy form {form!r} is not known; choose one of {', '.join(ENTROPY_FORMS)}.")

    prepared = prepare(batches, model)
    subject = prepared.subject
    queries = subject.blocks[0].queries_per_head

    def entropy(weights: Tensor, mask: Tensor | None) -> Tensor:
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))  # (text, query head, query, key)
        terms = ENTROPY_FORMS[form](weights, eps)
        if mask is not None and mask.shape[1] == terms.shape[3]:
            terms = terms.masked_fill(~mask[:, None, None, :], 0)
        return terms.sum(-1).unflatten(1, (-1, queries)).mean(2)  # (text, head, query)

    def register_hook(block: AttentionBlock, call: Callable[[Tensor], None]) -> RemovableHandle:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            at = 2 if block.shared_bias else 1
            if not isinstance(output, tuple) or len(output) <= at or output[at] is None:
                raise ValueError(f"{type(module).__name__} does not return its attention weights; entropy needs them.")
            call(output[at])

        return block.module.register_forward_hook(hook)

    if prepared.packing is not None:
        return mean_over_texts(prepared, run_packed, entropy)
    plain = plain_attention(subject.modules)  # own attention functions keep their own weights
    eager = attention_implementation(subject.model, "eager", subject.modules) if plain else nullcontext()
    with in_use(subject.model), eager, returning_attentions(subject.blocks):
        return mean_over_texts(prepared, partial(run_padded, register_hook=register_hook), entropy)


def activation_energy(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """Mean squared L2 norm of each head's context vectors: (layer, head) float64, -inf for heads that are gone.

    E(h) = mean over texts of mean over tokens of ||c_h||^2, where c_h (context_dim,) is what head h hands to the output
    projection; padding left out, passes through a shared block summed.

    Raises ``ValueError`` where logits are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """
    prepared = prepare(batches, model)
    blocks = prepared.subject.blocks

    def run(prepared: Prepared, on_block: Callable[..., None], after_pass: Any) -> None:
        def on_context(layer: int, context: Tensor, *masks: Any) -> None:  # context: (text, token, head * context_dim)
            by_head = context.double().unflatten(-1, (-1, blocks[layer].context_dim))
            on_block(layer, by_head.square().sum(-1).transpose(1, 2), *masks)

        run_on_contexts(prepared, on_context, after_pass)

    return mean_over_texts(prepared, run, lambda energy, _mask: energy)


def uniform_scores(
    model: nn.Module, batches: Iterable[Batch] | Prepared, *, generator: torch.Generator | None = None
) -> Tensor:
    """Scores drawn uniformly from [0, 1): (layer, head) float64; whatever order they give is a random order."""
    mask = subject_of(model, batches).mask
    return torch.rand(mask.shape, generator=generator, dtype=torch.float64).masked_fill(~mask, -torch.inf)
