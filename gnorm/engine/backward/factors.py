"""From the factors of a backward pass to the gradient of every weight, batch by batch, and the norms of its heads.

dW = dy.T @ x over the tokens of one batch. On a CPU the gradients come one after the other: each is used while it is in
the processor's cache. Elsewhere a launch costs more than such a product: weights of one shape are multiplied together.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from ..forward.products import product
from ..model.norms import cheap_in_fp32, log_norm, safe_in_fp32
from ..texts.micro_batches import BatchSlice, MicroBatch

# The factors of a weight's gradient dW = dy.T @ x: x (token, in), the input of the projection, and dy (token, out), the
# gradient of its output. Of an absorbed projection: x (text, head, hidden) and dy (text, head, head_dim).
Factors = tuple[Tensor, Tensor]


class OfSlice(Protocol):
    """The gradient (out, in) of each weight over the tokens of one batch, added to ``totals`` where there are any."""

    def __call__(self, batch_slice: BatchSlice, totals: Sequence[Tensor] = ...) -> Iterator[Tensor]: ...


def stacking_is_faster(device: torch.device) -> bool:
    """True if few large products are faster than each gradient on its own."""
    return device.type != "cpu"


def gradients_of(factors: Sequence[Sequence[Factors]], micro: MicroBatch) -> OfSlice:
    """A function that gives the gradients of one batch of ``micro``. factors: of each weight, one pair a call."""
    if stacking_is_faster(factors[0][0][0].device):
        return partial(_together, _stacks(factors), len(factors), micro)
    return partial(_one_by_one, factors, micro)


def _one_by_one(
    factors: Sequence[Sequence[Factors]], micro: MicroBatch, batch_slice: BatchSlice, totals: Sequence[Tensor] = ()
) -> Iterator[Tensor]:
    for k, of_projection in enumerate(factors):
        total = totals[k] if totals else None
        for x, dy in of_projection:
            x, dy = (_of_slice(batch_slice, micro, t) for t in (x, dy))
            absorbed = x.dim() == 3  # (text, head, hidden) and (text, head, head_dim)
            more = torch.einsum("tho,thi->hoi", dy, x).flatten(0, 1) if absorbed else product(dy.T, x.T)  # (out, in)
            total = more if total is None else total.add_(more)
        yield cast(Tensor, total)


def _of_slice(batch_slice: BatchSlice, micro: MicroBatch, factor: Tensor) -> Tensor:
    """A factor of one batch alone. Its first dimension is the token, or the text in a last pass for first tokens."""
    if len(micro.batch_slices) == 1:
        return factor
    return factor[batch_slice.texts if len(factor) == len(micro.index) else batch_slice.tokens]


# The weights that factors belong to, and factors of one shape side by side: x (token, matrix, in) and dy (token,
# matrix, out). A weight has one matrix; one of an absorbed projection has as many as it has heads.
_Stack = tuple[list[int], Tensor, Tensor]


def _stacks(factors: Sequence[Sequence[Factors]]) -> list[_Stack]:
    found: dict[tuple[torch.Size, torch.Size], tuple[list[int], list[Tensor], list[Tensor]]] = {}
    for k, of_projection in enumerate(factors):
        for x, dy in of_projection:
            x, dy = (t if t.dim() == 3 else t[:, None] for t in (x, dy))
            weights, xs, dys = found.setdefault((x.shape, dy.shape), ([], [], []))
            weights.append(k)
            xs.append(x)
            dys.append(dy)
    return [(weights, torch.cat(xs, 1), torch.cat(dys, 1)) for weights, xs, dys in found.values()]


def _together(
    stacks: Sequence[_Stack],
    weights: int,
    micro: MicroBatch,
    batch_slice: BatchSlice,
    totals: Sequence[Tensor] = (),
) -> Iterator[Tensor]:
    found: list[Tensor | None] = list(totals) or [None] * weights
    for numbers, x, dy in stacks:
        x, dy = (_of_slice(batch_slice, micro, t).transpose(0, 1) for t in (x, dy))  # (matrix, token, ...)
        gradients = torch.bmm(dy.transpose(1, 2), x)  # (matrix, out, in)
        for k, gradient in zip(numbers, gradients.unflatten(0, (len(numbers), -1)).flatten(1, 2), strict=True):
            before = found[k]
            found[k] = gradient if before is None else before + gradient
    return iter(cast("list[Tensor]", found))


def log_norms(gradients: Callable[[], Iterable[Tensor]], in_float64: bool = False) -> Tensor:
    """``log_norm`` of the rows of all gradients (kept head, ...), one after the other; calls ``gradients`` again where
    fp32 does not hold the squares.

    On a GPU, which would have to be waited for to see that, such norms are NaN instead, unless ``in_float64`` asks for
    norms that any gradient has.
    """
    first: list[Tensor] = []  # norms in fp32, or the gradients themselves
    for gradient in gradients():
        rows = gradient.flatten(1)
        first.append(torch.linalg.vector_norm(rows, dim=1) if cheap_in_fp32(rows) else rows)
    if first[0].dim() == 1:
        norms = torch.cat(first)
        return (
            norms.double().log()
            if bool(safe_in_fp32(norms).all())
            else torch.cat([log_norm(g.flatten(1)) for g in gradients()])
        )
    precise = in_float64 or first[0].dtype == torch.float64
    norm = log_norm if precise else partial(torch.linalg.vector_norm, dim=1)
    stacks: dict[tuple[int, int], list[int]] = {}  # the numbers of gradients by width and by the memory that they share
    for k, rows in enumerate(first):
        stacks.setdefault((rows.shape[1], rows.untyped_storage().data_ptr()), []).append(k)
    found: dict[int, Tensor] = {}
    for numbers in stacks.values():
        alike = [first[k] for k in numbers]
        found |= zip(numbers, norm(_side_by_side(alike)).split([len(rows) for rows in alike]), strict=True)
    norms = torch.cat([found[k] for k in range(len(first))])
    return norms if precise else torch.where(safe_in_fp32(norms), norms.double().log(), torch.nan)


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """The rows of all ``parts`` (row, width), one part after the other: a view where they lie so in one memory."""
    first, begin = parts[0], parts[0].storage_offset()
    begins = itertools.accumulate((part.numel() for part in parts), initial=begin)
    if all(part.is_contiguous() and part.storage_offset() == begin for part, begin in zip(parts, begins, strict=False)):
        return first.as_strided((sum(len(part) for part in parts), first.shape[1]), first.stride())
    return torch.cat(list(parts))
