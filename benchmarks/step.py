"""One greedy step: the literal procedure against the engine, in one process, on the same model and texts.

python -m benchmarks.step [NAME ...]

The literal procedure is the one the tests hold the engine against (tests/literal.py): a pass over the scoring texts for
every layer, a batch at a time, and evaluation one text at a time. Both must choose the same head and measure the same
accuracy, or there is nothing to compare. The roof is (4.5 x parameters of the blocks x real tokens, attention products
added) operations at the rate of a plain fp32 torch.mm of the model's own shapes, measured in the same run. Prints a
table and writes benchmarks/results/step.json.
"""

from __future__ import annotations

import copy
import json
import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import gnorm
from gnorm import results
from gnorm.batches import prepare

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import literal


@dataclass(frozen=True)
class Case:
    """A model of random weights and how many short texts (5 to 44 tokens) it is scored and evaluated on."""

    layers: int
    hidden: int
    heads: int
    batch: int
    texts: int


CASES = {
    "6 layers": Case(6, 384, 12, batch=32, texts=64),
    "12 layers": Case(12, 768, 12, batch=32, texts=32),
    "24 layers": Case(24, 1024, 16, batch=4, texts=8),
}


def make(case: Case) -> tuple[Any, list[dict[str, Tensor]]]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5000,
        hidden_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        intermediate_size=4 * case.hidden,
        num_labels=3,
    )
    batches = []
    for _ in range(0, case.texts, case.batch):
        lengths = torch.randint(5, 45, (case.batch,))
        mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
        ids = torch.randint(1, 5000, mask.shape) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, 3, (case.batch,))})
    return BertForSequenceClassification(config).eval(), batches


def seconds(action: Any, repeats: int) -> float:
    """The fastest of ``repeats`` calls."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - began)
    return best


def roof(case: Case, batches: list[dict[str, Tensor]]) -> float:
    """Seconds that the products of one scoring take at the rate of torch.mm: see the module's docstring."""
    lengths = torch.cat([batch["attention_mask"].sum(1) for batch in batches]).tolist()
    operations = 4.5 * case.layers * 12 * case.hidden**2 * sum(lengths)
    operations += (
        6 * case.layers * 2 * case.hidden * sum(n * n for n in lengths)
    )  # two products, forward and twice back
    rows = min(sum(lengths), 1024)  # as many tokens as the engine gives to one product
    x = torch.randn(rows, case.hidden)
    spent, done = 0.0, 0
    for width in (case.hidden, 4 * case.hidden):
        w = torch.randn(case.hidden, width)
        spent += seconds(lambda x=x, w=w: [x @ w for _ in range(20)], repeats=5)
        done += 20 * 2 * rows * case.hidden * width
    return operations / (done / spent)


def measure(name: str, case: Case) -> dict[str, Any]:
    model, batches = make(case)
    began = time.perf_counter()
    table = literal.scores(copy.deepcopy(model), batches)
    accuracy = literal.accuracy(model, batches)
    slow = time.perf_counter() - began
    trajectory = gnorm.prune(model, batches, steps=1, progress=False)
    flat = int(table.argmin())
    assert trajectory.order() == [divmod(flat, case.heads)], "the engine chose another head than the literal procedure"
    assert trajectory.table.accuracy[0] == accuracy, "the engine measured another accuracy"
    prepared = prepare(batches, model)
    fast = seconds(lambda: gnorm.gnorm_scores(model, prepared), repeats=5)
    bound = roof(case, batches)
    return {
        "case": name,
        **asdict(case),
        "literal s": slow,
        "engine s": fast,
        "ratio": slow / fast,
        "roof s": bound,
        "of roof": bound / fast,
        "tokens/s": sum(int(batch["attention_mask"].sum()) for batch in batches) / fast,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    rows = [measure(name, CASES[name]) for name in sys.argv[1:] or CASES]
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.2f"))
    about = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": results.commit(),
    }
    path = Path(__file__).with_name("results") / "step.json"
    results.write(path, json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
