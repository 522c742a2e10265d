"""Where attention heads live in a model, and masking them.

A family is one row of module names in ``FAMILIES`` (engine/families.py). Nothing else in the package knows an
architecture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import in_short
from .families import FAMILIES, Family
from .fewer_heads import KEY_COUNTS, QUERY_COUNTS, found_by_head
from .projections import Projection, Units, check_projection, rows_of, size_of_module

QKV = ("query", "key", "value")  # the projections of the paper's score


@dataclass(frozen=True)
class AttentionBlock(Units):
    """The projections of one attention block.

    ``num_heads`` counts the heads of the intact block: the smallest units that can go alone. With grouped queries a
    head is a key-value head and the ``queries_per_head`` query heads that read it. ``head_dim`` counts the rows of key
    and value that belong to one head; query has ``context_dim`` rows a head, ``output`` as many columns. ``kept`` lists
    the heads that are left, by their index in the intact block. ``projections``: query, key, value, output, and those
    that ``Family.also`` names; none where no head is left. ``owner``: the module whose name the family's row gives,
    which holds all of them. ``input_prefixes``: whose tokens queries, and keys and values, are made of:
    "decoder_" of those of a decoder beside an encoder, else "". ``per_head``, ``shared_bias``, ``by_head``,
    ``skippable``, ``norm``: as in ``Family``.
    """

    kind: ClassVar[str] = "heads"

    projections: tuple[Projection, ...]
    num_heads: int
    head_dim: int
    kept: tuple[int, ...]
    owner: nn.Module
    module: nn.Module  # the module that owns query, key and value and computes the attention weights
    queries_per_head: int = 1
    input_prefixes: tuple[str, str] = ("", "")
    per_head: str | tuple[str, ...] = ""
    shared_bias: tuple[str, ...] = ()
    by_head: tuple[tuple[str, int], ...] = ()
    skippable: bool = False
    norm: nn.Module | None = None

    @property
    def context_dim(self) -> int:
        """The number of entries that a head hands to the output projection, for each token."""
        return self.queries_per_head * self.head_dim

    @property
    def query(self) -> Any:
        """The module of the query projection; key and value have the same one where they are fused."""
        return self.projection("query").module

    @property
    def key(self) -> Any:
        """The module of the key projection."""
        return self.projection("key").module

    @property
    def value(self) -> Any:
        """The module of the value projection."""
        return self.projection("value").module

    @property
    def also(self) -> tuple[Any, ...]:
        """The modules of the projections that ``Family.also`` names."""
        return tuple(projection.module for projection in self.projections if projection.name == "position")


# What attention modules and configurations call the rows of a head in keys and values.
HEAD_SIZES = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")


WRAPPERS = {  # class name -> what to give instead of an object of it
    "PeftModel": "what its merge_and_unload() returns",
    "PeftMixedModel": "what its merge_and_unload() returns",
    "CrossEncoder": "its .model",
    "SentenceTransformer": "an AutoModelForSequenceClassification fine-tuned from it, as it has no classifier",
    "DataParallel": "its .module",
    "DistributedDataParallel": "its .module",
    "DeepSpeedEngine": "its .module",
    "Pipeline": "its .model",
    "Trainer": "its .model",
}


def wrapped_in(model: Any) -> str:
    """For an object known to wrap a model, what to give instead of it; "" for any other."""
    return next((WRAPPERS[kind.__name__] for kind in type(model).__mro__ if kind.__name__ in WRAPPERS), "")


def _child_of(model: Any) -> str:
    """The name of the only child of ``model`` that is a model of transformers with a head; "" where there is none."""
    children = model.named_children() if isinstance(model, nn.Module) else ()
    found = [name for name, child in children if getattr(child, "base_model", child) is not child]
    return found[0] if len(found) == 1 else ""


def config_of(model: Any) -> Any:
    """The configuration of a model of transformers.

    Raises ``ValueError`` for an object that only wraps a model, such as PEFT's, and says what to give instead;
    ``TypeError`` for what is not a model of transformers.
    """
    if inside := wrapped_in(model):
        raise ValueError(f"{type(model).__name__} wraps a model: give {inside}.")
    config = getattr(model, "config", None)
    if not hasattr(config, "model_type") or not isinstance(model, nn.Module):
        hint = f"give its .{inside}" if (inside := _child_of(model)) else "it has no config with a model_type"
        raise TypeError(f"{type(model).__name__} is not a model of transformers: {hint}.")
    return config


def blocks_of(model: nn.Module) -> list[AttentionBlock]:
    """``attention_blocks`` of a model that has been tried, or is about to be."""
    config = config_of(model)
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"attention heads of model_type {config.model_type!r} are not known (known: {', '.join(FAMILIES)}); "
            f"add a row of module names with gnorm.register({config.model_type!r}, blocks, query, key, value, output)."
        )
    try:
        return _read(model, config, FAMILIES[config.model_type])
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a configuration makes of names that it does not know
        raise ValueError(
            f"{type(model).__name__} cannot be read by the row of model_type {config.model_type!r} "
            f"({type(error).__name__}: {in_short(error)}): its configuration must give num_attention_heads, and "
            "hidden_size or head_dim, as one number each for all layers; otherwise it cannot be pruned by head."
        ) from None


def _read(model: Any, config: Any, family: Family) -> list[AttentionBlock]:
    """The blocks that the row ``family`` names in ``model``."""
    _check_said(config, family)
    names = names_of(family.blocks)
    of_encoder, of_self = (len(_named(model, names[:i], missing=len(names) > i)) for i in (1, 2))
    owners = _named(model, family.blocks)
    blocks: list[AttentionBlock] = []
    masks = getattr(config, "head_mask", None) or [None] * len(owners)
    for number, (owner, row) in enumerate(zip(owners, masks, strict=True)):
        module = owner.get_submodule(family.query.rpartition(".")[0])
        num_heads, queries_per_head, head_dim = _sizes(module, config, row)
        heads = tuple(head for head, bit in enumerate(row or [1] * num_heads) if bit)
        sizes = (num_heads * queries_per_head, num_heads)
        first = (blocks[0].num_heads * blocks[0].queries_per_head, blocks[0].num_heads) if blocks else sizes
        if not row and sizes != first:
            raise ValueError(
                f"attention {number} has {sizes[0]} query heads and {sizes[1]} of keys, attention 0 has {first[0]} and "
                f"{first[1]}; a head mask (layer, head) needs as many in every layer: such a model cannot be pruned."
            )
        block = AttentionBlock(
            projections=_projections(owner, family, len(heads), head_dim, queries_per_head),
            owner=owner,
            num_heads=num_heads,
            head_dim=head_dim,
            kept=heads,
            module=module,
            queries_per_head=queries_per_head,
            input_prefixes=("decoder_" * (number >= of_encoder), "decoder_" * (of_encoder <= number < of_self)),
            per_head=family.per_head,
            shared_bias=family.shared_bias,
            by_head=family.by_head,
            skippable=family.skippable,
            norm=_module(owner, family.norm) if family.norm else None,
        )
        blocks.append(block)
    _check_projections(blocks)
    return blocks


def _sizes(module: nn.Module, config: Any, row: Sequence[int] | None) -> tuple[int, int, int]:
    """Of an attention module with all its heads: the heads that can go alone, query heads of each, rows of each.

    They are what the module itself says, else its configuration, else the model's. row: its row of the head mask, if it
    has one; then the numbers of heads that the module says are of those that are left.
    """
    own, its = vars(module), vars(module).get("config", config)
    of, kept = (len(row), sum(map(bool, row))) if row else (1, 1)
    configs = (getattr(its, "whole", its), config)

    def said(names: Sequence[str], of: int = of, kept: int = kept) -> Any:
        of_module = (own[name] * of // kept for name in names if kept and own.get(name))
        of_configs = (getattr(each, name, None) for each in configs for name in names)
        return next(filter(None, chain(of_module, of_configs)), None)

    query_heads = int(said(QUERY_COUNTS) or config.num_attention_heads)
    num_heads = len(row) if row else int(said(KEY_COUNTS) or query_heads)
    head_dim = int(said(HEAD_SIZES, 1, 1) or configs[0].hidden_size // query_heads)
    return num_heads, max(1, query_heads // num_heads), head_dim


def _projections(
    owner: nn.Module, family: Family, heads: int, head_dim: int, queries_per_head: int
) -> tuple[Projection, ...]:
    """The projections of a block of which ``heads`` heads are left.

    A block without heads has none; version 1.0 left it projections without rows.
    """
    around, _, last = family.output.rpartition(".")
    if not heads and last not in _module(owner, around)._modules:
        return ()
    context_dim = queries_per_head * head_dim
    names = {"query": family.query, "key": family.key, "value": family.value}
    widths = {"query": context_dim, "key": head_dim, "value": head_dim}
    found = []
    for name, path in names.items():
        inside = {other: widths[other] for other in names if names[other] == path}
        rows = rows_of(heads, inside, family.together)[name]
        found.append(Projection(name, _module(owner, path), rows))
    columns = rows_of(heads, {"output": context_dim}, family.together)["output"]
    found.append(Projection("output", _module(owner, family.output), columns, of_input=True))
    modules = dict(owner.named_modules())
    for module in (modules[path] for path in family.also if path in modules):
        wide = size_of_module(module)[0] // heads if heads else head_dim  # as of gates, by query head
        rows = rows_of(heads, {"position": wide}, family.together)["position"]
        found.append(Projection("position", module, rows))
    return tuple(found)


def _module(owner: nn.Module, path: str) -> nn.Module:
    """The module of this name below ``owner``, a block."""
    try:
        return owner.get_submodule(path)
    except AttributeError:
        raise ValueError(
            f"no module of {type(owner).__name__} is named {path!r}: correct the family's row with gnorm.register; a "
            "layer that reads the keys and values of another one has none, and such a model cannot be pruned by head."
        ) from None


def _check_said(config: Any, family: Family) -> None:
    """Raise ``ValueError`` for attention that this row of module names does not say."""
    said, what = len(names_of(family.blocks)), f"the row of model_type {config.model_type!r}"
    if getattr(config, "add_cross_attention", False) and said < 3:
        raise ValueError(f"config.add_cross_attention is set, but {what} names no cross-attention: add it by register.")


def _check_projections(blocks: Sequence[AttentionBlock]) -> None:
    """Raise ``ValueError`` for a projection that cannot be cut to fewer heads, for a weight that two modules share, and
    for a module that is not of the size that its heads need."""
    check_cuttable(blocks)
    for block in blocks:
        taken = signature(type(block.module).forward).parameters if block.per_head else ()
        for name in (name for name in names_of(block.per_head) if name and name not in taken):
            raise ValueError(
                f"{type(block.module).__name__} takes no {name!r}: correct per_head in the family's row with "
                "gnorm.register."
            )
    for layer, block in enumerate(blocks):
        if block.projections and (beside := _beside_projections(block)):
            raise ValueError(
                f"{type(block.module).__name__} has {beside} beside its projections, which a row of module names does "
                "not share out among heads: such a model cannot be pruned by head."
            )
        for module, parts in block.by_module().items():
            size, needed = size_of_module(module)[parts[0].of_input], sum(part.rows.numel() for part in parts)
            if size != needed:
                raise ValueError(
                    f"layer {layer} has {size} {' and '.join(part.name for part in parts)} rows, its "
                    f"{len(block.kept)} heads of {block.head_dim} need {needed}: the weights contradict "
                    "config.head_mask, or the model shares keys and values between heads."
                )


def check_cuttable(units: Sequence[Units], of: str = "") -> None:
    """Raise ``ValueError`` for a projection that cannot be cut, and for a weight that two modules share. of: what
    messages call a projection beside its name."""
    owners: dict[int, str] = {}
    for layer, each in enumerate(units):
        for module, parts in each.by_module().items():
            what = f"the {of}{' and '.join(part.name for part in parts)} projection of layer {layer}"
            check_projection(module, what)
            if (other := owners.setdefault(id(module.weight), what)) != what:
                raise ValueError(f"{what} shares its weight with {other}: give each a weight of its own first.")


def _beside_projections(block: AttentionBlock) -> str:
    """The name and shape of a parameter of the attention module that may be by head: not a projection's, not
    of the norm, not of the shared bias, not in ``by_head`` with entries for every head, and no vector that all heads
    share, which belongs to a module that does not stand in a list; "" where there is none."""
    known = {*block.by_module(), block.norm, *(getattr(block.module, name, None) for name in block.shared_bias[:1])}
    heads, by_head = len(block.kept), set()
    for path, axis in block.by_head:
        *_, given, size = found_by_head(block.owner, path, axis)
        if size % heads == 0:
            by_head |= {*given.parameters()} if isinstance(given, nn.ModuleList) else {given}
    for path, module in block.module.named_modules():
        in_list = any(part.isdecimal() for part in path.split("."))
        for name, parameter in module._parameters.items() if module not in known else ():
            if parameter is None or parameter in by_head:
                continue
            counted = not path and len(parameter) in (heads, heads * block.queries_per_head)
            if tuple(parameter.shape) != (block.head_dim,) or in_list or counted:
                return f"{path}.{name} of shape {tuple(parameter.shape)}".removeprefix(".")
    return ""


def owners_of(model: nn.Module) -> list[nn.Module]:
    """For every attention block of ``model``, in order, the module that the family's row names."""
    return _named(model, FAMILIES[model.config.model_type].blocks)  # type: ignore[union-attr, index]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """For every attention block of ``model``, in order, the module that owns it: the layers of an encoder. A block in
    a plain list owns itself."""
    blocks = names_of(FAMILIES[model.config.model_type].blocks)  # type: ignore[union-attr, index]
    return _named(model, tuple(name if name.endswith("*") else name.rpartition(".")[0] for name in blocks))


def feed_forwards(model: nn.Module) -> list[nn.Module]:
    """The modules around the projections that the row names as the ends of feed-forward blocks, first layer first."""
    ends = names_of(FAMILIES[model.config.model_type].feed_forward)  # type: ignore[union-attr, index]
    return _named(model, tuple(name.rpartition(".")[0] for name in ends))


def names_of(names: str | tuple[str, ...]) -> tuple[str, ...]:
    """One name, or several, as a tuple."""
    return (names,) if isinstance(names, str) else names


def _named(model: nn.Module, patterns: str | tuple[str, ...], missing: bool = False) -> list[Any]:
    """The modules below the base model whose names are ``patterns``, first layer first; none only if ``missing``."""
    base: Any = getattr(model, "base_model", model)
    found: list[Any] = []
    for pattern in names_of(patterns):
        of_pattern = [base]
        for name in pattern.split("."):
            below = (module.children() if name == "*" else [getattr(module, name, None)] for module in of_pattern)
            of_pattern = [module for modules in below for module in modules if isinstance(module, nn.Module)]
        found += of_pattern
    if not found and not missing:
        if inside := _child_of(model):
            raise ValueError(f"{type(model).__name__} wraps a model: give its .{inside}.")
        raise ValueError(
            f"no module of {type(base).__name__} is named {' or '.join(map(repr, names_of(patterns)))}; correct the "
            f"row of model_type {base.config.model_type!r} with gnorm.register."
        )
    return found


def mask_of(blocks: Sequence[AttentionBlock]) -> Tensor:
    """``head_mask_of`` a model of these blocks."""
    mask = torch.zeros(len(blocks), blocks[0].num_heads, dtype=torch.bool)
    for row, block in zip(mask, blocks, strict=True):
        row[list(block.kept)] = True
    return mask


def checked_mask(mask: Tensor | Sequence[Sequence[int]], like: Tensor, unit: str = "head") -> Tensor:
    """``mask`` as a (layer, head) bool tensor on the CPU; 1 keeps a head, 0 takes it out.

    like: of the shape that it must have. unit: the last axis. Raises ``ValueError`` for what makes no tensor, for
    another shape, and for values other than 0 and 1.
    """
    try:
        mask = torch.as_tensor(mask).detach().cpu()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"the head mask is no (layer, {unit}) table of numbers: {error}.") from None
    shape = tuple(like.shape)
    if tuple(mask.shape) != shape:
        raise ValueError(f"the head mask has shape {tuple(mask.shape)}, this model needs (layer, {unit}) = {shape}.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("the head mask holds values other than 0 and 1; 1 keeps a head, 0 takes it out.")
    return mask.bool()


def table_of(blocks: Sequence[AttentionBlock], values: Sequence[Tensor]) -> Tensor:
    """The table (layer, head) float64 of ``values``, (kept head,) for each block; -inf for heads that are gone."""
    scores = torch.full((len(blocks), blocks[0].num_heads), -torch.inf, dtype=torch.float64)
    for row, block, of_block in zip(scores, blocks, values, strict=True):
        row[list(block.kept)] = of_block.double()
    return scores
