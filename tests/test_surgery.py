"""Saving and loading pruned models."""

import json

import pytest
import torch
from conftest import tiny_model
from test_heads import logits, random_mask

import gnorm


@pytest.mark.parametrize("empty", ["no layer", "a layer", "every layer"])
def test_a_pruned_model_reloads_equal_to_the_masked_one(model, empty, tmp_path):
    mask = random_mask(model, empty_layer=0 if empty == "a layer" else None)
    if empty == "every layer":
        mask[:] = False
    with gnorm.masked(model, mask):
        expected = logits(model)
    gnorm.remove_heads(model, mask)
    folder = gnorm.save_pruned(model, tmp_path / "pruned ünd saved")
    reloaded = gnorm.load_pruned(folder)
    assert torch.equal(logits(reloaded), logits(model))
    torch.testing.assert_close(logits(reloaded), expected, atol=1e-5, rtol=0)
    assert torch.equal(gnorm.head_mask_of(reloaded), mask)
    assert not reloaded.training
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name]


def test_an_intact_model_saves_and_loads_too_and_can_be_pruned_again(tmp_path):
    model = tiny_model("bert")
    reloaded = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    assert torch.equal(logits(reloaded), logits(model))
    mask = random_mask(model)
    gnorm.remove_heads(reloaded, mask)
    again = gnorm.load_pruned(gnorm.save_pruned(reloaded, tmp_path / "again"), attn_implementation="eager")
    assert again.config._attn_implementation == "eager"
    assert torch.equal(gnorm.head_mask_of(again), mask)


def test_half_precision_is_kept(tmp_path):
    model = tiny_model("bert").to(torch.bfloat16)
    gnorm.remove_heads(model, random_mask(model))
    folder = gnorm.save_pruned(model, tmp_path / "half")
    assert gnorm.load_pruned(folder).dtype == torch.bfloat16
    assert gnorm.load_pruned(folder, dtype=torch.float32).dtype == torch.float32


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        gnorm.save_pruned(tiny_model("bert"), tmp_path / "model")


def test_a_failure_while_saving_leaves_nothing(tmp_path, monkeypatch):
    model = tiny_model("bert")
    monkeypatch.setattr(type(model), "save_pretrained", None)
    with pytest.raises(TypeError):
        gnorm.save_pruned(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_loaded_say_why(tmp_path):
    model = tiny_model("bert")
    with pytest.raises(FileNotFoundError, match=r"has no config.json: give a folder that gnorm.save_pruned wrote"):
        gnorm.load_pruned(tmp_path)
    model.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="has no head_mask"):
        gnorm.load_pruned(tmp_path / "plain")
    gnorm.remove_heads(model, random_mask(model))
    folder = gnorm.save_pruned(model, tmp_path / "pruned")
    config = json.loads((folder / "config.json").read_text())
    config["head_mask"][1] = [1, 1, 1, 1]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="contradict the head mask"):
        gnorm.load_pruned(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors"):
        gnorm.load_pruned(folder)
