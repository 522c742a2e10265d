"""Which heads and feed-forward neurons of a BERT classifier other tools keep: benchmarks/of_others.py TOOL FOLDER

Run by ``benchmarks.peers`` with a Python that has the tool, torch and transformers; it needs nothing else. FOLDER has
model/, as transformers saved it, and asked.pt: scoring, batches with labels; shares, of heads and of neurons that are
to be kept; iterations. TOOL.pt is written beside: versions, and a row for every share, with its masks (layer, head) and
(layer, neuron) and the logits of the first batch that the tool's own model gave.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

Batches = list[dict[str, Tensor]]
Pruned = tuple[Any, Tensor, Tensor]  # the model, its heads and its neurons


def textpruner(model: Any, scoring: Batches, share: float, iterations: int) -> Pruned:
    """TextPruner's iterative pruning to sizes in the mean of the layers, which its documentation found best."""
    from textpruner import GeneralConfig, TransformerPruner, TransformerPruningConfig

    with tempfile.TemporaryDirectory() as folder:
        pruner = TransformerPruner(
            model,
            TransformerPruningConfig(
                target_num_of_heads=round(share * model.config.num_attention_heads),
                target_ffn_size=round(share * model.config.intermediate_size),
                pruning_method="iterative",
                n_iters=iterations,
                head_even_masking=False,
                ffn_even_masking=False,
                multiple_of=16,
            ),
            GeneralConfig(use_device="cpu", output_dir=folder),
        )
        pruner.prune(dataloader=scoring, save_model=False)
    return model, pruner.head_mask.bool(), pruner.ffn_mask.bool()


def torch_pruning(model: Any, scoring: Batches, share: float, iterations: int) -> Pruned:
    """Torch-Pruning by its first-order Taylor importance, ranked over all layers; the hidden width stays."""
    import torch_pruning as tp

    layers = model.bert.encoder.layer
    blocks = [layer.attention.self for layer in layers]
    size = blocks[0].attention_head_size
    before = [(block.value.weight, layer.intermediate.dense.weight) for block, layer in zip(blocks, layers)]
    pruner = tp.pruner.BasePruner(
        model,
        {name: t[:2] for name, t in scoring[0].items() if name != "labels"},
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        iterative_steps=iterations,
        pruning_ratio=1 - share,
        num_heads={m: block.num_attention_heads for block in blocks for m in (block.query, block.key, block.value)},
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=1 - share,
        output_transform=lambda output: output.logits.sum(),
        ignored_layers=[
            *(model.bert.embeddings, model.bert.pooler, model.classifier),
            *(layer.attention.output.dense for layer in layers),
            *(layer.output.dense for layer in layers),
        ],
    )
    for _ in range(iterations):
        model.zero_grad()
        for batch in scoring:
            model(**batch).loss.backward()
        pruner.step()
        for block in blocks:
            block.all_head_size = block.query.out_features
            block.num_attention_heads = block.all_head_size // size
    after = [(block.value.weight, layer.intermediate.dense.weight) for block, layer in zip(blocks, layers)]
    pairs = list(zip(before, after, strict=True))
    heads, neurons = (torch.stack([_rows_left(was[i], now[i]) for was, now in pairs]) for i in (0, 1))
    return model, heads.unflatten(1, (-1, size)).all(2), neurons


def _rows_left(before: Tensor, after: Tensor) -> Tensor:
    """(row,) which rows of ``before`` there are in ``after``."""
    there = set(map(tuple, after.tolist()))
    left = torch.tensor([tuple(row) in there for row in before.tolist()])
    assert torch.equal(before[left], after), "rows are others than before, or in another order"
    return left


TOOLS: dict[str, Callable[..., Pruned]] = {"textpruner": textpruner, "torch-pruning": torch_pruning}


def rows(tool: str, folder: Path) -> Iterator[dict[str, Any]]:
    asked = torch.load(folder / "asked.pt")
    for share in asked["shares"]:
        model = transformers.BertForSequenceClassification.from_pretrained(folder / "model").eval()
        model, heads, neurons = TOOLS[tool](model, asked["scoring"], share, asked["iterations"])
        with torch.no_grad():
            logits = model.eval()(**asked["scoring"][0]).logits
        yield {"share": share, "heads": heads, "neurons": neurons, "logits": logits}


if __name__ == "__main__":
    tool, folder = sys.argv[1], Path(sys.argv[2])
    versions = {name: version(name) for name in (tool, "transformers", "torch")}
    torch.save({"versions": versions, "rows": list(rows(tool, folder))}, folder / f"{tool}.pt")
