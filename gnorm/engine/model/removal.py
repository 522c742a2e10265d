"""Heads that go for good: weights are sliced, and what counts or lists heads follows."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import fewer_heads
from .blocks import AttentionBlock, checked_mask, names_of
from .families import FAMILIES, Family
from .masking import refuse_removal
from .projections import Units, cut, size_of_module
from .state import copy_of, in_use, with_own_config
from .subject import Subject

log = logging.getLogger(__name__)


# Options of a generation configuration that list heads of cross-attention as (layer, head): Whisper's, for timestamps.
HEADS_BY_NUMBER = ("alignment_heads",)


def remove(subject: Subject, mask: Tensor | Sequence[Sequence[int]], neurons: bool = False) -> Subject:
    """``gnorm.remove_heads`` of a model that has been tried, which is read anew; with ``neurons``, ``remove_units``."""
    model = subject.model
    with in_use(model):
        blocks = subject.blocks
        refuse_removal(subject.units if neurons else blocks)
        before, unit = (subject.unit_mask, "head + neuron") if neurons else (subject.mask, "head")
        every = checked_mask(mask, before, unit) & before
        new_mask = every[: len(blocks), : blocks[0].num_heads]
        numbers = _renumbered(model, blocks, new_mask)
        family = FAMILIES[model.config.model_type]
        after = Subject(model)
        for block, row in zip(blocks, new_mask, strict=True):
            stay = row[list(block.kept)]  # (kept,)
            as_version_1 = not row.any() and block.projections  # without rows, since version 1.0 cut them so
            if not stay.all() or as_version_1:
                width = size_of_module(block.output)[1] if block.projections else 0
                fewer_heads.count_heads(block.module, int(row.sum()), max(1, len(block.kept)), width)
                fewer_heads.count_in_config(block.module, int(row.sum()), max(1, len(block.kept)))
                for path, axis in family.by_head if block.kept else ():
                    fewer_heads.cut_by_head(block.owner, path, axis, stay.nonzero()[:, 0].tolist(), len(block.kept))
                _cut_to(block, stay)
                _adapt(block, row.nonzero()[:, 0].tolist(), family)
        rows = subject.unit_rows(every)[len(blocks) :] if neurons else []
        fewer = [(each, row) for each, row in zip(subject.feed_forwards if rows else (), rows) if not row.all()]
        for each, row in fewer:
            _cut_to(each, row)
            fewer_heads.shrink_feed_forward(each.owner, each.inputs, each.end, int(row.sum()))
        if fewer or not new_mask.all():
            config = model.config if subject.own_config else with_own_config(model)
            config.head_mask, after.own_config = new_mask.int().tolist(), True
            if fewer:
                config.feed_forward_sizes = [int(row.sum()) for row in rows]
        if numbers:
            model.generation_config = _with_numbers(model.generation_config, numbers)
    return after


def shrink(model: Any, sizes: Sequence[int]) -> None:
    """Leave as many neurons in each feed-forward block of ``model``, which waits for their weights, as ``sizes`` says;
    ``ValueError`` where it does not say so of every block."""
    blocks = Subject(model).feed_forwards
    whole = [len(each.kept) for each in blocks]
    if len(sizes) != len(whole) or any(not 0 <= size <= most for size, most in zip(sizes, whole, strict=True)):
        raise ValueError(f"feed_forward_sizes={sizes} must be a size for each of {len(whole)} blocks, {whole} at most")
    for each, size in zip(blocks, sizes, strict=True):
        fewer_heads.shrink_feed_forward(each.owner, each.inputs, each.end, size)
    model.config.feed_forward_sizes = list(sizes)


def _cut_to(units: Units, stay: Tensor) -> None:
    """Leave the weights of those units whose place in ``kept`` is True in ``stay`` (kept,); none go where none is."""
    for module, parts in units.by_module().items() if stay.any() else ():
        rows = torch.cat([part.rows[stay].flatten() for part in parts]).sort().values
        cut(module, rows, parts[0].of_input)


def as_removed(model: Any) -> Any:
    """``model`` as ``remove_heads`` leaves one: itself; where version 1.0 left projections without rows, a copy."""
    subject = Subject(model)
    if all(block.kept or not block.projections for block in subject.blocks):
        return model
    return remove(Subject(copy_of(subject.model)), subject.mask).model


def _renumbered(model: Any, blocks: Sequence[AttentionBlock], mask: Tensor) -> dict[str, list[list[int]]]:
    """The options ``HEADS_BY_NUMBER`` of a model, as the heads are numbered once those that ``mask`` keeps are left."""
    crossing = [
        (block.kept, row) for block, row in zip(blocks, mask, strict=True) if block.input_prefixes == ("decoder_", "")
    ]
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
    if block.shared_bias:
        fewer_heads.cut_argument_of_layers(block.module, heads, *names_of(block.per_head), *block.shared_bias)
    elif block.per_head:
        fewer_heads.cut_argument(block.module, heads, names_of(block.per_head), block.num_heads)
    if not heads:
        fewer_heads.drop_projections(block.owner, family.inputs, family.output)
    if block.skippable and not heads:
        fewer_heads.skip_attention(
            block.module, block.owner, family.output, block.norm, bool(block.shared_bias), family.listed
        )
