"""Heads and feed-forward neurons pruned by this package and by others, on one fine-tuned MiniLM and the same texts.

Another tool runs in a process of its own (``benchmarks.of_others``), by the Python that ``--textpruner`` or
``--torch-pruning`` names, for it may need other versions. A row says so where a tool is not there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gnorm
from experiments.data import tasks
from experiments.data.tasks import Task
from gnorm.engine.model.state import copy_of
from gnorm.engine.trials.examples import inputs_of
from gnorm.journal import digest
from gnorm.metrics import accuracy
from gnorm.shipping import prune_units, recover
from gnorm.shipping.costs import flops_of, num_parameters, seconds_of
from gnorm.storage.files import write
from gnorm.storage.tokenizing import batched
from gnorm.surgery import remove_units
from gnorm.trajectory import Trajectory, curve

KEPT = Path(__file__).resolve().parent / "results" / "peers.partial"  # what a run that was stopped goes on from

TOOLS = {"textpruner": "TextPruner", "torch-pruning": "Torch-Pruning"}

SHARES = (10 / 12, 8 / 12, 6 / 12)  # of the layers' operations: TextPruner takes a whole number of 12 heads
ITERATIONS = 4  # of scoring, by other tools, as in TextPruner's documentation
TRAINING = 512  # texts
BATCH, LENGTH = 32, 32  # of the forward pass that is timed; the test texts have 28 tokens in the mean

OURS = {  # by setting: how a run is made, and the shares that it is asked for
    "heads": (partial(gnorm.prune, method="head_importance"), SHARES[:1]),
    "heads and neurons": (prune_units, SHARES),
}


@dataclass(frozen=True)
class Subnet:
    """A smaller model: mask (layer, head + neuron) or (layer, head), how often the texts were scored for it, and the
    logits of the first scoring batch by another tool's own model."""

    tool: str
    setting: str
    mask: Tensor
    scorings: int
    logits: Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """The rows of the table, all by the same texts."""

    task: Task

    @cached_property
    def testing(self) -> list[dict[str, Tensor]]:
        return self.task.texts("test")

    @cached_property
    def training(self) -> list[dict[str, Tensor]]:
        """Batches of texts of like length."""
        texts = self.task.splits["train"].select(range(TRAINING)).to_pandas()
        rows = texts.sort_values("text", key=lambda text: text.str.len()).to_dict("list")
        return batched(self.task.tokenizer, rows, BATCH, self.task.max_length, self.task.model)

    def without(self, mask: Tensor) -> Any:
        model = copy_of(self.task.model)
        remove_units(model, mask)
        return model

    def share(self, mask: Tensor) -> float:
        """The operations that are left of the model's."""
        inputs = inputs_of(self.task.model, 1, LENGTH)
        return flops_of(self.without(mask), inputs) / flops_of(self.task.model, inputs)

    def row(self, subnet: Subnet) -> dict[str, Any]:
        model = self.without(subnet.mask)
        if subnet.logits is not None:
            with torch.no_grad():
                apart = (model(**self.task.batches("scoring")[0]).logits - subnet.logits).abs().max()
            assert apart < 1e-4, f"{subnet.tool}: its own model gives logits that differ by {apart}"
        inputs = inputs_of(model, BATCH, LENGTH)
        times = seconds_of([self.task.model, model], inputs, rounds=20, seconds=4)
        row = {
            "tool": subnet.tool,
            "setting": subnet.setting,
            "parameters": num_parameters(model),
            "of operations": self.share(subnet.mask),
            "intact ms": 1e3 * np.median(times[:, 0]),
            "ms": 1e3 * np.median(times[:, 1]),
            "of time": np.median(times[:, 1] / times[:, 0]),
            "accuracy": accuracy(model, self.testing),
        }
        recover(model, self.training, self.task.model, progress=False)
        return row | {"accuracy, trained": accuracy(model, self.testing), "scorings": subnet.scorings}


def peers(pythons: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A MiniLM pruned by this package and by others to like operations: its accuracy, without and with training
    afterwards, and its time beside the intact model's.

    pythons: by tool, the Python that has it.
    """
    KEPT.mkdir(exist_ok=True)
    measured = Measured(tasks.load("local", "bert", device="cpu"))
    for subnet in subnets(measured, pythons):
        if isinstance(subnet, dict):
            yield subnet
            continue
        path = KEPT / f"{digest([subnet.tool, subnet.setting, subnet.mask.tolist()])}.json"
        if not path.exists():
            write(path, json.dumps(measured.row(subnet), default=float))
        yield json.loads(path.read_text("utf-8"))
    shutil.rmtree(KEPT)


def subnets(measured: Measured, pythons: Mapping[str, str]) -> Iterator[Subnet | dict[str, Any]]:
    """The intact model and those that each tool makes of it, or a row that says why it made none."""
    task = measured.task
    yield Subnet("intact", "", gnorm.head_mask_of(task.model), 0)
    for setting, (prune, shares) in OURS.items():
        yield from along(measured, prune, setting, shares)
    torch.save({"scoring": task.batches("scoring"), "shares": SHARES, "iterations": ITERATIONS}, KEPT / "asked.pt")
    task.model.save_pretrained(KEPT / "model")
    for tool, name in TOOLS.items():
        yield from of_other(tool, name, pythons[tool])


def along(measured: Measured, prune: Any, setting: str, shares: tuple[float, ...]) -> Iterator[Subnet]:
    """The first state of a run of ours that takes at most each share of the operations."""
    task = measured.task

    def cheap(run: Trajectory) -> bool:
        return measured.share(run.mask(int(curve(run).index[-1]))) <= shares[-1]

    run = prune(task.model, task.batches("scoring"), journal=KEPT / f"{setting}.jsonl", progress=False, until=cheap)
    states = curve(run).index
    for share in shares:
        steps = bisect_left(states, -share, key=lambda pruned: -measured.share(run.mask(int(pruned))))
        scorings = -(-steps // run.info["rescore_every"]) if run.info["rescore_every"] else 1
        yield Subnet(f"gnorm {version('gnorm')}", setting, run.mask(int(states[steps])), scorings)


def of_other(tool: str, name: str, python: str) -> Iterator[Subnet | dict[str, Any]]:
    """The models of another tool."""
    path = KEPT / f"{tool}.pt"
    if not path.exists():
        command = [python, "-W", "ignore", str(Path(__file__).with_name("of_others.py")), tool, str(KEPT)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["it says nothing"]
            yield {"tool": name, "setting": f"left out: {said[-1]}"}
            return
    found = torch.load(path)
    versions = found["versions"]
    for row in found["rows"]:
        mask = torch.cat([row["heads"], row["neurons"]], 1)
        yield Subnet(f"{name} {versions[tool]}", "heads and neurons", mask, ITERATIONS, row["logits"])
