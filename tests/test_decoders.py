"""Causal language models go packed, with the numbers of the plain way, which all else goes."""

import literal
import models
import pytest
import torch
from precision import close, close_logs, close_tables
from tiny import ragged_batches
from torch import nn
from transformers import AutoModelForCausalLM

import gnorm
from gnorm.criteria import gnorm_by_text, gnorm_cross_entropy, gnorm_margin, head_importance, oracle
from gnorm.engine.forward.packing import Packing
from gnorm.engine.forwarding import layer_input_caches, passes
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.texts.batches import prepare

CAUSAL = [name for name, family in FAMILIES.items() if family.causal]
UNEQUAL = [[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]]


def make(name, auto=AutoModelForCausalLM, **options):
    """A tiny model of three layers in float64. Its norms are those of torch: others round to float32 between."""
    fits = {"sliding_window": 40, "no_rope_layers": None}  # as wide as the texts, of as many layers
    given = {option: fits[option] for option in fits.keys() & models.ROWS[name].config.keys()}
    model = models.make(name, auto, **{"num_hidden_layers": 3, **given, **options}).double()
    for path, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
            norm = nn.RMSNorm(len(module.weight), eps=eps, dtype=torch.float64)
            norm.weight.data.copy_(module.weight + ("Gemma" in type(module).__name__))
            model.set_submodule(path, norm)
    return model


def texts(hole=True, **options):
    """Batches whose labels are their ids. hole: a token within one text is masked."""
    batches = ragged_batches(**options)
    batches[1]["attention_mask"][0, 1] -= int(hole)
    return [{**b, "labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in batches]


def ways(model, batches, **options):
    """The batches prepared packed, and in their own width."""
    packed = prepare(batches, model, **options)
    model._supports_attention_backend = False
    padded = prepare(batches, model, **options)
    del model._supports_attention_backend
    assert packed.packing == Packing(passes=3, first_token=False, causal=True, of_tokens=True)
    assert padded.packing is None
    return packed, padded


def cut(model, mask):
    if mask:
        heads = gnorm.head_mask_of(model).shape[1]
        gnorm.remove_heads(model, [row[:heads] for row in mask])
    return model


@pytest.mark.parametrize("name", CAUSAL)
def test_packed_texts_give_what_padded_ones_give(name):
    model = cut(make(name), UNEQUAL)
    packed, padded = ways(model, texts())
    assert len(packed) < len(padded)
    for scores in (gnorm.gnorm_scores, head_importance):
        expected = scores(model, padded)
        assert expected.isfinite().any()
        close(scores(model, packed), expected, torch.float64)


@pytest.mark.parametrize("explicit_tokens", [128, 0])
@pytest.mark.parametrize("mask", [None, UNEQUAL, torch.zeros(3, 4).tolist()])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_whatever_looks_at_a_model_sees_the_same(name, mask, explicit_tokens, monkeypatch):
    monkeypatch.setattr(gnorm.engine.forward.attention, "EXPLICIT_ATTENTION_TOKENS", explicit_tokens)
    model = cut(make(name), mask)
    packed, padded = ways(model, texts(), max_tokens=40)  # batches are cut, in parts of unequal width
    for scores in (gnorm.gnorm_scores, gnorm_cross_entropy, gnorm_margin, gnorm_by_text, oracle):
        close(scores(model, packed), scores(model, padded), torch.float64)
    close(gnorm.activation_energy(model, packed), gnorm.activation_energy(model, padded), torch.float64)
    # transformers' own weights are rounded to float32
    close(gnorm.attention_entropy(model, packed), gnorm.attention_entropy(model, padded))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_those_of_plain_autograd(name):
    model, batches = make(name), texts()
    expected = literal.products(model, batches).log()
    close_logs(gnorm.gnorm_scores(model, batches), expected, torch.float64)


def test_a_pass_starts_at_the_layer_that_changed():
    model = make("llama")
    prepared = prepare(texts(), model, together=True)
    caches, ran = layer_input_caches(prepared), []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.act_fn.register_forward_hook(lambda *_, number=number: ran.append(number))
    with passes(prepared) as forward:
        whole = [forward(micro, cache)[0] for micro, cache in zip(prepared, caches, strict=True)]
        for cache in caches:
            cache.forget(above=1)
        ran.clear()
        again = [forward(micro, cache)[0] for micro, cache in zip(prepared, caches, strict=True)]
    assert ran == [1, 2] * len(prepared)
    assert all(map(torch.equal, whole, again))


@pytest.mark.parametrize("method", ["greedy_gnorm", "head_importance"])
def test_a_trajectory_takes_the_same_heads_in_the_same_order(method):
    model, batches, held_out = make("gpt2"), texts(), texts(hole=False, seed=7)
    packed = gnorm.prune(model, batches, held_out, method=method, progress=False).table
    model._supports_attention_backend = False
    padded = gnorm.prune(model, batches, held_out, method=method, progress=False).table
    assert len(packed) == 13
    close_tables(packed, padded, torch.float64, logs=method == "greedy_gnorm")


def test_a_function_of_ones_own_gets_predictions_as_wide_as_the_labels():
    model, batches = make("llama"), texts(hole=False)
    wide = [
        {
            name: nn.functional.pad(t, (0, 30 - t.shape[1]), value={"labels": -100, "input_ids": 1}.get(name, 0))
            for name, t in batch.items()
        }
        for batch in batches
    ]
    seen = []

    def rate(predictions, labels):
        seen.append((predictions, labels))
        return (predictions == labels)[labels != -100].mean()

    for prepared in ways(model, wide, together=True):
        gnorm.measure(model, prepared, rate)
    for (predictions, labels), width in zip(seen, (29, 29), strict=True):
        assert predictions.shape == labels.shape == (13, width)
    assert (seen[0][0] == seen[1][0]).all()


def altered(**values):
    return lambda: [{**batch, **{name: make(batch) for name, make in values.items()}} for batch in texts()]


LEFT = altered(
    attention_mask=lambda batch: batch["attention_mask"].flip(1),
    input_ids=lambda batch: batch["input_ids"].flip(1),
    labels=lambda batch: batch["labels"].flip(1),
)
PLAIN = {
    "padding on the left": ({}, LEFT),
    "labels of padding": ({}, altered(labels=lambda batch: batch["input_ids"])),
    "a window": ({"sliding_window": 10}, texts),
    "frequencies by length": (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}, "sliding_window": None},
        texts,
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_may_differ_goes_the_plain_way(case):
    options, batches = PLAIN[case]
    prepared = prepare(batches(), make("mistral", **options))
    assert prepared.packing is None
    assert [micro.inputs["input_ids"].shape for micro in prepared] == [b["input_ids"].shape for b in batches()]


def test_texts_prepared_for_a_wide_window_are_prepared_anew_for_a_narrow_one():
    narrow, batches = make("mistral", sliding_window=6), texts()
    prepared = prepare(batches, make("mistral"))
    assert prepared.packing is not None
    assert torch.equal(gnorm.gnorm_scores(narrow, prepared), gnorm.gnorm_scores(narrow, batches))


class Anew:
    """Batches that are read anew for every pass."""

    def __iter__(self):
        return iter(texts())


def test_a_stream_goes_packed_too():
    model = make("llama")
    assert prepare(Anew(), model).packing is not None
    close(head_importance(model, Anew()), head_importance(model, texts()), torch.float64)


def test_texts_without_a_mask_and_models_that_were_altered_go_the_plain_way():
    model, batches = make("llama"), texts()
    bare = [{"input_ids": batch["input_ids"]} for batch in batches]
    assert prepare(bare, model).packing is None
    hook = model.model.layers[1].register_forward_hook(lambda _, __, hidden: hidden.flip(1))
    assert prepare(batches, model).packing is None
    hook.remove()
    assert prepare(batches, model).packing is not None
    model.model.layers[0].self_attn.is_causal = False
    assert prepare(batches, model).packing is None
    del model.model.layers[0].self_attn.is_causal
    model.lm_head = nn.Sequential(model.lm_head)
    assert prepare(batches, model).packing is None


def padded_in_front(batch):
    """The batch with each text moved to the end of its row, as tokenizers of decoders pad."""
    moved = {name: tensor.clone() for name, tensor in batch.items()}
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        for tensor in moved.values():
            tensor[row] = tensor[row].roll(tensor.shape[1] - length)
    return moved


@pytest.mark.parametrize(
    ("method", "metric"),
    [("greedy_gnorm", "perplexity"), ("greedy_gnorm", "token_accuracy"), ("head_importance", "perplexity")],
)
def test_padding_in_front_changes_nothing_where_positions_are_relative(method, metric):
    """The first token of a text is predicted from nothing, wherever it stands."""
    model, behind = make("llama"), texts(hole=False)
    in_front = [padded_in_front(batch) for batch in behind]
    of_both = [
        gnorm.prune(model, batches, method=method, metric=metric, steps=3, progress=False).table
        for batches in (behind, in_front)
    ]
    close_tables(*of_both, logs=method == "greedy_gnorm")  # rotations by position are computed in fp32


def test_a_token_behind_one_that_is_masked_is_not_counted():
    model, batches = make("gpt2"), texts()
    without = [{**batch, "labels": batch["labels"].clone()} for batch in batches]
    without[1]["labels"][0, 2] = -100
    assert gnorm.measure(model, batches) == gnorm.measure(model, without) > 1
