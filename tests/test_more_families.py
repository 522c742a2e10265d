"""Families of one row each: masked == removed == reloaded == transformers alone, and scores by plain autograd."""

import copy
import sys
import tempfile

import pytest
import torch
import transformers
from more_models import MODELS, TEXT
from precision import close_logs, differ

import gnorm
from gnorm.engine.model.families import FAMILIES
from gnorm.engine.model.state import evaluating
from gnorm.engine.trials.family_check import try_row

LENGTHS = torch.tensor([9, 4, 7])  # tokens of texts, padded behind
WITH_DECODER = ("Seq2SeqLM", "SpeechSeq2Seq")


def auto_of(name):
    auto = MODELS[name][0]
    return getattr(transformers, f"AutoModelFor{auto}", None) or transformers.AutoModel


def make(name, **overrides):
    """The model, far from uniform: weights of 0.2 standard deviation, norms and biases random too, in eval mode."""
    auto, options, *_ = MODELS[name]
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
    if auto in WITH_DECODER:
        batch["decoder_input_ids"] = torch.randint(6, 30, (count, width), generator=generator)
        return batch | {"labels": torch.randint(6, 30, (count, width), generator=generator)}
    if auto == "QuestionAnswering":
        return batch | {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([3, 3, 5])}
    per_token = auto in ("CausalLM", "MaskedLM", "TokenClassification")
    return batch | {"labels": ids.where(mask == 1, -100) if per_token else torch.arange(count) % 3}


def answer(model, batch):
    """The logits, without those of padding."""
    found = model(**{name: tensor for name, tensor in batch.items() if "label" not in name and "positions" not in name})
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


def check(name):
    """What every family is held to."""
    model = make(name)
    batch = batch_of(name)
    blocks = gnorm.attention_blocks(model)
    inputs = {key: tensor for key, tensor in batch.items() if "label" not in key and "positions" not in key}
    if name not in SUMS_OUTSIDE:
        try_row(model, inputs)
    # Scores: norms of gradients of the logits' norm by plain autograd.
    expected = torch.zeros(len(blocks), 3, blocks[0].num_heads, dtype=torch.float64)
    with torch.enable_grad():
        answer(model, batch).norm().backward()
    for row, block in zip(expected, blocks, strict=True):
        for of_part, part in zip(row, ("query", "key", "value"), strict=True):
            projection = block.projection(part)
            gradient = projection.module.weight.grad
            if type(projection.module).__name__ == "Conv1D":
                gradient = gradient.T
            if gradient is not None:
                of_part += projection.by_head(gradient).double().flatten(1).norm(dim=1)
    model.zero_grad()
    scores = gnorm.gnorm_scores(model, [batch])
    torch.testing.assert_close(scores, expected.prod(1).log(), rtol=0, atol=1e-3)
    # Masks: what a head hands to the output projection is zero.
    mask = unequal_mask(*scores.shape)
    zeroed, smaller = copy.deepcopy(model), copy.deepcopy(model)
    for block, row in zip(gnorm.attention_blocks(zeroed), mask, strict=True):
        output = block.projection("output")
        columns = output.rows[~row].flatten()
        output.matrix[:, columns] = 0
    with torch.no_grad():
        expected = answer(zeroed, batch)
        differ(expected, answer(model, batch))
        with gnorm.masked(model, mask):
            equal(answer(model, batch), expected)
        gnorm.remove_heads(smaller, mask)
        assert torch.equal(gnorm.head_mask_of(smaller), mask)
        equal(answer(smaller, batch), expected)
        equal(answer(copy.deepcopy(smaller), batch), expected)
        with tempfile.TemporaryDirectory() as folder:
            gnorm.save_pruned(smaller, folder)
            reloaded = gnorm.load_pruned(folder)
            alone = auto_of(name).from_pretrained(folder, trust_remote_code=True)
        assert type(alone).__module__.startswith("transformers_modules")
        for model in (reloaded, alone):
            equal(answer(model, batch), expected)
            assert not [n for n, t in (*model.named_parameters(), *model.named_buffers()) if not t.numel()]


SUMS_OUTSIDE = ("deberta",)  # a bias by head is added behind the projection of values


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """transformers copies the code of folders to a place of this test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("name", list(MODELS))
def test_masked_equals_removed_equals_reloaded_and_scores_equal_plain_autograd(name, modules):
    check(name)
