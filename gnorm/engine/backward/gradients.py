"""Gradients of query, key and value weights, batch by batch, of all layers in one backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial, reduce
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..forward.packing import not_finite
from ..forwarding import Forward, passes
from ..model.blocks import QKV, AttentionBlock, table_of
from ..model.masking import is_masked
from ..model.norms import log_norm
from ..model.projections import Projection, size_of_module
from ..model.sizes import Batch
from ..texts.batches import Prepared, by_batch, prepare
from ..texts.micro_batches import MicroBatch
from ..texts.ranks import in_order
from .factors import Factors, gradients_of, log_norms

READ_TOGETHER = 1024  # batches whose norms leave the device together


def logits_themselves(logits: Tensor, micro: MicroBatch) -> Tensor:
    """The cotangent of the norm of the logits, times that norm: the logits, those of padding zero."""
    return micro.mask_padding(logits)


def log_norm_of(cotangent: Tensor, _: int) -> Tensor:
    """The logarithm of the norm of a batch's logits, (1,) float64: what their gradient is divided by."""
    return log_norm(cotangent.reshape(1, -1))


def gradient_norms(
    model: nn.Module,
    batches: Iterable[Batch] | Prepared,
    log_divisor: Callable[[Tensor, int], Tensor],
    cotangent: Callable[[Tensor, MicroBatch], Tensor] = logits_themselves,
    names: Sequence[str] = QKV,
    combine: Callable[[Tensor, Tensor], Tensor] = torch.add,
    weighted: bool = False,
) -> Tensor:
    """log prod_{W in Q, K, V} sum_b || G_b / d_b || over the rows of W that are a head's: (layer, head) float64.

    G_b is the gradient of batch b that ``gradients_by_batch`` gives for ``cotangent``; ``log_divisor`` (cotangent,
    number of the batch) -> (1,) float64 gives log d_b. A batch with d_b = 0 is left out. Heads that are gone, and heads
    whose gradient is zero, score -inf. names: of the projections W, as in ``AttentionBlock``; a head has
    columns of the output projection, rows of the others. combine: what joins the logarithms of two projections; adding
    them makes the product. weighted: W * G_b, elementwise, takes the place of G_b.

    Raises ``ValueError`` where gradients are not finite, and as ``prepare`` and ``attention_blocks`` do.
    """
    prepared = by_batch(prepare(batches, model))
    subject = prepared.subject
    blocks, live = subject.blocks, subject.live
    heads = [len(block.kept) for block in live for _ in names]
    projections = [part for block in live for of_module in block.by_module(names).values() for part in of_module]
    weights = [part.by_head(part.matrix) for part in projections] if weighted else []
    sums = torch.tensor(-torch.inf, dtype=torch.float64)
    if live:

        def rows_of_batches(forward: Forward, in_float64: bool) -> Iterator[tuple[int, Tensor]]:
            of_batches = gradients_by_batch(forward, prepared, cotangent, names)
            found = (
                (b, _row(gradients, weights, log_divisor(start, b), in_float64)) for b, gradients, start in of_batches
            )
            while some := list(islice(found, READ_TOGETHER)):
                yield from zip((b for b, _ in some), torch.stack([row for _, row in some]).cpu(), strict=True)

        with passes(prepared, grad=True) as forward:
            sums = _sum_over_batches(in_order(prepared.group, rows_of_batches(forward, in_float64=False)))
            if bool(sums.isnan().any()):  # too small or too large for fp32
                prepared = prepared.with_observer(None)  # which has seen everything
                sums = _sum_over_batches(in_order(prepared.group, rows_of_batches(forward, in_float64=True)))
    terms = sums.expand(sum(heads)).split(heads)
    joined = iter([reduce(combine, terms[i : i + len(names)]) for i in range(0, len(terms), len(names))])
    scores = table_of(blocks, [next(joined) if block.kept else torch.zeros(0) for block in blocks])
    largest = float(scores.max())  # NaN where one is
    if not largest < math.inf:
        raise ValueError("the gradients are not finite: look for NaN or infinity in the weights, or use float32.")
    if largest == -math.inf and all(
        len(block.kept) == block.num_heads and not is_masked(block.output) for block in blocks
    ):
        raise ValueError(
            f"no gradient flows through any head of {type(model).__name__}, so every score is -inf: the logits of "
            "these texts depend on no query, key or value. Give texts of more than one token, a classifier whose "
            "weights are not all zero, and the kernel that the model computes attention with."
        )
    return scores


def _row(
    gradients: Callable[[], Iterable[Tensor]], weights: Sequence[Tensor], divisor: Tensor, in_float64: bool
) -> Tensor:
    """(head + 1,) float64: ``log_norms`` of the gradients of a batch, times ``weights`` if there are any, and its
    divisor."""
    times_weights = partial(_weighted, gradients, weights) if weights else gradients
    return torch.cat([log_norms(times_weights, in_float64), divisor])


def _weighted(gradients: Callable[[], Iterable[Tensor]], weights: Sequence[Tensor]) -> Iterator[Tensor]:
    return (g * w for g, w in zip(gradients(), weights, strict=True))


def _sum_over_batches(rows: Iterator[Tensor]) -> Tensor:
    """The sum over all batches, as ``_added`` takes it, of their rows (head + 1,) on the CPU."""
    sums, before = torch.tensor(-torch.inf, dtype=torch.float64), 0
    while some := list(islice(rows, READ_TOGETHER)):
        sums, before = _added(sums, torch.stack(some), before), before + len(some)
    return sums


def _added(before: Tensor, rows: Tensor, first: int) -> Tensor:
    """log(exp(before) + sum_b exp(norms_b - divisor_b)): (head,). rows (batch, head + 1): the norms and the divisor of
    each batch, from number ``first`` on; they are added batch by batch.

    Raises ``ValueError``, which names the batch, where a divisor is not finite; one of -inf leaves its batch out.
    """
    norms, divisors = rows[:, :-1], rows[:, -1:]
    damaged = (~(divisors[:, 0] < torch.inf)).nonzero()
    if len(damaged):
        raise ValueError(not_finite(f"batch {first + int(damaged[0])}"))
    return reduce(torch.logaddexp, torch.where(divisors > -torch.inf, norms - divisors, -torch.inf).unbind(), before)


def gradients_by_batch(
    forward: Forward,
    prepared: Prepared,
    cotangent: Callable[[Tensor, MicroBatch], Tensor] = logits_themselves,
    names: Sequence[str] = QKV,
) -> Iterator[tuple[int, Callable[[], Iterator[Tensor]], Tensor]]:
    """For each batch Z of this rank in turn: its number, ||Z|| d||Z|| / dW of every Q, K, V weight W that has rows, and
    Z (text, ...) itself, logits of padding zero.

    Each gradient is (kept head, rows of a head, other side). Of a block, the projections that share a module come
    together.

    d||Z|| = sum_i <z_i, dz_i> / ||Z||, so a backward pass from the logits themselves gives ||Z|| times the gradient.
    Texts of several batches may share that pass: dW = dy.T @ x, with x the input of a projection and dy the gradient of
    its output, and the product is taken over the tokens of one batch at a time. Autograd is never asked for the
    gradient of a weight.

    The gradients come from a function: call it before the next batch, as often as they are needed. ``cotangent``
    (logits, micro-batch) -> (text, ...) starts the backward pass of another objective, whose gradient is summed over a
    batch's texts; it comes in the place of Z.
    ``names``: of other projections than Q, K and V.
    """
    live = prepared.subject.live
    projections = [of_module for block in live for of_module in block.by_module(names).values()]
    totals: list[Tensor] = []
    starts: list[Tensor] = []
    for micro in prepared.mine:
        z, start, factors = _gradient_factors(forward, micro, live, cotangent, names)
        prepared.notify(z, micro)
        of_slice = gradients_of(factors, micro)
        for batch_slice in micro.batch_slices:
            starts.append(start[batch_slice.texts])
            if totals or not batch_slice.last:
                totals = list(of_slice(batch_slice, totals))
            if batch_slice.last:
                gradients = partial(iter, totals) if totals else partial(of_slice, batch_slice)
                yield batch_slice.batch, partial(_by_head, gradients, projections), _joined(starts)
                totals, starts = [], []


def _joined(parts: list[Tensor]) -> Tensor:
    """Logits of the texts of a batch (text, ...), as wide as the widest of ``parts``; the padding is zero."""
    if len({part.shape[1:] for part in parts}) > 1:  # each micro-batch has a width of its own
        width = max(part.shape[1] for part in parts)
        parts = [pad(part, (0, 0) * (part.dim() - 2) + (0, width - part.shape[1])) for part in parts]
    return torch.cat(parts)


def _by_head(
    gradients: Callable[[], Iterator[Tensor]], projections: Sequence[Sequence[Projection]]
) -> Iterator[Tensor]:
    """Of each projection, what is each head's of the gradient of its module."""
    pairs = zip(gradients(), projections, strict=True)
    return (part.by_head(gradient) for gradient, of_module in pairs for part in of_module)


class _Call(NamedTuple):
    """One call of a projection in a forward pass."""

    module: int  # the number of the module that was called, in the order of the blocks
    output: Tensor  # the tensor whose gradient autograd is asked for
    factors: Callable[[Tensor], Factors]  # from that gradient


def _gradient_factors(
    forward: Forward,
    micro: MicroBatch,
    live: Sequence[AttentionBlock],
    cotangent: Callable[[Tensor, MicroBatch], Tensor],
    names: Sequence[str],
) -> tuple[Tensor, Tensor, list[list[Factors]]]:
    """One forward and one backward pass: the logits z (text, ...), the cotangent, the factors of <cotangent, dz> / dW.

    The factors are of every module with projections of these names, one pair for each call of it, in fp32 at least.
    live: the blocks that have heads. A block that is never called, such as one of ALBERT's spare groups or
    cross-attention where there is no encoder, gets empty factors.
    """
    modules = [module for block in live for module in block.by_module(names)]
    z, calls = _recorded_pass(forward, micro, live, names)
    start = cotangent(z.detach(), micro)
    dtype = torch.promote_types(z.dtype, torch.float32)
    factors: list[list[Factors]] = [[] for _ in modules]
    for call, gradient in zip(calls, _output_gradients(z, [call.output for call in calls], start, dtype), strict=True):
        if gradient is not None:
            x, dy = call.factors(gradient)
            factors[call.module].append((x.to(dtype), dy.to(dtype)))
    for module, of_module in zip(modules, factors, strict=True):
        if not of_module:
            no_dy, no_x = (start.new_zeros(0, side, dtype=dtype) for side in size_of_module(module))
            of_module.append((no_x, no_dy))
    return z.detach(), start, factors


def _recorded_pass(
    forward: Forward,
    micro: MicroBatch,
    live: Sequence[AttentionBlock],
    names: Sequence[str],
) -> tuple[Tensor, list[_Call]]:
    """The logits (text, ...) of a forward pass, and the calls that hooks saw of the projections of these names.

    Raises ``ValueError`` for a module that is never called, though its block is.
    """
    calls: list[_Call] = []
    owned = [(module, held, block) for block in live for module, held in block.by_module(names).items()]
    numbers = {module: k for k, (module, *_) in enumerate(owned)}

    def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, k: int) -> None:
        x = inputs[0].detach().flatten(0, -2)  # (token, in)
        calls.append(_Call(k, output.requires_grad_(), lambda dy: (x, dy.flatten(0, -2))))

    called_blocks: set[nn.Module] = set()
    with ExitStack() as hooks:
        for block in live:
            hooks.callback(block.module.register_forward_hook(lambda module, *_: called_blocks.add(module)).remove)
        for module, k in numbers.items():
            hooks.callback(module.register_forward_hook(partial(record, k=k)).remove)
        for module in {module for block in live for module in block.by_module(QKV)} - numbers.keys():
            hooks.callback(module.register_forward_hook(_begin_graph).remove)  # absorbed ones build on these
        z, absorbed = forward(micro)
    calls += [_Call(numbers[one.projection], one.output, one.factors) for one in absorbed if one.projection in numbers]
    called = {call.module for call in calls}
    missing = [held for k, (_, held, block) in enumerate(owned) if k not in called and block.module in called_blocks]
    if missing:
        raise ValueError(
            f"the {missing[0][0].name} projection of a block is never called as a module, so "
            "its gradient cannot be seen: correct the family's row with gnorm.register."
        )
    return z, calls


def _begin_graph(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
    output.requires_grad_()


def _output_gradients(
    z: Tensor, outputs: Sequence[Tensor], start: Tensor, dtype: torch.dtype
) -> Sequence[Tensor | None]:
    """The gradient <start, dz> / d of each output, as ``dtype``; None for an output that the model does not use.

    fp16 gradients are multiplied by a power of two for the backward pass, lowered until nothing overflows, and divided
    by it at the end.
    """
    if not z.requires_grad:  # such as an encoder's, where no cross-attention reads it any more
        return [None] * len(outputs)
    scale = 2.0**16 if z.dtype == torch.float16 else 1.0
    while True:
        gradients = torch.autograd.grad(z, outputs, start * scale, retain_graph=scale > 1, allow_unused=True)
        if scale <= 1 or bool(torch.stack([g.isfinite().all() for g in gradients if g is not None]).all()):
            break
        scale /= 16
    wide = (None if g is None else g.to(dtype) for g in gradients)
    return [g if g is None or scale <= 1 else g / scale for g in wide]


def weight_gradients(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Tensor:
    """The gradients that the G-norm is made of, summed over batches: (layer, projection, out, hidden).

    The projections are query, key and value; rows ``head * head_dim`` to ``(head + 1) * head_dim`` belong to a head.
    This is for plots and examples; ``gnorm_scores`` takes norms batch by batch.

    Raises ``ValueError`` where heads have been removed from the model (masking is fine), where several query heads
    share a key, where the projections differ in their sizes, and as ``prepare`` does.
    """
    prepared = prepare(batches, model)
    subject = prepared.subject
    if not bool(subject.mask.all()):
        raise ValueError("heads have been removed from this model: take its gradients under gnorm.masked instead.")
    if (queries := max(block.queries_per_head for block in subject.blocks)) > 1:
        raise ValueError(f"{queries} query heads share a key, so gradients make no table: use gnorm.gnorm_scores.")
    sizes: dict[tuple[int, ...], str] = {}  # the first projection of each
    for layer, block in enumerate(subject.blocks):
        for part in map(block.projection, QKV):
            sizes.setdefault(tuple(part.by_head(part.matrix).shape), f"the {part.name} projection of layer {layer}")
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        raise ValueError(
            f"{first} has {' x '.join(map(str, one))} weights (heads, rows of a head, width), {second} "
            f"{' x '.join(map(str, other))}, so gradients make no table: use gnorm.gnorm_scores."
        )
    with passes(prepared, grad=True) as forward:
        total = sum(torch.stack(list(g())) / z.norm() for _, g, z in gradients_by_batch(forward, prepared))
    return torch.as_tensor(total).flatten(1, 2).unflatten(0, (-1, 3))
