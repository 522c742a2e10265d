"""Masking heads: hooks at the input of the output projection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from .projections import Units
from .state import in_use, uncompiled


@contextmanager
def masking(model: nn.Module, blocks: Sequence[Units], mask: Tensor | Sequence[Tensor]) -> Iterator[None]:
    """``gnorm.masked`` by a ``mask`` (layer, head) bool, for the blocks of ``model``; by (unit,) bool for each where
    these are of several kinds."""
    with ExitStack() as hooks:
        hooks.enter_context(in_use(model, masks=True))
        hooks.enter_context(uncompiled(model.modules()))
        for block, row in zip(blocks, mask, strict=True):
            gone = ~row[list(block.kept)]
            if gone.any():
                columns = gone.repeat_interleave(block.context_dim).to(block.output.weight.device)  # (context,)
                hooks.callback(block.output.register_forward_pre_hook(partial(_zero_heads, columns)).remove)
        yield


def _zero_heads(columns: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (inputs[0].masked_fill(columns, 0),)  # (batch, token, kept * context_dim)


def is_masked(linear: nn.Module) -> bool:
    """True if heads are masked at this output projection, within a block of ``gnorm.masked``."""
    return any(getattr(hook, "func", None) is _zero_heads for hook in linear._forward_pre_hooks.values())


def refuse_removal(blocks: Sequence[Units]) -> None:
    """Raise ``ValueError`` where heads cannot be removed from a model.

    They cannot under ``gnorm.masked``, whose mask would no longer fit the projections, nor where a weight is computed
    anew before every pass (torch.nn.utils.prune, spectral_norm).
    """
    for layer, block in enumerate(blocks):
        for linear in block.by_module():
            if is_masked(linear):
                raise ValueError(
                    "heads cannot be removed while the model is under gnorm.masked: leave that block first."
                )
            for part in ("weight", "bias"):
                if f"{part}_orig" in linear._parameters:
                    spectral = any(type(h).__name__ == "SpectralNorm" for h in linear._forward_pre_hooks.values())
                    undo = "remove_spectral_norm" if spectral else "prune.remove"
                    raise ValueError(
                        f"the {part} of a projection of layer {layer} is made anew before every pass: make it final "
                        f'first, with torch.nn.utils.{undo}(projection, "{part}").'
                    )
