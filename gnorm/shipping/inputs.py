"""From rows of texts and their labels to a batch as the model reads it, a function for each kind of label."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling

from ..engine.problems import NOT_COUNTED
from ..storage.tokenizing import Encoder, Rows, naming_cells, next_tokens
from .targets import choices


def padding_behind(tokenizer: Any) -> Any:
    """A copy that pads texts behind, with its token for the end of a text where it has none for padding. That is exact
    where a mask says what padding is."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def special_ids(tokenizer: Any) -> Tensor:
    """(token,) ids of special tokens but the one for unknown pieces, which stands for a word."""
    return torch.tensor(sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id}))


def tagged(encode: Encoder, rows: Rows) -> dict[str, Tensor]:
    """The first piece of a word has the word's label, other pieces have none."""
    inputs = encode({"text": rows["tokens"]}, is_split_into_words=True)
    labels = torch.full(inputs["input_ids"].shape, NOT_COUNTED)
    for i, tags in enumerate(rows["label"]):
        before = None
        for at, word in enumerate(inputs.word_ids(i)):
            if word is not None and word != before:
                labels[i, at] = tags[word]
            before = word
    return {**inputs, "labels": labels}


def _asked(encode: Encoder, rows: Rows) -> Any:
    return encode({"text": rows["question"], "text_pair": rows["context"]}, truncation="only_second")


def _span(inputs: Any, i: int, answer: tuple[int, int] | None, tokenizer: Any) -> tuple[int, int] | None:
    """The first and the last token of an answer; the classifier token's where there is none; None if it was cut off."""
    if answer is None:
        ids = inputs["input_ids"][i].tolist()
        at = ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0
        return at, at
    first, last = (inputs.char_to_token(i, at, sequence_index=1) for at in (answer[0], answer[1] - 1))
    return None if first is None or last is None else (first, last)


def answered(encode: Encoder, rows: Rows) -> dict[str, Tensor]:
    inputs = _asked(encode, rows)
    spans = [_span(inputs, i, answer, encode.tokenizer) for i, answer in enumerate(rows["label"])]
    start, end = torch.tensor(spans).unbind(1)
    return {**inputs, "start_positions": start, "end_positions": end}


def answer_fits(encode: Encoder, rows: Rows) -> list[bool]:
    room = encode.max_length - encode.tokenizer.num_special_tokens_to_add(pair=True)
    found = []
    for question, context, answer in zip(rows["question"], rows["context"], rows["label"], strict=True):
        fits = len(encode.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"]) < room
        one = {"question": [question], "context": [context]}
        found.append(fits and _span(_asked(encode, one), 0, answer, encode.tokenizer) is not None)
    return found


def of_choices(encode: Encoder, rows: Rows) -> dict[str, Tensor]:
    of_texts = choices(rows)
    texts = [text for text, of_text in zip(rows["text"], of_texts, strict=True) for _ in of_text]
    inputs = encode({"text": texts, "text_pair": [choice for of_text in of_texts for choice in of_text]})
    by_text = {name: tensor.unflatten(0, (len(of_texts), -1)) for name, tensor in inputs.items()}
    return {**by_text, "labels": torch.tensor(rows["label"])}


def hidden(encode: Encoder, rows: Rows) -> dict[str, Tensor]:
    """15 % of the tokens are to be found: masked, replaced by another or left, as BERT was trained."""
    inputs = encode(rows, return_special_tokens_mask=True)
    special = inputs.pop("special_tokens_mask").bool() | (inputs["attention_mask"] == 0)
    special |= torch.isin(inputs["input_ids"], special_ids(encode.tokenizer))  # those within texts too
    collator = DataCollatorForLanguageModeling(encode.tokenizer, mlm_probability=0.15)
    collator.generator = encode.generator
    ids, labels = collator.torch_mask_tokens(inputs["input_ids"].clone(), special_tokens_mask=special)
    return {**inputs, "input_ids": ids, "labels": labels}


def translated(encode: Encoder, rows: Rows) -> dict[str, Tensor]:
    cut = {"padding": True, "truncation": True, "max_length": encode.max_length, "return_tensors": "pt"}
    cut["return_attention_mask"] = True
    with naming_cells(encode.tokenizer, {"target": rows["target"]}):
        target = encode.tokenizer(text_target=rows["target"], **cut)
    return {**encode({"text": rows["text"]}), "labels": next_tokens(target)}
