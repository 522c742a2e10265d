"""Write docs/performance.md from the results of `make bench`: python tools/performance.py"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gnorm.storage.files import write

INTRODUCTION = """# Performance

`make readme` makes this page from `benchmarks/results`, which `make bench` writes. Ratios are taken within one run.
The models have random weights and the texts random tokens, since neither changes what a product costs. Times are
those of the machine named under each table.

What makes the engine fast, none of it at the cost of a different result:

- **One backward pass** gives the gradients of every layer; the literal procedure makes a pass for each layer.
- **No padding.** Token rows of several texts go through projections, norms and feed-forward blocks packed, without
  padding. Attention is computed for texts of like length together, whatever batches they belong to
  (`gnorm/engine/forward/packing.py`). Several batches share a pass: the gradient of a batch is the product of the
  input and the output gradient of a projection, over the tokens of that batch (`gnorm/engine/backward/gradients.py`).
  Only models whose classes are known to ignore padding go packed (`gnorm/engine/model/known_models.py`), classifiers
  and causal language models; all others go as they were given.
- **Products of fp32 go to oneDNN**, on a CPU (`gnorm/engine/forward/products.py`). PyTorch has it on board and asks
  it for lower precisions only; the BLAS that it asks for fp32 does not use AVX-512 on every processor that has it.
  The precision is the same, the order of the terms of a sum is another.
- **Attention weights of short texts are kept** for the backward pass, on a CPU: up to 128 tokens that is faster than
  a kernel that computes them again.
- **The last layer** computes queries, output projection and feed-forward block for the first token alone, in
  classifiers that read no other token. The weights of its keys and values are absorbed into one vector for each text
  and head, and meet that vector, not every token: q (W x) = (q W) x.
- **Evaluations start where something changed.** A head that goes from layer l does not change the input of layer l.
  The inputs of layers are cached between evaluations, and the layers below the change are not computed: half of them,
  on average. The cache has a limit (`gnorm/engine/texts/batches.py`); where all inputs do not fit, those of every
  second or third layer are cached.
- **Accuracy is read off the scoring pass** where both use the same texts, and heads that have gone are cut out of the
  working copy, so that a step costs less than the one before.

Memory is bounded by the tokens of one pass, beside the cached inputs: `gnorm.prepare(batches, model, max_tokens=...)`
bounds a pass further, and what it returns goes wherever batches go.
"""
READINGS = {
    "step": """## One greedy step

`ratio` is the literal procedure's time over the engine's. `roof s` is what the step's products would take at the rate
of a plain `torch.mm`, `own roof s` the same at the rate of the engine's own products, which the literal procedure,
being plain PyTorch, does not have. Either roof counts the last layer whole and every real token once, so the
first-token saving can bring a step above it.""",
    "optimisations": """## What each optimisation is worth

`gain` is the time without the optimisation over the time with it. Below 1 it costs more than it brings in that case.
Times are of one scoring, except in the rows of the layers passed by, where they are of a whole random trial, a head a
step.""",
    "shapes": """## Shapes

One scoring by the most tokens of a pass and by the tokens that one more length group (texts of like length, whose
attention is computed together) is taken to cost; the column `rectangles` counts these groups. `chosen` marks what
`gnorm/engine/texts/batches.py` has for this kind of device. It is measured here and not when a model is scored: other
shapes round otherwise, and a run that is taken up again has to end the same. On another kind of machine this table
says what to write there.""",
    "trajectory": """## A whole trajectory

Greedy pruning to the last head. Removed heads take their part of the attention block along; feed-forward blocks, two
thirds of the products, stay.""",
    "criteria": """## Criteria

Every criterion's scoring, counted in forward passes over the same texts that compute every token of every layer.""",
    "others": """## Beside other people's code

One scoring of all heads of the same model on the same texts, in fp32. TextPruner's importance and Michel's are the
same number text by text; TextPruner sums weights times gradients, Michel's way is plain autograd with a mask for each
head, one text a pass. In batches TextPruner takes the absolute value of a batch's sum.""",
    "precision": """## Lower precision

Against fp32, on the same weights. The second row is `torch.set_float32_matmul_precision("high")`, which lets products
of fp32 be taken in TF32 by GPUs that have it; trajectories and journals say which was set. A CPU without units for a
half precision is slower with it.""",
    "scaling": """## How cost grows

Seconds of one scoring at four sizes, and the exponent of the power law that fits them. The base is 4 layers of 256
with 8 heads, 32 texts of 24 tokens.""",
    "titles": """## The paper's BERT

12 layers of 768 on texts of 5 to 44 tokens; where the device is a CPU, on some of the 2,329 texts, scaled up.""",
    "pruned": """## A pruned model beside the intact one

The paper's BERT with 117 of 144 heads removed for good, as many as in its published solution, random weights and a
random choice of heads. `returned` is the share of the saved operations that came back as time; the last two columns
are the time of the models as ONNX files, intact and pruned.""",
    "promise": """## A budget that is kept

The study's trajectories of two methods, of all trainings of a model; half of the texts to choose by, half to test on,
drawn 50 times each. `broken` is the share of draws in which more than the budget is lost on the texts to test on,
`twice` more than twice as much, and `heads` how many go, with a confidence of 0.9 and without one. The texts to test
on are a draw too, so a share may lie somewhat above a tenth though the promise holds.""",
    "trained_promise": """## A budget that is kept after training

The same for models that are trained after pruning, as by `--recover 1`: the models of profile `local`, pruned along
head importance, at every twelfth of the heads, each trained for an epoch on the validation split and the intact model's
logits. The promise is tested on half of the 1,000 test texts, state by state, and what is lost is measured on the other
half, drawn 500 times. `refused` is the share of draws in which not even the first state is shown to keep the
budget; nothing goes then, and nothing is broken. There is one training of each model and one set of 1,000 texts, so the
draws are not 500 samples; and where the half to choose by is easy the other is hard, so a share may lie somewhat above
a tenth though the promise holds.""",
    "peers": """## Beside other tools

One fine-tuned MiniLM (6 layers of 12 heads and 1,536 neurons, two classes), pruned to like shares of its operations by
the same 128 scoring texts, and measured on the same 1,000 test texts. `accuracy, trained` is that after one epoch on
the same 512 texts of the training split, with labels and the intact model's logits, by `gnorm.shipping.recover` for
all; the first row is the intact model, trained as much. `ms` is the median time of a forward pass of 32 texts of 32
tokens, in turns with the intact model, whose own is beside it; `of time` is the median of the turns' ratios. `scorings`
counts how often a model was scored on the 128 texts. On 1,000 texts the standard error of an accuracy is 1.2 points, of
a difference between two rows about one.

What each scores by:

- gnorm, heads, and heads and neurons: the absolute derivative of a text's loss to a mask of the unit, the mean over
  texts; with neurons, for each operation that the unit costs. Scored afresh for every head or block of 128 neurons that
  goes. How many heads go, and how many neurons, is its own choice. Heads alone are a third of the operations.
- TextPruner: the absolute value of a batch's sum of weights times gradients, of the projections out. It is told how
  many heads and how many neurons stay in the mean of the layers, here the same share of both, neurons in multiples of
  16; its documentation found that better than the same sizes in every layer, its default.
- Torch-Pruning: `GroupTaylorImportance`, the absolute products of weights and gradients, over all weights of a unit, on
  the gradient of all scoring texts. It is told the share of heads and of neurons that goes, here the same, and ranks
  over all layers (`global_pruning`); the hidden width stays, as with the others.

This package has no least-squares refit of the output projections after pruning, as Kwon et al. (2022, arXiv
2204.09656) have it: tried by hand on TextPruner's models above, it gained less than a point in the mean.""",
}


GPU = {  # of gpu.json, which `make bench-gpu` writes on a machine with a GPU
    "models": """## On a GPU

The paper's models at the paper's sizes, random weights, texts of assumed lengths. Seconds of a step with all heads,
half of them and few; a trajectory extrapolated from these. `of the product's rate` is the step's operations, by the
formula of the roof, at the rate of a large matrix product in the same precision in the same run. It is above 1 where
texts are evaluated apart: their passes start at the layer that changed, and the formula counts them whole.""",
    "trajectories": """Whole trajectories of greedy pruning, every step taken. The paper has five methods; the inverse
of greedy pruning costs as much, the others cost less.""",
    "order": "The order of the heads of a small model beside that in fp32 on a CPU: in how many places it is the same.",
    "settings": "One scoring by the most tokens of a pass and by what a length group is taken to cost.",
}


def shown(table: pd.DataFrame) -> str:
    """A Markdown table: whole numbers as they are, others to three digits."""
    cells = [
        [
            f"{v:.3g}" if isinstance(v, float) and abs(v) < 1000 else f"{v:,.0f}" if isinstance(v, float) else v
            for v in row
        ]
        for row in table.itertuples(index=False)
    ]
    return pd.DataFrame(cells, columns=table.columns).astype(str).to_markdown(index=False, disable_numparse=True)


def page() -> str:
    parts = [INTRODUCTION.strip()]
    for name, reading in READINGS.items():
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if not path.exists():
            continue
        found = json.loads(path.read_text("utf-8"))
        table = pd.DataFrame(found.pop("rows"))
        wheres = ", ".join(f"{key} {found[key]}" for key in ("threads", "torch", "transformers", "commit"))
        parts += [
            reading,
            shown(table),
            f"{found['processor']} ({found['device']}), {wheres}.",
        ]
    return "\n\n".join([*parts, *on_a_gpu()]) + "\n"


def on_a_gpu() -> list[str]:
    """The tables of gpu.json; none where it is not there."""
    path = ROOT / "benchmarks" / "results" / "gpu.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text("utf-8"))
    there = {reading: found[name] for name, reading in GPU.items() if found[name]}
    parts = [part for reading, rows in there.items() for part in (reading, shown(pd.DataFrame(rows)))]
    rates = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in found["rates"].items())
    left_out = "; ".join(found["left out"]) or "nothing"
    where = f"torch {found['torch']}, transformers {found['transformers']}, commit {found['commit']}"
    counts = found["counts"]
    parts.append(
        f"One scoring of 2,329 titles in {counts['batches']} batches by a narrow model of 12 layers takes "
        f"{counts['operations']:,} operations and one transfer to the CPU, counted on a CPU by the ways of a GPU."
    )
    measured = f"Products, TFLOP/s: {rates}. Left out: {left_out}."
    return [*parts, f"{measured} {found['processor']} ({found['device']}), {where}."]


if __name__ == "__main__":
    write(ROOT / "docs" / "performance.md", page())
