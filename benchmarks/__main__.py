"""The speed of the engine, as ratios within one run: python -m benchmarks [TABLE ...]

Each table is a function of this file; its rows are printed and written to benchmarks/results/<table>.json together with
the machine, the versions and the commit. `make readme` makes docs/performance.md from them.

The literal procedure is the one that the tests hold the engine against (tests/literal.py): a pass over the scoring
texts for every layer, a batch at a time, and evaluation one text at a time. The roof is (4.5 x parameters of the blocks
x real tokens, attention products added) operations at the rate of a plain fp32 torch.mm of the model's own shapes,
measured in the same run; the engine's roof is the same at the rate of gnorm.products. What is compared is measured in
turns, and of every turn the fastest counts.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1:2] == ["gpu"]:  # first, as the other tables need packages that it does not
    from benchmarks import gpu

    sys.exit(gpu.main(sys.argv[2:]))

import argparse
import contextlib
import copy
import dataclasses
import io
import itertools
import json
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import gnorm
from experiments.files import provenance
from gnorm.engine.forward.packing import NO_CACHE
from gnorm.engine.forward.products import product
from gnorm.engine.model.state import default_device
from gnorm.engine.tally import Tally
from gnorm.engine.texts import batches
from gnorm.metrics import correct_texts
from gnorm.storage.files import write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import literal

from benchmarks.cases import Case, Texts, bert, environment, lengths_of, model_of, operations, seconds, texts_of
from benchmarks.memory import memory
from benchmarks.peers import TOOLS, peers
from benchmarks.promise import promise, trained_promise
from benchmarks.ranks import ranks

FOLDER = ROOT / "benchmarks" / "results"


SIX = bert(6, 384, 12, batch=32, texts=64)
TWELVE = bert(12, 768, 12, batch=32, texts=32)
TWENTY_FOUR = bert(24, 1024, 16, batch=4, texts=8)
SMALL_BATCHES = bert(6, 384, 12, batch=4, texts=128)  # as RoBERTa is scored in the paper, four texts at a time
MANY_TEXTS = bert(6, 384, 12, batch=32, texts=128, shortest=10, longest=60)
TITLES = bert(12, 768, 12, batch=32, texts=2329)  # the paper's BERT and its 2,329 news titles
GPU = default_device() == "cuda"


def make(case: Case) -> tuple[Any, Texts]:
    """The model, on the device, and its batches."""
    return model_of(case).to(default_device()), texts_of(case, case.texts)


def fastest(actions: dict[str, Callable[[], Any]], turns: int) -> dict[str, float]:
    """Seconds of each action: the fastest of ``turns``, taken in turns, after one that does not count."""
    for action in actions.values():
        action()
    spent = dict.fromkeys(actions, np.inf)
    for _ in range(turns):
        for name, action in actions.items():
            spent[name] = min(spent[name], seconds(action, default_device()))
    return spent


# ------------------------------------------------------------------------------------------ tables


def step() -> Iterator[dict[str, Any]]:
    """One greedy step (scores and accuracy): the engine against the literal procedure and against the roof."""
    for case, turns in ((SIX, 3), (TWELVE, 2), (TWENTY_FOUR, 1)):
        model, found = make(case)
        trajectory = gnorm.prune(model, found, steps=1, progress=False)
        table, accuracy = literal_step(model, found)
        flat = int(table.argmin())
        assert trajectory.order() == [divmod(flat, case.heads)], "the engine chose another head"
        assert trajectory.table.accuracy[0] == accuracy, "the engine measured another accuracy"

        prepared = batches.prepare(found, model)
        slow = min(seconds(partial(literal_step, model, found), default_device()) for _ in range(turns))
        tokens = int(lengths_of(found).sum())
        shapes, flops = products(case, tokens)
        spent = fastest({"engine": partial(engine_step, model, prepared), **shapes}, turns=9)
        rates = {by: flops / sum(spent[name] for name in shapes if name.startswith(by)) for by in ("mm", "product")}
        roof, own_roof = (operations(case, lengths_of(found)) / rates[by] for by in ("mm", "product"))
        yield {
            **case.about(),
            "tokens": tokens,
            "literal s": slow,
            "engine s": spent["engine"],
            "ratio": slow / spent["engine"],
            "roof s": roof,
            "of roof": roof / spent["engine"],
            "own roof s": own_roof,
            "of own roof": own_roof / spent["engine"],
            "tokens/s": tokens / spent["engine"],
            "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def products(case: Case, tokens: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """Products of the model's own shapes, as many tokens as the engine takes at once by hidden and 4 x hidden: plain
    ("mm ...") and as the engine takes them ("product ..."); and how many operations either kind is together."""
    rows, repeats = min(tokens, batches.PACKED_MAX_TOKENS[default_device()]), 8
    x = torch.randn(rows, case.hidden, device=default_device())
    weights = [torch.randn(case.hidden, n * case.hidden, device=default_device()) for n in (1, 4)]
    actions = {}
    for i, w in enumerate(weights):
        actions[f"mm {i}"] = partial(repeat, repeats, torch.mm, x, w)
        actions[f"product {i}"] = partial(repeat, repeats, product, x, w.T)
    return actions, sum(repeats * 2 * x.numel() * w.shape[1] for w in weights)


def repeat(times: int, action: Callable[..., Any], *arguments: Any) -> None:
    for _ in range(times):
        action(*arguments)


def optimisations() -> Iterator[dict[str, Any]]:
    """The worth of each optimisation: one scoring with it and without it. None changes a result."""
    for case in (SIX, TWENTY_FOUR):
        model, found = make(case)
        prepared = batches.prepare(found, model)
        assert prepared.packing is not None
        largest = max(int(batch["attention_mask"].sum()) for batch in found)
        everything = dataclasses.replace(prepared.packing, first_token=False)
        without = {
            "last pass for the first token alone": batches.Prepared(
                list(prepared), everything, prepared.subject, prepared.batches
            ),
            "several batches in one pass": batches.prepare(found, model, max_tokens=largest + 8 * case.batch),
        }
        with mock.patch.object(batches, "packing_of", return_value=None):
            without["rows without padding (all of packing)"] = batches.prepare(found, model)
            with mock.patch.dict(batches.OVERHEAD_TOKENS, cpu=10**9, cuda=10**9):
                with mock.patch.dict(batches.MAX_TOKENS, cpu=10**9, cuda=10**9):
                    without["... and micro-batches: padded as given"] = batches.prepare(found, model)
        actions = {name: partial(gnorm.gnorm_scores, model, p) for name, p in {"": prepared, **without}.items()}
        if not GPU:
            actions["products by oneDNN"] = partial(without_onednn, gnorm.gnorm_scores, model, prepared)
        spent = fastest({**actions, "evaluation": partial(correct_texts, model, prepared)}, 5)
        for name in list(actions)[1:]:
            yield {
                **case.about(),
                "without": name,
                "s": spent[name],
                "with it s": spent[""],
                "gain": spent[name] / spent[""],
            }
        if case is SIX:
            yield {**case.about(), "without": "layers below the last change passed by", **passed_by(case)}
        yield {
            **case.about(),
            "without": "accuracy read off the scoring pass",
            "s": spent[""] + spent["evaluation"],
            "with it s": spent[""],
            "gain": (spent[""] + spent["evaluation"]) / spent[""],
        }


def without_onednn(action: Callable[..., Any], *arguments: Any) -> None:
    with mock.patch.object(gnorm.engine.forward.products, "SMALLEST", np.inf):
        action(*arguments)


def shapes() -> Iterator[dict[str, Any]]:
    """One scoring by the tokens of a pass and by what a rectangle is taken to cost; what the engine takes is marked."""
    device = default_device()
    for case in (SIX, SMALL_BATCHES):
        model, found = make(case)
        actions = {}
        for tokens, overhead in itertools.product((512, 2048, 8192), (8, 24, 96)):
            with mock.patch.dict(batches.PACKED_OVERHEAD_TOKENS, {device: overhead}):
                prepared = batches.prepare(found, model, max_tokens=tokens)
            count = sum(len(micro.packed.length_groups) for micro in prepared)
            actions[tokens, overhead, len(prepared), count] = partial(gnorm.gnorm_scores, model, prepared)
        chosen = batches.PACKED_MAX_TOKENS[device], batches.PACKED_OVERHEAD_TOKENS[device]
        for (tokens, overhead, passes, count), s in fastest(actions, 3).items():
            yield {
                **case.about(),
                "tokens of a pass": tokens,
                "overhead": overhead,
                "passes": passes,
                "rectangles": count,
                "s": s,
                "chosen": "*" if (tokens, overhead) == chosen else "",
            }


def passed_by(case: Case) -> dict[str, float]:
    """The evaluations of a whole random trial, a head a step, with what came into the layers kept and not."""
    model, found = make(case)
    trial = partial(gnorm.prune, model, found, method="random", progress=False)
    spent = {"with it s": seconds(trial, default_device())}
    with mock.patch.object(gnorm.pruning, "layer_input_caches", lambda prepared: [NO_CACHE] * len(prepared)):
        spent["s"] = seconds(trial, default_device())
    return {"s": spent["s"], "with it s": spent["with it s"], "gain": spent["s"] / spent["with it s"]}


def trajectory() -> Iterator[dict[str, Any]]:
    """A whole greedy trajectory: what a step costs as heads go, and the whole against steps x the first."""
    case = SIX
    model, found = make(case)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "journal")
        gnorm.prune(model, found, journal=path, progress=False)
        spent = [json.loads(line)["seconds"] for line in path.read_text().splitlines()[1:]]
    first, steps = spent[0], len(spent) - 1
    for tenth in range(10):
        part = spent[1 + tenth * steps // 10 : 1 + (tenth + 1) * steps // 10]
        yield {
            **case.about(),
            "heads pruned %": 10 * (tenth + 1),
            "s a step": np.mean(part),
            "of the first": np.mean(part) / first,
        }
    yield {
        **case.about(),
        "heads pruned %": "all",
        "s a step": sum(spent[1:]) / steps,
        "of the first": sum(spent[1:]) / steps / first,
    }


def criteria() -> Iterator[dict[str, Any]]:
    """Every method's scoring, in forward passes of the same texts through all layers, all tokens of them."""
    model, found = make(SIX)
    prepared = batches.prepare(found, model)
    assert prepared.packing is not None
    all_tokens = dataclasses.replace(prepared.packing, first_token=False)
    whole = batches.Prepared(list(prepared), all_tokens, prepared.subject, prepared.batches)
    rows = {method.criterion.__name__: method for method in (gnorm.METHODS | gnorm.MORE_METHODS).values()}
    actions = {name: partial(m.scores, model, prepared, torch.Generator()) for name, m in rows.items()}
    evaluation = partial(correct_texts, model, prepared)
    forward = partial(correct_texts, model, whole)
    spent = fastest(
        {"a forward pass": forward, "(an evaluation: the last layer for the first token)": evaluation, **actions}, 5
    )
    for name, s in spent.items():
        yield {**SIX.about(), "criterion": name, "s": s, "forward passes": s / spent["a forward pass"]}


def others() -> Iterator[dict[str, Any]]:
    """One scoring of all heads by their importance, as other people compute it: TextPruner, which sums weights times
    gradients, in batches and text by text, and Michel's own way, a mask for each head and a pass for each text."""
    import textpruner

    model, found = make(MANY_TEXTS)
    prepared, copied = batches.prepare(found, model), copy.deepcopy(model)
    texts = [
        {
            name: t[i : i + 1, : int(batch["attention_mask"][i].sum())] if t.dim() > 1 else t[i : i + 1]
            for name, t in batch.items()
        }
        for batch in found
        for i in range(len(batch["labels"]))
    ]
    with tempfile.TemporaryDirectory() as folder:
        options = textpruner.GeneralConfig(use_device=default_device(), output_dir=folder)
        pruner = textpruner.TransformerPruner(copied, general_config=options)
        actions = {
            "gnorm: head importance": partial(gnorm.MORE_METHODS["head_importance"].scores, model, prepared, None),
            "gnorm: G-norm": partial(gnorm.gnorm_scores, model, prepared),
            "TextPruner, batches of 32": partial(quiet, pruner.get_importance_score, found),
            "TextPruner, text by text": partial(quiet, pruner.get_importance_score, texts),
            "Michel, text by text": partial(one_text_a_pass, copy.deepcopy(model), texts),
        }
        spent = fastest(actions, 3)
    ours = spent["gnorm: head importance"]
    for name, s in spent.items():
        yield {**MANY_TEXTS.about(), "scored by": name, "s": s, "times ours": s / ours}


def quiet(action: Callable[..., Any], *arguments: Any) -> Any:
    """The result of ``action``, without its progress bar."""
    with contextlib.redirect_stderr(io.StringIO()):
        return action(*arguments)


def one_text_a_pass(model: Any, texts: Texts) -> Tensor:
    """(layer, head) the mean over texts of |dL / dm|, with a mask m that multiplies contexts; plain autograd."""
    blocks, hooks = gnorm.attention_blocks(model), contextlib.ExitStack()
    mask = torch.ones(len(blocks), blocks[0].num_heads, device=model.device, requires_grad=True)
    total = torch.zeros_like(mask)
    with hooks:
        for row, block in zip(mask, blocks):
            by_head = row.repeat_interleave(block.head_dim)
            hook = block.output.register_forward_pre_hook(lambda _, inputs, by_head=by_head: (inputs[0] * by_head,))
            hooks.callback(hook.remove)
        for text in texts:
            model(**text).loss.backward(retain_graph=True)
            total += mask.grad.abs()
            mask.grad = None
            model.zero_grad(set_to_none=True)
    return total / len(texts)


def precision() -> Iterator[dict[str, Any]]:
    """Half precision against fp32: time, and whether the order of the heads holds."""
    case = SIX
    model, found = make(case)
    exact = gnorm.gnorm_scores(model, found)
    before = torch.get_float32_matmul_precision()
    for name, dtype, products in (
        ("float32", torch.float32, "highest"),
        ("float32, products in TF32 where there is such", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
        ("float16", torch.float16, "highest"),
    ):
        other = copy.deepcopy(model).to(dtype)
        prepared = batches.prepare(found, other)
        torch.set_float32_matmul_precision(products)
        spent = fastest({"": partial(gnorm.gnorm_scores, other, prepared)}, 3)[""]
        scores = gnorm.gnorm_scores(other, prepared)
        torch.set_float32_matmul_precision(before)
        ranks = [pd.Series(s.flatten().numpy()).rank() for s in (exact, scores)]
        lowest = [set(s.flatten().argsort()[: s.numel() // 4].tolist()) for s in (exact, scores)]
        yield {
            **case.about(),
            "dtype": name,
            "s": spent,
            "rank correlation": ranks[0].corr(ranks[1]),
            "of the lowest quarter the same": len(lowest[0] & lowest[1]) / len(lowest[0]),
        }


def scaling() -> Iterator[dict[str, Any]]:
    """The growth of the cost of one scoring, and the exponent that fits (seconds ~ size ** exponent)."""
    base = {"layers": 4, "hidden": 256, "heads": 8, "batch": 16, "texts": 32, "shortest": 24, "longest": 24}
    for what, changes in {
        "layers": [{"layers": n} for n in (2, 4, 8, 16)],
        "heads (same width)": [{"heads": n} for n in (2, 4, 8, 16)],
        "texts": [{"texts": n} for n in (16, 32, 64, 128)],
        "length": [{"shortest": n, "longest": n} for n in (32, 64, 128, 256)],
        "width": [{"hidden": n, "heads": n // 32} for n in (128, 256, 512, 1024)],
    }.items():
        cases = [bert(**(base | change)) for change in changes]
        grown = [next(iter(change.values())) for change in changes]
        actions = {}
        for size, case in zip(grown, cases, strict=True):
            model, found = make(case)
            actions[str(size)] = partial(gnorm.gnorm_scores, model, batches.prepare(found, model))
        spent = list(fastest(actions, 5).values())
        exponent = np.polyfit(np.log(grown), np.log(spent), 1)[0]
        yield {"what grows": what, **{f"size {i}": n for i, n in enumerate(grown, 1)}} | {
            **{f"s {i}": s for i, s in enumerate(spent, 1)},
            "exponent": exponent,
        }


def titles() -> Iterator[dict[str, Any]]:
    """The paper's BERT on texts as long as news titles: seconds a step, of all texts on a GPU and of some on a CPU."""
    case = TITLES if GPU else dataclasses.replace(TITLES, texts=128)
    model, found = make(case)
    prepared = batches.prepare(found, model)
    spent = fastest({"": partial(gnorm.gnorm_scores, model, prepared)}, 3)[""]
    yield {
        **case.about(),
        "device": default_device(),
        "s a step": spent,
        "s for 2,329 texts": spent * TITLES.texts / case.texts,
        "h for 144 steps at that rate": 144 * spent * TITLES.texts / case.texts / 3600,
    }


def pruned() -> Iterator[dict[str, Any]]:
    """The paper's BERT with as many heads gone as in its final solution (117 of 144, drawn at random), beside the
    intact one, and both as ONNX files."""
    model = BertForSequenceClassification(BertConfig(vocab_size=5000)).eval()
    gone = torch.randperm(144, generator=torch.Generator().manual_seed(0))[:117]
    gnorm.remove_heads(model, torch.ones(144).index_fill(0, gone, 0).view(12, 12))
    table = gnorm.cost(model.to(default_device()), seconds=6, onnx=True)
    columns = ["batch", "length", "GFLOP", "GFLOP after", "ms", "ms after", "flops saved", "time saved", "returned"]
    yield from table[[*columns, "ms onnx", "ms onnx after"]].to_dict("records")


TABLES = {
    f.__name__: f
    for f in (
        step,
        optimisations,
        shapes,
        trajectory,
        criteria,
        others,
        precision,
        scaling,
        titles,
        pruned,
        memory,
        ranks,
        promise,
        trained_promise,
        peers,
    )
}


def engine_step(model: Any, prepared: batches.Prepared) -> tuple[Tensor, Tensor]:
    """Scores, and the accuracy read off the same passes: what ``prune`` does in a step, but for taking the head out."""
    tally = Tally(prepared)
    return gnorm.gnorm_scores(model, prepared.with_observer(tally)), tally.result().double().mean()


def literal_step(model: Any, found: Texts) -> tuple[Tensor, float]:
    """Scores and accuracy as the paper's notebooks take them."""
    there = [{name: tensor.to(default_device()) for name, tensor in batch.items()} for batch in found]
    return literal.scores(model, there), literal.accuracy(model, there)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tables", nargs="*", help=f"all if none is named; there are {', '.join(TABLES)}")
    for tool, name in TOOLS.items():
        parser.add_argument(f"--{tool}", metavar="PYTHON", help=f"the Python that has {name}, for the table peers")
    asked = vars(parser.parse_args(arguments))
    names = asked.pop("tables")
    if unknown := sorted(set(names) - set(TABLES)):
        print(f"table {unknown[0]!r} is not known; choose from {', '.join(TABLES)}", file=sys.stderr)
        return 2
    pythons = {tool: asked[tool.replace("-", "_")] or sys.executable for tool in TOOLS}
    for tool, python in pythons.items():
        if not shutil.which(python):
            parser.error(f"--{tool} {python}: there is no such program.")
    made_with = environment(provenance.processor(), default_device(), provenance.commit())
    for name in names or TABLES:
        rows = list(peers(pythons) if name == "peers" else TABLES[name]())
        print(f"{TABLES[name].__doc__}\n{pd.DataFrame(rows).to_string(index=False, float_format='%.3g')}\n", flush=True)
        written = json.dumps({**made_with, "rows": rows}, indent=2, default=float)
        write(FOLDER / f"{name}.json", written + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
