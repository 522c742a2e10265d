"""Texts sorted by length and cut into micro-batches, packed or padded."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..forward.packing import Packing, packing_of
from ..forward.padding import PackedTexts
from ..model.problems import LABELS, NOT_COUNTED, Problem, labels_in, problem_of
from ..model.sizes import PER_TEXT, PER_TOKEN, Batch, parameter_of, size_of


@dataclass(frozen=True)
class BatchSlice:
    """The texts of one batch within a micro-batch."""

    batch: int  # number of the batch
    texts: slice  # of the micro-batch's texts
    tokens: slice  # of the micro-batch's packed tokens
    last: bool  # whether no later micro-batch holds texts of the batch


@dataclass(frozen=True)
class MicroBatch:
    """Texts that share a pass: packed texts of one batch or several, or padded texts of one batch."""

    inputs: dict[str, Tensor]  # what forward takes, each (text, ...), padded to the longest text
    labels: Tensor | None  # (text, ...), as the problem of the model has them
    index: Tensor  # (text,) position of each text in the batches as they were given
    lengths: Tensor  # (text,) tokens of each text
    batch_slices: tuple[BatchSlice, ...]
    packed: PackedTexts | None = None  # None where the texts go through padded
    real: Tensor | None = None  # which logits are of tokens and not of padding; None where none is of padding
    number: int = 0  # among the micro-batches of all ranks
    problem: Problem | None = None  # where texts may have lost padding and their logits are of tokens
    width: int = 0  # of the texts as they were given, there

    @property
    def sequences(self) -> int:
        """The number of sequences that the layers see: one a text, or one for every choice of a text."""
        ids = next((self.inputs[name] for name in ("input_ids", "attention_mask") if name in self.inputs), self.index)
        return max(len(self.index), ids.shape[:-1].numel())

    @property
    def ends(self) -> bool:
        """True if no later micro-batch holds texts of the same batch."""
        return all(batch_slice.last for batch_slice in self.batch_slices)

    def mask_padding(self, logits: Tensor, value: float = 0) -> Tensor:
        """``logits`` with those of padding replaced by ``value``."""
        return logits if self.real is None else logits.masked_fill(~self.real, value)

    @cached_property
    @torch.inference_mode(False)  # computed once and then used by passes with gradients too, whatever mode is on now
    def padded(self) -> tuple[MicroBatch, ...]:
        """The same texts as padded micro-batches of like length; itself, where the texts are padded already."""
        if self.packed is None:
            return (self,)
        device, micro_batches = next(iter(self.inputs.values())).device, []
        all_texts = torch.arange(len(self.index))
        for texts in _length_groups(all_texts, self.lengths, OVERHEAD_TOKENS[device.type], MAX_TOKENS[device.type]):
            on_device, longest = texts.to(device), int(self.lengths[texts].max())
            tensors = self.inputs if self.labels is None else {**self.inputs, "labels": self.labels}
            inputs = _trimmed({name: t[on_device] for name, t in tensors.items()}, longest, _per_token(self.problem))
            labels = inputs.pop("labels", None)
            real = self.problem.logit_mask(inputs) if self.problem else None
            of_texts = self.index[texts], self.lengths[texts]
            found = MicroBatch(inputs, labels, *of_texts, (), None, real, self.number, self.problem, self.width)
            micro_batches.append(found)
        return tuple(micro_batches)


# What one more length group costs, in tokens. A padded group costs a forward pass of its own, a group of packed texts a
# call of the attention kernel. On a GPU that is some ten launches a layer; padding, which only attention computes, is
# cheaper. Measured on a CPU; for packed texts on CUDA chosen by the profile of a step; else assumed.
OVERHEAD_TOKENS = {"cpu": 48, "cuda": 2048, "mps": 1024}


PACKED_OVERHEAD_TOKENS = {"cpu": 24, "cuda": 4096, "mps": 256}


# The most tokens of a micro-batch: padding included, as for logits of tokens always; and of packed texts.
MAX_TOKENS = {"cpu": 512, "cuda": 16384, "mps": 4096}


PACKED_MAX_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}


@dataclass(frozen=True)
class _Cutting:
    """The way batches are cut into micro-batches for a model."""

    trim: bool  # whether texts may leave their batches and lose their padding
    packing: Packing | None
    most: int  # tokens of a micro-batch
    together: bool
    like: Tensor  # empty, of the model's device and dtype
    hidden: int
    pad_token: int
    problem: Problem

    @classmethod
    def of(
        cls, batches: Sequence[Batch], model: nn.Module, trim: bool, together: bool, max_tokens: int | None
    ) -> _Cutting:
        """The cutting for ``model``; packing is tried on the shortest text of ``batches``."""
        config: Any = model.config
        like, hidden = parameter_of(model).detach().new_empty(0), getattr(config, "hidden_size", 1)
        pad_token, packing = getattr(config, "pad_token_id", None) or 0, None
        if trim:
            texts = _joined(batches, pad_token, _per_token(problem_of(model)))
            packing = _packing(model, texts, _lengths(texts, hidden), like.device)
        problem = problem_of(model)
        most = max_tokens or (PACKED_MAX_TOKENS if packing and problem.by_text else MAX_TOKENS)[like.device.type]
        return cls(trim, packing, most, together, like, hidden, pad_token, problem)

    @torch.inference_mode(False)  # the tensors serve passes with gradients, whatever mode is on outside
    def __call__(
        self,
        batches: Sequence[Batch],
        batch: int = 0,
        text: int = 0,
        number: int = 0,
        takes: Callable[[int, bool], bool] = lambda tokens, ends: True,
    ) -> Generator[MicroBatch, None, int]:
        """The micro-batches; returns the number of the next one.

        batch, text, number: the numbers of the first batch, text and micro-batch. takes: whether a micro-batch is made,
        by its tokens and whether no later one shares a batch with it.
        """
        if not self.trim:
            for micro in _untrimmed(batches, self.like, self.hidden, self.most, self.problem, batch, text, number):
                number += 1
                if takes(int(micro.lengths.sum()), self.together or micro.ends):
                    yield micro
            return number
        texts = _joined(batches, self.pad_token, _per_token(self.problem))
        lengths = _lengths(texts, self.hidden)
        sizes = [size_of(one) for one in batches]
        given = torch.arange(sum(sizes)).split(sum(sizes) if self.together else sizes)
        device = self.like.device
        if self.packing is None:
            shares = _padded_shares(given, lengths, self.most, device)
        else:
            apart = self.packing.by_batch
            shares = (_packed_shares if self.problem.by_text else _shares_of_padded)(given, lengths, self.most, apart)
        last = {b: k for k, share in enumerate(shares) for b, _ in share}  # the last micro-batch of each batch
        for k, share in enumerate(shares):
            ended = {b for b, _ in share if last[b] == k}
            tokens = sum(int(lengths[of_batch].sum()) for _, of_batch in share)
            if takes(tokens, self.together or len(ended) == len(share)):
                most_packed = self.most if self.packing else None
                micro = _micro_batch(texts, lengths, share, ended, self.like, most_packed, number + k, self.problem)
                yield micro if not text else _moved(micro, 0 if self.together else batch, text)
        return number + len(shares)


def _moved(micro: MicroBatch, batch: int, text: int) -> MicroBatch:
    """``micro`` of later texts: its first batch and text have these numbers."""
    slices = tuple(replace(one, batch=one.batch + batch) for one in micro.batch_slices)
    return replace(micro, index=micro.index + text, batch_slices=slices)


def _per_token(problem: Problem | None) -> tuple[str, ...]:
    """Of what a batch holds, what has an entry for each token."""
    return (*PER_TOKEN, "labels") if problem and "token" in problem.labels else PER_TOKEN


def _untrimmed(
    batches: Sequence[Batch], like: Tensor, hidden: int, most: int, problem: Problem, first: int, text: int, number: int
) -> Iterator[MicroBatch]:
    """Each batch in its own width, cut into micro-batches of at most ``most`` tokens.

    like: of the device that they go to. first, text, number: those of the first batch, text and micro-batch.
    """
    before = text
    for b, batch in enumerate(batches, start=first):
        lengths, count = _lengths(batch, hidden), size_of(batch)
        decoder = batch.get("decoder_attention_mask")
        step = max(1, most // max(int(lengths.max()), 0 if decoder is None else decoder.shape[-1]))
        for start in range(0, count, step):
            texts = slice(start, min(start + step, count))
            inputs = {name: t[texts].contiguous().to(like.device) for name, t in batch.items()}
            labels, index = labels_in(inputs), torch.arange(before + start, before + texts.stop)
            inputs = {name: tensor for name, tensor in inputs.items() if name not in LABELS}
            everything, real = slice(0, len(index)), problem.logit_mask(inputs)
            batch_slice = BatchSlice(b, everything, everything, texts.stop == count)
            yield MicroBatch(inputs, labels, index, lengths[texts], (batch_slice,), None, real, number, problem)
            number += 1
        before += count


def _packing(model: nn.Module, texts: dict[str, Tensor], lengths: Tensor, device: torch.device) -> Packing | None:
    """``packing_of`` the model, tried on the shortest text; None where texts go through padded."""
    if "attention_mask" not in texts:
        return None
    shortest = int(lengths.argmin())
    one = {name: t[shortest : shortest + 1].to(device) for name, t in texts.items() if name != "labels"}
    return packing_of(model, _trimmed(one, int(lengths[shortest]), PER_TOKEN), torch.tensor([shortest]))


Share = list[tuple[int, Tensor]]  # the texts of a micro-batch: of each batch in it, its number and its texts (text,)


def _padded_shares(batches: Sequence[Tensor], lengths: Tensor, most: int, device: torch.device) -> list[Share]:
    """The texts of each batch in length groups, each a micro-batch. batches: the texts (text,) of each batch."""
    overhead = OVERHEAD_TOKENS[device.type]
    return [[(b, group)] for b, texts in enumerate(batches) for group in _length_groups(texts, lengths, overhead, most)]


def _packed_shares(batches: Sequence[Tensor], lengths: Tensor, most: int, apart: bool = False) -> list[Share]:
    """The texts of consecutive batches, as many in a micro-batch as hold at most ``most`` tokens.

    batches: the texts (text,) of each batch. A batch of more tokens than that is cut, its longest texts first. apart:
    no two batches share a micro-batch.
    """
    shares: list[Share] = []
    filled = most
    for batch, texts in enumerate(batches):
        filled = most if apart else filled
        texts = _longest_first(texts, lengths)
        while len(texts):
            fits = max(1, int((lengths[texts].cumsum(0) <= most).sum()))
            fitting, texts = texts[:fits], texts[fits:]
            tokens = int(lengths[fitting].sum())
            if filled + tokens > most:
                shares.append([])
                filled = 0
            shares[-1].append((batch, fitting))
            filled += tokens
    return shares


def _shares_of_padded(batches: Sequence[Tensor], lengths: Tensor, most: int, apart: bool = False) -> list[Share]:
    """As ``_packed_shares``, where ``most`` counts padding too: their logits are padded."""
    shares: list[Share] = []
    count = longest = 0  # of the texts in the last share
    for batch, texts in enumerate(batches):
        texts = _longest_first(texts, lengths)
        while len(texts):
            width = int(lengths[texts[0]])
            fitting = texts[: max(1, most // width)]
            texts = texts[len(fitting) :]
            count, longest = count + len(fitting), max(longest, width)
            if not shares or count * longest > most or (apart and batch != shares[-1][0][0]):
                shares.append([])
                count, longest = len(fitting), width
            shares[-1].append((batch, fitting))
    return shares


def _micro_batch(
    texts: dict[str, Tensor],
    lengths: Tensor,
    share: Share,
    ended: set[int],
    parameter: Tensor,
    most_packed: int | None,
    number: int,
    problem: Problem,
) -> MicroBatch:
    """The micro-batch of the texts of ``share``, on the device of ``parameter``.

    ended: the batches of which no later micro-batch holds texts. most_packed: the most tokens of a length group of
    packed texts; None where texts go through padded.
    """
    index = torch.cat([of_batch for _, of_batch in share])
    lengths = lengths[index]
    longest, per_token = int(lengths.max()), _per_token(problem)
    tensors = _trimmed({name: t[index.to(t.device)] for name, t in texts.items()}, longest, per_token)
    packed = None
    if most_packed is not None:
        overhead = PACKED_OVERHEAD_TOKENS[parameter.device.type]
        groups = _length_groups(torch.arange(len(index)), lengths, overhead, most_packed)
        packed = PackedTexts.of(tensors["attention_mask"].cpu(), lengths, groups, parameter.dtype).to(parameter.device)
    tensors = {name: t.contiguous().to(parameter.device) for name, t in tensors.items()}
    labels, slices = tensors.pop("labels", None), _batch_slices(share, lengths, ended)
    if problem.by_text:
        return MicroBatch(tensors, labels, index, lengths, slices, packed, number=number)
    real, width = problem.logit_mask(tensors), texts["attention_mask"].shape[1]
    return MicroBatch(tensors, labels, index, lengths, slices, packed, real, number, problem, width)


def _batch_slices(share: Share, lengths: Tensor, ended: set[int]) -> tuple[BatchSlice, ...]:
    """Where the texts and tokens of each batch of ``share`` lie. lengths: (text,) of the share's texts."""
    slices, text, token = [], 0, 0
    for batch, of_batch in share:
        next_text = text + len(of_batch)
        next_token = token + int(lengths[text:next_text].sum())
        slices.append(BatchSlice(batch, slice(text, next_text), slice(token, next_token), batch in ended))
        text, token = next_text, next_token
    return tuple(slices)


def _longest_first(texts: Tensor, lengths: Tensor) -> Tensor:
    return texts[lengths[texts].argsort(descending=True, stable=True)]


def _length_groups(texts: Tensor, lengths: Tensor, overhead: int, most: int) -> Sequence[Tensor]:
    """``texts`` (text,), longest first, in groups of like length."""
    texts = _longest_first(texts, lengths)
    return texts.split(_group_sizes(lengths[texts].tolist(), overhead, most))


def labels_of(micro: MicroBatch, logits: Tensor) -> Tensor:
    """(text, ...) the labels of a micro-batch, ``NOT_COUNTED`` among them and for tokens that padding is to foresee.

    Raises ``ValueError`` where there are none, and where they name classes and the logits (text, class) have one alone.
    """
    if micro.labels is None:
        raise ValueError(f"text {int(micro.index[0])} has no label: give `labels` with every batch.")
    if logits.shape[1:] == (1,) and not micro.labels.is_floating_point():
        raise ValueError("the model gives one number a text, so there is no class to compare a label with.")
    return micro.labels if micro.problem is None else micro.problem.counted_labels(micro.labels, micro.real)


def _joined(batches: Sequence[Batch], pad_token: int, per_token: Sequence[str]) -> dict[str, Tensor]:
    """All batches as one, padded to the longest; without labels where these cannot be joined."""
    joined, values = {}, {"input_ids": pad_token, "labels": NOT_COUNTED}

    def padded(name: str, tensors: list[Tensor]) -> list[Tensor]:
        if "attention_mask" not in batches[0] or name not in per_token:
            return tensors
        width, value = max(t.shape[1] for t in tensors), values.get(name, 0)
        return [pad(t, (0, 0) * (t.dim() - 2) + (0, width - t.shape[1]), value=value) for t in tensors]

    for name in (name for name in batches[0] if name != "labels"):
        tensors = padded(name, [batch[name] for batch in batches])
        if len({t.shape[1:] for t in tensors}) > 1:
            remedy = "bring all to one size" if name in PER_TEXT else "give an attention_mask with every batch"
            raise ValueError(f"{name} differs in shape from batch to batch: {remedy}.")
        joined[name] = torch.cat(tensors)
    if all("labels" in batch for batch in batches):
        labels = padded("labels", [batch["labels"] for batch in batches])
        if len({t.dim() for t in labels}) > 1:  # the numbers of texts, (text,) and (text, 1)
            labels = [t.flatten(1) if t.dim() > 1 else t[:, None] for t in labels]
        if len({t.shape[1:] for t in labels}) == 1:
            joined["labels"] = torch.cat(labels)  # in the type that holds them all
    return joined


def _lengths(batch: Batch, hidden: int) -> Tensor:
    """(text,) tokens of each text: up to the last one that is not masked; masked ones before it count.

    Without an attention mask, count one token per id, or per ``hidden`` floats of an embedding. The same count serves
    for the pixels of images, roughly.
    """
    if (mask := batch.get("attention_mask")) is None:
        tensors = [t for name, t in batch.items() if name not in LABELS]
        tokens = max((t[0].numel() // (hidden if t.is_floating_point() else 1) for t in tensors), default=1)
        return torch.full((size_of(batch),), max(1, tokens))
    ends = (
        (mask != 0).mul(torch.arange(1, mask.shape[-1] + 1, device=mask.device)).amax(-1)
    )  # (text,) or (text, choice)
    return ends.reshape(len(ends), -1).sum(1).cpu()


def _trimmed(tensors: dict[str, Tensor], longest: int, per_token: Sequence[str]) -> dict[str, Tensor]:
    """Texts cut to ``longest`` tokens; without an attention mask, as they are."""
    if "attention_mask" not in tensors:
        return tensors
    return {name: t[:, :longest] if name in per_token else t for name, t in tensors.items()}


def _group_sizes(lengths: list[int], overhead: int, most: int) -> list[int]:
    """The number of texts of each length group at the least total cost, by dynamic programming.

    lengths: longest first. A group costs its tokens, padding counted, plus ``overhead``. It holds at most ``most``
    tokens, or one text.
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
