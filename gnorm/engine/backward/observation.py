"""Means over tokens and texts of what hooks see of heads in a forward pass: attention weights, contexts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..forward.packing import not_finite
from ..forward.padding import LengthGroup
from ..forwarding import passes
from ..model.blocks import AttentionBlock, table_of
from ..texts.batches import Prepared
from ..texts.micro_batches import MicroBatch
from ..texts.ranks import OrderedSums, gather

# Called with the layer, a tensor of its block (text, ...), and which tokens are real (text, token), None for all: of
# those that queries come from, and of those that keys come from.
OnBlock = Callable[[int, Tensor, Tensor | None, Tensor | None], None]


# Called with the texts that have passed through the model, and their logits (text, class).
AfterPass = Callable[[MicroBatch, Tensor], None]


def run_padded(
    prepared: Prepared,
    on_block: OnBlock,
    after_pass: AfterPass,
    register_hook: Callable[[AttentionBlock, Callable[[Tensor], None]], RemovableHandle],
) -> None:
    """Pass padded texts of like length through the model and call ``on_block`` with a tensor of every block.

    ``register_hook(block, call)`` registers a hook on the block that calls ``call`` with that tensor.
    """
    masks: dict[str, Tensor | None] = {}
    of_keys: dict[str, Tensor | None] = {}
    with ExitStack() as hooks:
        for layer, block in enumerate(prepared.subject.blocks):
            if block.kept:
                at = {"layer": layer, "prefixes": block.input_prefixes}
                call = partial(
                    lambda tensor, layer, prefixes: on_block(layer, tensor, masks[prefixes[0]], of_keys[prefixes[1]]),
                    **at,
                )
                hooks.callback(register_hook(block, call).remove)
        forward = hooks.enter_context(passes(prepared, padded=True))
        for micro in prepared.padded:
            masks = {prefix: _real_tokens(micro.inputs, prefix) for prefix in ("", "decoder_")}
            # a decoder without a mask of its own attends to padding that is not behind its texts
            of_keys = masks if "decoder_attention_mask" in micro.inputs else {**masks, "decoder_": None}
            after_pass(micro, forward(micro)[0])


def hook_contexts(block: AttentionBlock, call: Callable[[Tensor], None]) -> RemovableHandle:
    """A hook that calls ``call`` with the contexts of a block (text, token, kept * head_dim)."""
    return block.output.register_forward_pre_hook(lambda _, inputs: call(inputs[0]))


run_on_contexts = partial(run_padded, register_hook=hook_contexts)


def _real_tokens(inputs: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    """(text, token) bool: True for tokens that are not padding; None for all. prefix: "decoder_" for those of the
    decoder, which are the encoder's where the inputs name none."""
    own = any(name.startswith(prefix) for name in inputs)
    mask = inputs.get(f"{prefix if own else ''}attention_mask")
    return None if mask is None else mask.bool().flatten(0, -2)  # of choices, (text * choice, token)


def _check_tokens(mask: Tensor | None, tokens: int) -> None:
    """``ValueError`` for an attention mask that does not count what the layers see, such as one of audio samples."""
    if mask is not None and mask.shape[1] != tokens:
        raise ValueError(
            f"the attention mask has {mask.shape[1]} entries a text, its layers see {tokens} tokens: give texts of one "
            "length, without a mask."
        )


def run_packed(prepared: Prepared, on_block: OnBlock, after_pass: AfterPass) -> None:
    """Pass packed texts through the model and call ``on_block`` with the attention weights of every block."""
    layers = {block.module: layer for layer, block in enumerate(prepared.subject.blocks)}

    def on_weights(module: nn.Module, weights: Tensor, group: LengthGroup) -> None:
        real = None if group.bias is None else group.bias[:, 0, 0] == 0
        on_block(layers[module], weights, real, real)

    with passes(prepared, on_weights=on_weights) as forward:
        for micro in prepared:
            after_pass(micro, forward(micro)[0])


def mean_over_texts(
    prepared: Prepared,
    run: Callable[[Prepared, OnBlock, AfterPass], None],
    values: Callable[[Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Mean over texts of the mean over real tokens of ``values`` (text, head, token): (layer, head) float64. Each
    choice of a text counts as a text.

    ``run`` passes the texts through the model and calls ``on_block`` once for each pass through a block; passes are
    summed. ``values`` gets the tensor of ``on_block``, and which tokens that keys come from are real (text, token),
    None for all.

    Raises ``ValueError`` where logits are not finite.
    """

    def sum_over_texts(tensor: Tensor, mask: Tensor | None, of_keys: Tensor | None) -> Tensor:
        per_token = values(tensor, of_keys).double()  # (text, head, token)
        _check_tokens(mask, per_token.shape[2])
        real = torch.ones_like(per_token[:, 0]) if mask is None else mask.double()  # (text, token)
        means = torch.einsum("bht,bt->bh", per_token, real) / real.sum(1, keepdim=True)  # (text, head)
        return means.sum(0)

    blocks = prepared.subject.blocks
    zeros = [torch.zeros(len(block.kept), dtype=torch.float64) for block in blocks]
    sums, sequences = _observe(prepared, run, sum_over_texts, zeros)
    return table_of(blocks, [total / sequences for total in sums])


def sums_over_contexts(
    prepared: Prepared, values: Callable[[Tensor, Tensor | None], Tensor], zeros: Sequence[Tensor]
) -> list[Tensor]:
    """For every block, the sum of ``values`` of its contexts (text, token, kept * context_dim), of every pass through
    it, and of which tokens are real (text, token), None for all. zeros: what each sum starts from.

    Raises ``ValueError`` where logits are not finite.
    """

    def checked(context: Tensor, mask: Tensor | None, _: Tensor | None) -> Tensor:
        _check_tokens(mask, context.shape[1])
        return values(context, mask)

    return _observe(prepared, run_on_contexts, checked, zeros)[0]


def _observe(
    prepared: Prepared,
    run: Callable[[Prepared, OnBlock, AfterPass], None],
    values: Callable[[Tensor, Tensor | None, Tensor | None], Tensor],
    zeros: Sequence[Tensor],
) -> tuple[list[Tensor], int]:
    """``run`` without gradients: the sum of ``values`` for every block, on the CPU, and how many sequences passed.

    Raises ``ValueError`` where logits are not finite.
    """
    sums, sequences = OrderedSums(zeros, prepared.group), 0
    finite: list[Tensor] = []  # a flag for each micro-batch, on the device; logits of padding do not count

    def on_block(layer: int, tensor: Tensor, mask: Tensor | None, of_keys: Tensor | None) -> None:
        sums.add(layer, values(tensor, mask, of_keys).cpu())

    def after_pass(micro: MicroBatch, logits: Tensor) -> None:
        nonlocal sequences
        sums.finish(micro.number)
        sequences += micro.sequences
        finite.append(micro.mask_padding(logits).isfinite().all())
        prepared.notify(logits, micro)

    run(prepared.mine, on_block, after_pass)
    if finite and not bool(torch.stack(finite).all()):
        raise ValueError(not_finite("a text"))
    return sums.result(), sum(gather(prepared.group, sequences))


@contextmanager
def returning_attentions(blocks: Sequence[AttentionBlock]) -> Iterator[None]:
    """Within a ``with`` block, attention modules that take ``output_attentions`` are called with it."""
    with ExitStack() as hooks:
        for block in blocks:
            signature = inspect.signature(block.module.forward)
            if "output_attentions" in signature.parameters:
                ask = partial(_with_output_attentions, signature=signature)
                hooks.callback(block.module.register_forward_pre_hook(ask, with_kwargs=True).remove)
        yield


def _with_output_attentions(
    _: nn.Module, args: Any, kwargs: Any, signature: inspect.Signature
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    call = signature.bind(*args, **kwargs)
    call.arguments["output_attentions"] = True
    return call.args, call.kwargs
