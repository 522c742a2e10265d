"""Attention within each of several packed texts, a length group at a time.

Three functions give the same contexts. ``explicit_attention`` keeps the attention weights, ``fused_attention`` uses
PyTorch's kernel and never holds them, ``first_token_attention`` computes the context of each text's first token alone
and absorbs the key and value projections into their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..model.blocks import AttentionBlock
from .padding import LengthGroup, PackedTexts, PadIndices

# The widest length group, in tokens, for which a CPU computes attention with explicit weights. Up to this width that is
# faster than the fused kernel, and the weights are small beside the other tensors that a pass keeps for its way back.
EXPLICIT_ATTENTION_TOKENS = 128


# Called with the attention weights (text, head, query, key) of each length group.
OnWeights = Callable[[Tensor, LengthGroup], None]


def _bias(group: LengthGroup, position_bias: Tensor | None) -> Tensor | None:
    """The bias of the attention scores of a length group, each axis of its size or 1: (text, head, query, key).

    None for nothing. position_bias: (1, head, query, key) of a text at least as long.
    """
    if position_bias is None:
        return group.bias
    of_group = position_bias[:, :, : group.width, : group.width].contiguous()
    return of_group if group.bias is None else of_group + group.bias


def explicit_is_faster(texts: PackedTexts, device: torch.device) -> bool:
    """True if attention with explicit weights is the faster one for these texts on this device."""
    return device.type == "cpu" and max(g.width for g in texts.length_groups) <= EXPLICIT_ATTENTION_TOKENS


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    texts: PackedTexts,
    scale: float,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Query, key and value to contexts by PyTorch's fused kernel; all (token, head, head_dim).

    position_bias: (1, head, query, key) of the longest text, as in the other two functions; None for none.
    """
    contexts = []
    grouped = (texts.tokens_in_groups.pad(t) for t in (query, key, value))  # (slot, head, head_dim)
    for group, shares in texts.by_group(*grouped):
        q, k, v = (share.transpose(1, 2) for share in shares)  # (text, head, width, head_dim)
        context = scaled_dot_product_attention(q, k, v, attn_mask=_bias(group, position_bias), scale=scale)
        contexts.append(context.transpose(1, 2).flatten(0, 1))  # (text * width, head, head_dim)
    return texts.tokens_in_groups.unpad(torch.cat(contexts))


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    texts: PackedTexts,
    indices: PadIndices,
    scale: float,
    on_weights: OnWeights | None = None,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Query, key and value to contexts by explicit attention weights; all (token, head, head_dim).

    indices: ``texts.heads_in_groups`` of the number of heads. on_weights is called for every length group.
    """
    flat = (t.flatten(0, 1) for t in (query, key, value))  # (token * head, head_dim)
    context = _ExplicitAttention.apply(*flat, texts, indices, scale, on_weights, position_bias)
    return context.unflatten(0, (-1, query.shape[1]))


class _ExplicitAttention(torch.autograd.Function):
    """``explicit_attention`` of (token * head, head_dim). Its backward pass uses the weights of its forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        texts: PackedTexts,
        indices: PadIndices,
        scale: float,
        on_weights: OnWeights | None,
        position_bias: Tensor | None,
    ) -> Tensor:
        heads = len(query) // len(texts.indices)
        grouped = [indices.pad(t) for t in (query, key, value)]  # (slot * head, head_dim)
        context, saved = torch.empty_like(grouped[2]), []
        for group, (q, k, v, c) in texts.by_group(*grouped, context, heads=heads):  # (text * head, width, head_dim)
            bias = _bias(group, position_bias)  # (text, head, query, key), axes of its size or 1
            flat = q.new_zeros(1, 1, 1) if bias is None else bias.expand(group.texts, heads, -1, -1).flatten(0, 1)
            weights = torch.baddbmm(flat, q, k.transpose(1, 2), alpha=scale).softmax(-1)  # (text * head, query, key)
            if on_weights is not None:
                on_weights(weights.unflatten(0, (-1, heads)), group)
            torch.bmm(weights, v, out=c)
            if any(ctx.needs_input_grad):
                saved.append(weights)
        ctx.texts, ctx.indices, ctx.heads, ctx.scale = texts, indices, heads, scale
        ctx.save_for_backward(*grouped, *saved)
        return indices.unpad(context)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        dcontext = ctx.indices.pad(gradient).index_fill(0, ctx.indices.padding, 0)  # (slot * head, head_dim)
        grouped = query, key, value, dcontext
        gradients = [torch.empty_like(t) for t in grouped[:3]]
        by_group = ctx.texts.by_group(*grouped, *gradients, heads=ctx.heads)
        for weights, (_, (q, k, v, dc, dq, dk, dv)) in zip(saved, by_group, strict=True):
            torch.bmm(weights.transpose(1, 2), dc, out=dv)
            dweights = torch.bmm(dc, v.transpose(1, 2))  # (text * head, query, key)
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype).mul_(ctx.scale)
            torch.bmm(dscores, k, out=dq)
            torch.bmm(dscores.transpose(1, 2), q, out=dk)
        return *(ctx.indices.unpad(t) for t in gradients), None, None, None, None, None


class AbsorbedProjection(NamedTuple):
    """A key or value projection W that was applied to one vector a text and head, not to every token.

    Per text and head, W maps between ``hidden_side`` and ``head_side``; one of the two is the input of that product and
    the other is its output. dW of a head is the sum over texts of the outer products of ``head_side`` and
    ``hidden_side``, where the one that is the output is replaced by its gradient.
    """

    projection: nn.Linear
    head_side: Tensor  # (text, head, head_dim)
    hidden_side: Tensor  # (text, head, hidden)
    output: Tensor  # the one of the two whose gradient is needed

    def factors(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of dW, given the gradient of ``output``: (text, head, hidden) and (text, head, head_dim)."""
        return (gradient, self.head_side) if self.output is self.hidden_side else (self.hidden_side, gradient)


def first_token_attention(
    texts: PackedTexts,
    block: AttentionBlock,
    layer_input: Tensor,
    query: Tensor,
    position_bias: Tensor | None = None,
) -> tuple[Tensor, list[AbsorbedProjection]]:
    """The context of each text's first token, and the projections that were absorbed on the way.

    query (text, head, head_dim), scaled; layer_input (token, hidden). The context is (text, head, head_dim).

    q (W_k x + b_k) = (q W_k) x + q b_k: W_k is absorbed into the query. The last term is the same for all tokens of a
    text, so the softmax cancels it. sum_j a_j (W_v x_j + b_v) = W_v (sum_j a_j x_j) + b_v: W_v is applied once, to the
    mean of the tokens, weighted by attention.
    """
    by_head = query.shape[1:]
    key, value = (linear.weight.unflatten(0, by_head) for linear in (block.key, block.value))  # (head, head_dim, in)
    absorbed_query = torch.einsum("thd,hdi->thi", query, key)  # (text, head, hidden)
    queries = texts.texts_in_groups.pad(absorbed_query).split([group.texts for group in texts.length_groups])
    grouped_input = texts.tokens_in_groups.pad(layer_input)  # (slot, hidden)
    means = []
    for (group, (x,)), q in zip(texts.by_group(grouped_input), queries, strict=True):
        scores = q @ x.transpose(1, 2)  # (text, head, width)
        if (bias := _bias(group, position_bias)) is not None:
            scores = scores + bias[:, :, 0]  # of the first query
        means.append(scores.softmax(-1) @ x)  # (text, head, hidden)
    mean = texts.texts_in_groups.unpad(torch.cat(means))
    context = torch.einsum("thi,hdi->thd", mean, value)  # (text, head, head_dim)
    absorbed = [
        AbsorbedProjection(block.key, query.detach(), absorbed_query, absorbed_query),
        AbsorbedProjection(block.value, context, mean.detach(), context),
    ]
    bias = block.value.bias
    return context if bias is None else context + bias.unflatten(0, by_head), absorbed
