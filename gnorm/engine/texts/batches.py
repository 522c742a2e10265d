"""Batches as a user gives them, prepared once for a model; engine/README.md follows a batch through."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..forward.packing import Packing
from ..model.blocks import config_of
from ..model.families import FAMILIES
from ..model.known_models import attention_window, causal, ignores_padding, packable, reads_first_token
from ..model.problems import LABELS, NOT_COUNTED, problem_of
from ..model.projections import is_plain
from ..model.sizes import PER_TEXT, PER_TOKEN, Batch, parameter_of, tables_of
from ..model.subject import Subject
from ..trials.trial import try_out
from .checks import check_labels, checked
from .micro_batches import MicroBatch, _Cutting
from .ranks import Division
from .streams import Stream, is_stream

T = TypeVar("T")


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
        subject: Subject,
        batches: Sequence[Batch] | Stream = (),
        made_for: tuple[Any, ...] = (),
        together: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self._micro_batches = micro_batches
        self.subject = subject
        self.held = False
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

    def of(self, subject: Subject, held: bool = False) -> Prepared:
        """The same micro-batches for a model with other heads, as ``subject`` has read it. held: nothing but the caller
        changes that model, so ``prepare`` does not read it anew."""
        other = copy.copy(self)
        other.subject, other.held = subject, held
        vars(other).pop("_of_this_rank", None)
        return other

    def once(self, what: Any, make: Callable[[], T]) -> T:
        """The result of ``make``, called once for all passes over these texts. what: its name."""
        if what not in self._known:
            self._known[what] = make()
        return cast(T, self._known[what])

    def check_labels(self, purpose: str) -> None:
        """``checks.check_labels`` of the batches, once for a problem and purpose."""
        subject = self.subject
        self.once((purpose, subject.problem), lambda: check_labels(self.batches, subject.model, purpose))

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
        others = self.batches, self.made_for, self.together, self.max_tokens
        return Prepared(own, self.packing, self.subject, *others)

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
        """True if micro-batches are made anew for every pass, none of them kept."""
        return isinstance(self._micro_batches, _Windows)

    @property
    def padded(self) -> Iterator[MicroBatch]:
        """All texts as padded micro-batches of like length: for hooks that need padded tensors."""
        return (padded for micro in self for padded in micro.padded)

    @cached_property
    def most_tokens(self) -> float:
        """The most tokens, padding counted, of a micro-batch; infinite where they are not counted by ids."""
        ids = ("input_ids", "decoder_input_ids")
        if self.streamed or any("input_ids" not in micro.inputs for micro in self):
            return math.inf
        return max((sum(micro.inputs[n].numel() for n in ids if n in micro.inputs) for micro in self), default=0)


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

    Raises ``TypeError`` for what is not a mapping of tensors; ``ValueError`` for no batches, an empty batch, tensors of
    unequal first dimension, a text with nothing but padding, numbers that are in no table of the model, a text longer
    than the model takes, something that its forward does not take, batches that do not go together, a model whose
    weights are not there, on several devices or made within torch.inference_mode, one that gives no logits of the axes
    of its problem, or one whose registered row gives a head what is not its own. Labels are not checked
    here but where they are used.
    """
    config_of(model)  # refuses what is not a model
    if isinstance(batches, Prepared):
        return _prepared_for(model, batches)
    parameter_of(model)
    subject = Subject(model)
    if is_stream(batches):
        stream = Stream(batches, model, _trims(model))
        _, _, first = next(stream.windows())
        _try_out(model, first)
        cut = _Cutting.of(first, model, stream.alike, together, max_tokens)
        return Prepared(_Windows(stream, cut), cut.packing, subject, stream, _traits(subject), together, max_tokens)
    found = list(checked(batches, model))
    _try_out(model, found)
    cut = _Cutting.of(found, model, all(map(_trims(model), found)), together, max_tokens)
    return Prepared(list(cut(found)), cut.packing, subject, found, _traits(subject), together, max_tokens)


def _inputs_on(device: torch.device, batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that the model's forward takes."""
    return {name: tensor.to(device) for name, tensor in batch.items() if name not in LABELS}


def _try_out(model: Any, batches: Iterable[Batch]) -> None:
    """``try_out`` a model of a known family; the first texts of ``batches`` serve too."""

    def inputs() -> dict[str, Tensor]:
        first = {name: tensor[:2] for name, tensor in next(iter(batches)).items()}
        return _inputs_on(parameter_of(model).device, first)

    if getattr(model.config, "model_type", "") in FAMILIES:
        try_out(model, inputs)


def _prepared_for(model: nn.Module, prepared: Prepared) -> Prepared:
    """``prepared``, made anew if it does not fit ``model``: it was made for another model, or its texts are packed and
    the model has since got a hook that rules packing out."""
    held = prepared.held and prepared.subject.model is model
    subject = prepared.subject if held else Subject(model)
    if not held:
        parameter_of(model)
        if prepared.batches:
            _try_out(model, prepared.batches)
    same = held or prepared.made_for in ((), _traits(subject))
    packed = prepared.packing is not None and bool(prepared.batches)
    if same and packed and subject.packs is None:  # once for all texts of a step
        subject.packs = packable(subject.model, subject.modules)
    if same and (not packed or subject.packs):
        return prepared if held else prepared.of(subject)
    anew = prepare(prepared.batches, model, together=prepared.together, max_tokens=prepared.max_tokens)
    return anew.with_observer(prepared.observer).over(prepared.group)


def subject_of(model: nn.Module, batches: Iterable[Batch] | Prepared) -> Subject:
    """The subject of ``model``, for a criterion that looks at no text; raises as ``attention_blocks`` does."""
    if isinstance(batches, Prepared) and batches.held and batches.subject.model is model:
        return batches.subject
    subject = Subject(model)
    if subject.blocks:
        try_out(subject.model)
    return subject


def given_and_prepared(
    batches: Iterable[Batch] | Prepared, model: nn.Module, group: Any, together: bool = False
) -> tuple[Iterable[Batch], Prepared]:
    """The batches as they were given, and prepared for ``model``, divided over the ranks of ``group``."""
    given = batches if isinstance(batches, Prepared) or is_stream(batches) else list(batches)
    prepared = prepare(given, model, together=together).over(group)
    return prepared.batches if isinstance(given, Prepared) else given, prepared


def same_batches(a: Iterable[Batch], b: Iterable[Batch]) -> bool:
    """True if two lists of batches hold the same tensors; whether two streams are one and the same."""
    return a is b or (
        isinstance(a, Sequence)
        and isinstance(b, Sequence)
        and len(a) == len(b)
        and all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x) for x, y in zip(a, b, strict=True))
    )


def _traits(subject: Subject) -> tuple[Any, ...]:
    """The traits of a model that prepared batches depend on. Removing or masking heads does not change them: linear
    layers, which may go with the last head of a layer, do not count."""
    model, parameter = subject.model, subject.parameter
    modules = tuple((type(m).__module__, type(m).__qualname__) for m in subject.modules if not is_plain(m))
    of_module = parameter.dtype, parameter.device, modules, tuple(tables_of(model).items())
    return type(model), *of_module, attention_window(model)


def _trims(model: nn.Module) -> Callable[[Batch], bool]:
    """True if texts of a batch may leave it and lose their padding; all texts, if so for every batch.

    Texts of a known family whose row names no classifier may not: it may read the last token, or count tokens.
    """
    config: Any = model.config
    known = FAMILIES.get(getattr(config, "model_type", ""))
    of_padding, by_text = known is None or bool(known.classifier or known.pooled), not problem_of(model).heads
    packs, ignores, window = packable(model), ignores_padding(model), attention_window(model)
    if packs and causal(model):
        return partial(_trims_after_last, window, config.pad_token_id) if by_text else partial(_trims_tokens, window)
    # A masked token is hidden from the others, and that is all; DeBERTa hides the others from it too.
    masked_first = packs and reads_first_token(model) and not (known and known.also)

    def trims(batch: Batch) -> bool:
        if not by_text or any(name not in (*PER_TOKEN, *PER_TEXT, "labels") for name in batch):
            return False
        if not of_padding and any(name in PER_TOKEN for name in batch):
            return False
        mask = batch.get("attention_mask")  # without one no padding is known, so none is cut
        return mask is None or (mask.shape[1] <= window and (masked_first or (ignores and bool(mask[:, 0].all()))))

    return trims


def _trims_tokens(window: float, batch: Batch) -> bool:
    """``_trims`` of a model with logits of tokens: where padding is known to be ``_behind`` texts, and is labelled
    ``NOT_COUNTED``."""
    behind, labels = _behind(window, batch), batch.get("labels")
    if behind is None or labels is None:
        return behind is not None
    return labels.shape == behind.shape and bool((labels[behind] == NOT_COUNTED).all())


def _trims_after_last(window: float, pad_token: int | None, batch: Batch) -> bool:
    """``_trims`` of a classifier that reads the last token that is not ``pad_token``: where padding is known to be
    ``_behind`` texts, and is that token."""
    behind, ids = _behind(window, batch), batch.get("input_ids")
    if behind is None or ids is None or pad_token is None or "inputs_embeds" in batch:
        return False
    return bool((ids[behind] == pad_token).all())


def _behind(window: float, batch: Batch) -> Tensor | None:
    """(text, token) bool: the padding behind texts; None where it is not known, where a text is longer than ``window``
    tokens or begins with padding, and where a tensor has no entry a token."""
    mask = batch.get("attention_mask")
    if mask is None or any(name not in (*PER_TOKEN, "labels") for name in batch):
        return None
    if mask.shape[1] > window or not bool(mask[:, 0].all()):
        return None
    return mask.flip(1).cummax(1).values.flip(1) == 0


def by_batch(prepared: Prepared) -> Prepared:
    """``prepared`` as it is. Raises ``ValueError`` where its batches were joined to one, so no sum over them exists."""
    if prepared.together:
        raise ValueError(
            "these batches were prepared together, as one batch: leave out together=True to score by batch."
        )
    return prepared
