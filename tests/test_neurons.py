"""Feed-forward neurons beside heads: their scores by plain autograd, and masked == removed == reloaded == transformers
alone. Where neurons lie is said here by hand."""

import copy
import re

import literal
import models
import numpy as np
import pytest
import test_more_families as more
import torch
import transformers
from models import batches_of, make
from more_models import MODELS
from precision import close
from tiny import tiny_model, without_elements

import gnorm
from gnorm.criteria import head_importance
from gnorm.criteria.of_loss import unit_importance
from gnorm.shipping import prune_units
from gnorm.surgery import remove_units, unit_mask_of

# By family: the names of the projections out of feed-forward blocks, those of the encoder first.
ENDS = {
    "bert": r"layer\.\d+\.output\.dense",
    "roberta": r"layer\.\d+\.output\.dense",
    "albert": r"ffn_output",
    "distilbert": r"ffn\.lin2",
    "gpt2": r"mlp\.c_proj",
    "llama": r"mlp\.down_proj",
    "modernbert": r"mlp\.Wo",
    "t5": r"DenseReluDense\.wo",
    "bart": r"fc2",
    "vit": r"mlp\.fc2",
    "opt": r"fc2",
    "wav2vec2": r"feed_forward\.output_dense",
    "phi3": r"mlp\.down_proj",
    "marian": r"fc2",
    "granite": r"mlp\.down_proj",
}
NAMES = [name for name in models.ROWS if models.family_of(name) in ENDS]
BERT_CHOICE = transformers.BertForMultipleChoice


def ends_of(model):
    """The projections out of the feed-forward blocks, first layer first."""
    pattern = ENDS[model.config.model_type]
    return [module for name, module in model.named_modules() if re.search(rf"(^|\.){pattern}$", name)]


def width_of(end):
    return end.nx if type(end).__name__ == "Conv1D" else end.in_features


def masked_by(ends, masks):
    """Hooks that multiply what goes into each of ``ends`` by its mask (neuron,)."""
    return [
        end.register_forward_pre_hook(lambda _, inputs, mask=mask: (inputs[0] * mask,))
        for end, mask in zip(ends, masks, strict=True)
    ]


def importances(model, batches):
    """[(neuron,)] the mean over texts of the absolute derivative of the loss by the masks of each block."""
    ends = ends_of(model)
    masks = [torch.ones(width_of(end), dtype=model.dtype, requires_grad=True) for end in ends]
    texts = [{n: t[i : i + 1] for n, t in b.items()} for b in batches for i in range(len(next(iter(b.values()))))]
    sums = [torch.zeros(len(mask)) for mask in masks]
    hooks = masked_by(ends, masks)
    for text in texts:
        given = torch.autograd.grad(literal.loss(model, text), masks, allow_unused=True)
        sums = [total if g is None else total + g.abs() for total, g in zip(sums, given, strict=True)]
    for hook in hooks:
        hook.remove()
    return [total / len(texts) for total in sums]


def columns(table, model):
    """Of a table (layer, head + neuron), what is the neurons' of each feed-forward block."""
    heads = gnorm.head_mask_of(model).shape[1]
    return [table[i, heads : heads + width_of(end)] for i, end in enumerate(ends_of(model))]


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_neurons_are_those_of_plain_autograd(name):
    model = make(name)
    batches = batches_of(model)
    found = unit_importance(model, batches)
    importance = head_importance(model, batches)
    assert torch.equal(found[: len(importance), : importance.shape[1]], importance)
    expected = importances(model, batches)
    assert sum(found.isfinite().flatten()) == importance.numel() + sum(map(len, expected))
    for row, of_block in zip(columns(found, model), expected, strict=True):
        close(row, of_block.double())


def test_scores_of_neurons_where_a_text_has_several_choices():
    model = tiny_model("bert")
    chooser = BERT_CHOICE(model.config).eval()
    ids = torch.randint(3, 100, (3, 2, 7), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([1, 0, 1])}
    found = unit_importance(chooser, [batch])
    for row, of_block in zip(columns(found, chooser), importances(chooser, [batch]), strict=True):
        close(row, of_block.double())


def unequal(model, empty):
    """Other units of each layer; where ``empty``, the first layer loses all neurons, the last one everything."""
    mask, heads = unit_mask_of(model), gnorm.head_mask_of(model).shape[1]
    left = (torch.arange(len(mask))[:, None] + 5 * torch.arange(mask.shape[1])) % 7 > 1
    if empty:
        left[0, heads:] = False
        left[-1] &= len(mask) == 1
    return left & mask


def answer(model, batch):
    with torch.no_grad():
        return literal.forward(model, batch)


def check(model, batch, mask, ask, load, folder):
    """Masked equals removed equals reloaded, by gnorm and by transformers alone."""
    heads = gnorm.head_mask_of(model)
    of_heads = mask[: len(heads), : heads.shape[1]]
    smaller = copy.deepcopy(model)
    neurons = [row.nonzero()[:, 0] for row in columns(mask, model)]
    with gnorm.masked(model, of_heads):
        hooks = masked_by(ends_of(model), [row.to(model.dtype) for row in columns(mask, model)])
        expected = ask(model, batch)
        for hook in hooks:
            hook.remove()
    assert float((expected - ask(model, batch)).abs().max()) > 1e-3
    remove_units(smaller, mask)
    assert not without_elements(smaller)
    assert smaller.config.feed_forward_sizes == list(map(len, neurons))
    assert model.config.to_dict().get("feed_forward_sizes") is None
    left = unit_mask_of(smaller)
    assert torch.equal(left[: len(heads), : heads.shape[1]], of_heads)
    assert left[:, heads.shape[1] :].sum(1)[: len(neurons)].tolist() == list(map(len, neurons))
    gnorm.save_pruned(smaller, folder)
    reloaded, alone = gnorm.load_pruned(folder), load(folder, trust_remote_code=True)
    assert type(alone).__module__.startswith("transformers_modules")
    assert reloaded.config.feed_forward_sizes == smaller.config.feed_forward_sizes
    weights = reloaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in smaller.state_dict().items())
    for each in (smaller, copy.deepcopy(smaller), reloaded, alone):
        torch.testing.assert_close(ask(each, batch), expected, rtol=0, atol=2e-5 * (1 + float(expected.abs().max())))
    return smaller


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_masked_equals_removed_equals_reloaded_equals_transformers_alone(name, empty, tmp_path):
    model = make(name)
    batch, load = batches_of(model)[0], models.auto_of(name).from_pretrained
    smaller = check(model, batch, unequal(model, empty), answer, load, tmp_path / "model")
    # What is left is scored, and pruned again.
    again = make(name)
    mask = unequal(model, empty)
    scores = unit_importance(smaller, batches_of(model))
    left = unit_mask_of(smaller)
    assert torch.equal(scores.isfinite(), left)


GATED = ("llama", "modernbert", "phi3", "granite")


class Literal:
    """A model that loses heads and neurons by zeros in the columns that read them, and what each costs for a token."""

    def __init__(self, model, batches, block):
        self.model, self.batches, self.block = copy.deepcopy(model), batches, block
        self.parts, self.ends = [of_block[3] for of_block in literal.blocks(self.model)], ends_of(self.model)
        self.heads = literal.heads_of(model)
        self.texts = list(literal.texts(batches))
        length = sum(text["input_ids"].shape[1] for text in self.texts) / len(self.texts)
        self.cost = {}
        for layer, of_block in enumerate(literal.blocks(self.model)):
            for head in range(self.heads):
                sides = [part.rows.shape[1] * self.hidden(part) for part in of_block]
                self.cost[layer, head] = sum(sides) + 2 * length * of_block[3].rows.shape[1]
        for layer, end in enumerate(self.ends):
            gated = model.config.model_type in GATED or "gated" in str(getattr(model.config, "feed_forward_proj", ""))
            for neuron in range(width_of(end)):
                self.cost[layer, self.heads + neuron] = (3 if gated else 2) * model.config.hidden_size
        self.left = set(self.cost)

    def hidden(self, part):
        rows, columns = part._turned(part.module.weight).shape
        return columns

    def lose(self, layer, column):
        self.left.remove((layer, column))
        if column < self.heads:
            self.parts[layer].zero(torch.arange(self.heads) == column)
        else:
            end = self.ends[layer]
            weight = end.weight.data if type(end).__name__ == "Conv1D" else end.weight.data.T
            weight[column - self.heads] = 0

    def importance(self):
        of_heads = torch.stack([literal.saliency(self.model, text) for text in self.texts]).mean(0)
        of_neurons = importances(self.model, self.batches)
        found = {(i, j): float(v) for i, row in enumerate(of_heads) for j, v in enumerate(row)}
        return found | {
            (i, self.heads + j): float(v) for i, row in enumerate(of_neurons) for j, v in enumerate(row.detach())
        }

    def steps(self):
        """The units that go in each step, and the accuracy after it."""
        while self.left:
            importance, groups = self.importance(), []
            for layer in range(max(len(self.parts), len(self.ends))):
                of_layer = sorted(column for row, column in self.left if row == layer)
                groups += [[(layer, column)] for column in of_layer if column < self.heads]
                neurons = [(layer, column) for column in of_layer if column >= self.heads]
                neurons.sort(key=importance.get)
                groups += [neurons[: self.block]] * bool(neurons)
            goes = min(groups, key=lambda units: sum(map(importance.get, units)) / sum(map(self.cost.get, units)))
            for unit in goes:
                self.lose(*unit)
            yield goes, literal.accuracy(self.model, self.batches)


@pytest.mark.parametrize("name", ["bert", "albert", "gpt2", "llama", "modernbert", "t5", "bart"])
def test_a_run_is_that_of_a_literal_loop(name):
    model = make(name).double()
    batches, block = batches_of(model), 20
    run = prune_units(model, batches, block=block, progress=False)
    expected = list(Literal(model, batches, block).steps())
    assert [set(units) for units in run.gone] == [set(), *(set(units) for units, _ in expected)]
    assert run.table["accuracy"].tolist()[1:] == [accuracy for _, accuracy in expected]
    assert run.table["pruned_heads"].tolist() == [*np.cumsum([len(units) for units in run.gone])]
    assert not run.mask(len(run.order())).any()
    assert torch.equal(run.mask(0), unit_mask_of(model))
