"""Blocks, masks and removal: every row of the table of families resolves, and removing equals masking."""

import copy

import literal
import pytest
import textpruner
import torch
from precision import close, differ
from tiny import ragged_batches, tiny_model
from transformers import CodeGenConfig, CodeGenForCausalLM

import gnorm
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.model.state import evaluating

BATCH = {name: tensor for name, tensor in ragged_batches(1, 6)[0].items() if name != "labels"}


def logits(model):
    with evaluating(model), torch.inference_mode():
        return model(**BATCH).logits.clone()


def random_mask(model, seed=3, empty_layer=None):
    blocks = gnorm.attention_blocks(model)
    mask = torch.rand(len(blocks), blocks[0].num_heads, generator=torch.Generator().manual_seed(seed)) > 0.4
    if empty_layer is not None:
        mask[empty_layer] = False
    return mask


def hooks_of(model):
    return [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def forward_of_a_text_that_is_too_long(model):
    assert hooks_of(model)
    raise RuntimeError("too long for the model")


def test_blocks_are_the_projections_of_the_model(model):
    blocks = gnorm.attention_blocks(model)
    assert [(b.query, b.key, b.value, b.output) for b in blocks] == literal.projections(model)
    assert {(b.num_heads, b.head_dim, b.kept) for b in blocks} == {(4, 8, (0, 1, 2, 3))}
    assert len(blocks) == (1 if model.config.model_type == "albert" else 3)


def test_a_mask_of_ones_is_the_identity(model):
    before = logits(model)
    with gnorm.masked(model, torch.ones_like(gnorm.head_mask_of(model))):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("empty_layer", [None, 0])
def test_masked_equals_textpruners_zeroed_weights(model, empty_layer, tmp_path):
    mask = random_mask(model, empty_layer=empty_layer)
    zeroed = copy.deepcopy(model)
    textpruner.TransformerPruner(
        zeroed, general_config=textpruner.GeneralConfig(use_device="cpu", output_dir=str(tmp_path))
    ).prune_with_masks(head_mask=mask.float(), keep_shape=True, set_masks=True)
    expected = logits(zeroed)
    differ(expected, logits(model))
    with gnorm.masked(model, mask):
        close(logits(model), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("empty_layer", [None, 0])
def test_removed_equals_masked(family, attention, empty_layer):
    model = tiny_model(family, attn_implementation=attention)
    mask = random_mask(model, empty_layer=empty_layer)
    with gnorm.masked(model, mask):
        expected = logits(model)
    parameters = sum(p.numel() for p in model.parameters())
    gnorm.remove_heads(model, mask)
    close(logits(model), expected)
    assert torch.equal(gnorm.head_mask_of(model), mask)
    assert [b.kept for b in gnorm.attention_blocks(model)] == [tuple(row.nonzero()[:, 0].tolist()) for row in mask]
    per_head = 4 * 8 * 32 + 3 * 8  # rows of query, key, value and columns of output; three biases
    assert parameters - sum(p.numel() for p in model.parameters()) == int((~mask).sum()) * per_head


def test_all_heads_removed(model):
    nothing = torch.zeros_like(gnorm.head_mask_of(model))
    with gnorm.masked(model, nothing):
        expected = logits(model)
    gnorm.remove_heads(model, nothing)
    close(logits(model), expected)
    assert bool((gnorm.gnorm_scores(model, ragged_batches()) == -torch.inf).all())


def test_repeated_removal_counts_heads_as_the_intact_model_does(model):
    first, second = random_mask(model, 3), random_mask(model, 4)
    with gnorm.masked(model, first & second):
        expected = logits(model)
    gnorm.remove_heads(model, first)
    with gnorm.masked(model, second):  # masking what is left of a pruned model
        close(logits(model), expected)
    gnorm.remove_heads(model, second)
    close(logits(model), expected)
    assert torch.equal(gnorm.head_mask_of(model), first & second)


def test_a_pruned_model_can_be_pruned_further(model):
    mask = random_mask(model)
    gnorm.remove_heads(model, mask)
    trajectory = gnorm.prune(model, ragged_batches(), progress=False)
    assert sorted(trajectory.order()) == [tuple(at) for at in mask.nonzero().tolist()]


def test_an_exception_inside_masked_leaves_no_hook(model):
    before = logits(model)
    with pytest.raises(RuntimeError, match="too long for the model"), gnorm.masked(model, random_mask(model)):
        forward_of_a_text_that_is_too_long(model)
    assert not hooks_of(model)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (torch.ones(2, 2), r"shape \(2, 2\), this model needs \(layer, head\) = \(3, 4\)"),
        (torch.full((3, 4), 0.5), "other than 0 and 1"),
        (torch.full((3, 4), torch.nan), "other than 0 and 1"),
    ],
)
def test_wrong_masks_are_refused(mask, complaint):
    model = tiny_model("bert")
    with pytest.raises(ValueError, match=complaint), gnorm.masked(model, mask):
        pass
    with pytest.raises(ValueError, match=complaint):
        gnorm.remove_heads(model, mask)
    assert not hooks_of(model)


def test_an_unknown_architecture_is_named_with_the_remedy():
    model = CodeGenForCausalLM(CodeGenConfig(vocab_size=10, n_layer=1, n_embd=8, n_head=2, rotary_dim=4))
    with pytest.raises(ValueError, match=r"model_type 'codegen' .*known: bert, .*gnorm.register\('codegen'"):
        gnorm.attention_blocks(model)


def test_a_new_family_is_one_row(monkeypatch):
    monkeypatch.delitem(FAMILIES, "bert")
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="not known"):
        gnorm.attention_blocks(model)
    gnorm.register("bert", "encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense")
    assert len(gnorm.attention_blocks(model)) == 3
    gnorm.register("bert", "encoder.blocks.*", "query", "key", "value", "dense")
    with pytest.raises(ValueError, match=r"no module of BertModel is named 'encoder.blocks.\*'"):
        gnorm.attention_blocks(model)


def test_a_module_that_may_return_anything_is_not_passed_by(monkeypatch):
    """A row of one's own says nothing of what the attention module returns: without heads it runs as it did."""
    monkeypatch.delitem(FAMILIES, "bert")
    gnorm.register("bert", "encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense")
    model = tiny_model("bert")
    mask = random_mask(model, empty_layer=1)
    with gnorm.masked(model, mask):
        expected = logits(model)
    gnorm.remove_heads(model, mask)
    close(logits(model), expected)
    assert not ["forward" for block in gnorm.attention_blocks(model) if "forward" in vars(block.module)]


def test_without_feed_forward_the_blocks_add_their_bias_alone(model):
    zeroed = copy.deepcopy(model)
    for name, module in zeroed.named_modules():
        if name.endswith("ffn_output") or (name.endswith("output.dense") and "attention" not in name):
            torch.nn.init.zeros_(module.weight)
    with gnorm.without_feed_forward(model):
        without = logits(model)
    assert torch.equal(without, logits(zeroed))
    assert not torch.equal(without, logits(model))
    assert not hooks_of(model)


def wrapper(name, **attributes):
    """An object of a class of this name that holds a model and its configuration, as wrappers do."""
    found = type(name, (torch.nn.Module,), {})()
    for attribute, value in attributes.items():
        setattr(found, attribute, value)
    return found


@pytest.mark.parametrize(
    ("name", "attribute", "complaint"),
    [
        ("PeftModel", "base_model", r"give what its merge_and_unload\(\) returns"),
        ("CrossEncoder", "model", r"give its \.model"),
        ("SentenceTransformer", "encoder", "AutoModelForSequenceClassification fine-tuned from it, as it has no class"),
        ("DistributedDataParallel", "module", r"give its \.module"),
        ("MyOwn", "network", r"give its \.network"),
    ],
)
def test_a_wrapped_model_is_refused_with_what_to_give_instead(name, attribute, complaint):
    model = tiny_model("bert")
    for config in ({}, {"config": model.config}):
        with pytest.raises((ValueError, TypeError), match=f"^{name} .*{complaint}"):
            gnorm.attention_blocks(wrapper(name, **{attribute: model}, **config))


def test_wrappers_of_libraries_are_known_by_the_names_of_their_classes():
    model = tiny_model("bert")
    with pytest.raises(ValueError, match=r"DataParallel wraps a model: give its \.module"):
        gnorm.gnorm_scores(torch.nn.DataParallel(model), ragged_batches())
    kind = type("PeftModelForSequenceClassification", (type(wrapper("PeftModel")),), {})
    with pytest.raises(
        ValueError, match="PeftModelForSequenceClassification wraps a model: give what its merge_and_unload"
    ):
        gnorm.attention_blocks(kind())
