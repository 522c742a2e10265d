"""What a problem's texts look like in a file, a row a problem: columns, labels, and the inputs made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from ..engine.problems import PROBLEMS, Problem
from ..storage.tokenizing import Encoder, Inputs, Rows, continued, with_labels
from . import inputs, targets
from .labels import Labels
from .targets import INPUTS, Source
from .texts import Cells, Sets, cells_of


@dataclass(frozen=True)
class Reader:
    """A row of ``READERS``.

    says: the needed columns, in messages. columns: the sets of them, any of which will do; of a model's configuration
    and its name. labels: the label of each row of a table. inputs: rows as a batch, labels included. tag: what model
    hubs call the task. usage: lines of Python that use ``model`` and ``tokenizer``. optional: further columns.
    may_be_empty: columns whose cells may be empty. fits: which rows can be labelled within the tokens that the model
    takes; all if None. needs: an attribute that the tokenizer must have, one of ``NEEDS``.
    """

    says: str
    columns: Callable[[Any, str], Sets]
    labels: Callable[[Source], list[Any]]
    inputs: Inputs
    tag: str
    usage: str
    optional: tuple[str, ...] = ()
    may_be_empty: tuple[str, ...] = ()
    fits: Callable[[Encoder, Rows], list[bool]] | None = None
    needs: str = ""


NEEDS = {  # what a tokenizer lacks, and what helps
    "mask_token": "mask token: set its mask_token and save it anew",
    "is_fast": "offsets of tokens in a text: save it with its tokenizer.json",
}

PAIR = ("text_pair",)  # of texts that may come in pairs

_INPUTS = 'inputs = tokenizer("A text.", return_tensors="pt")'
_CLASS = f"{_INPUTS}\nmodel.config.id2label[int(model(**inputs).logits.argmax())]"
_CHOSEN = """\
inputs = tokenizer(["A text."] * 2, ["One end.", "Another one."], padding=True, return_tensors="pt")
int(model(**{name: tensor[None] for name, tensor in inputs.items()}).logits.argmax())"""
_ANSWERED = """\
inputs = tokenizer("A question?", "A context with its answer.", return_tensors="pt")
first, last = (int(logits.argmax()) for logits in (model(**inputs)[name] for name in ("start_logits", "end_logits")))
tokenizer.decode(inputs["input_ids"][0, first : last + 1])"""
_FOUND = """\
inputs = tokenizer(f"A {tokenizer.mask_token}.", return_tensors="pt")
tokenizer.decode(model(**inputs).logits[0].argmax(-1))"""
_GENERATED = f"{_INPUTS}\ntokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0])"

_TAGGED = [("tokens", name) for name in ("tags", "ner_tags", "labels", "label")]
_ASKED = [("question", "context", *names) for names in (("answers",), ("answer", "answer_start"), ("answer",))]

READERS: Mapping[str, Reader] = {  # by the name of the problem
    "single_label_classification": Reader(
        "text and label (and text_pair)",
        lambda *_: [("text", "label")],
        targets.class_of_text,
        with_labels(torch.long),
        "text-classification",
        _CLASS,
        optional=PAIR,
    ),
    "multi_label_classification": Reader(
        "text and label, with names joined by |, ; or a comma, or text and a column of 0 and 1 for each class",
        targets.several_columns,
        targets.several,
        with_labels(torch.float),
        "text-classification",
        f"{_INPUTS}\n[model.config.id2label[i] for i, z in enumerate(model(**inputs).logits[0]) if z > 0]",
        optional=PAIR,
        may_be_empty=("label", "labels"),
    ),
    "binary_classification": Reader(
        "text and label, 0, 1 or a number between (and text_pair)",
        lambda *_: [("text", "label")],
        targets.probabilities,
        with_labels(torch.float),
        "text-classification",
        f"{_INPUTS}\nmodel(**inputs).logits.sigmoid().item()",
        optional=PAIR,
    ),
    "regression": Reader(
        "text and label, a number, or text and label_0, label_1 and so on (and text_pair)",
        targets.number_columns,
        targets.numbers,
        with_labels(torch.float),
        "text-classification",
        f"{_INPUTS}\nmodel(**inputs).logits[0].tolist()",
        optional=PAIR,
    ),
    "token_classification": Reader(
        "tokens and tags, lists as JSON lines have them",
        lambda *_: _TAGGED,
        targets.tags,
        inputs.tagged,
        "token-classification",
        f"{_INPUTS}\n[model.config.id2label[int(i)] for i in model(**inputs).logits[0].argmax(-1)]",
        needs="is_fast",
    ),
    "question_answering": Reader(
        "question, context, answer and answer_start, or question, context and answers",
        lambda *_: _ASKED,
        targets.answers,
        inputs.answered,
        "question-answering",
        _ANSWERED,
        may_be_empty=("answer", "answer_start", "answers"),
        fits=inputs.answer_fits,
        needs="is_fast",
    ),
    "multiple_choice": Reader(
        "text, choices and label, or text, choice_0, choice_1 and so on, and label",
        targets.choice_columns,
        targets.choice_of_text,
        inputs.of_choices,
        "multiple-choice",
        _CHOSEN,
    ),
    "masked_lm": Reader(
        "text", lambda *_: [("text",)], targets.nothing, inputs.hidden, "fill-mask", _FOUND, needs="mask_token"
    ),
    "causal_lm": Reader("text", lambda *_: [("text",)], targets.nothing, continued, "text-generation", _GENERATED),
    "seq2seq_lm": Reader(
        "text and target",
        lambda *_: [("text", "target")],
        targets.nothing,
        inputs.translated,
        "text2text-generation",
        _GENERATED,
    ),
}


def labelled(
    texts: Any,
    config: Any,
    checkpoint: str,
    labels: Labels | None = None,
    problem: Problem = PROBLEMS["single_label_classification"],
) -> pd.DataFrame:
    """The texts of a table and their labels, in the column label; each text once, in the given order; the index has
    the numbers of their rows in the table, from 1.

    texts: as ``cells_of`` takes them. config: of the model, whose class numbers are used. checkpoint: what messages
    call the model. labels: "names" or "numbers", for a column that can be read both ways.

    Raises as ``cells_of``, ``class_names`` and ``classes_of`` do, and ``ValueError`` for a cell that is not what its
    column holds and for a text with different labels.
    """
    if labels not in (None, "names", "numbers"):
        raise ValueError(f'labels={labels!r} is not known: say "names" or "numbers", or leave it out.')
    reader = READERS[problem.name]
    sets = reader.columns(config, checkpoint)
    source = Source(
        cells_of(texts, sets, reader.optional, reader.says, reader.may_be_empty), config, labels, checkpoint
    )
    for name, cells in source.cells.columns.items():
        kind, what, remedy = KINDS.get("choice" if name.startswith("choice_") else name, ANY)
        for row, cell in enumerate(cells):
            if not isinstance(cell, kind):
                raise source.error(row, f"has {cell!r:.60} as {name}, which is no {what}: {remedy}")
    found = reader.labels(source)
    names = [name for name in source.cells.columns if name in INPUTS or name.startswith("choice_")]
    first = _first_rows(source.cells, names, found)
    columns = {name: pd.Series(source.cells.columns[name], dtype=object) for name in names}
    whole = all(isinstance(label, int) for label in found)
    frame = pd.DataFrame({**columns, "label": pd.Series(found, dtype=int if whole else object)})
    return frame.set_axis(source.cells.numbers).iloc[first]


STRING: tuple[Any, str, str] = (str, "string", "make it a column of strings")
LIST: tuple[Any, str, str] = (list, "list", "write lists, as JSON lines do")
ANY: tuple[Any, str, str] = (object, "", "")
KINDS = {
    **dict.fromkeys(("text", "text_pair", "target", "question", "context", "choice"), STRING),
    **dict.fromkeys(("tokens", "choices"), LIST),
}


def _first_rows(cells: Cells, names: Sequence[str], labels: Sequence[Any]) -> list[int]:
    """The row in which each text occurs first; ``ValueError`` where the same text has different labels."""
    texts = [repr(row) for row in cells.rows(names)]
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    if contradicting := [i for i, text in enumerate(texts) if labels[i] != labels[first[text]]]:
        i, n = contradicting[0], len(contradicting)
        one = first[texts[i]]
        given = {name: column for name, column in cells.columns.items() if name not in INPUTS}
        one_says, other_says = (" ".join(f"{column[row]!r:.60}" for column in given.values()) for row in (one, i))
        raise ValueError(
            f"rows {cells.numbers[one]} and {cells.numbers[i]} of {cells.where} hold the same text with the labels "
            f"{one_says} and {other_says} ({n} {'row contradicts' if n == 1 else 'rows contradict'} an earlier one): "
            "keep one label for each text."
        )
    return list(first.values())
