"""Batches as a user gives them -> micro-batches as they pass through the model.

Texts are grouped by length here, and packed where the model is known to allow it; README.md follows a batch through.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..heads import layers_of, try_out
from .attention import AbsorbedProjection
from .checks import PER_TEXT, PER_TOKEN, Batch, check_labels, checked, parameter_of, size_of, tables_of
from .families import FAMILIES
from .known_models import attention_window, causal, ignores_padding, packable
from .packing import NO_CACHE, LayerInputCache, Packing, logits_of, packed_forward, packing_of
from .padding import PackedTexts
from .passes import naming_texts
from .problems import LABELS, NOT_COUNTED, Problem, labels_in, problem_of
from .projections import is_plain
from .ranks import Division
from .state import evaluating
from .streams import Stream, is_stream

T = TypeVar("T")


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
        """How many sequences of tokens the layers see: one a text, or one for every choice of a text."""
        ids = next((self.inputs[name] for name in ("input_ids", "attention_mask") if name in self.inputs), self.index)
        return max(len(self.index), ids.shape[:-1].numel())

    @property
    def ends(self) -> bool:
        """Whether no later micro-batch holds texts of the same batch."""
        return all(batch_slice.last for batch_slice in self.batch_slices)

    def without_padding(self, logits: Tensor, value: float = 0) -> Tensor:
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
            real = self.problem.without_padding(inputs) if self.problem else None
            of_texts = self.index[texts], self.lengths[texts]
            found = MicroBatch(inputs, labels, *of_texts, (), None, real, self.number, self.problem, self.width)
            micro_batches.append(found)
        return tuple(micro_batches)


# Called with the logits (text, ...) and the micro-batch of every forward pass of the unaltered model.
OnLogits = Callable[[Tensor, MicroBatch], None]


class Prepared(Sequence[MicroBatch]):
    """Batches cut into micro-batches and moved to the device, once; goes wherever batches go, for one model alone.

    A sequence of all micro-batches; what computes asks for ``mine``, those of this rank in a run over several
    processes. batches: as they were given. made_for: what the micro-batches depend on in the model, see ``_traits``;
    for another model they are made anew from the batches. together: whether the texts of all batches count as one.
    """

    def __init__(
        self,
        micro_batches: Sequence[MicroBatch],
        packing: Packing | None,
        batches: Sequence[Batch] | Stream = (),
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
        self.group: Any = None
        if isinstance(batches, Stream):
            self.num_texts = batches.num_texts
        else:
            self.num_texts = sum(len(micro.index) for micro in micro_batches)
        self._known: dict[Any, Any] = {}

    def with_observer(self, observer: OnLogits | None) -> Prepared:
        """The same micro-batches; ``observer`` is called with the logits of every pass of the unaltered model."""
        observed = copy.copy(self)
        observed.observer = observer
        return observed

    def once(self, what: Any, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for all passes over these texts. what: a name for it."""
        if what not in self._known:
            self._known[what] = make()
        return cast(T, self._known[what])

    def check_labels(self, model: nn.Module, purpose: str) -> None:
        """``checks.check_labels`` of the batches, once for a problem and purpose."""
        self.once((purpose, problem_of(model)), lambda: check_labels(self.batches, model, purpose))

    def over(self, group: Any) -> Prepared:
        """The same micro-batches, divided over the ranks of a process group; not divided, if None."""
        if group is self.group:
            return self
        divided = copy.copy(self)
        divided.group = group
        vars(divided).pop("_of_this_rank", None)
        return divided

    @property
    def mine(self) -> Prepared:
        """The micro-batches of this rank: whole batches; all of them without a group."""
        return self if self.group is None else self._of_this_rank

    @cached_property
    def _of_this_rank(self) -> Prepared:
        if isinstance(self._micro_batches, _Windows):
            own: Sequence[MicroBatch] = self._micro_batches.over(self.group)
        else:
            takes = Division(self.group).takes
            own = [micro for micro in self if takes(int(micro.lengths.sum()), self.together or micro.ends)]
        return Prepared(own, self.packing, self.batches, self.made_for, self.together, self.max_tokens)

    def notify(self, logits: Tensor, micro: MicroBatch) -> None:
        """Call the observer, if there is one, with the logits (text, class) of a pass of the unaltered model."""
        if self.observer is not None:
            self.observer(logits, micro)

    def __getitem__(self, i: Any) -> Any:
        return self._micro_batches[i]

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self._micro_batches)

    def __len__(self) -> int:
        return len(self._micro_batches)

    @property
    def streamed(self) -> bool:
        """Whether micro-batches are made anew for every pass, none of them kept."""
        return isinstance(self._micro_batches, _Windows)

    @property
    def padded(self) -> Iterator[MicroBatch]:
        """All texts as padded micro-batches of like length: for hooks that need padded tensors."""
        return (padded for micro in self for padded in micro.padded)


class _Windows(Sequence[MicroBatch]):
    """The micro-batches of a stream: made window by window, anew by every iteration.

    group: of which this rank's micro-batches are made alone.
    """

    def __init__(self, stream: Stream, cut: _Cutting, group: Any = None) -> None:
        self._stream, self._cut, self._group = stream, cut, group

    def over(self, group: Any) -> _Windows:
        return _Windows(self._stream, self._cut, group)

    def __iter__(self) -> Iterator[MicroBatch]:
        takes, number = Division(self._group).takes, 0
        for batch, text, window in self._stream.windows():
            number = yield from self._cut(window, batch, text, number, takes)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, i: Any) -> Any:
        return list(self)[i]


# What one more length group costs, in tokens. A padded group costs a forward pass of its own, a group of packed texts a
# call of the attention kernel. On a GPU that is some ten launches a layer; padding, which only attention computes, is
# cheaper. Measured on a CPU; for packed texts on CUDA chosen by the profile of a step; else assumed.
OVERHEAD_TOKENS = {"cpu": 48, "cuda": 2048, "mps": 1024}


PACKED_OVERHEAD_TOKENS = {"cpu": 24, "cuda": 4096, "mps": 256}


# The most tokens of a micro-batch: padding included, as for logits of tokens always; and of packed texts.
MAX_TOKENS = {"cpu": 512, "cuda": 16384, "mps": 4096}


PACKED_MAX_TOKENS = {"cpu": 2048, "cuda": 16384, "mps": 4096}


CACHE_BYTES = 2**30  # the most that the layer-input caches of one model hold together


@torch.inference_mode(False)  # the tensors serve passes with gradients, whatever mode is on outside
def prepare(
    batches: Iterable[Batch] | Prepared, model: nn.Module, together: bool = False, max_tokens: int | None = None
) -> Prepared:
    """Cut batches into micro-batches, sorted by length, on the model's device.

    batches: mappings of tensors (text, ...): what the model's forward takes, and optionally ``labels`` (text, ...), or
    ``start_positions`` and ``end_positions`` (text,).
    together: texts are sorted across batches (evaluation, where a batch means nothing).
    max_tokens: the most tokens, padding counted, that one micro-batch holds (a single longer text goes alone); it
    bounds the memory of a forward and backward pass. Default by device.

    Batches keep their own width and their padding where cutting padding is not known to change nothing: the model is
    none of the known classifiers, its logits are of tokens or choices, or a tensor is not known
    to have a row a text (``PER_TEXT``) or an entry a token (``PER_TOKEN``).

    Raises ``TypeError`` for what is no mapping of tensors; ``ValueError`` for no batches, an empty batch, tensors of
    unequal first dimension, a text with nothing but padding, numbers that are in no table of the model, a text longer
    than the model takes, something that its forward does not take, batches that do not go together, a model whose
    weights are not there, on several devices or made within torch.inference_mode, one that gives no logits of the axes
    of its problem, or one whose registered row gives a head what is not its own. Labels are not checked
    here but where they are used.
    """
    if isinstance(batches, Prepared):
        return _prepared_for(model, batches)
    parameter_of(model)
    if is_stream(batches):
        stream = Stream(batches, model, _trims(model))
        _, _, first = next(stream.windows())
        _try_out(model, first)
        cut = _Cutting.of(first, model, stream.alike, together, max_tokens)
        return Prepared(_Windows(stream, cut), cut.packing, stream, _traits(model), together, max_tokens)
    found = list(checked(batches, model))
    _try_out(model, found)
    cut = _Cutting.of(found, model, all(map(_trims(model), found)), together, max_tokens)
    return Prepared(list(cut(found)), cut.packing, found, _traits(model), together, max_tokens)


def try_pass(batch: Batch, model: nn.Module, numbers: Tensor | None = None) -> Tensor:
    """The logits of a batch as it is, all texts together. numbers: (text,) what errors call them.

    Raises as ``prepare`` does, and ``PassError`` where the model fails.
    """
    (one,) = checked([batch], model)
    with evaluating(model), torch.no_grad():
        return logits_of(model, _inputs_on(parameter_of(model).device, one), numbers)


def _inputs_on(device: torch.device, batch: Batch) -> dict[str, Tensor]:
    """What the model's forward takes of a batch."""
    return {name: tensor.to(device) for name, tensor in batch.items() if name not in LABELS}


def _try_out(model: Any, batches: Iterable[Batch]) -> None:
    """``try_out`` a model of a known family; the first texts of ``batches`` serve too."""

    def inputs() -> dict[str, Tensor]:
        first = {name: tensor[:2] for name, tensor in next(iter(batches)).items()}
        return _inputs_on(parameter_of(model).device, first)

    if getattr(model.config, "model_type", "") in FAMILIES:
        try_out(model, inputs)


@dataclass(frozen=True)
class _Cutting:
    """How batches are cut into micro-batches for a model."""

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
            shares = (_packed_shares if self.problem.by_text else _shares_of_padded)(given, lengths, self.most)
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


def _prepared_for(model: nn.Module, prepared: Prepared) -> Prepared:
    """``prepared``, made anew if it does not fit ``model``: it was made for another model, or its texts are packed and
    the model has since got a hook that rules packing out."""
    parameter_of(model)
    if prepared.batches:
        _try_out(model, prepared.batches)
    same = prepared.made_for in ((), _traits(model))
    if same and (prepared.packing is None or not prepared.batches or packable(model)):
        return prepared
    anew = prepare(prepared.batches, model, together=prepared.together, max_tokens=prepared.max_tokens)
    return anew.with_observer(prepared.observer).over(prepared.group)


def given_and_prepared(
    batches: Iterable[Batch] | Prepared, model: nn.Module, group: Any, together: bool = False
) -> tuple[Iterable[Batch], Prepared]:
    """The batches as they were given, and prepared for ``model``, divided over the ranks of ``group``."""
    given = batches if isinstance(batches, Prepared) or is_stream(batches) else list(batches)
    prepared = prepare(given, model, together=together).over(group)
    return prepared.batches if isinstance(given, Prepared) else given, prepared


def same_batches(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    """Whether two lists of batches hold the same tensors; whether two streams are one and the same."""
    return a is b or (
        isinstance(a, Sequence)
        and isinstance(b, Sequence)
        and len(a) == len(b)
        and all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in zip(a, b, strict=True))
    )


def _traits(model: Any) -> tuple[Any, ...]:
    """What prepared batches depend on in a model. Removing or masking heads does not change it: linear layers, which
    may go with the last head of a layer, do not count."""
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    parameter = next(model.parameters())
    modules = tuple((type(m).__module__, type(m).__qualname__) for m in model.modules() if not is_plain(m))
    of_module = parameter.dtype, parameter.device, modules, tuple(tables_of(model).items())
    return type(model), *of_module, attention_window(model)


def _trims(model: nn.Module) -> Callable[[Batch], bool]:
    """Whether texts of a batch may leave it and lose their padding; all texts, if so for every batch.

    Texts of a known family whose row names no classifier may not: it may read the last token, or count tokens.
    """
    known = FAMILIES.get(getattr(model.config, "model_type", ""))
    of_padding, by_text = known is None or bool(known.classifier), not problem_of(model).heads
    packs, ignores = packable(model), ignores_padding(model)
    if packs and causal(model):
        return partial(_trims_tokens, attention_window(model))

    def trims(batch: Batch) -> bool:
        if not by_text or any(name not in (*PER_TOKEN, *PER_TEXT, "labels") for name in batch):
            return False
        if not of_padding and any(name in PER_TOKEN for name in batch):
            return False
        mask = batch.get("attention_mask")  # without one no padding is known, so none is cut
        return mask is None or packs or (ignores and bool(mask[:, 0].all()))

    return trims


def _trims_tokens(window: float, batch: Batch) -> bool:
    """``_trims`` of a model with logits of tokens: where padding is known, lies behind texts of at most ``window``
    tokens, and is labelled ``NOT_COUNTED``."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if mask is None or any(name not in (*PER_TOKEN, "labels") for name in batch):
        return False
    if mask.shape[1] > window or not bool(mask[:, 0].all()):
        return False
    behind = mask.flip(1).cummax(1).values.flip(1) == 0  # (text, token)
    return labels is None or (labels.shape == mask.shape and bool((labels[behind] == NOT_COUNTED).all()))


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
            everything, real = slice(0, len(index)), problem.without_padding(inputs)
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


def _packed_shares(batches: Sequence[Tensor], lengths: Tensor, most: int) -> list[Share]:
    """The texts of consecutive batches, as many in a micro-batch as hold at most ``most`` tokens.

    batches: the texts (text,) of each batch. A batch of more tokens than that is cut, its longest texts first.
    """
    shares: list[Share] = []
    filled = most
    for batch, texts in enumerate(batches):
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


def _shares_of_padded(batches: Sequence[Tensor], lengths: Tensor, most: int) -> list[Share]:
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
            if not shares or count * longest > most:
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
    real, width = problem.without_padding(tensors), texts["attention_mask"].shape[1]
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
    return micro.labels if micro.problem is None else micro.problem.foreseen(micro.labels, micro.real)


def by_batch(prepared: Prepared) -> Prepared:
    """``prepared`` as it is. Raises ``ValueError`` where its batches were joined to one, so no sum over them exists."""
    if prepared.together:
        raise ValueError(
            "these batches were prepared together, as one batch: leave out together=True to score by batch."
        )
    return prepared


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
            mend = "bring all to one size" if name in PER_TEXT else "give an attention_mask with every batch"
            raise ValueError(f"{name} differs in shape from batch to batch: {mend}.")
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
    """How many texts each length group takes at the least total cost, by dynamic programming.

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


class Forward(Protocol):
    """A micro-batch -> its logits (text, ...), and the projections that the pass absorbed."""

    def __call__(
        self, micro: MicroBatch, cache: LayerInputCache = ...
    ) -> tuple[Tensor, Sequence[AbsorbedProjection]]: ...


@contextmanager
def forwarding(model: nn.Module, prepared: Prepared) -> Iterator[Forward]:
    """For a ``with`` block, the function that passes micro-batches of ``prepared`` through ``model``."""
    if prepared.packing is None:
        yield lambda micro, cache=NO_CACHE: (logits_of(model, micro.inputs, micro.index), ())
        return
    with packed_forward(model, prepared.packing) as forward:

        def guarded(
            micro: MicroBatch, cache: LayerInputCache = NO_CACHE
        ) -> tuple[Tensor, Sequence[AbsorbedProjection]]:
            with naming_texts(model, micro.inputs, micro.index, again=False):
                return forward(micro.inputs, cast(PackedTexts, micro.packed), cache)

        yield guarded


def layer_input_caches(model: nn.Module, prepared: Prepared) -> list[LayerInputCache]:
    """An empty layer-input cache for each micro-batch.

    It is for all layers, or for every second, third ... where all would take more than ``CACHE_BYTES``; for none where
    one layer would, texts go through padded, or layers share a block. A stream has no micro-batch to keep one for, so
    it gets an empty list.
    """
    layers, parameter = len(layers_of(model)), next(model.parameters())
    if prepared.streamed:
        return []
    if prepared.packing is None or prepared.packing.passes != layers:
        return [NO_CACHE] * len(prepared)
    tokens = sum(int(micro.lengths.sum()) for micro in prepared)
    hidden: int = model.config.hidden_size  # type: ignore[union-attr, assignment]
    size = tokens * hidden * parameter.element_size()
    if size > CACHE_BYTES:
        return [NO_CACHE] * len(prepared)
    return [LayerInputCache(range(0, layers, math.ceil(size * layers / CACHE_BYTES))) for _ in prepared]


def with_caches(prepared: Prepared, caches: Sequence[LayerInputCache]) -> Iterator[tuple[MicroBatch, LayerInputCache]]:
    """Each micro-batch with its cache; where there are no caches, with none."""
    if not caches:
        return ((micro, NO_CACHE) for micro in prepared)
    return zip(prepared, caches, strict=True)
