"""Measurements on a GPU, in under nine minutes: python -m benchmarks gpu [--device cpu --small]

It needs torch and transformers alone, and no network: models of random weights and texts of random tokens at the
paper's sizes. What cannot be measured is named: packages that are missing, parts that the time did not suffice for. The
results go to benchmarks/results/gpu.json; `make readme` makes tables of them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import itertools
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cases import Case, environment, model_of, narrow, operations, seconds, sizes, synchronise, texts_of
from experiments.files import provenance
from gnorm.engine.backward import factors
from gnorm.engine.forward import packing
from gnorm.engine.forward import products as cpu_products
from gnorm.engine.forwarding import layer_input_caches, passes
from gnorm.engine.model import norms
from gnorm.engine.tally import Tally
from gnorm.engine.texts import batches, micro_batches
from gnorm.heads import head_mask_of
from gnorm.scoring import gnorm_scores
from gnorm.surgery import remove_heads

ROOT = Path(__file__).resolve().parents[1]
MISSING = [name for name in ("pandas", "scipy") if importlib.util.find_spec(name) is None]  # which prune needs
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
BUDGET = 500.0  # seconds, of the nine minutes
PRECISIONS = {  # dtype of the model, and how products of fp32 are taken
    "fp32": (torch.float32, "highest"),
    "TF32": (torch.float32, "high"),
    "bf16": (torch.bfloat16, "highest"),
}


_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
CASES = (  # the models of the paper; lengths are assumed, the numbers of texts and the batches are the paper's
    Case("BERT-base", "bert", sizes(21_128), 2329, 32, 0, 5, 44),
    Case("RoBERTa-large", "roberta", sizes(50_265, 24, 1024, 16, 2, **_ROBERTA), 250, 4, 1000, 8, 50),
    Case("XLM-R-base", "xlm-roberta", sizes(250_002, labels=20, **_ROBERTA), 500, 8, 3000, 8, 60),
    Case("ALBERT-base", "albert", sizes(30_000, embedding_size=128), 9815, 32, 0, 12, 70),
)


# ------------------------------------------------------------------------------------------ counting


class Counted(TorchDispatchMode):
    """Counts operations that compute or copy, views left out, and those of them that a device must be waited for."""

    FREE = ("_unsafe_view", "empty_like", "new_empty", "empty", "new_empty_strided", "empty_strided")
    READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.names: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.rpartition("::")[2]
        if not function.is_view and name not in self.FREE:
            self.names[name] += 1
        return function(*args, **(kwargs or {}))

    @property
    def operations(self) -> int:
        return self.names.total()

    @property
    def reads(self) -> int:
        return sum(self.names[name] for name in self.READS)


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within a ``with`` block, a CPU takes the ways that are taken on a GPU, so that operations can be counted."""
    with contextlib.ExitStack() as patches:
        for table in (
            micro_batches.MAX_TOKENS,
            micro_batches.OVERHEAD_TOKENS,
            micro_batches.PACKED_MAX_TOKENS,
            micro_batches.PACKED_OVERHEAD_TOKENS,
        ):
            patches.enter_context(mock.patch.dict(table, cpu=table["cuda"]))
        patches.enter_context(mock.patch.object(packing, "explicit_is_faster", return_value=False))
        patches.enter_context(mock.patch.object(factors, "stacking_is_faster", return_value=True))
        patches.enter_context(mock.patch.object(cpu_products, "SMALLEST", float("inf")))
        patches.enter_context(mock.patch.object(cpu_products, "_FasterLinear", contextlib.nullcontext))
        for module in (norms, factors):
            patches.enter_context(mock.patch.object(module, "cheap_in_fp32", return_value=False))
        yield


# ------------------------------------------------------------------------------------------ measuring


class Run:
    """A model under pruning, its prepared texts, and what one step of it does."""

    def __init__(self, case: Case, device: str, dtype: torch.dtype) -> None:
        self.case, self.model = case, model_of(case).to(device, dtype)
        self.scoring = batches.prepare(texts_of(case, case.texts), self.model)
        held_out = texts_of(case, case.evaluated, seed=1)
        self.evaluation = batches.prepare(held_out, self.model, together=True) if held_out else self.scoring
        self.caches = layer_input_caches(self.evaluation)

    @property
    def left(self) -> int:
        return int(head_mask_of(self.model).sum())

    def step(self) -> tuple[int, int]:
        """Score, take the lowest head out, and measure what is left: what ``gnorm.prune`` does in a step. The head."""
        tally = Tally(self.evaluation)
        shared = self.evaluation is self.scoring
        scores = gnorm_scores(self.model, self.scoring.with_observer(tally) if shared else self.scoring)
        mask = head_mask_of(self.model)
        layer, head = divmod(int(scores.masked_fill(~mask, torch.inf).argmin()), mask.shape[1])
        mask[layer, head] = False
        remove_heads(self.model, mask)
        if not shared:
            for cache in self.caches:
                cache.forget(above=layer)
            with passes(batches.prepare(self.evaluation, self.model)) as forward:
                for micro, cache in zip(self.evaluation, self.caches, strict=True):
                    tally(forward(micro, cache)[0], micro)
        tally.result().double().mean().item()
        return layer, head

    def thin_out(self, share: float) -> None:
        """Keep ``share`` of the heads of the intact model, drawn at random from those left; three of them at least."""
        mask = head_mask_of(self.model)
        left = mask.flatten().nonzero()[:, 0]
        drawn = left[torch.randperm(len(left), generator=torch.Generator().manual_seed(0))]
        kept = torch.zeros(mask.numel()).index_fill(0, drawn[: max(3, int(share * mask.numel()))], 1)
        remove_heads(self.model, kept.view(mask.shape))
        for cache in self.caches:
            cache.states.clear()

    def operations(self) -> float:
        """Floating-point operations of one step of the intact model."""
        scored, evaluated = (
            torch.cat([micro.lengths for micro in prepared]) for prepared in (self.scoring, self.evaluation)
        )
        return operations(self.case, scored, evaluated if self.case.evaluated else None)


@contextlib.contextmanager
def precision(name: str) -> Iterator[torch.dtype]:
    """Within a ``with`` block, products of fp32 are taken as ``name`` says; gives the dtype of the model."""
    dtype, products = PRECISIONS[name]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(products)
    try:
        yield dtype
    finally:
        torch.set_float32_matmul_precision(before)


class Clock:
    """The time that is left, and what was left out."""

    def __init__(self, budget: float) -> None:
        self.end = time.monotonic() + budget
        self.left_out: list[str] = [f"the order that gnorm.prune gives: no {name} here" for name in MISSING]

    @contextlib.contextmanager
    def part(self, name: str, needs: float) -> Iterator[bool]:
        """For a ``with`` block, whether there is time for ``needs`` seconds; names what is left out, and what fails."""
        enough = self.end - time.monotonic() > needs
        if not enough:
            self.left_out.append(f"{name}: {needs:.0f} s were not left")
        try:
            yield enough
        except RuntimeError as error:  # out of memory, above all
            self.left_out.append(f"{name}: {str(error).splitlines()[0]}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def rates(device: str, small: bool) -> dict[str, float]:
    """Operations a second of a large matrix product, by precision."""
    found, size = {}, 128 if small else 8192
    for name in PRECISIONS:
        with precision(name) as dtype:
            a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
            a @ b
            found[name] = 2 * size**3 / min(seconds(partial(torch.mm, a, b), device) for _ in range(5))
    return found


def order(device: str, small: bool) -> Iterator[dict[str, Any]]:
    """The order of all heads of a small model, beside that in fp32 on the CPU."""
    case = narrow(CASES[0])
    if not small:
        wider = {"num_hidden_layers": 6, "hidden_size": 96, "num_attention_heads": 12, "intermediate_size": 192}
        case = replace(case, config={**case.config, **wider}, texts=64, batch=16, longest=44)
    exact = Run(case, "cpu", torch.float32)
    expected = [exact.step() for _ in range(exact.left)]
    for name in PRECISIONS:
        with precision(name) as dtype:
            run = Run(case, device, dtype)
            found = [run.step() for _ in range(run.left)]
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        first = next((k for k, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), len(found))
        yield {"precision": name, "heads": len(found), "same place": same, "same until": first}


def pruned_order(case: Case) -> list[tuple[int, int]]:
    """The order that ``gnorm.prune`` gives on the CPU: what ``Run.step`` is held against where pandas is there."""
    import gnorm

    return gnorm.prune(model_of(case), texts_of(case, case.texts), progress=False).order()


def measured(case: Case, device: str, name: str, rate: float) -> dict[str, Any]:
    """Seconds of a step at the start, in the middle and at the end, and what follows from them."""
    with precision(name) as dtype:
        run = Run(case, device, dtype)
        steps, spent = run.left, []
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for share in (1.0, 0.5, 0.05):
            if share < 1:
                run.thin_out(share)
            if run.left > 2:
                run.step()  # the first one at new shapes does not count
                spent.append(min(seconds(run.step, device) for _ in range(2)))
            if share == 1:
                counted = counts(run, device)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    trajectory = steps * sum((a + b) / 2 for a, b in itertools.pairwise(spent)) / max(1, len(spent) - 1)
    return {
        "model": case.name,
        "precision": name,
        "steps": steps,
        "s a step": spent[0],
        "in the middle": spent[len(spent) // 2],
        "at the end": spent[-1],
        "s a trajectory, extrapolated": trajectory if len(spent) > 1 else steps * spent[0],
        "TFLOP a step": run.operations() / 1e12,
        "of the product's rate": run.operations() / spent[0] / rate,
        "peak GiB": peak,
        **counted,
    }


def counts(run: Run, device: str) -> dict[str, int]:
    """Launches and synchronisations of a step; on a CPU, what would be launched and waited for."""
    if device == "cuda":
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            run.step()
            synchronise(device)
        launches = sum(event.count for event in profile.key_averages() if "LaunchKernel" in event.key)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return {"launches": launches, "synchronisations": sum("synchroniz" in str(w.message) for w in caught)}
    with as_on_a_gpu():
        run = Run(run.case, device, torch.float32)
        with Counted() as counted:
            run.step()
    return {"launches": counted.operations, "synchronisations": counted.reads}


def counted_scoring(small: bool = False) -> dict[str, int]:
    """Operations and reads of one scoring of 2,329 titles in 73 batches by a narrow model of 12 layers, on the CPU by
    the ways of a GPU."""
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_attention_heads": 12, "intermediate_size": 24}
    case = replace(CASES[0], config={**CASES[0].config, **sizes, "num_hidden_layers": 2 if small else 12})
    model = model_of(case)
    with as_on_a_gpu():
        prepared = batches.prepare(texts_of(case, 96 if small else case.texts), model)
        with Counted() as counted:
            gnorm_scores(model, prepared)
    given = len(prepared.batches)
    return {"batches": given, "passes": len(prepared), "operations": counted.operations, "reads": counted.reads}


def trajectory(case: Case, device: str, name: str) -> dict[str, Any]:
    """A whole trajectory, every step taken."""
    with precision(name) as dtype:
        run = Run(case, device, dtype)
        steps = run.left
        spent = seconds(lambda: [run.step() for _ in range(steps)], device)
    return {"model": case.name, "precision": name, "steps": steps, "s": spent, "s a step": spent / steps}


def whole_trajectories(
    cases: Sequence[Case], device: str, name: str, models: Sequence[dict[str, Any]], clock: Clock
) -> Iterator[dict[str, Any]]:
    """``trajectory`` of every case for which there is time. models: what ``measured`` gave."""
    expected = {(row["model"], row["precision"]): row["s a trajectory, extrapolated"] for row in models}
    for case in cases:
        needs = 1.2 * expected.get((case.name, name), BUDGET)
        with clock.part(f"a whole trajectory of {case.name} in {name}", needs) as enough:
            if enough:
                yield trajectory(case, device, name)


def settings(case: Case, device: str) -> Iterator[dict[str, Any]]:
    """Seconds of one scoring by the tokens of a pass and by what a length group is taken to cost."""
    with precision("TF32") as dtype:
        model = model_of(case).to(device, dtype)
        given, kind = texts_of(case, case.texts), device
        chosen = micro_batches.PACKED_MAX_TOKENS[kind], micro_batches.PACKED_OVERHEAD_TOKENS[kind]
        others = [(chosen[0] // 4, chosen[1]), (4 * chosen[0], chosen[1]), (chosen[0], chosen[1] // 4)]
        for tokens, overhead in (chosen, *others, (chosen[0], 8 * chosen[1])):
            with mock.patch.dict(micro_batches.PACKED_OVERHEAD_TOKENS, {kind: overhead}):
                prepared = batches.prepare(given, model, max_tokens=tokens)
            gnorm_scores(model, prepared)
            s = min(seconds(partial(gnorm_scores, model, prepared), device) for _ in range(2))
            mark = "*" if (tokens, overhead) == chosen else ""
            yield {"tokens of a pass": tokens, "overhead": overhead, "passes": len(prepared), "s": s, "chosen": mark}


def results(device: str, small: bool, budget: float) -> dict[str, Any]:
    """Everything, as far as the time suffices."""
    clock, cases = Clock(budget), [narrow(case) if small else case for case in CASES]
    found: dict[str, Any] = {
        "counts": {},
        "rates": {},
        "order": [],
        "models": [],
        "trajectories": [],
        "settings": [],
        "prune": None,
    }
    found["counts"] = counted_scoring(small)
    with clock.part("rates of a matrix product", 1) as enough:
        found["rates"] = rates(device, small) if enough else {}
    with clock.part("the order of heads", 5) as enough:
        found["order"] = list(order(device, small)) if enough else []
    if not MISSING:
        with clock.part("the order that gnorm.prune gives", 5) as enough:
            case = narrow(CASES[0])
            run = Run(case, "cpu", torch.float32)
            own = [run.step() for _ in range(run.left)] if enough else []
            found["prune"] = own == pruned_order(case) if enough else None
    for name in ("TF32", "fp32", "bf16"):  # the most telling first
        for case in cases:
            what = f"{case.name} in {name}"
            with clock.part(what, 1 if small else 20) as enough:
                if enough and name in found["rates"]:
                    found["models"].append(measured(case, device, name, found["rates"][name]))
                    print(json.dumps(found["models"][-1], default=float), flush=True)
        if name == "TF32":
            found["trajectories"] += whole_trajectories(cases, device, name, found["models"], clock)
    with clock.part("the tokens of a pass", 1 if small else 20) as enough:
        found["settings"] = list(settings(cases[0], device)) if enough else []
    found["trajectories"] += whole_trajectories(cases, device, "fp32", found["models"], clock)
    if found["settings"]:
        best = min(found["settings"], key=lambda row: row["s"])
        found["best settings"] = {"tokens of a pass": best["tokens of a pass"], "overhead": best["overhead"]}
    return {**found, "left out": clock.left_out}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="narrow models and few texts, to try the benchmark itself")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds; what does not fit is named")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the JSON file that is written")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "there is no GPU that torch can use here: run this on one, or try it with --device cpu --small.",
            file=sys.stderr,
        )
        return 2
    began = time.monotonic()
    found = {
        **environment("CPU", given.device, provenance.commit()),
        "small": given.small,
        **results(given.device, given.small, given.budget),
    }
    found["seconds"] = time.monotonic() - began
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps(found, indent=2, default=float) + "\n", "utf-8")
    for what in found["left out"]:
        print(f"left out: {what}")
    print(f"{found['seconds']:.0f} s; results in {given.output}")
    return 0
