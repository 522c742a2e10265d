"""Random inputs of a model, made from its configuration: texts, images or sounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model import sizes
from ..model.problems import problem_of
from ..model.sizes import tables_of

Inputs = dict[str, Tensor]


# Tokens, pixels a side, samples or frames; of an image that is not square (height, width).
Length = int | tuple[int, int]


LETTERS = 128  # where a model knows letters and no words


def _said(config: Any, name: str) -> Any:
    """The value of ``name`` in a configuration, or in one within it; None where none does."""
    parts = (config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", ())))
    return next((value for part in parts if (value := getattr(part, name, None)) is not None), None)


def _texts(config: Any, batch: int, length: int) -> Inputs:
    known = _said(config, "vocab_size") or LETTERS
    ids = torch.randint(known, (batch, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": _ended(config, ids, torch.full((batch, 1), length)), "attention_mask": torch.ones_like(ids)}


def _ended(config: Any, ids: Tensor, lengths: Tensor) -> Tensor:
    """Token ids (text, token) of texts of ``lengths`` (text, 1). Where the model has a decoder, each ends in the token
    that its classifiers read, and has no other of that kind."""
    if not getattr(config, "is_encoder_decoder", False) or (end := _said(config, "eos_token_id")) is None:
        return ids
    return ids.masked_fill(ids == end, (end + 1) % _said(config, "vocab_size")).scatter(1, lengths - 1, end)


def _images(config: Any, batch: int, length: Length) -> Inputs:
    sides, generator = (length, length) if isinstance(length, int) else length, torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(batch, _said(config, "num_channels"), *sides, generator=generator)}


def _sounds(config: Any, batch: int, length: int) -> Inputs:
    bins = (config.num_mel_bins,) if hasattr(config, "num_mel_bins") else ()
    return {"input_values": torch.randn(batch, length, *bins, generator=torch.Generator().manual_seed(0))}


def _spectrograms(config: Any, batch: int, length: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    return {"input_features": torch.randn(batch, config.num_mel_bins, length, generator=generator)}


# (configuration, batch, length) -> random inputs, by the name of the main input.
INPUTS: Mapping[str, Callable[[Any, int, Any], Inputs]] = {
    "input_ids": _texts,
    "pixel_values": _images,
    "input_values": _sounds,
    "input_features": _spectrograms,
}

LONGEST = 512  # tokens of a text, where nothing bounds it

NO_BOUND = 10**9  # a tokenizer that has no bound names a larger number


SECOND = 16_000  # samples of a sound


def inputs_of(model: Any, batch: int, length: Length) -> Inputs:
    """Random inputs of a model; those of a decoder that generates too. A text has one choice."""
    inputs = INPUTS[main_input(model)](model.config, batch, length)
    if "choice" in problem_of(model).inputs:
        inputs = {name: tensor[:, None] for name, tensor in inputs.items()}
    if getattr(model.config, "is_encoder_decoder", False) and model.can_generate():
        ids = inputs.get("input_ids", _texts(model.config, batch, 1)["input_ids"])
        rows = tables_of(model).get("decoder_input_ids") or _said(model.config, "vocab_size")
        inputs["decoder_input_ids"] = ids.remainder(rows)
    return inputs


def main_input(model: Any) -> str:
    """The name of the model's main input; ``ValueError`` where it is none of ``INPUTS``."""
    name = str(getattr(model, "main_input_name", None))
    if name not in INPUTS:
        raise ValueError(f"inputs called {name!r} are not known; known: {', '.join(INPUTS)}.")
    return name


def longest_text(model: Any, tokenizer: Any = None) -> int:
    """The most tokens of a text that ``model`` and ``tokenizer`` take; ``LONGEST`` where neither says.

    A model has a table of positions, or says in its configuration how many it was trained with. Without a tokenizer, a
    model that has no table takes ``LONGEST`` at most: so long is an example, whatever the configuration says.
    """
    table, trained = sizes.longest_text(model), getattr(model.config, "max_position_embeddings", None)
    if tokenizer is None:
        return table or min(int(trained or LONGEST), LONGEST)
    longest = min(filter(None, (table, trained, int(tokenizer.model_max_length))))
    return longest if longest < NO_BOUND else LONGEST


def usual_lengths(model: Any) -> Sequence[Length]:
    """Usual lengths that the model takes: in tokens, pixels a side, samples of a sound, or frames of a spectrogram."""
    config, name = model.config, main_input(model)
    if name == "input_ids":
        return sorted({min(length, longest_text(model)) for length in (32, 128)})
    if name == "pixel_values":
        size = _said(config, "image_size")
        return [size if isinstance(size, int) else size[0] if size[0] == size[1] else tuple(size)]
    frames = 2 * config.max_source_positions if name == "input_features" else getattr(config, "max_length", SECOND)
    return [frames if hasattr(config, "num_mel_bins") else SECOND]


def examples_of(model: Any, batch: int, length: int, target: int | None = None) -> Inputs:
    """All inputs of the model: images, sounds, or texts of growing length up to ``length``, padded at the end; the
    texts of a decoder have ``target`` tokens, or as many."""
    config = model.config
    if main_input(model) == "input_ids":
        length = min(length, longest_text(model))
        examples = inputs_of(model, batch, length)
        position = torch.arange(length)
        lengths = (torch.arange(1, batch + 1) * length // batch).clamp(min=1)[:, None]  # (text, 1)
        mask = position < lengths  # (text, token)
        padded = examples["input_ids"].where(mask, _said(config, "pad_token_id") or 0)
        examples["input_ids"] = _ended(config, padded, lengths)
        examples["attention_mask"] = mask.long()
        if (getattr(config, "type_vocab_size", None) or 0) > 1:
            examples["token_type_ids"] = (mask & (position >= lengths // 2)).long()
    else:
        examples = inputs_of(model, batch, usual_lengths(model)[0])
    if target and (ids := examples.get("decoder_input_ids")) is not None:
        examples["decoder_input_ids"] = ids[:, torch.arange(min(target, longest_text(model))) % ids.shape[1]]
    return {name: tensor.to(model.device) for name, tensor in examples.items()}
