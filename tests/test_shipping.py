"""A user's own checkpoint and CSV: the five lines as they stand, what they leave, and what is refused."""

import copy
import inspect
import json
import re
import textwrap
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
from tiny import ragged_batches, tiny_model

import gnorm
from experiments.data import tasks
from experiments.data.training import Recipe, train
from gnorm import shipping
from gnorm.methods import find_method

pytestmark = pytest.mark.usefixtures("quick_costs")


@pytest.fixture(scope="module")
def task():
    return tasks.load("smoke", "bert", device="cpu", progress=False)


@pytest.fixture
def home(task, tmp_path, monkeypatch):
    """A folder with a checkpoint and a CSV that names the labels, as a user has them."""
    monkeypatch.chdir(tmp_path)
    task.model.save_pretrained("my-checkpoint")
    task.tokenizer.save_pretrained("my-checkpoint")
    frame = task.splits["test"].to_pandas()
    frame["label"] = [task.model.config.id2label[label] for label in frame.label]
    frame.to_csv("my-texts.csv", index=False)
    return tmp_path


def rows_of(card):
    return {
        cells[0]: cells[1:]
        for cells in re.findall(r"^\| (\w[\w ]*) \| (.*?) \| (.*?) \| (.*?) \|$", card, re.MULTILINE)
    }


def test_the_five_lines_run_as_they_stand(home, task):
    frame = task.splits["train"].to_pandas()[:600]  # enough for a budget of one point
    frame["label"] = [task.model.config.id2label[label] for label in frame.label]
    frame.to_csv("my-texts.csv", index=False)
    lines = textwrap.dedent("\n".join(re.findall(r"^    \S.*$", shipping.__doc__, re.MULTILINE)))
    assert len(lines.splitlines()) == 5
    found = {}
    exec(lines, found)  # noqa: S102 our own docstring
    folder, own, model = home / "my-smaller-model", found["own"], found["model"]
    files = {"README.md", "config.json", "model.safetensors", "modeling_pruned.py", "tokenizer.json"}
    assert files <= {path.name for path in folder.iterdir()}
    assert [sum(len(b["labels"]) for b in part) for part in (own.scoring, own.choosing, own.testing)] == [128, 236, 236]

    pruned = shipping.Promise(0.01).last_kept(found["run"])
    assert torch.equal(gnorm.head_mask_of(model), found["run"].mask(pruned))
    before, after = gnorm.accuracy(own.model, own.testing), gnorm.accuracy(model, own.testing)
    card = (folder / "README.md").read_text("utf-8")
    head = huggingface_hub.ModelCard(card).data
    assert (head.library_name, head.pipeline_tag) == ("transformers", "text-classification")
    assert "attention-head-pruning" in head.tags
    assert card.count("```python") == 2
    assert 'gnorm.load_pruned("my-smaller-model")' in card
    assert 'AutoModelForSequenceClassification.from_pretrained("my-smaller-model", trust_remote_code=True)' in card
    rows = rows_of(card)
    assert rows["intact"][:2] == ("236", f"{before:.4f}")
    assert rows["pruned"][:2] == ("236", f"{after:.4f}")
    assert rows["change"][:2] == ("236", f"{after - before:+.4f}")
    low, high = (float(x) for x in rows["pruned"][2].split(" to "))
    z, n = 1.959964, 236
    centre = (after + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (after * (1 - after) / n + z * z / (4 * n * n)) ** 0.5
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-4)
    assert f"with {pruned} of its 8 attention heads removed" in card
    kept = gnorm.head_mask_of(model).sum(1).tolist()
    assert f"| layer | 0 | 1 |\n|:--|--:|--:|\n| heads kept | {kept[0]} | {kept[1]} |\n" in card
    assert f"{gnorm.shipping.costs.num_parameters(model):,} after" in card
    assert re.findall(r"^\| (\d+) \| 8 \| [\d.]+ \| [\d.]+ \|", card, re.MULTILINE) == ["1", "8", "32"]
    assert f"{find_method(shipping.RECOMMENDED).title}, a head at a time" in card
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("hola")["input_ids"] == own.tokenizer("hola")["input_ids"]
    again = shipping.load(folder, "my-texts.csv")  # and it can be pruned further
    assert torch.equal(gnorm.head_mask_of(again.model), gnorm.head_mask_of(model))


def test_no_text_is_in_two_shares_and_the_draw_is_seeded(home):
    frame = pd.read_csv("my-texts.csv")
    pd.concat([frame, frame]).to_csv("twice.csv", index=False)

    def texts(own, share):
        decoded = (own.tokenizer.batch_decode(b["input_ids"], skip_special_tokens=True) for b in getattr(own, share))
        return [text for batch in decoded for text in batch]

    own, other = (
        shipping.load("my-checkpoint", "twice.csv", scoring=40),
        shipping.load("my-checkpoint", "twice.csv", scoring=40),
    )
    shares = [texts(own, share) for share in ("scoring", "choosing", "testing")]
    assert [len(share) for share in shares] == [40, 80, 80]
    assert shares == [texts(other, share) for share in ("scoring", "choosing", "testing")]
    assert shares[2] != texts(shipping.load("my-checkpoint", "twice.csv", scoring=40, seed=1), "testing")
    everything = [text for share in shares for text in share]
    assert len(set(everything)) >= 0.99 * len(everything)  # two texts may come out of the tokenizer alike


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: f.assign(text=[*f.text[:2], " ", *f.text[3:]]), "row 3 of bad.csv has an empty text"),
        (lambda f: f[:29], "has 29 different texts; give at least 30"),
        (lambda f: pd.concat([f[:20]] * 9), "has 20 different texts"),
    ],
)
def test_texts_that_will_not_do_are_refused(home, change, complaint):
    change(pd.read_csv("my-texts.csv")).to_csv("bad.csv", index=False)
    with pytest.raises(ValueError, match=complaint):
        shipping.load("my-checkpoint", "bad.csv")


def test_tables_in_memory_give_what_the_file_gives(home):
    frame = pd.read_csv("my-texts.csv")
    from_file = shipping.load("my-checkpoint", "my-texts.csv")
    for texts, name in ((frame, "a DataFrame"), (datasets.Dataset.from_pandas(frame), "a Dataset")):
        own = shipping.load("my-checkpoint", texts)
        assert own.data == name
        for share in ("scoring", "choosing", "testing"):
            for mine, other in zip(getattr(own, share), getattr(from_file, share), strict=True):
                assert all(torch.equal(mine[key], other[key]) for key in ("input_ids", "attention_mask", "labels"))


def test_classes_named_by_numbers_are_asked_about_where_both_readings_differ(home):
    config = transformers.AutoConfig.from_pretrained("my-checkpoint")
    names = ["1", "2", "3", "4"]
    config.update({"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}})
    config.save_pretrained("my-checkpoint")
    frame = pd.read_csv("my-texts.csv").assign(label=["1", "2"] * 100)
    with pytest.raises(ValueError, match='say labels="names" or labels="numbers"'):
        shipping.load("my-checkpoint", frame)
    for labels, numbers in (("names", {0, 1}), ("numbers", {1, 2})):
        own = shipping.load("my-checkpoint", frame, labels=labels)
        assert {int(label) for batch in own.testing for label in batch["labels"]} == numbers


def _change_config(**changes):
    path = Path("my-checkpoint/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(  # beside what any loading refuses, in test_loading
    ("harm", "complaint"),
    [
        (
            lambda: _change_config(id2label={"de": 0}, label2id={}),
            "my-checkpoint/config.json must give names to numbers",
        ),
        (lambda: _change_config(label2id={"de": "0"}), "label2id in config.json of my-checkpoint gives '0' for 'de'"),
        (lambda: Path("my-checkpoint/tokenizer.json").write_text("{"), "the tokenizer in my-checkpoint cannot be read"),
    ],
)
def test_a_checkpoint_that_will_not_do_is_refused_with_what_helps(home, harm, complaint):
    harm()
    with pytest.raises(ValueError, match=complaint):
        shipping.load("my-checkpoint", "my-texts.csv")


def test_a_folder_of_sentence_transformers_is_taken_where_it_has_a_classifier(home):
    Path("my-checkpoint/modules.json").write_text("[]")  # a CrossEncoder's folder
    assert shipping.load("my-checkpoint", "my-texts.csv").checkpoint == "my-checkpoint"
    whole = Path("my-checkpoint/model.safetensors").read_bytes()
    Path("my-checkpoint/model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="the weights in my-checkpoint are damaged"):
        shipping.load("my-checkpoint", "my-texts.csv")
    Path("my-checkpoint/model.safetensors").write_bytes(whole)
    transformers.AutoModel.from_pretrained("my-checkpoint").save_pretrained("my-checkpoint")
    with pytest.raises(ValueError, match="my-checkpoint holds a SentenceTransformer, which has no classifier"):
        shipping.load("my-checkpoint", "my-texts.csv")
    Path("my-checkpoint/config.json").unlink()
    with pytest.raises(ValueError, match="my-checkpoint holds a SentenceTransformer"):
        shipping.load("my-checkpoint", "my-texts.csv")


def test_a_checkpoint_that_is_no_folder_is_refused(home):
    for name in ("nowhere", "some/name", str(home / "nowhere")):
        with pytest.raises(
            FileNotFoundError, match=f"{name} has no config.json, and the hub gives no model of that name"
        ):
            shipping.load(name, "my-texts.csv")
    with pytest.raises(ValueError, match=r"my-checkpoint/config.json is a file: give the folder"):
        shipping.load("my-checkpoint/config.json", "my-texts.csv")
    model = tiny_model("bert")
    with pytest.raises(
        TypeError, match="a checkpoint is a folder, not a BertForSequenceClassification: save the model and"
    ):
        shipping.load(model, "my-texts.csv")
    with pytest.raises(TypeError, match="not a DataParallel: save its .module and its tokenizer with save_pretrained"):
        shipping.load(torch.nn.DataParallel(model), "my-texts.csv")


def test_what_the_model_does_not_take_is_refused_on_loading(home):
    tokenizer = transformers.AutoTokenizer.from_pretrained("my-checkpoint")
    tokenizer.add_tokens(["hallo"])  # one more than the model has embeddings for
    tokenizer.save_pretrained("my-checkpoint")
    frame = pd.read_csv("my-texts.csv").assign(text=lambda f: "hallo " + f.text)
    with pytest.raises(ValueError, match="has token ids from .*: use the tokenizer that belongs to it"):
        shipping.load("my-checkpoint", frame)
    tokenizer.pad_token = None
    tokenizer.save_pretrained("my-checkpoint")
    with pytest.raises(ValueError, match="the tokenizer of my-checkpoint has no padding token"):
        shipping.load("my-checkpoint", frame)


def test_a_run_of_another_model_and_a_folder_that_exists_are_refused(home):
    own = shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(tiny_model("bert"), ragged_batches(), steps=1, progress=False)
    with pytest.raises(ValueError, match="prune own.model itself"):
        shipping.ship(own, run, "smaller")
    with pytest.raises(FileExistsError, match="exists already"):
        shipping.ship(own, run, "my-checkpoint")


def test_a_folder_is_taken_where_it_is_empty_and_replaced_where_that_is_asked(home, monkeypatch):
    own = shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing, steps=1, progress=False)
    (home / "smaller").mkdir()
    assert shipping.ship(own, run, "smaller", 0.1) == Path("smaller")
    (home / "smaller" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="smaller exists already and holds README.md"):
        shipping.ship(own, run, "smaller", 0.1)
    shipping.ship(own, run, "smaller", 0.1, overwrite=True)
    assert not (home / "smaller" / "notes.txt").exists()
    assert gnorm.load_pruned("smaller").config.id2label == own.model.config.id2label


def test_what_cannot_be_saved_is_refused_before_anything_is_measured(home, monkeypatch):
    own = shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing, steps=1, progress=False)
    monkeypatch.setattr(gnorm.shipping.release, "text_values_of", None)
    own.model.config.note = {1, 2}
    with pytest.raises(ValueError, match="configuration cannot be saved .its note is set: .*: correct that in"):
        shipping.ship(own, run, "smaller", 0.1)
    own.model.config.note = "none"
    monkeypatch.setattr(own.tokenizer, "save_pretrained", lambda folder: 1 / 0)
    with pytest.raises(ValueError, match="the tokenizer cannot be saved .division by zero.: correct it first"):
        shipping.ship(own, run, "smaller", 0.1)
    assert not (home / "smaller").exists()


def test_what_cannot_be_saved_is_refused_before_the_run(home):
    config = json.loads((home / "my-checkpoint" / "config.json").read_text())
    weights = safetensors.torch.load_file(home / "my-checkpoint" / "model.safetensors")
    saved = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (home / "my-checkpoint" / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"my-checkpoint is quantised .bitsandbytes., .*: give the checkpoint that it"):
        shipping.load("my-checkpoint", "my-texts.csv")
    (home / "my-checkpoint" / "config.json").write_text(json.dumps(config))
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    safetensors.torch.save_file(
        weights | {name: torch.ones(3, 3)}, home / "my-checkpoint" / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=f"{name} do not match, as Bert.* has no place for them"):
        shipping.load("my-checkpoint", "my-texts.csv")

    class BertForSequenceClassification(transformers.BertForSequenceClassification):
        pass

    safetensors.torch.save_file(weights, home / "my-checkpoint" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="transformers has another BertForSequenceClassification, which would be load"):
        shipping.load("my-checkpoint", "my-texts.csv", model_class=BertForSequenceClassification)


def test_the_card_is_written_from_the_run_alone():
    """Whatever the template names has to be given: nothing in it is made up."""
    parameters = inspect.signature(shipping.card).parameters
    hits, labels = {"before": np.ones(9, bool), "after": np.ones(9, bool)}, np.ones(9)
    with pytest.raises(Exception, match="is undefined"):
        shipping.card(model=tiny_model("bert"), metric=gnorm.METRICS["accuracy"], text_values=hits, labels=labels)
    assert "about" in parameters


def test_a_short_finetuning_recovers_accuracy(task):
    model = copy.deepcopy(task.model)
    mask = torch.ones_like(gnorm.head_mask_of(model))
    mask[:, 1:] = False
    gnorm.remove_heads(model, mask)
    pruned = gnorm.accuracy(model, task.batches("evaluation"))
    state = torch.get_rng_state()
    recipe = Recipe(data={}, max_length=40, epochs=2, lr=4e-3)
    train("what is left", recipe, model, task.tokenizer, task.splits["train"], progress=False)
    assert gnorm.accuracy(model, task.batches("evaluation")) > pruned + 0.1
    assert torch.equal(gnorm.head_mask_of(model), mask)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_checkpoint_without_its_tokenizer_is_refused(home):
    """The library would make up one that knows no word."""
    for path in (home / "my-checkpoint").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        shipping.load("my-checkpoint", "my-texts.csv")


@pytest.mark.parametrize("number", [{"scoring": -5}, {"batch": 0}, {"max_length": 1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(home, number):
    with pytest.raises(ValueError, match=f"{next(iter(number))}=.* is out of range"):
        shipping.load("my-checkpoint", "my-texts.csv", **number)


def test_a_device_that_is_not_there_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match=r"^device nowhere is not there \(.*\): give another, or leave it out\.$"):
        shipping.load("my-checkpoint", "my-texts.csv", device="nowhere")


def test_half_precision_is_trained_in_fp32_and_rounded(home):
    own = shipping.load("my-checkpoint", "my-texts.csv")
    whole = copy.deepcopy(own.model.bfloat16()).float()
    intact = copy.deepcopy(own.model)
    for model in (own.model, whole):
        shipping.recover(model, own.scoring, progress=False)
    assert {p.dtype for p in own.model.parameters()} == {torch.bfloat16}
    for (name, p), trained in zip(own.model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(p, trained.bfloat16()), name
    assert any(not torch.equal(p, q) for p, q in zip(own.model.parameters(), intact.parameters(), strict=True))


def test_no_budget_and_no_one_model_to_ship(home):
    own = shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing, steps=1, progress=False)
    for budget in (-0.01, float("nan")):
        with pytest.raises(ValueError, match="budget=.* is out of range"):
            shipping.ship(own, run, "smaller", budget)
    run = gnorm.prune(own.model, own.scoring, own.choosing, "random", steps=1, trials=2, progress=False)
    with pytest.raises(ValueError, match="the run has 2 trials, whose mean is not a model"):
        shipping.ship(own, run, "smaller", 0.1)
    assert not (home / "smaller").exists()


def test_the_card_says_how_many_heads_went_at_a_time(home, monkeypatch):
    own = shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing, heads_per_step=2, progress=False)
    assert "Greedy-Gnorm, 2 heads at a time" in (shipping.ship(own, run, "smaller", 0.1) / "README.md").read_text(
        "utf-8"
    )


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(None, marks=pytest.mark.soak),
        {"direction": "Right", "max_length": 24, "strategy": "LongestFirst", "stride": 0},
    ],
)
def test_the_tokenizer_is_saved_as_it_was_loaded(cut, home):
    """What a call cuts and pads to is kept by a fast tokenizer, and its file would cut every text of another reader."""
    file = home / "my-checkpoint" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"truncation": cut, "padding": None}), "utf-8")
    own = shipping.load("my-checkpoint", "my-texts.csv", max_length=8)
    run = gnorm.prune(own.model, own.scoring, own.choosing, method="weight_magnitude", steps=1, progress=False)
    shipping.ship(own, run, "smaller", 1, by="heads")
    saved = json.loads((home / "smaller" / "tokenizer.json").read_text("utf-8"))
    assert (saved["truncation"], saved["padding"]) == (cut, None)
