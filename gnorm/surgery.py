"""Removing heads for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .heads import attention_blocks, checked_mask, head_mask_of


def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes; indices are those of the intact model, and a head that is gone stays
    gone whatever the mask says. Unequal and empty layers are fine: the modules of transformers infer the number of
    heads from the shapes, so a block with no head left hands an empty context to an output projection without
    columns, whose bias remains. What is left is written to ``model.config.head_mask``, where ``head_mask_of`` and
    ``save_pretrained`` find it. Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1.
    """
    blocks = attention_blocks(model)
    left = checked_mask(mask, blocks) & head_mask_of(model)
    for block, row in zip(blocks, left, strict=True):
        keep = row[list(block.kept)].repeat_interleave(block.head_dim).nonzero()[:, 0]  # (kept * head_dim,)
        if len(keep) < block.query.out_features:
            for linear in (block.query, block.key, block.value):
                _slice(linear, keep, dim=0)
            _slice(block.output, keep, dim=1)
    if not left.all():
        config: Any = model.config
        config.head_mask = left.int().tolist()


def _slice(linear: nn.Linear, keep: Tensor, dim: int) -> None:
    """Keep the rows (dim 0) or columns (dim 1) ``keep`` of a linear layer."""
    keep = keep.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, keep), linear.weight.requires_grad)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, keep), linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def memory_mb(model: nn.Module) -> float:
    """Memory of the model's parameters in MB of 2**20 bytes, the unit of the paper's table."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
