"""Class numbers from the labels in tables: names or numbers of classes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..engine.model.problems import NOT_COUNTED

Labels = Literal["names", "numbers"]


def class_names(config: Any, checkpoint: str) -> list[str]:
    """The names of a model's classes in the order of their numbers, from ``config.id2label`` and ``config.label2id``.

    Where one of the two only numbers the classes (LABEL_0), the names are those of the other. checkpoint: what messages
    call the model. Raises ``ValueError`` where the two disagree, where one lacks a class, gives two classes the same
    name, and where it holds something other than numbers.
    """
    file, count = f"config.json of {checkpoint}", config.num_labels
    by_id, by_name = dict(config.id2label), dict(config.label2id or {})
    for i in range(count):
        if by_id.get(i) is None or not str(by_id[i]).strip():
            raise ValueError(f"id2label in {file} names {count} classes, but none {i}: name the classes from 0 on.")
    for name, i in by_name.items():
        if isinstance(i, bool) or not isinstance(i, int):
            raise ValueError(  # noqa: TRY004 the file is wrong, not the caller's type
                f"label2id in {file} gives {i!r} for {name!r}: write the number of the class."
            )
    names = [str(by_id[i]) for i in range(count)]
    if len(set(names)) < count:
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"id2label in {file} names two classes {twice!r}: give each its own name.")
    if all(_is_default(name, i) for name, i in by_name.items()):
        return names
    if all(_is_default(name, i) for i, name in enumerate(names)):
        if sorted(by_name.values()) != list(range(count)):
            raise ValueError(f"label2id in {file} must give each number from 0 to {count - 1} once: write them in.")
        return sorted(by_name, key=lambda name: by_name[name])
    numbers = dict(zip(names, range(count)))
    for spelled in (str, _plain):
        given, expected = ({spelled(name): i for name, i in pairs.items()} for pairs in (by_name, numbers))
        if given == expected and len(expected) == count:
            return names
    name = next(name for name in (*names, *by_name) if by_name.get(name) != numbers.get(name))
    raise ValueError(
        f"label2id in {file} gives {by_name.get(name, 'no number')} for {name!r}, id2label "
        f"{names.index(name) if name in names else 'none'}: correct the one that is wrong."
    )


def _is_default(name: str, i: int) -> bool:
    """True if ``name`` is the one that transformers gives class ``i`` by default."""
    return name == f"LABEL_{i}"


def classes_of(
    cells: Sequence[Any],
    names: Sequence[str],
    declared: Sequence[str] | None,
    labels: Labels | None,
    where: str,
    checkpoint: str,
    rows: Sequence[int] | None = None,
    meanings: Mapping[str, str] | None = None,
) -> list[int]:
    """The class number of every label in ``cells``: all are read as names, or all as numbers.

    names: of the model's classes. declared: the names that a data set gives to the numbers in ``cells``, if it does.
    labels: how the column is to be read; None where only one way is possible. where, checkpoint: what messages call the
    table and the model. rows: the number of each label's row in the table, where they are not 1, 2, 3 ... meanings: the
    name of the class that each label stands for, by the label or its declared name; "" for none, whose class is
    ``NOT_COUNTED``. With it, labels are names, and the classes of a model without names are named in its order.

    Raises ``ValueError`` for a label that is not a class, and for a column that can be read both ways with different
    results.
    """
    rows = range(1, len(cells) + 1) if rows is None else rows
    if meanings:
        return _by_meaning(cells, names, declared, meanings, where, checkpoint, rows)
    unnamed = all(_is_default(name, i) for i, name in enumerate(names))
    numbered = declared is None or all(_number(name) == i for i, name in enumerate(declared))
    if declared and not numbered and labels != "numbers" and not (unnamed and None in _by_name(declared, names)):
        cells = [declared[i] if (i := _in(declared, cell)) is not None else cell for cell in cells]
        labels = "names"
    if unnamed:  # the model's names do not say which class True is
        cells = [{"true": 1, "false": 0}.get(_plain(cell), cell) for cell in cells]
    by_name, by_number = _by_name(cells, names), [_in(names, cell) for cell in cells]
    readings = {"names": by_name, "numbers": by_number}
    complete = [
        [i for i in reading if i is not None]
        for how, reading in readings.items()
        if labels in (None, how) and None not in reading
    ]
    if len(complete) == 2 and complete[0] != complete[1]:
        at = next(i for i, (one, other) in enumerate(zip(*complete)) if one != other)
        raise ValueError(
            f"{where}: the labels may be names or numbers of classes, and {cells[at]!r} is the name of class "
            f'{complete[0][at]}: say labels="names" or labels="numbers".'
        )
    if complete:
        return complete[0]
    numbers_meant = labels == "numbers" or (labels is None and set(by_name) == {None} != set(by_number))
    at = (by_number if numbers_meant else by_name).index(None)
    known, remedy = _known_labels(names, numbers_meant, f"config.json of {checkpoint}" if unnamed else "")
    raise ValueError(f"row {rows[at]} of {where} has the label {cells[at]!r:.60}; the model knows {known}: {remedy}.")


def _by_meaning(
    cells: Sequence[Any],
    names: Sequence[str],
    declared: Sequence[str] | None,
    meanings: Mapping[str, str],
    where: str,
    checkpoint: str,
    rows: Sequence[int],
) -> list[int]:
    """``classes_of`` of labels that stand for the names of others."""
    if all(_is_default(name, i) for i, name in enumerate(names)):
        names = list(filter(None, dict.fromkeys(meanings.values())))
    named = [cell if (i := _in(declared or (), cell)) is None else (declared or ())[i] for cell in cells]
    meant = [meanings.get(_plain(cell), meanings.get(name, name)) for cell, name in zip(cells, named)]
    counted = [i for i, name in enumerate(meant) if name != ""]
    of_counted, numbers = [meant[i] for i in counted], [rows[i] for i in counted]
    classes = dict(zip(counted, classes_of(of_counted, names, None, "names", where, checkpoint, numbers)))
    return [classes.get(i, NOT_COUNTED) for i in range(len(cells))]


def _known_labels(names: Sequence[str], numbers: bool, unnamed_in: str) -> tuple[str, str]:
    """For a message on an unknown label: the labels that the model knows, and a remedy.

    numbers: whether the column holds numbers. unnamed_in: the file whose classes have no names but LABEL_0 and so on.
    """
    if numbers:
        return f"classes 0 to {len(names) - 1}", "count classes from 0, and delete rows that have none"
    known = ", ".join(names[:12]) + (f" and {len(names) - 12} others" if len(names) > 12 else "")
    remedy = f"write these names, or the numbers 0 to {len(names) - 1}, in all rows"
    if unnamed_in:
        remedy += f", or name the classes in id2label and label2id in {unnamed_in}"
    return known, remedy


def _by_name(cells: Sequence[Any], names: Sequence[str]) -> list[int | None]:
    """The class of every label by its name, None for another label.

    Names are compared as they are spelled or, if some labels then match none, by their plain spelling.
    """
    classes: list[int | None] = []
    for spelled in (str, _plain):
        known = {spelled(name): i for i, name in enumerate(names)}
        if len(known) == len(names):  # else two names are spelled alike
            classes = [known.get(spelled(cell)) for cell in cells]
        if None not in classes:
            break
    return classes


def _plain(value: Any) -> str:
    """The spelling without case, outer spaces and extra zeros of a number: 01, ' 1' and 1.0 are 1."""
    return str(value).strip().casefold() if (number := _number(value)) is None else str(number)


def _number(value: Any) -> int | None:
    """The whole number that ``value`` is or spells; None for anything else."""
    spelled = re.fullmatch(r"\s*([+-]?\d+)(\.0*)?\s*", str(value))
    return int(spelled[1]) if spelled else None


def _in(names: Sequence[str], value: Any) -> int | None:
    """The class number that ``value`` is or spells; None where there is no such class."""
    number = _number(value)
    return number if number is not None and 0 <= number < len(names) else None
