"""Fused, grouped and several kinds of attention, family by family: held against plain autograd and masks by hand."""

import copy

import layouts
import more_models
import pytest
import test_encoders
import torch
from precision import close, close_logs, differ
from tiny import ragged_batches, without_elements
from transformers import (
    AutoConfig,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import gnorm
from gnorm.criteria.of_loss import head_importance
from gnorm.criteria.of_outputs import flap, output_norm, weight_magnitude
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.model.known_models import ignores_padding

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = SIZES | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4}
IMAGES = SIZES | {"image_size": 16, "patch_size": 4}
OF_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 0, "eos_token_id": 2}
OF_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2} | {
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
}
OF_BART = (
    {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40}
    | {"eos_token_id": 2, "forced_eos_token_id": None, "decoder_start_token_id": 1}
)
OF_WAV2VEC2 = (
    SIZES
    | {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4), "num_conv_pos_embeddings": 4}
    | {"num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
)
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 24}
# What each configuration needs; a family comes twice where its configuration alters attention.
CONFIGS = {
    "gpt2": OF_GPT2,
    "gpt2/scaled by layer": OF_GPT2 | {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": SIZES,
    "gpt_neox/not parallel": SIZES | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
    "gptj": OF_GPT2 | {"rotary_dim": 4},
    "gpt_neo": SIZES
    | {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4}
    | {"bos_token_id": 0, "eos_token_id": 2},
    "opt": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "llama": GROUPED,
    "llama/one key": GROUPED | {"num_key_value_heads": 1, "head_dim": 6, "attention_bias": True},
    "mistral": GROUPED | {"sliding_window": 6},
    "mixtral": GROUPED | EXPERTS,
    "qwen2": GROUPED,
    "qwen2/sliding": GROUPED | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": GROUPED,
    "qwen3_moe": GROUPED | EXPERTS,
    "gemma": SIZES | {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": GROUPED | {"sliding_window": 4},
    "gemma3_text": GROUPED | {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "smollm3": GROUPED | {"no_rope_layers": [1, 0]},
    "granite": GROUPED,
    "cohere": GROUPED,
    "starcoder2": SIZES | {"num_key_value_heads": 2, "sliding_window": 4},
    "phi": SIZES | {"num_key_value_heads": 2, "qk_layernorm": True},
    "eurobert": GROUPED,
    "nomic_bert": SIZES,
    "modernbert": SIZES
    | {"local_attention": 8, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
    "t5": OF_T5,
    "t5/narrow and gated": OF_T5 | {"d_kv": 6, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 1},
    "mt5": OF_T5 | {"num_layers": 1},
    "bart": OF_BART,
    "mbart": OF_BART | {"encoder_layers": 1},
    "marian": OF_BART | {"encoder_layers": 1},
    "pegasus": OF_BART | {"encoder_layers": 1},
    "m2m_100": OF_BART | {"encoder_layers": 1},
    "whisper": OF_BART
    | {"num_mel_bins": 16, "max_source_positions": 24, "vocab_size": 120, "pad_token_id": 1, "classifier_proj_size": 16}
    | {"begin_suppress_tokens": None, "suppress_tokens": None, "max_target_positions": 40},
    "data2vec-text": SIZES,
    "ernie": SIZES,
    "roformer": SIZES | {"embedding_size": 16},
    "rembert": SIZES | {"input_embedding_size": 16, "output_embedding_size": 16},
    "beit": IMAGES,
    "beit/relative": IMAGES | {"use_relative_position_bias": True},
    "dinov2": IMAGES,
    "audio-spectrogram-transformer": SIZES | {"max_length": 24, "num_mel_bins": 16, "patch_size": 8},
    "wav2vec2": OF_WAV2VEC2,
    "wav2vec2/stable": OF_WAV2VEC2 | {"do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    "hubert": OF_WAV2VEC2,
}
TRANSLATORS = ("marian", "pegasus", "m2m_100")  # of texts, with no classifier
SEVERAL = (
    "t5",
    "mt5",
    "bart",
    "mbart",
    *TRANSLATORS,
)  # encoder self-attention, decoder self-attention, cross-attention
LANGUAGE_MODELS = ("granite", "cohere")  # with no classifier
SOUNDS, PICTURES = ("audio-spectrogram-transformer", "wav2vec2", "hubert", "whisper"), ("beit", "dinov2")


def make(name, auto=None, **overrides):
    family = name.partition("/")[0]
    text = {} if family in SOUNDS + PICTURES else {"vocab_size": 120, "pad_token_id": 1}
    kinds = (
        (SOUNDS, AutoModelForAudioClassification),
        (PICTURES, AutoModelForImageClassification),
        (TRANSLATORS, AutoModelForSeq2SeqLM),
        (LANGUAGE_MODELS, AutoModelForCausalLM),
    )
    auto = auto or next((kind for families, kind in kinds if family in families), AutoModelForSequenceClassification)
    config = AutoConfig.for_model(family, **{"num_labels": 3, **text, **CONFIGS[name], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            far_from_uniform = parameter.dim() == 2 and "embed" not in parameter_name  # attention, so that heads differ
            if far_from_uniform or parameter_name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batches_of(name):
    generator, family = torch.Generator().manual_seed(1), name.partition("/")[0]
    shapes = {"audio-spectrogram-transformer": (24, 16), "whisper": (16, 48)}
    if family in SOUNDS + PICTURES:
        inputs = "pixel_values" if family in PICTURES else "input_features" if family == "whisper" else "input_values"
        shape = (3, 16, 16) if family in PICTURES else shapes.get(family, (320,))
        labels = torch.tensor([0, 1, 2, 0])
        return [{inputs: torch.randn(4, *shape, generator=generator), "labels": labels} for _ in range(2)]
    batches = ragged_batches(2, longest=11)
    for batch in batches:
        if family in SEVERAL:  # their classifiers read the token that ends a text
            ends = batch["attention_mask"].sum(1) - 1
            batch["input_ids"][batch["input_ids"] == 2] = 9
            batch["input_ids"][torch.arange(len(ends)), ends] = 2
        if family in TRANSLATORS:
            batch["decoder_input_ids"] = batch["input_ids"].flip(1)
        if family in LANGUAGE_MODELS:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batches


def logits(model, batch):
    """The logits of a batch, without those of padding."""
    z = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return z[batch["attention_mask"] == 1] if z.dim() == 3 and z.shape[:2] == batch["labels"].shape else z


def scores_by_hand(model, batches):
    """(layer, head) from (layer, projection, head) norms of gradients by plain autograd."""
    blocks = layouts.blocks(model)
    sums = torch.zeros(len(blocks), 3, layouts.heads_of(model), dtype=torch.float64)
    for batch in batches:
        model.zero_grad()
        logits(model, batch).norm().backward()
        for row, block in zip(sums, blocks, strict=True):
            for of_projection, part in zip(row, block[:3], strict=True):
                if (gradient := part.module.weight.grad) is not None:
                    of_projection += part.by_head(gradient).double().norm(dim=1)
    return sums.prod(1).log()


def random_masks(shape):
    """Random masks: of layers that are empty, whole and cut, and of layers that are all cut."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) > 0.5
    mask[0] = False
    mask[1:2] = True
    if shape[0] > 2:
        mask[-1] = False
        mask[2, 0] = True
        mask[2, 1:] = False
    cut = torch.arange(shape[0])[:, None] % 2 == torch.arange(shape[1]) % 2
    return (mask, cut) if shape[1] > 1 else (mask,)


@pytest.fixture(params=list(CONFIGS))
def name(request):
    return request.param


def test_every_family_has_a_model_here_or_in_test_encoders():
    every = [*test_encoders.MODELS, *CONFIGS, *more_models.MODELS]
    assert {name.partition("/")[0] for name in every} == set(FAMILIES)
    assert layouts.NAMES.keys() == {name.partition("/")[0] for name in CONFIGS}


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in TRANSLATORS])
def test_order_and_scores_equal_those_of_a_literal_loop_to_the_last_head(name):
    """The scores of every step are products of norms by plain autograd; a head goes by zeroing what reads it."""
    model, batches = make(name), batches_of(name)
    run = gnorm.prune(model, batches, progress=False)
    rows, heads = gnorm.head_mask_of(model).shape
    left = [(row, head) for row in range(rows) for head in range(heads)]
    order, scores = [], []
    while left:
        table = scores_by_hand(model, batches)
        chosen = min(left, key=lambda at: float(table[at]))
        left.remove(chosen)
        order.append(chosen)
        scores.append(float(table[chosen]))
        layouts.blocks(model)[chosen[0]][3].zero(torch.arange(heads) == chosen[1])
    assert run.order() == order
    close_logs(run.table.score[1:], scores)
    if name not in LANGUAGE_MODELS:
        with torch.no_grad():
            hits = torch.cat([logits(model, batch).argmax(1) == batch["labels"] for batch in batches])
        assert run.table.accuracy.iloc[-1] == hits.double().mean()


def test_masked_equals_removed_equals_reloaded(name, tmp_path):
    model, batches = make(name), batches_of(name)
    for number, mask in enumerate(random_masks(gnorm.head_mask_of(model).shape)):
        smaller, zeroed = copy.deepcopy(model), copy.deepcopy(model)
        for block, of_row in zip(layouts.blocks(zeroed), mask, strict=True):
            block[3].zero(~of_row)
        with torch.no_grad():
            expected, intact = logits(zeroed, batches[0]), logits(model, batches[0])
            differ(expected, intact)
            with gnorm.masked(model, mask):
                close(logits(model, batches[0]), expected)
                scores = None if name in TRANSLATORS else gnorm.gnorm_scores(model, batches)
            gnorm.remove_heads(smaller, mask)
            close(logits(smaller, batches[0]), expected)
            assert torch.equal(gnorm.head_mask_of(smaller), mask)
            if scores is not None:
                found = gnorm.gnorm_scores(smaller, batches)
                close_logs(found[mask], scores[mask])
            reloaded = gnorm.load_pruned(gnorm.save_pruned(smaller, tmp_path / str(number)))
            assert not without_elements(smaller) + without_elements(reloaded)
            close(logits(reloaded, batches[0]), expected)
            assert torch.equal(gnorm.head_mask_of(reloaded), mask)
    of_texts = (gnorm.attention_entropy, gnorm.activation_energy, head_importance, output_norm, weight_magnitude)
    for criterion in () if name in TRANSLATORS else of_texts:
        found = criterion(reloaded, batches)
        assert bool(found[mask].isfinite().all())
        assert bool(found[~mask].isneginf().all())
    if FAMILIES[name.partition("/")[0]].feed_forward:
        with gnorm.without_feed_forward(reloaded), torch.no_grad():
            assert not torch.equal(logits(reloaded, batches[0]), expected)


def test_grouped_queries_count_by_key_value_head():
    """Sizes, weights and contexts of two key-value heads of a Llama that four query heads each read."""
    model, batches = make("llama"), batches_of("llama")
    block = gnorm.attention_blocks(model)[1]
    assert (block.num_heads, block.queries_per_head, block.head_dim, block.context_dim) == (2, 4, 4, 16)
    attention, contexts, weights = model.model.layers[1].self_attn, [], []
    of_head = [attention.q_proj.weight[16:], attention.k_proj.weight[4:], attention.v_proj.weight[4:]]
    numbers = torch.cat([w.detach().flatten() for w in (*of_head, attention.o_proj.weight[:, 16:])]).double()
    close_logs(weight_magnitude(model, batches)[1, 1], numbers.norm().log())
    model.set_attn_implementation("eager")
    attention.o_proj.register_forward_pre_hook(lambda _, inputs: contexts.append(inputs[0][..., 16:]))
    attention.register_forward_hook(lambda _, __, output: weights.append(output[1][:, 4:]))
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            with torch.no_grad():
                model(ids[None, : mask.sum()])
    energy = torch.stack([context.square().sum(-1).mean() for context in contexts]).mean()
    entropy = torch.stack([torch.special.entr(w).sum(-1).mean() for w in weights]).mean()
    close(float(gnorm.activation_energy(model, batches)[1, 1]), float(energy))
    close(float(gnorm.attention_entropy(model, batches)[1, 1]), float(entropy))
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


CACHES = {
    "none": {"use_cache": False},
    "growing": {"use_cache": True},
    "static": {"cache_implementation": "static"},
    "beams": {"num_beams": 2, "use_cache": True},
}
GENERATORS = [name for name in CONFIGS if name not in ("eurobert", "nomic_bert", "modernbert", "whisper")][:-13]


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_tokens_are_those_of_the_masked_model(name):
    """With layers that are empty, whole and cut, texts padded on the left, with each kind of cache."""
    whole = make(name, AutoModelForSeq2SeqLM if name.partition("/")[0] in SEVERAL else AutoModelForCausalLM)
    ids = torch.randint(3, 120, (2, 5), generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "attention_mask": real}
    ids = ids.where(real == 1, 1)
    for mask, caches in zip(random_masks(gnorm.head_mask_of(whole).shape), (CACHES, ["growing"]), strict=False):
        model = copy.deepcopy(whole)
        gnorm.remove_heads(model, mask)
        for cache in caches:
            with gnorm.masked(whole, mask):
                expected = whole.generate(ids, **options, **CACHES[cache])
            assert torch.equal(model.generate(ids, **options, **CACHES[cache]), expected), cache


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
    assert logits(copy.deepcopy(model), batch).shape == (5, 3)


def test_an_encoder_turned_decoder_is_causal_and_keeps_its_padding():
    model = test_encoders.make("bert", is_decoder=True)
    assert len(gnorm.attention_blocks(model)) == 3
    assert ignores_padding(test_encoders.make("bert"))
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
    sounds = [batch | {"attention_mask": torch.ones(4, 320).long()} for batch in batches_of("wav2vec2")]
    with pytest.raises(ValueError, match="the attention mask has 320 entries a text, its layers see 20 tokens"):
        gnorm.activation_energy(make("wav2vec2"), sounds)


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
    assert found.table.score[1:].equals(expected.table.score[1:])


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
    close_logs(scores, scores_by_hand(model, batches))


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
