"""Models that the package's tests say nothing of are tried before anything is believed of them."""

import copy
import math

import pytest
import torch
import transformers
from tiny import ragged_batches, tiny_model
from torch import nn
from transformers import AutoConfig
from transformers.models.bert.modeling_bert import BertSelfAttention

import gnorm
from gnorm.criteria.of_outputs import weight_magnitude
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.model.known_models import is_tested
from gnorm.engine.trials import trial as trials

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXTS = SIZES | {"vocab_size": 120, "pad_token_id": 1, "num_labels": 3}
OF_BERT = ("encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense")
OF_LLAMA = ("layers.*.self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
OF_GPT = ("h.*.attn", "c_attn", "c_attn", "c_attn", "c_proj")


def make(name, monkeypatch, auto, options, row, **more):
    """A tiny model of a family that the package has no row for, whose row is registered for the length of a test."""
    monkeypatch.setitem(FAMILIES, name, None)  # forgotten afterwards
    gnorm.register(name, *row, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, auto).from_config(AutoConfig.for_model(name, **options)).eval()


def classifier(name, monkeypatch, row=OF_BERT, **options):
    return make(
        name, monkeypatch, "AutoModelForSequenceClassification", TEXTS | options, row, skippable=row[1:] == OF_BERT[1:]
    )


class OwnAttention(BertSelfAttention):
    """BERT's attention, written again: what subclasses change of it is a method."""

    def forward(self, hidden_states, attention_mask=None, **_):
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = self.changed(q) @ k.transpose(-1, -2) / math.sqrt(self.attention_head_size)
        if attention_mask is not None:
            given = attention_mask
            scores = scores + (torch.where(given, 0.0, -math.inf) if given.dtype == torch.bool else given)
        weights = self.biased(scores).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights

    def changed(self, query):
        return query

    def biased(self, scores):
        return scores


class Slopes(OwnAttention):
    def biased(self, scores):
        heads, tokens = scores.shape[1:3]
        slopes = 2.0 ** (-8 / heads * torch.arange(1, heads + 1))
        return scores - slopes[:, None, None] * (torch.arange(tokens)[:, None] - torch.arange(tokens)).abs()


class LongSlopes(Slopes):
    def biased(self, scores):
        return super().biased(scores) if scores.shape[-1] > 30 else scores


class NormsByHead(OwnAttention):
    def changed(self, query):
        return torch.stack([norm(one) for norm, one in zip(self.norms, query.unbind(1), strict=False)], 1)


class CountsParts(OwnAttention):
    """Counts its heads by an attribute of a name of its own, and reads fewer heads as narrower ones."""

    def forward(self, hidden_states, attention_mask=None, **_):
        shape = (*hidden_states.shape[:-1], 4, -1)
        q, k, v = (f(hidden_states).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights


class Noisy(OwnAttention):
    def biased(self, scores):
        return scores + torch.randn_like(scores)


class Nothing(OwnAttention):
    def forward(self, hidden_states, *_, **__):
        return sum(f(hidden_states) for f in (self.query, self.key, self.value)).detach() * 0, None


def own(kind):
    """BERT with attention of ``kind``: a class of one's own under a model_type that the package knows."""
    model = tiny_model("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.__class__ = kind
        if kind is NormsByHead:
            layer.attention.self.norms = nn.ModuleList(nn.LayerNorm(8, bias=False) for _ in range(4))
    return model


def state_of(model):
    """Everything that a refusal must leave alone."""
    modules = dict(model.named_modules())
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for name, m in modules.items()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return modules, hooks, model.config.to_dict(), {n: p.requires_grad for n, p in model.named_parameters()}, weights


def same_state(one, other):
    return one[:4] == other[:4] and all(torch.equal(one[4][name], other[4][name]) for name in one[4] | other[4])


def some_removed(model):
    return gnorm.remove_heads(model, [[0, 1, 1, 1]] + [[1, 1, 0, 1]] * (len(gnorm.attention_blocks(model)) - 1))


def under_mask(model):
    with gnorm.masked(model, torch.ones(len(gnorm.attention_blocks(model)), 4)):
        pass


SCORED = {
    "attention_blocks": gnorm.attention_blocks,
    "head_mask_of": gnorm.head_mask_of,
    "masked": under_mask,
    "gnorm_scores": lambda model: gnorm.gnorm_scores(model, ragged_batches(1)),
    "attention_entropy": lambda model: gnorm.attention_entropy(model, ragged_batches(1)),
    "activation_energy": lambda model: gnorm.activation_energy(model, ragged_batches(1)),
    "prepare": lambda model: gnorm.prepare(ragged_batches(1), model),
    "cost": lambda model: gnorm.cost(model, batch_sizes=(1,), lengths=(4,), seconds=0.0),
    "weight_magnitude": lambda model: weight_magnitude(model, ragged_batches(1)),
}
REMOVED = {
    "remove_heads": some_removed,
    "prune": lambda model: gnorm.prune(model, ragged_batches(1), steps=1, progress=False),
    "random": lambda model: gnorm.prune(model, ragged_batches(1), method="random", steps=1, progress=False),
    "save_pruned": lambda model: gnorm.save_pruned(model, "never-written"),
}
CANNOT = {
    "heads counted elsewhere": (lambda _: own(CountsParts), "its results are not those of masked heads"),
    "a list of outputs": (
        lambda patch: classifier("openai-gpt", patch, OF_GPT),
        "it does not run .not enough values to unpack",
    ),
    "slopes from the number of heads": (lambda _: own(Slopes), "its results are not those of masked heads"),
    "slopes of long texts alone": (lambda _: own(LongSlopes), "its results are not those of masked heads"),
    "a norm for each head": (lambda _: own(NormsByHead), r"NormsByHead has norms.0.weight of shape \(8,\) beside"),
    "noise": (lambda _: own(Noisy), "Noisy|gives the same texts other results in every pass"),
}


@pytest.mark.parametrize("door", REMOVED)
@pytest.mark.parametrize("which", CANNOT)
def test_heads_are_not_removed_where_that_differs_from_masking_them(which, door, monkeypatch):
    build, message = CANNOT[which]
    model = build(monkeypatch)
    before = state_of(model.train())
    with pytest.raises(ValueError, match=message):
        REMOVED[door](model)
    assert same_state(state_of(model), before)


@pytest.mark.parametrize("door", SCORED)
def test_masks_and_scores_of_a_model_that_cannot_lose_heads_are_right_all_the_same(door, monkeypatch):
    SCORED[door](own(Slopes))
    if door != "attention_entropy":  # whose attention returns no weights
        SCORED[door](classifier("openai-gpt", monkeypatch, OF_GPT))


NEVER = {
    "block-sparse attention": (
        lambda patch: classifier("big_bird", patch, block_size=4, num_random_blocks=1, max_position_embeddings=128),
        "puts other modules in the place of its own while it runs, .* attention_type=",
    ),
    "a kernel that is missing": (lambda patch: classifier("mra", patch), "no gradient flows through head 0 of Mra"),
    "no attention": (lambda _: own(Nothing), "no gradient flows through head 0 of Nothing"),
}


@pytest.mark.parametrize("door", SCORED | REMOVED)
@pytest.mark.parametrize("which", NEVER)
def test_every_function_refuses_a_model_whose_heads_are_not_what_its_row_says(which, door, monkeypatch):
    build, message = NEVER[which]
    model = build(monkeypatch)
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        (SCORED | REMOVED)[door](model)
    assert same_state(state_of(model), before)


OF_CANINE = tuple(f"{part}.layer.*.attention" for part in ("initial_char_encoder", "encoder", "final_char_encoder"))
RIGHT = {
    "full attention": lambda patch: classifier("big_bird", patch, attention_type="original_full"),
    "attention of one's own": lambda _: own(OwnAttention),
    "letters": lambda patch: classifier(
        *("canine", patch, (OF_CANINE, *OF_BERT[1:])),
        local_transformer_stride=8,
        downsampling_rate=4,
        num_hash_buckets=64,
    ),
}


@pytest.mark.parametrize("which", RIGHT)
def test_what_is_right_passes_and_is_tried_once(which, monkeypatch):
    model, runs = RIGHT[which](monkeypatch), []
    run = trials.runnable
    monkeypatch.setattr(trials, "_TRIED", {})
    monkeypatch.setattr(trials, "runnable", lambda *given: runs.append(1) or run(*given))
    mask = gnorm.prune(model, ragged_batches(1), progress=False).mask(pruned_heads=5)
    smaller = copy.deepcopy(model)
    gnorm.remove_heads(smaller, mask)
    gnorm.gnorm_scores(smaller, ragged_batches(1))
    assert len(runs) == 1
    inputs = {name: tensor for name, tensor in ragged_batches(1)[0].items() if name != "labels"}
    with torch.no_grad(), gnorm.masked(model, mask):
        torch.testing.assert_close(smaller(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


def test_a_model_that_lost_heads_wrongly_is_refused_by_whatever_meets_it(monkeypatch):
    model = own(CountsParts)
    with trials.untried():
        some_removed(model)
    monkeypatch.setattr(trials, "_TRIED", {})
    for door in (*SCORED.values(), *REMOVED.values()):
        with pytest.raises(ValueError, match=r"head \d depends on rows of the query projection"):
            door(model)


def test_a_model_that_takes_no_random_inputs_is_shown_its_own(monkeypatch):
    options = SIZES | {"image_size": 16, "patch_size": 4, "num_frames": 2, "num_labels": 3}
    row = ("encoder.layer.*.attention", "attention.query", "attention.key", "attention.value", "output.dense")
    model = make("videomae", monkeypatch, "AutoModelForVideoClassification", options, row)
    with pytest.raises(ValueError, match=r"does not run on random inputs .* gnorm.prepare\(batches, model\)"):
        some_removed(model)
    videos = torch.randn(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    gnorm.prepare([{"pixel_values": videos}], model)
    mask, smaller = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0]]), copy.deepcopy(model)
    gnorm.remove_heads(smaller, mask)
    with torch.no_grad(), gnorm.masked(model, mask):
        torch.testing.assert_close(smaller(videos).logits, model(videos).logits, atol=1e-5, rtol=0)


NESTED = {"text_config": TEXTS, "vision_config": SIZES | {"image_size": 16, "patch_size": 4}}
OF_STAGES = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
OF_LATENTS = (
    {"num_latents": 8, "d_latents": 32, "d_model": 16, "num_blocks": 1, "num_self_attends_per_block": 2}
    | {"num_self_attention_heads": 4, "num_cross_attention_heads": 4}
    | {"vocab_size": 100, "max_position_embeddings": 12}
)
OF_STATES = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}
OF_TWO_WIDTHS = (
    TEXTS
    | {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "num_kv_shared_layers": 0}
    | {"layer_types": ["sliding_attention", "full_attention"]}
    | {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 100}
)
OF_VISION = ("vision_model.encoder.layers.*.self_attn", *OF_LLAMA[1:4], "out_proj")
UNREADABLE = {
    "swin": ("AutoModelForImageClassification", OF_STAGES, ("encoder.layers.*.blocks.*.attention", *OF_BERT[1:])),
    "perceiver": (
        *("AutoModelForSequenceClassification", OF_LATENTS),
        ("encoder.self_attends.*.attention", *OF_BERT[1:]),
    ),
    "mamba": ("AutoModelForCausalLM", OF_STATES, ("layers.*.mixer", "in_proj", "in_proj", "in_proj", "out_proj")),
}
READ_FROM_ATTENTION = {
    "gemma4_text": ("AutoModelForCausalLM", OF_TWO_WIDTHS, OF_LLAMA),
    "clip": ("AutoModelForImageClassification", NESTED, OF_VISION),
    "siglip": ("AutoModelForImageClassification", NESTED, OF_VISION),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_configuration_that_a_row_cannot_read_is_one_sentence(name, monkeypatch):
    model = make(name, monkeypatch, *UNREADABLE[name])
    batches = [{name: tensor for name, tensor in ragged_batches(1)[0].items() if name != "labels"}]
    asked = (
        gnorm.attention_blocks,
        gnorm.cost,
        lambda m: gnorm.remove_heads(m, [[1]]),
        lambda m: gnorm.prune(m, batches),
    )
    for ask in asked:
        with pytest.raises(ValueError, match=f"cannot be read by the row of model_type '{name}'"):
            ask(model)


@pytest.mark.parametrize("name", READ_FROM_ATTENTION)
def test_sizes_that_the_configuration_does_not_give_are_those_of_the_attention_modules(name, monkeypatch):
    model = make(name, monkeypatch, *READ_FROM_ATTENTION[name])
    inputs = trials.runnable(model, [])[0]
    smaller, mask = copy.deepcopy(model), torch.ones_like(gnorm.head_mask_of(model))
    mask[0, 0] = mask[1, 1] = 0
    gnorm.remove_heads(smaller, mask)
    with torch.no_grad(), gnorm.masked(model, mask):
        torch.testing.assert_close(smaller(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)
    lengths = gnorm.engine.trials.examples.usual_lengths(smaller)[:1]
    assert len(gnorm.cost(smaller, batch_sizes=(1,), lengths=lengths, seconds=0.0)) == 1


def test_models_of_the_package_are_believed_and_those_that_others_changed_are_not(monkeypatch):
    model = tiny_model("bert")
    assert is_tested(model)
    assert not is_tested(own(OwnAttention))
    model.bert.encoder.layer[0].attention.self.forward = lambda *given, **options: None
    assert not is_tested(model)
    renamed = tiny_model("electra", embedding_size=16)
    renamed.config.model_type = "bert"
    assert not is_tested(renamed)
    model = tiny_model("roberta")
    monkeypatch.setattr(BertSelfAttention, "forward", OwnAttention.forward)
    assert is_tested(model)
    assert not is_tested(tiny_model("bert"))
    functions = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(functions._local_mapping, "own", lambda *given, **options: None)
    model.config._attn_implementation = "own"
    assert not is_tested(model)


def test_a_model_through_which_no_gradient_flows_is_refused():
    model = tiny_model("bert")
    for parameter in model.classifier.parameters():
        nn.init.zeros_(parameter)
    asked = (gnorm.gnorm_scores, lambda *given: gnorm.prune(*given, progress=False))
    for ask in asked:
        with pytest.raises(ValueError, match="no gradient flows through any head of BertForSequenceClassification"):
            ask(model, ragged_batches(1))
