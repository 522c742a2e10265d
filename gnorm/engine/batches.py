"""Batches as they are given -> micro-batches as they go through the model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..heads import layers_of
from .checks import PER_TEXT, PER_TOKEN, Batch, checked_batches, parameter_of, size_of, tables_of
from .known_models import ignores_padding, packable
from .packing import NOTHING_KEPT, Folded, Kept, Packing, Row, logits_of, packed, packing_of


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
        if self.row is None:  # padded as it is
            return (self,)
        device, found = next(iter(self.inputs.values())).device, []
        everything = torch.arange(len(self.index))
        for texts in _rectangles(everything, self.lengths, OVERHEAD_TOKENS[device.type], MAX_TOKENS[device.type]):
            at, longest = texts.to(device), int(self.lengths[texts].max())
            inputs = _cut({name: tensor[at] for name, tensor in self.inputs.items()}, longest)
            labels = None if self.labels is None else self.labels[at]
            found.append(MicroBatch(inputs, labels, self.index[texts], self.lengths[texts], ()))
        return tuple(found)


OnLogits = Callable[[Tensor, MicroBatch], None]  # logits (text, class) of a micro-batch


class Prepared(Sequence[MicroBatch]):
    """Batches cut into micro-batches and moved to the device, once; goes wherever batches go, for one model alone.

    batches: as they were given. made_for: what the micro-batches depend on in the model, see ``_traits``; another model
    makes its own of the batches. together: whether the texts of all batches count as one batch.
    """

    def __init__(
        self,
        micro_batches: Sequence[MicroBatch],
        packing: Packing | None,
        batches: Sequence[Batch] = (),
        made_for: tuple[Any, ...] = (),
        together: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self._micro_batches = micro_batches
        self.packing = packing
        self.batches = batches
        self.made_for = made_for
        self.together = together
        self.max_tokens = max_tokens
        self.observer: OnLogits | None = None
        self.num_texts = sum(len(micro.index) for micro in micro_batches)

    def seen_by(self, observer: OnLogits | None) -> Prepared:
        """The same micro-batches, whose logits ``observer`` is shown: (logits (text, class), micro-batch)."""
        seen = copy.copy(self)
        seen.observer = observer
        return seen

    def show(self, logits: Tensor, micro: MicroBatch) -> None:
        """Show the logits of a pass of the unaltered model to the observer, if there is one."""
        if self.observer is not None:
            self.observer(logits, micro)

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


@torch.inference_mode(False)  # the tensors serve passes with gradients, whatever mode is on outside
def prepare(
    batches: Iterable[Batch] | Prepared, model: nn.Module, *, together: bool = False, max_tokens: int | None = None
) -> Prepared:
    """Cut batches into length-sorted micro-batches on the model's device.

    batches: mappings of tensors (text, ...): what the model's forward takes, and optionally ``labels`` (text,).
    together: texts are sorted across batches (evaluation, where a batch means nothing).
    max_tokens: the most tokens, padding counted, that one micro-batch holds (a single longer text goes alone); it
    bounds the memory of a forward and backward pass. Default by device.

    Batches go as they are, in their own width, where cutting padding is not known to change nothing: the model is none
    of the known classifiers, or a tensor is not known to have a row a text (``PER_TEXT``) or an entry a token
    (``PER_TOKEN``).

    Raises ``TypeError`` for what is no mapping of tensors; ``ValueError`` for no batches, an empty batch, tensors of
    unequal first dimension, a text with nothing but padding, numbers that are in no table of the model, a text longer
    than the model takes, something that its forward does not take, batches that do not go together, a model whose
    weights are not there, on several devices or made within torch.inference_mode, or one that gives no logits
    (text, class). Labels are looked at by what uses them.
    """
    if isinstance(batches, Prepared):
        return _of_this_model(batches, model)
    parameter, checked = parameter_of(model), checked_batches(list(batches), model)
    most = max_tokens or MAX_TOKENS[parameter.device.type]
    sizes, made_for, packing = [size_of(batch) for batch in checked], _traits(model), None
    if not _may_be_cut(model, checked):
        micro_batches = _as_they_are(checked, parameter, getattr(model.config, "hidden_size", 1), most)
        return Prepared(micro_batches, None, checked, made_for, together, max_tokens)
    texts = _joined(checked, getattr(model.config, "pad_token_id", None) or 0)
    lengths = _lengths(texts, getattr(model.config, "hidden_size", 1))
    if "attention_mask" in texts:
        shortest = int(lengths.argmin())
        one = {name: t[shortest : shortest + 1].to(parameter.device) for name, t in texts.items() if name != "labels"}
        packing = packing_of(model, _cut(one, int(lengths[shortest])))
    given = torch.arange(sum(sizes)).split(sum(sizes) if together else sizes)
    if packing is None:
        of_device = OVERHEAD_TOKENS[parameter.device.type]
        cuts = [
            [(b, part)] for b, texts_of in enumerate(given) for part in _rectangles(texts_of, lengths, of_device, most)
        ]
    else:
        most = max_tokens or PACKED_MAX_TOKENS[parameter.device.type]
        cuts = _rows(given, lengths, most)
    ends = {batch: k for k, cut in enumerate(cuts) for batch, _ in cut}  # in which micro-batch each batch ends
    micro_batches = [_micro_batch(texts, lengths, cut, k, ends, parameter, packing, most) for k, cut in enumerate(cuts)]
    return Prepared(micro_batches, packing, checked, made_for, together, max_tokens)


def _of_this_model(prepared: Prepared, model: nn.Module) -> Prepared:
    """``prepared``, anew where it was made for another model, or for this one before a hook came that keeps texts from
    being packed."""
    parameter_of(model)
    same = prepared.made_for in ((), _traits(model))
    if same and (prepared.packing is None or not prepared.batches or packable(model)):
        return prepared
    anew = prepare(prepared.batches, model, together=prepared.together, max_tokens=prepared.max_tokens)
    return anew.seen_by(prepared.observer)


def _traits(model: Any) -> tuple[Any, ...]:
    """What prepared batches depend on in a model; the same after heads were removed from it, or masked."""
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    parameter = next(model.parameters())
    modules = tuple((type(module).__module__, type(module).__qualname__) for module in model.modules())
    return type(model), parameter.dtype, parameter.device, modules, tuple(tables_of(model).items())


def _may_be_cut(model: nn.Module, batches: Sequence[Batch]) -> bool:
    """Whether texts may leave their batches and lose their padding."""
    if any(name not in (*PER_TOKEN, *PER_TEXT, "labels") for batch in batches for name in batch):
        return False
    masks = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
    if not masks or packable(model):  # without a mask nothing is cut
        return True
    return ignores_padding(model) and all(bool(mask[:, 0].all()) for mask in masks)


def _as_they_are(batches: Sequence[Batch], parameter: Tensor, hidden: int, most: int) -> list[MicroBatch]:
    """Each batch in its own width, as many texts at a time as hold ``most`` tokens."""
    found, before = [], 0
    for b, batch in enumerate(batches):
        lengths, count = _lengths(batch, hidden), size_of(batch)
        step = max(1, most // int(lengths.max()))
        for start in range(0, count, step):
            texts = slice(start, min(start + step, count))
            inputs = {name: t[texts].contiguous().to(parameter.device) for name, t in batch.items()}
            labels, index = inputs.pop("labels", None), torch.arange(before + start, before + texts.stop)
            width = len(index)
            part = Part(b, slice(0, width), slice(0, width), texts.stop == count)
            found.append(MicroBatch(inputs, labels, index, lengths[texts], (part,)))
        before += count
    return found


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


def labels_of(micro: MicroBatch, classes: int) -> Tensor:
    """(text,) the labels of a micro-batch, ``NOT_COUNTED`` among them; ``ValueError`` where the logits of ``classes``
    columns have none that they could name."""
    if micro.labels is None:
        raise ValueError(f"text {int(micro.index[0])} has no label: give `labels` with every batch.")
    if classes < 2:
        raise ValueError("the model gives one number a text, so there is no class to compare a label with.")
    return micro.labels


def by_batch(prepared: Prepared) -> Prepared:
    """``prepared``, for what is summed batch by batch; ``ValueError`` where its batches are one."""
    if prepared.together:
        raise ValueError(
            "these batches were prepared together, as one batch: leave out together=True to score by batch."
        )
    return prepared


def _joined(batches: Sequence[Batch], pad_token: int) -> dict[str, Tensor]:
    """All batches as one, padded to the longest; without labels where these cannot be joined."""
    joined = {}
    for name in (name for name in batches[0] if name != "labels"):
        tensors = [batch[name] for batch in batches]
        if "attention_mask" in batches[0] and name in PER_TOKEN:
            width, value = max(t.shape[1] for t in tensors), pad_token if name == "input_ids" else 0
            tensors = [pad(t, (0, 0) * (t.dim() - 2) + (0, width - t.shape[1]), value=value) for t in tensors]
        if len({t.shape[1:] for t in tensors}) > 1:
            raise ValueError(f"{name} differs in shape from batch to batch: give an attention_mask with every batch.")
        joined[name] = torch.cat(tensors)
    labels = [batch["labels"] for batch in batches if "labels" in batch]
    if len(labels) == len(batches) and len({(t.shape[1:], t.dtype) for t in labels}) == 1:
        joined["labels"] = torch.cat(labels)
    return joined


def _lengths(batch: Batch, hidden: int) -> Tensor:
    """(text,) tokens of each text: up to its last unmasked one; padding before it, where there is any, counts.

    Without an attention mask all are alike: an integer is a token, and ``hidden`` other numbers are. That is so for
    embeddings, and about so for the pixels of images, which are no texts but go the same way.
    """
    if (mask := batch.get("attention_mask")) is None:
        tensors = [t for name, t in batch.items() if name != "labels"]
        tokens = max((t[0].numel() // (hidden if t.is_floating_point() else 1) for t in tensors), default=1)
        return torch.full((size_of(batch),), max(1, tokens))
    return (mask != 0).mul(torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1).cpu()


def _cut(tensors: dict[str, Tensor], longest: int) -> dict[str, Tensor]:
    """Texts cut to ``longest`` tokens, where they are texts."""
    if "attention_mask" not in tensors:
        return tensors
    return {name: t[:, :longest] if name in PER_TOKEN else t for name, t in tensors.items()}


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
