"""Removing heads for good."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .engine.fewer_heads import count_heads, cut_argument, cut_argument_of_layers, skip_attention
from .engine.projections import cut
from .engine.state import in_use, with_own_config
from .heads import AttentionBlock, blocks_of, checked_mask, config_of, mask_of, refuse_removal, try_out


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
    try_out(model, removal=True)
    with in_use(model):
        blocks = blocks_of(model)
        refuse_removal(blocks)
        new_mask = checked_mask(mask, blocks) & mask_of(blocks)
        for block, row in zip(blocks, new_mask, strict=True):
            stay = row[list(block.kept)]  # (kept,)
            if not stay.all():
                for module, parts in block.by_module().items():
                    rows = torch.cat([part.rows[stay].flatten() for part in parts]).sort().values
                    cut(module, rows, parts[0].of_input)
                _adapt(block, row.nonzero()[:, 0].tolist())
        if not new_mask.all():
            with_own_config(model).head_mask = new_mask.int().tolist()


def _adapt(block: AttentionBlock, heads: list[int]) -> None:
    """Make the attention module of a block work with ``heads``, whose weights alone are left."""
    count_heads(block.module, len(heads), len(block.kept))
    if block.shared_bias:
        cut_argument_of_layers(block.module, heads, block.per_head, *block.shared_bias)
    elif block.per_head:
        cut_argument(block.module, heads, block.per_head)
    if block.skippable and not heads:
        skip_attention(block.module, block.output, block.norm, bool(block.shared_bias))
