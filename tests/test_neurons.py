"""Feed-forward neurons beside heads: their scores by plain autograd, and masked == removed == reloaded == transformers
alone. Where neurons lie is said here by hand."""

import copy
import json
import math
import pickle
import re

import literal
import models
import numpy as np
import pytest
import test_more_families as more
import torch
import transformers
from models import batches_of, make
from precision import close
from tiny import tiny_model, without_elements

import gnorm
from gnorm.criteria import head_importance
from gnorm.criteria.of_loss import unit_importance
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.model.masking import masking
from gnorm.engine.model.subject import Subject
from gnorm.engine.trials import trial
from gnorm.shipping import prune_units

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
NAMES = [name for name in models.BY_HAND if models.family_of(name) in ENDS]
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
    mask, heads = gnorm.unit_mask_of(model), gnorm.head_mask_of(model).shape[1]
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
    gnorm.remove_units(smaller, mask)
    assert not without_elements(smaller)
    assert smaller.config.feed_forward_sizes == list(map(len, neurons))
    assert model.config.to_dict().get("feed_forward_sizes") is None
    left = gnorm.unit_mask_of(smaller)
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
    # What is left is scored as under the mask, and cut once more.
    left = gnorm.unit_mask_of(smaller)
    scores = unit_importance(smaller, batches_of(model))
    assert torch.equal(scores.isfinite(), left)
    more_gone, subject = unequal(smaller, empty=False), Subject(smaller)
    with masking(smaller, subject.units, subject.unit_rows(more_gone)):
        expected = answer(smaller, batch)
    gnorm.remove_units(smaller, more_gone)
    close(answer(smaller, batch), expected)
    assert smaller.config.feed_forward_sizes == [
        int(row.sum()) for row in subject.unit_rows(more_gone)[len(subject.blocks) :]
    ]


# The families whose neurons cannot go: experts, layers that are a sequence of modules.
REFUSED = """
    mixtral qwen3_moe aria_text cohere2_moe ernie4_5_moe exaone_moe glm4_moe granitemoe granitemoehybrid
    granitemoeshared hunyuan_v1_moe hy_v3 jamba kolibri1 mellum minimax_m3_vl_text phimoe qwen2_moe solar_open gpt_oss
    granitemoe_swa afmoe laguna llama4_text dbrx nllb-moe switch_transformers ctrl
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", models.ROWS)
def test_neurons_of_every_family_go_or_are_refused(name, monkeypatch):
    """Removed equals masked by random numbers, in layers that keep some or no units: the trial of unknown models."""
    model = make(name)
    if models.family_of(name) in REFUSED:
        with pytest.raises(ValueError, match="prune heads alone"):
            gnorm.unit_mask_of(model)
        return
    monkeypatch.setattr(trial, "is_tested", lambda model: False)
    batch = batches_of(model, 1, 5, name)[0]
    trial.try_out(model, lambda: literal.inputs_of(batch), removal=True, neurons=True)


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in models.ROWS if models.family_of(name) not in REFUSED])
def test_neurons_of_every_family_are_saved_and_loaded(name, tmp_path):
    model = make(name)
    batch = batches_of(model, 1, 5, name)[0]
    load = models.auto_of(name)
    mask, subject = unequal(model, empty=True), Subject(model)
    with masking(model, subject.units, subject.unit_rows(mask)), torch.no_grad():
        expected = more.answer(model, batch)
    gnorm.remove_units(model, mask)
    gnorm.save_pruned(model, tmp_path / "model")
    options = {"attn_implementation": model.config._attn_implementation}
    alone = load.from_pretrained(tmp_path / "model", trust_remote_code=True, **options)
    for each in (model, gnorm.load_pruned(tmp_path / "model", **options), alone):
        with torch.no_grad():
            more.equal(more.answer(each, batch), expected)


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
        return part._turned(part.module.weight).shape[1]

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
            goes = min(
                groups, key=lambda units: math.hypot(*map(importance.get, units)) / sum(map(self.cost.get, units))
            )
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
    assert torch.equal(run.mask(0), gnorm.unit_mask_of(model))


# ------------------------------------------------------------------------------------------ what runs do


def alike(one, other):
    """Two runs did the same; how long they took may differ."""
    assert one.gone == other.gone
    assert one.table.equals(other.table)
    assert np.array_equal(one.text_values, other.text_values)


def test_a_run_that_was_stopped_goes_on_from_its_journal(tmp_path):
    model, batches, journal = make("bert"), batches_of("bert"), tmp_path / "run.jsonl"
    whole = gnorm.shipping.prune_units(model, batches, journal=journal, progress=False)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[: len(lines) // 2]))
    alike(gnorm.shipping.prune_units(model, batches, journal=journal, progress=False), whole)
    assert len(journal.read_text().splitlines()) == len(lines)
    with pytest.raises(ValueError, match="is the journal of another run"):
        gnorm.shipping.prune_units(model, batches, block=16, journal=journal, progress=False)


def test_a_run_of_a_smaller_model_goes_on_where_the_first_ended():
    model, batches = make("llama").double(), batches_of("llama")
    whole = prune_units(model, batches, block=8, progress=False)
    at = len(whole.gone) // 2
    smaller = copy.deepcopy(model)
    gnorm.remove_units(smaller, whole.mask(int(whole.table.pruned_heads[at])))
    rest = prune_units(smaller, batches, block=8, progress=False)
    assert rest.table.accuracy.tolist() == whole.table.accuracy.tolist()[at:]
    close(rest.table.score[1:], whole.table.score[at + 1 :], torch.float64)
    assert [len(units) for units in rest.gone[1:]] == [len(units) for units in whole.gone[at + 1 :]]


def test_neurons_alone_or_a_few_steps():
    model, batches = make("bert"), batches_of("bert")
    run = prune_units(model, batches, units=("neurons",), block=48, progress=False)
    assert sorted(units[0][0] for units in run.gone[1:]) == [0, 1, 2]
    assert torch.equal(run.mask(3 * 48)[:, :4], torch.ones(3, 4).bool())
    heads = prune_units(model, batches, units=("heads",), progress=False)
    assert heads.order() == gnorm.prune(model, batches, method="head_importance", progress=False).order()
    few = prune_units(model, batches, steps=2, progress=False)
    assert few.gone == prune_units(model, batches, progress=False).gone[:3]
    assert (few.info["heads"], few.info["units"], few.info["blocks"]) == (4, ["heads", "neurons"], [32] * 3)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"units": ("layers",)}, ValueError, r"units=\('layers',\) is not known: name some of heads, neurons"),
        ({"units": ()}, ValueError, "name some of heads, neurons"),
        ({"block": 0}, ValueError, "block=0 is out of range"),
        ({"steps": 22}, ValueError, "steps=22 is out of range: 18 heads, 1 a step, make 18 steps"),
        ({"steps": 1.5}, TypeError, "steps=1.5 must be a whole number"),
    ],
)
def test_a_run_with_options_out_of_range_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        prune_units(make("bert"), batches_of("bert"), **options, progress=False)


# ------------------------------------------------------------------------------------------ what is left works


@pytest.fixture(params=["bert", "albert", "vit", "gpt2", "t5"])
def smaller(request):
    """A model with a feed-forward block without neurons, and a layer with nothing (one of ALBERT loses its neurons)."""
    model = make(request.param)
    gnorm.remove_units(model, unequal(model, empty=True))
    return model


def test_what_is_left_is_traced_copied_pickled_and_trained(smaller):
    batch = batches_of(smaller)[0]
    expected = answer(smaller, batch)
    for other in (copy.deepcopy(smaller), pickle.loads(pickle.dumps(smaller))):
        assert torch.equal(answer(other, batch), expected)
    with torch.no_grad():
        compiled = torch.compile(smaller, backend="eager", fullgraph=smaller.config.model_type != "t5")
        close(compiled(**literal.inputs_of(batch)).logits, expected)
    torch._dynamo.reset()
    smaller(**batch).loss.backward()
    given = [parameter.grad is not None for name, parameter in smaller.named_parameters() if name.endswith("_bias")]
    assert all(given)


def test_what_is_left_is_read_as_a_body_recovered_exported_and_priced(tmp_path):
    model, batches = make("bert"), batches_of("bert")
    intact = copy.deepcopy(model)
    gnorm.remove_units(model, unequal(model, empty=True))
    folder = gnorm.save_pruned(model, tmp_path / "model")
    body = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    inputs = literal.inputs_of(batches[0])
    with torch.no_grad():
        close(body(**inputs).last_hidden_state, model.bert(**inputs).last_hidden_state)
    gnorm.export_onnx(model, tmp_path / "model.onnx")
    prices = gnorm.cost(model, batch_sizes=(1,), lengths=(8,), rounds=1)
    assert prices["parameters"].tolist() == [sum(p.numel() for p in intact.parameters())]
    assert prices["parameters after"].tolist() == [sum(p.numel() for p in model.parameters())]
    before = copy.deepcopy(model.state_dict())
    gnorm.shipping.recover(model, batches, teacher=intact, lr=1e-3, progress=False)
    assert model.config.feed_forward_sizes[0] == 0
    assert not torch.equal(model.state_dict()["bert.encoder.layer.0.output.dense_bias"], before[
        "bert.encoder.layer.0.output.dense_bias"
    ])  # fmt: skip
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(answer(gnorm.load_pruned(tmp_path / "trained"), batches[0]), answer(model, batches[0]))


def test_without_feed_forward_where_some_or_all_have_no_neurons():
    model, batch = make("bert"), batches_of("bert")[0]
    mask = gnorm.unit_mask_of(model)
    with gnorm.without_feed_forward(model):
        expected = answer(model, batch)
    mask[0, 4:] = False
    for _ in range(2):
        gnorm.remove_units(model, mask)
        with gnorm.without_feed_forward(model):
            close(answer(model, batch), expected)
        mask = gnorm.unit_mask_of(model)
        mask[:, 4:] = False
    close(answer(model, batch), expected)
    assert tuple(gnorm.unit_mask_of(model).shape) == (3, 4)


def test_a_folder_of_heads_alone_says_nothing_of_neurons(tmp_path):
    model = make("bert")
    mask = gnorm.unit_mask_of(model)
    mask[0, 1] = False
    gnorm.remove_units(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "model")
    other = make("bert")
    gnorm.remove_heads(other, mask[:, :4])
    heads = gnorm.save_pruned(other, tmp_path / "heads")
    for path in heads.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
        assert b"feed_forward_sizes" not in path.read_bytes()


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_are_refused_before_anything_changes(name):
    model, batches = make(name), batches_of(name)
    for call in (gnorm.unit_mask_of, lambda model: prune_units(model, batches)):
        with pytest.raises(ValueError, match=rf"'{name}' hold experts, or .* prune heads alone"):
            call(model)
    gnorm.prune(model, batches, steps=1, progress=False)


def test_a_registered_family_is_tried_and_says_where_its_feed_forward_blocks_end(monkeypatch, tmp_path):
    """Dots1 with dense layers, which the package does not know."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.Dots1Config(vocab_size=100, num_key_value_heads=4, first_k_dense_replace=2, **sizes)
    model = transformers.Dots1ForCausalLM(config).eval()
    row = "layers.*.self_attn", "q_proj", "k_proj", "v_proj", "o_proj"
    monkeypatch.setitem(FAMILIES, "dots1", None)  # forgotten afterwards
    gnorm.register("dots1", *row)
    with pytest.raises(ValueError, match="correct feed_forward in the row with gnorm.register, or prune heads alone"):
        gnorm.unit_mask_of(model)
    gnorm.register("dots1", *row, "layers.*.mlp.down_proj")
    ids = torch.tensor([[5, 6, 7], [8, 9, 4]])
    run = prune_units(model, [{"input_ids": ids, "labels": ids}], steps=6, progress=False)
    gnorm.remove_units(model, run.mask(len(run.order())))
    close(run.table["perplexity"].iloc[-1], float(model(input_ids=ids, labels=ids).loss.detach().exp()))
    reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    assert torch.equal(reloaded(ids).logits, model(ids).logits)


class NormedOutput(transformers.models.bert.modeling_bert.BertIntermediate):
    """A feed-forward block with a norm over all neurons."""

    def __init__(self, config):
        super().__init__(config)
        self.norm = torch.nn.LayerNorm(config.intermediate_size)

    def forward(self, hidden_states):
        return self.norm(super().forward(hidden_states))


def test_what_mixes_neurons_is_refused_and_what_does_not_is_taken():
    model, batches = make("bert"), batches_of("bert")
    model.bert.encoder.layer[1].intermediate = NormedOutput(model.config)
    with pytest.raises(ValueError, match="does not work with neurons removed, it does not run .* prune heads alone"):
        prune_units(model, batches)
    gnorm.prune(model, batches, steps=1, progress=False)
    model = make("bert")
    model.bert.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.Softmax(-1)
    model.bert.encoder.layer[1].intermediate.intermediate_act_fn.__class__ = Mixing
    with pytest.raises(ValueError, match="with neurons removed, its results are not those of masked heads"):
        gnorm.unit_mask_of(model)
    model = make("bert")
    model.bert.encoder.layer[1].intermediate.intermediate_act_fn = Alone()
    assert tuple(gnorm.unit_mask_of(model).shape) == (3, 52)


class Mixing(torch.nn.Softmax):
    pass


class Alone(torch.nn.Module):
    def forward(self, hidden_states):
        return hidden_states.tanh()


def test_projections_that_cannot_be_cut_are_refused():
    model = make("bert")
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense = torch.nn.utils.parametrizations.weight_norm(layers[1].intermediate.dense)
    with pytest.raises(ValueError, match="the feed-forward projection intermediate.dense of BertLayer is under a para"):
        gnorm.unit_mask_of(model)
    assert gnorm.head_mask_of(model).all()
    model = make("bert")
    layers = model.bert.encoder.layer
    layers[1].intermediate.dense.weight = layers[0].intermediate.dense.weight
    with pytest.raises(
        ValueError, match="feed-forward input projection of layer 1 shares its weight with the feed-for"
    ):
        gnorm.unit_mask_of(model)
    model = make("bert")
    model.bert.encoder.layer[2].intermediate.dense = torch.nn.Linear(32, 40)
    with pytest.raises(ValueError, match="BertLayer has 40 rows in intermediate.dense and 48 columns in output.dense"):
        gnorm.unit_mask_of(model)
    model = make("bert")
    with (
        gnorm.masked(model, [[1, 1, 1, 0]] * 3),
        pytest.raises(ValueError, match="while the model is under gnorm.masked"),
    ):
        gnorm.remove_units(model, gnorm.unit_mask_of(model))
    with pytest.raises(ValueError, match=r"shape \(3, 50\), this model needs \(layer, head \+ neuron\) = \(3, 52\)"):
        gnorm.remove_units(model, torch.ones(3, 50))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([10, 20], r"feed_forward_sizes=\[10, 20\] must be a size for each of 3 blocks, \[48, 48, 48\] at most"),
        ([10, 20, 49], "must be a size for each of 3 blocks"),
        ([26, 20, 26], r"contradict its configuration: .*layer.1.intermediate.dense.bias is \(26,\), .* needs \(20,\)"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused(sizes, says, tmp_path):
    model = make("bert")
    mask = gnorm.unit_mask_of(model)
    mask[:, 30:] = False
    gnorm.remove_units(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["feed_forward_sizes"] == [26] * 3
    assert config["intermediate_size"] == 48
    (folder / "config.json").write_text(json.dumps(config | {"feed_forward_sizes": sizes}))
    with pytest.raises(ValueError, match=says):
        gnorm.load_pruned(folder)
