"""Families of one row each: masked == removed == reloaded == transformers alone, and scores by plain autograd."""

import copy
import sys
import tempfile

import pytest
import torch
import transformers
from more_models import CLASSIFIER, EXPERTS, GROUPED, MODELS, SIZES, SOUND, SOUNDS, TEXT
from precision import differ
from tiny import without_elements

import gnorm
from gnorm.engine.backward.gradients import weight_gradients
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.trials.family_check import try_row

LENGTHS = torch.tensor([9, 4, 7])  # tokens of texts, padded behind
STEPS = 3  # of a trajectory that are repeated by a literal loop
WITH_DECODER = ("Seq2SeqLM", "SpeechSeq2Seq")


def auto_of(name):
    auto = MODELS[name][0]
    return getattr(transformers, f"AutoModelFor{auto}", None) or transformers.AutoModel


def make(name, **overrides):
    """The model, far from uniform: weights of 0.2 standard deviation, norms and biases random too, in eval mode."""
    options = MODELS[name][1]
    config = transformers.AutoConfig.for_model(name.partition("/")[0], **{**TEXT, **options, **overrides})
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part.num_labels = 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = getattr(transformers, MODELS[name][0], None)  # of a class that no Auto class gives
        model = (own(config) if own else auto_of(name).from_config(config)).float()
        for parameter in model.parameters():
            drawn = 0.2 * torch.randn_like(parameter)
            parameter.data = drawn if parameter.dim() > 1 else parameter.data + drawn
    return model.eval()


def batch_of(name):
    """Three texts, images or sounds with labels."""
    generator, (auto, _, *inputs) = torch.Generator().manual_seed(1), MODELS[name]
    width, count = int(LENGTHS.max()), len(LENGTHS)
    mask = (torch.arange(width) < LENGTHS[:, None]).long()
    ids = torch.randint(6, 100, (count, width), generator=generator).where(mask == 1, 1)
    shapes = {"pixel_values": (3, 16, 16), "input_values": (1600,), "video": (4, 3, 16, 16), "speech": (24, 8)}
    if inputs and inputs[0] in shapes:
        called = {"video": "pixel_values", "speech": "input_features"}.get(*inputs * 2)
        batch = {called: torch.randn(count, *shapes[inputs[0]], generator=generator)}
    elif inputs == ["input_ids"]:
        batch = {"input_ids": ids}
    else:
        batch = {"input_ids": ids, "attention_mask": mask}
    if inputs == ["entities"]:
        spans = torch.tensor([[0, 1], [2, 3]]).expand(count, -1, -1)
        batch |= {"entity_ids": torch.tensor([[1, 2]] * count), "entity_attention_mask": torch.ones(count, 2).long()}
        batch["entity_position_ids"] = spans
    if auto in WITH_DECODER:
        batch["decoder_input_ids"] = torch.randint(6, 30, (count, width), generator=generator)
        return batch | {"labels": torch.randint(6, 30, (count, width), generator=generator)}
    if auto == "QuestionAnswering":
        return batch | {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([3, 3, 5])}
    per_token = auto in ("CausalLM", "MaskedLM", "TokenClassification")
    return batch | {"labels": ids.where(mask == 1, -100) if per_token else torch.arange(count) % 3}


def inputs_of(batch):
    return {name: tensor for name, tensor in batch.items() if "label" not in name and "positions" not in name}


def answer(model, batch):
    """The logits, without those of padding."""
    found = model(**inputs_of(batch))
    if "start_logits" in found:
        return torch.stack([found.start_logits, found.end_logits], 1) * batch["attention_mask"][:, None]
    z = found.logits
    causal = z.dim() == 3 and "attention_mask" in batch and "decoder_input_ids" not in batch
    return z * batch["attention_mask"][..., None] if causal else z


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


def plain_scores(model, blocks, batch):
    """(layer, head): products of norms of gradients of the logits' norm, by plain autograd."""
    model.zero_grad()
    with torch.enable_grad():
        answer(model, batch).norm().backward()
    norms = torch.zeros(len(blocks), 3, blocks[0].num_heads, dtype=torch.float64)
    for of_block, block in zip(norms, blocks, strict=True):
        for of_part, part in zip(of_block, map(block.projection, ("query", "key", "value")), strict=True):
            gradient = part.module.weight.grad
            if gradient is not None:
                gradient = gradient.T if type(part.module).__name__ == "Conv1D" else gradient
                of_part += part.by_head(gradient).double().flatten(1).norm(dim=1)
    return norms.prod(1).log()


def zero(blocks, mask):
    """Set the columns of the output projections to zero that read heads which ``mask`` takes out."""
    for block, row in zip(blocks, mask, strict=True):
        output = block.projection("output")
        output.matrix[:, output.rows[~row].flatten()] = 0


def check(name):
    """What every family is held to."""
    model, batch = make(name), batch_of(name)
    blocks = gnorm.attention_blocks(model)
    if name not in SUMS_OUTSIDE:
        try_row(model, inputs_of(batch))
    # A trajectory: its first scores, and what it takes, are those of a literal loop.
    run, literal = gnorm.prune(model, [batch], progress=False), copy.deepcopy(model)
    of_literal = gnorm.attention_blocks(literal)
    left = torch.ones(len(blocks), blocks[0].num_heads, dtype=torch.bool)
    scores = plain_scores(literal, of_literal, batch)
    torch.testing.assert_close(gnorm.gnorm_scores(model, [batch]), scores, rtol=0, atol=1e-3)
    for (layer, head), score in list(zip(run.order(), run.table.score[1:], strict=True))[:STEPS]:
        lowest = float(scores[left].min())
        for found in (score, float(scores[layer, head])):
            assert found == lowest or abs(found - lowest) < 1e-3
        left[layer, head] = False
        zero(of_literal, left)
        scores = plain_scores(literal, of_literal, batch)
    assert len(run.order()) == left.numel()
    # Masks, removal, saving.
    mask = unequal_mask(*left.shape)
    zeroed, smaller = copy.deepcopy(model), copy.deepcopy(model)
    zero(gnorm.attention_blocks(zeroed), mask)
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


@pytest.mark.parametrize("name", list(MODELS))
def test_masked_equals_removed_equals_reloaded_and_scores_equal_plain_autograd(name, modules):
    check(name)


GENERATORS = [
    name for name, (auto, *_) in MODELS.items() if auto in ("CausalLM", *WITH_DECODER) and name != "switch_transformers"
]  # whose own generate fails


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_tokens_are_those_of_the_masked_model(name):
    """With a cache, of texts padded on the left; layers that are empty and cut."""
    model, inputs = make(name), inputs_of(batch_of(name))
    inputs.pop("decoder_input_ids", None)
    if MODELS[name][0] == "CausalLM":
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
    "olmo2": ("CausalLM", GROUPED, LLAMA, r"q_norm.weight of shape \(32,\) beside its projections"),
    "gemma3n_text": ("CausalLM", GROUPED | SHARED, LLAMA, "'k_proj': .* reads the keys and values of another"),
    "diffllama": ("CausalLM", SIZES, LLAMA, "depends on rows of the query projection .* gives to other heads"),
    "swin": (
        *("ImageClassification", STAGES, ("encoder.layers.*.blocks.*.attention", *LLAMA[1:])),
        "relative_position_bias.* beside its projections|a head mask .layer, head. needs as many in every layer",
    ),
    "laguna/unequal": ("CausalLM", EXPERTS | {"num_attention_heads_per_layer": [4, 8]}, None, "as many in every layer"),
    "mamba": (
        *("CausalLM", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4}),
        *(("layers.*.mixer", *["in_proj"] * 3, "out_proj"), "its configuration must give num_attention_heads"),
    ),
    "nystromformer": (
        CLASSIFIER,
        SIZES | {"num_landmarks": 4, "segment_means_seq_len": 16},
        BERT,
        "conv.weight .* beside",
    ),
    "convbert": (CLASSIFIER, SIZES, BERT, "key_conv_attn_layer.* beside its projections"),
    "lilt": (CLASSIFIER, SIZES, BERT, "layout_query.weight .* beside its projections"),
    "ibert": (CLASSIFIER, SIZES, BERT, "is quantised"),
    "doge": ("CausalLM", GROUPED, LLAMA, r"DogeAttention has A of shape \(2,\) beside"),
    "mimo_v2_flash": ("CausalLM", GROUPED | {"v_head_dim": 4}, LLAMA, "value rows, its 2 heads of 8 need 16"),
    "wavlm": (SOUNDS, SOUND, ("encoder.layers.*.attention", *LLAMA[1:4], "out_proj"), "gru_rel_pos_const .* beside"),
    "deberta/talking": (CLASSIFIER, SIZES | {"talking_head": True}, None, "head_logits_proj.weight .* beside"),
    "big_bird/sparse": (
        *(CLASSIFIER, SIZES | {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 128}, None),
        "puts other modules in the place of its own",
    ),
    "bloom/in parts": (
        *(CLASSIFIER, {"hidden_size": 32, "n_layer": 2, "n_head": 4, "pretraining_tp": 2, "slow_but_exact": True}),
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
        weight_gradients(model, [batch_of(name)])
