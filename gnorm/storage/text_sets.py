"""Texts of a data set in batches, read from disk pass by pass: as many as a disk holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import torch
from torch import Tensor


class TextSet:
    """Batches of ``batch_size`` texts each, in the order of a ``datasets.Dataset`` or ``IterableDataset``.

    Every iteration reads the set anew, a memory-mapped one from its Arrow files; it goes wherever batches go. Columns
    of whole numbers and lists of them (token ids) are the model's inputs, each batch padded to its longest text;
    ``label`` becomes ``labels``; columns of strings are left out. An ``attention_mask`` is made where there is none.
    pad_token: the token id of padding.

    Raises ``TypeError`` for what is no data set, ``ValueError`` for a batch size that is not positive.
    """

    def __init__(self, data_set: Any, batch_size: int, pad_token: int = 0) -> None:
        if not hasattr(data_set, "with_format") or not hasattr(data_set, "iter"):
            raise TypeError(f"{type(data_set).__name__} is no data set: give a datasets.Dataset or IterableDataset.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is out of range: it must be at least 1.")
        self._data_set, self.batch_size, self._pad_token = data_set.with_format("arrow"), batch_size, pad_token

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self._batch(table) for table in self._data_set.iter(self.batch_size))

    def _batch(self, table: pyarrow.Table) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            kind = column.type
            if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
                lengths = column.combine_chunks().value_lengths().to_numpy()
                real = np.arange(lengths.max(initial=1)) < lengths[:, None]  # (text, token)
                padded = np.full(real.shape, self._pad_token if name == "input_ids" else 0)
                padded[real] = column.combine_chunks().flatten().to_numpy()
                batch[name] = torch.from_numpy(padded)
                if name == "input_ids" and "attention_mask" not in table.column_names:
                    batch["attention_mask"] = torch.from_numpy(real.astype(np.int64))
            elif not pyarrow.types.is_string(kind) and not pyarrow.types.is_large_string(kind):
                batch["labels" if name == "label" else name] = torch.tensor(column.to_numpy())
        return batch
