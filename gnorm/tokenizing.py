"""From texts to a model's inputs: token ids, attention mask, and segment ids where the model has segments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers
from tokenizers.models import Unigram
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS, SpmConverter

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
    """Whether the model takes token_type_ids and has more than one of them."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = {each.name for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}
    takes = "token_type_ids" in named or not named  # a wrapper without named parameters passes on all
    count = getattr(model.config, "type_vocab_size", None)
    return takes and (count is None or count > 1)


def _declines_segments(tokenizer: Any) -> bool:
    """Whether the tokenizer's own configuration, not its class, leaves token_type_ids out."""
    names = getattr(tokenizer, "init_kwargs", {}).get("model_input_names")
    return names is not None and "token_type_ids" not in names


def load_published(folder: Path) -> Any:
    """The tokenizer of a checkpoint, giving the ids that ``AutoTokenizer`` of transformers 4.36.2 gave.

    transformers 5 rebuilds the tokenizers of SentencePiece models from their class. From tokenizer.json it takes the
    vocabulary alone, without normalizer and pre-tokenizer. From a .model file without tokenizer.json it makes every
    user-defined symbol, such as "." and "-" in ALBERT's, a token of its own. Both change the ids of ordinary texts.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, Unigram):
        return tokenizer
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    special = {name: known.get(token, token) for name, token in tokenizer.special_tokens_map.items()}
    stored = folder / "tokenizer.json"
    if stored.exists():
        backend = Tokenizer.from_file(str(stored))
    elif type(tokenizer).__name__ in SLOW_TO_FAST_CONVERTERS:
        backend = _from_sentencepiece(tokenizer)
        special["mask_token"] = AddedToken(str(tokenizer.mask_token), lstrip=True, special=True)
    else:
        return tokenizer
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **special,
    )


def _from_sentencepiece(tokenizer: Any) -> Tokenizer:
    """The tokenizer of the .model file of ``tokenizer``; user-defined symbols are ordinary pieces."""
    converter = SLOW_TO_FAST_CONVERTERS[type(tokenizer).__name__](tokenizer)
    backend = Tokenizer(Unigram(converter.vocab(converter.proto), converter.unk_id(converter.proto)))
    if type(converter).normalizer is SpmConverter.normalizer:
        charsmap = converter.proto.normalizer_spec.precompiled_charsmap
        precompiled = [normalizers.Precompiled(charsmap)] if charsmap else []
        backend.normalizer = normalizers.Sequence([*precompiled, normalizers.Replace(Regex(" {2,}"), " ")])
    else:
        backend.normalizer = converter.normalizer(converter.proto)
    backend.pre_tokenizer = converter.pre_tokenizer("▁", True)
    backend.post_processor = converter.post_processor()
    return backend


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
