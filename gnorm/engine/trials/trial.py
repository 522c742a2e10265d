"""Trials of models that the package's tests say nothing of: with a row that was registered, or with classes of one's
own.

Such a model is tried before it is believed, at its first use by any function, once for each class, configuration and
row. Everything happens on a copy with random weights in its attention blocks, so that heads differ and no gate or norm
hides what they do: ``family_check.try_row``, and then heads are removed and the results held against those of masks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..model.blocks import blocks_of
from ..model.errors import in_short
from ..model.families import FAMILIES
from ..model.known_models import is_tested
from ..model.masking import masking
from ..model.removal import remove
from ..model.state import evaluating
from ..model.subject import Subject
from .family_check import try_row
from .trial_runs import as_ours, differ, key_of, outputs, runnable, with_random_attention

_TRIED: dict[tuple[Any, ...], str] = {}  # by class, configuration and row: why heads cannot be removed; "" if they can


_AT_WORK = threading.local()


REMEDY = (
    "correct per_head, also or skippable in the family's row with gnorm.register, or mask heads instead where the "
    "attention counts them in a way of its own"
)


@contextmanager
def untried() -> Iterator[None]:
    """Within the block, no model is tried in this thread: for models that wait for their weights."""
    before, _AT_WORK.now = getattr(_AT_WORK, "now", False), True
    try:
        yield
    finally:
        _AT_WORK.now = before


def try_out(
    model: Any, inputs: Callable[[], Mapping[str, Tensor]] | None = None, removal: bool = False, neurons: bool = False
) -> None:
    """Raise ``ValueError`` where the heads of ``model`` are not those that its family's row says, or where removing
    heads differs from masking them and they are removed, or are to be. The model stays as it is.

    inputs: makes those of some texts, as not every model takes random ones (``examples_of``). removal: heads are to be
    removed. neurons: the same of heads and feed-forward neurons together.
    """
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    if is_tested(model):
        return
    if model.config.model_type not in FAMILIES or getattr(_AT_WORK, "now", False):
        return
    intact = all(map(all, getattr(model.config, "head_mask", None) or ())) and not neurons
    key = (*key_of(model), neurons, intact)
    tried = next((one for one in ((*key[:-1], True), key) if one in _TRIED), None)
    if tried is None:
        blocks_of(model)  # refuses what cannot be read
        with untried(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            try:
                copy, message = with_random_attention(model, everywhere=neurons), ""
            except ValueError as error:  # it can be scored, but not pruned
                copy, message = model, str(error)
            with evaluating(copy):
                examples = runnable(copy, [inputs()] if inputs else [])
                if not neurons:
                    as_ours(f"{type(copy).__name__} cannot be scored", lambda: try_row(copy, examples[-1]))
                if copy is not model:
                    message = _TRIED[key] = _removal(copy, examples, neurons)
    else:
        message = _TRIED[tried]
    if message and (removal or not intact):
        raise ValueError(message)


def _removal(copy: Any, examples: Sequence[Mapping[str, Tensor]], neurons: bool) -> str:
    """The fault of ``copy``, which is in eval mode, once heads are removed, and neurons; "" where there is none."""
    name = type(copy).__name__
    with torch.no_grad():
        whole, again = ([outputs(copy, one) for one in examples] for _ in range(2))
    if any(differ(*two) for two in zip(again, whole, strict=True)):
        return (
            f"{name} gives the same texts other results in every pass, in eval mode too, so that heads cannot be "
            "compared: take out what is drawn at random."
        )
    for emptied in range(3):  # no layer, the last, all
        subject = Subject(copy)
        left = subject.unit_mask if neurons else subject.mask
        layer = torch.arange(len(left))[:, None]
        mask = ((layer + torch.arange(left.shape[1])) % 3 > 0) & (layer < len(left) - (0, 1, len(left))[emptied])
        with torch.no_grad():
            units, rows = (subject.units, subject.unit_rows(mask)) if neurons else (subject.blocks, mask)
            with masking(copy, units, rows):
                expected = [outputs(copy, one) for one in examples]
            remove(subject, mask, neurons)
            try:
                found = [outputs(copy, one) for one in examples]
            except Exception as error:  # noqa: BLE001 - whatever a module makes of unusual sizes
                what = f"it does not run ({in_short(error)})"
            else:
                wrong = any(differ(*three) for three in zip(found, expected, whole, strict=True))
                what = "its results are not those of masked heads" if wrong else ""
        if what:
            remedy = 'prune heads alone (units=("heads",))' if neurons else REMEDY
            return f"{name} does not work with {'neurons' if neurons else 'heads'} removed, {what}: {remedy}."
    return ""
