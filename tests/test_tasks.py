"""Profiles are read strictly; a task's batches are what the profile says; what a change makes stale."""

import shutil

import pytest
import torch

from gnorm.experiments import profiles, provenance, tasks
from gnorm.experiments.profiles import profile_names, read_profile


@pytest.fixture
def profile_file(tmp_path, monkeypatch):
    text = (profiles.PROFILES / "smoke.toml").read_text("utf-8")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    return lambda old, new: (tmp_path / "smoke.toml").write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("budget = 0.1", "budgett = 0.1", "budget"),
        ('title = "BERT', 'color = "red"\ntitle = "BERT', "color"),
        ("max_length = 40", 'max_length = "forty"', "max_length"),
        ("texts = 24", "texts = true, text = 3", "text"),
        ("[models.bert]", "[models.bert", "cannot be read"),
        ("[models.albert]", "[models.bert]", "cannot be read"),
    ],
)
def test_profiles_with_mistakes_are_refused_by_name(profile_file, old, new, complaint):
    profile_file(old, new)
    with pytest.raises(ValueError, match=f"smoke.toml cannot be read: .*{complaint}|{complaint}"):
        read_profile("smoke")


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_names_the_four_families(name):
    profile = read_profile(name)
    assert list(profile.models) == ["bert", "albert", "roberta", "xlm-roberta"]
    if profile.protocol != "paper":  # which scores and measures on the same texts, and says so
        for spec in profile.models.values():
            assert spec.scoring.split != spec.evaluation.split  # disjoint: no text is in two splits


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


# ---------------------------------------------------------------- what a change makes stale

PACKAGE = provenance.PACKAGE
LOADER = "/".join(tasks.load_checked.__module__.split(".")[1:]) + ".py"
# A file of the package, and whether finished trajectories are thrown away when it changes. Notebooks run again always.
CHANGES = {
    "pruning.py": True,
    "norms.py": True,
    "criteria/of_loss.py": True,
    "engine/products.py": True,
    "engine/__init__.py": True,
    LOADER: True,
    "storage/files.py": False,
    "experiments/tasks.py": True,
    "experiments/corpora.py": True,
    "experiments/training.py": True,
    "experiments/reading.py": True,
    "experiments/plots.py": False,
    "experiments/tables.py": False,
    "experiments/report.py": False,
    "experiments/report.html.j2": False,
    "experiments/pipeline.py": False,
    "experiments/preflight.py": False,
    "experiments/execution.py": False,
    "experiments/stamps.py": False,
    "shipping/export.py": False,
    "shipping/card.md.j2": False,
}


def digests():
    """What journals and stamps hold of the package's code."""
    return provenance.code_of("gnorm.pruning", "gnorm.experiments.tasks"), provenance.package_code()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package whose files may change."""
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", copy)
    return copy


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
    wings = {path.relative_to(package).parent.as_posix() for path in package.rglob("*.py")}
    assert wings == {name.rpartition("/")[0] or "." for name in CHANGES}


def test_the_code_of_a_task_is_part_of_its_hash(monkeypatch):
    """The journal's name holds this hash: another one is a new journal."""
    before = tasks.load("smoke", "bert", device="cpu", progress=False).hash
    asked = []
    monkeypatch.setattr(tasks, "code_of", lambda *modules: asked.append(modules) or "another")
    assert tasks.load("smoke", "bert", device="cpu", progress=False).hash != before
    assert asked == [("gnorm.pruning", "gnorm.experiments.tasks")]
