"""Checks of batches and labels before any pass: shapes, types, and the sizes of the model's embedding tables."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..model.problems import LABELS, NOT_COUNTED, POSITIONS, Problem, labels_in, problem_of
from ..model.sizes import TABLES, Batch, fits, sizes_of, tables_of
from ..model.state import evaluating


def checked(batches: Iterable[Any], model: Any) -> Iterator[Batch]:
    """The batches one by one, row numbers and classes as int64. Raises what ``prepare`` raises before any pass."""
    tables, takes = tables_of(model), inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    names, problem = None if anything else (*takes, "labels"), problem_of(model)
    first: dict[str, None] | None = None
    for i, batch in enumerate(batches):
        one = _checked(batch, i, tables, names, problem.inputs)
        one = with_decoder(one, i, tables, model)
        first = first or dict.fromkeys(one)
        if one.keys() - set(LABELS) != first.keys() - set(LABELS):
            raise ValueError(f"batch {i} holds {', '.join(one)}, batch 0 {', '.join(first)}: give all the same.")
        yield one
    if first is None:
        raise ValueError("there are no batches: give at least one mapping of tensors such as a tokenizer returns.")


def _checked(
    batch: Any, i: int, tables: Mapping[str, int | None], takes: Sequence[str] | None, axes: Sequence[str]
) -> Batch:
    """Batch number ``i``, checked against the model's tables and the inputs it takes, None for any. axes: of ids."""
    _check_tensors(batch, i, takes)
    mask = batch.get("attention_mask")
    if mask is not None:
        _check_mask(mask, i, axes)
    for name, rows in ((name, tables[name]) for name in TABLES if name in batch):
        _check_numbers(batch, i, name, rows, axes)
    _check_width(batch, i, tables["longest"], axes)
    return usable(batch)


def usable(batch: Batch) -> Batch:
    """The batch outside inference mode, row numbers and classes as int64."""
    return {name: _usable(name, tensor) for name, tensor in batch.items()}


def _check_tensors(batch: Any, i: int, takes: Sequence[str] | None) -> None:
    """Check that a batch is a mapping of tensors that the model takes, of equally many texts, at least one."""
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
        if takes is not None and name not in takes:
            raise ValueError(f"{name} of batch {i} is nothing that the model's forward takes: leave it out.")
    sizes = {name: len(tensor) for name, tensor in batch.items()}
    if not sizes or not min(sizes.values()):
        raise ValueError(f"batch {i} is empty: give every batch at least one text.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the tensors of batch {i} disagree on how many texts there are: {sizes}.")


def _check_mask(mask: Tensor, i: int, axes: Sequence[str]) -> None:
    """Check that an attention mask has these axes, holds 0 and 1 only, and has a 1 in each text."""
    if mask.dim() != len(axes):
        shape, needed = tuple(mask.shape), ", ".join(axes)
        raise ValueError(f"the attention mask of batch {i} has shape {shape}, it must be ({needed}).")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"the attention mask of batch {i} holds values other than 0, for padding, and 1, for a token.")
    if len(blank := (mask == 0).all(-1).nonzero()):
        raise ValueError(f"text {int(blank[0, 0])} of batch {i} is all padding: its attention mask holds no 1.")


def _check_numbers(batch: Batch, i: int, name: str, rows: int | None, axes: Sequence[str]) -> None:
    """Check the input ``name``: row numbers, of ``axes``, of an embedding table, of the shape of mask and token ids.

    rows: how many rows the table has; None where the model has no such table.
    """
    (what, remedy), numbers = TABLES[name], batch[name]
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if numbers.dim() != len(axes) or numbers.is_floating_point() or numbers.is_complex():
        raise ValueError(
            f"the {what} of batch {i} are {numbers.dtype} of shape {tuple(numbers.shape)}: they must be whole "
            f"numbers, ({', '.join(axes)})."
        )
    numbers = numbers.long()
    if mask is not None and mask.shape != numbers.shape:
        raise ValueError(
            f"batch {i}: attention mask {tuple(mask.shape)} and {what} {tuple(numbers.shape)} do not match."
        )
    if ids is not None and ids.shape != numbers.shape:
        raise ValueError(f"batch {i}: token ids {tuple(ids.shape)} and {what} {tuple(numbers.shape)} do not match.")
    if not numbers.numel():
        raise ValueError(f"the texts of batch {i} have no token: a tokenizer's special tokens are enough.")
    low, high = int(numbers.min()), int(numbers.max())
    if rows is not None and not 0 <= low <= high < rows:
        raise ValueError(f"batch {i} has {what} from {low} to {high}, the model knows 0 to {rows - 1}: {remedy}.")


def _check_width(batch: Batch, i: int, room: int | None, axes: Sequence[str]) -> None:
    """Check the shape of embeddings, and that no text has more tokens than the model has positions for (``room``)."""
    embedded, mask, ids = (batch.get(name) for name in ("inputs_embeds", "attention_mask", "input_ids"))
    if embedded is not None and (
        embedded.dim() != len(axes) + 1 or (mask is not None and embedded.shape[:-1] != mask.shape)
    ):
        raise ValueError(
            f"inputs_embeds of batch {i} have shape {tuple(embedded.shape)}: they must be ({', '.join(axes)}, hidden)"
            + ("." if mask is None else f", as wide as the attention mask {tuple(mask.shape)}.")
        )
    used = None if mask is None else mask.ne(0).flatten(0, -2).any(0)  # (token,)
    longest = int(used.nonzero().max()) + 1 if used is not None else 0 if ids is None else ids.shape[-1]
    if room is not None and longest > room:
        raise ValueError(
            f"the longest text of batch {i} has {longest} tokens, the model takes {room}: have the tokenizer truncate "
            f"to max_length={room}."
        )


def with_decoder(batch: Batch, i: int, tables: Mapping[str, int | None], model: Any) -> Batch:
    """Batch number ``i`` with what the decoder reads, where the model has a decoder with inputs of its own: made from
    the labels as the model itself does where it is left out, and with a mask of padding.

    A mask that is left out is read off the labels: what follows the last one that counts is padding. Masking it changes
    no logit before it, since a decoder looks back alone. Raises ``ValueError`` where labels and inputs leave open what
    is padding, and for inputs of the decoder as for those of the encoder.
    """
    if not problem_of(model).input_prefix:
        return batch
    names = ("decoder_input_ids", "decoder_inputs_embeds")
    labels, mask = batch.get("labels"), batch.get("decoder_attention_mask")
    added: dict[str, Tensor] = {}
    if not any(name in batch for name in names):
        if labels is None or labels.dim() != 2 or labels.is_floating_point() or not labels.numel():
            raise ValueError(f"batch {i} has no decoder_input_ids, nor labels that the model makes them of: give them.")
        added["decoder_input_ids"] = _read_by_decoder(model, labels, i)
    if mask is None and labels is not None and labels.dim() == 2:
        counted = labels != NOT_COUNTED
        if not bool(counted[:, 0].all()):
            raise ValueError(
                f"a text of batch {i} has the first label {NOT_COUNTED}, which may be padding or not: give "
                "decoder_attention_mask."
            )
        added["decoder_attention_mask"] = counted.flip(1).cumsum(1).flip(1).clamp(max=1)
    elif mask is None and "decoder_input_ids" in batch:
        pad_token = getattr(model.config, "pad_token_id", None)
        if pad_token is not None and bool((batch["decoder_input_ids"][:, 1:] == pad_token).any()):
            raise ValueError(
                f"decoder_input_ids of batch {i} hold the padding token, which may be padding or not: give "
                "decoder_attention_mask."
            )
        added["decoder_attention_mask"] = torch.ones_like(batch["decoder_input_ids"])
    batch = {**batch, **added}
    of_decoder = {name.removeprefix("decoder_"): batch[name] for name in batch if name.startswith("decoder_")}
    its_tables = {name.removeprefix("decoder_"): rows for name, rows in tables.items() if name.startswith("decoder_")}
    try:
        _checked(of_decoder, i, its_tables, None, ("text", "token"))
    except ValueError as error:
        raise ValueError(f"of the decoder: {error}") from None
    return batch


class _ReadError(Exception):
    """Ends a forward pass where the decoder begins, with what it is given."""


def _read_by_decoder(model: Any, labels: Tensor, i: int) -> Tensor:
    """(text, token) the ids that the decoder reads where ``labels`` of batch number ``i`` are given alone, as the
    model's forward makes them. ``ValueError`` where it makes none of them."""

    def end(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        raise _ReadError(named["input_ids"] if "input_ids" in named else args[0])

    encoded = torch.zeros(len(labels), 1, 1, device=model.device, dtype=model.dtype)  # so that no encoder runs
    why = "its forward makes none"
    with evaluating(model):
        hook = model.get_decoder().register_forward_pre_hook(end, with_kwargs=True)
        try:
            model.forward(encoder_outputs=(encoded,), labels=labels.to(model.device))  # without its hooks
        except _ReadError as read:
            if isinstance(ids := read.args[0], Tensor):
                return ids.to(labels.device)
        except Exception as error:  # noqa: BLE001 - whatever a model makes of labels alone
            why = " ".join(str(error).split())[:200]
        finally:
            hook.remove()
    raise ValueError(
        f"{type(model).__name__} makes no decoder_input_ids of the labels of batch {i} ({why}): give decoder_input_ids."
    )


def _usable(name: str, tensor: Tensor) -> Tensor:
    """The tensor outside inference mode, as int64 where it is a mask or holds numbers of rows or classes, and labels
    that are fractions in float32 at least, which numpy knows."""
    tensor = tensor.clone() if tensor.is_inference() else tensor
    if name in LABELS and (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    mask = name.endswith("attention_mask") and not tensor.is_floating_point()
    return tensor.long() if mask or name in LABELS or name.removeprefix("decoder_") in TABLES else tensor


def check_labels(
    batches: Iterable[Batch], model: Any, purpose: str, what: str = "batch", not_counted: bool = True
) -> None:
    """Check that each text has labels as the model's problem needs them; ``ValueError`` if not.

    purpose: what the labels are for, in the message. what: what the message calls a batch. not_counted: whether a text
    may be ``NOT_COUNTED``; a token may.
    """
    problem, counted = problem_of(model), 0
    for i, batch in enumerate(batches):
        names = " and ".join(f"`{name}`" for name in (POSITIONS if "boundary" in problem.labels else ("labels",)))
        if (labels := labels_in(batch)) is None:
            raise ValueError(f"{what} {i} has no {names}: {purpose} needs {problem.needs}.")
        of_kind = not labels.is_complex() and labels.is_floating_point() != problem.whole
        if not of_kind or not _fits(labels, batch, problem, model):
            raise ValueError(
                f"the labels of {what} {i} are {labels.dtype} of shape {tuple(labels.shape)}: give {problem.each}."
            )
        if not problem.whole:
            _check_values(labels, problem, f"{what} {i}")
            counted += len(labels)
            continue
        real = labels[labels != NOT_COUNTED] if not_counted or problem.labels == ("text", "token") else labels
        counted += int(problem.terms_of(problem.counted_labels(labels, problem.logit_mask(batch))).sum())
        classes = sizes_of(problem.logits[-1:], batch, problem, model)[0]  # or choices, or positions
        if classes is not None and len(real) and not 0 <= int(real.min()) <= int(real.max()) < classes:
            raise ValueError(
                f"{what} {i} has labels from {int(labels.min())} to {int(labels.max())}, the model's classes are 0 to "
                f"{classes - 1}."
            )
        if "boundary" in problem.labels and bool((labels[:, 0] > labels[:, 1]).any()):
            raise ValueError(f"{what} {i} has an answer that ends before it starts: correct its positions.")
    if not counted:
        raise ValueError(
            f"every label is {NOT_COUNTED}, which is not counted: {purpose} needs some texts with a class."
        )


def _fits(labels: Tensor, batch: Batch, problem: Problem, model: Any) -> bool:
    """True if labels have the axes of the problem, as long as the batch and the model make them."""
    sizes = sizes_of(problem.labels, batch, problem, model)
    return fits(labels, sizes) or (problem.squeezed and sizes[1] == 1 and fits(labels, sizes[:1]))


def _check_values(labels: Tensor, problem: Problem, what: str) -> None:
    """Check that labels that are not classes are finite; 0 or 1 where they say whether a class is given, or from 0 to 1
    where they are probabilities."""
    fine = {
        "multi_label_classification": (labels == 0) | (labels == 1),
        "binary_classification": (labels >= 0) & (labels <= 1),
    }
    if not bool(fine.get(problem.name, labels.isfinite()).all()):
        low, high = float(labels.min()), float(labels.max())
        raise ValueError(f"{what} has labels from {low:g} to {high:g}: give {problem.each}.")
