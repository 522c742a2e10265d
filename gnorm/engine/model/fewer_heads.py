"""Attention modules of transformers with fewer heads than they were built with, or with none.

``gnorm.storage.modeling`` copies these functions into saved folders, so they use nothing of gnorm but what they
import from ``projections``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .projections import cut, size_of_module

# Arguments of attention modules in transformers that give cross-attention what an encoder has made.
ENCODER_STATES = ("key_value_states", "encoder_hidden_states")


# Attributes of attention modules in transformers: the number of heads, and the width of all heads together.
QUERY_COUNTS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
KEY_COUNTS = ("num_key_value_heads", "num_kv_heads")
HEAD_COUNTS = (*QUERY_COUNTS, *KEY_COUNTS, "all_head_size", "split_size", "inner_dim")
WIDTHS = ("embed_dim", "hidden_size")  # the width of all heads together where it is that of the output's input
RESIDUAL = "residual"  # the argument that an attention module itself adds to its output


LAYER_NUMBERS = ("layer_idx", "layer_id")  # what they call their number in a cache of keys and values


class CountsLeft:
    """A configuration of whose ``counts`` there are others; all else is the configuration's, also where it changes."""

    def __init__(self, config: Any, counts: dict[str, Any]) -> None:
        vars(self).update({"whole": config, **counts})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "whole":
            raise AttributeError(name)
        return getattr(self.whole, name)


def count_heads(module: Any, left: int, of: int, width: int) -> None:
    """Let the attributes of an attention module that count heads follow: ``left`` of its ``of`` heads are left.

    width: of all heads together, before.
    """
    for name in (*HEAD_COUNTS, *(name for name in WIDTHS if getattr(module, name, None) == width)):
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) * left // of)


def counts_read(module: Any) -> list[str]:
    """The numbers of heads that methods of an attention module read in its configuration, as Phi-3's does."""
    methods = (inspect.unwrap(each) for kind in type(module).__mro__ for each in vars(kind).values())
    codes = [each.__code__ for each in methods if inspect.isfunction(each) and each.__name__ != "__init__"]
    read = {name for code in codes if "config" in code.co_names for name in code.co_names} - vars(module).keys()
    config = vars(module).get("config")
    return [
        name for name in (*QUERY_COUNTS, *KEY_COUNTS) if name in read and isinstance(getattr(config, name, None), int)
    ]


def count_in_config(module: Any, left: int, of: int) -> None:
    """``count_heads`` of what ``counts_read`` finds: the module gets a configuration of its own."""
    if left and (names := counts_read(module)):  # without heads nothing reads them
        config = module.config
        counts = {name: getattr(config, name) * left // of for name in names}
        module.config = CountsLeft(getattr(config, "whole", config), counts)


def found_by_head(block: Any, path: str, axis: int) -> tuple[Any, str, Any, int]:
    """The owner, the name there, and the parameter or list of modules at ``path`` below a block, and its size along
    ``axis``; None and 0 where it is missing."""
    around, _, name = path.rpartition(".")
    owner = dict(block.named_modules()).get(around)
    given = getattr(owner, name, None)
    return (
        owner,
        name,
        given,
        0 if given is None else len(given) if isinstance(given, nn.ModuleList) else given.shape[axis],
    )


def cut_by_head(block: Any, path: str, axis: int, heads: list[int], of: int) -> None:
    """Keep the entries of ``heads``, of ``of`` heads, in what ``found_by_head``; without heads nothing is left."""
    owner, name, given, size = found_by_head(block, path, axis)
    if given is None:
        return
    keep = torch.arange(size, device="cpu").view(of, -1)[heads].flatten()
    if isinstance(given, nn.ModuleList):
        left: Any = nn.ModuleList(given[number] for number in keep)
    else:
        left = given.detach().index_select(axis, keep.to(given.device))
        left = nn.Parameter(left, given.requires_grad) if heads else None
    setattr(owner, name, left)
    if isinstance(owner, nn.Embedding):
        owner.embedding_dim = len(keep)
    if not heads:
        owner._is_hf_initialized = True  # transformers looks for no weights to initialise in it


def cut_argument(module: Any, heads: list[int], names: Iterable[str], of: int) -> None:
    """From now on, cut the arguments ``names`` of an attention module's forward to ``heads`` of its ``of``."""
    for name in () if hasattr(module, "kept_heads") else names:
        at = list(inspect.signature(type(module).forward).parameters).index(name) - 1  # self is not passed
        module.register_forward_pre_hook(partial(select_heads, name, at, of), with_kwargs=True)
    module.kept_heads = heads


def cut_argument_of_layers(module: Any, heads: list[int], name: str, table: str, maker: str) -> None:
    """As ``cut_argument``, for an argument that one layer makes and hands on to the next; see ``cut_shared_bias``."""
    if not hasattr(module, "kept_heads"):
        module.register_forward_pre_hook(partial(cut_shared_bias, name, table, maker), with_kwargs=True)
        module.register_forward_hook(hand_on_shared_bias)
    module.kept_heads = heads


def select_heads(name: str, at: int, of: int, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Cut an argument of an attention module, (text, head, ...) or (text * head, ..., ...), to the kept heads of the
    ``of`` that there were. It is passed by name or ``at``.

    One that is the same for all heads, (text, 1, ...), stays as it is.
    """
    given = kwargs.get(name, args[at] if len(args) > at else None)
    if given is None or (given.dim() != 3 and given.shape[1] == 1):
        return args, kwargs
    if given.dim() == 3:
        texts = len(args[0] if args else kwargs["hidden_states"])
        queries = max(1, len(given) // texts // of)  # one for all texts is of one query a head
        given = given.unflatten(0, (-1, of, queries))[:, module.kept_heads].flatten(0, 2)
    else:
        given = given.unflatten(1, (of, -1))[:, module.kept_heads].flatten(1, 2)
    if name in kwargs:
        return args, {**kwargs, name: given}
    return (*args[:at], given, *args[at + 1 :]), kwargs


def cut_shared_bias(
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


def hand_on_shared_bias(module: Any, _: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give the next layer the bias of all heads; None where there is none, so that it makes its own."""
    return output[0], vars(module).pop("whole_bias"), *output[2:]


def _cache_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The cache of keys and values among the arguments of an attention module; None where there is none."""
    return next((given for given in (*args, *kwargs.values()) if hasattr(given, "get_seq_length")), None)


def drop_projections(block: Any, inputs: Iterable[str], output: str) -> None:
    """Take the projections out of a block without heads: their weights have no elements, which many tools get wrong.

    inputs, output: the names of the modules below ``block``; those that it lacks are passed over. A function takes the
    place of each: ``without_rows``, and ``bias_alone`` for the output projection, whose bias becomes a parameter
    NAME_bias of the module around it.
    """
    for path in dict.fromkeys((*inputs, output)):
        around, _, name = path.rpartition(".")
        owner = block.get_submodule(around)
        if (projection := owner._modules.pop(name, None)) is None:
            continue
        owner._is_hf_initialized = True  # transformers looks for no weights to initialise in it
        if path == output:
            owner.register_parameter(f"{name}_bias", projection.bias)
            setattr(owner, name, partial(bias_alone, owner, f"{name}_bias", size_of_module(projection)[0]))
        else:
            setattr(owner, name, without_rows)


def without_rows(hidden_states: Tensor) -> Tensor:
    """The output of a projection without rows: (text, token, 0)."""
    return hidden_states.new_empty(*hidden_states.shape[:-1], 0)


def bias_alone(owner: nn.Module, name: str, width: int, context: Tensor) -> Tensor:
    """The output of an output projection without columns, (text, token, width): the parameter ``name`` of ``owner``, or
    zeros where there is none. Only the number of texts and tokens of ``context`` counts."""
    bias, shape = getattr(owner, name), (*context.shape[:-1], width)
    return context.new_zeros(shape) if bias is None else bias.expand(shape).clone()


def shrink_feed_forward(owner: Any, inputs: Iterable[str], output: str, size: int) -> None:
    """Leave the first ``size`` neurons of a feed-forward block, and let what counts them follow."""
    around, _, last = output.rpartition(".")
    module, whole = owner.get_submodule(around), size_of_module(owner.get_submodule(output))[1]
    for name in (*inputs, output) if 0 < size < whole else ():
        projection, of_input = owner.get_submodule(name), name == output
        cut(projection, torch.arange(size_of_module(projection)[of_input] // whole * size), of_input)
    if hasattr(module, "intermediate_size"):
        module.intermediate_size = size
    if not size:
        drop_projections(owner, inputs, output)
        getattr(module, last).weight = None  # which T5's looks at


def skip_attention(
    module: Any, block: Any, output: str, norm: nn.Module | None, shared_bias: bool, listed: bool
) -> None:
    """Let an attention module without heads compute ``without_heads``, after ``drop_projections`` of its block."""
    around, _, name = output.rpartition(".")
    owner = block.get_submodule(around)
    project = getattr(owner, name) if any(owner is other for other in module.modules()) else None
    layer = next((getattr(module, name) for name in LAYER_NUMBERS if hasattr(module, name)), None)
    names = list(inspect.signature(type(module).forward).parameters)
    residual = names.index(RESIDUAL) - 2 if RESIDUAL in names else -1  # after self and the hidden states
    module.forward = partial(without_heads, project, norm, layer, shared_bias, listed, residual)


def without_heads(
    project: Callable[[Tensor], Tensor] | None,
    norm: nn.Module | None,
    layer: int | None,
    shared_bias: bool,
    listed: bool,
    residual: int,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Sequence[Tensor | None]:
    """The forward pass of an attention module without heads.

    project, norm: ``bias_alone`` of its output projection and the normalisation, where the module itself applies them
    after attention. Where ``bias_alone`` comes later, the hidden states stand for the contexts that it does not read.
    layer: its number in a cache of keys and values. Dropout is left out: it has nothing to drop. Returns hidden states
    (text, token, hidden), and attention weights for no heads; between them the place of a shared bias; ``listed``, in a
    list. residual: where among ``args`` an argument RESIDUAL is that the module adds; -1 where it has none.

    A cache counts its tokens by what each layer has put in, so one zero a token is put in.
    """
    texts, tokens, _width = hidden_states.shape
    context = hidden_states if project is None else project(hidden_states)
    if norm is not None:
        context = norm(hidden_states + context)
    if residual >= 0:
        context = context + (kwargs[RESIDUAL] if RESIDUAL in kwargs else args[residual])
    cache = _cache_in(args, kwargs)
    encoded = next((kwargs[name] for name in ENCODER_STATES if kwargs.get(name) is not None), None)
    keys = hidden_states if encoded is None else encoded  # (text, token, hidden)
    of_decoder, of_encoder = (getattr(cache, f"{name}_attention_cache", None) for name in ("self", "cross"))
    if encoded is None and cache is not None:
        nothing = hidden_states.new_zeros(texts, 1, tokens, 1)
        keys, _ = (cache if of_decoder is None else of_decoder).update(nothing, nothing, layer)
    elif of_encoder is not None and not cache.is_updated.get(layer):
        nothing = hidden_states.new_zeros(texts, 1, keys.shape[1], 1)
        of_encoder.update(nothing, nothing, layer)
        cache.is_updated[layer] = True
    weights = hidden_states.new_empty(texts, 0, tokens, keys.shape[-2])
    given = (context, None, weights) if shared_bias else (context, weights)
    return [*given] if listed else given
