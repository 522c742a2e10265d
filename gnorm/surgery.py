"""Removing heads for good."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .engine.projections import cut, is_transposed
from .engine.state import in_use, with_own_config
from .heads import AttentionBlock, attention_blocks, checked_mask, config_of, head_mask_of, refuse_removal

# Attributes of attention modules in transformers: the number of heads, and the width of all heads together.
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")

HEAD_WIDTHS = ("all_head_size", "split_size", "inner_dim")

# Arguments of attention modules in transformers that give cross-attention what an encoder has made.
ENCODER_STATES = ("key_value_states", "encoder_hidden_states")


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
            stay = row[list(block.kept)]  # (kept,)
            if not stay.all():
                for module, parts in block.by_module().items():
                    rows = torch.cat([part.rows[stay].flatten() for part in parts]).sort().values
                    cut(module, rows, parts[0].of_input)
                _adapt(block, row)
        if not new_mask.all():
            with_own_config(model).head_mask = new_mask.int().tolist()


def _adapt(block: AttentionBlock, row: Tensor) -> None:
    """Make the attention module of a block work with the heads of ``row`` (head,) bool, whose weights are kept."""
    module: Any = block.module
    heads = row.nonzero()[:, 0].tolist()
    for names, value in (
        (HEAD_COUNTS, len(heads) * block.queries_per_head),
        (HEAD_WIDTHS, len(heads) * block.context_dim),
    ):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, value)
    if block.per_head:
        at = list(inspect.signature(type(module).forward).parameters).index(block.per_head) - 1  # self is not passed
        if not hasattr(module, "kept_heads"):
            if block.shared_bias:
                share = partial(_cut_shared_bias, block.per_head, *block.shared_bias)
                module.register_forward_pre_hook(share, with_kwargs=True)
                module.register_forward_hook(_hand_on_shared_bias)
            else:
                module.register_forward_pre_hook(partial(_select_heads, block.per_head, at), with_kwargs=True)
        module.kept_heads = heads
    if block.skippable and not heads:
        inside = any(block.output is other for other in module.modules())
        output = block.output if inside else None
        layer = getattr(module, "layer_idx", None)
        module.forward = partial(_without_heads, output, block.norm, layer, bool(block.shared_bias))


def _select_heads(name: str, at: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cut an argument of an attention module, (text, head, ...), to the kept heads. It is passed by name or ``at``.

    One that is the same for all heads, (text, 1, ...), stays as it is.
    """
    given = kwargs.get(name, args[at] if len(args) > at else None)
    if given is None or given.shape[1] == 1:
        return args, kwargs
    if name in kwargs:
        return args, {**kwargs, name: given[:, module.kept_heads]}
    return (*args[:at], given[:, module.kept_heads], *args[at + 1 :]), kwargs


def _cut_shared_bias(
    name: str, table: str, maker: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Cut the bias (1, head, query, key) that layers share to the kept heads; keep the whole one for the next layer.

    In the first layer, which owns the ``table``, the whole one is made by the method ``maker`` of the module.
    """
    whole = kwargs.get(name)
    if whole is None and hasattr(module, table):
        hidden_states, cache = args[0] if args else kwargs["hidden_states"], _cache_in(args, kwargs)
        past, tokens = 0, hidden_states.shape[1]
        keys = tokens
        if cache is not None:
            past = cache.get_seq_length(module.layer_idx)
            keys, _ = cache.get_mask_sizes(tokens, module.layer_idx)
        whole = getattr(module, maker)(tokens, keys, device=hidden_states.device, past_seen_tokens=past)
    module.whole_bias = whole
    return args, kwargs if whole is None else {**kwargs, name: whole[:, module.kept_heads]}


def _hand_on_shared_bias(module: Any, _: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give the next layer the bias of all heads; None where there is none, so that it makes its own."""
    return output[0], vars(module).pop("whole_bias"), *output[2:]


def _cache_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The cache of keys and values among the arguments of an attention module; None where there is none."""
    return next((given for given in (*args, *kwargs.values()) if hasattr(given, "get_seq_length")), None)


def _without_heads(
    output: Any,
    norm: nn.Module | None,
    layer: int | None,
    shared_bias: bool,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor | None, ...]:
    """The forward pass of an attention module without heads, computed from an empty context.

    output, norm: the output projection and the normalisation, where the module itself applies them after attention.
    layer: its number in a cache of keys and values. Dropout is left out: it has nothing to drop. Returns hidden states
    (text, token, hidden), and attention weights for no heads; between them the place of a shared bias.

    A cache counts its tokens by what each layer has put in, so self-attention puts in one zero a token.
    """
    texts, tokens, _width = hidden_states.shape
    context = hidden_states.new_empty(texts, tokens, 0)
    if output is not None:
        # Conv1D makes a view of its input, which an empty one does not allow
        context = output.bias.expand(texts, tokens, -1) if is_transposed(output) else output(context)
    if norm is not None:
        context = norm(hidden_states + context)
    cache = _cache_in(args, kwargs)
    if cache is not None and all(kwargs.get(name) is None for name in ENCODER_STATES):
        nothing = hidden_states.new_zeros(texts, 1, tokens, 1)
        getattr(cache, "self_attention_cache", cache).update(nothing, nothing, layer)
    weights = hidden_states.new_empty(texts, 0, tokens, tokens)
    return (context, None, weights) if shared_bias else (context, weights)
