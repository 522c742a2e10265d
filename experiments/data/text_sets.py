"""Texts of a data set, tokenised once to an Arrow file that is read pass by pass."""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset

from gnorm.storage.files import UNFINISHED
from gnorm.storage.text_sets import TextSet
from gnorm.storage.tokenizing import encoded

TOKENISED_TOGETHER = 1000  # texts


def text_set(
    tokenizer: Any, rows: Any, model: Any, batch_size: int, max_length: int, path: str | PathLike[str]
) -> TextSet:
    """Texts of a data set as batches that ``model`` reads: tokenised once, to the Arrow file ``path``, which is
    memory-mapped.

    rows: a ``datasets.Dataset`` or ``IterableDataset`` with the columns text, label and, for pairs, text_pair; it is
    read once. max_length: tokens that a text is cut to.

    Raises ``ValueError`` for a set without texts, as ``encoded`` does, and as ``TextSet`` does; ``OSError`` where the
    file cannot be written. A file appears whole or not at all.
    """
    unfinished, writer = Path(f"{path}{UNFINISHED}"), None
    try:
        with pyarrow.OSFile(str(unfinished), "wb") as file:
            for chunk in rows.iter(TOKENISED_TOGETHER):
                ids = encoded(tokenizer, chunk, model, truncation=True, max_length=max_length)
                table = pyarrow.table({**ids, "label": chunk["label"]})
                writer = writer or pyarrow.ipc.new_stream(file, table.schema)
                writer.write_table(table)
            if writer is None:
                raise ValueError("the data set has no texts.")
            writer.close()
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return TextSet(Dataset.from_file(str(path)), batch_size, tokenizer.pad_token_id or 0)
