"""From texts to a model's inputs: token ids, attention mask, and segment ids where the model has segments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

BETWEEN_SEGMENTS = 3  # special tokens around a pair told apart by segments: [CLS] A [SEP] B [SEP]


def encoded(tokenizer: Any, rows: Mapping[str, Sequence[Any]], model: Any, **options: Any) -> Any:
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


def batched(tokenizer: Any, rows: Mapping[str, Any], size: int, max_length: int, model: Any) -> list[dict[str, Tensor]]:
    """Consecutive batches of ``size`` texts, as ``model`` reads them, each padded to its longest text.

    rows: the columns text, label and, for pairs, text_pair, as lists. max_length: tokens that a text is cut to. A batch
    holds tensors (text, token), and ``labels`` (text,). Raises ``ValueError`` as ``encoded`` does.
    """
    batches = []
    cut = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    for begin in range(0, len(rows["label"]), size):
        chunk = {name: column[begin : begin + size] for name, column in rows.items()}
        tensors = encoded(tokenizer, chunk, model, **cut)
        batches.append({**tensors, "labels": torch.tensor(chunk["label"])})
    return batches
