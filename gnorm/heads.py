"""Where attention heads live in a model, and masking them.

An encoder family is one row of module names in ``FAMILIES``. Nothing else in the package knows an architecture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from .engine.state import in_use, uncompiled


@dataclass(frozen=True)
class Family:
    """Module names of one encoder family: ``blocks`` from the base model, the others from each block.

    ``*`` stands for any index, so ``encoder.layer.*.attention`` names the attention block of every layer.

    feed_forward: (from the base model) the projection at the end of each feed-forward block; "" for none.
    also: (from each block) further projections with rows by head, such as DeBERTa's of positions. A model whose
    configuration leaves one out does without it.
    per_head: an argument of the attention module's forward whose second axis counts heads, such as MPNet's bias by
    position.
    skippable: the attention module (the one that owns query) returns a tuple of its output and the attention weights,
    so it can be skipped when it has no head left.
    norm: (from each block) the normalisation of the residual sum, for a skippable module that itself ends in one.
    classifier: the class of transformers that reads the first token of each text alone, so that padding behind a text
    changes nothing.
    """

    blocks: str
    query: str
    key: str
    value: str
    output: str
    feed_forward: str = ""
    also: tuple[str, ...] = ()
    per_head: str = ""
    skippable: bool = False
    norm: str = ""
    classifier: str = ""


_BERT_LIKE = Family(
    "encoder.layer.*.attention",
    "self.query",
    "self.key",
    "self.value",
    "output.dense",
    "encoder.layer.*.output.dense",
    skippable=True,
)


_VIT_LIKE = Family("layers.*.attention", "q_proj", "k_proj", "v_proj", "o_proj", "layers.*.mlp.fc2", skippable=True)


FAMILIES: dict[str, Family] = {
    "bert": replace(_BERT_LIKE, classifier="BertForSequenceClassification"),
    "roberta": replace(_BERT_LIKE, classifier="RobertaForSequenceClassification"),
    "xlm-roberta": replace(_BERT_LIKE, classifier="XLMRobertaForSequenceClassification"),
    "camembert": replace(_BERT_LIKE, classifier="CamembertForSequenceClassification"),
    "electra": replace(_BERT_LIKE, classifier="ElectraForSequenceClassification"),
    "albert": Family(
        "encoder.albert_layer_groups.*.albert_layers.*.attention",
        "query",
        "key",
        "value",
        "dense",
        "encoder.albert_layer_groups.*.albert_layers.*.ffn_output",
        skippable=True,
        norm="LayerNorm",
        classifier="AlbertForSequenceClassification",
    ),
    "distilbert": Family(
        "transformer.layer.*.attention",
        "q_lin",
        "k_lin",
        "v_lin",
        "out_lin",
        "transformer.layer.*.ffn.lin2",
        skippable=True,
        classifier="DistilBertForSequenceClassification",
    ),
    "deberta-v2": Family(
        "encoder.layer.*.attention",
        "self.query_proj",
        "self.key_proj",
        "self.value_proj",
        "output.dense",
        "encoder.layer.*.output.dense",
        also=("self.pos_key_proj", "self.pos_query_proj"),
        skippable=True,
        classifier="DebertaV2ForSequenceClassification",
    ),
    "mpnet": Family(
        "encoder.layer.*.attention",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.o",
        "encoder.layer.*.output.dense",
        per_head="position_bias",
        skippable=True,
        classifier="MPNetForSequenceClassification",
    ),
    "vit": _VIT_LIKE,
    "deit": _VIT_LIKE,
}


def register(
    model_type: str,
    blocks: str,
    query: str,
    key: str,
    value: str,
    output: str,
    feed_forward: str = "",
    also: tuple[str, ...] = (),
    per_head: str = "",
    skippable: bool = False,
    norm: str = "",
) -> None:
    """Add a row of module names to ``FAMILIES``, or replace the one of this model_type; see ``Family``."""
    FAMILIES[model_type] = Family(blocks, query, key, value, output, feed_forward, also, per_head, skippable, norm)


@dataclass(frozen=True)
class AttentionBlock:
    """The projections of one attention block.

    ``num_heads`` counts the heads of the intact block. ``head_dim`` counts the rows of query, key and value that belong
    to one head, and the columns of ``output``. ``kept`` lists the heads that are left, by their index in the intact
    block. ``also``, ``per_head``, ``skippable`` and ``norm`` are as in ``Family``.
    """

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear
    num_heads: int
    head_dim: int
    kept: tuple[int, ...]
    module: nn.Module  # the module that owns query, key and value and computes the attention weights
    also: tuple[nn.Linear, ...] = ()
    per_head: str = ""
    skippable: bool = False
    norm: nn.Module | None = None


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
    ``TypeError`` for what is no model of transformers.
    """
    if inside := wrapped_in(model):
        raise ValueError(f"{type(model).__name__} wraps a model: give {inside}.")
    config = getattr(model, "config", None)
    if not hasattr(config, "model_type") or not isinstance(model, nn.Module):
        hint = f"give its .{inside}" if (inside := _child_of(model)) else "it has no config with a model_type"
        raise TypeError(f"{type(model).__name__} is no model of transformers: {hint}.")
    return config


def attention_blocks(model: nn.Module) -> list[AttentionBlock]:
    """The attention blocks of ``model``, first layer first; layers that share a block (ALBERT) count as one.

    Raises as ``config_of`` does, and ``ValueError`` where ``model.config.model_type`` has no row in ``FAMILIES``, where
    the model has no module of the row's names, where it has decoder layers (causal or cross attention), or where a
    projection is no linear layer with a weight of its own, or not of the size that its heads need.
    """
    config = config_of(model)
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
    sizes = (getattr(config, name, None) for name in ("head_dim", "attention_head_size"))
    head_dim = int(next(filter(None, sizes), config.hidden_size // num_heads))
    kept = getattr(config, "head_mask", None) or [[1] * num_heads] * len(owners)
    blocks = [
        AttentionBlock(
            query=owner.get_submodule(family.query),
            key=owner.get_submodule(family.key),
            value=owner.get_submodule(family.value),
            output=owner.get_submodule(family.output),
            num_heads=num_heads,
            head_dim=head_dim,
            kept=tuple(head for head, bit in enumerate(row) if bit),
            module=owner.get_submodule(family.query.rpartition(".")[0]),
            also=tuple(found[name] for name in family.also if name in (found := dict(owner.named_modules()))),
            per_head=family.per_head,
            skippable=family.skippable,
            norm=owner.get_submodule(family.norm) if family.norm else None,
        )
        for owner, row in zip(owners, kept, strict=True)
    ]
    _check_projections(blocks)
    for layer, block in enumerate(blocks):
        rows, needed = block.query.out_features, len(block.kept) * block.head_dim
        if {rows, block.key.out_features, block.value.out_features, block.output.in_features} != {needed}:
            raise ValueError(
                f"layer {layer} has {rows} query rows, its {len(block.kept)} heads of {block.head_dim} need {needed}: "
                "the weights contradict config.head_mask, or the model shares keys and values between heads."
            )
    return blocks


def _check_projections(blocks: Sequence[AttentionBlock]) -> None:
    """Raise ``ValueError`` for a projection that cannot be cut to fewer heads, and for a weight that two share."""
    owners: dict[int, str] = {}
    for layer, block in enumerate(blocks):
        named = {"query": block.query, "key": block.key, "value": block.value, "output": block.output}
        for name, linear in [*named.items(), *(("position", linear) for linear in block.also)]:
            what = f"the {name} projection of layer {layer}"
            _check_projection(linear, what)
            if (other := owners.setdefault(id(linear.weight), what)) != what:
                raise ValueError(f"{what} shares its weight with {other}: give each a weight of its own first.")
        if block.per_head and block.per_head not in signature(type(block.module).forward).parameters:
            raise ValueError(
                f"{type(block.module).__name__} takes no {block.per_head!r}: correct per_head in the family's row with "
                "gnorm.register."
            )


def _check_projection(linear: Any, what: str) -> None:
    """Raise ``ValueError``, with the remedy, for anything but a linear layer with its weight and bias as parameters."""
    kind, own = type(linear), getattr(linear, "_parameters", {})
    if nn.utils.parametrize.is_parametrized(linear):
        remedy = 'call torch.nn.utils.parametrize.remove_parametrizations(projection, "weight") first'
        raise ValueError(f"{what} is under a parametrization of torch.nn.utils: {remedy}.")
    if "weight_g" in own:
        raise ValueError(f"{what} is under weight_norm: call torch.nn.utils.remove_weight_norm(projection) first.")
    if any(hasattr(linear, name) for name in ("base_layer", "lora_A", "lora_down", "adapter_layer")):
        raise ValueError(
            f"{what} carries an adapter ({kind.__name__}): merge it into the weights first, with merge_and_unload() of "
            "a PEFT model."
        )
    weight, bias = own.get("weight"), own.get("bias")
    if (
        weight is not None
        and not weight.is_floating_point()
        or any("quant" in f"{k.__module__}.{k.__name__}".lower() for k in (kind, type(weight)))
    ):
        raise ValueError(
            f"{what} is quantised ({kind.__name__}): load the model in float32, bfloat16 or float16, remove heads, and "
            "quantise what is left."
        )
    plain = isinstance(linear, nn.Linear) and kind.forward is nn.Linear.forward
    parameters = type(weight) in (nn.Parameter, type(None)) and type(bias) in (nn.Parameter, type(None))
    if not plain or not parameters or (weight is None and "weight_orig" not in own):  # torch.nn.utils.prune's name
        raise ValueError(
            f"{what} is no torch.nn.Linear with parameters of its own but {kind.__name__}: put a plain linear layer in "
            "its place (an adapter merged, a quantised layer dequantised)."
        )
    forward = vars(linear).get("forward")
    if forward is not None and not hasattr(forward, "_torchdynamo_orig_callable"):
        raise ValueError(f"somebody replaced the forward of {what}: undo that first (del projection.forward).")


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
        if inside := _child_of(model):
            raise ValueError(f"{type(model).__name__} wraps a model: give its .{inside}.")
        raise ValueError(
            f"no module of {type(base).__name__} is named {pattern!r}; correct the row of model_type "
            f"{base.config.model_type!r} with gnorm.register."
        )
    return found


def head_mask_of(model: nn.Module) -> Tensor:
    """The head mask (layer, head), bool: true for the heads that are left; all of them before ``remove_heads``."""
    blocks = attention_blocks(model)
    mask = torch.zeros(len(blocks), blocks[0].num_heads, dtype=torch.bool)
    for row, block in zip(mask, blocks, strict=True):
        row[list(block.kept)] = True
    return mask


def checked_mask(mask: Tensor | Sequence[Sequence[int]], blocks: Sequence[AttentionBlock]) -> Tensor:
    """``mask`` as a (layer, head) bool tensor on the CPU; 1 keeps a head, 0 takes it out.

    Raises ``ValueError`` for what makes no tensor, for a shape other than (blocks, heads of a block), and for values
    other than 0 and 1.
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
    the output projection, which equals removing the head with its weights and biases. The hooks are removed on leaving,
    after an exception too. A compiled model runs uncompiled meanwhile, since compiled code does not call new hooks.

    Raises ``ValueError`` for a mask of the wrong shape or with values other than 0 and 1, where another thread has the
    model under a mask, and as ``attention_blocks`` does.
    """
    blocks = attention_blocks(model)
    mask = checked_mask(mask, blocks)
    with ExitStack() as hooks:
        hooks.enter_context(in_use(model, masks=True))
        hooks.enter_context(uncompiled(model))
        for block, row in zip(blocks, mask, strict=True):
            gone = ~row[list(block.kept)]
            if gone.any():
                columns = gone.repeat_interleave(block.head_dim).to(block.output.weight.device)  # (kept * head_dim,)
                hooks.callback(block.output.register_forward_pre_hook(partial(_zero_heads, columns)).remove)
        yield


def _zero_heads(columns: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (inputs[0].masked_fill(columns, 0),)  # (batch, token, kept * head_dim)


def refuse_removal(blocks: Sequence[AttentionBlock]) -> None:
    """Raise ``ValueError`` where heads cannot be removed from a model.

    They cannot under ``gnorm.masked``, whose mask would no longer fit the projections, nor where a weight is computed
    anew before every pass (torch.nn.utils.prune, spectral_norm).
    """
    for layer, block in enumerate(blocks):
        if any(getattr(hook, "func", None) is _zero_heads for hook in block.output._forward_pre_hooks.values()):
            raise ValueError("heads cannot be removed while the model is under gnorm.masked: leave that block first.")
        for linear in (block.query, block.key, block.value, block.output, *block.also):
            for part in ("weight", "bias"):
                if f"{part}_orig" in linear._parameters:
                    spectral = any(type(h).__name__ == "SpectralNorm" for h in linear._forward_pre_hooks.values())
                    undo = "remove_spectral_norm" if spectral else "prune.remove"
                    raise ValueError(
                        f"the {part} of a projection of layer {layer} is made anew before every pass: make it final "
                        f'first, with torch.nn.utils.{undo}(projection, "{part}").'
                    )


@contextmanager
def without_feed_forward(model: nn.Module) -> Iterator[None]:
    """Take the feed-forward blocks out of the forward pass for the length of a ``with`` block.

    The input of the projection that ends each block is set to zero; its bias remains, as that of the output projection
    does for heads.

    Raises ``ValueError`` where the family's row names no feed-forward block, and as ``attention_blocks`` does.
    """
    attention_blocks(model)  # raises for an unknown model
    config: Any = model.config
    with ExitStack() as hooks:
        hooks.enter_context(in_use(model, masks=True))
        hooks.enter_context(uncompiled(model))
        for linear in _named(model, FAMILIES[config.model_type].feed_forward):
            hooks.callback(linear.register_forward_pre_hook(lambda _, inputs: (torch.zeros_like(inputs[0]),)).remove)
        yield


def table_of(blocks: Sequence[AttentionBlock], values: Sequence[Tensor]) -> Tensor:
    """The table (layer, head) float64 of ``values``, (kept head,) for each block; -inf for heads that are gone."""
    scores = torch.full((len(blocks), blocks[0].num_heads), -torch.inf, dtype=torch.float64)
    for row, block, of_block in zip(scores, blocks, values, strict=True):
        row[list(block.kept)] = of_block.double()
    return scores
