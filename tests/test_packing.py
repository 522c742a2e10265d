"""Rows of tokens: the same logits and scores as padded texts, whatever the classifier reads."""

import contextlib
import copy

import literal
import pandas as pd
import pytest
import torch
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm.engine.batches import Prepared, forwarding, layer_input_caches, prepare
from gnorm.engine.mask_derivatives import mask_derivatives
from gnorm.engine.packing import NO_CACHE, Packing

MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]])  # unequal rows, one of them empty


class MeanOfTokens(torch.nn.Module):
    """A pooler that reads every token."""

    def forward(self, hidden):
        return hidden.mean(1)


def logits_of(model, prepared, kept=None):
    """(text, class), in the order of the texts."""
    kept = kept or [NO_CACHE] * len(prepared)
    with forwarding(model, prepared) as forward, torch.no_grad():
        found = [(micro.index, forward(micro, of_micro)[0]) for micro, of_micro in zip(prepared, kept, strict=True)]
    index, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits[index.argsort()]


def one_by_one(model, batches):
    """The logits of each text alone, cut to its length."""
    rows = []
    for batch in batches:
        for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            rows.append(model(input_ids=batch["input_ids"][i : i + 1, :length]).logits)
    return torch.cat(rows).detach()


@pytest.mark.parametrize("max_tokens", [None, 1, 20, 40])
def test_a_row_of_tokens_gives_each_text_the_logits_it_has_alone(model, max_tokens):
    batches = ragged_batches()
    prepared = prepare(batches, model, max_tokens=max_tokens)
    assert prepared.packing == Packing(passes=3, first_token=True)
    torch.testing.assert_close(logits_of(model, prepared), one_by_one(model, batches), atol=2e-6, rtol=0)


def test_texts_of_like_length_share_a_rectangle_whatever_their_batches(model):
    texts = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for batch in ragged_batches() for i in (0, 1)]
    (micro,) = prepare(texts, model)
    packed, lengths = micro.packed, [int(text["attention_mask"].sum()) for text in texts]
    assert len(micro.batch_slices) == len(texts) > len(packed.length_groups)
    assert packed.texts_in_groups.item_of.tolist() == sorted(range(len(texts)), key=lambda i: -lengths[i])
    assert [r.width for r in packed.length_groups] == sorted({r.width for r in packed.length_groups}, reverse=True)
    expected = literal.scores(copy.deepcopy(model), texts).log()
    torch.testing.assert_close(gnorm.gnorm_scores(model, texts), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_for_wide_texts_and_the_weights_of_short_ones_agree(model, dtype, monkeypatch):
    model, batches = model.to(dtype), ragged_batches()
    gnorm.remove_heads(model, MASK[: len(gnorm.attention_blocks(model))])
    tolerance = {"atol": 1e-4 if dtype == torch.float32 else 1e-12, "rtol": 0}
    by_weights = gnorm.gnorm_scores(model, batches), logits_of(model, prepare(batches, model))
    monkeypatch.setattr(gnorm.engine.attention, "EXPLICIT_ATTENTION_TOKENS", 0)
    monkeypatch.setattr(gnorm.engine.attention, "_ExplicitAttention", None)
    torch.testing.assert_close(gnorm.gnorm_scores(model, batches), by_weights[0], **tolerance)
    torch.testing.assert_close(logits_of(model, prepare(batches, model)), by_weights[1], **tolerance)


@pytest.mark.parametrize("gone", [gnorm.masked, None])
def test_unequal_and_empty_blocks_are_packed_too(model, gone):
    batches, mask = ragged_batches(), MASK[: len(gnorm.attention_blocks(model))]
    prepared = prepare(batches, model)
    if gone:
        with gnorm.masked(model, mask):
            torch.testing.assert_close(logits_of(model, prepared), one_by_one(model, batches), atol=2e-6, rtol=0)
    else:
        gnorm.remove_heads(model, mask)
        torch.testing.assert_close(logits_of(model, prepared), one_by_one(model, batches), atol=2e-6, rtol=0)


def test_a_classifier_that_reads_every_token_gets_padded_texts():
    model = tiny_model("bert")
    model.bert.pooler = MeanOfTokens()
    generator = torch.Generator().manual_seed(5)
    batches = [
        {
            "input_ids": (ids := torch.randint(3, 120, (4, 9), generator=generator)),
            "attention_mask": torch.ones_like(ids),
        }
        for _ in range(2)
    ]
    prepared = prepare(batches, model)
    assert prepared.packing is None
    torch.testing.assert_close(logits_of(model, prepared), one_by_one(model, batches), atol=2e-6, rtol=0)
    expected = literal.scores(copy.deepcopy(model), batches).log()
    torch.testing.assert_close(gnorm.gnorm_scores(model, prepared), expected, atol=1e-4, rtol=0)


def test_a_model_that_is_not_packed_scores_the_same(model):
    batches = ragged_batches()
    expected = gnorm.gnorm_scores(model, batches)
    model._supports_attention_backend = False
    prepared = prepare(batches, model)
    assert prepared.packing is None
    torch.testing.assert_close(gnorm.gnorm_scores(model, prepared), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(model, prepared), one_by_one(model, batches), atol=2e-6, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_by_masks_of_packed_texts_are_those_of_padded_ones(model, masked):
    model, batches = model.double(), ragged_batches()
    batches[0]["labels"][1] = -100
    mask = MASK[: len(gnorm.attention_blocks(model))]
    if not masked:
        gnorm.remove_heads(model, mask)
    packed = prepare(batches, model)
    with gnorm.masked(model, mask) if masked else contextlib.nullcontext():
        padded = Prepared([part for micro in packed for part in micro.padded], None)
        found = [in_order(mask_derivatives(model, gnorm.attention_blocks(model), p)) for p in (packed, padded)]
    assert packed.packing
    for of_packed, of_padded in zip(*found, strict=True):
        torch.testing.assert_close(of_packed, of_padded, atol=1e-14, rtol=1e-9)
    assert torch.cat(found[0], 1).any(1).tolist() == [i != 1 for i in range(13)]  # text 1 does not count


def in_order(derivatives):
    """[(text, kept head)] of each layer, texts in the order in which they were given."""
    micro_batches, of_layers = zip(*derivatives, strict=True)
    index = torch.cat([micro.index for micro in micro_batches])
    return [torch.cat(of_layer)[index.argsort()] for of_layer in zip(*of_layers, strict=True)]


@pytest.mark.parametrize("explicit_tokens", [128, 0])
@pytest.mark.parametrize("gone", [None, [[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]], torch.zeros(3, 4).tolist()])
def test_a_bias_by_position_goes_packed_and_is_that_of_each_text_alone(gone, explicit_tokens, monkeypatch):
    monkeypatch.setattr(gnorm.engine.attention, "EXPLICIT_ATTENTION_TOKENS", explicit_tokens)
    model, batches = tiny_model("mpnet").double(), ragged_batches()
    torch.nn.init.normal_(model.mpnet.encoder.relative_attention_bias.weight)
    if gone:
        gnorm.remove_heads(model, gone)
    prepared = prepare(batches, model)
    assert prepared.packing == Packing(passes=3, in_tuples=True)
    exactly = {"atol": 1e-12, "rtol": 0}
    caches = layer_input_caches(model, prepared)
    for _ in range(2):  # the second pass starts at the last layer
        torch.testing.assert_close(logits_of(model, prepared, caches), one_by_one(model, batches), **exactly)
    ways = gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.criteria.head_importance
    packed = [scores(model, prepared) for scores in ways]
    monkeypatch.setattr(gnorm.engine.known_models, "OWN_ATTENTION", ())
    padded = prepare(batches, model)
    assert padded.packing is None
    for scores, expected in zip(ways, packed, strict=True):
        torch.testing.assert_close(scores(model, padded), expected, **exactly)


def test_attention_of_ones_own_is_noticed_and_not_packed():
    model = tiny_model("bert")
    attention = model.bert.encoder.layer[1].attention.self
    whole = attention.forward
    attention.forward = lambda hidden, *arguments, **options: whole(hidden.flip(1), *arguments, **options)
    assert prepare(ragged_batches(1), model).packing is None


def test_an_exception_leaves_no_hook_and_the_attention_as_it_was():
    model, batches = tiny_model("bert"), ragged_batches()
    prepared, before = prepare(batches, model), model.config._attn_implementation
    handle = model.bert.encoder.layer[1].output.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        gnorm.gnorm_scores(model, prepared)
    handle.remove()
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("room", ["all layers", "every second layer"])
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_layers_below_the_head_that_went_are_not_run_again_and_nothing_changes(name, room, monkeypatch):
    model, steps = tiny_model(name), [(2, 1), (1, 3), (2, 0), (0, 2), (2, 2), (2, 3), (1, 0), (1, 1), (1, 2)]
    prepared = prepare(ragged_batches(), model, together=True, max_tokens=40)
    assert len(prepared) > 1
    if room != "all layers":
        tokens = sum(int(micro.lengths.sum()) for micro in prepared)
        monkeypatch.setattr(gnorm.engine.batches, "CACHE_BYTES", tokens * 32 * 4 * 2)
    kept, ran, mask = layer_input_caches(model, prepared), [], gnorm.head_mask_of(model)
    layers = model.base_model.encoder.layer
    for number, layer in enumerate(layers):
        layer.intermediate.register_forward_hook(lambda *_, number=number: ran.append(number))
    logits_of(model, prepared, kept)
    for layer, head in steps:
        mask[layer, head] = False
        gnorm.remove_heads(model, mask)
        for of_micro in kept:
            of_micro.forget(above=layer)
        ran.clear()
        found = logits_of(model, prepared, kept)
        start = layer if room == "all layers" else layer // 2 * 2
        assert ran == [*range(start, 3)] * len(prepared)
        assert torch.equal(found, logits_of(model, prepared))  # not close: the same
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("method", ["greedy_gnorm", "attention_entropy", "random"])
def test_trajectories_are_the_same_with_nothing_kept(model, method, monkeypatch):
    texts = ragged_batches(), ragged_batches(count=4, seed=7)
    found = gnorm.prune(model, *texts, method=method, progress=False)
    monkeypatch.setattr(gnorm.pruning, "layer_input_caches", lambda _, prepared: [NO_CACHE] * len(prepared))
    expected = gnorm.prune(model, *texts, method=method, progress=False)
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert (found.correct == expected.correct).all()


def test_nothing_is_kept_of_layers_that_share_a_block_and_of_padded_texts():
    for model in (tiny_model("albert"), tiny_model("bert")):
        model._supports_attention_backend = model.config.model_type == "albert"
        prepared = prepare(ragged_batches(), model)
        assert layer_input_caches(model, prepared) == [NO_CACHE] * len(prepared)


def test_an_exception_leaves_every_layer_its_own_forward():
    model = tiny_model("bert")
    prepared, (first, _, last) = prepare(ragged_batches(1), model), model.bert.encoder.layer
    own = first.forward = first.forward  # somebody's wrapper
    kept = layer_input_caches(model, prepared)
    logits_of(model, prepared, kept)
    last.output.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits_of(model, prepared, kept)
    assert first.forward is own
    assert "forward" not in vars(last)


class Unseen(torch.nn.Module):
    """A projection that uses its layer's weights without calling it."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, hidden):
        return torch.nn.functional.linear(hidden, self.linear.weight, self.linear.bias)


def test_a_projection_that_is_never_called_is_named(monkeypatch):
    model = tiny_model("bert")
    for layer in model.bert.encoder.layer:
        layer.attention.self.key = Unseen(layer.attention.self.key)
    monkeypatch.setattr(gnorm.heads, "FAMILIES", dict(gnorm.heads.FAMILIES))
    names = ("self.query", "self.key.linear", "self.value", "output.dense")
    gnorm.register("bert", "encoder.layer.*.attention", *names)
    with pytest.raises(ValueError, match="the key projection of BertSelfAttention is never called"):
        gnorm.gnorm_scores(model, ragged_batches(1))


def test_embeddings_of_batches_of_different_widths_are_padded_like_ids(model):
    batches = ragged_batches()
    assert len({batch["input_ids"].shape[1] for batch in batches}) > 1
    embed = model.get_input_embeddings()
    embedded = [
        {"inputs_embeds": embed(batch["input_ids"]).detach(), "attention_mask": batch["attention_mask"]}
        for batch in batches
    ]
    torch.testing.assert_close(
        gnorm.gnorm_scores(model, embedded), gnorm.gnorm_scores(model, batches), atol=1e-4, rtol=0
    )


def test_a_model_that_gives_tuples_and_ids_that_are_none_are_refused():
    model, batch = tiny_model("bert"), ragged_batches(1)[0]
    for ids in (batch["input_ids"].float(), batch["input_ids"][:, 0]):
        with pytest.raises(ValueError, match=r"the token ids of batch 0 are .*: they must be whole numbers"):
            gnorm.gnorm_scores(model, [{"input_ids": ids}])
    model.config.return_dict = False
    with pytest.raises(ValueError, match="gives no logits, .*: set config.return_dict to True"):
        gnorm.gnorm_scores(model, [batch])
