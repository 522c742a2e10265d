"""One scoring and one evaluation over one and two processes of a thread each, started by torchrun.

Every row is measured by processes of its own: torchrun --nproc-per-node N benchmarks/ranks.py
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

REPEATS = 5


def ranks() -> Iterator[dict[str, Any]]:
    """Seconds of the fastest of several scorings and evaluations on a model of MiniLM's size, by processes."""
    alone: dict[str, Any] = {}
    for processes in (1, 2):
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run([*start, "-m", "benchmarks.ranks"], capture_output=True, text=True, check=True)
        row = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        alone = alone or row
        for name in ("s to score", "CPU s to score", "s to evaluate", "CPU s to evaluate"):
            row[f"efficiency, {name}"] = alone[name] / row[name] / processes
        yield row


def measure() -> None:
    import torch
    import torch.distributed as dist

    import gnorm
    from benchmarks.__main__ import SIX, make
    from gnorm.metrics import find_metric, text_values_of

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model, found = make(dataclasses.replace(SIX, texts=320))
    scoring, evaluation = (
        gnorm.prepare(found, model, together, 512).over(dist.group.WORLD) for together in (False, True)
    )
    row: dict[str, Any] = {"processes": dist.get_world_size(), "texts": 320, "micro-batches": len(scoring)}
    actions = {
        "score": partial(gnorm.gnorm_scores, model, scoring),
        "evaluate": partial(text_values_of, model, evaluation, find_metric("accuracy", model)),
    }
    for name, action in actions.items():
        spent = []
        for _ in range(REPEATS):
            dist.barrier()
            began, of_cpu = time.perf_counter(), time.process_time()
            action()
            spent.append((time.perf_counter() - began, time.process_time() - of_cpu))
        wall, cpu = (min(each) for each in zip(*spent, strict=True))
        slowest = torch.tensor([wall, cpu])
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        row[f"s to {name}"], row[f"CPU s to {name}"] = slowest.tolist()
    if dist.get_rank() == 0:
        print(json.dumps(row), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    measure()
