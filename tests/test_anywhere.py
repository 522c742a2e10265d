"""A saved folder is read by transformers alone, where gnorm is not installed, and gives the same to the last bit."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import test_encoders
import test_families
import torch
import transformers
from conftest import ragged_batches, tiny_model
from test_families import SEVERAL, random_mask

import gnorm
from gnorm.heads import FAMILIES

BATCH = {name: tensor for name, tensor in ragged_batches(1, longest=11)[0].items() if name != "labels"}

# Runs where nothing of gnorm can be imported. Prints what differs.
READER = """
import json, pathlib, sys, warnings

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gnorm":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch, transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

for folder in sorted(path for path in pathlib.Path.cwd().iterdir() if path.is_dir()):
    about = torch.load(folder / "expected.pt")
    auto = getattr(transformers, about["auto"])
    model, found = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    for parameter in model.parameters():  # memory that is aligned as in the other process
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        given = model(**about["batch"])
    same = {
        "class": type(model).__name__ == about["class"],
        "weights": all(torch.equal(model.state_dict()[name], tensor) for name, tensor in about["weights"].items()),
        "attributes": all(
            getattr(model.get_submodule(name), attribute) == value for name, attribute, value in about["attributes"]
        ),
        "outputs": all(torch.equal(given[name], tensor) for name, tensor in about["outputs"].items()),
    }
    if about["generated"] is not None:
        same["generated"] = torch.equal(model.generate(**about["generation"]), about["generated"])
    if "card.json" in {path.name for path in folder.iterdir()}:
        task, text, expected = json.loads((folder / "card.json").read_text())
        same["pipeline"] = transformers.pipeline(task, str(folder), trust_remote_code=True)(text) == expected
    print(json.dumps([folder.name, [name for name, fits in same.items() if not fits]]))
assert "gnorm" not in sys.modules
"""


def read_without_gnorm(folders, home):
    """What READER says of the folders below ``folders``: the differences by the name of the folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(READER)],
        cwd=folders,
        env={**kept, "HF_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


COUNTS = ("num_attention_heads", "num_heads", "n_heads", "all_head_size", "split_size", "inner_dim", "kept_heads")


def save(model, folder, auto, batch, generates=False):
    """Save a model, and beside it what ``load_pruned`` makes of the folder."""
    gnorm.save_pruned(model, folder)
    model = gnorm.load_pruned(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        outputs = model(**batch)
    prompt = {name: tensor for name, tensor in batch.items() if "decoder" not in name}
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    about = {
        "auto": auto.__name__,
        "class": type(model).__name__,
        "batch": batch,
        "weights": model.state_dict(),
        "attributes": [
            (name, attribute, getattr(module, attribute))
            for name, module in model.named_modules()
            for attribute in COUNTS
            if hasattr(module, attribute)
        ],
        "outputs": {name: tensor for name, tensor in outputs.items() if isinstance(tensor, torch.Tensor)},
        "generation": prompt | options,
        "generated": model.generate(**prompt, **options) if generates else None,
    }
    torch.save(about, folder / "expected.pt")


def cut(model):
    """Heads removed: unequal layers, one that is whole and one that is empty."""
    shape = gnorm.head_mask_of(model).shape
    gnorm.remove_heads(model, random_mask(shape) if shape[0] > 1 else [[0, 1, 1, 0]])
    return model


def classifiers():
    """A classifier of every family, by the name of a folder, its Auto class and a batch."""
    for module, names in ((test_encoders, test_encoders.MODELS), (test_families, test_families.CONFIGS)):
        for name in names:
            model = cut(module.make(name))
            batch = (module.batches_of(model) if module is test_encoders else module.batches_of(name))[0]
            batch = {key: tensor for key, tensor in batch.items() if key != "labels"}
            kinds = {"pixel_values": "Image", "input_values": "Audio"}
            auto = f"AutoModelFor{kinds.get(model.main_input_name, 'Sequence')}Classification"
            yield name.replace("/", "-"), model, getattr(transformers, auto), batch


def others():
    """Models of other kinds: with other heads, of decoders, and without any head."""
    config = tiny_model("bert", num_labels=2).config
    for kind, auto in (
        (transformers.BertModel, transformers.AutoModel),
        (transformers.BertForMaskedLM, transformers.AutoModelForMaskedLM),
        (transformers.BertForTokenClassification, transformers.AutoModelForTokenClassification),
        (transformers.BertForQuestionAnswering, transformers.AutoModelForQuestionAnswering),
        (transformers.BertForPreTraining, transformers.AutoModelForPreTraining),
    ):
        yield kind.__name__, cut(kind(config).eval()), auto, BATCH
    for name in ("gpt2", "llama", "gpt_neox", "mistral", "t5", "bart"):
        auto = transformers.AutoModelForSeq2SeqLM if name in SEVERAL else transformers.AutoModelForCausalLM
        decoder = {"decoder_input_ids": BATCH["input_ids"][:, :5]} if name in SEVERAL else {}
        yield f"generates-{name}", cut(test_families.make(name, auto)), auto, BATCH | decoder


def test_transformers_alone_reads_every_family_as_load_pruned_does(tmp_path):
    (tmp_path / "folders").mkdir()
    families = set()
    for name, model, auto, batch in (*classifiers(), *others()):
        families.add(model.config.model_type)
        save(model, tmp_path / "folders" / name, auto, batch, name.startswith("generates"))
    assert families == set(FAMILIES)
    differing = read_without_gnorm(tmp_path / "folders", tmp_path / "home")
    assert set(differing) == {path.name for path in (tmp_path / "folders").iterdir()}
    assert not any(differing.values()), differing
