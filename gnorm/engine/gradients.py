"""Gradients of query, key and value weights, batch by batch, of all layers in one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ..heads import AttentionBlock, attention_blocks, head_mask_of, layers_of, table_of
from ..norms import log_norm
from .batches import Forward, MicroBatch, Part, Prepared, by_batch, forwarding, prepare
from .checks import Batch
from .products import FasterLinear, product
from .state import evaluating


def logits_themselves(logits: Tensor, micro: MicroBatch) -> Tensor:
    """What the backward pass of the norm of the logits starts from, times that norm."""
    return logits


def gradient_norms(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    log_divisor: Callable[[Tensor, int], Tensor],
    cotangent: Callable[[Tensor, MicroBatch], Tensor] = logits_themselves,
) -> Tensor:
    """log prod_{W in Q, K, V} sum_b || G_b / d_b || over the rows of W that are a head's: (layer, head) float64.

    G_b is the gradient of batch b that ``gradients_by_batch`` gives for ``cotangent``; ``log_divisor`` (logits, number
    of the batch) -> (1,) float64 gives log d_b. A batch with d_b = 0 has no gradient. Heads that are gone, and those
    where nothing flows, score -inf. Raises ``ValueError`` where gradients are not finite, and as ``prepare`` and
    ``attention_blocks`` do.
    """
    blocks = attention_blocks(model)
    live = [block for block in blocks if block.kept]
    heads = [len(block.kept) for block in live for _ in "QKV"]
    sums = torch.tensor(-torch.inf, dtype=torch.float64)
    if live:
        prepared = by_batch(prepare(batches, model))
        with evaluating(model), FasterLinear(), forwarding(model, prepared) as forward:
            for b, (gradients, logits) in enumerate(gradients_by_batch(forward, model, prepared, cotangent)):
                divisor = log_divisor(logits, b)
                if bool(divisor > -torch.inf):
                    norms = torch.cat([log_norm(g.view(n, -1)) for g, n in zip(gradients, heads, strict=True)])
                    sums = torch.logaddexp(sums.to(norms.device), norms - divisor)
    terms = sums.cpu().expand(sum(heads)).split(heads)
    products = iter([q + k + v for q, k, v in zip(terms[0::3], terms[1::3], terms[2::3], strict=True)])
    scores = table_of(blocks, [next(products) if block.kept else torch.zeros(0) for block in blocks])
    if not bool((scores < torch.inf).all()):
        raise ValueError("the gradients are not finite: look for NaN or infinity in the weights, or use float32.")
    return scores


def gradients_by_batch(
    forward: Forward,
    model: nn.Module,
    prepared: Prepared,
    cotangent: Callable[[Tensor, MicroBatch], Tensor] = logits_themselves,
) -> Iterator[tuple[Iterator[Tensor], Tensor]]:
    """For each batch Z in turn: ||Z|| d||Z|| / dW of every Q, K, V weight W that has rows, and Z (text, class) itself.

    d||Z|| = sum_i <z_i, dz_i> / ||Z||, so a backward pass from the logits themselves gives ||Z|| times the gradient,
    and texts of several batches may share it: dW is the product of what came into a projection and of the gradient of
    what came out, over the tokens of one batch at a time. Weights are never asked for gradients. The gradients are to be
    taken before the next batch is. ``cotangent`` (logits, micro-batch) -> (text, class) starts the backward pass of
    another objective: what it gives is the sum over a batch's texts of that objective's gradient.
    """
    live = [pair for pair in zip(attention_blocks(model), layers_of(model), strict=True) if pair[0].kept]
    totals: list[Tensor] = []
    logits: list[Tensor] = []
    for micro in prepared:
        z, flows = _flows(forward, micro, live, cotangent)
        prepared.show(z, micro)
        for part in micro.parts:
            logits.append(z[part.texts])
            gradients = _products(totals, flows, part, micro)
            if part.last:
                yield gradients, torch.cat(logits)
                totals, logits = [], []
            else:
                totals = list(gradients)


def _products(totals: list[Tensor], flows: list[list[Flow]], part: Part, micro: MicroBatch) -> Iterator[Tensor]:
    """The gradient of each weight over the tokens of a part, added to ``totals``; one at a time, while it is in cache."""
    for k, passes in enumerate(flows):
        total = totals[k] if totals else None
        for x, dy in passes:
            x, dy = _of_part(part, micro, x, dy)
            folded = x.dim() == 3
            more = torch.einsum("tho,thi->hoi", dy, x).flatten(0, 1) if folded else product(dy.T, x.T)
            total = more if total is None else total.add_(more)
        yield cast(Tensor, total)


def _of_part(part: Part, micro: MicroBatch, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of ``x`` and ``dy`` that belong to a part: in the last pass there is a row a text."""
    if len(micro.parts) == 1:
        return x, dy
    rows = part.texts if len(dy) == len(micro.index) else part.tokens
    return x[rows], dy[rows]


Flow = tuple[Tensor, Tensor]


def _flows(
    forward: Forward,
    micro: MicroBatch,
    live: list[tuple[AttentionBlock, nn.Module]],
    cotangent: Callable[[Tensor, MicroBatch], Tensor],
) -> tuple[Tensor, list[list[Flow]]]:
    """The logits z (text, class) of a micro-batch, and for every projection and each of its passes what came into it
    (token, in) and the gradient <cotangent, dz> / d of what came out of it (token, out); fp32 at least. A weight that
    was folded into something else met (text, head, in) and (text, head, out). live: blocks, each with the layer that it
    is in; a layer that is never called, such as one of ALBERT's spare groups, gets no gradient.

    fp16 gradients are scaled by a power of two on their way back, lowered until nothing overflows.
    """
    # of each pass: the projection, the tensor whose gradient is asked for, and what makes a flow of that gradient
    passes: list[tuple[int, Tensor, Callable[[Tensor], Flow]]] = []

    def see(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, k: int) -> None:
        x = inputs[0].detach().flatten(0, -2)
        passes.append((k, output.requires_grad_(), lambda g: (x, g.flatten(0, -2))))

    projections = [projection for block, _ in live for projection in (block.query, block.key, block.value)]
    called: set[nn.Module] = set()
    with ExitStack() as hooks:
        for _, layer in live:
            hooks.callback(layer.register_forward_hook(lambda layer, *_: called.add(layer)).remove)
        for k, projection in enumerate(projections):
            hooks.callback(projection.register_forward_hook(partial(see, k=k)).remove)
        z, folded = forward(micro)
    seen = {k for k, _, _ in passes}
    if missing := [k for k in range(len(projections)) if k not in seen and live[k // 3][1] in called]:
        raise ValueError(
            f"the {('query', 'key', 'value')[min(missing) % 3]} projection of a block is never called as a module, so "
            "its gradient cannot be seen: correct the family's row with gnorm.register."
        )
    numbers = {projection: k for k, projection in enumerate(projections)}
    passes += [(numbers[one.projection], one.output, one.flow) for one in folded]
    start = cotangent(z.detach(), micro)
    scale = 2.0**16 if z.dtype == torch.float16 else 1.0
    while passes:
        # what a model computes and does not use has no gradient
        gradients = torch.autograd.grad(
            z, [y for _, y, _ in passes], start * scale, retain_graph=scale > 1, allow_unused=True
        )
        if scale <= 1 or all(bool(g.isfinite().all()) for g in gradients if g is not None):
            break
        scale /= 16
    dtype = torch.promote_types(z.dtype, torch.float32)
    flows: list[list[Flow]] = [[] for _ in projections]
    for (k, _, flow), gradient in zip(passes, gradients if passes else (), strict=True):
        if gradient is not None:
            gradient = gradient.to(dtype)
            x, dy = flow(gradient / scale if scale > 1 else gradient)
            flows[k].append((x.to(dtype), dy.to(dtype)))
    for projection, of_passes in zip(projections, flows, strict=True):
        if not of_passes:
            sides = (projection.in_features, projection.out_features)
            nothing, none = (start.new_zeros(0, side, dtype=dtype) for side in sides)
            of_passes.append((nothing, none))
    return z.detach(), flows


def weight_gradients(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """The gradients that the G-norm is made of, summed over batches: (layer, projection, out, hidden).

    The projections are query, key and value; rows ``head * head_dim`` to ``(head + 1) * head_dim`` belong to a head.
    For looking at; ``gnorm_scores`` takes norms batch by batch. The model must not have had heads removed (masking
    is fine). Raises ``ValueError`` where it has, and as ``prepare`` does.
    """
    if not bool(head_mask_of(model).all()):
        raise ValueError("heads have been removed from this model: take its gradients under gnorm.masked instead.")
    prepared = prepare(batches, model)
    with evaluating(model), FasterLinear(), forwarding(model, prepared) as forward:
        total = sum(torch.stack(list(g)) / z.norm() for g, z in gradients_by_batch(forward, model, prepared))
    return torch.as_tensor(total).unflatten(0, (-1, 3))
