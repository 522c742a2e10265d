"""Attention heads: where they live in a model, and masking them.

A family is one row of module names in ``FAMILIES`` (engine/model/families.py). Nothing else in the package knows an
architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .engine.model.blocks import AttentionBlock, _named, blocks_of, checked_mask, mask_of
from .engine.model.families import FAMILIES, Family
from .engine.model.masking import masking
from .engine.model.state import in_use, uncompiled
from .engine.trials.trial import try_out


def register(
    model_type: str,
    blocks: str | tuple[str, ...],
    query: str,
    key: str,
    value: str,
    output: str,
    feed_forward: str | tuple[str, ...] = "",
    also: tuple[str, ...] = (),
    per_head: str | tuple[str, ...] = "",
    skippable: bool = False,
    norm: str = "",
    together: bool = False,
    shared_bias: tuple[str, ...] = (),
    by_head: tuple[tuple[str, int], ...] = (),
    listed: bool = False,
) -> None:
    """Add a row of module names to ``FAMILIES``, or replace the one of this model_type; see ``Family``."""
    names = (query, key, value, output, feed_forward, also, per_head, skippable, norm)
    FAMILIES[model_type] = Family(
        blocks, *names, together=together, shared_bias=shared_bias, by_head=by_head, listed=listed
    )


def attention_blocks(model: nn.Module) -> list[AttentionBlock]:
    """The attention blocks of ``model``, in the order of the mask's rows: encoder self-attention, decoder
    self-attention, cross-attention, first layer first; layers that share a block (ALBERT) count as one.

    A model whose row was registered, or whose classes are not transformers' own, is tried at its first use: see
    ``engine.trials``.

    Raises as ``config_of`` does, and ``ValueError`` where ``model.config.model_type`` has no row in ``FAMILIES``, where
    the model has no module of the row's names or attention that the row does not name, where blocks have unequally
    many heads, where a projection is not a linear layer with a weight of its own, or not of the size that its heads
    need, where the model or its configuration cannot be read by the row, or where the trial fails.
    """
    blocks = blocks_of(model)
    try_out(model)
    return blocks


def head_mask_of(model: nn.Module) -> Tensor:
    """The head mask (layer, head), bool: true for the heads that are left; all of them before ``remove_heads``."""
    return mask_of(attention_blocks(model))


@contextmanager
def masked(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> Iterator[None]:
    """Take heads out of the forward pass for the length of a ``with`` block.

    mask: (layer, head), 1 keeps and 0 takes out. The context vectors of a masked head are set to zero at the input of
    the output projection, which equals removing the head with its weights and biases. The hooks are removed on leaving,
    after an exception too. A compiled model runs uncompiled meanwhile, since compiled code does not call new hooks.

    Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1, where another thread has the
    model under a mask, and as ``attention_blocks`` does.
    """
    blocks = attention_blocks(model)
    with masking(model, blocks, checked_mask(mask, mask_of(blocks))):
        yield


@contextmanager
def without_feed_forward(model: nn.Module) -> Iterator[None]:
    """Take the feed-forward blocks out of the forward pass for the length of a ``with`` block.

    The input of the projection that ends each block is set to zero; its bias remains, as that of the output projection
    does for heads.

    Raises ``ValueError`` where the family's row names no feed-forward block, and as ``attention_blocks`` does.
    """
    attention_blocks(model)  # raises for an unknown model
    config: Any = model.config
    with ExitStack() as hooks:
        hooks.enter_context(in_use(model, masks=True))
        hooks.enter_context(uncompiled(model.modules()))
        cut = bool(getattr(config, "feed_forward_sizes", None))  # blocks that lost all neurons have no such projection
        for linear in _named(model, FAMILIES[config.model_type].feed_forward, missing=cut):
            hooks.callback(linear.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),)).remove)
        yield
