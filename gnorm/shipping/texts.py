"""From a user's file or table to columns of cells. pandas reads files."""

from __future__ import annotations

import codecs
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..storage.errors import in_short

log = logging.getLogger(__name__)

# the text "NA" stays a text
CSV: Any = {"header": None, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}

JSON: Any = {"dtype": False, "encoding": "utf-8-sig"}  # pandas guesses no types

SEPARATORS = (",", ";", "\t", "|")

COMPRESSED = (".gz", ".bz2", ".zip", ".xz", ".zst")

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
}

# What a column says of each row's annotation, in tools such as Prodigy (answer) and Argilla (status). Rows that an
# annotator rejected keep the label that was rejected.
ACCEPTED = {"accept", "accepted", "approve", "approved", "completed", "default", "draft", "pending", "submitted",
            "valid", "validated"}  # fmt: skip
REJECTED = {"discard", "discarded", "ignore", "ignored", "invalid", "reject", "rejected", "skip", "skipped"}
VERDICTS = {"answer", "annotationstatus", "assignmentstatus", "recordstatus", "reviewstatus", "status", "verdict"}
# was_ or is_ before it, or nothing
REJECTED_IF_TRUE = {"cancelled", "discarded", "ignored", "reject", "rejected", "skipped"}
TRUE, FALSE = {"1", "1.0", "true", "yes", "x"}, {"0", "0.0", "false", "no"}


def name_of(texts: Any) -> str:
    """The name of the texts in records: the name of their file, or the type of the table."""
    return Path(texts).name if isinstance(texts, str | os.PathLike) else f"a {type(texts).__name__}"


@dataclass(frozen=True)
class Cells:
    """Columns of a table, by name, as lists of cells; the names of classes that the table itself declares, by column;
    what messages call the table; and the number of each row in it, from 1."""

    columns: dict[str, list[Any]]
    declared: Mapping[str, list[str]]
    where: str
    numbers: list[int]

    def rows(self, names: Iterable[str]) -> list[tuple[Any, ...]]:
        """Row by row the cells of these columns."""
        return list(zip(*(self.columns[name] for name in names), strict=True))


Sets = Sequence[tuple[str, ...]]  # of columns, any of which will do; the first that a table has is read


def cells_of(texts: Any, sets: Sets, optional: Sequence[str], says: str, may_be_empty: Sequence[str] = ()) -> Cells:
    """One of the ``sets`` of columns of a table, and those that are ``optional``.

    Rows that an annotator rejected, as another column says, are left out, and a warning says how many.

    texts: the path of a file in one of ``FORMATS``, a DataFrame, or anything with a ``to_pandas`` such as a
    ``datasets.Dataset``. says: the columns that are needed, in messages. may_be_empty: columns whose cells may be.

    Raises ``FileNotFoundError`` for a file that does not exist; ``TypeError`` for what is not a table; ``ValueError``
    for a file that cannot be read, for columns that are missing or occur twice, for an empty cell, and for a column
    that seems to say which rows were rejected.
    """
    where = str(texts) if isinstance(texts, str | os.PathLike) else f"the {type(texts).__name__}"
    table, declared = _table(texts, where, sets, says)
    positions = _positions(table.columns, where, sets, optional, says)
    rejected = _rejected(table, [at for at in range(table.shape[1]) if at not in positions.values()], where)
    numbers = [row for row in range(1, len(table) + 1) if row not in rejected]
    table = table.iloc[[row - 1 for row in numbers]]
    columns = {name: _cells(table, at) for name, at in positions.items()}
    for name, cells in columns.items():
        for row, cell in zip(numbers, cells, strict=True):
            if _is_empty(cell) and name not in may_be_empty:
                raise ValueError(f"row {row} of {where} has an empty {name}: fill it in or delete it.")
    given = {name: declared[column] for name, at in positions.items() if (column := table.columns[at]) in declared}
    return Cells(columns, given, where, numbers)


def _cells(table: pd.DataFrame, at: int) -> list[Any]:
    return [_plain(cell) for cell in table.iloc[:, at].astype(object)]


def _rejected(table: pd.DataFrame, others: Sequence[int], where: str) -> set[int]:
    """The numbers of the rows that an annotator rejected, as columns at the positions ``others`` say."""
    found = set[int]()
    for at in others:
        name = str(table.columns[at])
        verdict = re.sub(r"^(is|was)", "", _column(name.rpartition(".")[2]))
        left, taken = (TRUE, FALSE) if verdict in REJECTED_IF_TRUE else (REJECTED, ACCEPTED)
        rows = set[int]()
        for row, cell in enumerate(_cells(table, at), 1):
            words = {str(word).strip().casefold() for word in (cell if isinstance(cell, list) else [cell])}
            words -= {"", "none", "nan", "<na>"}
            if not words <= left | taken:
                break
            if words and words <= left:
                rows.add(row)
        else:
            if not rows:
                continue
            if left is REJECTED and verdict not in VERDICTS:
                raise ValueError(
                    f"the column {name!r} of {where} seems to say which rows were rejected (row {min(rows)} has "
                    f"{_cells(table, at)[min(rows) - 1]!r}): delete these rows, or the column."
                )
            log.warning("%d of %d rows of %s are left out: the column %r says that they were rejected.",
                        len(rows), len(table), where, name)  # fmt: skip
            found |= rows
    return found


def _plain(cell: Any) -> Any:
    """A cell without types of numpy."""
    return cell.tolist() if isinstance(cell, np.generic | np.ndarray) else cell


def _is_empty(cell: Any) -> bool:
    if isinstance(cell, list | dict):
        return not cell
    return not cell.strip() if isinstance(cell, str) else pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


# A table with any columns, and the names of classes, in order, by the columns that the table declares them for.
Table = tuple[pd.DataFrame, dict[str, list[str]]]


def _table(texts: Any, where: str, sets: Sets, says: str) -> Table:
    if isinstance(texts, pd.DataFrame):
        return texts, {}
    if isinstance(texts, str | os.PathLike):
        return _of_file(Path(texts).expanduser(), sets, says)
    if hasattr(texts, "to_pandas"):  # datasets.Dataset, polars, pyarrow
        return texts.to_pandas(), _declared(getattr(texts, "features", None))
    if isinstance(texts, Mapping) and any(hasattr(split, "to_pandas") for split in texts.values()):
        raise TypeError(
            f"{where} holds the splits {', '.join(texts)}: give one of them, as texts[{next(iter(texts))!r}]."
        )
    raise TypeError(
        f"texts is of type {type(texts).__name__}: give the path of a {A_FILE}, a DataFrame or a datasets.Dataset."
    )


def _of_file(path: Path, sets: Sets, says: str) -> Table:
    """The table in a file, read by the ending of its name; the rest as ``cells_of``."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder: give a file in it, or one split of datasets.load_from_disk if that reads it."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a CSV file with columns {says}.")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} may not be read: change its permissions.")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    kind = next((row for row in FORMATS if suffixes[-1:] and suffixes[-1] in row.endings), FORMATS[0])
    with path.open("rb") as file:
        beginning = file.read(8)
    if not beginning:
        raise ValueError(f"{path} cannot be read: it is empty.")
    if not kind.begins and path.suffix.lower() not in COMPRESSED:
        begun = {row.begins: f"is a {row.name} file: end its name in {row.endings[0]}" for row in FORMATS if row.begins}
        if what := next((what for start, what in (BEGINNINGS | begun).items() if beginning.startswith(start)), ""):
            raise ValueError(f"{path} {what}.")
    try:
        table, declared = kind.read(path, sets)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} cannot be read as UTF-8 ({error.reason}): save it as UTF-8, or give a DataFrame that pandas read "
            'with its encoding, such as "latin-1".'
        ) from None
    except Exception as error:  # noqa: BLE001 parsers and decompressors have no type in common
        quotes = "put texts that hold a separator or a line break in quotes"
        again = f"save it anew as {kind.name}, or give a DataFrame"
        remedy = quotes if isinstance(error, pd.errors.ParserError) else again
        raise ValueError(f"{path} cannot be read as {kind.name} ({in_short(error)}): {remedy}.") from None
    if any("\0" in str(name) for name in table.columns):
        raise ValueError(f"{path} is in UTF-16: save it as UTF-8.")
    return table, declared


def _of_csv(path: Path, sets: Sets) -> Table:
    """Separated by the character that gives the needed columns; if none does, by the one that gives most columns."""
    headers = {sep: pd.read_csv(path, sep=sep, nrows=1, **CSV).iloc[0] for sep in SEPARATORS}
    complete = {sep: _first_of(sets, header) is not None for sep, header in headers.items()}
    sep = max(SEPARATORS, key=lambda sep: (complete[sep], len(headers[sep])))
    if not complete[sep]:  # what follows may be no table
        return pd.DataFrame(columns=list(headers[sep])), {}
    table = pd.read_csv(path, sep=sep, **CSV)
    if sep == "\t" and table.apply(lambda cells: cells.str.contains("\t.*\n", regex=True)).any(axis=None):
        raise ValueError("a cell that begins with a quote runs on over rows; double the quotes in texts")
    return table[1:].set_axis(table.iloc[0].tolist(), axis=1), {}


def _of_json(path: Path, _: Sets) -> Table:
    """One JSON document or, if that cannot be read, one record a line."""
    try:
        return pd.read_json(path, **JSON), {}
    except UnicodeDecodeError:
        raise
    except ValueError:
        return pd.read_json(path, lines=True, **JSON), {}


def _of_parquet(path: Path, _: Sets) -> Table:
    """The table, and the names of its classes: files that ``datasets`` wrote declare them."""
    import pyarrow.parquet

    metadata = (pyarrow.parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
    return pd.read_parquet(path), _declared(json.loads(metadata).get("info", {}).get("features"))


@dataclass(frozen=True)
class Format:
    """A row of ``FORMATS``: a format of files of texts. endings: of its files' names. begins: their first bytes."""

    name: str
    read: Callable[[Path, Sets], Table]
    endings: tuple[str, ...] = ()
    begins: bytes = b""


FORMATS = (
    Format("CSV", _of_csv),  # files whose names end in anything else
    Format("JSON-lines", _of_json, (".jsonl", ".ndjson", ".json")),
    Format("Parquet", _of_parquet, (".parquet", ".pq"), b"PAR1"),
)

A_FILE = f"{', '.join(row.name for row in FORMATS[:-1])} or {FORMATS[-1].name} file"


def _declared(features: Any) -> dict[str, list[str]]:
    """The class names of columns of classes, or of lists of them. features: of ``datasets``, as objects or as
    dictionaries."""
    declared = {}
    for name, feature in (features or {}).items():
        while feature is not None and (inner := _part(feature, "feature")) is not None:  # of a list
            feature = inner
        if isinstance(names := _part(feature, "names"), list):
            declared[name] = names
    return declared


def _part(feature: Any, name: str) -> Any:
    if isinstance(feature, list):  # how datasets 3 writes a list
        return feature[0] if name == "feature" else None
    return feature.get(name) if isinstance(feature, Mapping) else getattr(feature, name, None)


def _column(name: Any) -> str:
    """The plain name of a column: TextPair, text-pair, ' text pair' and text_pair are the same."""
    return re.sub(r"[\s_-]", "", str(name)).casefold()


def _first_of(sets: Sets, given: Iterable[Any]) -> tuple[str, ...] | None:
    """The first of the sets of columns that a table has all columns of; None where there is none."""
    plain = set(map(_column, given))
    return next((names for names in sets if set(map(_column, names)) <= plain), None)


def _positions(columns: Iterable[Any], where: str, sets: Sets, optional: Sequence[str], says: str) -> dict[str, int]:
    """The positions of the columns of the first set that is there, and of the optional ones that are, by name."""
    given = [str(name) for name in columns]
    plain = [_column(name) for name in given]
    found = _first_of(sets, given)
    for name in (*(found or sets[0]), *optional):
        if plain.count(_column(name)) > 1:
            twice = ", ".join(repr(other) for other, column in zip(given, plain) if column == _column(name))
            raise ValueError(f"{where} has the column {name!r} {plain.count(_column(name))} times ({twice}): keep one.")
    if found is None:
        missing = min(name for name in sets[0] if _column(name) not in plain)
        others = ", ".join(repr(name[:40]) for name in given[:10]) or "none"
        raise ValueError(f"{where} has no column {missing!r}: name its columns {says}; it has {others}.")
    first, *rest = found
    return {name: plain.index(_column(name)) for name in (first, *optional, *rest) if _column(name) in plain}
