"""Projections split by head: a module, the rows of every head in it, and whether its weight is transposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .norms import log_norm


@dataclass(frozen=True)
class Projection:
    """The rows that belong to heads in a module y = W x + b, with W (out, in).

    module: ``torch.nn.Linear``, or ``Conv1D`` of transformers, which holds W transposed. Several projections may share
    a module (fused query, key and value). rows: (kept head, rows of a head) int64; columns of W where ``of_input``, as
    in the output projection.
    """

    name: str  # query, key, value, output or position; of a feed-forward block input or output
    module: nn.Module
    rows: Tensor
    of_input: bool = False

    @property
    def matrix(self) -> Tensor:
        """W (out, in), detached; a view of the module's weight."""
        weight: Tensor = self.module.weight.detach()  # type: ignore[operator]
        return weight.T if is_transposed(self.module) else weight

    def by_head(self, matrix: Tensor) -> Tensor:
        """A matrix (out, in), W or its gradient, split by head: (kept head, rows of a head, other side).

        It is a view where the module is no other projection's.
        """
        matrix = matrix.T if self.of_input else matrix
        heads, width = self.rows.shape
        if self.rows.numel() == len(matrix):
            return matrix.unflatten(0, (heads, width))
        return matrix[self.rows.to(matrix.device)]

    def log_norms(self) -> Tensor:
        """Natural logarithm of the L2 norm of every head's rows (or columns) of W: (kept head,) float64."""
        return log_norm(self.by_head(self.matrix)).cpu()


class Units:
    """Units of one kind that go one by one with their rows in each of a few projections: the heads of an attention
    block, the neurons of a feed-forward block.

    kept: the units that are left, by their index. kind: what messages call the units. module: what they name.
    """

    projections: tuple[Projection, ...]
    kept: tuple[int, ...]
    kind: ClassVar[str]
    module: nn.Module

    @property
    def context_dim(self) -> int:
        """How many numbers a unit hands to the output projection, for each token."""
        return self.projection("output").rows.shape[1]

    def projection(self, name: str) -> Projection:
        """The first projection of this name; ``ValueError`` where no unit is left."""
        for projection in self.projections:
            if projection.name == name:
                return projection
        raise ValueError(
            f"{type(self.module).__name__} has no {name} projection any more: all its {self.kind} are removed."
        )

    def by_module(self, names: Sequence[str] | None = None) -> dict[Any, list[Projection]]:
        """The projections of these names (all of them if None), by the module that holds them."""
        found: dict[Any, list[Projection]] = {}
        for projection in self.projections if names is None else map(self.projection, names):
            found.setdefault(projection.module, []).append(projection)
        return found

    @property
    def output(self) -> Any:
        """The module of the output projection."""
        return self.projection("output").module


def rows_of(heads: int, widths: Mapping[str, int], together: bool) -> dict[str, Tensor]:
    """The rows (head, rows of a head) int64 of the projections in one module of ``heads`` heads.

    widths: how many rows a head has in each projection, in the order in which they lie in the module. together: the
    module holds all rows of the first head, then all of the second; otherwise all rows of the first projection come
    first, then all of the second.
    """
    return dict(zip(widths, _rows(heads, tuple(widths.values()), together), strict=True))


@cache  # every reading of a model asks for the same few
@torch.inference_mode(False)
def _rows(heads: int, widths: tuple[int, ...], together: bool) -> list[Tensor]:
    """``rows_of``, one projection after the other."""
    found, before, every = [], 0, sum(widths)
    for width in widths:
        first = torch.arange(heads, device="cpu") * (every if together else width)
        first += before * (1 if together else heads)
        found.append(first[:, None] + torch.arange(width, device="cpu"))
        before += width
    return found


def is_transposed(module: Any) -> bool:
    """True if the module holds its weight as (in, out): ``Conv1D`` of transformers."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


LINEAR = ("transformers.models.falcon.modeling_falcon.FalconLinear",)  # with a forward of their own that does the same


def is_plain(module: Any) -> bool:
    """True if the module computes y = W x + b and nothing else: ``torch.nn.Linear``, ``Conv1D``, or of ``LINEAR``."""
    kind = type(module)
    known = isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward
    return known or is_transposed(module) or f"{kind.__module__}.{kind.__qualname__}" in LINEAR


def size_of_module(module: Any) -> tuple[int, int]:
    """(out, in) of a projection's module."""
    return (module.nf, module.nx) if is_transposed(module) else (module.out_features, module.in_features)


def cut(module: Any, keep: Tensor, of_input: bool) -> None:
    """Keep the rows ``keep`` of W and of the bias, or the columns of W where ``of_input``; the parameters are new."""
    weight, keep = module.weight, keep.to(module.weight.device)
    dim = int(of_input != is_transposed(module))
    module.weight = nn.Parameter(weight.detach().index_select(dim, keep), weight.requires_grad)
    if not of_input and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach().index_select(0, keep), module.bias.requires_grad)
    if is_transposed(module):
        module.nx, module.nf = module.weight.shape
    else:
        module.out_features, module.in_features = module.weight.shape


def check_projection(linear: Any, what: str) -> None:
    """Raise ``ValueError``, with the remedy, for anything but a linear layer, or ``Conv1D``, with its weight and bias
    as parameters."""
    kind, own = type(linear), getattr(linear, "_parameters", {})
    if nn.utils.parametrize.is_parametrized(linear):
        remedy = 'call torch.nn.utils.parametrize.remove_parametrizations(projection, "weight") first'
        raise ValueError(f"{what} is under a parametrization of torch.nn.utils: {remedy}.")
    if "weight_g" in own:
        raise ValueError(f"{what} is under weight_norm: call torch.nn.utils.remove_weight_norm(projection) first.")
    if any(hasattr(linear, name) for name in ("base_layer", "lora_A", "lora_down", "adapter_layer")):
        raise ValueError(
            f"{what} carries an adapter ({kind.__name__}): merge it into the weights first, with merge_and_unload() of "
            "a PEFT model."
        )
    weight, bias = own.get("weight"), own.get("bias")
    if (
        weight is not None
        and not weight.is_floating_point()
        or any("quant" in f"{k.__module__}.{k.__name__}".lower() for k in (kind, type(weight)))
    ):
        raise ValueError(
            f"{what} is quantised ({kind.__name__}): load the model in float32, bfloat16 or float16, remove heads, and "
            "quantise what is left."
        )
    parameters = type(weight) in (nn.Parameter, type(None)) and type(bias) in (nn.Parameter, type(None))
    if (
        not is_plain(linear) or not parameters or (weight is None and "weight_orig" not in own)
    ):  # torch.nn.utils.prune's name
        raise ValueError(
            f"{what} is not a torch.nn.Linear with parameters of its own but {kind.__name__}: put a plain linear layer "
            "in its place (an adapter merged, a quantised layer dequantised)."
        )
    forward = vars(linear).get("forward")
    if forward is not None and not hasattr(forward, "_torchdynamo_orig_callable"):
        raise ValueError(f"somebody replaced the forward of {what}: undo that first (del projection.forward).")
