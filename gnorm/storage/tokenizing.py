"""From texts to a model's inputs: token ids, attention mask, and segment ids where the model has segments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.passes import is_ours
from ..engine.problems import NOT_COUNTED, problem_of
from .errors import in_short

Rows = Mapping[str, Sequence[Any]]  # columns of some texts; label: of each text, as the model counts

BETWEEN_SEGMENTS = 3  # special tokens around a pair told apart by segments: [CLS] A [SEP] B [SEP]


def encoded(tokenizer: Any, rows: Rows, model: Any, **options: Any) -> Any:
    """The output of the tokenizer for the columns text and, for pairs, text_pair of ``rows``, as ``model`` reads it.

    options: those of calling the tokenizer. Segment ids, token_type_ids, are included if the model has more than one
    segment, whatever the tokenizer gives by default: 0 for the first text of a pair and the special tokens around it,
    1 for the second text and the token that ends it.

    Raises ``ValueError`` where the tokenizer gives both texts of a pair segment 0. Tokenizers like RoBERTa's may do so:
    they put two separators between the texts, and their models were trained on one segment.
    """
    texts = [rows[name] for name in ("text", "text_pair") if name in rows]
    segments = tells_segments_apart(model) and not _declines_segments(tokenizer)
    inputs = tokenizer(*texts, return_token_type_ids=segments, **options)
    if segments and len(texts) == 2 and tokenizer.num_special_tokens_to_add(pair=True) <= BETWEEN_SEGMENTS:
        ids = inputs["token_type_ids"]
        for second, row in zip(texts[1], ids.tolist() if isinstance(ids, Tensor) else ids, strict=True):
            if second.strip() and not any(row):
                raise ValueError(
                    f"the tokenizer gives both texts of a pair segment 0, {type(model).__name__} tells segments apart: "
                    "give the second text type_id 1 in the post_processor of tokenizer.json, or, if the model was "
                    'fine-tuned without segment ids, add "model_input_names": ["input_ids", "attention_mask"] to '
                    "tokenizer_config.json."
                )
    return inputs


def tells_segments_apart(model: Any) -> bool:
    """Whether the model takes token_type_ids and has a table of several. GPT-2 would look them up among its words."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    takes = "token_type_ids" in named or not named  # a wrapper without named parameters passes on all
    return takes and (getattr(model.config, "type_vocab_size", None) or 0) > 1


def _declines_segments(tokenizer: Any) -> bool:
    """Whether the tokenizer's own configuration, not its class, leaves token_type_ids out."""
    names = getattr(tokenizer, "init_kwargs", {}).get("model_input_names")
    return names is not None and "token_type_ids" not in names


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and the model that its inputs are for. generator: of what is masked."""

    tokenizer: Any
    model: Any
    max_length: int
    generator: torch.Generator | None = None

    def __call__(self, rows: Rows, truncation: Any = True, **options: Any) -> Any:
        """``encoded`` columns text and text_pair as tensors, padded, and cut to ``max_length`` tokens; with the mask of
        padding, whatever the tokenizer gives by default, if the model takes one."""
        cut = {"padding": True, "truncation": truncation, "max_length": self.max_length, "return_tensors": "pt"}
        if "attention_mask" in inspect.signature(self.model.forward).parameters:
            cut["return_attention_mask"] = True
        with naming_cells(self.tokenizer, rows):
            return encoded(self.tokenizer, rows, self.model, **cut, **options)


@contextmanager
def naming_cells(tokenizer: Any, rows: Rows) -> Iterator[None]:
    """Whatever a tokenizer raises for the texts in ``rows`` becomes a ``ValueError`` that quotes one of them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or is_ours(error):
            raise
        cells = [cell for column in rows.values() for cell in column]
        odd = next((cell for cell in cells if _fails(tokenizer, cell)), cells[0])
        raise ValueError(
            f"the tokenizer, a {type(tokenizer).__name__}, does not take {odd!r:.60} ({type(error).__name__}: "
            f"{in_short(error)}): correct the text, or leave it out."
        ) from error


def _fails(tokenizer: Any, cell: Any) -> bool:
    try:
        tokenizer(cell, is_split_into_words=isinstance(cell, list), verbose=False)
    except Exception:  # noqa: BLE001 - libraries raise anything
        return True
    return False


Inputs = Callable[[Encoder, Rows], Mapping[str, Tensor]]  # a batch as the model reads it, labels included


def with_labels(dtype: torch.dtype) -> Inputs:
    """Texts whose labels are numbers of this type."""
    return lambda encode, rows: {**encode(rows), "labels": torch.tensor(rows["label"], dtype=dtype)}


def continued(encode: Encoder, rows: Rows) -> dict[str, Tensor]:
    """Texts that are their own labels."""
    inputs = encode(rows)
    return {**inputs, "labels": next_tokens(inputs)}


def next_tokens(inputs: Mapping[str, Tensor]) -> Tensor:
    """(text, token) the labels of a causal language model: the tokens themselves, padding not counted."""
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, NOT_COUNTED)


def in_batches(inputs: Inputs, encode: Encoder, rows: Rows, size: int) -> list[dict[str, Tensor]]:
    """Consecutive batches of ``size`` texts, as the model reads them, each padded to its longest text."""
    count = len(next(iter(rows.values())))
    starts = range(0, count, size)
    chunks = ({name: column[start : start + size] for name, column in rows.items()} for start in starts)
    return [dict(inputs(encode, chunk)) for chunk in chunks]


def batched(tokenizer: Any, rows: Rows, size: int, max_length: int, model: Any) -> list[dict[str, Tensor]]:
    """``in_batches`` of the texts of a classifier or, as their own labels, of a causal language model.

    rows: the columns text, label and, for pairs, text_pair, as lists. max_length: tokens that a text is cut to. A batch
    holds tensors (text, token), and ``labels``. Raises ``ValueError`` as ``encoded`` and ``naming_cells`` do.
    """
    inputs = continued if problem_of(model).shifted else with_labels(torch.long)
    return in_batches(inputs, Encoder(tokenizer, model, max_length), rows, size)
