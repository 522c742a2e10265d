"""From a user's file or table to the columns text, text_pair (for pairs) and label, a class number.

pandas reads files (CSV, JSON lines, Parquet). Labels are class names or class numbers; the whole column is read in one
way, by labels.py.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..storage.errors import in_short
from .labels import Labels, class_names, classes_of

REQUIRED = {"text", "label"}

CSV: Any = {
    "header": None,
    "dtype": str,
    "keep_default_na": False,
    "encoding": "utf-8-sig",
}  # the text "NA" stays a text

JSON: Any = {"dtype": False, "encoding": "utf-8-sig"}  # pandas guesses no types

SEPARATORS = (",", ";", "\t", "|")

COMPRESSED = (".gz", ".bz2", ".zip", ".xz", ".zst")

KINDS = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
}  # any other ending: CSV

BEGINNINGS = {  # the first bytes of files that are neither CSV nor JSON in UTF-8, with what messages say
    codecs.BOM_UTF32_LE: "is in UTF-32: save it as UTF-8",  # before UTF-16, which begins with the same bytes
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
    """What records call the texts: the name of their file, or the type of the table."""
    return Path(texts).name if isinstance(texts, str | os.PathLike) else f"a {type(texts).__name__}"


def labelled(texts: Any, config: Any, checkpoint: str, labels: Labels | None = None) -> pd.DataFrame:
    """The columns text, text_pair (for pairs) and label, a class number; each text once, in the given order.

    texts: the path of a CSV, JSON-lines or Parquet file, a DataFrame, or anything with a ``to_pandas`` such as a
    ``datasets.Dataset``. config: of the model, whose class numbers are used. checkpoint: what messages call the model.
    labels: "names" or "numbers", for a column that can be read both ways.

    Raises ``FileNotFoundError`` for a file that does not exist; ``TypeError`` for what is no table; ``ValueError`` for
    a file that cannot be read, for columns that are missing or occur twice, for an empty text or label, for a text with
    different labels, and as ``class_names`` and ``classes_of`` do.
    """
    if labels not in (None, "names", "numbers"):
        raise ValueError(f'labels={labels!r} is not known: say "names" or "numbers", or leave it out.')
    names = class_names(config, checkpoint)
    where = str(texts) if isinstance(texts, str | os.PathLike) else f"the {type(texts).__name__}"
    table, declared = _table(texts, where)
    cells = _cells(table, where)
    given = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells.pop("label")]
    numbers = classes_of(given, names, declared, labels, where, checkpoint)
    return pd.DataFrame({**cells, "label": numbers}).iloc[_first_rows(cells, given, numbers, where)]


def _cells(table: pd.DataFrame, where: str) -> dict[str, list[Any]]:
    """The columns text, text_pair and label as lists; ``ValueError`` for an empty cell and for a text that is none."""
    cells = {name: list(table.iloc[:, at].astype(object)) for name, at in _positions(table.columns, where).items()}
    for name, column in cells.items():
        for row, cell in enumerate(column, 1):
            if _is_empty(cell):
                raise ValueError(f"row {row} of {where} has an empty {name}: fill it in or delete it.")
            if name != "label" and not isinstance(cell, str):
                raise ValueError(
                    f"row {row} of {where} has {cell!r:.60} as {name}, which is no string: make it a column of strings."
                )
    return cells


def _first_rows(cells: Mapping[str, list[Any]], given: Sequence[Any], numbers: Sequence[int], where: str) -> list[int]:
    """The row in which each text occurs first; ``ValueError`` where the same text has different class numbers.

    cells: the columns text and, for pairs, text_pair. given: the labels as they were written. numbers: their classes.
    """
    texts = list(zip(*cells.values()))
    first: dict[tuple[str, ...], int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    if contradicting := [i for i, text in enumerate(texts) if numbers[i] != numbers[first[text]]]:
        i, n = contradicting[0], len(contradicting)
        one = first[texts[i]]
        raise ValueError(
            f"rows {one + 1} and {i + 1} of {where} hold the same text with the labels {given[one]!r} and {given[i]!r} "
            f"({n} {'row contradicts' if n == 1 else 'rows contradict'} an earlier one): keep one label for each text."
        )
    return list(first.values())


def _is_empty(cell: Any) -> bool:
    return not cell.strip() if isinstance(cell, str) else pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def _table(texts: Any, where: str) -> tuple[pd.DataFrame, list[str] | None]:
    """A table with any columns, and the names of its classes, in order, where the table itself declares them."""
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
    """The table in a file, read by the ending of its name; the rest as ``_table``."""
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
    """Separated by the character that gives the needed columns; if none does, by the one that gives most columns."""
    headers = {sep: pd.read_csv(path, sep=sep, nrows=1, **CSV).iloc[0] for sep in SEPARATORS}
    sep = max(SEPARATORS, key=lambda sep: (set(map(_column, headers[sep])) >= REQUIRED, len(headers[sep])))
    if not set(map(_column, headers[sep])) >= REQUIRED:  # what follows may be no table
        return pd.DataFrame(columns=list(headers[sep]))
    table = pd.read_csv(path, sep=sep, **CSV)
    if sep == "\t" and table.apply(lambda cells: cells.str.contains("\t.*\n", regex=True)).any(axis=None):
        raise ValueError("a cell that begins with a quote runs on over rows; double the quotes in texts")
    return table[1:].set_axis(table.iloc[0].tolist(), axis=1)


def _of_json(path: Path) -> pd.DataFrame:
    """One JSON document or, if that cannot be read, one record a line."""
    try:
        return pd.read_json(path, **JSON)
    except UnicodeDecodeError:
        raise
    except ValueError:
        return pd.read_json(path, lines=True, **JSON)


def _of_parquet(path: Path) -> tuple[pd.DataFrame, list[str] | None]:
    """The table, and the names of its classes: files that ``datasets`` wrote declare them."""
    import pyarrow.parquet

    metadata = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    return pd.read_parquet(path), _declared(json.loads(metadata).get("info", {}).get("features"))


def _declared(features: Mapping[str, Any] | None) -> list[str] | None:
    """The class names of the column label, in order. features: of ``datasets``, as objects or as dictionaries."""
    for name, feature in (features or {}).items():
        if _column(name) == "label":
            return feature.get("names") if isinstance(feature, Mapping) else getattr(feature, "names", None)
    return None


def _column(name: Any) -> str:
    """The plain name of a column: TextPair, text-pair and ' text pair' are text_pair."""
    plain = re.sub(r"[\s_-]", "", str(name)).casefold()
    return "text_pair" if plain == "textpair" else plain


def _positions(columns: Iterable[Any], where: str) -> dict[str, int]:
    """The positions of the columns text, text_pair (if there is one) and label, by name."""
    given = [str(name) for name in columns]
    plain = [_column(name) for name in given]
    for name in ("text", "text_pair", "label"):
        if plain.count(name) > 1:
            twice = ", ".join(repr(other) for other, column in zip(given, plain) if column == name)
            raise ValueError(f"{where} has the column {name!r} {plain.count(name)} times ({twice}): keep one.")
    if missing := REQUIRED - set(plain):
        others = ", ".join(repr(name[:40]) for name in given[:10]) or "none"
        raise ValueError(
            f"{where} has no column {min(missing)!r}: name its columns text and label (and text_pair); it has {others}."
        )
    return {name: plain.index(name) for name in ("text", "text_pair", "label") if name in plain}
