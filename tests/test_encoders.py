"""Encoders with separate projections on a tiny model of each: paths, masks, removal, saving, criteria, pruning."""

import copy

import pytest
import torch
from precision import close, close_logs, differ
from tiny import SIZES, ragged_batches, without_elements
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

import gnorm
from gnorm.engine.model.state import evaluating
from gnorm.engine.texts.batches import prepare
from gnorm.engine.texts.micro_batches import MAX_TOKENS

IMAGES = {"image_size": 16, "patch_size": 4, "num_channels": 3}
# What each configuration needs beside the sizes; a family comes twice where its configuration alters the block.
MODELS = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "albert": {"embedding_size": 16},
    "albert/two groups": {"embedding_size": 16, "num_hidden_groups": 2, "num_hidden_layers": 4},
    "camembert": {},
    "electra": {"embedding_size": 16},
    "distilbert": {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 48},
    "deberta-v2": {},
    "deberta-v2/relative": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "deberta-v2/shared": {"relative_attention": True, "pos_att_type": ["c2p"], "share_att_key": True},
    "mpnet": {},
    "vit": IMAGES,
    "vit/no biases": IMAGES | {"qkv_bias": False},
    "deit": IMAGES | {"architectures": ["DeiTForImageClassification"]},
}


def make(name, **overrides):
    family = name.partition("/")[0]
    images = MODELS[name].get("image_size") is not None
    sizes = {key: value for key, value in SIZES.items() if not (images and "token" in key)}
    config = AutoConfig.for_model(family, **{**sizes, **MODELS[name], **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        auto = AutoModelForImageClassification if images else AutoModelForSequenceClassification
        model = auto.from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias") or parameter.dim() < 2:
                torch.nn.init.normal_(parameter, mean=float("Norm.weight" in parameter_name), std=0.1)
    return model.eval()


def batches_of(model, count=3):
    if model.main_input_name == "input_ids":
        return ragged_batches(count)
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "pixel_values": torch.randn(4, 3, 16, 16, generator=generator),
            "labels": torch.randint(0, 3, (4,), generator=generator),
        }
        for _ in range(count)
    ]


def logits(model):
    batch = {name: tensor for name, tensor in batches_of(model, 1)[0].items() if name != "labels"}
    with evaluating(model), torch.inference_mode():
        return model(**batch).logits.clone()


def random_mask(model, seed=0):
    mask = gnorm.head_mask_of(model)
    return torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) > 0.4


def masks(model):
    """Unequal layers, an empty one, one head left in a layer, no head left at all."""
    unequal = random_mask(model)
    empty, thin = unequal.clone(), unequal.clone()
    empty[0] = False
    thin[-1] = torch.tensor([False, False, True, False])
    return {"unequal": unequal, "empty": empty, "thin": thin, "none": torch.zeros_like(unequal)}


@pytest.fixture(params=list(MODELS))
def encoder(request):
    return make(request.param)


def test_paths_lead_to_projections_of_the_right_size(encoder):
    blocks = gnorm.attention_blocks(encoder)
    linears = [linear for b in blocks for linear in (b.query, b.key, b.value, b.output)]
    assert all(isinstance(linear, torch.nn.Linear) for linear in linears)
    assert {tuple(linear.weight.shape) for linear in linears} == {(32, 32)}
    assert len({id(linear) for linear in linears}) == len(linears)
    assert {(b.num_heads, b.head_dim, b.kept) for b in blocks} == {(4, 8, (0, 1, 2, 3))}


def test_masking_equals_zeroing_output_columns_and_ones_are_the_identity(encoder):
    before = logits(encoder)
    with gnorm.masked(encoder, torch.ones_like(gnorm.head_mask_of(encoder))):
        assert torch.equal(logits(encoder), before)
    mask = random_mask(encoder)
    zeroed = copy.deepcopy(encoder)
    with torch.no_grad():
        for block, row in zip(gnorm.attention_blocks(zeroed), mask, strict=True):
            block.output.weight[:, (~row).repeat_interleave(8)] = 0
    differ(logits(zeroed), before)
    with gnorm.masked(encoder, mask):
        close(logits(encoder), logits(zeroed))


@pytest.mark.parametrize("which", ["unequal", "empty", "thin", "none"])
@pytest.mark.parametrize("name", list(MODELS))
def test_masked_equals_removed_equals_reloaded(name, which, tmp_path):
    model = make(name)
    mask = masks(model)[which]
    with gnorm.masked(model, mask):
        expected = logits(model)
    gnorm.remove_heads(model, mask)
    close(logits(model), expected)
    close(logits(copy.deepcopy(model)), expected)
    assert torch.equal(gnorm.head_mask_of(model), mask)
    reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "pruned"))
    assert not without_elements(model) + without_elements(reloaded)
    weights = reloaded.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    # the file's weights may lie in memory otherwise aligned, and a product of them be rounded otherwise
    close(logits(reloaded), logits(model))
    assert torch.equal(gnorm.head_mask_of(reloaded), mask)
    for block, other in zip(gnorm.attention_blocks(model), gnorm.attention_blocks(reloaded), strict=True):
        rows = len(block.kept) * 8
        if rows:
            assert {linear.out_features for linear in (block.query, block.key, block.value, *block.also)} == {rows}
            assert block.output.in_features == rows
        else:
            assert not any(isinstance(module, torch.nn.Linear) for module in block.owner.modules())
        for names, value in (("num_attention_heads num_heads n_heads", len(block.kept)), ("all_head_size", rows)):
            for attribute in names.split():
                assert getattr(block.module, attribute, value) == getattr(other.module, attribute, value) == value


def test_removal_in_two_steps_with_eager_attention_equals_one(encoder):
    encoder.set_attn_implementation("eager")
    first, second = random_mask(encoder), random_mask(encoder, seed=1)
    with gnorm.masked(encoder, first & second):
        expected = logits(encoder)
    gnorm.remove_heads(encoder, first)
    with gnorm.masked(encoder, second):
        close(logits(encoder), expected)
    gnorm.remove_heads(encoder, second)
    close(logits(encoder), expected)


def test_attentions_are_those_of_the_heads_left_layer_by_layer(encoder):
    """Asked for its attention weights, a pruned model gives a tensor for every layer, of as many heads as are left."""
    encoder.set_attn_implementation("eager")
    mask = masks(encoder)["empty"]
    batch = {name: tensor for name, tensor in batches_of(encoder, 1)[0].items() if name != "labels"}
    with torch.no_grad():
        whole = encoder(**batch, output_attentions=True).attentions
        gnorm.remove_heads(encoder, mask)
        cut = encoder(**batch, output_attentions=True).attentions
    of_layer = [p * len(mask) // len(whole) for p in range(len(whole))]  # passes through a shared block follow it
    assert [weights.shape[1] for weights in cut] == [int(mask[layer].sum()) for layer in of_layer]


def test_scores_equal_gradients_of_one_batch_at_a_time(encoder):
    """G-norm of image and text classifiers against autograd on whole batches."""
    batches = batches_of(encoder)
    blocks = gnorm.attention_blocks(encoder)
    sums = torch.zeros(len(blocks), 3, 4, dtype=torch.float64)
    for batch in batches:
        encoder.zero_grad()
        encoder(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.norm().backward()
        for layer, block in enumerate(blocks):
            for i, linear in enumerate((block.query, block.key, block.value)):
                sums[layer, i] += linear.weight.grad.double().view(4, -1).norm(dim=1)
    encoder.zero_grad()
    expected = sums.prod(1).log()
    close_logs(gnorm.gnorm_scores(encoder, batches), expected)


def test_images_are_counted_in_tokens_so_that_memory_is_bounded():
    model = make("vit")
    images = {"pixel_values": torch.randn(100, 3, 16, 16), "labels": torch.zeros(100).long()}  # 24 x hidden size each
    sizes = [len(micro.index) for micro in prepare([images, images], model, together=True)]
    assert sum(sizes) == 200
    assert max(sizes) == MAX_TOKENS["cpu"] // 24


def test_entropies_are_those_of_the_attentions_that_the_model_hands_out(encoder):
    batches = batches_of(encoder)
    found = gnorm.attention_entropy(encoder, batches)
    encoder.set_attn_implementation("eager")
    rows, texts = len(found), 0
    total = torch.zeros(rows, 4, dtype=torch.float64)
    for batch in batches:
        for i in range(len(batch["labels"])):
            length = int(batch["attention_mask"][i].sum()) if "attention_mask" in batch else None
            one = {n: t[i : i + 1, :length] if length else t[i : i + 1] for n, t in batch.items() if n != "labels"}
            with torch.no_grad():
                attentions = encoder(**one, output_attentions=True).attentions
            for p, weights in enumerate(attentions):
                total[p * rows // len(attentions)] += torch.special.entr(weights).sum(-1).mean(-1)[0].double()
            texts += 1
    close(found, total / texts)


def test_pruning_runs_to_the_last_head(encoder):
    run = gnorm.prune(encoder, batches_of(encoder), progress=False, heads_per_step=3)
    heads = int(gnorm.head_mask_of(encoder).sum())
    assert len(set(run.order())) == heads
    nothing = torch.zeros_like(gnorm.head_mask_of(encoder))
    with gnorm.masked(encoder, nothing):
        assert run.table.accuracy.iloc[-1] == gnorm.accuracy(encoder, batches_of(encoder))


def test_feed_forward_rows_lead_to_the_projections_at_the_ends_of_the_blocks(encoder):
    before = logits(encoder)
    with gnorm.without_feed_forward(encoder):
        assert not torch.equal(logits(encoder), before)
    assert torch.equal(logits(encoder), before)
