"""The layers of one method with the heads of another, on a model of the smoke profile."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from precision import close

import gnorm
from experiments import runs, tables
from experiments.data import tasks
from experiments.data.profiles import LAYERS_OF, model_spec
from experiments.pipeline import jobs
from experiments.runs import layered
from experiments.runs.after_pruning import calibration_of_pruned


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))


def of(variant, method):
    return runs.trajectories("smoke", [variant], [method], "cpu")[variant][method]


def test_the_layers_of_a_method_are_followed_and_the_heads_are_the_others():
    leader, matched = of("bert", "greedy_gnorm"), of("bert", "matched_random")
    layers = [layer for layer, _ in leader.order()]
    drawn = of("bert/layers0", "random")
    assert [drawn.order(trial) for trial in range(3)] == [matched.order(trial) for trial in range(3)]
    assert (drawn.correct == matched.correct).all()
    run = of("bert/layers0", "head_importance")
    assert [layer for layer, _ in run.order()] == layers
    assert run.order() != leader.order()


def test_layers_in_turn_go_round_and_pass_by_what_is_empty():
    spec = model_spec("smoke", "bert/layers3")
    assert spec.layers_of == LAYERS_OF[3] == "in turn"
    run = of("bert/layers3", "head_importance")
    assert [layer for layer, _ in run.order()] == [0, 1] * 4
    task = tasks.load("smoke", "bert/layers3", "cpu", progress=False)
    mask = gnorm.head_mask_of(task.model)
    mask[0, 1:] = False
    gnorm.remove_heads(task.model, mask)
    assert runs.layers_of(task, spec.layers_of) == [0, 1, 1, 1, 1]


def test_variants_are_all_pairs_for_the_models_that_the_study_names():
    found = list(layered.variants("smoke", "bert"))
    assert len(found) == len(set(found)) == len(LAYERS_OF) * len(layered.HEADS_BY)
    assert found[0] == ("bert", "greedy_gnorm", "greedy_gnorm", "bert")
    assert found[1] == ("bert", "greedy_gnorm", "gnorm_once", "bert/layers0")
    assert list(layered.variants("smoke", "albert")) == []


def test_runs_of_different_trainings_are_not_compared(tmp_path):
    of("bert", "random"), of("bert", "weight_magnitude")
    path = tmp_path / "experiments_results" / "smoke" / "bert" / "weight_magnitude.json"
    info = json.loads(path.read_text("utf-8"))
    info["weights"]["recipe_version"] -= 1
    path.write_text(json.dumps(info), "utf-8")
    with pytest.raises(ValueError, match="random and weight_magnitude have weights of different trainings: delete"):
        runs.trajectories("smoke", ["bert"], ["random", "weight_magnitude"], "cpu")
    with pytest.raises(ValueError, match="weight_magnitude and the checkpoint that is there have weights of different"):
        calibration_of_pruned("smoke", ["bert"], ["weight_magnitude"], "cpu")


def test_a_run_of_another_recipe_is_made_again(tmp_path):
    of("bert", "weight_magnitude")
    made, wanted = jobs.Job("bert", "weight_magnitude"), jobs.Job("bert", "random")
    assert jobs.missing("smoke", [made, wanted]) == [wanted]
    path = tmp_path / "experiments_results" / "smoke" / "bert" / "weight_magnitude.json"
    info = json.loads(path.read_text("utf-8"))
    for change in ({"recipe_version": 1}, {"recipe": info["weights"]["recipe"] | {"epochs": 1}}):
        path.write_text(json.dumps(info | {"weights": info["weights"] | change}), "utf-8")
        assert jobs.missing("smoke", [made, wanted]) == [made, wanted]


def test_layers_of_nobody_are_refused():
    with pytest.raises(ValueError, match="'layers4' is not a variant of bert"):
        model_spec("smoke", "bert/layers4")


def test_a_difference_is_taken_apart_into_layers_and_heads():
    methods = ("greedy_gnorm", "gnorm_once", "head_importance")
    worth = dict(zip(methods, (0.02, 0.0, 0.05), strict=True))
    rows = [
        ("bert", seed, layers, heads, 0.5 + 0.1 * seed + worth[layers] + 2 * worth[heads] * (1 + seed))
        for seed in (0, 1)
        for layers in methods
        for heads in methods
    ]
    found = tables.layers_or_heads(pd.DataFrame(rows, columns=["model", "training", "layers of", "heads by", "area"]))
    expected = [0.02 + 0.06, 0.02, 0.06, 0.03 + 0.09, 0.03, 0.09]
    close(found.difference.to_numpy(), np.array(expected), torch.float64, scale=1)
    assert (found.trainings == 2).all()
    heads = found.iloc[2]  # 0.04 and 0.08: Student's t with one degree of freedom
    close(heads.high - heads.difference, 0.02 * 12.706204736174707, torch.float64, scale=1)
