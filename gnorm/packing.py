"""Texts of different lengths in one forward pass, without padding, and the last block for the tokens that are read.

An encoder's projections, norms and feed-forward blocks treat every token alike; only attention knows which text a
token belongs to. So the layers run on one long row of tokens (1, token, hidden), in which texts of like length stand
together as rectangles, and attention is computed rectangle by rectangle. Where the classifier reads nothing but the
first token of each text, the last pass computes queries, output projection and feed-forward block for that token alone.
Neither changes a result beyond the rounding of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from .heads import attention_blocks, layers_of


@dataclass(frozen=True)
class Rectangle:
    """Consecutive texts of a row of tokens, each given the same width."""

    texts: int
    width: int
    bias: Tensor | None  # (text, 1, 1, token): 0 for a token, -inf for padding; None where there is no padding


@dataclass(frozen=True)
class Row:
    """Where the tokens of padded texts (text, longest) stand in a row of tokens."""

    rectangles: tuple[Rectangle, ...]
    tokens: Tensor  # (token,) position of each token of the row among the text * longest of the padded texts
    first: Tensor  # (text,) position in the row of each text's first token
    shape: tuple[int, int]  # (text, longest)

    @classmethod
    def of(cls, attention_mask: Tensor, sizes: list[int], dtype: torch.dtype) -> Row:
        """The row of texts (text, longest), longest first, in rectangles of ``sizes`` texts."""
        texts, longest = attention_mask.shape
        positions = torch.arange(texts * longest, device=attention_mask.device).view(texts, longest)
        rectangles, tokens, first, begin = [], [], [], 0
        for rows, mask in zip(positions.split(sizes), attention_mask.split(sizes), strict=True):
            width = int(mask.any(0).nonzero().max()) + 1
            mask = mask[:, :width].bool()
            bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
            rectangles.append(Rectangle(len(rows), width, None if bool(mask.all()) else bias[:, None, None, :]))
            tokens.append(rows[:, :width].flatten())
            first.append(begin + width * torch.arange(len(rows), device=mask.device))
            begin += rows[:, :width].numel()
        return cls(tuple(rectangles), torch.cat(tokens), torch.cat(first), (texts, longest))


@dataclass(frozen=True)
class Packing:
    """How the layers of a model are passed through: found out once, by ``packing_of``."""

    passes: int  # calls of layers in one forward pass
    first_token: bool  # whether the classifier reads the first token of each text alone


_ROW: ContextVar[Row] = ContextVar("row of tokens at work")


def _attention_in_rectangles(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a row; query (1, head, token or text, head_dim) -> (1, token or text, head, head_dim).

    In the last pass there may be a query per text, and keys and values come as (1, token / text * head, text,
    head_dim): shaped like the queries by modules that know no other shape.
    """
    row, (_one, heads, length, head_dim) = _ROW.get(), query.shape
    query = query.transpose(1, 2)
    if not heads:
        return query, None
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    wide = narrow = [r.texts * r.width for r in row.rectangles]
    if length < len(row.tokens):
        narrow = [r.texts for r in row.rectangles]
        key, value = (t.reshape(1, -1, heads, head_dim)[:, : len(row.tokens)] for t in (key, value))
    contexts = []
    for r, q, k, v in zip(
        row.rectangles, query.split(narrow, 1), key.split(wide, 1), value.split(wide, 1), strict=True
    ):
        q, k, v = (t.view(r.texts, -1, heads, head_dim).transpose(1, 2) for t in (q, k, v))
        context = scaled_dot_product_attention(q, k, v, attn_mask=r.bias, scale=scaling)
        contexts.append(context.transpose(1, 2).reshape(1, -1, heads, head_dim))
    return torch.cat(contexts, 1), None


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """(text, class); ``ValueError`` for a model that gives no such thing."""
    logits = getattr(model(**inputs), "logits", None)
    if logits is None or logits.dim() != 2:
        given = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise ValueError(f"{type(model).__name__} gives {given}, not (text, class): load it as a sequence classifier.")
    return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no parameter asked for a gradient; mode and requires_grad are put back on leaving."""
    training = [module for module in model.modules() if module.training]
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module in training:
            module.training = True


@contextmanager
def attention_implementation(model: Any, name: str) -> Iterator[None]:
    """The attention implementation ``name`` for the length of a ``with`` block."""
    before = getattr(model.config, "_attn_implementation", None)
    if before in (None, name):
        yield
        return
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def packed(model: nn.Module, packing: Packing) -> Iterator[Callable[[dict[str, Tensor], Row], Tensor]]:
    """A forward function (inputs, row) -> logits (text, class) that runs the layers of ``model`` on rows of tokens.

    inputs are padded to the longest text as ever: embeddings and classifier see them so.
    """
    from transformers import AttentionInterface  # here, because it takes seconds and whoever has a model has paid

    AttentionInterface.register("gnorm_rectangles", _attention_in_rectangles)
    calls, everything = 0, torch.empty(0)

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        nonlocal calls, everything
        calls += 1
        row, hidden = _ROW.get(), inputs[0]
        if calls == 1:
            hidden = hidden.flatten(0, 1).index_select(0, row.tokens)[None]
        if calls == packing.passes and packing.first_token:
            # Keys and values are shaped like the queries, so their number has to be a multiple of the texts'.
            everything = pad(hidden, (0, 0, 0, -hidden.shape[1] % len(row.first)))
            hidden = hidden.index_select(1, row.first)
        return (hidden, *inputs[1:])

    def whole(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (everything,) if calls == packing.passes and packing.first_token else inputs

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        if calls < packing.passes:
            return output
        hidden, row = output[0] if isinstance(output, tuple) else output, _ROW.get()
        if packing.first_token:
            hidden = hidden.transpose(0, 1)  # (text, 1, hidden)
        else:
            padded = hidden.new_zeros(row.shape[0] * row.shape[1], hidden.shape[2])
            hidden = padded.index_copy(0, row.tokens, hidden[0]).unflatten(0, row.shape)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def forward(inputs: dict[str, Tensor], row: Row) -> Tensor:
        nonlocal calls, everything
        calls, token = 0, _ROW.set(row)
        try:
            return logits_of(model, inputs)
        finally:
            everything = torch.empty(0)
            _ROW.reset(token)

    with ExitStack() as hooks:
        for layer in layers_of(model):
            hooks.callback(layer.register_forward_pre_hook(enter).remove)
            hooks.callback(layer.register_forward_hook(leave).remove)
        last = attention_blocks(model)[-1]
        for projection in (last.key, last.value):
            hooks.callback(projection.register_forward_pre_hook(whole).remove)
        hooks.enter_context(attention_implementation(model, "gnorm_rectangles"))
        yield forward


@torch.no_grad()
def packing_of(model: Any, inputs: dict[str, Tensor]) -> Packing | None:
    """How ``model`` passes through its layers, tried on a text; None where it has to be given padded texts.

    Whether the classifier reads other tokens than the first is seen by making them NaN behind the last layer. A model
    is packed only where that gives the logits that it gives without: modules that compute attention in a way of their
    own, and classifiers that read more than hidden states, do not.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return None
    calls: list[nn.Module] = []

    def poison(_: nn.Module, __: Any, output: Any) -> None:
        if len(calls) == 2 * passes:
            (output[0] if isinstance(output, tuple) else output)[:, 1:] = torch.nan

    with evaluating(model), ExitStack() as hooks:
        for layer in layers_of(model):
            hooks.callback(layer.register_forward_hook(lambda layer, *_: calls.append(layer)).remove)
        logits, passes = logits_of(model, inputs), len(calls)
        for layer in layers_of(model):
            hooks.callback(layer.register_forward_hook(poison).remove)
        first_token = torch.equal(model(**inputs).logits, logits)
    packing = Packing(passes, first_token)
    row = Row.of(inputs["attention_mask"], [len(logits)], logits.dtype)
    try:
        with evaluating(model), packed(model, packing) as forward:
            off = (forward(inputs, row) - logits).abs().max() / logits.abs().max()
    except (RuntimeError, IndexError):  # shapes that do not fit, or layers that are called otherwise
        return None
    return packing if bool(off < torch.finfo(logits.dtype).eps ** 0.5) else None
