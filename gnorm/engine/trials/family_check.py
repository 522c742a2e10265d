"""A row of module names, checked against a model: do heads lie where it says? Tried on some texts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..model.blocks import AttentionBlock, blocks_of
from ..model.state import evaluating

SMALL = 1e-3  # of the largest gradient: more than rounding leaves where nothing flows


def try_row(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` where the row of a model's family gives a head rows that are not its own.

    inputs: of at least one text. What a head hands to the output projection must depend on the rows of query, key and
    value that the row of the family gives to that head, and on no others of its block; at least on those of value. The
    value rows of a module that holds query and key too must be those that contexts are sums of.
    """
    blocks = [block for block in blocks_of(model) if block.kept]
    with evaluating(model):
        outputs, contexts = _seen(model, blocks, inputs)
        for block in blocks:
            seen = {name: block.projection(name).module in outputs for name in ("query", "key", "value")}
            seen["output"] = block.output in contexts
            if any(seen.values()) and not all(seen.values()):
                name = next(name for name in seen if not seen[name])
                raise ValueError(
                    f"the {name} projection of {type(block.module).__name__} is never called as a module, so heads "
                    "cannot be seen there: such a model cannot be pruned by head."
                )
        blocks = [block for block in blocks if block.output in contexts]
        for head in range(max((len(block.kept) for block in blocks), default=0)):
            _try_head([block for block in blocks if head < len(block.kept)], head, outputs, contexts)


def _try_head(
    blocks: list[AttentionBlock], head: int, outputs: Mapping[nn.Module, Tensor], contexts: Mapping[nn.Module, Tensor]
) -> None:
    generator, starts = torch.Generator().manual_seed(0), []
    for block in blocks:
        start = torch.zeros_like(contexts[block.output]).unflatten(-1, (len(block.kept), -1))
        drawn = torch.randn(start.shape[-1], generator=generator)  # (context_dim,)
        start[..., head, :] = drawn.to(start)  # (text, token, kept, context_dim)
        starts.append(start.flatten(-2))
        if not contexts[block.output].requires_grad:
            raise ValueError(_no_gradient(block, head))
    modules = [module for block in blocks for module in block.by_module() if module in outputs]
    gradients = torch.autograd.grad(
        [contexts[block.output] for block in blocks],
        [outputs[module] for module in modules],
        starts,
        retain_graph=True,
        allow_unused=True,
    )
    found = dict(zip(modules, gradients, strict=True))
    for block, start in zip(blocks, starts, strict=True):
        _check_head(block, head, outputs, found, float((contexts[block.output].detach() * start).double().sum()))


def _seen(
    model: nn.Module, blocks: list[AttentionBlock], inputs: Mapping[str, Tensor]
) -> tuple[dict[nn.Module, Tensor], dict[nn.Module, Tensor]]:
    """The outputs of query, key, value and position projections, cut off from what is below, and the inputs of output
    projections: by module."""
    outputs: dict[nn.Module, Tensor] = {}
    contexts: dict[nn.Module, Tensor] = {}

    def cut_off(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        outputs[module] = output.detach().requires_grad_()
        return outputs[module]

    def take(module: nn.Module, given: tuple[Tensor, ...], to: dict[nn.Module, Tensor]) -> None:
        to[module] = given[0]

    with ExitStack() as hooks:
        for block in blocks:
            for module in block.by_module():
                if module is not block.output:
                    hooks.callback(module.register_forward_hook(cut_off).remove)
            hooks.callback(block.output.register_forward_pre_hook(partial(take, to=contexts)).remove)
        try:
            model(**inputs)
        except RuntimeError as error:
            if "in-place" not in str(error):
                raise
            raise ValueError(
                f"{type(model).__name__} writes over what its projections give, so their gradients cannot be seen: "
                "such a model cannot be scored."
            ) from None
    return outputs, contexts


def _check_head(
    block: AttentionBlock,
    head: int,
    outputs: Mapping[nn.Module, Tensor],
    gradients: Mapping[nn.Module, Tensor | None],
    product: float,
) -> None:
    """``ValueError`` where gradients of a head's context lie on rows of other heads, or on none of its values.
    product: <context, start>."""
    for module, parts in block.by_module().items():
        gradient = gradients.get(module)
        if parts[0].of_input or gradient is None:
            continue
        own = torch.cat([part.rows[head] for part in parts]).to(gradient.device)
        by_row = gradient.abs().flatten(0, -2).amax(0)
        others = by_row.index_fill(0, own, 0)
        what = f"the {' and '.join(part.name for part in parts)} projection of {type(block.module).__name__}"
        if bool(others.max() > SMALL * by_row.max()):
            raise ValueError(
                f"head {block.kept[head]} depends on rows of {what} that the row of the family gives to other heads: "
                "correct `together` and the names with gnorm.register; where the model mixes heads before attention "
                "(a norm over all of them), it cannot be pruned by head."
            )
        value = next((part for part in parts if part.name == "value" and len(parts) > 1), None)
        if value is not None:  # contexts are linear in the values, so <value, gradient> = <context, start>
            rows = value.rows[head].to(gradient.device)
            of_value = (outputs[module].detach()[..., rows] * gradient[..., rows]).double()
            if abs(float(of_value.sum()) - product) > SMALL * float(of_value.abs().sum()):
                raise ValueError(
                    f"the value rows of {what} lie elsewhere than the row of the family says (all queries, all keys, "
                    "all values; with `together` head by head): such a model cannot be pruned by head."
                )
    of_values = gradients.get(block.value)
    if of_values is None or not bool(of_values[..., block.projection("value").rows[head].to(of_values.device)].any()):
        raise ValueError(_no_gradient(block, head))


def _no_gradient(block: AttentionBlock, head: int) -> str:
    return (
        f"no gradient flows through head {block.kept[head]} of {type(block.module).__name__}: what it hands to the "
        "output projection depends on none of its value rows; correct the names with gnorm.register, or install the "
        "kernel that the model computes attention with."
    )
