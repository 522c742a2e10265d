"""Removing heads for good."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .engine.families import FAMILIES, Family
from .engine.fewer_heads import count_heads, cut_argument, cut_argument_of_layers, drop_projections, skip_attention
from .engine.projections import cut
from .engine.state import copy_of, in_use, with_own_config
from .heads import AttentionBlock, blocks_of, checked_mask, config_of, mask_of, refuse_removal, try_out

log = logging.getLogger(__name__)

# Options of a generation configuration that list heads of cross-attention as (layer, head): Whisper's, for timestamps.
HEADS_BY_NUMBER = ("alignment_heads",)


@torch.inference_mode(False)  # the new parameters can be trained even if the caller is in inference mode
def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes. Indices are those of the intact model. A head that was removed before
    stays removed whatever the mask says. Layers may keep different numbers of heads, or none. The attributes of the
    attention modules that count heads follow. A layer without heads has no projections any more: what its attention
    adds is the bias of the output projection, or nothing; that bias is a parameter of the module that held the
    projection, such as ``output.dense_bias``. The layer skips attention, where its family's row allows that. The mask
    of kept heads is written to ``model.config.head_mask``, which ``head_mask_of`` reads and ``save_pretrained`` saves.
    A configuration that other models share is copied first. ``alignment_heads`` in a generation configuration, which
    Whisper takes timestamps of words from, then lists those that are left, as the smaller model numbers them; if none
    is left, it goes too, and a line of the log says so.

    The sliced projections have new parameters. An optimizer made before holds the old ones and does not train the new
    ones, so make optimizers (and a ``Trainer``) afterwards. A compiled model has to be compiled again.

    Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1, for a model under
    ``gnorm.masked``, where ``alignment_heads`` names a head that the model does not have, and as ``attention_blocks``
    does.
    """
    config_of(model)  # refuses what is no model
    try_out(model, removal=True)
    with in_use(model):
        blocks = blocks_of(model)
        refuse_removal(blocks)
        new_mask = checked_mask(mask, blocks) & mask_of(blocks)
        numbers = _renumbered(model, blocks, new_mask)
        family = FAMILIES[model.config.model_type]  # type: ignore[union-attr, index]
        for block, row in zip(blocks, new_mask, strict=True):
            stay = row[list(block.kept)]  # (kept,)
            as_version_1 = not row.any() and block.projections  # without rows, since version 1.0 cut them so
            if not stay.all() or as_version_1:
                for module, parts in block.by_module().items() if stay.any() else ():
                    rows = torch.cat([part.rows[stay].flatten() for part in parts]).sort().values
                    cut(module, rows, parts[0].of_input)
                _adapt(block, row.nonzero()[:, 0].tolist(), family)
        if not new_mask.all():
            with_own_config(model).head_mask = new_mask.int().tolist()
        if numbers:
            plain: Any = getattr(model, "_orig_mod", model)  # of a compiled model
            plain.generation_config = _with_numbers(plain.generation_config, numbers)


def as_removed(model: Any) -> Any:
    """``model`` as ``remove_heads`` leaves one: itself; where version 1.0 left projections without rows, a copy."""
    if all(block.kept or not block.projections for block in blocks_of(model)):
        return model
    smaller = copy_of(getattr(model, "_orig_mod", model))  # of a compiled model
    remove_heads(smaller, mask_of(blocks_of(smaller)))
    return smaller


def _renumbered(model: Any, blocks: Sequence[AttentionBlock], mask: Tensor) -> dict[str, list[list[int]]]:
    """The options ``HEADS_BY_NUMBER`` of a model, as the heads are numbered once those that ``mask`` keeps are left."""
    crossing = [(block.kept, row) for block, row in zip(blocks, mask, strict=True) if block.sides == ("decoder_", "")]
    found: dict[str, list[list[int]]] = {}
    for name in HEADS_BY_NUMBER if crossing else ():
        given = getattr(getattr(model, "generation_config", None), name, None)
        try:
            for layer, number in () if given is None else given:
                kept, row = crossing[layer]
                head = kept[number]
                found.setdefault(name, []).extend([[int(layer), int(row[:head].sum())]] if row[head] else [])
        except (IndexError, TypeError, ValueError):
            raise ValueError(
                f"generation_config.{name}={given} does not list heads that are left as (layer, head), of "
                f"{len(crossing)} layers of cross-attention: correct it, or delete it."
            ) from None
    return found


def _with_numbers(generation_config: Any, numbers: Mapping[str, list[list[int]]]) -> Any:
    """A copy of ``generation_config``, which other models may share, with these lists of heads; without empty ones."""
    changed = copy.deepcopy(generation_config)
    for name, heads in numbers.items():
        setattr(changed, name, heads)
        if not heads:
            delattr(changed, name)
            log.warning("no head of generation_config.%s is left: it is deleted, and what reads it is refused.", name)
    return changed


def _adapt(block: AttentionBlock, heads: list[int], family: Family) -> None:
    """Make the attention module of a block work with ``heads``, whose weights alone are left."""
    count_heads(block.module, len(heads), max(1, len(block.kept)))
    if block.shared_bias:
        cut_argument_of_layers(block.module, heads, block.per_head, *block.shared_bias)
    elif block.per_head:
        cut_argument(block.module, heads, block.per_head)
    if not heads:
        drop_projections(block.owner, family.inputs, family.output)
    if block.skippable and not heads:
        skip_attention(block.module, block.owner, family.output, block.norm, bool(block.shared_bias))
