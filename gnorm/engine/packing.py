"""Texts of different lengths in one forward pass, without padding, and the last block for the tokens that are read.

An encoder's projections, norms and feed-forward blocks treat every token alike; only attention knows which text a
token belongs to. So the layers run on one long row of tokens (1, token, hidden) without padding; attention alone brings
texts of like length together into padded rectangles. Where the classifier reads nothing but the first token of each
text, the last pass computes queries, output projection and feed-forward block for that token alone, and applies key and
value weights to one vector a text and head instead of to every token. Neither changes a result beyond the rounding of a
sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..heads import AttentionBlock, attention_blocks, layers_of
from .known_models import packable
from .state import attention_implementation, evaluating


@dataclass(frozen=True)
class Rectangle:
    """Texts of a row that attention is computed for together, each given the same width."""

    texts: int
    width: int
    bias: Tensor | None  # (text, 1, 1, token): 0 for a token, -inf for padding; None where there is no padding


class _Moved(torch.autograd.Function):
    """``x[there]``, whose gradient is gathered as well: its rows at ``back``, and zero at ``gaps``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, gaps: Tensor | None) -> Tensor:
        ctx.back, ctx.gaps = back, gaps
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradient.index_select(0, ctx.back)
        return (gradient if ctx.gaps is None else gradient.index_fill_(0, ctx.gaps, 0)), None, None, None


@dataclass(frozen=True)
class Places:
    """An order in which things are set, gaps among them."""

    there: Tensor  # (place,) which thing stands there; in a gap, some other
    back: Tensor  # (thing,) where it stands
    gaps: Tensor  # (gap,) places that hold nothing
    as_they_are: bool  # whether that is the order that they have

    @classmethod
    def of(cls, there: Tensor, real: Tensor) -> Places:
        """From what stands in each place, and whether it does."""
        at = real.nonzero()[:, 0]
        back = torch.empty_like(at).index_copy(0, there[at], at)
        return cls(there, back, (~real).nonzero()[:, 0], torch.equal(there, torch.arange(len(back)).to(there)))

    def set(self, x: Tensor) -> Tensor:
        """(thing, ...) -> (place, ...). What is made of a gap must be left out of the result: its gradient is."""
        return x if self.as_they_are else _Moved.apply(x, self.there, self.back, None)

    def take(self, x: Tensor) -> Tensor:
        """(place, ...) -> (thing, ...)."""
        return x if self.as_they_are else _Moved.apply(x, self.back, self.there, self.gaps)


@dataclass(frozen=True)
class Row:
    """Where the tokens of padded texts (text, longest) stand in a row of tokens, and these in rectangles."""

    rectangles: tuple[Rectangle, ...]
    tokens: Tensor  # (token,) position of each token of the row among the text * longest of the padded texts
    first: Tensor  # (text,) position in the row of each text's first token
    shape: tuple[int, int]  # (text, longest)
    texts: Places  # of the texts in the rectangles
    slots: Places  # of the tokens in the rectangles, whose padding is the gaps

    @classmethod
    def of(cls, attention_mask: Tensor, lengths: Tensor, groups: Sequence[Tensor], dtype: torch.dtype) -> Row:
        """The row of texts (text, longest) of ``lengths`` (text,) tokens, and a rectangle for each of ``groups``
        (text,). A token that is masked within its text stands in the row, and no other attends to it."""
        device, (texts, longest) = attention_mask.device, attention_mask.shape
        real = torch.arange(longest, device=device) < lengths.to(device)[:, None]  # (text, longest)
        number = real.flatten().cumsum(0).sub(1).view(texts, longest)  # in the row; of padding, its text's last token's
        slots, held, rectangles = [], [], []
        for group in groups:
            width, at = int(lengths[group].max()), group.to(device)
            mask = attention_mask[at, :width].bool()
            bias = torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(~mask, -torch.inf)
            rectangles.append(Rectangle(len(mask), width, None if bool(mask.all()) else bias[:, None, None, :]))
            slots.append(number[at, :width].flatten())
            held.append(real[at, :width].flatten())
        order = torch.cat(list(groups)).to(device)
        return cls(
            tuple(rectangles),
            real.flatten().nonzero()[:, 0],
            number[:, 0].contiguous(),
            (texts, longest),
            Places.of(order, torch.ones_like(order, dtype=torch.bool)),
            Places.of(torch.cat(slots), torch.cat(held)),
        )

    def split(self, slots: Tensor, heads: int = 1) -> Iterator[tuple[Rectangle, Tensor]]:
        """Each rectangle and its part of ``slots`` (slot * head, ...) as (text * head, width, ...)."""
        parts = slots.split([r.texts * r.width * heads for r in self.rectangles])
        for rectangle, part in zip(self.rectangles, parts, strict=True):
            yield rectangle, part.unflatten(0, (rectangle.texts * heads, rectangle.width))

    def places_of(self, heads: int) -> Places:
        """Of (token * head) in the rectangles, where each text's tokens come head by head: (text, head, token)."""
        held = torch.ones_like(self.slots.there, dtype=torch.bool).index_fill_(0, self.slots.gaps, False)
        head, there, real = torch.arange(heads, device=held.device)[:, None], [], []
        for (_, tokens), (_, of_tokens) in zip(self.split(self.slots.there), self.split(held), strict=True):
            there.append((tokens[:, None] * heads + head).flatten())
            real.append(of_tokens[:, None].expand(-1, heads, -1).flatten())
        return Places.of(torch.cat(there), torch.cat(real))


@dataclass(frozen=True)
class Packing:
    """How the layers of a model are passed through: found out once, by ``packing_of``."""

    passes: int  # calls of layers in one forward pass
    first_token: bool = True  # whether the last pass goes on with the first token of each text alone


class Folded(NamedTuple):
    """What a key or value weight met in the last pass, one vector a text and head: its gradient is the sum over texts
    of the outer products of ``rows`` (text, head, head_dim) and ``columns`` (text, head, hidden), where the one that is
    ``output`` is replaced by its gradient."""

    projection: nn.Linear
    rows: Tensor
    columns: Tensor
    output: Tensor

    def flow(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Columns and rows, given the gradient of ``output``."""
        return (gradient, self.rows) if self.output is self.columns else (self.columns, gradient)


@dataclass
class Kept:
    """What came into some layers in an earlier forward pass of the same tokens, so that another one, of a model altered
    in layer l and above, can start from the highest layer up to l of which that is known: those below would give the
    same again."""

    layers: range  # of which it is kept; a model that calls its layers otherwise than once each has none
    states: dict[int, Tensor] = field(default_factory=dict)  # (1, token, hidden) by layer

    def forget(self, above: int) -> None:
        """What came into the layers above ``above`` holds no longer."""
        self.states = {layer: state for layer, state in self.states.items() if layer <= above}


# The widest texts that attention on a CPU is computed for by its weights: up to there these are the faster way, and small
# beside the rest of what a pass keeps.
WEIGHED_TOKENS = 128


Look = Callable[[nn.Module, Tensor, Rectangle], None]  # attention module, weights (text, head, query, key), and of what


@dataclass
class _Pass:
    """A forward pass of a row at work."""

    row: Row
    kept: Kept
    look: Look | None = None
    calls: int = 0  # of layers
    places: dict[int, Places] = field(default_factory=dict)  # by number of heads
    everything: Tensor | None = None  # (token, hidden) what comes into the last pass, where only first tokens go on
    last: AttentionBlock | None = None  # of that pass
    folded: list[Folded] = field(default_factory=list)


_PASS: ContextVar[_Pass] = ContextVar("forward pass of a row at work")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each text of a row, as transformers calls it: query, key and value (1, head, token, head_dim),
    or in a last pass for first tokens (1, head, text, head_dim) -> (1, token or text, head, head_dim)."""
    now, head_dim = _PASS.get(), query.shape[-1]
    scale = head_dim**-0.5 if scaling is None else scaling
    rows = [t.squeeze(0).transpose(0, 1) for t in (query, key, value)]  # (token or text, head, head_dim)
    if not query.shape[1]:
        context = rows[0]
    elif now.everything is None:
        context = _of_all_tokens(now, module, rows, scale)
    else:
        context = _of_first_tokens(now, now.everything, rows[0] * scale)
    return context[None], None


def _of_all_tokens(now: _Pass, module: nn.Module, rows: list[Tensor], scale: float) -> Tensor:
    """Query, key and value to context, all (token, head, head_dim)."""
    row, heads = now.row, rows[0].shape[1]
    if now.look or (rows[0].device.type == "cpu" and max(r.width for r in row.rectangles) <= WEIGHED_TOKENS):
        if heads not in now.places:
            now.places[heads] = row.places_of(heads)
        places = now.places[heads]
        context = _Weighed.apply(
            *(t.flatten(0, 1) for t in rows), row, places, scale, now.look and partial(now.look, module)
        )
        return context.unflatten(0, (-1, heads))
    contexts = []
    for (r, q), (_r, k), (_r, v) in zip(*(row.split(row.slots.set(t)) for t in rows), strict=True):
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (text, head, token, head_dim)
        context = scaled_dot_product_attention(q, k, v, attn_mask=r.bias, scale=scale)
        contexts.append(context.transpose(1, 2).flatten(0, 1))
    return row.slots.take(torch.cat(contexts))


class _Weighed(torch.autograd.Function):
    """Attention whose weights are there to be looked at, and on the way back: for short texts on a CPU faster than a
    kernel that does without them. Query, key and value to context, all (token * head, head_dim)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        row: Row,
        places: Places,
        scale: float,
        look: Callable[[Tensor, Rectangle], None] | None,
    ) -> Tensor:
        heads = len(query) // len(row.tokens)
        parts = [places.set(t) for t in (query, key, value)]
        context, kept = torch.empty_like(parts[2]), []
        for (r, q), (_r, k), (_r, v), (_r, c) in zip(*(row.split(t, heads) for t in (*parts, context)), strict=True):
            bias = q.new_zeros(1, 1, 1) if r.bias is None else r.bias.expand(-1, heads, -1, -1).reshape(len(q), 1, -1)
            weights = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale).softmax(-1)  # (text * head, query, key)
            if look is not None:
                look(weights.unflatten(0, (-1, heads)), r)
            torch.bmm(weights, v, out=c)
            if any(ctx.needs_input_grad):
                kept.append(weights)
        ctx.row, ctx.places, ctx.heads, ctx.scale = row, places, heads, scale
        ctx.save_for_backward(*parts, *kept)
        return places.take(context)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *kept = ctx.saved_tensors
        row, places, heads = ctx.row, ctx.places, ctx.heads
        parts = query, key, value, places.set(gradient).index_fill(0, places.gaps, 0)
        found = [torch.empty_like(t) for t in parts[:3]]
        rectangles = zip(*(row.split(t, heads) for t in (*parts, *found)), strict=True)
        for weights, ((_r, q), (_r, k), (_r, v), (_r, c), (_r, dq), (_r, dk), (_r, dv)) in zip(
            kept, rectangles, strict=True
        ):
            torch.bmm(weights.transpose(1, 2), c, out=dv)
            flow = torch.bmm(c, v.transpose(1, 2))
            scores = torch._softmax_backward_data(flow, weights, -1, weights.dtype).mul_(ctx.scale)
            torch.bmm(scores, k, out=dq)
            torch.bmm(scores.transpose(1, 2), q, out=dk)
        return *(places.take(t) for t in found), None, None, None, None


def _of_first_tokens(now: _Pass, everything: Tensor, query: Tensor) -> Tensor:
    """The context of each text's first token, from its query (both (text, head, head_dim), the query scaled) and
    ``everything`` (token, hidden) that comes into the block.

    q (W_k x + b_k) = (q W_k) x + q b_k, where the last term is the same for all tokens of a text and falls out of the
    softmax; and sum_j a_j (W_v x_j + b_v) = W_v (sum_j a_j x_j) + b_v. So the weights meet one vector a text and head.
    """
    block, by_head = cast(AttentionBlock, now.last), query.shape[1:]
    key, value = (linear.weight.unflatten(0, by_head) for linear in (block.key, block.value))
    folded = torch.einsum("thd,hdi->thi", query, key)
    means, texts = [], now.row.texts.set(folded).split([r.texts for r in now.row.rectangles])
    for (r, x), of_texts in zip(now.row.split(now.row.slots.set(everything)), texts, strict=True):
        scores = of_texts @ x.transpose(1, 2)  # (text, head, token)
        if r.bias is not None:
            scores = scores + r.bias[:, 0]
        means.append(scores.softmax(-1) @ x)  # (text, head, hidden)
    mean = now.row.texts.take(torch.cat(means))
    context = torch.einsum("thi,hdi->thd", mean, value)
    now.folded += [
        Folded(block.key, query.detach(), folded, folded),
        Folded(block.value, context, mean.detach(), context),
    ]
    return context if block.value.bias is None else context + block.value.bias.unflatten(0, by_head)


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """(text, class); ``ValueError`` for a model that gives no such thing."""
    output = model(**inputs)
    logits = getattr(output, "logits", None)
    if logits is None or logits.dim() != 2:
        given = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        mend = "set config.return_dict to True" if isinstance(output, tuple) else "load it as a sequence classifier"
        raise ValueError(f"{type(model).__name__} gives {given}, not (text, class): {mend}.")
    return logits


def not_finite(of: str) -> str:
    """What to say of logits that are not finite."""
    return f"the logits of {of} are not finite: look for NaN or infinity in the weights, or use float32."


def _unchanged(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


@contextmanager
def _passed_by(layers: list[nn.Module]) -> Iterator[None]:
    """Layers that hand on what comes into them, for the length of a ``with`` block."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _unchanged
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


NOTHING_KEPT = Kept(range(0))


@contextmanager
def packed(
    model: nn.Module, packing: Packing, look: Look | None = None
) -> Iterator[Callable[[dict[str, Tensor], Row, Kept], tuple[Tensor, list[Folded]]]]:
    """A forward function (inputs, row, kept) -> logits (text, class) that runs the layers of ``model`` on rows of
    tokens; and what the weights met that were not applied to tokens.

    inputs are padded to the longest text as ever: embeddings and classifier see them so. The pass starts from what
    ``kept`` has, and adds to it. ``look`` is shown the attention weights of one rectangle after the other, but for those
    of a last pass for first tokens.
    """
    from transformers import AttentionInterface  # here, because it takes seconds and whoever has a model has paid

    AttentionInterface.register("gnorm_rectangles", _attention)
    blocks, layers = attention_blocks(model), layers_of(model)

    def enter(_: nn.Module, inputs: tuple[Any, ...], block: AttentionBlock) -> tuple[Any, ...]:
        now, hidden = _PASS.get(), inputs[0]
        now.calls += 1
        if now.calls == 1:
            hidden = hidden.flatten(0, 1).index_select(0, now.row.tokens)[None]
        if (layer := now.calls - 1) in now.kept.layers:
            hidden = now.kept.states.setdefault(layer, hidden)
        if now.calls == packing.passes and packing.first_token:
            now.everything, now.last = hidden[0], block
            hidden = hidden.index_select(1, now.row.first)
        return (hidden, *inputs[1:])

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        now = _PASS.get()
        if now.calls < packing.passes:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        if packing.first_token:
            hidden = hidden.transpose(0, 1)  # (text, 1, hidden)
        else:
            padded = hidden.new_zeros(now.row.shape[0] * now.row.shape[1], hidden.shape[2])
            hidden = padded.index_copy(0, now.row.tokens, hidden[0]).unflatten(0, now.row.shape)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def forward(inputs: dict[str, Tensor], row: Row, kept: Kept) -> tuple[Tensor, list[Folded]]:
        now = _Pass(row, kept, look)
        token = _PASS.set(now)
        try:
            with _passed_by(layers[: max(kept.states, default=0)]):
                return logits_of(model, inputs), now.folded
        finally:
            _PASS.reset(token)

    with ExitStack() as hooks:
        for layer, block in zip(layers, blocks, strict=True):
            hooks.callback(layer.register_forward_pre_hook(partial(enter, block=block)).remove)
            hooks.callback(layer.register_forward_hook(leave).remove)
        hooks.enter_context(attention_implementation(model, "gnorm_rectangles"))
        yield forward


@torch.no_grad()
def packing_of(model: Any, inputs: dict[str, Tensor]) -> Packing | None:
    """How ``model`` passes through its layers, seen on the text ``inputs``; None where it has to be given padded texts."""
    if not packable(model):
        return None
    calls: list[nn.Module] = []
    with evaluating(model), ExitStack() as hooks:
        for layer in layers_of(model):
            hooks.callback(layer.register_forward_hook(lambda layer, *_: calls.append(layer)).remove)
        logits_of(model, inputs)
    return Packing(passes=len(calls))
