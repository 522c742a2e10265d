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

# Attributes of attention modules in transformers: the number of heads, and the width of all heads together.
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")

HEAD_WIDTHS = ("all_head_size",)


@torch.inference_mode(False)  # the new parameters can be trained even if the caller is in inference mode
def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes. Indices are those of the intact model. A head that was removed before
    stays removed whatever the mask says. Layers may keep different numbers of heads, or none. The attributes of the
    attention modules that count heads follow. A layer without heads skips query, key, value and attention, where its
    family's row allows that; its output projection then has no columns and adds its bias alone. The mask of kept heads
    is written to ``model.config.head_mask``, which ``head_mask_of`` reads and ``save_pretrained`` saves. A
    configuration that other models share is copied first.

    The sliced projections have new parameters. An optimizer made before holds the old ones and does not train the new
    ones, so make optimizers (and a ``Trainer``) afterwards. A compiled model has to be compiled again.

    Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1, for a model under
    ``gnorm.masked``, and as ``attention_blocks`` does.
    """
    config_of(model)  # refuses what is no model
    with in_use(model):
        blocks = attention_blocks(model)
        refuse_removal(blocks)
        new_mask = checked_mask(mask, blocks) & head_mask_of(model)
        for block, row in zip(blocks, new_mask, strict=True):
            keep = row[list(block.kept)].repeat_interleave(block.head_dim).nonzero()[:, 0]  # (kept * head_dim,)
            if len(keep) < block.query.out_features:
                for linear in (block.query, block.key, block.value, *block.also):
                    _slice(linear, keep, dim=0)
                _slice(block.output, keep, dim=1)
                _adapt(block, row)
        if not new_mask.all():
            with_own_config(model).head_mask = new_mask.int().tolist()


def _adapt(block: AttentionBlock, row: Tensor) -> None:
    """Make the attention module of a block work with the heads of ``row`` (head,) bool, whose weights are kept."""
    module: Any = block.module
    heads = row.nonzero()[:, 0].tolist()
    for names, value in ((HEAD_COUNTS, len(heads)), (HEAD_WIDTHS, len(heads) * block.head_dim)):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, value)
    if block.per_head:
        at = list(inspect.signature(type(module).forward).parameters).index(block.per_head) - 1  # self is not passed
        if not hasattr(module, "kept_heads"):
            module.register_forward_pre_hook(partial(_select_heads, block.per_head, at), with_kwargs=True)
        module.kept_heads = heads
    if block.skippable and not heads:
        inside = any(block.output is other for other in module.modules())
        module.forward = partial(_without_heads, block.output if inside else None, block.norm)


def _select_heads(name: str, at: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cut an argument of an attention module, (text, head, ...), to the kept heads. It is passed by name or ``at``."""
    if kwargs.get(name) is not None:
        kwargs = {**kwargs, name: kwargs[name][:, module.kept_heads]}
    elif len(args) > at and args[at] is not None:
        args = (*args[:at], args[at][:, module.kept_heads], *args[at + 1 :])
    return args, kwargs


def _without_heads(
    output: nn.Module | None, norm: nn.Module | None, hidden_states: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, Tensor]:
    """The forward pass of an attention module without heads, computed from an empty context.

    output, norm: the output projection and the normalisation, where the module itself applies them after attention.
    Dropout is left out: it has nothing to drop. Returns hidden states (text, token, hidden), and attention weights for
    no heads.
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
