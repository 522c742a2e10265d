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

from ..model.blocks import QKV, AttentionBlock, blocks_of, feed_forwards, layers_of
from ..model.known_models import causal, owns_attention, packable, reads_first_token
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
    """The way packed texts pass through the layers of a model."""

    passes: int  # calls of layers in one forward pass
    first_token: bool = True  # whether the last pass goes on with the first token of each text alone
    reads: str = ""  # which token of a text the classifier reads after the last layer: "first" or "last"; "" for all
    in_tuple: int = 0  # of how many a layer's output is the first; 0 where it is not a tuple
    causal: bool = False  # whether a token attends to those before it in its text, and to itself, alone
    of_tokens: bool = False  # whether each token has logits
    by_batch: bool = False  # whether a projection has inputs beside the tokens, so that batches cannot share a pass


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
    rotations: dict[int, tuple[Any, tuple[Tensor, ...]]] = field(default_factory=dict)  # as given, and packed
    read: Tensor | None = None  # (token,) the packed tokens that the classifier reads; None for all
    distances: tuple[Tensor, int, int] | None = None  # ``_distances`` of the longest text

    def indices_of(self, heads: int) -> PadIndices:
        """``heads_in_groups``, made once for each number of heads."""
        if heads not in self.indices:
            self.indices[heads] = self.texts.heads_in_groups(heads)
        return self.indices[heads]

    def packed_rotations(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """cos and sin (text or 1, longest, dim) of rotary attention -> (1, token, dim); made once for all layers that
        are given the same."""
        if id(given) not in self.rotations:
            texts = self.texts.padded_shape[0]
            self.rotations[id(given)] = given, tuple(self.texts.unpad(t.expand(texts, -1, -1)) for t in given)
        return self.rotations[id(given)][1]


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


def _with_bias(block: AttentionBlock, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    """In place of the forward of MPNet's attention: the same for packed texts (1, token, hidden)."""
    call = inspect.signature(type(block.module).forward).bind(block.module, hidden_states, *args, **kwargs)
    projected = (linear(hidden_states) for linear in (block.query, block.key, block.value))
    q, k, v = (t.unflatten(-1, (-1, block.head_dim)).transpose(1, 2) for t in projected)
    bias = call.arguments[str(block.per_head)]
    return (block.output(_packed_attention(block.module, q, k, v, None, position_bias=bias)[0].flatten(2)),)


def _disentangled(
    block: AttentionBlock,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, None]:
    """In place of the forward of DeBERTa's attention: the same for packed texts (1, token, hidden).

    Scores are (q k + q p_key + k p_query) / sqrt(head_dim * number of the three), where p are projections of the
    embedding of the distance between query and key (arXiv 2006.03654, Eq. 4). The embeddings of distances that the
    longest text does not have are not projected.
    """
    current, module = _CURRENT_PASS.get(), cast(Any, block.module)
    texts, kinds = current.texts, module.pos_att_type if module.relative_attention else ()
    heads = len(block.kept)
    terms = 1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))
    scale = 1 / float(
        torch.tensor(block.head_dim * terms, dtype=torch.float32).sqrt()
    )  # in fp32, as the module takes it
    of_texts = query_states is not None  # of first tokens alone
    places = texts.texts_in_groups if of_texts else texts.tokens_in_groups
    query = block.query(hidden_states if query_states is None else query_states)[0]
    q = places.pad(query.unflatten(-1, (heads, -1)))  # (slot, head, head_dim)
    k, v = (
        texts.tokens_in_groups.pad(linear(hidden_states)[0].unflatten(-1, (heads, -1)))
        for linear in (block.key, block.value)
    )
    queries = q.split([group.texts * (1 if of_texts else group.width) for group in texts.length_groups])
    tables: dict[str, Tensor] = {}
    if relative_pos is not None and rel_embeddings is not None:
        if current.distances is None:
            current.distances = _distances(relative_pos, module.pos_ebd_size)
        distances, low, high = current.distances
        shared = {"c2p": "key_proj", "p2c": "query_proj"} if module.share_att_key else {}
        names = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"} | shared
        rows = rel_embeddings[None, low : high + 1]
        for kind in (kind for kind in names if kind in kinds):
            tables[kind] = getattr(module, names[kind])(rows)[0].unflatten(-1, (heads, -1)).permute(1, 2, 0)
    contexts = []
    for of_group, (group, shares) in zip(queries, texts.by_group(k, v), strict=True):
        gk, gv = (share.transpose(1, 2) for share in shares)  # (text, head, width, head_dim)
        gq = of_group.unflatten(0, (group.texts, -1)).transpose(1, 2)  # (text, head, query, head_dim)
        scores = gq @ gk.transpose(2, 3)
        if tables:
            at = distances[:, : group.width, : group.width].expand(group.texts, heads, -1, -1, -1)
        if "c2p" in tables:
            scores = scores + (gq @ tables["c2p"]).gather(-1, at[:, :, 0, : gq.shape[2]])
        if "p2c" in tables:
            scores = scores + (gk @ tables["p2c"]).gather(-1, at[:, :, 1, :, : gq.shape[2]]).transpose(2, 3)
        scores = scores * scale if group.bias is None else scores * scale + group.bias
        weights = scores.softmax(-1)
        if current.on_weights is not None:
            current.on_weights(module, weights, group)
        contexts.append((weights @ gv).transpose(1, 2).flatten(0, 1))  # (text * query, head, head_dim)
    return places.unpad(torch.cat(contexts)).flatten(1)[None], None


def _distances(relative_pos: Tensor, span: int) -> tuple[Tensor, int, int]:
    """(2, query, key) the rows of the embeddings of distances, less the first that is used: of queries with keys, and
    of keys with queries. And the first and the last row. relative_pos (..., query, key); span: of the embeddings."""
    by_query = relative_pos.reshape(relative_pos.shape[-2:]).long()
    rows = torch.stack([by_query + span, span - by_query]).clamp(0, 2 * span - 1)
    low, high = int(rows.min()), int(rows.max())
    return rows - low, low, high


# By the class of ``OWN_ATTENTION``: the forward for packed texts.
PACKED_ATTENTION: Mapping[str, Callable[..., Any]] = {
    "MPNetSelfAttention": _with_bias,
    "DisentangledSelfAttention": _disentangled,
}


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
        remedy = "correct its forward" if problem.heads else "load it as a sequence classifier"
        if logits is not None and not of_tokens and fits(logits, [*sizes[:-1], None]) and problem.logits[-1] == "class":
            remedy += f", or set config.{problem.classes} to {logits.shape[-1]} if that is how many classes it has"
        remedy = "set config.return_dict to True" if isinstance(output, tuple) else remedy
        raise ValueError(f"{type(model).__name__} gives {given}, not ({needed}): {remedy}.")
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
        first = hidden.index_select(1, current.texts.first_tokens)  # (1, text, hidden)
        if "query_states" in named and block.kept:  # DeBERTa's layers take keys and values of other tokens
            named = {**named, "query_states": first}
        else:
            current.layer_input, current.last_block, hidden = hidden[0], block, first
    if (rotations := named.get("position_embeddings")) is not None:
        named = {**named, "position_embeddings": current.packed_rotations(rotations)}
    return (hidden, *inputs[1:]), named


def _after_layer(_: nn.Module, __: Any, output: Any, packing: Packing) -> Any:
    """Forward hook of every layer: after the last pass, brings texts back to the first dimension."""
    current = _CURRENT_PASS.get()
    if current.calls < packing.passes:
        skipped = packing.in_tuple and isinstance(output, Tensor)
        return (output, *[None] * (packing.in_tuple - 1)) if skipped else output
    hidden = output[0] if isinstance(output, tuple) else output
    # (1, text, hidden) -> (text, 1, hidden), or (1, token, hidden) -> (text, longest, hidden)
    hidden = hidden.transpose(0, 1) if packing.first_token else current.texts.pad(hidden)
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _select_read(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Forward pre-hook of the feed-forward block of the last layer: it computes the tokens that are read alone."""
    return inputs[0].index_select(1, cast(Tensor, _CURRENT_PASS.get().read))


def _spread_read(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    """Forward hook of that block: what it gives in the place of each token that is read, zero in that of others."""
    current = _CURRENT_PASS.get()
    everywhere = output.new_zeros(1, len(current.texts.indices), output.shape[2])
    return everywhere.index_copy(1, cast(Tensor, current.read), output)


def _last_tokens(ids: Tensor, pad_token: int, texts: PackedTexts) -> Tensor:
    """(text,) the packed token of each text that is the last but for padding. ids: (text, longest)."""
    last = (torch.arange(ids.shape[1], device=ids.device) * (ids != pad_token)).argmax(1)
    return texts.first_tokens + last


def _causal_bias(tokens: int, like: Tensor) -> Tensor:
    """The causal bias of attention scores of a text of so many tokens: (1, 1, query, key)."""
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
        if packing.reads:
            last = packing.reads == "last"
            read = _last_tokens(inputs["input_ids"], model.config.pad_token_id, texts) if last else texts.first_tokens
            current.read = read
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
            block.module.forward = partial(PACKED_ATTENTION[type(block.module).__name__], block)
            hooks.callback(delattr, block.module, "forward")
        if any(block.per_head for block in own):
            name = next(name for name, module in model.named_modules() if module is layers[0])
            owner = model.get_submodule(name.rsplit(".", 2)[0])  # of the list of layers
            hooks.callback(owner.register_forward_pre_hook(_first_text_alone).remove)
        if packing.reads:
            of_last_layer = feed_forwards(model)[-1]
            hooks.callback(of_last_layer.register_forward_pre_hook(_select_read).remove)
            hooks.callback(of_last_layer.register_forward_hook(_spread_read).remove)
        if packing.of_tokens:
            head = model.get_output_embeddings()
            hooks.callback(head.register_forward_pre_hook(_unpad).remove)
            hooks.callback(head.register_forward_hook(_pad).remove)
        yield forward


@torch.no_grad()
def packing_of(model: Any, inputs: dict[str, Tensor], number: Tensor | None = None) -> Packing | None:
    """The way packed texts pass through ``model``; None where the model needs padded texts.

    inputs: one text, on which the calls of layers are counted. number: (1,) of that text, where it is not 0.
    """
    if not packable(model):
        return None
    outputs: list[Any] = []
    tokens: set[int] = set()  # that projections were given at once
    alone: list[bool] = []  # whether the feed-forward block of the last layer took and gave tokens one by one
    layers, feed_forward = layers_of(model), feed_forwards(model)[-1]

    def see(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        alone.append(module not in layers and len(given) == 1 and getattr(output, "shape", None) == given[0].shape)

    with evaluating(model), ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(lambda *call: outputs.append(call[-1])).remove)
        for module in {module for block in blocks_of(model) if block.kept for module in block.by_module(QKV)}:
            hooks.callback(module.register_forward_pre_hook(lambda _, given: tokens.add(given[0].shape[1])).remove)
        hooks.callback(feed_forward.register_forward_hook(see).remove)
        logits_of(model, inputs, number)
    first, causes = reads_first_token(model), causal(model)
    of_tokens = causes and not problem_of(model).by_text
    pooled = getattr(model.config, "classifier_pooling", "") == "cls"
    reads = "last" if causes and not of_tokens else "first" if pooled and not first else ""
    in_tuple = len(outputs[0]) if isinstance(outputs[0], tuple) else 0
    reads = reads if alone == [True] else ""
    return Packing(len(outputs), first, reads, in_tuple, causes, of_tokens, by_batch=len(tokens) > 1)
