"""Families of one row each: masked == removed == reloaded == transformers alone, and scores by plain autograd."""

import copy
import sys
import tempfile

import literal
import pytest
import torch
import transformers
from literal import forward as answer
from literal import inputs_of
from models import GENERATES_WRONG, KINDS, MIXTURE, OF_WAV2VEC2, PAIRED, ROWS, SIZES, TEXT, auto_of, batches_of, make
from precision import differ
from tiny import without_elements

import gnorm
from gnorm.engine.backward.gradients import weight_gradients
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.trials.family_check import try_row

NAMES = [name for name, row in ROWS.items() if not row.layout]  # test_families.py has the others
STEPS = 3  # of a trajectory that are repeated by a literal loop


def equal(found, expected):
    """To 2e-5 of 1 + the largest logit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * (1 + float(expected.abs().max())))


def unequal_mask(rows, heads):
    """Layers that lose other heads each, and one that loses all."""
    mask = (torch.arange(rows)[:, None] + torch.arange(heads)) % 3 > 0
    mask[-1] = rows == 1
    if heads > 1:
        mask[0, 1] = False
    return mask


def parts_of(model):
    """[query, key, value, output] of every attention block, as the rows of the package say."""
    names = ("query", "key", "value", "output")
    blocks = [[block.projection(name) for name in names] for block in gnorm.attention_blocks(model)]
    return [[literal.Part(part.module, part.rows, part.of_input) for part in block] for block in blocks]


def plain_scores(model, blocks, batch):
    """(layer, head): products of norms of gradients of the logits' norm, by plain autograd."""
    return literal.gradients(model, [batch], of=[block[:3] for block in blocks]).prod(1).log()


def zero(blocks, mask):
    """Set the columns of the output projections to zero that read heads which ``mask`` takes out."""
    for block, row in zip(blocks, mask, strict=True):
        block[3].zero(~row)


def check(name):
    """The checks of every family."""
    model = make(name)
    (batch,) = batches_of(model, 1, 5, name)
    blocks = gnorm.attention_blocks(model)
    if name not in SUMS_OUTSIDE:
        try_row(model, inputs_of(batch))
    # A trajectory: its first scores, and what it takes, are those of a literal loop.
    run, plain = gnorm.prune(model, [batch], progress=False), copy.deepcopy(model)
    of_plain = parts_of(plain)
    left = torch.ones(len(blocks), blocks[0].num_heads, dtype=torch.bool)
    scores = plain_scores(plain, of_plain, batch)
    torch.testing.assert_close(gnorm.gnorm_scores(model, [batch]), scores, rtol=0, atol=1e-3)
    for (layer, head), score in list(zip(run.order(), run.table.score[1:], strict=True))[:STEPS]:
        lowest = float(scores[left].min())
        for found in (score, float(scores[layer, head])):
            assert found == lowest or abs(found - lowest) < 1e-3
        left[layer, head] = False
        zero(of_plain, left)
        scores = plain_scores(plain, of_plain, batch)
    assert len(run.order()) == left.numel()
    # Masks, removal, saving.
    mask = unequal_mask(*left.shape)
    zeroed, smaller = copy.deepcopy(model), copy.deepcopy(model)
    zero(parts_of(zeroed), mask)
    with torch.no_grad():
        expected = answer(zeroed, batch)
        differ(expected, answer(model, batch))
        with gnorm.masked(model, mask):
            equal(answer(model, batch), expected)
        gnorm.remove_heads(smaller, mask)
        assert torch.equal(gnorm.head_mask_of(smaller), mask)
        with tempfile.TemporaryDirectory() as folder:
            gnorm.save_pruned(smaller, folder)
            reloaded = gnorm.load_pruned(folder)
            alone = auto_of(name).from_pretrained(folder, trust_remote_code=True)
        assert type(alone).__module__.startswith("transformers_modules")
        for each in (smaller, copy.deepcopy(smaller), reloaded, alone):
            equal(answer(each, batch), expected)
            assert not without_elements(each)
        twice = copy.deepcopy(model)
        for step in (mask | (torch.arange(len(mask)) % 2 == 0)[:, None], mask):
            gnorm.remove_heads(twice, step)
        equal(answer(twice, batch), expected)


SUMS_OUTSIDE = ("deberta",)  # a bias by head is added behind the projection of values


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """transformers copies the code of folders to a place of this test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("name", NAMES)
def test_masked_equals_removed_equals_reloaded_and_scores_equal_plain_autograd(name, modules):
    check(name)


@pytest.mark.parametrize("name", [name for name in NAMES if KINDS[ROWS[name].kind][1] and name != GENERATES_WRONG])
def test_generated_tokens_are_those_of_the_masked_model(name):
    """With a cache, of texts padded on the left; layers that are empty and cut."""
    model = make(name)
    inputs = {key: of for key, of in inputs_of(batches_of(model, 1, 5, name)[0]).items() if "decoder" not in key}
    if ROWS[name].kind == "language model":
        inputs = {key: tensor.flip(1) for key, tensor in inputs.items()}
    mask = unequal_mask(*gnorm.head_mask_of(model).shape)
    smaller = copy.deepcopy(model)
    gnorm.remove_heads(smaller, mask)
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "eos_token_id": None, "use_cache": True}
    with torch.no_grad(), gnorm.masked(model, mask):
        assert torch.equal(smaller.generate(**inputs, **options), model.generate(**inputs, **options))


LLAMA = ("layers.*.self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
BERT = ("encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense")
LATENTS = SIZES | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
DENSE = {"first_k_dense_replace": 2, "n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1}
SHARED = {
    "num_kv_shared_layers": 1,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 100,
    "laurel_rank": 4,
} | {"altup_num_inputs": 2, "intermediate_size": [48, 48], "activation_sparsity_pattern": [0.0, 0.0]}
STAGES = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
# model_type: Auto class, configuration, row (None: the package's own), why it is refused.
REFUSED = {
    "deepseek_v3": (
        "CausalLM",
        LATENTS | DENSE,
        ("layers.*.self_attn", "q_b_proj", *["kv_b_proj"] * 2, "o_proj"),
        "beside",
    ),
    "olmo2": ("CausalLM", PAIRED, LLAMA, r"q_norm.weight of shape \(32,\) beside its projections"),
    "gemma3n_text": ("CausalLM", PAIRED | SHARED, LLAMA, "'k_proj': .* reads the keys and values of another"),
    "diffllama": ("CausalLM", SIZES, LLAMA, "depends on rows of the query projection .* gives to other heads"),
    "swin": (
        *("ImageClassification", STAGES, ("encoder.layers.*.blocks.*.attention", *LLAMA[1:])),
        "relative_position_bias.* beside its projections|a head mask .layer, head. needs as many in every layer",
    ),
    "laguna/unequal": ("CausalLM", MIXTURE | {"num_attention_heads_per_layer": [4, 8]}, None, "as many in every layer"),
    "mamba": (
        *("CausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}),
        *(("layers.*.mixer", *["in_proj"] * 3, "out_proj"), "its configuration must give num_attention_heads"),
    ),
    "nystromformer": (
        "SequenceClassification",
        SIZES | {"num_landmarks": 4, "segment_means_seq_len": 16},
        BERT,
        "conv.weight .* beside",
    ),
    "convbert": ("SequenceClassification", SIZES, BERT, "key_conv_attn_layer.* beside its projections"),
    "lilt": ("SequenceClassification", SIZES, BERT, "layout_query.weight .* beside its projections"),
    "ibert": ("SequenceClassification", SIZES, BERT, "is quantised"),
    "doge": ("CausalLM", PAIRED, LLAMA, r"DogeAttention has A of shape \(2,\) beside"),
    "mimo_v2_flash": ("CausalLM", PAIRED | {"v_head_dim": 4}, LLAMA, "value rows, its 2 heads of 8 need 16"),
    "wavlm": (
        "AudioClassification",
        OF_WAV2VEC2,
        ("encoder.layers.*.attention", *LLAMA[1:4], "out_proj"),
        "gru_rel_pos_const .* beside",
    ),
    "deberta/talking": (
        "SequenceClassification",
        SIZES | {"talking_head": True},
        None,
        "head_logits_proj.weight .* beside",
    ),
    "big_bird/sparse": (
        *(
            "SequenceClassification",
            SIZES | {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 128},
            None,
        ),
        "puts other modules in the place of its own",
    ),
    "bloom/in parts": (
        *(
            "SequenceClassification",
            {"hidden_size": 32, "n_layer": 2, "n_head": 4, "pretraining_tp": 2, "slow_but_exact": True},
        ),
        *(None, "the output projection of BloomAttention is never called as a module|cannot be scored"),
    ),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_no_row_can_say_is_refused_with_the_reason(which, monkeypatch):
    auto, options, row, reason = REFUSED[which]
    name = which.partition("/")[0]
    if row is not None:
        monkeypatch.setitem(FAMILIES, name, None)  # forgotten afterwards
        gnorm.register(name, *row, skippable=True)
    config = transformers.AutoConfig.for_model(name, **{**TEXT, **options})
    model = getattr(transformers, f"AutoModelFor{auto}").from_config(config).eval()
    before = copy.deepcopy(model.state_dict())
    for ask in (gnorm.attention_blocks, lambda model: gnorm.remove_heads(model, [[1, 1, 0, 0]] * 2)):
        with pytest.raises(ValueError, match=reason):
            ask(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_list_of_modules_by_head_is_cut_to_some_of_them_by_transformers_alone(tmp_path):
    """It builds the model on torch's meta device."""
    model = make("stablelm")
    (batch,) = batches_of(model, 1, 5, "stablelm")
    gnorm.remove_heads(model, [[1, 0], [1, 1]])
    folder = gnorm.save_pruned(model, tmp_path / "model")
    with torch.no_grad():
        equal(answer(auto_of("stablelm").from_pretrained(folder, trust_remote_code=True), batch), answer(model, batch))


@pytest.mark.parametrize(
    ("name", "options", "first", "second"),
    [
        (
            "gemma4_text/two widths",
            {"num_key_value_heads": 4},
            "query projection of layer 0",
            "query projection of layer 1",
        ),
        ("mobilebert", {}, "query projection of layer 0", "value projection of layer 0"),
    ],
)
def test_gradients_of_several_sizes_make_no_table(name, options, first, second):
    model = make(name, **options)
    with pytest.raises(ValueError, match=f"the {first} has .*, the {second} .*: use gnorm.gnorm_scores"):
        weight_gradients(model, batches_of(model, 1, 5, name))
