"""The labels of texts, from the columns that users write them in: classes, numbers, tags, answers, choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..storage.labels import Labels, class_names, classes_of
from .texts import Cells, Sets

FLAGS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0}  # whether a text has a class

JOINED_BY = ("|", ";", ",")  # what may stand between the names of several labels

# Columns that are not labels; so is every column whose name begins with choice_.
TEXT_COLUMNS = ("text", "text_pair", "target", "question", "context", "tokens", "choices")


@dataclass(frozen=True)
class Source:
    """The columns of a user's table, and what their labels are read by.

    labels: "names" or "numbers", for a column that can be read both ways. checkpoint: what messages call the model.
    """

    cells: Cells
    config: Any
    labels: Labels | None
    checkpoint: str

    def classes(self, column: str, cells: Sequence[Any], rows: Sequence[int] | None = None) -> list[int]:
        """The class number of every label in ``cells``, as ``classes_of``; column: that they come from."""
        names, declared = class_names(self.config, self.checkpoint), self.cells.declared.get(column)
        numbers = [self.cells.numbers[row] for row in (range(len(cells)) if rows is None else rows)]
        return classes_of(cells, names, declared, self.labels, self.cells.where, self.checkpoint, numbers)

    def error(self, row: int, what: str) -> ValueError:
        return ValueError(f"row {self.cells.numbers[row]} of {self.cells.where} {what}.")


def class_of_text(source: Source) -> list[Any]:
    return source.classes("label", source.cells.columns["label"])


def _number(source: Source, row: int, cell: Any) -> float:
    try:
        number = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise source.error(row, f"has {cell!r:.60} in the place of a number: write one, or delete the row")
    return number


def numbers(source: Source) -> list[Any]:
    """The number of each text, or the list of its numbers."""
    count, columns = source.config.num_labels, source.cells.columns
    names = [name for name in columns if name not in TEXT_COLUMNS]
    found = []
    for row, cells in enumerate(source.cells.rows(names)):
        cells = tuple(cells[0]) if len(names) == 1 and isinstance(cells[0], list) else cells
        if len(cells) != count:
            raise source.error(row, f"has {len(cells)} numbers, the model gives {count}: write as many")
        numbers = [_number(source, row, cell) for cell in cells]
        found.append(numbers if count > 1 else numbers[0])
    if count == 1 and source.config.problem_type is None and {*found} <= {0.0, 1.0}:
        raise ValueError(
            f"the labels of {source.cells.where} are 0 and 1, and config.json of {source.checkpoint} does not say what "
            'its one logit is: write "problem_type": "multi_label_classification" there if its sigmoid is the '
            'probability of 1, or "regression" if it is the number itself.'
        )
    return found


def probabilities(source: Source) -> list[Any]:
    """The probability of each text, from 0 to 1; true and false stand for 1 and 0."""
    found = []
    for row, cell in enumerate(source.cells.columns["label"]):
        flag = FLAGS.get(str(cell).strip().casefold())
        number = _number(source, row, cell) if flag is None else flag
        if not 0 <= number <= 1:
            raise source.error(row, f"has the label {cell!r:.60}, the model gives probabilities: write one from 0 to 1")
        found.append(number)
    return found


def number_columns(config: Any, checkpoint: str) -> Sets:
    count = config.num_labels
    if count == 1:
        return [("text", "label")]
    names = class_names(config, checkpoint)
    return [("text", "label"), ("text", *(f"label_{i}" for i in range(count))), ("text", *names)]


def several_columns(config: Any, checkpoint: str) -> Sets:
    return [("text", "label"), ("text", "labels"), ("text", *class_names(config, checkpoint))]


def several(source: Source) -> list[Any]:
    """For each text 0.0 or 1.0 for every class: from a column for each, or from one of names or numbers of classes."""
    columns = [name for name in source.cells.columns if name not in TEXT_COLUMNS]
    if columns[0] in ("label", "labels"):
        return _many_hot(source, columns[0])
    found = []
    for row, cells in enumerate(source.cells.rows(columns)):
        given = [FLAGS.get(str(cell).strip().casefold()) for cell in cells]
        if None in given:
            cell = cells[given.index(None)]
            raise source.error(row, f"has {cell!r:.60} for a class: write 1 for the classes that it has, 0 for others")
        found.append(given)
    return found


def _many_hot(source: Source, column: str) -> list[Any]:
    names, cells = class_names(source.config, source.checkpoint), source.cells.columns[column]
    empty = [not cell if isinstance(cell, list) else not str(cell).strip() or bool(pd.isna(cell)) for cell in cells]
    lists = [cell for cell, none in zip(cells, empty, strict=True) if not none]
    if lists and all(isinstance(cell, list) and len(cell) == len(names) and {*cell} <= {0, 1} for cell in lists):
        if any(len({*cell}) < len(cell) for cell in lists):  # numbers of classes do not repeat
            return [list(map(float, cell)) if cell else [0.0] * len(names) for cell in cells]
        raise ValueError(
            f"{source.cells.where}: the lists of 0 and 1 in {column} may be numbers of classes, or say which class is "
            "given: write names, or a column for each class."
        )
    parts = next(filter(None, (_parts(cells, empty, names, mark) for mark in JOINED_BY)), None)
    parts = parts or [cell if isinstance(cell, list) else [cell] for cell in cells]
    pairs = [(row, part) for row, of_row in enumerate(parts) if not empty[row] for part in of_row]
    found = [[0.0] * len(names) for _ in cells]
    classes = source.classes(column, [part for _, part in pairs], [row for row, _ in pairs]) if pairs else []
    for (row, _), i in zip(pairs, classes, strict=True):
        found[row][i] = 1.0
    return found


def _parts(cells: Sequence[Any], empty: Sequence[bool], names: Sequence[str], mark: str) -> list[list[Any]] | None:
    """Each cell in parts, at every ``mark``; None where a part is neither a name nor a number of a class."""
    known = {str(name).strip().casefold() for name in names} | set(map(str, range(len(names))))
    parts = [cell if isinstance(cell, list) else [p.strip() for p in str(cell).split(mark)] for cell in cells]
    whole = all(none or all(str(p).casefold() in known for p in part) for part, none in zip(parts, empty, strict=True))
    return parts if whole else None


def tags(source: Source) -> list[Any]:
    """For each text the classes of its tokens."""
    column = next(name for name in source.cells.columns if name != "tokens")
    for row, (tokens, tags) in enumerate(source.cells.rows(("tokens", column))):
        if not isinstance(tags, list) or len(tags) != len(tokens) or not all(isinstance(t, str) for t in tokens):
            raise source.error(row, f"has no list of {len(tokens)} {column}, one for each token, a string: write it so")
    pairs = [(row, tag) for row, tags in enumerate(source.cells.columns[column]) for tag in tags]
    classes = iter(source.classes(column, [tag for _, tag in pairs], [row for row, _ in pairs]))
    return [[next(classes) for _ in tags] for tags in source.cells.columns[column]]


def spans(source: Source) -> list[Any]:
    """For each text the characters of its context that answer it, (first, one after the last); None where none do."""
    found = list[Any]()
    for row, context in enumerate(source.cells.columns["context"]):
        text, start = _answer(source, row)
        if not text.strip():
            found.append(None)
            continue
        if start is None:
            if (times := context.count(text)) != 1:
                raise source.error(row, f"has the answer {text!r:.60} {times} times: say its answer_start")
            start = context.index(text)
        if context[start : start + len(text)] != text:
            raise source.error(row, f"has no answer {text!r:.60} at character {start} of its context: count from 0")
        start += len(text) - len(text.lstrip())
        found.append((start, start + len(text.strip())))
    return found


def _answer(source: Source, row: int) -> tuple[str, int | None]:
    """The first answer of a row, "" where it has none, and the character that it is said to start at."""
    columns = source.cells.columns
    if "answers" not in columns:
        text, start = (columns[name][row] if name in columns else None for name in ("answer", "answer_start"))
    elif isinstance(several := columns["answers"][row], Mapping):
        text, start = (next(iter(several.get(name, [])), None) for name in ("text", "answer_start"))
    else:
        raise source.error(row, f"has {several!r:.60} as answers: write texts and their starts, as SQuAD does")
    said = None if _missing(start) else int(_number(source, row, start))
    return "" if _missing(text) else str(text), said


def _missing(cell: Any) -> bool:
    return cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell))


def choice_columns(config: Any, checkpoint: str) -> Sets:
    several = [("text", *(f"choice_{i}" for i in range(count)), "label") for count in range(26, 1, -1)]
    return [("text", "choices", "label"), *several]


def choices(rows: Mapping[str, Sequence[Any]]) -> list[list[Any]]:
    """The choices of each text, from one column of lists or from one column for each."""
    if "choices" in rows:
        return list(rows["choices"])
    return [list(choices) for choices in zip(*(rows[name] for name in rows if name.startswith("choice_")), strict=True)]


def choice_of_text(source: Source) -> list[Any]:
    of_texts, found = choices(source.cells.columns), list[Any]()
    for row, (of_text, label) in enumerate(zip(of_texts, source.cells.columns["label"], strict=True)):
        if len(of_text) != len(of_texts[0]) or not all(isinstance(choice, str) for choice in of_text):
            raise source.error(row, f"has not {len(of_texts[0])} strings as choices, as the first row has: write them")
        number = _number(source, row, label)
        if number not in range(len(of_text)):
            raise source.error(row, f"has the label {label!r:.60}: count its {len(of_text)} choices from 0")
        found.append(int(number))
    return found


def nothing(source: Source) -> list[Any]:
    """Texts of language models are their own labels."""
    return [0] * len(next(iter(source.cells.columns.values())))
