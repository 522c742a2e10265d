"""Texts of a data set in batches, read from disk pass by pass: as many as a disk holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import torch
from pyarrow import types
from torch import Tensor

from ..engine.model.problems import LABELS, NOT_COUNTED
from ..engine.model.sizes import PER_TEXT

LABEL = dict.fromkeys(("label", "label_ids"), "labels")  # other names of labels, as transformers knows them

# The mask that says what is padding, by the name of what is padded.
MASKS = {
    "input_ids": "attention_mask",
    "inputs_embeds": "attention_mask",
    "decoder_input_ids": "decoder_attention_mask",
}


class TextSet:
    """Batches of ``batch_size`` texts each, in the order of a ``datasets.Dataset`` or ``IterableDataset``.

    Every iteration reads the set anew, a memory-mapped one from its Arrow files; it goes wherever batches go. Columns
    of numbers and lists of them (token ids) are the model's inputs; ``label`` and ``label_ids`` become ``labels``;
    columns of anything else, such as strings, are left out. Each batch is padded to its longest text: token ids by
    ``pad_token``, labels by -100, which is not counted, and whatever else by 0. An attention mask of tokens is made
    where there is none.

    Raises ``TypeError`` for what is not a data set; ``ValueError`` for a batch size that is not positive, and in an
    iteration for an empty cell, labels in two columns, and fractions or images of unequal size.
    """

    def __init__(self, data_set: Any, batch_size: int, pad_token: int = 0) -> None:
        if not hasattr(data_set, "with_format") or not hasattr(data_set, "iter"):
            raise TypeError(f"{type(data_set).__name__} is not a data set: give a datasets.Dataset or IterableDataset.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is out of range: it must be at least 1.")
        self._data_set, self.batch_size, self._pad_token = data_set.with_format("arrow"), batch_size, pad_token

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self._batch(table) for table in self._data_set.iter(self.batch_size))

    def _batch(self, table: pyarrow.Table) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for column, cells in zip(table.column_names, table.columns, strict=True):
            if not _numbers(cells.type):
                continue
            name = LABEL.get(column, column)
            if name in batch:
                raise ValueError(f"labels are in {column} and in another column of the data set: remove one of them.")
            value = self._pad_token if name.endswith("input_ids") else NOT_COUNTED if name in LABELS else 0
            values, real = _padded(cells.combine_chunks(), value, column)
            numbers = torch.from_numpy(values)
            batch[name] = numbers.float() if numbers.is_floating_point() and name not in LABELS else numbers
            if (mask := MASKS.get(name)) and mask not in table.column_names:
                batch[mask] = torch.from_numpy(real[..., 0] if name == "inputs_embeds" else real).long()
        return batch


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    """The type of what is stored for a type of ``datasets``' own, such as Array2D; any other as it is."""
    return kind.storage_type if isinstance(kind, pyarrow.BaseExtensionType) else kind


def _is_list(kind: pyarrow.DataType) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _numbers(kind: pyarrow.DataType) -> bool:
    """True for a column of numbers or truth values, or of lists of them, of any depth."""
    while _is_list(kind := _plain(kind)):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _padded(cells: pyarrow.Array, value: int, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Lists of numbers, of any depth, as an array (text, ...), padded by ``value`` to the longest on each axis, and
    which of its entries are not padding."""
    if isinstance(cells.type, pyarrow.BaseExtensionType):
        cells = cells.storage
    if cells.null_count:
        raise ValueError(f"the column {column} of the data set has an empty cell: fill it in, or leave out its row.")
    if not _is_list(cells.type):
        numbers = cells.to_numpy(zero_copy_only=False)
        numbers = numbers.copy() if numbers.dtype.kind == "f" else numbers.astype(np.int64)
        return numbers, np.ones(numbers.shape, dtype=bool)
    inner, inner_real = _padded(cells.flatten(), value, column)
    fixed = types.is_fixed_size_list(cells.type)
    lengths = np.full(len(cells), cells.type.list_size) if fixed else cells.value_lengths().to_numpy()
    here = np.arange(lengths.max(initial=1)) < lengths[:, None]  # (text, token)
    of_tokens = inner.dtype.kind != "f" or (column == "inputs_embeds" and inner.ndim > 1)
    if not here.all() and (column in PER_TEXT or not of_tokens):
        raise ValueError(f"{column} of the data set differ in size within a batch: bring all to one size.")
    padded = np.full((*here.shape, *inner.shape[1:]), value, dtype=inner.dtype)
    real = np.zeros(padded.shape, dtype=bool)
    padded[here], real[here] = inner, inner_real
    return padded, real
