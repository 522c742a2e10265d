"""Where attention heads live in a model, and masking them.

An encoder family is one row of module names in ``FAMILIES``; nothing else in the package knows an architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """Module names of one encoder family: ``blocks`` from the base model, the others from each block.

    ``*`` stands for any index, so ``encoder.layer.*.attention`` finds the attention block of every layer.
    ``feed_forward`` (from the base model) is the projection at the end of each feed-forward block, where there is one.
    """

    blocks: str
    query: str
    key: str
    value: str
    output: str
    feed_forward: str = ""


_BERT_LIKE = Family(
    "encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense", "encoder.layer.*.output.dense"
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT_LIKE,
    "roberta": _BERT_LIKE,
    "xlm-roberta": _BERT_LIKE,
    "albert": Family(
        "encoder.albert_layer_groups.*.albert_layers.*.attention",
        "query",
        "key",
        "value",
        "dense",
        "encoder.albert_layer_groups.*.albert_layers.*.ffn_output",
    ),
}


def register(
    model_type: str, blocks: str, query: str, key: str, value: str, output: str, feed_forward: str = ""
) -> None:
    """Make an encoder family known: one row of module names, see ``Family``; an existing row is replaced."""
    FAMILIES[model_type] = Family(blocks, query, key, value, output, feed_forward)


@dataclass(frozen=True)
class AttentionBlock:
    """The four projections of one attention block.

    ``num_heads`` counts the heads of the intact block, ``head_dim`` the rows of query, key and value that belong to
    one head (and the columns of ``output``); ``kept`` lists the heads still there, by their index in the intact block.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    num_heads: int
    head_dim: int
    kept: tuple[int, ...]
    module: nn.Module  # the module that owns query, key and value and computes the attention weights


def attention_blocks(model: nn.Module) -> list[AttentionBlock]:
    """The attention blocks of ``model``, first layer first; layers that share a block (ALBERT) count as one.

    Raises ``ValueError`` where ``model.config.model_type`` has no row in ``FAMILIES``, where the row's names lead
    nowhere in this model, or where the model has decoder layers (causal or cross attention); ``TypeError`` for what is
    no model of transformers.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "model_type"):
        raise TypeError(f"{type(model).__name__} is no model of transformers: it has no config with a model_type.")
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"attention heads of model_type {config.model_type!r} are not known (known: {', '.join(FAMILIES)}); "
            f"add a row of module names with gnorm.register({config.model_type!r}, blocks, query, key, value, output)."
        )
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is a decoder; only encoder classifiers can be pruned by head.")
    family = FAMILIES[config.model_type]
    owners = _named(model, family.blocks)
    num_heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
    kept = getattr(config, "head_mask", None) or [[1] * num_heads] * len(owners)
    return [
        AttentionBlock(
            query=owner.get_submodule(family.query),
            key=owner.get_submodule(family.key),
            value=owner.get_submodule(family.value),
            output=owner.get_submodule(family.output),
            num_heads=num_heads,
            head_dim=head_dim,
            kept=tuple(head for head, bit in enumerate(row) if bit),
            module=owner.get_submodule(family.query.rpartition(".")[0]),
        )
        for owner, row in zip(owners, kept, strict=True)
    ]


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The encoder layers of ``model``, first layer first: the modules that own the attention blocks."""
    return _named(model, FAMILIES[model.config.model_type].blocks.rpartition(".")[0])  # type: ignore[union-attr, index]


def _named(model: nn.Module, pattern: str) -> list[Any]:
    """The modules below the base model whose name is ``pattern``, first layer first."""
    base: Any = getattr(model, "base_model", model)
    found = [base]
    for name in pattern.split("."):
        below = (module.children() if name == "*" else [getattr(module, name, None)] for module in found)
        found = [module for modules in below for module in modules if isinstance(module, nn.Module)]
    if not found:
        raise ValueError(
            f"no module of {type(base).__name__} is named {pattern!r}; correct the row of model_type "
            f"{base.config.model_type!r} with gnorm.register."
        )
    return found


def head_mask_of(model: nn.Module) -> Tensor:
    """(layer, head) bool mask of the heads that are still there: all true until ``remove_heads`` was called."""
    blocks = attention_blocks(model)
    mask = torch.zeros(len(blocks), blocks[0].num_heads, dtype=torch.bool)
    for row, block in zip(mask, blocks, strict=True):
        row[list(block.kept)] = True
    return mask


def checked_mask(mask: Tensor | Sequence[Sequence[int]], blocks: Sequence[AttentionBlock]) -> Tensor:
    """``mask`` as a (layer, head) bool tensor on the CPU; 1 keeps a head, 0 takes it out.

    Raises ``ValueError`` for what is no table, for a shape other than (blocks, heads of a block), and for values other
    than 0 and 1.
    """
    try:
        mask = torch.as_tensor(mask).detach().cpu()
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"the head mask is no (layer, head) table of numbers: {error}.") from None
    shape = (len(blocks), blocks[0].num_heads)
    if tuple(mask.shape) != shape:
        raise ValueError(f"the head mask has shape {tuple(mask.shape)}, this model needs (layer, head) = {shape}.")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("the head mask holds values other than 0 and 1; 1 keeps a head, 0 takes it out.")
    return mask.bool()


@contextmanager
def masked(model: nn.Module, mask: Tensor | Sequence[Sequence[int]]) -> Iterator[None]:
    """Take heads out of the forward pass for the length of a ``with`` block.

    mask: (layer, head), 1 keeps and 0 takes out. The context vectors of a masked head are set to zero at the input of
    the output projection, which equals removing the head with its weights and biases. The hooks go when the block is
    left, by an exception too. Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1.
    """
    blocks = attention_blocks(model)
    mask = checked_mask(mask, blocks)
    with ExitStack() as hooks:
        for block, row in zip(blocks, mask, strict=True):
            gone = ~row[list(block.kept)]
            if gone.any():
                columns = gone.repeat_interleave(block.head_dim).to(block.output.weight.device)  # (kept * head_dim,)

                def zero_heads(_: nn.Module, inputs: tuple[Tensor, ...], columns: Tensor = columns) -> tuple[Tensor]:
                    return (inputs[0].masked_fill(columns, 0),)  # (batch, token, kept * head_dim)

                hooks.callback(block.output.register_forward_pre_hook(zero_heads).remove)
        yield


@contextmanager
def without_feed_forward(model: nn.Module) -> Iterator[None]:
    """Take the feed-forward blocks out of the forward pass for the length of a ``with`` block.

    The input of the projection that ends each block is set to zero; its bias remains, as it does for heads. Raises
    ``ValueError`` where the family's row names no feed-forward block.
    """
    attention_blocks(model)  # refuses what is not known
    config: Any = model.config
    with ExitStack() as hooks:
        for linear in _named(model, FAMILIES[config.model_type].feed_forward):
            hooks.callback(linear.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),)).remove)
        yield
