"""Batches as they are given -> micro-batches as they go through the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .heads import layers_of
from .packing import NOTHING_KEPT, Folded, Kept, Packing, Row, logits_of, packed, packing_of

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """The texts of one batch within a micro-batch."""

    batch: int
    texts: slice
    tokens: slice  # in the micro-batch's row
    last: bool  # whether the batch ends here


@dataclass(frozen=True)
class MicroBatch:
    """Texts that go through the model together: those of a batch of like length, or several batches' as one row."""

    inputs: dict[str, Tensor]  # what forward takes, each (text, ...), padded to the longest text
    labels: Tensor | None  # (text,)
    index: Tensor  # (text,) position of each text in the batches as they were given
    lengths: Tensor  # (text,) tokens of each text
    parts: tuple[Part, ...]
    row: Row | None = None  # where the tokens stand when they go through without padding

    @cached_property
    @torch.inference_mode(False)  # whoever asks first, the tensors serve passes with gradients too
    def rectangles(self) -> tuple[MicroBatch, ...]:
        """Its texts in passes of their own, those of like length together: for what has to look at padded tensors."""
        device, found = next(iter(self.inputs.values())).device, []
        everything = torch.arange(len(self.index))
        for texts in _rectangles(everything, self.lengths, OVERHEAD_TOKENS[device.type], MAX_TOKENS[device.type]):
            at, longest = texts.to(device), int(self.lengths[texts].max())
            inputs = _cut({name: tensor[at] for name, tensor in self.inputs.items()}, longest)
            labels = None if self.labels is None else self.labels[at]
            found.append(MicroBatch(inputs, labels, self.index[texts], self.lengths[texts], ()))
        return tuple(found)


class Prepared(Sequence[MicroBatch]):
    """Batches cut into micro-batches and moved to the device, once; goes wherever batches go."""

    def __init__(self, micro_batches: Sequence[MicroBatch], packing: Packing | None) -> None:
        self._micro_batches = micro_batches
        self.packing = packing
        self.num_texts = sum(len(micro.index) for micro in micro_batches)

    def __getitem__(self, i: Any) -> Any:
        return self._micro_batches[i]

    def __len__(self) -> int:
        return len(self._micro_batches)


# What one more rectangle costs, in tokens: a forward pass of its own where every micro-batch is one, a call of the
# attention kernel where they are packed. Measured on CPU and assumed for GPUs, where launches cost more.
OVERHEAD_TOKENS = {"cpu": 48, "cuda": 2048, "mps": 1024}
PACKED_OVERHEAD_TOKENS = {"cpu": 24, "cuda": 256, "mps": 256}
MAX_TOKENS = {"cpu": 512, "cuda": 16384, "mps": 4096}
PACKED_MAX_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
KEPT_BYTES = 2**30  # for what comes into layers, kept from one evaluation to the next


def prepare(
    batches: Iterable[Batch] | Prepared, model: nn.Module, *, together: bool = False, max_tokens: int | None = None
) -> Prepared:
    """Cut batches into length-sorted micro-batches on the model's device.

    batches: mappings of tensors (text, ...): what the model's forward takes, and optionally ``labels`` (text,).
    together: texts are sorted across batches (evaluation, where a batch means nothing).
    max_tokens: the most tokens, padding counted, that one micro-batch holds (a single longer text goes alone); it
    bounds the memory of a forward and backward pass. Default by device.

    Raises ``TypeError`` for what is no mapping of tensors; ``ValueError`` for no batches, an empty batch, tensors of
    unequal first dimension, a text with nothing but padding, token ids outside the vocabulary, a text longer than the
    model takes, labels that are not a class index each, batches that do not go together, a model whose weights are not
    there or on several devices, or one that gives no logits (text, class).
    """
    if isinstance(batches, Prepared):
        return batches
    device, room = _device_of(model), longest_text(model)
    vocabulary = getattr(getattr(model, "get_input_embeddings", lambda: None)(), "num_embeddings", None)
    checked = [_checked(batch, i, vocabulary, room) for i, batch in enumerate(batches)]
    if not checked:
        raise ValueError("there are no batches: give at least one mapping of tensors such as a tokenizer returns.")
    sizes = [_size(batch) for batch in checked]
    texts = _joined(checked, getattr(model.config, "pad_token_id", None) or 0)
    lengths, parameter = _lengths(texts, getattr(model.config, "hidden_size", 1)), next(model.parameters())
    packing = _packing_of(model, texts, lengths, device)
    most = max_tokens or (MAX_TOKENS if packing is None else PACKED_MAX_TOKENS)[device.type]
    given = torch.arange(sum(sizes)).split(sum(sizes) if together else sizes)
    if packing is None:
        overhead = OVERHEAD_TOKENS[device.type]
        cuts = [[(b, part)] for b, texts in enumerate(given) for part in _rectangles(texts, lengths, overhead, most)]
    else:
        cuts = _rows(given, lengths, most)
    ends = {batch: k for k, cut in enumerate(cuts) for batch, _ in cut}  # in which micro-batch each batch ends
    return Prepared(
        [_micro_batch(texts, lengths, cut, k, ends, parameter, packing, most) for k, cut in enumerate(cuts)], packing
    )


def _micro_batch(
    texts: dict[str, Tensor],
    lengths: Tensor,
    cut: list[tuple[int, Tensor]],
    k: int,
    ends: Mapping[int, int],
    parameter: Tensor,
    packing: Packing | None,
    most: int,
) -> MicroBatch:
    index = torch.cat([of_batch for _, of_batch in cut])
    lengths = lengths[index]
    tensors = _cut({name: t[index.to(t.device)] for name, t in texts.items()}, int(lengths.max()))
    tensors = {name: t.contiguous().to(parameter.device) for name, t in tensors.items()}
    labels = tensors.pop("labels", None)
    parts, text, token = [], 0, 0
    for batch, of_batch in cut:
        width, area = len(of_batch), int(lengths[text : text + len(of_batch)].sum())
        parts.append(Part(batch, slice(text, text + width), slice(token, token + area), ends[batch] == k))
        text, token = text + width, token + area
    row = None
    if packing is not None:
        overhead = PACKED_OVERHEAD_TOKENS[parameter.device.type]
        groups = _rectangles(torch.arange(len(index)), lengths, overhead, most)
        row = Row.of(tensors["attention_mask"], lengths, groups, parameter.dtype)
    return MicroBatch(tensors, labels, index, lengths, tuple(parts), row)


def _longest_first(texts: Tensor, lengths: Tensor) -> Tensor:
    return texts[lengths[texts].argsort(descending=True, stable=True)]


def _rectangles(texts: Tensor, lengths: Tensor, overhead: int, most: int) -> Sequence[Tensor]:
    """``texts`` (text,), longest first, in groups of like length."""
    texts = _longest_first(texts, lengths)
    return texts.split(_cuts(lengths[texts].tolist(), overhead, most))


def _rows(batches: Sequence[Tensor], lengths: Tensor, most: int) -> list[list[tuple[int, Tensor]]]:
    """The texts of consecutive batches, as many together as hold no more than ``most`` tokens; a batch is cut, longest
    texts first, only if it must be."""
    rows: list[list[tuple[int, Tensor]]] = []
    filled = most
    for batch, texts in enumerate(batches):
        texts = _longest_first(texts, lengths)
        while len(texts):
            fits = max(1, int((lengths[texts].cumsum(0) <= most).sum()))
            part, texts = texts[:fits], texts[fits:]
            tokens = int(lengths[part].sum())
            if filled + tokens > most:
                rows.append([])
                filled = 0
            rows[-1].append((batch, part))
            filled += tokens
    return rows


def _size(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def num_texts(batches: Iterable[Batch]) -> int:
    """How many texts the batches hold."""
    return sum(map(_size, batches))


def _device_of(model: nn.Module) -> torch.device:
    devices = sorted({parameter.device for parameter in model.parameters()}, key=str)
    if len(devices) > 1:
        raise ValueError(
            f"the model lies on {' and '.join(map(str, devices))}: bring it to one device with model.to()."
        )
    if devices[0].type == "meta":
        raise ValueError("the model is on the meta device, which holds no weights: load them first.")
    return devices[0]


def longest_text(model: Any) -> int | None:
    """The most tokens of a text that the model has positions for, by its tables of them; None where it has no table.
    Tables with a padding row (RoBERTa's) start counting behind it."""
    tables = [
        module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding)
    ]
    return min((t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables), default=None)


def _checked(batch: Batch, i: int, vocabulary: int | None, room: int | None) -> Batch:
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch {i} is of type {type(batch).__name__}: give a sequence of mappings of tensors.")
    for name, tensor in batch.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} of batch {i} is of type {type(tensor).__name__}, not a tensor: leave it out, or have the "
                'tokenizer return_tensors="pt".'
            )
        if not tensor.dim():
            raise ValueError(f"{name} of batch {i} is a single number: its first dimension must be the texts.")
    sizes = {name: len(tensor) for name, tensor in batch.items()}
    if not sizes or not min(sizes.values()):
        raise ValueError(f"batch {i} is empty: give every batch at least one text.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the tensors of batch {i} disagree on how many texts there are: {sizes}.")
    labels, ids, mask = (batch.get(name) for name in ("labels", "input_ids", "attention_mask"))
    if labels is not None and (labels.dim() != 1 or labels.is_floating_point()):
        raise ValueError(
            f"the labels of batch {i} are {labels.dtype} of shape {tuple(labels.shape)}: give the index of a class for "
            "each text."
        )
    if mask is not None and mask.dim() != 2:
        raise ValueError(f"the attention mask of batch {i} has shape {tuple(mask.shape)}, it must be (text, token).")
    if mask is not None and ids is not None and mask.shape != ids.shape:
        raise ValueError(
            f"batch {i}: attention mask {tuple(mask.shape)} and token ids {tuple(ids.shape)} do not match."
        )
    if mask is not None and len(blank := (mask == 0).all(1).nonzero()):
        raise ValueError(f"text {int(blank[0])} of batch {i} is all padding: its attention mask holds no 1.")
    if ids is not None and (ids.dim() != 2 or ids.is_floating_point()):
        raise ValueError(
            f"the token ids of batch {i} are {ids.dtype} of shape {tuple(ids.shape)}: they must be whole numbers, (text, "
            "token)."
        )
    if ids is not None and not ids.numel():
        raise ValueError(f"the texts of batch {i} have no token: a tokenizer's special tokens are enough.")
    if ids is not None and vocabulary is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(
            f"batch {i} has token ids from {int(ids.min())} to {int(ids.max())}, the model knows 0 to {vocabulary - 1}: "
            "use the tokenizer that belongs to it."
        )
    longest = int(mask.ne(0).any(0).nonzero().max()) + 1 if mask is not None else 0 if ids is None else ids.shape[1]
    if room is not None and longest > room:
        raise ValueError(
            f"the longest text of batch {i} has {longest} tokens, the model takes {room}: have the tokenizer truncate "
            f"to max_length={room}."
        )
    return batch


def _joined(batches: Sequence[Batch], pad_token: int) -> dict[str, Tensor]:
    """All batches as one, padded to the longest."""
    joined = {}
    for i, batch in enumerate(batches):
        if batch.keys() != batches[0].keys():
            raise ValueError(f"batch {i} holds {', '.join(batch)}, batch 0 {', '.join(batches[0])}: give all the same.")
    for name in batches[0]:
        tensors = [batch[name] for batch in batches]
        if "attention_mask" in batches[0] and (tensors[0].dim() == 2 or _by_token(name, batches)):
            width, value = max(t.shape[1] for t in tensors), pad_token if name == "input_ids" else 0
            tensors = [pad(t, (0, 0) * (t.dim() - 2) + (0, width - t.shape[1]), value=value) for t in tensors]
        if len({t.shape[1:] for t in tensors}) > 1:
            raise ValueError(f"{name} differs in shape from batch to batch: give an attention_mask with every batch.")
        joined[name] = torch.cat(tensors)
    return joined


def _by_token(name: str, batches: Sequence[Batch]) -> bool:
    """Whether the second dimension of a tensor is the token's in every batch, as it is of embeddings."""
    return all(b[name].dim() > 1 and b[name].shape[1] == b["attention_mask"].shape[1] for b in batches)


def _lengths(batch: Batch, hidden: int) -> Tensor:
    """(text,) tokens of each text: up to its last unmasked one; padding before it, where there is any, counts.

    Without an attention mask all are alike: an integer is a token, and ``hidden`` other numbers are. That is so for
    embeddings, and about so for the pixels of images, which are no texts but go the same way.
    """
    if (mask := batch.get("attention_mask")) is None:
        tensors = [t for name, t in batch.items() if name != "labels"]
        tokens = max((t[0].numel() // (hidden if t.is_floating_point() else 1) for t in tensors), default=1)
        return torch.full((_size(batch),), max(1, tokens))
    return (mask != 0).mul(torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).cpu()


def _cut(tensors: dict[str, Tensor], longest: int) -> dict[str, Tensor]:
    """Texts cut to ``longest`` tokens, where they are texts."""
    if "attention_mask" not in tensors:
        return tensors
    width = tensors["attention_mask"].shape[1]
    return {name: t[:, :longest] if t.dim() > 1 and t.shape[1] == width else t for name, t in tensors.items()}


def _cuts(lengths: list[int], overhead: int, most: int) -> list[int]:
    """Sizes of the rectangles into which texts, longest first, are cut at the least cost (dynamic programming).

    A rectangle costs its tokens, padding counted, and ``overhead``; it holds no more than ``most`` tokens, or one text.
    """
    best, cut = [0.0] * (len(lengths) + 1), [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        best[end] = math.inf
        for start in range(end - 1, -1, -1):
            tokens = lengths[start] * (end - start)
            if tokens > most and start < end - 1:
                break
            if best[start] + overhead + tokens <= best[end]:
                best[end], cut[end] = best[start] + overhead + tokens, start
    sizes, end = [], len(lengths)
    while end:
        sizes.append(end - cut[end])
        end = cut[end]
    return sizes[::-1]


def _packing_of(model: nn.Module, texts: Batch, lengths: Tensor, device: torch.device) -> Packing | None:
    """How the model passes through its layers, tried on the longest and the shortest text; None where texts have no
    attention mask."""
    if "attention_mask" not in texts:
        return None
    two = torch.stack([lengths.argmax(), lengths.argmin()])
    inputs = {name: t[two.to(t.device)].to(device) for name, t in texts.items() if name != "labels"}
    return packing_of(model, _cut(inputs, int(lengths.max())), lengths[two])


class Forward(Protocol):
    """The logits (text, class) of a micro-batch, and what of the last block's weights was not applied to tokens."""

    def __call__(self, micro: MicroBatch, kept: Kept = ...) -> tuple[Tensor, Sequence[Folded]]: ...


@contextmanager
def forwarding(model: nn.Module, prepared: Prepared) -> Iterator[Forward]:
    """The function that passes micro-batches of ``prepared`` through ``model``."""
    if prepared.packing is None:
        yield lambda micro, kept=NOTHING_KEPT: (logits_of(model, micro.inputs), ())
        return
    with packed(model, prepared.packing) as forward:
        yield lambda micro, kept=NOTHING_KEPT: forward(micro.inputs, cast(Row, micro.row), kept)


def kept_of(model: nn.Module, prepared: Prepared) -> list[Kept]:
    """For every micro-batch, a place for what comes into the model's layers: of all layers, or of every second, third
    ... where ``KEPT_BYTES`` are too few for all."""
    layers, parameter = len(layers_of(model)), next(model.parameters())
    if prepared.packing is None or prepared.packing.passes != layers:
        return [NOTHING_KEPT] * len(prepared)
    tokens = sum(int(micro.lengths.sum()) for micro in prepared)
    hidden: int = model.config.hidden_size  # type: ignore[union-attr, assignment]
    size = tokens * hidden * parameter.element_size()
    return [Kept(range(0, layers, math.ceil(size * layers / KEPT_BYTES))) for _ in prepared]
