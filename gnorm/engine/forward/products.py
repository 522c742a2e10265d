"""Matrix products in fp32 on a CPU, by oneDNN where that is faster than PyTorch's default.

PyTorch comes with a BLAS and with oneDNN. On a CPU it uses the BLAS for fp32 and oneDNN for lower precisions. Its BLAS
on x86 is MKL. MKL does not use AVX-512 on processors of other makers than Intel; there oneDNN takes as little as half
the time for the same fp32 product. On other processors the two are about equally fast. They add the terms of a sum in
a different order, so results differ by rounding, and by nothing else. The operator called here has no public name;
torch.compile puts it in the place of linear layers on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

SMALLEST = 2**21  # multiplications; for a smaller product, the call of oneDNN costs more than it saves


def _worthwhile(x: Tensor, weight: Tensor) -> bool:
    """True if oneDNN takes this product: fp32 on a CPU, large enough, oneDNN built in and not switched off.

    Shapes that do not match go to PyTorch's default, whose error messages are plainer.
    """
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
    """x @ weight.T + bias (..., out), for ``x`` (..., in) and ``weight`` (out, in); either may be a transposed view.

    Where oneDNN takes it, autograd records nothing.
    """
    if _worthwhile(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """``torch.nn.functional.linear`` with ``product`` in its forward and its backward pass."""

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


def faster_products(weight: Tensor, largest: float = math.inf) -> AbstractContextManager[Any]:
    """Within a ``with`` block, ``torch.nn.functional.linear`` and every ``torch.nn.Linear`` use ``product`` where the
    model's weights are in fp32 on a CPU. weight: one of them. largest: the multiplications of the largest product.

    Gradients can be taken, second derivatives cannot. Elsewhere, and where all products are small, nothing changes: the
    mode would only cost Python's time at every operation, for which a GPU waits.
    """
    useful = weight.device.type == "cpu" and weight.dtype == torch.float32 and largest >= SMALLEST
    return _FasterLinear() if useful else nullcontext()


class _FasterLinear(TorchFunctionMode):
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
