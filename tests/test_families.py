"""Every family on a tiny model of each row of ``models``: held against plain autograd and masks by hand."""

import copy

import literal
import models
import pytest
import torch
from models import BY_HAND, GENERATORS, GROUPED, OF_GPT2, ROWS, SIZES, batches_of, make, random_masks
from precision import close, close_logs, close_tables, differ
from tiny import ragged_batches, without_elements
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    ContinuousBatchingConfig,
    GenerationConfig,
)

import gnorm
from gnorm.criteria.of_loss import head_importance
from gnorm.criteria.of_outputs import flap, output_norm, weight_magnitude
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.model.known_models import ignores_padding
from gnorm.engine.texts.batches import prepare
from gnorm.engine.texts.micro_batches import MAX_TOKENS


@pytest.fixture(params=BY_HAND)
def name(request):
    return request.param


def logits(model, batch):
    """The logits of a batch, without those of padding."""
    with torch.no_grad():
        return literal.forward(model, batch)


def zeroed(model, mask):
    """A copy whose output projections read nothing of the heads that ``mask`` takes out."""
    model = copy.deepcopy(model)
    for block, row in zip(literal.blocks(model), mask, strict=True):
        block[3].zero(~row)
    return model


def test_every_family_has_a_row():
    assert {models.family_of(name) for name in ROWS} == set(FAMILIES)


def test_blocks_are_the_projections_of_the_model(name):
    model = make(name)
    blocks = gnorm.attention_blocks(model)
    assert [(b.query, b.key, b.value, b.output) for b in blocks] == literal.projections(model)
    heads, (_, key, *_) = literal.heads_of(model), literal.blocks(model)[0]
    assert {(b.num_heads, b.head_dim, b.kept) for b in blocks} == {(heads, key.rows.shape[1], tuple(range(heads)))}


def test_order_and_scores_equal_those_of_a_literal_loop_to_the_last_head(name):
    """The scores of every step are products of norms by plain autograd; a head goes by zeroing its weights."""
    model = make(name)
    equals_the_literal_loop(model, batches_of(model), 2)


@pytest.mark.soak
def test_order_and_scores_are_those_of_a_literal_loop_head_by_head(name):
    model = make(name)
    equals_the_literal_loop(model, batches_of(model, 3), 1)


def equals_the_literal_loop(model, batches, heads_per_step):
    run = gnorm.prune(model, batches, heads_per_step=heads_per_step, progress=False)
    order, scores, _ = literal.prune(model, batches, None, rescore_every=heads_per_step)
    assert run.order() == order
    close_logs(run.table.score[1:], torch.tensor(scores).log())
    if run.metric.name == "accuracy":
        assert run.table.accuracy.iloc[-1] == literal.accuracy(model, batches)


def masked_equals_removed_equals_reloaded(model, batches, mask, folder=None):
    """The logits, scores and mask of a model under ``mask``, without the heads, and loaded from ``folder``."""
    smaller, before = copy.deepcopy(model), logits(model, batches[0])
    differ(expected := logits(zeroed(model, mask), batches[0]), before)
    with gnorm.masked(model, torch.ones_like(mask)):
        assert torch.equal(logits(model, batches[0]), before)
    with gnorm.masked(model, mask):
        close(logits(model, batches[0]), expected)
        scores = gnorm.gnorm_scores(model, batches) if folder else None
    gnorm.remove_heads(smaller, mask)
    close(logits(smaller, batches[0]), expected)
    assert torch.equal(gnorm.head_mask_of(smaller), mask)
    if not folder:
        return smaller
    close_logs(gnorm.gnorm_scores(smaller, batches)[mask], scores[mask])
    reloaded = gnorm.load_pruned(gnorm.save_pruned(smaller, folder))
    assert not without_elements(smaller) + without_elements(reloaded)
    weights = reloaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in smaller.state_dict().items())
    # the file's weights may lie in memory otherwise aligned, and a product of them be rounded otherwise
    close(logits(reloaded, batches[0]), expected)
    assert torch.equal(gnorm.head_mask_of(reloaded), mask)
    for block, other in zip(gnorm.attention_blocks(smaller), gnorm.attention_blocks(reloaded), strict=True):
        if not block.kept:
            assert not any(type(module).__name__ in ("Linear", "Conv1D") for module in block.owner.modules())
        counted = block.queries_per_head * len(block.kept)
        sizes = dict.fromkeys(("num_attention_heads", "num_heads", "n_heads"), counted)
        for attribute, size in (sizes | {"all_head_size": counted * block.head_dim}).items():
            assert getattr(block.module, attribute, size) == getattr(other.module, attribute, size) == size
    return reloaded


def test_masked_equals_removed_equals_reloaded(name, tmp_path):
    model = make(name)
    batches, (mask, *more) = batches_of(model), random_masks(gnorm.head_mask_of(model).shape)
    for other in (*more, torch.zeros_like(mask)):
        masked_equals_removed_equals_reloaded(model, batches, other)
    smaller = masked_equals_removed_equals_reloaded(model, batches, mask, tmp_path / "model")
    for criterion in (gnorm.attention_entropy, gnorm.activation_energy, head_importance, output_norm, weight_magnitude):
        found = criterion(smaller, batches)
        assert bool(found[mask].isfinite().all())
        assert bool(found[~mask].isneginf().all())
    if FAMILIES[models.family_of(name)].feed_forward:
        before = logits(smaller, batches[0])
        with gnorm.without_feed_forward(smaller):
            assert not torch.equal(logits(smaller, batches[0]), before)
        assert torch.equal(logits(smaller, batches[0]), before)


@pytest.mark.soak
@pytest.mark.parametrize("which", range(3))
def test_every_mask_is_saved_and_loaded(name, which, tmp_path):
    model = make(name)
    masks = random_masks(shape := gnorm.head_mask_of(model).shape)
    mask = [*masks, torch.zeros(shape).bool(), torch.arange(shape[1]).expand(shape) == shape[1] - 1][which]
    if mask.all():
        pytest.skip("the only head of each layer is the last one")
    masked_equals_removed_equals_reloaded(model, batches_of(model), mask, tmp_path / "model")


def test_removal_in_two_steps_with_eager_attention_equals_one(name):
    model = make(name)
    model.set_attn_implementation("eager")
    batch, mask = batches_of(model)[0], random_masks(gnorm.head_mask_of(model).shape)[-1]
    first = torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    with gnorm.masked(model, first & mask):
        expected = logits(model, batch)
    gnorm.remove_heads(model, first)
    with gnorm.masked(model, mask):
        close(logits(model, batch), expected)
    gnorm.remove_heads(model, mask)
    close(logits(model, batch), expected)
    close(logits(copy.deepcopy(model), batch), expected)
    assert torch.equal(gnorm.head_mask_of(model), first & mask)


def test_attentions_are_those_of_the_heads_left_and_their_entropy_is_the_score(name):
    """Asked for its attention weights, a pruned model gives a tensor for every layer, of as many heads as are left."""
    model = make(name)
    batches = batches_of(model, count=1)
    found = gnorm.attention_entropy(model, batches)
    model.set_attn_implementation("eager")
    close(found, literal.entropy(model, batches))
    mask = random_masks(gnorm.head_mask_of(model).shape)[0]
    queries = gnorm.attention_blocks(model)[0].queries_per_head
    gnorm.remove_heads(model, mask)
    with torch.no_grad():
        cut = literal.attentions(model(**literal.inputs_of(batches[0]), output_attentions=True))
    passes = len(cut) // len(mask)  # through a block that is shared
    assert [weights.shape[1] for weights in cut] == (mask.sum(1) * queries).repeat_interleave(passes).tolist()


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_tokens_are_those_of_the_masked_model(name):
    generated_as_under_masks(name, ["growing"])


@pytest.mark.soak
@pytest.mark.parametrize("name", GENERATORS)
def test_generated_tokens_are_those_of_the_masked_model_with_every_cache(name):
    generated_as_under_masks(name, CACHES)


CACHES = {
    "none": {"use_cache": False},
    "growing": {"use_cache": True},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 2, "use_cache": True},
    "beams, static": {"num_beams": 2, "cache_implementation": "static"},
    "prompt in pieces": {"prefill_chunk_size": 2},
    "guessed tokens taken back": {"prompt_lookup_num_tokens": 2},
}


def generated_as_under_masks(name, caches):
    """With layers that are empty, whole and cut, texts padded on the left."""
    whole = make(name, models.auto_of(name, generates=True))
    ids = torch.randint(3, 120, (2, 5), generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    ids = ids.where(real == 1, 1)
    for mask in random_masks(gnorm.head_mask_of(whole).shape):
        model = copy.deepcopy(whole)
        gnorm.remove_heads(model, mask)
        for cache in caches:
            texts = [ids[:1], ids[1:]] if "prompt_lookup_num_tokens" in CACHES[cache] else [ids]
            for inputs, attention_mask in zip(texts, real.split(len(texts[0])), strict=True):
                given = {"input_ids": inputs, "attention_mask": attention_mask, **options, **CACHES[cache]}
                with gnorm.masked(whole, mask):
                    expected = whole.generate(**given)
                assert torch.equal(model.generate(**given), expected), cache


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2/sliding", "t5", "bart"])
def test_every_cache_of_generation_is_right_without_heads(name):
    generated_as_under_masks(name, CACHES)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_continuous_batching_takes_layers_that_keep_every_head_or_none(name):
    """Of others transformers 5.23 raises nothing and gives no tokens, as docs/families.md says."""
    whole = make(name, models.auto_of(name, generates=True))
    whole.set_attn_implementation("sdpa")
    every_or_none, some = random_masks(gnorm.head_mask_of(whole).shape)
    text = torch.tensor([[5, 6, 7]])
    options = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    for mask, error in ((every_or_none, None), (some, "index_copy_()")):
        model = copy.deepcopy(whole)
        gnorm.remove_heads(model, mask)
        (request,) = model.generate_batch(text.tolist(), options, small).values()
        expected = [] if error else model.generate(text, generation_config=options)[0, 3:].tolist()
        assert request.generated_tokens == expected
        assert (request.error and request.error.split(":")[0]) == error
        paged = model.generate(text, options, cache_implementation="paged", continuous_batching_config=small)
        assert paged.flatten().tolist() == [5, 6, 7, *expected]


# ------------------------------------------------------------------------------------------ of some families


def test_images_are_counted_in_tokens_so_that_memory_is_bounded():
    model = make("vit")
    images = {"pixel_values": torch.randn(100, 3, 16, 16), "labels": torch.zeros(100).long()}  # 24 x hidden size each
    sizes = [len(micro.index) for micro in prepare([images, images], model, together=True)]
    assert sum(sizes) == 200
    assert max(sizes) == MAX_TOKENS["cpu"] // 24


def test_grouped_queries_count_by_key_value_head():
    """Sizes, weights and contexts of two key-value heads of a Llama that four query heads each read."""
    model, batches = make("llama"), batches_of("llama")
    block = gnorm.attention_blocks(model)[1]
    assert (block.num_heads, block.queries_per_head, block.head_dim, block.context_dim) == (2, 4, 4, 16)
    attention = model.model.layers[1].self_attn
    of_head = [attention.q_proj.weight[16:], attention.k_proj.weight[4:], attention.v_proj.weight[4:]]
    numbers = torch.cat([w.detach().flatten() for w in (*of_head, attention.o_proj.weight[:, 16:])]).double()
    close_logs(weight_magnitude(model, batches)[1, 1], numbers.norm().log())
    close(gnorm.activation_energy(model, batches), literal.energy(model, batches))
    gnorm.remove_heads(model, [[1, 1], [0, 1]])
    assert torch.equal(attention.q_proj.weight, of_head[0])
    assert attention.o_proj.in_features == 16
    assert bool(flap(model, batches)[1, 1].isfinite())


def test_contexts_of_a_decoder_are_averaged_over_its_own_tokens():
    """The means of cross-attention leave out the padding of the decoder's texts, not that of the encoder's."""
    model, seen = make("bart"), []
    ids = torch.full((2, 6), 9)
    ids[:, -1] = 2  # where the classifier reads
    own = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch |= {"decoder_input_ids": ids.flip(1), "decoder_attention_mask": own}
    cross = gnorm.attention_blocks(model)[-1].output
    handle = cross.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].unflatten(-1, (2, -1))))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    energy = seen[0].square().sum(-1).double()  # (text, token, head)
    expected = (energy[0, :4].mean(0) + energy[1].mean(0)) / 2
    close(gnorm.activation_energy(model, [batch])[-1], expected)


def test_position_bias_of_t5_follows_the_heads_of_each_layer():
    """The first layer makes the bias of all heads and hands it on whole, also where it has no head itself."""
    model, batch = make("t5"), batches_of("t5")[0]
    first, second = (block.layer[0].SelfAttention for block in model.transformer.encoder.block)
    whole = first.compute_bias(5, 5)
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    for mask in ([1, 0], [0, 0]):
        every = torch.ones(6, 2).bool()
        every[0] = torch.tensor(mask).bool()
        every[1] = torch.tensor([0, 1]).bool()
        gnorm.remove_heads(model, every)
        _, handed_on, _ = first(hidden)
        assert torch.equal(handed_on, whole)
        _, handed_on, _ = second(hidden, position_bias=whole)
        assert torch.equal(handed_on, whole)
    assert first.relative_attention_bias.weight.shape[1] == 2
    assert first.n_heads == first.inner_dim == 0
    assert logits(copy.deepcopy(model), batch).shape == (4, 3)


def test_an_encoder_turned_decoder_is_causal_and_keeps_its_padding():
    model = make("bert", is_decoder=True)
    assert len(gnorm.attention_blocks(model)) == 3
    assert ignores_padding(make("bert"))
    assert not ignores_padding(model)


def test_what_a_row_cannot_say_is_refused_by_name():
    with pytest.raises(ValueError, match="attention 2 has 4 query heads .*, attention 0 has 2 and 2; a head mask"):
        gnorm.attention_blocks(make("bart", decoder_attention_heads=4))
    with pytest.raises(ValueError, match="add_cross_attention is set, but the row of model_type 'gpt2' names no cross"):
        gnorm.attention_blocks(make("gpt2", AutoModelForCausalLM, add_cross_attention=True))
    model = make("gpt2")
    model.transformer.h[1].attn.c_attn.weight = model.transformer.h[0].attn.c_attn.weight
    with pytest.raises(ValueError, match="query and key and value projection of layer 1 shares its weight with the"):
        gnorm.attention_blocks(model)
    model = make("gpt_neox")
    model.gpt_neox.layers[1].attention.query_key_value = torch.nn.Linear(32, 90)
    with pytest.raises(ValueError, match="layer 1 has 90 query and key and value rows, its 4 heads of 8 need 96"):
        gnorm.remove_heads(model, torch.ones(2, 4))
    with pytest.raises(ValueError, match="4 query heads share a key"):
        gnorm.engine.backward.gradients.weight_gradients(make("llama"), batches_of("llama"))
    (sound,) = batches_of("wav2vec2", count=1)
    with pytest.raises(ValueError, match="the attention mask has 320 entries a text, its layers see 20 tokens"):
        gnorm.activation_energy(make("wav2vec2"), [sound | {"attention_mask": torch.ones(2, 320).long()}])


def test_a_text_longer_than_the_table_of_positions_is_refused():
    for name in ("gpt2", "bart"):
        ids = torch.full((1, 41), 9)
        with pytest.raises(ValueError, match="the longest text of batch 0 has 41 tokens, the model takes 40"):
            gnorm.gnorm_scores(make(name), [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])


FUSED = ("query_key_value", "query_key_value", "query_key_value", "dense")
BLOOM = {"hidden_size": 32, "n_layer": 2, "n_head": 4}
LLAMA = ("layers.*.self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
# (model_type, configuration, row, options of the row, what is asked, what is refused)
REFUSED = {
    "by head, not in parts": (
        *("bloom", BLOOM, ("h.*.self_attention", *FUSED), {}, gnorm.gnorm_scores),
        "head 0 depends on rows of the query and key and value projection of BloomAttention that the row of the family",
    ),
    "cannot lose heads": (
        *("bloom", BLOOM, ("h.*.self_attention", *FUSED), {"together": True}, gnorm.prune),
        "BloomForSequenceClassification does not work with heads removed, it does not run",
    ),
    "value before key": (
        *("codegen", OF_GPT2 | {"rotary_dim": 4}, ("h.*.attn", *["qkv_proj"] * 3, "out_proj"), {"together": True}),
        *(gnorm.gnorm_scores, "the value rows of the query and key and value projection of CodeGenAttention lie else"),
    ),
    "heads in pairs": (
        *("diffllama", SIZES, LLAMA, {}, gnorm.gnorm_scores),
        "head 0 depends on rows of the query projection of DiffLlamaAttention that the row of the family gives to",
    ),
    "a norm over heads": (
        *("olmo2", GROUPED, LLAMA, {}, gnorm.gnorm_scores),
        r"Olmo2Attention has q_norm.weight of shape \(32,\) beside its projections, which a row of module names",
    ),
    "written over": (
        *("longformer", SIZES | {"attention_window": 4}),
        ("encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense"),
        {"also": ("self.query_global", "self.key_global", "self.value_global")},
        *(gnorm.gnorm_scores, "LongformerForSequenceClassification writes over what its projections give"),
    ),
    "no such module": (
        *("bloom", BLOOM, ("h.*.self_attention", "q", "k", "v", "dense"), {}, gnorm.gnorm_scores),
        "no module of BloomAttention is named 'q': correct the family's row with gnorm.register",
    ),
}


@pytest.mark.parametrize("which", REFUSED)
def test_a_registered_row_is_tried_before_it_is_believed(which, monkeypatch):
    model_type, config, row, options, ask, message = REFUSED[which]
    monkeypatch.setitem(FAMILIES, model_type, None)  # forgotten afterwards
    gnorm.register(model_type, *row, **options)
    auto = AutoModelForCausalLM if model_type == "codegen" else AutoModelForSequenceClassification
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = AutoConfig.for_model(model_type, vocab_size=120, pad_token_id=1, num_labels=3, **config)
        model = auto.from_config(kind).eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        ask(model, batches_of("llama"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_registered_row_that_is_right_gives_what_the_row_of_the_package_gives(monkeypatch):
    model, batches = make("gpt_neox"), batches_of("gpt_neox")
    expected = gnorm.prune(model, batches, progress=False)
    monkeypatch.setitem(FAMILIES, "gpt_neox", None)
    gnorm.register("gpt_neox", "layers.*.attention", *FUSED, skippable=True, together=True)
    found = gnorm.prune(model, batches, progress=False)
    assert found.order() == expected.order()
    close_tables(found.table, expected.table, logs=True)  # packed and padded


def test_an_encoder_that_no_cross_attention_reads_scores_as_nothing():
    """The logits depend on no head of the encoder any more, and on those of the decoder's own attention."""
    model, batches = make("bart"), batches_of("bart")
    gnorm.remove_heads(model, torch.tensor([[1, 1], [1, 1], [1, 1], [0, 0]]))
    scores = gnorm.gnorm_scores(model, batches)
    assert scores.isneginf().tolist() == [[True, True], [True, True], [False, False], [True, True]]
    assert torch.equal(head_importance(model, batches)[:2], torch.zeros(2, 2, dtype=torch.float64))
    gnorm.remove_heads(model, torch.tensor([[1, 1], [1, 1], [0, 0], [0, 0]]))
    assert bool(gnorm.gnorm_scores(model, batches).isneginf().all())


def test_cross_attention_without_an_encoder_scores_as_nothing():
    model = make("bart", AutoModelForCausalLM)
    batches = [batch | {"labels": batch["input_ids"]} for batch in ragged_batches(2, longest=11)]
    scores = gnorm.gnorm_scores(model, batches)
    assert scores.isneginf().tolist() == [[False, False], [True, True]]
    close_logs(scores, literal.products(model, batches).log())


def test_entropy_of_cross_attention_counts_the_tokens_of_the_encoder():
    """A mask of the decoder's texts, as wide as that of the encoder's, says nothing about keys."""
    model = make("bart")
    ids = torch.full((2, 6), 9)
    ids[:, -1] = 2  # where the classifier reads
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids.flip(1)}
    batch["decoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(**batch, output_attentions=True).cross_attentions[-1].double()  # (text, head, query, key)
    by_token = torch.special.entr(weights).sum(-1)
    expected = (by_token[0, :, :4].mean(1) + by_token[1].mean(1)) / 2
    close(gnorm.attention_entropy(model, [batch])[-1], expected)
