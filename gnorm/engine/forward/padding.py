"""Pad and unpad: the index tensors between padded texts, packed tokens and length groups.

The same tokens come in three layouts:

- padded (text, longest): every text as wide as the longest, as a tokenizer gives them;
- packed (token,): the tokens of all texts, one text after the other, without padding;
- grouped (slot,): for attention alone. Texts of like length form a length group, and each group is padded to its own
  longest text. A slot holds a token or padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LengthGroup:
    """Texts that are padded to the same width, so that attention is computed for them together."""

    texts: int
    width: int
    bias: Tensor | None  # (text, 1, 1, width): 0 for a token, -inf for padding; None where no slot is padding

    @classmethod
    def of(cls, attention_mask: Tensor, dtype: torch.dtype) -> LengthGroup:
        """The group of texts that have this attention mask (text, width). A masked token counts as padding here."""
        mask, (texts, width) = attention_mask.bool(), attention_mask.shape
        if bool(mask.all()):
            return cls(texts, width, None)
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
        return cls(texts, width, bias[:, None, None, :])

    def to(self, device: torch.device) -> LengthGroup:
        """The same group on another device."""
        return self if self.bias is None else replace(self, bias=self.bias.to(device))


class _IndexSelect(torch.autograd.Function):
    """``x[indices]``, with a backward pass that gathers too: the gradient at ``inverse``, and zero at ``zeros``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, inverse: Tensor, zeros: Tensor | None) -> Tensor:
        ctx.inverse, ctx.zeros = inverse, zeros
        return x.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradient.index_select(0, ctx.inverse)
        return (gradient if ctx.zeros is None else gradient.index_fill_(0, ctx.zeros, 0)), None, None, None


@dataclass(frozen=True)
class PadIndices:
    """The item of each slot, and the slot of each item. Items are tokens, heads of tokens, or texts.

    Where no slot is padding, this is a permutation: texts are sorted into their length groups by one.
    """

    item_of: Tensor  # (slot,) the item that a slot holds; for padding, the last token of the same text
    slot_of: Tensor  # (item,) the slot that holds an item; flash-attention calls this `indices`
    padding: Tensor  # (padding,) the slots that hold no item
    identity: bool  # whether every slot holds the item of its own number

    @classmethod
    def of(cls, item_of: Tensor, real: Tensor) -> PadIndices:
        """From the item of each slot (slot,), and whether it is a real one (slot,) or stands in for padding."""
        slots = real.nonzero()[:, 0]
        slot_of = torch.empty_like(slots).index_copy(0, item_of[slots], slots)
        identity = torch.equal(item_of, torch.arange(len(slot_of)).to(item_of))
        return cls(item_of, slot_of, (~real).nonzero()[:, 0], identity)

    def to(self, device: torch.device) -> PadIndices:
        """The same indices on another device."""
        return PadIndices(self.item_of.to(device), self.slot_of.to(device), self.padding.to(device), self.identity)

    def pad(self, x: Tensor) -> Tensor:
        """(item, ...) -> (slot, ...). Padding slots hold garbage: mask them before a sum. Their gradient is dropped."""
        return x if self.identity else _IndexSelect.apply(x, self.item_of, self.slot_of, None)

    def unpad(self, x: Tensor) -> Tensor:
        """(slot, ...) -> (item, ...). The gradient of padding slots is zero."""
        return x if self.identity else _IndexSelect.apply(x, self.slot_of, self.item_of, self.padding)


@dataclass(frozen=True)
class PackedTexts:
    """Several texts packed: where their tokens lie in the padded texts, and where in the length groups."""

    length_groups: tuple[LengthGroup, ...]
    indices: Tensor  # (token,) position of each packed token among the text * longest positions of the padded texts
    first_tokens: Tensor  # (text,) position of each text's first token among the packed tokens
    padded_shape: tuple[int, int]  # (text, longest)
    texts_in_groups: PadIndices  # texts in the order of the length groups
    tokens_in_groups: PadIndices  # tokens in the slots of the length groups
    positions: Tensor  # (slot,) the position of each slot of a length group in its text
    widths: Tensor  # (slot,) the width of the length group of each slot

    @classmethod
    def of(cls, attention_mask: Tensor, lengths: Tensor, groups: Sequence[Tensor], dtype: torch.dtype) -> PackedTexts:
        """Pack the texts of ``attention_mask`` (text, longest), of ``lengths`` (text,) tokens, in length groups.

        groups: of each group, the numbers of its texts (text,). dtype: of the attention bias. A token that is masked
        within its text is packed too, and no token attends to it. Reads values of the mask: give it on the CPU, and
        move what comes of it.
        """
        device, longest = attention_mask.device, attention_mask.shape[1]
        real = torch.arange(longest, device=device) < lengths.to(device)[:, None]  # (text, longest)
        # the number of each token among the packed ones; padding gets that of its text's last token
        number = real.flatten().cumsum(0).sub(1).view(real.shape)  # (text, longest)
        widths = [int(lengths[group].max()) for group in groups]
        cuts = [(group.to(device), slice(0, width)) for group, width in zip(groups, widths, strict=True)]
        order = torch.cat(list(groups)).to(device)  # (text,)
        return cls(
            length_groups=tuple(LengthGroup.of(attention_mask[cut], dtype) for cut in cuts),
            indices=real.flatten().nonzero()[:, 0],
            first_tokens=number[:, 0].contiguous(),
            padded_shape=(len(real), longest),
            texts_in_groups=PadIndices.of(order, torch.ones_like(order, dtype=torch.bool)),
            tokens_in_groups=PadIndices.of(
                torch.cat([number[cut].flatten() for cut in cuts]), torch.cat([real[cut].flatten() for cut in cuts])
            ),
            positions=torch.cat([torch.arange(w, device=device).repeat(len(g)) for g, w in zip(groups, widths)]),
            widths=torch.cat([order.new_full((len(g) * w,), w) for g, w in zip(groups, widths)]),
        )

    def to(self, device: torch.device) -> PackedTexts:
        """The same texts on another device."""
        moved: dict[str, Any] = {
            name: t.to(device) for name, t in vars(self).items() if isinstance(t, Tensor | PadIndices)
        }
        return replace(self, length_groups=tuple(group.to(device) for group in self.length_groups), **moved)

    def unpad(self, hidden: Tensor) -> Tensor:
        """Padded texts to packed tokens, as one long text: (text, longest, hidden) -> (1, token, hidden)."""
        return hidden.flatten(0, 1).index_select(0, self.indices)[None]

    def pad(self, hidden: Tensor) -> Tensor:
        """Packed tokens to padded texts, padding zero: (1, token, hidden) -> (text, longest, hidden)."""
        padded = hidden.new_zeros(self.padded_shape[0] * self.padded_shape[1], hidden.shape[2])
        return padded.index_copy(0, self.indices, hidden[0]).unflatten(0, self.padded_shape)

    def by_group(self, *slots: Tensor, heads: int = 1) -> Iterator[tuple[LengthGroup, list[Tensor]]]:
        """Each length group, and its share of every tensor: (slot * head, ...) -> (text * head, width, ...)."""
        sizes = [group.texts * group.width * heads for group in self.length_groups]
        for group, *shares in zip(self.length_groups, *(tensor.split(sizes) for tensor in slots), strict=True):
            yield group, [share.unflatten(0, (group.texts * heads, group.width)) for share in shares]

    def heads_in_groups(self, heads: int) -> PadIndices:
        """Packed (token, head) in the slots of the length groups, where a text's heads come one after the other.

        Token t of head h has the number t * heads + h. The slots of a group are (text, head, width).
        """
        tokens, head = self.tokens_in_groups, torch.arange(heads, device=self.widths.device)  # (head,)
        first = torch.arange(len(self.widths), device=head.device) * heads - self.positions * (heads - 1)
        slots = first[:, None] + head * self.widths[:, None]  # (slot, head)
        items = tokens.item_of[:, None] * heads + head  # (slot, head)
        return PadIndices(
            item_of=torch.empty_like(items.flatten()).index_copy(0, slots.flatten(), items.flatten()),
            slot_of=slots[tokens.slot_of].flatten(),
            padding=slots[tokens.padding].flatten(),
            identity=tokens.identity and (heads == 1 or all(group.width == 1 for group in self.length_groups)),
        )
