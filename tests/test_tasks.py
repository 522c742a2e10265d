"""A task's batches are what the profile says; trained models that are damaged; what a change makes stale."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import gnorm
from experiments.data import profiles, tasks
from experiments.data.checkpoints import checkpoint
from experiments.data.profiles import profile_names, read_profile
from experiments.files import provenance
from experiments.pipeline import runner
from gnorm.training import _Grouped


@pytest.fixture
def profile_file(tmp_path, monkeypatch):
    text = (profiles.PROFILES / "smoke.toml").read_text("utf-8")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    return lambda old, new: (tmp_path / "smoke.toml").write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_names_the_four_families(name):
    profile = read_profile(name)
    assert profile.usual_models == ["bert", "albert", "roberta", "xlm-roberta"]
    if profile.protocol != "paper":  # which scores and measures on the same texts, and says so
        for spec in profile.models.values():
            assert spec.scoring.split != spec.evaluation.split  # disjoint: no text is in two splits


def test_of_the_base_model_no_method_is_scored_often_but_the_papers():
    left = (gnorm.METHODS | gnorm.MORE_METHODS).keys() - set(profiles.model_spec("study", "mpnet").leave_out)
    beyond = left - gnorm.METHODS.keys()
    assert left >= gnorm.METHODS.keys()
    assert beyond >= {"gnorm_once", "importance_once", "matched_random", "weight_magnitude"}
    assert {gnorm.MORE_METHODS[method].rescore_every for method in beyond} == {0}


def test_extra_models_are_taken_by_name_alone():
    usual = runner.make_plan((), [], profile="study", device="cpu")
    assert "mpnet" in read_profile("study").models
    assert usual.models == ["bert", "albert", "roberta", "xlm-roberta"]
    asked = runner.make_plan((), [], profile="study", models=["mpnet", "bert"], device="cpu")
    assert asked.models == ["mpnet", "bert"]


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="profile 'huge' is not known; choose one of local, paper, smoke"):
        tasks.load("huge", "bert")
    with pytest.raises(ValueError, match="profile smoke has no model 'gpt'; it has bert"):
        tasks.load("smoke", "gpt")


def test_a_task_is_batched_as_its_profile_says():
    task = tasks.load("smoke", "bert", device="cpu", progress=False)
    scoring = task.batches("scoring")
    assert [len(batch["labels"]) for batch in scoring] == [8, 8, 8]
    assert sum(len(batch["labels"]) for batch in task.batches("evaluation")) == 64
    for batch in scoring:
        assert batch["input_ids"].shape[1] == int(batch["attention_mask"].sum(1).max())
    first = task.tokenizer(task.splits["validation"][0]["text"], return_tensors="pt")["input_ids"][0]
    assert torch.equal(scoring[0]["input_ids"][0][: len(first)], first)
    assert task.hash == tasks.load("smoke", "bert", device="cpu", progress=False).hash


def test_a_model_that_is_not_accurate_enough_is_not_pruned(monkeypatch):
    spec = read_profile("smoke").models["bert"]
    strict = tasks.dataclasses.replace(spec, min_accuracy=1.01)
    monkeypatch.setattr(tasks, "model_spec", lambda *_: strict)
    with pytest.raises(RuntimeError, match=r"bert of profile smoke classifies 0\.\d+ of its 64 evaluation texts"):
        tasks.load("smoke", "bert", device="cpu", progress=False)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            'split = "test"',
            'split = "held out"',
            "bert: there is no split 'held out'; there are train, validation, test",
        ),
        ("texts = 64", "texts = 9999", "bert: split test has 200 texts, 9999 are asked for"),
    ],
)
def test_sizes_that_the_data_do_not_have_are_refused(profile_file, old, new, complaint):
    profile_file(old, new)
    with pytest.raises(ValueError, match=complaint):
        tasks.load("smoke", "bert", "cpu", progress=False)


# ---------------------------------------------------------------- trained models that are damaged

DAMAGES = {
    "weights cut off": ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:5000])),
    "no weights": ("model.safetensors", Path.unlink),
    "no tokenizer": ("tokenizer.json", Path.unlink),
    "a damaged tokenizer": ("tokenizer.json", lambda path: path.write_text('{"version"')),
    "no configuration": ("config.json", Path.unlink),
    "no record": ("training.json", Path.unlink),
    "no texts": ("data", shutil.rmtree),
    "texts cut off": ("data/test/data-00000-of-00001.arrow", lambda path: path.write_bytes(path.read_bytes()[:900])),
    "a damaged record": ("training.json", lambda path: path.write_text("{")),
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A copy of the trained smoke model, in a cache of its own."""
    folder = checkpoint("smoke-bert", read_profile("smoke").models["bert"].recipe, progress=False)
    shutil.copytree(folder, tmp_path / folder.name)
    monkeypatch.setenv("GNORM_CACHE", str(tmp_path))
    return tmp_path / folder.name


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_trained_model_is_refused(name, damage, trained):
    damage(trained / name)
    there = sorted(trained.rglob("*"))
    says = f"{re.escape(str(trained))} is damaged .*: delete the folder, and it is trained again"
    with pytest.raises(RuntimeError, match=says):
        tasks.load("smoke", "bert", "cpu", progress=False)
    assert sorted(trained.rglob("*")) == there


def test_a_trained_model_that_lacks_a_weight_is_refused(trained):
    whole = AutoModelForSequenceClassification.from_pretrained(trained)
    weights = {name: tensor for name, tensor in whole.state_dict().items() if name != "classifier.bias"}
    whole.save_pretrained(trained, state_dict=weights)
    with pytest.raises(RuntimeError, match="no weights for classifier.bias"):
        tasks.load("smoke", "bert", "cpu", progress=False)


def test_a_cache_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("GNORM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FileExistsError, match="name another folder in .GNORM_CACHE: .*cache"):
        tasks.load("smoke", "bert")


# ---------------------------------------------------------------- what a change makes stale

LOADER = tasks.load_checked.__module__.replace(".", "/") + ".py"
# A file of the packages, and whether finished trajectories are thrown away when it changes. Notebooks run again always.
CHANGES = {
    "gnorm/pruning.py": True,
    "gnorm/engine/model/norms.py": True,
    "gnorm/criteria/of_loss.py": True,
    "gnorm/engine/forward/products.py": True,
    "gnorm/engine/texts/batches.py": True,
    "gnorm/engine/backward/gradients.py": True,
    "gnorm/engine/trials/trial.py": True,
    "gnorm/engine/__init__.py": True,
    LOADER: True,
    "gnorm/storage/files.py": True,  # the trained models in the cache are made by it
    "experiments/data/tasks.py": True,
    "experiments/data/corpora.py": True,
    "experiments/data/training.py": True,
    "experiments/data/reading.py": True,
    "experiments/files/locks.py": True,  # of the cache, which holds trained models
    "experiments/runs/results.py": False,
    "experiments/analysis/plots.py": False,
    "experiments/analysis/tables.py": False,
    "experiments/report/rendering.py": False,
    "experiments/report/report.html.j2": False,
    "experiments/pipeline/runner.py": False,
    "experiments/pipeline/preflight.py": False,
    "experiments/pipeline/execution.py": False,
    "experiments/runs/stamps.py": False,
    "gnorm/shipping/export.py": False,
    "gnorm/shipping/card.md.j2": False,
}


def digests():
    """What journals and stamps hold of the package's code."""
    return provenance.code_of("gnorm.pruning", "experiments.data.tasks"), provenance.package_code()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the packages whose files may change."""
    for name in provenance.CODE:
        shutil.copytree(provenance.REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "REPOSITORY", tmp_path)
    return tmp_path


def test_a_change_makes_stale_what_depends_on_it(package):
    journals, stamps = digests()
    stale = {}
    for name in CHANGES:
        path, before = package / name, (package / name).read_bytes()
        path.write_bytes(before + b"\n# changed\n")
        changed = digests()
        assert changed[1] != stamps, name
        stale[name] = changed[0] != journals
        path.write_bytes(before)
    assert stale == CHANGES
    assert digests() == (journals, stamps)
    rooms = {path.relative_to(package).parent.as_posix() for path in package.rglob("*.py")}
    assert rooms - {"experiments"} == {name.rpartition("/")[0] for name in CHANGES}


def test_the_code_of_a_task_is_part_of_its_hash(monkeypatch):
    """The journal's name holds this hash: another one is a new journal."""
    before = tasks.load("smoke", "bert", device="cpu", progress=False).hash
    asked = []
    monkeypatch.setattr(tasks, "code_of", lambda *modules: asked.append(modules) or "another")
    assert tasks.load("smoke", "bert", device="cpu", progress=False).hash != before
    assert asked == [("gnorm.pruning", "experiments.data.tasks")]


def test_batches_of_training_are_of_like_lengths_in_no_order():
    lengths = np.random.default_rng(0).integers(1, 30, 403).tolist()
    items = [{"input_ids": [0] * length} for length in lengths]
    sampler = _Grouped(items, 8, 0)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(403))
    assert first != second
    assert list(_Grouped(items, 8, 0)) == first
    whole = [[lengths[i] for i in first[at : at + 8]] for at in range(0, 400, 8)]
    longest = [max(batch) for batch in whole]
    assert max(max(batch) - min(batch) for batch in whole[:-1]) <= 3
    assert longest != sorted(longest)
    assert abs(np.corrcoef(longest, range(50))[0, 1]) < 0.4  # in no order
    assert list(_Grouped([{"a": 1}] * 5, 1, 3)) != list(range(5))  # whole batches, which have no one length
