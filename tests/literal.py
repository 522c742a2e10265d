"""The oracle of the engine: plain autograd, and the algorithm as the paper states it, word for word and slowly.

A pass over the scoring texts per layer, a batch at a time; L2 norm of the whole batch's logits; gradients of the query,
key and value weights split by head; norms summed over batches; their product in float64; evaluation one text at a
time. Heads are taken out by zeroing their weights. Nothing of ``gnorm`` is used: where heads lie in the projections is
read off the names in ``models`` and the source of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import models
import torch
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A projection: its module, and the rows (head, n) of each head; columns of the output projection."""

    module: Any
    rows: Tensor
    of_input: bool = False

    def _turned(self, matrix: Tensor) -> Tensor:
        """The side of heads first; the weight of Conv1D is (in, out)."""
        return matrix.T if self.of_input != (type(self.module).__name__ == "Conv1D") else matrix

    def by_head(self, matrix: Tensor) -> Tensor:
        """(head, numbers) what is each head's of a weight, or of its gradient."""
        return self._turned(matrix)[self.rows].flatten(1)

    def zero(self, lost: Tensor) -> None:
        """Set the weights and biases of the heads ``lost`` (head,) to zero."""
        rows = self.rows[lost].flatten()
        self._turned(self.module.weight.data)[rows] = 0
        if not self.of_input and self.module.bias is not None:
            self.module.bias.data[rows] = 0


def heads_of(model: Any) -> int:
    """The number of heads of a layer that can go alone: key-value heads."""
    return getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads


def blocks(model: Any) -> list[list[Part]]:
    """[query, key, value, output] of every attention block: of the encoder, of the decoder, then cross-attention."""
    row = models.ROWS[model.config.model_type]
    pattern, names = row.layout
    owners = [(n, m) for n, m in model.named_modules() if re.search(rf"(^|\.){pattern}$", n)]
    owners.sort(key=lambda owner: ("decoder." in owner[0], bool(re.search("EncDec|encoder_attn", owner[0]))))
    heads = heads_of(model)
    queries = model.config.num_attention_heads // heads
    return [_parts(*map(owner.get_submodule, names.split()), heads, queries, row.by_head) for _, owner in owners]


def _parts(query: Any, key: Any, value: Any, output: Any, heads: int, queries: int, by_head: bool) -> list[Part]:
    width = output.weight.shape[0 if type(output).__name__ == "Conv1D" else 1] // heads // queries
    of_query, of_key = (torch.arange(heads * n * width).view(heads, -1) for n in (queries, 1))
    rows = [of_query, of_key, of_key]
    if query is key and by_head:  # query, key and value of one head, then of the next
        rows = list(torch.arange(heads * 3 * width).view(heads, 3, width).unbind(1))
    elif query is key:
        rows = [of_query, of_key + of_query.numel(), of_key + of_query.numel() + of_key.numel()]
    parts = [Part(module, of) for module, of in zip((query, key, value), rows, strict=True)]
    return [*parts, Part(output, of_query, of_input=True)]


def projections(model: Any) -> list[tuple[Any, ...]]:
    """[(query, key, value, output)] of every block: their modules."""
    return [tuple(part.module for part in block) for block in blocks(model)]


def inputs_of(batch: Batch) -> Batch:
    return {name: tensor for name, tensor in batch.items() if name not in models.LABELS}


def forward(model: Any, batch: Batch) -> Tensor:
    """The logits; those of tokens without those of padding, (token, class)."""
    found, real = model(**inputs_of(batch)), batch.get("decoder_attention_mask", batch.get("attention_mask"))
    z = found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], -1)
    return z[real == 1] if z.dim() == 3 and real is not None and z.shape[:2] == real.shape else z


def norm(model: Any, batch: Batch) -> Tensor:
    """The objective of the paper."""
    return forward(model, batch).norm()


def loss(model: Any, batch: Batch) -> Tensor:
    """The model's own: the mean over texts, or over tokens that count."""
    return model(**batch).loss


def gradients(
    model: Any,
    batches: list[Batch],
    objective: Callable[[Any, Batch], Tensor] = norm,
    weighted: bool = False,
    of: list[list[Part]] | None = None,
) -> Tensor:
    """(layer, projection, head) float64 sums over batches of norms of gradients: of query, key, value, output.

    weighted: the gradient times the weight. of: the blocks; all of the model's if None.
    """
    of = blocks(model) if of is None else of
    sums = torch.zeros(len(of), len(of[0]), len(of[0][0].rows), dtype=torch.float64)
    for batch in batches:
        model.zero_grad()
        objective(model, batch).backward()
        for row, block in zip(sums, of, strict=True):
            for of_projection, part in zip(row, block, strict=True):
                if (gradient := part.module.weight.grad) is not None:
                    gradient = gradient * part.module.weight.detach() if weighted else gradient
                    of_projection += part.by_head(gradient.double()).norm(dim=1).cpu()
    model.zero_grad()
    return sums


def products(model: Any, batches: list[Batch], objective: Callable[[Any, Batch], Tensor] = norm) -> Tensor:
    """(layer, head) float64 products over query, key and value of summed norms."""
    return gradients(model, batches, objective, of=[block[:3] for block in blocks(model)]).prod(1)


def scores(model: Any, batches: list[Batch]) -> Tensor:
    """The same by a pass over the texts for each layer, as the paper's notebooks take them."""
    return torch.stack([gradients(model, batches, of=[block[:3]])[0].prod(0) for block in blocks(model)])


def saliency(model: Any, batch: Batch) -> Tensor:
    """(layer, head) float64 size of the sum of weight times gradient of the loss, over a head's output columns."""
    model.zero_grad()
    loss(model, batch).backward()
    parts = [block[3] for block in blocks(model)]
    of_heads = [part.by_head((part.module.weight * part.module.weight.grad).detach().double()) for part in parts]
    model.zero_grad()
    return torch.stack([of_head.sum(1).abs() for of_head in of_heads])


def texts(batches: list[Batch]) -> Iterator[Batch]:
    """Every text as a batch of its own, without padding."""
    for batch in batches:
        for i in range(len(next(iter(batch.values())))):
            text = {}
            for name, tensor in batch.items():
                mask = batch.get("decoder_attention_mask" if name.startswith("decoder_") else "attention_mask")
                padded = mask is not None and name not in models.LABELS and tensor.shape[:2] == mask.shape
                text[name] = tensor[i : i + 1, : int(mask[i].sum())] if padded else tensor[i : i + 1]
            yield text


def contexts(model: Any, batch: Batch) -> list[list[Tensor]]:
    """For each block, the contexts (token, head, head_dim) of each pass through it, for a batch of one text."""
    found: list[list[Tensor]] = [[] for _ in blocks(model)]
    hooks = [
        block[3].module.register_forward_pre_hook(
            lambda _, inputs, to=to: to.append(inputs[0][0].unflatten(-1, (heads_of(model), -1)))
        )
        for block, to in zip(blocks(model), found, strict=True)
    ]
    with torch.no_grad():
        forward(model, batch)
    for hook in hooks:
        hook.remove()
    return found


def by_text(model: Any, batches: list[Batch], of_text: Callable[[Batch], list[list[Tensor]]]) -> Tensor:
    """(layer, head) means over texts of sums over passes; of_text: [layer][pass] (head,) of one text."""
    rows = [[sum(of_layer).double() for of_layer in of_text(text)] for text in texts(batches)]
    return torch.stack([torch.stack(row) for row in rows]).mean(0)


def energy(model: Any, batches: list[Batch]) -> Tensor:
    """(layer, head) mean squared length of the contexts of a head, over tokens and then over texts."""
    return by_text(
        model, batches, lambda text: [[c.square().sum(-1).mean(0) for c in passes] for passes in contexts(model, text)]
    )


def entropy(model: Any, batches: list[Batch]) -> Tensor:
    """(layer, head) mean entropy of the attention weights that the model itself hands out."""
    rows, heads = len(blocks(model)), heads_of(model)

    def of_text(text: Batch) -> list[list[Tensor]]:
        with torch.no_grad():
            handed_out = attentions(model(**inputs_of(text), output_attentions=True))
        of_pass = [torch.special.entr(a[0]).sum(-1).unflatten(0, (heads, -1)).mean((1, 2)) for a in handed_out]
        return [of_pass[layer * len(of_pass) // rows : (layer + 1) * len(of_pass) // rows] for layer in range(rows)]

    return by_text(model, batches, of_text)


def attentions(output: Any) -> list[Tensor]:
    """The attention weights of each pass through a block: of the encoder, of the decoder, then cross-attention."""
    if getattr(output, "attentions", None) is not None:
        return list(output.attentions)
    return [*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions]


def hits(model: Any, batches: list[Batch]) -> list[bool]:
    """True for texts that are right, one text at a time."""
    with torch.no_grad():
        return [int(forward(model, text).argmax()) == int(text["labels"]) for text in texts(batches)]


def accuracy(model: Any, batches: list[Batch]) -> float:
    found = hits(model, batches)
    return sum(found) / len(found)


def zero_head(model: Any, layer: int, head: int) -> None:
    for part in blocks(model)[layer]:
        part.zero(torch.arange(heads_of(model)) == head)


def prune(
    model: Any,
    scoring: list[Batch],
    evaluation: list[Batch] | None,
    highest_first: bool = False,
    rescore_every: int = 1,
    layers: list[int] | None = None,
) -> tuple[list[tuple[int, int]], list[float], list[float]]:
    """[(layer, head)], [score] and [accuracy] (one more: the intact model; none without texts); ``model`` is consumed.

    rescore_every: heads are scored before every head of this number; once if 0. layers: the layer of each head, in
    turn; any layer if None.
    """
    left = [(layer, head) for layer in range(len(blocks(model))) for head in range(heads_of(model))]
    order: list[tuple[int, int]] = []
    gone_at, accuracies = [], [accuracy(model, evaluation)] if evaluation else []
    while left:
        if not order or (rescore_every and len(order) % rescore_every == 0):
            table = products(model, scoring)
        candidates = left if layers is None else [at for at in left if at[0] == layers[len(order)]]
        chosen = (max if highest_first else min)(candidates, key=lambda at: float(table[at]))
        left.remove(chosen)
        zero_head(model, *chosen)
        order.append(chosen)
        gone_at.append(float(table[chosen]))
        accuracies += [accuracy(model, evaluation)] if evaluation else []
    return order, gone_at, accuracies
