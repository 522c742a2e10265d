"""The algorithm as the paper states it, word for word and slowly: what the engine is held against. Tests only.

A pass over the scoring texts per layer, a batch at a time; L2 norm of the whole batch's logits; gradients of the query,
key and value weights split by head; norms summed over batches; their product in float64; evaluation one text at a
time. Heads are taken out by zeroing their weights. Nothing of ``gnorm`` is used.
"""

import re

import torch

# The names of query, key, value and output projections, whatever the family.
NAMES = (
    *(rf"attention\.(self\.|attn\.)?{name}(_lin|_proj)?" for name in ("q(uery)?", "k(ey)?", "v(alue)?")),
    r"attention\.(output\.dense|dense|out_lin|attn\.o|o_proj)",
)


def projections(model):
    """[(query, key, value, output)] of every block."""
    named = list(model.named_modules())
    return list(zip(*([m for n, m in named if re.search(rf"{name}$", n)] for name in NAMES), strict=True))


def forward(model, batch):
    return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits


def texts(batches):
    """Every text as a batch of its own, without padding."""
    for batch in batches:
        for i, label in enumerate(batch["labels"]):
            length = int(batch["attention_mask"][i].sum())
            yield {name: batch[name][i : i + 1, :length] for name in ("input_ids", "attention_mask")} | {
                "labels": label[None]
            }


def contexts(model, batch):
    """For each block, the contexts (token, head, head_dim) of each pass through it, for a batch of one text."""
    heads = model.config.num_attention_heads
    found = [[] for _ in projections(model)]
    hooks = [
        block[3].register_forward_pre_hook(lambda _, inputs, to=to: to.append(inputs[0][0].unflatten(-1, (heads, -1))))
        for block, to in zip(projections(model), found, strict=True)
    ]
    with torch.no_grad():
        forward(model, batch)
    for hook in hooks:
        hook.remove()
    return found


def scores(model, batches):
    """(layer, head) float64: products of summed norms."""
    heads = model.config.num_attention_heads
    rows = []
    for layer in range(len(projections(model))):
        sums = torch.zeros(3, heads, dtype=torch.float64)
        for batch in batches:
            model.zero_grad()
            forward(model, batch).norm().backward()
            for i, linear in enumerate(projections(model)[layer][:3]):
                for head, block in enumerate(linear.weight.grad.chunk(heads, dim=0)):
                    sums[i, head] += block.double().norm()
        rows.append(sums[0] * sums[1] * sums[2])
    model.zero_grad()
    return torch.stack(rows)


def accuracy(model, batches):
    correct = counted = 0
    with torch.no_grad():
        for batch in batches:
            for i in range(len(batch["labels"])):
                length = int(batch["attention_mask"][i].sum())
                text = {name: t[i : i + 1, :length] for name, t in batch.items() if name != "labels"}
                correct += int(model(**text).logits.argmax()) == int(batch["labels"][i])
                counted += 1
    return correct / counted


def zero_head(model, layer, head):
    query, key, value, output = projections(model)[layer]
    size = query.out_features // model.config.num_attention_heads
    rows = slice(head * size, (head + 1) * size)
    with torch.no_grad():
        for linear in (query, key, value):
            linear.weight[rows] = 0
            linear.bias[rows] = 0
        output.weight[:, rows] = 0


def prune(model, scoring, evaluation, highest_first=False, rescore_every=1, layers=None):
    """[(layer, head)], [score] and [accuracy] (one more: the intact model); ``model`` is consumed.

    rescore_every: heads are scored before every head of this number; once if 0. layers: the layer of each head, in
    turn; any layer if None.
    """
    left = [
        (layer, head) for layer in range(len(projections(model))) for head in range(model.config.num_attention_heads)
    ]
    order, gone_at, accuracies = [], [], [accuracy(model, evaluation)]
    while left:
        if not order or (rescore_every and len(order) % rescore_every == 0):
            table = scores(model, scoring)
        candidates = left if layers is None else [at for at in left if at[0] == layers[len(order)]]
        chosen = (max if highest_first else min)(candidates, key=lambda at: float(table[at]))
        left.remove(chosen)
        zero_head(model, *chosen)
        order.append(chosen)
        gone_at.append(float(table[chosen]))
        accuracies.append(accuracy(model, evaluation))
    return order, gone_at, accuracies
