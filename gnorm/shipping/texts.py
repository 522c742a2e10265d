"""Texts and labels as users have them -> columns text, text_pair (of pairs) and label, a class number.

A file (CSV, JSON lines, Parquet) is read by pandas; a table in memory is taken as it is. Labels are class names or
class numbers: the whole column is read in one way.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

Labels = Literal["names", "numbers"]


REQUIRED = {"text", "label"}


CSV: Any = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}  # "NA" is a text


JSON: Any = {"dtype": False, "encoding": "utf-8-sig"}  # no type is guessed


SEPARATORS = (",", ";", "\t", "|")


COMPRESSED = (".gz", ".bz2", ".zip", ".xz", ".zst")


KINDS = {".parquet": "Parquet", ".pq": "Parquet", ".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON"}  # others: CSV


BEGINNINGS = {  # of files that are no CSV or JSON in UTF-8
    codecs.BOM_UTF32_LE: "is in UTF-32: save it as UTF-8",  # begins as UTF-16 does
    codecs.BOM_UTF32_BE: "is in UTF-32: save it as UTF-8",
    codecs.BOM_UTF16_LE: "is in UTF-16: save it as UTF-8",
    codecs.BOM_UTF16_BE: "is in UTF-16: save it as UTF-8",
    b"\x1f\x8b": "is compressed by gzip: end its name in .gz",
    b"PK\x03\x04": "is an Excel or zip file: save it as CSV",
    b"\xd0\xcf\x11\xe0": "is an Excel file: save it as CSV",
    b"ARROW1": "is an Arrow file: give datasets.Dataset.from_file of it",
    b"\xff\xff\xff\xff": "is an Arrow file: give datasets.Dataset.from_file of it",
    b"PAR1": "is a Parquet file: end its name in .parquet",
}


def name_of(texts: Any) -> str:
    """What texts are called in a record: the name of their file, or what kind of table they are."""
    return Path(texts).name if isinstance(texts, str | os.PathLike) else f"a {type(texts).__name__}"


def in_short(error: Exception) -> str:
    """What a library says of an error, on one line."""
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def labelled(texts: Any, config: Any, checkpoint: str, labels: Labels | None = None) -> pd.DataFrame:
    """The columns text, text_pair where there is one, and label, each text once, in the order in which they came.

    texts: the path of a CSV, JSON-lines or Parquet file, a DataFrame, or what has a ``to_pandas`` such as a
    ``datasets.Dataset``. config, checkpoint: of the model whose class numbers are wanted, and what it is called.
    labels: "names" or "numbers", for a column that can be read both ways.

    Raises ``FileNotFoundError`` for a file that is not there, ``TypeError`` for what is no table, ``ValueError`` for
    what cannot be read, for columns that are missing or there twice, an empty text or label, a label that is no class,
    labels that mean one class by name and another by number, a text that comes with several labels, and as
    ``class_names`` does.
    """
    if labels not in (None, "names", "numbers"):
        raise ValueError(f'labels={labels!r} is not known: say "names" or "numbers", or leave it out.')
    names = class_names(config, checkpoint)
    where = str(texts) if isinstance(texts, str | os.PathLike) else f"the {type(texts).__name__}"
    table, declared = _table(texts, where)
    cells = {name: list(table.iloc[:, at].astype(object)) for name, at in _positions(table.columns, where).items()}
    for name, column in cells.items():
        for row, cell in enumerate(column, 1):
            if _is_empty(cell):
                raise ValueError(f"row {row} of {where} has an empty {name}: fill it in or delete it.")
            if name != "label" and not isinstance(cell, str):
                raise ValueError(
                    f"row {row} of {where} has {cell!r:.60} as {name}, which is no string: make it a column of strings."
                )
    given = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells.pop("label")]
    numbers = _classes(given, names, declared, labels, where, checkpoint)
    first: dict[tuple[str, ...], int] = {}
    keys = list(zip(*cells.values()))
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    if contradicting := [i for i, key in enumerate(keys) if numbers[i] != numbers[first[key]]]:
        i, n = contradicting[0], len(contradicting)
        one = first[keys[i]]
        raise ValueError(
            f"rows {one + 1} and {i + 1} of {where} hold the same text with the labels {given[one]!r} and {given[i]!r} "
            f"({n} {'row contradicts' if n == 1 else 'rows contradict'} an earlier one): keep one label for each text."
        )
    return pd.DataFrame({**cells, "label": numbers}).iloc[list(first.values())]


def _is_empty(cell: Any) -> bool:
    return not cell.strip() if isinstance(cell, str) else pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _table(texts: Any, where: str) -> tuple[pd.DataFrame, list[str] | None]:
    """A table with any columns, and the names of its classes where the table itself says them."""
    if isinstance(texts, pd.DataFrame):
        return texts, None
    if isinstance(texts, str | os.PathLike):
        return _of_file(Path(texts))
    if hasattr(texts, "to_pandas"):  # datasets.Dataset, polars, pyarrow
        return texts.to_pandas(), _declared(getattr(texts, "features", None))
    if isinstance(texts, Mapping) and any(hasattr(split, "to_pandas") for split in texts.values()):
        raise TypeError(
            f"{where} holds the splits {', '.join(texts)}: give one of them, as texts[{next(iter(texts))!r}]."
        )
    raise TypeError(
        f"texts is of type {type(texts).__name__}: give the path of a CSV, JSON-lines or Parquet file, a DataFrame or "
        "a datasets.Dataset."
    )


def _of_file(path: Path) -> tuple[pd.DataFrame, list[str] | None]:
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: give a file in it, or one split of datasets.load_from_disk if that reads it."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a CSV file with columns text and label.")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} may not be read: change its permissions.")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    kind = KINDS.get(suffixes[-1] if suffixes else "", "CSV")
    with path.open("rb") as file:
        beginning = file.read(8)
    if not beginning:
        raise ValueError(f"{path} cannot be read: it is empty.")
    for start, what in BEGINNINGS.items():
        if beginning.startswith(start) and kind != "Parquet" and path.suffix.lower() not in COMPRESSED:
            raise ValueError(f"{path} {what}.")
    try:
        if kind == "Parquet":
            return _of_parquet(path)
        table = _of_json(path) if kind == "JSON" else _of_csv(path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} cannot be read as UTF-8 ({error.reason}): save it as UTF-8, or give a DataFrame that pandas read "
            'with its encoding, such as "latin-1".'
        ) from None
    except Exception as error:  # noqa: BLE001 parsers and decompressors have no type in common
        quotes = "put texts that hold a separator or a line break in quotes"
        remedy = quotes if isinstance(error, pd.errors.ParserError) else f"save it anew as {kind}, or give a DataFrame"
        raise ValueError(f"{path} cannot be read as {kind} ({in_short(error)}): {remedy}.") from None
    if any("\0" in str(name) for name in table.columns):
        raise ValueError(f"{path} is in UTF-16: save it as UTF-8.")
    return table, None


def _of_csv(path: Path) -> pd.DataFrame:
    """The separator is the one by which the header has the columns; without them, the one that makes most columns."""
    headers = {sep: pd.read_csv(path, sep=sep, nrows=1, **CSV).iloc[0] for sep in SEPARATORS}
    sep = max(SEPARATORS, key=lambda sep: (set(map(_column, headers[sep])) >= REQUIRED, len(headers[sep])))
    if not set(map(_column, headers[sep])) >= REQUIRED:  # rows may not go with a header that is none
        return pd.DataFrame(columns=list(headers[sep]))
    table = pd.read_csv(path, sep=sep, **CSV)
    if sep == "\t" and table.apply(lambda cells: cells.str.contains("\t.*\n", regex=True)).any(axis=None):
        raise ValueError("a cell that begins with a quote runs on over rows; double the quotes in texts")
    return table[1:].set_axis(table.iloc[0].tolist(), axis=1)


def _of_json(path: Path) -> pd.DataFrame:
    """One document, or else a record a line."""
    try:
        return pd.read_json(path, **JSON)
    except UnicodeDecodeError:
        raise
    except ValueError:
        return pd.read_json(path, lines=True, **JSON)


def _of_parquet(path: Path) -> tuple[pd.DataFrame, list[str] | None]:
    """What ``datasets`` writes holds the names of the classes too."""
    import pyarrow.parquet

    about = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    return pd.read_parquet(path), _declared(json.loads(about).get("info", {}).get("features"))


def _declared(features: Mapping[str, Any] | None) -> list[str] | None:
    """The names of a ``datasets.ClassLabel``, an object or its record, in the order of their numbers."""
    for name, feature in (features or {}).items():
        if _column(name) == "label":
            return feature.get("names") if isinstance(feature, Mapping) else getattr(feature, "names", None)
    return None


def _column(name: Any) -> str:
    """The name of a column as it counts: TextPair, text-pair and ' text pair' are text_pair."""
    plain = re.sub(r"[\s_-]", "", str(name)).casefold()
    return "text_pair" if plain == "textpair" else plain


def _positions(columns: Iterable[Any], where: str) -> dict[str, int]:
    """Where the columns are that are wanted."""
    given = [str(name) for name in columns]
    plain = [_column(name) for name in given]
    for name in ("text", "text_pair", "label"):
        if plain.count(name) > 1:
            twice = ", ".join(repr(other) for other, found in zip(given, plain) if found == name)
            raise ValueError(f"{where} has the column {name!r} {plain.count(name)} times ({twice}): keep one.")
    if missing := REQUIRED - set(plain):
        others = ", ".join(repr(name[:40]) for name in given[:10]) or "none"
        raise ValueError(
            f"{where} has no column {min(missing)!r}: name its columns text and label (and text_pair); it has {others}."
        )
    return {name: plain.index(name) for name in ("text", "text_pair", "label") if name in plain}


def class_names(config: Any, checkpoint: str) -> list[str]:
    """The names of a model's classes, in the order of their numbers, by ``config.id2label`` and ``config.label2id``.

    Where one of them only numbers the classes, as LABEL_0, the other counts. Raises ``ValueError`` where they disagree,
    lack a class, name two alike, or hold something else than numbers, and where the model has no classes to choose one
    from.
    """
    file, count = f"config.json of {checkpoint}", config.num_labels
    if config.problem_type not in (None, "single_label_classification") or count < 2:
        raise ValueError(
            f"{checkpoint} does not choose one of several classes (num_labels {count}, problem_type "
            f"{config.problem_type}): only a classifier that does can be measured by its accuracy."
        )
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
    for spelled in (str, _plain):
        given, wanted = {spelled(name): i for name, i in by_name.items()}, {spelled(n): i for i, n in enumerate(names)}
        if given == wanted and len(wanted) == count:
            return names
    name = next(name for name in (*names, *by_name) if by_name.get(name) != dict(zip(names, range(count))).get(name))
    raise ValueError(
        f"label2id in {file} gives {by_name.get(name, 'no number')} for {name!r}, id2label "
        f"{names.index(name) if name in names else 'none'}: correct the one that is wrong."
    )


def _is_default(name: str, i: int) -> bool:
    return name == f"LABEL_{i}"


def _classes(
    cells: Sequence[Any],
    names: Sequence[str],
    declared: Sequence[str] | None,
    labels: Labels | None,
    where: str,
    checkpoint: str,
) -> list[int]:
    """The class of every label: all by name, or all by number.

    declared: the names that a data set gives to the numbers in ``cells``.
    """
    unnamed = all(_is_default(name, i) for i, name in enumerate(names))
    numbered = declared is None or all(_number(name) == i for i, name in enumerate(declared))
    if declared and not numbered and labels != "numbers" and not (unnamed and None in _by_name(declared, names)):
        cells = [declared[i] if (i := _in(declared, cell)) is not None else cell for cell in cells]
        labels = "names"
    if unnamed:  # what True stands for, names would have to say
        cells = [{"true": 1, "false": 0}.get(_plain(cell), cell) for cell in cells]
    numbers = [_in(names, cell) for cell in cells]
    readings = {"names": _by_name(cells, names), "numbers": numbers}
    possible = [
        [i for i in reading if i is not None]
        for how, reading in readings.items()
        if labels in (None, how) and None not in reading
    ]
    if len(possible) == 2 and possible[0] != possible[1]:
        at = next(i for i, (one, other) in enumerate(zip(*possible)) if one != other)
        raise ValueError(
            f"{where}: the labels may be names or numbers of classes, and {cells[at]!r} is the name of class "
            f'{possible[0][at]}: say labels="names" or labels="numbers".'
        )
    if possible:
        return possible[0]
    by_number = labels == "numbers" or (labels is None and set(readings["names"]) == {None} != set(numbers))
    row = (numbers if by_number else readings["names"]).index(None)
    if by_number:
        known, remedy = f"classes 0 to {len(names) - 1}", "count classes from 0, and delete rows that have none"
    else:
        known = ", ".join(names[:12]) + (f" and {len(names) - 12} others" if len(names) > 12 else "")
        remedy = f"write these names, or the numbers 0 to {len(names) - 1}, in all rows"
        if unnamed:
            remedy += f", or name the classes in id2label and label2id in config.json of {checkpoint}"
    raise ValueError(f"row {row + 1} of {where} has the label {cells[row]!r:.60}; the model knows {known}: {remedy}.")


def _by_name(cells: Sequence[Any], names: Sequence[str]) -> list[int | None]:
    """The class of every label by its name: as it is spelled, or, if that fits not all, by its plain spelling."""
    found: list[int | None] = []
    for spelled in (str, _plain):
        known = {spelled(name): i for i, name in enumerate(names)}
        if len(known) == len(names):  # else two names are spelled alike
            found = [known.get(spelled(cell)) for cell in cells]
        if None not in found:
            break
    return found


def _plain(value: Any) -> str:
    """A spelling without case, spaces around it and a number's zeros: 01, ' 1' and 1.0 are 1."""
    return str(value).strip().casefold() if (number := _number(value)) is None else str(number)


def _number(value: Any) -> int | None:
    """The whole number that ``value`` is or spells; None for anything else."""
    spelled = re.fullmatch(r"\s*([+-]?\d+)(\.0*)?\s*", str(value))
    return int(spelled[1]) if spelled else None


def _in(names: Sequence[str], value: Any) -> int | None:
    """The class number that ``value`` is or spells; None where there is no such class."""
    number = _number(value)
    return number if number is not None and 0 <= number < len(names) else None
