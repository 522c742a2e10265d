"""Forward passes of packed texts: without padding, from the highest cached layer input, the last layer cut short.

The projections, norms and feed-forward blocks of an encoder treat every token alike; only attention needs to know which
text a token belongs to. So the layers run on packed tokens, as one long text (1, token, hidden), and attention alone
works on length groups. Where the classifier reads only the first token of each text, the last layer computes queries,
output projection and feed-forward block for that token alone (``attention.first_token_attention``). Results change by
the rounding of a sum and by nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model.blocks import AttentionBlock, layers_of
from ..model.known_models import causal, owns_attention, packable
from ..model.problems import gives_tokens, problem_of
from ..model.sizes import fits, sizes_of
from ..model.state import attention_implementation, evaluating
from ..model.subject import Subject
from .attention import (
    AbsorbedProjection,
    explicit_attention,
    explicit_is_faster,
    first_token_attention,
    fused_attention,
)
from .failures import naming_texts
from .padding import LengthGroup, PackedTexts, PadIndices

ATTENTION_NAME = "gnorm_packed"  # under which transformers knows ``_packed_attention``


# Not cuDNN's, which takes up to seconds to plan for a shape: every step of pruning makes new ones.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Packing:
    """How packed texts pass through the layers of a model."""

    passes: int  # calls of layers in one forward pass
    first_token: bool = True  # whether the last pass goes on with the first token of each text alone
    in_tuples: bool = False  # whether layers give their output as the first of a tuple
    causal: bool = False  # whether a token attends to those before it in its text, and to itself, alone


@dataclass
class LayerInputCache:
    """Inputs of some layers from an earlier forward pass of the same texts.

    After a change in layer l, a pass starts at the highest cached layer that is not above l: the layers below it would
    give the same again.
    """

    layers: range  # the layers whose inputs may be cached; none where layers are not called once each, in order
    states: dict[int, Tensor] = field(default_factory=dict)  # by layer, (1, token, hidden)

    def forget(self, above: int) -> None:
        """Drop the inputs of the layers above layer ``above``, whose output has changed."""
        self.states = {layer: state for layer, state in self.states.items() if layer <= above}


NO_CACHE = LayerInputCache(range(0))


# Called with the attention module, its weights (text, head, query, key), and the length group of the texts.
OnModuleWeights = Callable[[nn.Module, Tensor, LengthGroup], None]


@dataclass
class _Pass:
    """The state of a forward pass of packed texts while it lasts; hooks and attention share it."""

    texts: PackedTexts
    cache: LayerInputCache
    on_weights: OnModuleWeights | None = None
    calls: int = 0  # of layers, so far
    indices: dict[int, PadIndices] = field(default_factory=dict)  # ``heads_in_groups`` by the number of heads
    layer_input: Tensor | None = None  # (token, hidden), of the last pass where that is for first tokens alone
    last_block: AttentionBlock | None = None  # of that pass
    absorbed: list[AbsorbedProjection] = field(default_factory=list)
    embedded: Tensor | None = None  # (text, longest, hidden), where the layers' owner was given the first text alone
    causal_bias: Tensor | None = None  # (1, 1, longest, longest): 0 for a key up to the query, -inf for a later one
    rotations: tuple[Any, tuple[Tensor, ...]] = (None, ())  # cos and sin as layers were given them, and packed

    def indices_of(self, heads: int) -> PadIndices:
        """``heads_in_groups``, made once for each number of heads."""
        if heads not in self.indices:
            self.indices[heads] = self.texts.heads_in_groups(heads)
        return self.indices[heads]

    def packed_rotations(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """cos and sin (text or 1, longest, dim) of rotary attention -> (1, token, dim); made once for all layers."""
        if self.rotations[0] is not given:
            texts = self.texts.padded_shape[0]
            packed = tuple(self.texts.unpad(t.expand(texts, -1, -1)) for t in given)
            self.rotations = given, packed
        return self.rotations[1]


_CURRENT_PASS: ContextVar[_Pass] = ContextVar("the forward pass of packed texts that this thread is in")


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each packed text, as transformers calls it; the mask of padded texts is not used.

    Query, key and value (1, head, token, head_dim) to contexts (1, token, head, head_dim). In a last pass for first
    tokens there is one query a text: (1, head, text, head_dim) to (1, text, head, head_dim). position_bias is
    (1, head, query, key) of the longest text. Key and value may have fewer heads than query (grouped queries).
    """
    current = _CURRENT_PASS.get()
    texts, scale = current.texts, query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (t.squeeze(0).transpose(0, 1) for t in (query, key, value))  # (token or text, head, head_dim)
    if k.shape[1] < q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    if current.causal_bias is not None:
        position_bias = current.causal_bias
    if not q.shape[1]:  # no head is left
        context = q
    elif current.layer_input is not None:
        block = cast(AttentionBlock, current.last_block)
        context, absorbed = first_token_attention(texts, block, current.layer_input, q * scale, position_bias)
        current.absorbed += absorbed
    elif current.on_weights or explicit_is_faster(texts, q.device):
        on_weights = None if current.on_weights is None else partial(current.on_weights, module)
        context = explicit_attention(q, k, v, texts, current.indices_of(q.shape[1]), scale, on_weights, position_bias)
    else:
        context = fused_attention(q, k, v, texts, scale, position_bias)
    return context[None], None


def _own_attention(block: AttentionBlock, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    """In place of the forward of a module of ``OWN_ATTENTION``: the same for packed texts (1, token, hidden)."""
    call = inspect.signature(type(block.module).forward).bind(block.module, hidden_states, *args, **kwargs)
    projected = (linear(hidden_states) for linear in (block.query, block.key, block.value))
    q, k, v = (t.unflatten(-1, (-1, block.head_dim)).transpose(1, 2) for t in projected)
    bias = call.arguments[str(block.per_head)]
    return (block.output(_packed_attention(block.module, q, k, v, None, position_bias=bias)[0].flatten(2)),)


def _first_text_alone(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook of the module that owns the layers: it makes the bias by position, the same for each text, once.

    The first layer takes all texts from ``_Pass.embedded``.
    """
    _CURRENT_PASS.get().embedded = args[0]
    return (args[0][:1], *args[1:])


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor], numbers: Tensor | None = None) -> Tensor:
    """The logits of one forward pass; as ``logits_in``. numbers: (text,) of the texts, where it is not 0, 1, 2 ...

    Raises ``PassError`` where the model does not take the texts, too.
    """
    with naming_texts(model, inputs, numbers):
        output = model(**inputs)
    return logits_in(model, output, inputs)


def logits_in(model: nn.Module, output: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits in what ``model`` returned for ``inputs``, of the axes that its problem gives them; those of the first
    and of the last token of an answer together, (text, boundary, token).

    Raises ``ValueError`` where the model gives none of these axes, or some of another size: of texts, tokens or
    classes.
    """
    problem = problem_of(model)
    logits = getattr(output, "logits", None)
    if "boundary" in problem.logits and getattr(output, "start_logits", None) is not None:
        logits = torch.stack([output.start_logits, output.end_logits], 1)
    traced = torch.compiler.is_compiling()  # sizes that are compared there would be fixed for good
    sizes = [None] * len(problem.logits) if traced else sizes_of(problem.logits, inputs, problem, model)
    of_tokens = problem.by_text and gives_tokens(model)
    if logits is None or of_tokens or not fits(logits, sizes):
        given = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        needed = ", ".join(axis if size is None else f"{axis} {size}" for axis, size in zip(problem.logits, sizes))
        mend = "correct its forward" if problem.heads else "load it as a sequence classifier"
        if logits is not None and not of_tokens and fits(logits, [*sizes[:-1], None]) and problem.logits[-1] == "class":
            mend += f", or set config.{problem.classes} to {logits.shape[-1]} if that is how many classes it has"
        mend = "set config.return_dict to True" if isinstance(output, tuple) else mend
        raise ValueError(f"{type(model).__name__} gives {given}, not ({needed}): {mend}.")
    return logits


def not_finite(of: str) -> str:
    """The message of the error for logits that are not finite; ``of`` names their batch or text."""
    return f"the logits of {of} are not finite: look for NaN or infinity in the weights, or use float32."


def _identity(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


@contextmanager
def _skipped(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within a ``with`` block these layers return their input."""
    before = [vars(layer).get("forward") for layer in layers]
    try:
        for layer in layers:
            layer.forward = _identity
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def _before_layer(
    _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], block: AttentionBlock, packing: Packing
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of every layer: unpads before the first, uses and fills the cache, cuts the last pass short."""
    current, hidden = _CURRENT_PASS.get(), inputs[0]
    current.calls += 1
    if current.calls == 1:
        padded = hidden if current.embedded is None else current.embedded
        hidden = current.texts.unpad(padded)  # (text, longest, hidden) -> (1, token, hidden)
    if (layer := current.calls - 1) in current.cache.layers:
        hidden = current.cache.states.setdefault(layer, hidden)
    if current.calls == packing.passes and packing.first_token:
        current.layer_input, current.last_block = hidden[0], block
        hidden = hidden.index_select(1, current.texts.first_tokens)  # (1, text, hidden)
    if (rotations := named.get("position_embeddings")) is not None:
        named = {**named, "position_embeddings": current.packed_rotations(rotations)}
    return (hidden, *inputs[1:]), named


def _after_layer(_: nn.Module, __: Any, output: Any, packing: Packing) -> Any:
    """Forward hook of every layer: after the last pass, brings texts back to the first dimension."""
    current = _CURRENT_PASS.get()
    if current.calls < packing.passes:
        return (output,) if packing.in_tuples and isinstance(output, Tensor) else output  # of a skipped layer
    hidden = output[0] if isinstance(output, tuple) else output
    # (1, text, hidden) -> (text, 1, hidden), or (1, token, hidden) -> (text, longest, hidden)
    hidden = hidden.transpose(0, 1) if packing.first_token else current.texts.pad(hidden)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _causal_bias(tokens: int, like: Tensor) -> Tensor:
    """What is added to the attention scores of a text of so many tokens: (1, 1, query, key)."""
    return torch.full((1, 1, tokens, tokens), -torch.inf, dtype=like.dtype, device=like.device).triu(1)


def _unpad(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Forward pre-hook of the projection that gives the logits of tokens: it computes none of padding."""
    return _CURRENT_PASS.get().texts.unpad(inputs[0])


def _pad(_: nn.Module, __: Any, logits: Tensor) -> Tensor:
    return _CURRENT_PASS.get().texts.pad(logits)  # (1, token, class) -> (text, longest, class)


@contextmanager
def packed_forward(
    subject: Subject, packing: Packing, on_weights: OnModuleWeights | None = None
) -> Iterator[Callable[[dict[str, Tensor], PackedTexts, LayerInputCache], tuple[Tensor, list[AbsorbedProjection]]]]:
    """A function (inputs, texts, cache) -> logits (text, class) and absorbed projections, for a ``with`` block.

    It runs the layers of a model on packed texts. inputs are padded to the longest text, since embeddings and
    classifier work on padded texts. The pass starts at the highest layer whose input is in ``cache``, and adds to the
    cache. ``on_weights`` is called with the attention weights of every length group; a last pass for first tokens alone
    calls it for none.
    """
    from transformers import AttentionInterface  # an import of seconds, already paid by whoever has a model

    AttentionInterface.register(ATTENTION_NAME, _packed_attention)
    model, blocks, layers = subject.model, subject.blocks, subject.layers
    like = subject.parameter.detach()

    def forward(
        inputs: dict[str, Tensor], texts: PackedTexts, cache: LayerInputCache
    ) -> tuple[Tensor, list[AbsorbedProjection]]:
        current = _Pass(texts, cache, on_weights)
        if packing.causal:
            current.causal_bias = _causal_bias(texts.padded_shape[1], like)
            inputs = {**inputs, "use_cache": cast(Any, False)}  # of keys and values
        token = _CURRENT_PASS.set(current)
        try:
            with _skipped(layers[: max(cache.states, default=0)]):
                return logits_in(model, model(**inputs), inputs), current.absorbed
        finally:
            _CURRENT_PASS.reset(token)

    with ExitStack() as hooks:
        for layer, block in zip(layers, blocks, strict=True):
            before = partial(_before_layer, block=block, packing=packing)
            hooks.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(layer.register_forward_hook(partial(_after_layer, packing=packing)).remove)
        hooks.enter_context(attention_implementation(model, ATTENTION_NAME, subject.modules))
        hooks.enter_context(sdpa_kernel(KERNELS))
        own = [block for block in blocks if owns_attention(block.module) and "forward" not in vars(block.module)]
        for block in own:
            block.module.forward = partial(_own_attention, block)
            hooks.callback(delattr, block.module, "forward")
        if own:
            name = next(name for name, module in model.named_modules() if module is layers[0])
            owner = model.get_submodule(name.rsplit(".", 2)[0])  # of the list of layers
            hooks.callback(owner.register_forward_pre_hook(_first_text_alone).remove)
        if packing.causal:
            head = model.get_output_embeddings()
            hooks.callback(head.register_forward_pre_hook(_unpad).remove)
            hooks.callback(head.register_forward_hook(_pad).remove)
        yield forward


@torch.no_grad()
def packing_of(model: Any, inputs: dict[str, Tensor], number: Tensor | None = None) -> Packing | None:
    """How packed texts pass through ``model``; None where the model needs padded texts.

    inputs: one text, on which the calls of layers are counted. number: (1,) of that text, where it is not 0.
    """
    if not packable(model):
        return None
    outputs: list[Any] = []
    with evaluating(model), ExitStack() as hooks:
        for layer in layers_of(model):
            hooks.callback(layer.register_forward_hook(lambda *call: outputs.append(call[-1])).remove)
        logits_of(model, inputs, number)
    of_tokens = causal(model)
    return Packing(len(outputs), not of_tokens, isinstance(outputs[0], tuple), of_tokens)
