"""Removing heads for good."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .engine.state import in_use, with_own_config
from .heads import AttentionBlock, attention_blocks, checked_mask, config_of, head_mask_of, refuse_removal

# What modules of transformers call the number of their heads, and the rows that these make up.
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")


HEAD_ROWS = ("all_head_size",)


@torch.inference_mode(False)  # what is left can be trained, wherever this is called
def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes; indices are those of the intact model, and a head that is gone stays
    gone whatever the mask says. Unequal and empty layers are fine. The attributes of the attention modules that count
    heads follow; a layer with no head left computes no query, key, value or attention (where its family's row says that
    this can be skipped), and hands an empty context to an output projection without columns, whose bias remains. What
    is left is written to ``model.config.head_mask``, where ``head_mask_of`` and ``save_pretrained`` find it; a
    configuration that other models share is copied before.

    The projections that were cut have new parameters: an optimizer made before holds the old ones and trains nothing of
    them, so make optimizers (and a ``Trainer``) afterwards. A compiled model has to be compiled anew.

    Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1, for a model under
    ``gnorm.masked``, and as ``attention_blocks`` does.
    """
    config_of(model)  # refuses what is no model
    with in_use(model):
        blocks = attention_blocks(model)
        refuse_removal(blocks)
        left = checked_mask(mask, blocks) & head_mask_of(model)
        for block, row in zip(blocks, left, strict=True):
            keep = row[list(block.kept)].repeat_interleave(block.head_dim).nonzero()[:, 0]  # (kept * head_dim,)
            if len(keep) < block.query.out_features:
                for linear in (block.query, block.key, block.value, *block.also):
                    _slice(linear, keep, dim=0)
                _slice(block.output, keep, dim=1)
                _adapt(block, row)
        if not left.all():
            with_own_config(model).head_mask = left.int().tolist()


def _adapt(block: AttentionBlock, row: Tensor) -> None:
    """Make the module of a block agree with the heads, ``row`` (head,), that its projections were cut to."""
    module: Any = block.module
    heads = row.nonzero()[:, 0].tolist()
    for names, value in ((HEAD_COUNTS, len(heads)), (HEAD_ROWS, len(heads) * block.head_dim)):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, value)
    if block.per_head:
        place = list(inspect.signature(type(module).forward).parameters).index(block.per_head) - 1  # self is not passed
        if not hasattr(module, "kept_heads"):
            module.register_forward_pre_hook(partial(_select_heads, block.per_head, place), with_kwargs=True)
        module.kept_heads = heads
    if block.skippable and not heads:
        inside = any(block.output is other for other in module.modules())
        module.forward = partial(_without_heads, block.output if inside else None, block.norm)


def _select_heads(name: str, place: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cut the argument ``name`` of an attention module, (text, head, ...), to the heads that are left."""
    if kwargs.get(name) is not None:
        kwargs = {**kwargs, name: kwargs[name][:, module.kept_heads]}
    elif len(args) > place and args[place] is not None:
        args = (*args[:place], args[place][:, module.kept_heads], *args[place + 1 :])
    return args, kwargs


def _without_heads(
    output: nn.Module | None, norm: nn.Module | None, hidden_states: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    """The forward of an attention module with no head left: what it would compute from an empty context.

    output, norm: what the module applies itself, after attention; without dropout, as there is nothing to drop.
    """
    texts, tokens, _width = hidden_states.shape
    context = hidden_states.new_empty(texts, tokens, 0)
    if output is not None:
        context = output(context)
    if norm is not None:
        context = norm(hidden_states + context)
    return context, hidden_states.new_empty(texts, 0, tokens, tokens)


def _slice(linear: nn.Linear, keep: Tensor, dim: int) -> None:
    """Keep the rows (dim 0) or columns (dim 1) ``keep`` of a linear layer."""
    keep = keep.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, keep), linear.weight.requires_grad)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, keep), linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape
