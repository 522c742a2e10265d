"""Profiles with mistakes, profiles that extend others, variants, repetitions; the order of texts; runs that follow."""

import dataclasses
import functools
from types import SimpleNamespace

import datasets
import pytest
import torch

import run_all
from experiments import runs
from experiments.data import profiles, tasks
from experiments.data.profiles import RandomSizes, model_spec, profile_names, read_profile, repetitions
from gnorm.methods import METHODS, MORE_METHODS

FIRST = """
[models.first]
title = "First"
budget = 0.1
data = { source = "faker_languages", seed = 0 }
max_length = 8
scoring    = { split = "validation", texts = 24, batch = 8 }
evaluation = { split = "test", texts = 64 }
entropy    = { split = "validation", texts = 24, batch = 8 }
random     = { trials = 3, heads_per_step = 2 }

[models.first.training]
epochs = 4
lr = 1e-3
"""
OTHER = {
    "first": "second",
    "First": "Second",
    "0.1": "0.2",
    "max_length = 8": "max_length = 9",
    "epochs = 4": "epochs = 1",
}
SECOND = functools.reduce(lambda text, names: text.replace(*names), OTHER.items(), FIRST).replace("lr = 1e-3\n", "")
BELOW = f'description = "below"\nnotebooks = ["random_pruning", "ae_pruning"]\n{FIRST}{SECOND}'

ABOVE = """
description = "above"
extends = "below"
notebooks = ["greedy_pruning"]

[models.first]
seeds = [2, 5]
scoring = { texts = 7 }
leave_out = ["oracle"]

[models.first.training]
epochs = 9
batch = 16
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of profiles of its own."""
    (tmp_path / "below.toml").write_text(BELOW, "utf-8")
    (tmp_path / "above.toml").write_text(ABOVE, "utf-8")
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    return tmp_path


# ---------------------------------------------------------------- mistakes

MISTAKES = [
    ("smoke", "[models.bert]", "[models.bert", "line "),
    ("smoke", "[models.albert]", "[models.bert]", "bert"),
    ("smoke", "budget = 0.1", "budget = 0.1\nbudget = 0.2", "line "),
    ("smoke", "budget = 0.1", "budgett = 0.1", "budget"),
    ("smoke", "budget = 0.1", "", "budget"),
    ("smoke", "max_length = 40", 'max_length = "forty"', "max_length"),
    ("smoke", 'title = "BERT', 'color = "red"\ntitle = "BERT', "color"),
    ("smoke", 'title = "BERT (tiny), four languages"', "title = 7", "title"),
    ("smoke", "texts = 24", "texts = true, text = 3", "text"),
    ("smoke", "texts = 24", "texts = 0", "texts = 0, it must be at least 1"),
    ("smoke", "batch = 8", "batch = 0", "batch = 0, it must be at least 1"),
    ("smoke", "trials = 3", "trials = -3", "trials = -3, it must be at least 1"),
    ("smoke", "description", "\xff", "utf-8"),
    (
        "paper",
        'protocol = "paper"',
        'protocol = "held out"',
        "bert is scored and measured on the split 'train': name a",
    ),
    ("paper", 'protocol = "paper"', 'protocol = "other"', "protocol"),
    ("paper", "[models.bert.dataset]", "[models.bert.data]", "needs data, training and max_length, or else checkpoint"),
    ("paper", 'texts = "all"', 'texts = "most"', "texts"),
    ("paper", 'overlong = "leave out"', 'overlong = "drop"', "overlong"),
    ("paper", "files = { validation_matched", "file = { validation_matched", "file"),
]


@pytest.mark.parametrize(("name", "old", "new", "complaint"), MISTAKES)
def test_a_profile_with_a_mistake_is_refused_by_name(name, old, new, complaint, tmp_path, monkeypatch):
    text = (profiles.PROFILES / f"{name}.toml").read_text("utf-8")
    assert old in text
    encoding = "latin-1" if new == "\xff" else "utf-8"
    (tmp_path / f"{name}.toml").write_bytes(text.replace(old, new).encode(encoding, errors="replace"))
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    with pytest.raises(ValueError, match=f"^{name}.toml cannot be read: .*{complaint}"):
        read_profile(name)
    with pytest.raises(ValueError, match=f"^{name}.toml cannot be read: "):
        tasks.load(name, "bert")


# ---------------------------------------------------------------- extends


def test_a_profile_adds_to_another_table_by_table(folder):
    below, above = read_profile("below"), read_profile("above")
    assert (above.name, above.description, above.extends) == ("above", "above", "below")
    assert above.notebooks == ["greedy_pruning"]  # a list is replaced
    assert list(above.models) == ["first", "second"]
    assert above.models["second"] == below.models["second"]
    first = below.models["first"]
    assert above.models["first"] == dataclasses.replace(
        first,
        seeds=[2, 5],
        leave_out=["oracle"],
        scoring=dataclasses.replace(first.scoring, texts=7),
        training={"epochs": 9, "lr": 1e-3, "batch": 16},
    )
    assert read_profile("below") == below  # which is as it was


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('extends = "below"', 'extends = "nowhere"', "above.toml cannot be read: .*nowhere.toml"),
        ("scoring = { texts = 7 }", "scoring = 7", "above.toml cannot be read: .*scoring"),
        ("[models.first]", "[models.third]", "above.toml cannot be read: .*title"),
        ("epochs = 9", "epochs = ", "above.toml cannot be read: "),
        ("texts = 7", "texts = 0", "above.toml cannot be read: texts = 0, it must be at least 1"),
        ("texts = 7", 'split = "test"', "above.toml cannot be read: first is scored and measured on the split 'test'"),
    ],
)
def test_mistakes_of_a_profile_that_extends_another_are_said(old, new, says, folder):
    (folder / "above.toml").write_text(ABOVE.replace(old, new), "utf-8")
    with pytest.raises(ValueError, match=says):
        read_profile("above")


# ---------------------------------------------------------------- variants


def test_a_variant_changes_what_it_names_and_nothing_else(folder):
    plain = model_spec("above", "first")
    varied = model_spec("above", "first/seed2/batch8/texts64/draw3")
    assert varied.training == {**plain.training, "seed": 2}
    assert varied.recipe == {**plain.recipe, "seed": 2}
    assert varied.scoring == profiles.Sizes("validation", texts=64, batch=8, draw=3)
    assert dataclasses.replace(varied, training=plain.training, scoring=plain.scoring) == plain
    assert model_spec("above", "first/draw3/seed2/texts64/batch8") == varied
    assert "seed" not in plain.training  # nor does it change the profile's


def test_the_study_has_the_variants_that_it_is_made_of():
    spec = model_spec("study", "roberta/seed2/batch8")
    plain = model_spec("study", "roberta")
    assert spec.recipe["seed"] == 2
    assert spec.scoring == dataclasses.replace(plain.scoring, batch=8)
    assert spec.evaluation == plain.evaluation


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("third", "profile above has no model 'third'; it has first, second"),
        ("third/seed2", "profile above has no model 'third'"),
        ("first/seed3", "first/seed3: 'seed3' is not a variant of first; there are seed, texts, .*and the seeds 2, 5"),
        ("second/seed2", "'seed2' is not a variant of second; .* the seeds none"),
        ("first/seed", "'seed' is not a variant"),
        ("first/seed-2", "'seed-2' is not a variant"),
        ("first/epochs2", "'epochs2' is not a variant"),
        ("first/8", "'8' is not a variant"),
        ("first/batch8x", "'batch8x' is not a variant"),
        ("first/batch²", "'batch²' is not a variant"),
        ("first/", "'' is not a variant"),
        ("first/batch0", "batch = 0, it must be at least 1"),
    ],
)
def test_unknown_models_variants_and_seeds_are_refused(model, says, folder):
    with pytest.raises(ValueError, match=says):
        model_spec("above", model)
    with pytest.raises(ValueError, match=says):
        profiles.check_models("above", ["first", model])


def test_a_model_is_repeated_with_each_of_its_seeds(folder):
    assert repetitions("above", "first") == ["first/seed2", "first/seed5"]
    assert repetitions("above", "second") == ["second"]
    with pytest.raises(ValueError, match="no model 'third'"):
        repetitions("above", "third")


def test_pretrained_models_are_those_named_and_the_extra_ones():
    assert profiles.pretrained("study", ["albert", "bert"]) == ["bert", "questions", "messages"]
    assert profiles.pretrained("study", ["albert"]) == ["questions", "messages"]
    assert profiles.pretrained("smoke", ["albert"]) == ["bert"]  # where none is left: all
    with pytest.raises(ValueError, match="no model 'third'"):
        profiles.pretrained("smoke", ["third"])
    for name in profile_names():
        assert set(read_profile(name).study.pretrained) <= read_profile(name).models.keys()


@pytest.mark.parametrize("name", profile_names())
def test_profiles_name_methods_and_notebooks_that_there_are(name):
    profile = read_profile(name)
    assert set(profile.notebooks) <= {*run_all.NOTEBOOKS, *run_all.OPTIONAL}
    for spec in profile.models.values():
        assert len(set(spec.leave_out)) == len(spec.leave_out)
        assert set(spec.leave_out) <= {*METHODS, *MORE_METHODS}
        assert len(set(spec.seeds)) == len(spec.seeds)


# ---------------------------------------------------------------- the order of texts


def drawn(monkeypatch, **sizes):
    """The labels, each text's own, of the scoring and of the evaluation batches."""
    rows = datasets.Dataset.from_dict({"text": [""] * 50, "label": list(range(50))})
    plain = model_spec("smoke", "bert")
    spec = dataclasses.replace(
        plain,
        scoring=dataclasses.replace(plain.scoring, **sizes),
        entropy=dataclasses.replace(plain.entropy, texts=4),
        evaluation=dataclasses.replace(plain.evaluation, texts=10),
    )
    monkeypatch.setattr(tasks, "batched", lambda _, rows, *__: [{"input_ids": torch.tensor([rows["label"]])}])
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=50))
    task = tasks.Task("smoke", "bert", spec, model, None, datasets.DatasetDict(validation=rows, test=rows), {})
    return [task.batches(which)[0]["input_ids"][0].tolist() for which in ("scoring", "evaluation")]


def test_a_draw_takes_the_texts_in_an_order_of_its_own(monkeypatch):
    first, evaluated = drawn(monkeypatch, texts=20)
    assert first == list(range(20))
    third, still = drawn(monkeypatch, texts=20, draw=3)
    assert len(set(third)) == 20
    assert set(third) != set(first)  # of all the texts of the split
    assert still == evaluated == list(range(10))
    assert drawn(monkeypatch, texts=20, draw=3)[0] == third
    assert drawn(monkeypatch, texts=10, draw=3)[0] == third[:10]  # fewer are some of these
    assert drawn(monkeypatch, texts=20, draw=4)[0] != third
    assert sorted(drawn(monkeypatch, texts="all", draw=4)[0]) == list(range(50))


# ---------------------------------------------------------------- runs


def test_a_method_is_repeated_with_every_seed_but_where_it_is_left_out(folder, monkeypatch):
    monkeypatch.setattr(runs, "_read_or_run", lambda *given: given[:3])
    monkeypatch.setattr(runs, "check_trainings", lambda *given: None)  # of trajectories
    found = runs.repeated("above", ["first", "second"], ["greedy_gnorm", "oracle"])
    assert found == {
        "first": {
            "greedy_gnorm": [("above", "first/seed2", "greedy_gnorm"), ("above", "first/seed5", "greedy_gnorm")],
        },
        "second": {"greedy_gnorm": [("above", "second", "greedy_gnorm")], "oracle": [("above", "second", "oracle")]},
    }
    with pytest.raises(ValueError, match="no model 'third'"):
        runs.repeated("above", ["first", "third"], ["greedy_gnorm"])
    with pytest.raises(ValueError, match="method 'magic' is not known"):
        runs.repeated("above", ["first"], ["magic"])


def test_a_run_that_follows_another_takes_its_layers_and_the_sizes_of_random(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path / "out"))
    spec = dataclasses.replace(model_spec("below", "first"), random=RandomSizes(trials=4, heads_per_step=3))
    task = SimpleNamespace(
        profile="below", name="first", spec=spec, model=None, hash="h", source={}, batches=lambda sizes: sizes
    )
    asked, saved = [], []

    def prune(model, scoring, evaluation, **options):
        asked.append((scoring, evaluation, options))
        return trajectory

    @dataclasses.dataclass
    class Run:
        info: dict

        def order(self):
            return [(1, 0), (0, 3), (1, 2)]

    trajectory = Run({})
    monkeypatch.setattr(runs, "prune", prune)
    monkeypatch.setattr(runs, "save_trajectory", lambda *given: saved.append(given[1:]))
    runs.run(task, "matched_random", progress=False)
    assert [options["method"] for *_, options in asked] == ["greedy_gnorm", "matched_random"]  # as it is now
    scoring, evaluation, options = asked[-1]
    assert (scoring, evaluation) == ("scoring", "evaluation")
    assert options["layers"] == [1, 0, 1]
    assert (options["trials"], options["heads_per_step"], options["seed"]) == (4, 3, 0)
    assert saved == [("below", "first", "greedy_gnorm"), ("below", "first", "matched_random")]
    asked.clear()
    runs.run(task, "oracle", progress=False)  # draws nothing and follows none
    assert not {"layers", "trials", "heads_per_step", "seed"} & asked[0][2].keys()
    recipe = spec.training | {"seed": 7}
    runs.run(SimpleNamespace(**vars(task) | {"spec": dataclasses.replace(spec, training=recipe)}), "random")
    assert asked[-1][2]["seed"] == 7  # orders are drawn anew for each training
