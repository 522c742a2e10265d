"""Products of fp32 matrices on a CPU, by whichever of PyTorch's libraries is the faster.

PyTorch comes with a BLAS and with oneDNN. On a CPU it gives products of fp32 to the BLAS and those of lower precisions to
oneDNN. Its BLAS on x86 is MKL, which does not use AVX-512 on processors of other makers than its own: there oneDNN takes
the same product, in fp32 as well, in as little as half the time. Elsewhere the two are about as fast. They add the terms
of a sum in another order, so results differ by rounding, and by nothing else. The operator is the one that torch.compile
puts in the place of a linear layer on a CPU; it has no public name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

SMALLEST = 2**21  # multiplications: below, a call of oneDNN takes longer than the product


def _worthwhile(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to take this product; where it is there, and not switched off (torch.backends.mkldnn.enabled).
    What does not fit together is left to the other, whose errors are plainer."""
    return bool(
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.shape[-1:] == weight.shape[1:]
        and x.numel() * len(weight) >= SMALLEST
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (..., in) and ``weight`` (out, in), either may be a transposed view, to x @ weight.T + bias (..., out).
    Without gradients."""
    if _worthwhile(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """``torch.nn.functional.linear``, forwards and backwards by ``product``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), flat = ctx.saved_tensors, gradient.flatten(0, -2)
        return (
            None if weight is None else product(gradient, weight.T),
            None if x is None else product(flat.T, x.flatten(0, -2).T),
            flat.sum(0) if ctx.needs_input_grad[2] else None,
        )


class FasterLinear(TorchFunctionMode):
    """For the length of a ``with`` block, ``torch.nn.functional.linear``, and with it every ``torch.nn.Linear``, by
    ``product``. It can be differentiated once."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is linear and not types and len(args) == 3 and _worthwhile(*args[:2]):
            return _Linear.apply(*args)
        return function(*args, **(kwargs or {}))
