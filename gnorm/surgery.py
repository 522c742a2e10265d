"""Removing heads for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .engine.families import FAMILIES, Family
from .engine.fewer_heads import count_heads, cut_argument, cut_argument_of_layers, drop_projections, skip_attention
from .engine.packing import logits_of
from .engine.projections import cut
from .engine.rows import is_tested
from .engine.state import copy_of, in_use, with_own_config
from .heads import AttentionBlock, attention_blocks, checked_mask, config_of, head_mask_of, masked, refuse_removal


@torch.inference_mode(False)  # the new parameters can be trained even if the caller is in inference mode
def remove_heads(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> None:
    """Remove heads from ``model``, in place, with their weights and biases.

    mask: (layer, head), 1 keeps and 0 removes. Indices are those of the intact model. A head that was removed before
    stays removed whatever the mask says. Layers may keep different numbers of heads, or none. The attributes of the
    attention modules that count heads follow. A layer without heads has no projections any more: what its attention
    adds is the bias of the output projection, or nothing; that bias is a parameter of the module that held the
    projection, such as ``output.dense_bias``. The layer skips attention, where its family's row allows that. The mask
    of kept heads is written to ``model.config.head_mask``, which ``head_mask_of`` reads and ``save_pretrained`` saves.
    A configuration that other models share is copied first.

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


def try_removal(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Remove heads from a copy of a model of a registered family, and raise ``ValueError`` where that differs from
    masking them.

    inputs: of at least one text. Every second head goes, then all. Models of the families that come with the package
    are held against that by its tests, and are not tried.
    """
    if is_tested(model):
        return
    copy = copy_of(model).float().eval()
    one = {name: t[:1].float() if t.is_floating_point() else t[:1] for name, t in inputs.items()}
    numbers = torch.arange(len(head_mask_of(copy)))[:, None] + torch.arange(attention_blocks(copy)[0].num_heads)
    for mask in (numbers % 2 == 0, numbers < 0):
        with torch.no_grad():
            with masked(copy, mask):
                expected = logits_of(copy, one)
            remove_heads(copy, mask)
            try:
                off = float((logits_of(copy, one) - expected).abs().max() / (1 + expected.abs().max()))
            except Exception as error:  # noqa: BLE001 - whatever a module makes of unusual sizes
                what = f"it does not run ({' '.join(str(error).split())[:200]})"
            else:
                what = "" if off < 1e-3 else f"its logits are off by {off:.1g} of the largest"
        if what:
            raise ValueError(
                f"{type(model).__name__} does not work with heads removed, {what}: correct per_head, also or skippable "
                "in the family's row with gnorm.register, or mask heads instead."
            )
