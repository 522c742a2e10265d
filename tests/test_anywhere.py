"""A saved folder is read by transformers alone, where gnorm is not installed, and gives the same."""

import itertools
import json
import os
import runpy
import subprocess
import sys

import models
import onnx
import pytest
import torch
import transformers
from hub import Hub
from models import batches_of, make, random_masks
from precision import close
from tiny import ragged_batches, tiny_model, without_elements

import gnorm
from gnorm.engine.model import projections
from gnorm.engine.model.families import FAMILIES
from gnorm.shipping.costs import intact_of
from gnorm.storage.loading import load_checked
from gnorm.storage.modeling import auto_map

WORDS = transformers.BertTokenizer(
    vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(116))])}
)
BATCH = {name: tensor for name, tensor in ragged_batches(1, longest=11)[0].items() if name != "labels"}

# Runs in the folder of all folders, where nothing of gnorm can be imported. Prints what differs, by folder.
READER = """
import json, pathlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gnorm":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import huggingface_hub, torch, transformers
transformers.logging.disable_progress_bar()

def differing(source, about):
    auto = getattr(transformers, about["auto"])
    model, found = auto.from_pretrained(source, trust_remote_code=True, output_loading_info=True)
    for parameter in model.parameters():  # memory that is aligned as in the other process
        parameter.data = parameter.data.clone()
    weights = model.state_dict()
    with torch.no_grad():
        given = model(**about["batch"])
    fits = {
        "class": type(model).__name__ == about["class"] and "modeling_pruned" in type(model).__module__,
        "keys": not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")),
        "weights": all(torch.equal(weights[name], tensor) for name, tensor in about["weights"].items()),
        "counts": all(getattr(model.get_submodule(path), name) == value for path, name, value in about["counts"]),
        "outputs": all(torch.equal(given[name], tensor) for name, tensor in about["outputs"].items()),
    }
    if about["generated"] is not None:
        fits["generated"] = torch.equal(model.generate(**about["generation"]), about["generated"])
    if about["pipeline"] is not None:
        task, text, expected = about["pipeline"]
        fits["pipeline"] = transformers.pipeline(task, str(source), trust_remote_code=True)(text) == expected
    return model, [name for name, same in fits.items() if not same]

for folder in sorted(pathlib.Path.cwd().iterdir()):
    print(json.dumps([folder.name, differing(folder, torch.load(folder / "expected.pt"))[1]]))

about = torch.load("bert/expected.pt")
huggingface_hub.create_repo("me/smaller")
huggingface_hub.upload_folder(repo_id="me/smaller", folder_path="bert")
model, uploaded = differing("me/smaller", about)
print(json.dumps(["upload_folder", uploaded]))
model.push_to_hub("me/again")
print(json.dumps(["push_to_hub", differing("me/again", about | {"pipeline": None})[1]]))
assert "gnorm" not in sys.modules
"""


def read_without_gnorm(folders, hub):
    """The words of READER on the folders in ``folders``: what differs, by the name of the folder."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    of_hub = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_any", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", READER],
        cwd=folders,
        env=kept | of_hub | {"HF_HOME": str(folders.parent / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


# Of every way through the template of the modelling file one model, every time; all families by `make soak`.
ALWAYS = (
    *("bert", "albert", "distilbert", "mpnet", "deberta-v2-relative", "modernbert", "gpt2", "llama", "t5", "bart"),
    *("vit", "wav2vec2", "BertModel", "BertForTokenClassification", "gpt2-generates", "llama-generates"),
    "t5-generates",
)
COUNTS = ("num_attention_heads", "num_heads", "n_heads", "all_head_size", "split_size", "inner_dim", "kept_heads")


def aligned(model):
    """The model with weights in memory of their own, where products do not depend on where a file had them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def save(model, folder, auto, batch):
    """Save a model, and beside it what ``load_pruned`` makes of the folder."""
    tokenizer = WORDS if folder.name == "bert" else None
    gnorm.save_pruned(model, folder, tokenizer)
    model = aligned(gnorm.load_pruned(folder))
    with torch.no_grad():
        outputs = model(**batch)
    generation = {name: tensor for name, tensor in batch.items() if "decoder" not in name}
    generation |= {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    pipeline = ["text-classification", "w1 w2 w3"]
    about = {
        "auto": auto.__name__,
        "class": type(model).__name__,
        "batch": batch,
        "weights": model.state_dict(),
        "counts": [
            (path, name, getattr(module, name))
            for path, module in model.named_modules()
            for name in COUNTS
            if hasattr(module, name)
        ],
        "outputs": {name: tensor for name, tensor in outputs.items() if isinstance(tensor, torch.Tensor)},
        "generation": generation,
        "generated": model.generate(**generation)
        if model.can_generate() and folder.name != models.GENERATES_WRONG
        else None,
        "pipeline": tokenizer
        and [*pipeline, transformers.pipeline(pipeline[0], model, tokenizer=tokenizer)(pipeline[1])],
    }
    torch.save(about, folder / "expected.pt")


def cut(model):
    """Heads removed: unequal layers, one that is whole and one that is empty."""
    shape = gnorm.head_mask_of(model).shape
    gnorm.remove_heads(model, random_masks(shape)[0] if shape[0] > 1 else torch.arange(shape[1])[None] % 3 > 0)
    return model


def classifiers(only):
    """A classifier of every family, by the name of a folder, its Auto class and a batch; only those named, if any."""
    for name in models.ROWS:
        if only and name.replace("/", "-") not in only:
            continue
        model = cut(make(name))
        batch = {key: tensor for key, tensor in batches_of(model, name=name)[0].items() if key not in models.LABELS}
        yield name.replace("/", "-"), model, models.auto_of(name), batch


def others():
    """Models without a head or with another one; those that generate; some whose weights have other names in files."""
    config = tiny_model("bert", num_labels=2).config
    for kind, auto in (
        (transformers.BertModel, transformers.AutoModel),
        (transformers.BertForMaskedLM, transformers.AutoModelForMaskedLM),
        (transformers.BertForTokenClassification, transformers.AutoModelForTokenClassification),
        (transformers.BertForQuestionAnswering, transformers.AutoModelForQuestionAnswering),
        (transformers.BertForPreTraining, transformers.AutoModelForPreTraining),
    ):
        yield kind.__name__, cut(kind(config).eval()), auto, BATCH
    images = {"image_size": 16, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.ViTModel(transformers.ViTConfig(**images, intermediate_size=48)).eval()
    yield "ViTModel", cut(model), transformers.AutoModel, {"pixel_values": torch.ones(1, 3, 16, 16)}
    for name in ("gpt2", "llama", "gpt_neox", "mistral", "t5", "bart"):
        auto = models.auto_of(name, generates=True)
        decoder = {"decoder_input_ids": BATCH["input_ids"][:, :5]} if name in ("t5", "bart") else {}
        yield f"{name}-generates", cut(make(name, auto)), auto, BATCH | decoder


@pytest.mark.parametrize("only", [ALWAYS, pytest.param((), marks=pytest.mark.soak)], ids=["some", "every family"])
def test_transformers_alone_reads_folders_as_load_pruned_does(only, tmp_path):
    """Also from a hub to which ``upload_folder`` brought the folder, or ``push_to_hub`` the model read from there."""
    folders, families = tmp_path / "folders", set()
    folders.mkdir()
    for name, model, auto, batch in itertools.chain(classifiers(only), others()):
        if not only or name in only:
            families.add(model.config.model_type)
            save(model, folders / name, auto, batch)
    assert only or families == set(FAMILIES)
    assert {path.name for path in folders.iterdir()} >= set(only)
    with Hub({}) as hub:
        differing = read_without_gnorm(folders, hub)
    assert set(differing) == {path.name for path in folders.iterdir()} | {"upload_folder", "push_to_hub"}
    assert not any(differing.values()), differing
    (tmp_path / "again").mkdir()
    for name, content in hub.repositories["models", "me/again"].items():
        (tmp_path / "again" / name).write_bytes(content)
    weights = gnorm.load_pruned(tmp_path / "again").state_dict()
    expected = torch.load(folders / "bert" / "expected.pt")["weights"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """transformers copies the code of folders to a place of this test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


def logits(model, batch):
    with torch.no_grad():
        return aligned(model)(**batch).logits


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_what_a_modelling_file_built_is_pruned_further_and_saved_again(name, tmp_path, modules):
    auto = transformers.AutoModelForSequenceClassification
    intact = tiny_model("bert") if name == "bert" else make(name)
    batches = ragged_batches() if name == "bert" else batches_of(name)
    batch = {key: tensor for key, tensor in batches[0].items() if key != "labels"}
    folder = gnorm.save_pruned(cut(intact), tmp_path / "first")
    model, ours = auto.from_pretrained(folder, trust_remote_code=True), gnorm.load_pruned(folder)
    kind = type(model)
    assert kind is not type(ours)
    assert issubclass(kind, type(ours))
    runs = [gnorm.prune(each, batches, steps=2, progress=False) for each in (model, ours)]
    assert runs[0].order() == runs[1].order()
    for each in (model, ours):
        gnorm.remove_heads(each, runs[1].mask(pruned_heads=2))
    expected = logits(ours, batch)
    assert torch.equal(logits(model, batch), expected)
    again = gnorm.save_pruned(model, tmp_path / "again")
    assert type(model) is kind
    model.save_pretrained(tmp_path / "plain")
    assert type(gnorm.load_pruned(again, model_class=kind)) is type(ours)
    assert type(intact_of(model)) is type(ours)
    for place in (again, tmp_path / "plain"):
        read = auto.from_pretrained(place, trust_remote_code=True)
        assert torch.equal(logits(read, batch), expected)
        reloaded = gnorm.load_pruned(place)
        assert type(reloaded) is type(ours)
        assert torch.equal(logits(reloaded, batch), expected)
        assert torch.equal(gnorm.head_mask_of(reloaded), gnorm.head_mask_of(ours))
        assert (place / "modeling_pruned.py").read_text() == (folder / "modeling_pruned.py").read_text()
    assert json.loads((again / "config.json").read_text())["architectures"] == [type(ours).__name__]


def as_version_1_built(model, mask):
    """A layer without heads has projections without rows, as the modelling files of version 1.0 left them."""
    gnorm.remove_heads(model, mask | ~mask.any(1, keepdim=True))
    for block, row in zip(gnorm.attention_blocks(model), mask, strict=True):
        for module, parts in block.by_module().items() if not row.any() else ():
            projections.cut(module, torch.arange(0), parts[0].of_input)
    model.config.head_mask = mask.int().tolist()


@pytest.mark.parametrize("family", ["bert", pytest.param("distilbert", marks=pytest.mark.soak)])
def test_what_a_modelling_file_of_version_1_built_is_saved_and_exported(family, tmp_path):
    model, mask = tiny_model(family), torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    batch = {name: tensor for name, tensor in ragged_batches()[0].items() if name != "labels"}
    as_version_1_built(model, mask)
    expected, weights = logits(model, batch), {name: each.clone() for name, each in model.state_dict().items()}
    assert without_elements(model)
    read = gnorm.load_pruned(gnorm.save_pruned(model, tmp_path / "model"))
    close(logits(read, batch), expected)
    assert not without_elements(read)
    if family == "bert":  # exporting takes seconds
        stored = onnx.load(gnorm.export_onnx(model, tmp_path / "model.onnx")).graph.initializer
        assert all(0 not in each.dims for each in stored)
    assert {name: each.shape for name, each in model.state_dict().items()} == {n: w.shape for n, w in weights.items()}
    assert torch.equal(logits(model, batch), expected)


def test_load_pruned_runs_no_code_of_a_folder(tmp_path, modules):
    folder, ran = gnorm.save_pruned(cut(tiny_model("bert")), tmp_path / "model"), tmp_path / "ran"
    (folder / "modeling_pruned.py").write_text(f"open({str(ran)!r}, 'w').close()\nraise SystemExit")
    auto = transformers.AutoModelForSequenceClassification
    for options in ({}, {"trust_remote_code": True}, {"model_class": auto}):
        gnorm.load_pruned(folder, **options)
    load_checked(folder, auto)
    assert not ran.exists()
    with pytest.raises(SystemExit):
        auto.from_pretrained(folder, trust_remote_code=True)
    assert ran.exists()


@pytest.mark.parametrize("kind", ["bert", "albert", "gpt2", "llama", "t5-generates"])
def test_the_folder_of_a_model_with_a_head_is_read_as_its_body(kind, tmp_path, modules):
    """By ``AutoModel``, as an intact folder is: feature extraction and sentence-transformers ask for that."""
    name, _, generates = kind.partition("-")
    if name in ("bert", "albert"):
        model = cut(tiny_model(name))
    else:
        model = cut(make(name, transformers.AutoModelForSeq2SeqLM if generates else None))
    folder = gnorm.save_pruned(model, tmp_path / "model", WORDS)
    body, found = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert type(body).__mro__[1] is transformers.AutoModel._model_mapping[type(model.config)]
    assert not any(found[of] for of in ("missing_keys", "mismatched_keys"))
    assert torch.equal(gnorm.head_mask_of(body), gnorm.head_mask_of(model))
    batch = BATCH | ({"decoder_input_ids": BATCH["input_ids"][:, :3]} if name == "t5" else {})
    with torch.no_grad():
        expected = aligned(model)(**batch, output_hidden_states=True)
        given = aligned(body)(**batch)
    of_model = expected.decoder_hidden_states if name == "t5" else expected.hidden_states
    assert torch.equal(given.last_hidden_state, of_model[-1])
    if name == "bert":
        extract = transformers.pipeline("feature-extraction", str(folder), trust_remote_code=True)
        assert torch.tensor(extract("w1 w2")).shape == (1, 4, 32)


def test_a_body_with_other_attention_than_the_model_is_not_named(tmp_path):
    """``AutoModel`` of a Whisper has a decoder, its classifier has none."""
    folder = gnorm.save_pruned(cut(make("whisper")), tmp_path / "model")
    assert list(json.loads((folder / "config.json").read_text())["auto_map"]) == ["AutoModelForAudioClassification"]


@pytest.mark.parametrize(("name", "since", "older"), [("t5", "5.15", "5.14.1"), ("bert", "4.57", "4.56.2")])
def test_a_folder_says_which_transformers_it_needs_and_refuses_an_older_one(name, since, older, tmp_path, monkeypatch):
    """Up to 5.14.1, the T5 of transformers drops its mask where it is given a bias by position."""
    model = cut(tiny_model(name) if name == "bert" else make(name))
    folder = gnorm.save_pruned(model, tmp_path / "model")
    assert json.loads((folder / "config.json").read_text())["needs_transformers"] == f">={since}"
    assert not hasattr(model.config, "needs_transformers")
    assert not hasattr(gnorm.load_pruned(folder).config, "needs_transformers")
    file = str(folder / "modeling_pruned.py")
    imported = sys.modules["transformers"]  # not always the module that was imported first
    monkeypatch.setattr(imported, "__version__", older)
    with pytest.raises(ImportError, match=rf"needs transformers {since} or later, but {older} is installed"):
        runpy.run_path(file)
    monkeypatch.setattr(imported, "__version__", f"{since}.0.dev0")
    runpy.run_path(file)


class OnesOwn(transformers.BertForSequenceClassification):
    """Transformers does not have this class."""


def test_a_modelling_file_is_there_only_where_it_is_right(tmp_path):
    """A class of one's own gets none; what ``save_pretrained`` writes without the file does not name it."""
    config = tiny_model("bert").config
    config.auto_map = {"AutoConfig": "mine.Config"}
    model = cut(transformers.BertForSequenceClassification(config))
    folder = gnorm.save_pruned(model, tmp_path / "model")
    assert model.config.auto_map == config.auto_map == {"AutoConfig": "mine.Config"}
    named = {"AutoModelForSequenceClassification": "modeling_pruned.BertForSequenceClassification"}
    named["AutoModel"] = "modeling_pruned.BertModel"
    assert json.loads((folder / "config.json").read_text())["auto_map"] == config.auto_map | named
    gnorm.load_pruned(folder).save_pretrained(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["auto_map"] == config.auto_map
    del config.auto_map
    assert not hasattr(
        gnorm.load_pruned(gnorm.save_pruned(cut(tiny_model("bert")), tmp_path / "it")).config, "auto_map"
    )
    gnorm.save_pruned(cut(OnesOwn(config)), tmp_path / "own")
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["config.json", "model.safetensors"]
    assert "auto_map" not in json.loads((tmp_path / "own" / "config.json").read_text())


def test_a_class_that_no_auto_class_gives_is_read_by_automodel():
    config = transformers.GPT2Config()
    assert auto_map(transformers.GPT2DoubleHeadsModel, config) == {"AutoModel": "modeling_pruned.GPT2DoubleHeadsModel"}
    assert list(auto_map(transformers.GPT2LMHeadModel, config)) == ["AutoModelForCausalLM", "AutoModelForPreTraining"]
