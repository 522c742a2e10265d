"""A model whose heads are written otherwise and do the same: two projections of a head that undo each other's scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..engine.model.blocks import AttentionBlock
from ..heads import attention_blocks, head_mask_of

# The projection whose rows go times c, and the one whose rows, or columns, go by c.
PAIRS = {"values": ("value", "output"), "keys": ("query", "key")}


def factors(model: Any, deviation: float, draw: int) -> Tensor:
    """A factor c for each head, (layer, head) float32: a power of two, so that nothing is rounded.

    log c is drawn from a normal distribution of this standard deviation, and taken to the nearest multiple of log 2.
    """
    generator = torch.Generator().manual_seed(draw)
    drawn = torch.randn(head_mask_of(model).shape, generator=generator, dtype=torch.float64) * deviation
    return (drawn / math.log(2)).round().exp2().float()


def rescale(model: Any, pair: str, factors: Tensor) -> None:
    """Write every head of ``model`` otherwise, in place: one projection of ``pair`` (``PAIRS``) times the head's factor
    (layer, head), its bias too, the other by it.

    Value rows times c and output columns by c leave what a head hands on as it is; query rows times c and key rows by c
    leave its attention logits, where nothing else stands between the two, such as a norm of keys.
    """
    times, by = PAIRS[pair]
    for block, of_layer in zip(attention_blocks(model), factors, strict=True):
        scale(block, times, of_layer[list(block.kept)])
        scale(block, by, 1 / of_layer[list(block.kept)])


def scale(block: AttentionBlock, name: str, factors: Tensor) -> None:
    """Multiply the rows of every head of a projection, of output its columns, by the head's factor (kept head,), in
    place; the bias of rows too."""
    projection = block.projection(name)
    bias: Any = None if projection.of_input else projection.module.bias
    with torch.no_grad():
        matrix = projection.matrix
        of_row = torch.ones(matrix.shape[projection.of_input], device=matrix.device)
        of_row[projection.rows] = factors[:, None].to(matrix.device)
        matrix.mul_(of_row if projection.of_input else of_row[:, None])
        if bias is not None:
            bias.mul_(of_row)


def imbalance(block: AttentionBlock, first: str, second: str) -> Tensor:
    """(log ||W_first|| - log ||W_second||) / 2 of every head, (kept head,) float64: the logarithm of the factor that is
    to be taken from one projection, and given to the other, for both to have the same norm."""
    return (block.projection(first).log_norms() - block.projection(second).log_norms()) / 2
