"""Seconds and memory by the number of texts: a memory-mapped data set beside a list of batches.

Every row is measured in a process of its own: python -m benchmarks.memory TEXTS KIND
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification

import gnorm

SHORTEST, LONGEST, BATCH, VOCABULARY = 5, 20, 32, 5000
TOGETHER = 10_000  # texts that are written at once


def memory() -> Iterator[dict[str, Any]]:
    """The memory of one scoring of short texts, by their number, on a tiny model (2 layers x 4 heads, 32 wide)."""
    for kind, sizes in {"memory-mapped": (10_000, 100_000, 1_000_000), "list": (10_000, 100_000)}.items():
        for texts in sizes:
            command = [sys.executable, "-m", "benchmarks.memory", str(texts), kind]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            yield json.loads(done.stdout.splitlines()[-1])


def write(path: Path, texts: int) -> None:
    """An Arrow file of random texts, seeded."""
    random, writer = np.random.default_rng(0), None
    with pyarrow.OSFile(str(path), "wb") as file:
        for begin in range(0, texts, TOGETHER):
            lengths = random.integers(SHORTEST, LONGEST + 1, min(TOGETHER, texts - begin))
            ends = pyarrow.array(np.concatenate([[0], lengths.cumsum()]), pyarrow.int32())
            ids = pyarrow.ListArray.from_arrays(ends, pyarrow.array(random.integers(5, VOCABULARY, lengths.sum())))
            table = pyarrow.table({"input_ids": ids, "label": random.integers(0, 3, len(lengths))})
            writer = writer or pyarrow.ipc.new_stream(file, table.schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def measure(texts: int, kind: str) -> dict[str, Any]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes)).eval()
    row: dict[str, Any] = {"texts": texts, "kind": kind}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.arrow"
        write(path, texts)
        data_set: Any = gnorm.TextSet(Dataset.from_file(str(path)), BATCH)
        found = list(data_set) if kind == "list" else data_set
        row["GB before"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        began, of_cpu = time.perf_counter(), time.process_time()
        prepared = gnorm.prepare(found, model)
        row["s to prepare"], row["CPU s to prepare"] = time.perf_counter() - began, time.process_time() - of_cpu
        began, of_cpu = time.perf_counter(), time.process_time()
        gnorm.gnorm_scores(model, prepared)
        row["s to score"], row["CPU s to score"] = time.perf_counter() - began, time.process_time() - of_cpu
        row["GB at most"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return row


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
