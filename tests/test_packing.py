"""Rows of tokens: the same logits and scores as padded texts, whatever the classifier reads."""

import contextlib
import dataclasses

import literal
import models
import pytest
import torch
import transformers
from crosses import one_by_all
from precision import close, close_logs, close_tables
from tiny import FAMILIES, SIZES, ragged_batches, tiny_model

import gnorm
from gnorm.engine.backward.mask_derivatives import mask_derivatives
from gnorm.engine.forward.packing import NO_CACHE, Packing
from gnorm.engine.forwarding import layer_input_caches, passes
from gnorm.engine.model import families
from gnorm.engine.model.known_models import packable
from gnorm.engine.model.subject import Subject
from gnorm.engine.texts.batches import Prepared, prepare

MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]])  # unequal rows, one of them empty


class MeanOfTokens(torch.nn.Module):
    """A pooler that reads every token."""

    def forward(self, hidden):
        return hidden.mean(1)


def logits_of(model, prepared, kept=None):
    """(text, class), in the order of the texts."""
    kept = kept or [NO_CACHE] * len(prepared)
    with passes(prepared.of(Subject(model))) as forward:
        found = [(micro.index, forward(micro, of_micro)[0]) for micro, of_micro in zip(prepared, kept, strict=True)]
    index, logits = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits[index.argsort()]


def one_by_one(model, batches):
    """The logits of each text alone, cut to its length."""
    with torch.no_grad():
        return torch.cat([literal.forward(model, text) for text in literal.texts(batches)])


@pytest.mark.parametrize("max_tokens", [None, 1, 20, 40])
def test_a_row_of_tokens_gives_each_text_the_logits_it_has_alone(model, max_tokens):
    batches = ragged_batches()
    prepared = prepare(batches, model, max_tokens=max_tokens)
    assert prepared.packing == Packing(passes=3, first_token=True)
    close(logits_of(model, prepared), one_by_one(model, batches))


def test_texts_of_like_length_share_a_rectangle_whatever_their_batches(model):
    texts = [{name: tensor[i : i + 1] for name, tensor in batch.items()} for batch in ragged_batches() for i in (0, 1)]
    (micro,) = prepare(texts, model)
    packed, lengths = micro.packed, [int(text["attention_mask"].sum()) for text in texts]
    assert len(micro.batch_slices) == len(texts) > len(packed.length_groups)
    assert packed.texts_in_groups.item_of.tolist() == sorted(range(len(texts)), key=lambda i: -lengths[i])
    assert [r.width for r in packed.length_groups] == sorted({r.width for r in packed.length_groups}, reverse=True)
    expected = literal.products(model, texts).log()
    close_logs(gnorm.gnorm_scores(model, texts), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_for_wide_texts_and_the_weights_of_short_ones_agree(model, dtype, monkeypatch):
    model, batches = model.to(dtype), ragged_batches()
    gnorm.remove_heads(model, MASK[: len(gnorm.attention_blocks(model))])
    by_weights = gnorm.gnorm_scores(model, batches), logits_of(model, prepare(batches, model))
    monkeypatch.setattr(gnorm.engine.forward.attention, "EXPLICIT_ATTENTION_TOKENS", 0)
    monkeypatch.setattr(gnorm.engine.forward.attention, "_ExplicitAttention", None)
    close_logs(gnorm.gnorm_scores(model, batches), by_weights[0], dtype)
    close(logits_of(model, prepare(batches, model)), by_weights[1], dtype)


@pytest.mark.parametrize("gone", [gnorm.masked, None])
def test_unequal_and_empty_blocks_are_packed_too(model, gone):
    batches, mask = ragged_batches(), MASK[: len(gnorm.attention_blocks(model))]
    prepared = prepare(batches, model)
    if gone:
        with gnorm.masked(model, mask):
            close(logits_of(model, prepared), one_by_one(model, batches))
    else:
        gnorm.remove_heads(model, mask)
        close(logits_of(model, prepared), one_by_one(model, batches))


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
    close(logits_of(model, prepared), one_by_one(model, batches))
    expected = literal.products(model, batches).log()
    close_logs(gnorm.gnorm_scores(model, prepared), expected)


def test_a_model_that_is_not_packed_scores_the_same(model):
    batches = ragged_batches()
    expected = gnorm.gnorm_scores(model, batches)
    model._supports_attention_backend = False
    prepared = prepare(batches, model)
    assert prepared.packing is None
    close_logs(gnorm.gnorm_scores(model, prepared), expected)
    close(logits_of(model, prepared), one_by_one(model, batches))


@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_by_masks_of_packed_texts_are_those_of_padded_ones(model, masked):
    model, batches = model.double(), ragged_batches()
    batches[0]["labels"][1] = -100
    mask = MASK[: len(gnorm.attention_blocks(model))]
    if not masked:
        gnorm.remove_heads(model, mask)
    packed = prepare(batches, model)
    with gnorm.masked(model, mask) if masked else contextlib.nullcontext():
        padded = Prepared([part for micro in packed for part in micro.padded], None, packed.subject)
        found = [in_order(mask_derivatives(p)) for p in (packed, padded)]
    assert packed.packing
    for of_packed, of_padded in zip(*found, strict=True):
        close(of_packed, of_padded, torch.float64)
    assert torch.cat(found[0], 1).any(1).tolist() == [i != 1 for i in range(13)]  # text 1 does not count


def in_order(derivatives):
    """[(text, kept head)] of each layer, texts in the order in which they were given."""
    micro_batches, of_layers = zip(*derivatives, strict=True)
    index = torch.cat([micro.index for micro in micro_batches])
    return [torch.cat(of_layer)[index.argsort()] for of_layer in zip(*of_layers, strict=True)]


@pytest.mark.parametrize("explicit_tokens", [128, 0])
@pytest.mark.parametrize("gone", [None, [[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 1]], torch.zeros(3, 4).tolist()])
def test_a_bias_by_position_goes_packed_and_is_that_of_each_text_alone(gone, explicit_tokens, monkeypatch):
    monkeypatch.setattr(gnorm.engine.forward.attention, "EXPLICIT_ATTENTION_TOKENS", explicit_tokens)
    model, batches = tiny_model("mpnet").double(), ragged_batches()
    torch.nn.init.normal_(model.mpnet.encoder.relative_attention_bias.weight)
    if gone:
        gnorm.remove_heads(model, gone)
    prepared = prepare(batches, model)
    assert dataclasses.replace(prepared.packing, in_tuple=0) == Packing(passes=3)
    caches = layer_input_caches(prepared)
    for _ in range(2):  # the second pass starts at the last layer
        close(logits_of(model, prepared, caches), one_by_one(model, batches), torch.float64)
    ways = gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.criteria.head_importance
    packed = [scores(model, prepared) for scores in ways]
    monkeypatch.setattr(gnorm.engine.model.known_models, "OWN_ATTENTION", ())
    padded = prepare(batches, model)
    assert padded.packing is None
    for scores, expected in zip(ways, packed, strict=True):
        close(scores(model, padded), expected, torch.float64)


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
    with pytest.raises(ValueError, match="ZeroDivisionError"):
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
        monkeypatch.setattr(gnorm.engine.forwarding, "CACHE_BYTES", tokens * 32 * 4 * 2)
    kept, ran, mask = layer_input_caches(prepared), [], gnorm.head_mask_of(model)
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


@pytest.mark.parametrize(("family", "method"), one_by_all(FAMILIES, ("greedy_gnorm", "attention_entropy", "random")))
def test_trajectories_are_the_same_with_nothing_kept(family, method, monkeypatch):
    model, texts = tiny_model(family), (ragged_batches(), ragged_batches(count=4, seed=7))
    found = gnorm.prune(model, *texts, method=method, progress=False)
    monkeypatch.setattr(gnorm.pruning, "layer_input_caches", lambda prepared: [NO_CACHE] * len(prepared))
    expected = gnorm.prune(model, *texts, method=method, progress=False)
    close_tables(found.table, expected.table, logs=method == "greedy_gnorm")
    assert (found.correct == expected.correct).all()


def test_nothing_is_kept_of_layers_that_share_a_block_and_of_padded_texts():
    for model in (tiny_model("albert"), tiny_model("bert")):
        model._supports_attention_backend = model.config.model_type == "albert"
        prepared = prepare(ragged_batches(), model)
        assert layer_input_caches(prepared) == [NO_CACHE] * len(prepared)


def test_an_exception_leaves_every_layer_its_own_forward():
    model = tiny_model("bert")
    prepared, (first, _, last) = prepare(ragged_batches(1), model), model.bert.encoder.layer
    own = first.forward = first.forward  # somebody's wrapper
    kept = layer_input_caches(prepared)
    logits_of(model, prepared, kept)
    last.output.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ValueError, match="ZeroDivisionError"):
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
    monkeypatch.setitem(families.FAMILIES, "bert", families.FAMILIES["bert"])
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
    close_logs(gnorm.gnorm_scores(model, embedded), gnorm.gnorm_scores(model, batches))


def test_a_model_that_gives_tuples_and_ids_that_are_none_are_refused():
    model, batch = tiny_model("bert"), ragged_batches(1)[0]
    for ids in (batch["input_ids"].float(), batch["input_ids"][:, 0]):
        with pytest.raises(ValueError, match=r"the token ids of batch 0 are .*: they must be whole numbers"):
            gnorm.gnorm_scores(model, [{"input_ids": ids}])
    model.config.return_dict = False
    with pytest.raises(ValueError, match="gives no logits, .*: set config.return_dict to True"):
        gnorm.gnorm_scores(model, [batch])


TWO = {"input_ids": torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])}  # texts of 4 tokens


@pytest.mark.parametrize(
    ("kind", "family", "changes", "complaint"),
    [
        ("AutoModelForPreTraining", "electra", {}, r"shape \(2, 4\), not \(text 2, class 3\): load it as a sequence"),
        ("AutoModelForPreTraining", "electra", {"num_labels": 4}, r"\(2, 4\), not .* load it as a sequence classifier"),
        ("AutoModelForNextSentencePrediction", "bert", {}, r"\(2, 2\), not \(text 2, class 3\): .*num_labels to 2 if"),
    ],
)
def test_logits_of_other_sizes_than_texts_and_classes_are_refused(kind, family, changes, complaint):
    config = transformers.AutoConfig.for_model(family, **{**SIZES, "embedding_size": 16, **changes})
    with pytest.raises(ValueError, match=complaint) as caught:
        gnorm.gnorm_scores(getattr(transformers, kind).from_config(config).eval(), [TWO])
    assert str(caught.value).endswith(".")


class WithPrompt(transformers.BertForTokenClassification):
    """Its logits begin with those of two tokens that it puts before each text."""

    def forward(self, **inputs):
        output = super().forward(**inputs)
        output.logits = torch.nn.functional.pad(output.logits, (0, 0, 2, 0))
        return output


def test_logits_of_other_tokens_than_those_of_the_texts_are_refused():
    config = transformers.AutoConfig.for_model("bert", **SIZES)
    with pytest.raises(ValueError, match=r"\(2, 6, 3\), not \(text 2, token 4, class 3\): correct its forward\."):
        gnorm.gnorm_scores(WithPrompt(config).eval(), [TWO])


RELATIVE = {"relative_attention": True, "position_buckets": 4}
CLASSIFIERS = {  # family of tests/models.py -> further options of its configuration
    "deberta-v2, keys shared": ("deberta-v2", RELATIVE | {"share_att_key": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": ("deberta-v2", RELATIVE | {"pos_att_type": ["c2p"]}),
    "modernbert": ("modernbert", {"local_attention": 64, "classifier_pooling": "cls"}),
    "modernbert, mean": ("modernbert", {"local_attention": 64, "classifier_pooling": "mean"}),
    **{name: (name, {}) for name in ("llama", "qwen2", "gpt2", "gpt_neox", "opt")},
}


def classifier(name):
    family, options = CLASSIFIERS[name]
    return models.make(family, transformers.AutoModelForSequenceClassification, **options).double()


def not_packed(monkeypatch):
    """From now on no model is known to be exact when it is packed, or cut."""
    for module, name in (
        ("texts.batches", "packable"),
        ("forward.packing", "packable"),
        ("texts.batches", "ignores_padding"),
    ):
        monkeypatch.setattr(f"gnorm.engine.{module}.{name}", lambda *_: False)


def test_whether_a_model_packs_is_asked_once_a_step(monkeypatch):
    model, asked = tiny_model("bert"), []
    monkeypatch.setattr("gnorm.engine.texts.batches.packable", lambda *given: asked.append(given) or packable(*given))
    gnorm.prune(model, ragged_batches(), ragged_batches(seed=2), steps=3, progress=False)
    assert len([given for given in asked if len(given) == 2]) == 4  # the intact model too


@pytest.mark.parametrize("gone", [None, [[1, 0], [0, 0], [0, 1]]])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_of_every_kind_go_packed_and_give_what_padded_ones_give(name, gone, monkeypatch):
    model, batches = classifier(name), ragged_batches()
    if gone:
        heads = gnorm.head_mask_of(model)
        gnorm.remove_heads(model, heads & torch.tensor(gone).repeat(1, heads.shape[1] // 2)[: len(heads)])
    ways = gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.criteria.head_importance, gnorm.criteria.oracle
    prepared = prepare(batches, model)
    dtype = torch.float32 if models.ROWS[model.config.model_type].in_float32 else torch.float64
    assert prepared.packing
    found, logits = [scores(model, prepared) for scores in ways], logits_of(model, prepared)
    close(logits, one_by_one(model, batches), dtype)
    if not gone:
        close_logs(found[0], literal.products(model, batches).log(), dtype)
    not_packed(monkeypatch)
    padded = prepare(batches, model)
    assert padded.packing is None
    for scores, packed in zip(ways, found, strict=True):
        close(packed, scores(model, padded), dtype)


@pytest.mark.parametrize("name", ["deberta-v2, keys shared", "modernbert", "llama"])
def test_trajectories_of_packed_classifiers_are_those_of_padded_ones(name, monkeypatch):
    model, texts = classifier(name), (ragged_batches(), ragged_batches(count=4, seed=7))
    packed = gnorm.prune(model, *texts, progress=False)
    not_packed(monkeypatch)
    close_tables(packed.table, gnorm.prune(model, *texts, progress=False).table, torch.float64, logs=True)


def test_batches_share_no_pass_where_a_projection_has_inputs_of_none_of_them():
    shared, own = (prepare(ragged_batches(), classifier(name)) for name in ("deberta-v2, keys shared", "deberta-v2"))
    assert shared.packing.by_batch
    assert [[one.batch for one in micro.batch_slices] for micro in shared] == [[0], [1], [2]]
    assert [[one.batch for one in micro.batch_slices] for micro in own] == [[0, 1, 2]]


def altered(batches, **changes):
    return [{**batch, **{name: change(batch[name]) for name, change in changes.items()}} for batch in batches]


@pytest.mark.parametrize(
    ("name", "config", "changes"),
    [
        ("llama", {}, {"input_ids": lambda ids: ids.masked_fill(ids == 1, 2)}),  # the last token is read by its id
        ("llama", {"pad_token_id": None}, {}),
        ("llama", {}, {"attention_mask": lambda mask: mask.index_fill(1, torch.tensor([0]), 0)}),
        ("llama", {"sliding_window": 16}, {}),
        ("modernbert", {"sliding_window": 16}, {}),
        ("deberta-v2", {}, {"attention_mask": lambda mask: mask.index_fill(1, torch.tensor([0]), 0)}),
    ],
)
def test_where_cutting_padding_may_change_something_texts_go_the_plain_way(name, config, changes):
    batches = [batch for batch in ragged_batches() if batch["attention_mask"].shape[1] > 16]
    model = classifier(name)
    assert prepare(batches, model).packing
    for option, value in config.items():
        setattr(model.config, option, value)
    batches = [
        {**batch, "attention_mask": batch["attention_mask"].index_fill(1, torch.tensor([1]), 1)} for batch in batches
    ]
    assert prepare(altered(batches, **changes), model).packing is None
