"""The authors' own result files beside ours: curves, areas, and files that are none."""

import json
import math
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from pipeline import ROOT, in_process
from precision import close
from test_results import trajectory

import run_all
from experiments.analysis import plots
from experiments.analysis.published import published_curve, published_curves, published_solutions
from experiments.analysis.published_claims import published_claims, published_dip
from experiments.analysis.tables import summary_table
from experiments.files.paths import manifest_file, stamp_file, tables_folder
from experiments.pipeline import runner
from gnorm.metrics import METRICS

sys.path.insert(0, str(ROOT / "tools"))

import claims_page

GREEDY = "pruned_heads_accuracy(BERT)basedonGreedyGnorm.csv"
ALBERT = "pruned_heads_accuracy(ALBERT)basedonAEinverse.csv"
TRIALS = "XLM-ROBERTArandompruned_heads_data_50x25_1group.xlsx"


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "experiments_results"
    folder.mkdir()
    pd.DataFrame({"Pruned_Heads": [0, 1, 2], "Accuracy": [0.9, 0.8, 0.4]}).to_csv(folder / GREEDY, index=False)
    pd.DataFrame({"Pruned_Heads": [0, 12, 24], "Accuracy": [0.8, 0.6, 0.4]}).to_csv(folder / ALBERT, index=False)
    trials = {"Heads Pruned": [0, 6, 9], "Trial_1": [0.9, 0.7, 0.1], "Trial_2": [0.9, 0.5, 0.1]}
    pd.DataFrame(trials).to_excel(folder / TRIALS, index=False)
    (folder / "solution.txt").write_text("not a curve")
    return str(folder)


def test_curves_are_read_by_model_and_method_over_the_share_of_heads(published):
    curves = published_curves(published)
    assert {(model, method) for model, methods in curves.items() for method in methods} == {
        ("bert", "greedy_gnorm"),
        ("albert", "inverse_attention_entropy"),
        ("xlmroberta", "random"),
    }
    assert curves["bert"]["greedy_gnorm"].to_dict() == {0.0: 0.9, 0.5: 0.8, 1.0: 0.4}
    assert curves["albert"]["inverse_attention_entropy"].index.tolist() == [0, 0.5, 1]  # counted 12 at a time
    assert published_curve("xlm-roberta", "random", METRICS["accuracy"], published).round(3).tolist() == [0.9, 0.6, 0.1]
    assert published_curve("bert", "random", METRICS["accuracy"], published) is None


def test_tables_hold_the_published_area_and_the_difference(published):
    run = trajectory([1.0, 0.8, 0.6, 0.4, 0.2])
    table = summary_table({"bert": {"greedy_gnorm": run, "random": run}}, published)
    close(table.published.tolist()[0], 0.725, torch.float64)  # (0.9 + 0.8) / 4 + (0.8 + 0.4) / 4
    close(table.difference.tolist()[0], 0.6 - 0.725, torch.float64)
    assert table.published.isna().tolist() == [False, True]


def test_a_profile_that_quotes_the_paper_is_compared_without_its_files():
    run = trajectory([0.9, 0.8, 0.7, 0.4])
    assert "published" not in summary_table({"bert": {"greedy_gnorm": run}})
    assert published_solutions({"bert": run}).empty
    quoted = {
        "heads_pruned": 96,
        "heads": 144,
        "accuracy": [0.95, 0.9],
        "parameters": [9, 7],
        "area": {"greedy_gnorm": 0.5},
    }
    run.info["published"] = quoted
    table = summary_table({"bert": {"greedy_gnorm": run}})
    assert table.published[0] == 0.5
    row = published_solutions({"bert": run}).iloc[0]
    assert row["accuracy after"] == 0.7  # at two thirds of the heads, as in the paper
    close(row["difference"], -0.05, torch.float64)
    close(row["difference after"], -0.2, torch.float64)
    assert row["published parameters"] == 7


def test_published_curves_lie_over_ours(published):
    run = trajectory([1.0, 0.8, 0.6, 0.4, 0.2])
    axis = plots.pruning_curves({"bert": {"greedy_gnorm": run, "random": run}}, published).axes[0]
    ours, _, theirs = axis.get_lines()
    assert ours.get_xdata().tolist() == [0, 1, 2, 3, 4]
    assert theirs.get_xdata().tolist() == [0, 2, 4]
    assert theirs.get_ydata().tolist() == [0.9, 0.8, 0.4]
    assert theirs.get_color() == ours.get_color()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (GREEDY, "Heads,Accuracy\n0,1\n", "needs the columns Pruned_Heads and Accuracy"),
        (GREEDY, "Pruned_Heads,Accuracy\n0,1\n1,high\n", "cannot be read"),
        (GREEDY, "Pruned_Heads,Accuracy\n0,0.9\n1,90\n", "is not a curve"),
        (GREEDY, "Pruned_Heads,Accuracy\n3,0.9\n6,0.8\n", "has to begin at 0"),
        (TRIALS, "no workbook", "needs the columns Heads Pruned and Trial"),
        ("other.csv", "a,b\n", "holds no published results, such as"),
    ],
)
def test_other_files_are_refused_before_anything_runs(name, content, complaint, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_text(content)
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--profile", "smoke", "--published", str(tmp_path)])
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what they say by themselves

# Two layers of eight heads. Layer 1 goes first; a fall at steps 2 and 3, a recovery at step 8, which empties layer 1.
ORDER = [(1, head) for head in range(8)] + [(0, head) for head in range(7)]
ACCURACY = [0.9, 0.9, 0.7, *5 * [0.65], *5 * [0.8], *4 * [0.5]]
BY_TRIAL = {1: [0.9, 0.9, 0.9, 0.9, 0.5], 2: [0.9, 0.5, 0.5, 0.5, 0.5]}


def tables(folder):
    """The tables of all models that the authors' files can be put into, small; returns the folder's name."""
    folder.mkdir(exist_ok=True)
    curves = [("roberta", "greedy_gnorm", k, value) for k, value in enumerate(ACCURACY)]
    curves += [("roberta", "attention_entropy", k, 0.5) for k in range(17)]
    curves += [("albert", "greedy_gnorm", 12 * k, value) for k, value in enumerate([0.8, 0.8, 0.6, 0.4, 0.4])]
    trials = [("roberta", k, 4 * state, value) for k, of in BY_TRIAL.items() for state, value in enumerate(of)]
    orders = {"roberta": ORDER, "albert": [(0, 0), (0, 1), (0, 2)]}
    order = [(model, step, *head) for model, heads in orders.items() for step, head in enumerate(heads, start=1)]
    solution = [("roberta", layer, head, int((layer, head) not in ORDER[:5])) for layer in (0, 1) for head in range(8)]
    entropies = {"roberta": [range(10, 18), range(8)], "albert": [[3, 2, 1, 0], [0, 2, 4, 6]]}
    entropy = [
        (model, layer, head, value)
        for model, layers in entropies.items()
        for layer, values in enumerate(layers)
        for head, value in enumerate(values)
    ]
    for name, rows in {
        "curves": (["model", "method", "pruned_heads", "accuracy"], curves),
        "random": (["model", "trial", "pruned_heads", "accuracy"], trials),
        "greedy_order": (["model", "step", "layer", "head"], order[::-1]),  # the step counts
        "solutions": (["model", "layer", "head", "kept"], solution),
        "attention_entropy": (["model", "layer", "head", "entropy"], entropy),
    }.items():
        pd.DataFrame(rows[1], columns=rows[0]).to_csv(folder / f"{name}.csv", index=False)
    return str(folder)


def test_the_published_numbers_are_held_against_random_trials(tmp_path):
    albert, row = published_claims(tables(tmp_path), ["roberta", "albert", "bert"]).to_dict("records")
    z2 = 1.959963984540054**2
    wilson = [(0.5 + z2 / 4 + side * math.sqrt(z2 * (0.25 / 2 + z2 / 16))) / (1 + z2 / 2) for side in (-1, 1)]
    expected = {
        "greedy_gnorm": (sum(ACCURACY) - 0.7) / 16,
        "attention_entropy": 0.5,
        "random": 0.7,
        "random sd": 0.3 / math.sqrt(2),
        "trials": 2,
        "difference": 0.0375,  # 0.7375, at the states of the trials, less 0.7
        "low": 0.0375 - 12.706204736174694 * 0.15,  # t with one degree of freedom; 0.15 = 0.3 / 2
        "high": 0.0375 + 12.706204736174694 * 0.15,
        "larger": 1,
        "larger low": wilson[0],
        "larger high": wilson[1],
        "below": 1,
        "states": 5,
        "half greedy_gnorm": 0.75,
        "half random": 0.75,
        "half larger": 1,
        "within greedy_gnorm": 1 / 16,
        "within attention_entropy": 1,
        "within random": 0.375,
        "rho": 1,
        "accuracies": 44,
        "multiples": 44,
        "solution": 5,
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-9), name
    assert row["p"] < 0.001
    assert row["texts"] == "1000"
    assert row["prefix"] is True
    assert row["lowest entropy"] is True
    assert math.isnan(row["inverse_attention_entropy"])
    assert albert["within greedy_gnorm"] == 0.25  # counted 12 at a time
    assert albert["rho"] == pytest.approx(1)  # of the entropies summed over the passes: 3, 4, 5, 6
    assert math.isnan(albert["random"])
    assert math.isnan(albert["solution"])


def test_what_is_no_multiple_of_one_text_is_counted(tmp_path):
    folder = tables(tmp_path)
    table = pd.read_csv(tmp_path / "random.csv")
    table.loc[3, "accuracy"] += 0.0001
    table.to_csv(tmp_path / "random.csv", index=False)
    solutions = pd.read_csv(tmp_path / "solutions.csv")
    solutions["kept"] = 1 - solutions["kept"]
    solutions.to_csv(tmp_path / "solutions.csv", index=False)
    row = published_claims(folder, ["roberta"]).iloc[0]
    assert (row.accuracies, row.multiples) == (44, 43)
    assert (row.solution, row.prefix, row["lowest entropy"]) == (11, False, False)


def test_a_dip_is_told_by_the_steps_that_cause_it(tmp_path):
    dip = published_dip(tables(tmp_path), ["roberta", "albert"])
    assert set(dip.model) == {"roberta"}
    rows = dip.drop(columns="model").to_numpy().tolist()
    assert rows == [
        ["before", 1, 1, 0, 0.9, 0.0, 7, "none"],
        ["fall", 2, 1, 1, 0.7, -0.2, 6, "none"],
        ["fall", 3, 1, 2, 0.65, -0.05, 5, "none"],
        ["before", 7, 1, 6, 0.65, 0.0, 1, "none"],
        ["recovery", 8, 1, 7, 0.8, 0.15, 0, "1"],
    ]
    table = pd.read_csv(tmp_path / "random.csv")
    table["accuracy"] = np.minimum(table["accuracy"], 0.5)
    (tmp_path / "worse").mkdir()
    worse = tables(tmp_path / "worse")
    table.to_csv(tmp_path / "worse" / "random.csv", index=False)
    assert published_dip(worse, ["roberta"]).empty  # nowhere below random pruning


def test_the_page_says_it_from_the_tables(tmp_path, monkeypatch):
    theirs, made = tables(tmp_path / "theirs"), tmp_path / "tables"
    made.mkdir()
    monkeypatch.setattr(claims_page, "RESULTS", tmp_path)
    claimed = published_claims(theirs, ["roberta"])
    claimed.to_csv(made / "published_claims.csv", index=False)
    published_dip(theirs, ["roberta"]).to_csv(made / "published_dip.csv", index=False)
    assert re.search(
        r"\| area: trials larger than Greedy-Gnorm \(95 %\) +\| 1 of 2 \(9 to 91 %\)", claims_page.published_numbers()
    )
    assert re.search(r"\| final solution: first of the order +\| yes ", claims_page.published_numbers())
    dips = claims_page.published_dips()
    assert "The fall is steps 2 to 3, from 0.900 to 0.650: 2 heads of layer 1 -0.250. " in dips
    assert "The recovery is steps 8 to 8, from 0.650 to 0.800: 1 head of layer 1 +0.150. " in dips
    assert "Layers that were empty before it: none." in dips
    assert claims_page.published_entropy().startswith(
        "Within a layer, heads of low entropy go first in 1 of 1 published"
    )
    assert claims_page.published_against() == ""  # one of two trials
    claimed.assign(larger=2).to_csv(made / "published_claims.csv", index=False)
    assert claims_page.published_against() == (
        "By the authors' own files C1 fails on one of the paper's models, roberta "
        "(siebert/sentiment-roberta-large-english): 2 of 2 random trials have a larger area than Greedy-Gnorm, and 1 "
        "of 2 a larger one up to half of the heads."
    )


def test_files_without_orders_leave_their_columns_empty(published):
    claims = published_claims(published, ["bert", "albert", "xlm-roberta"])
    assert claims.model.tolist() == ["bert", "albert", "xlm-roberta"]
    assert claims[["rho", "solution", "prefix"]].isna().all(axis=None)
    assert claims["greedy_gnorm"].isna().tolist() == [False, True, True]
    assert published_dip(published, ["bert"]).empty
    assert published_claims("", ["bert"]).empty


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("random", lambda table: table.drop(columns="trial"), "needs the columns model, trial, pruned_heads, accuracy"),
        ("random", lambda table: table.assign(trial=1), "a trial has two accuracies for one number of pruned_heads"),
        ("random", lambda table: table.drop(index=2), "random.csv is not a curve"),
        ("curves", lambda table: table.assign(accuracy=90), "curves.csv is not a curve"),
        ("greedy_order", lambda table: table.assign(head=0), "greedy_order.csv names a head of albert twice"),
        ("greedy_order", lambda table: table[table.step < 9], "takes 8 heads of roberta one by one, and its Greedy-Gn"),
        ("greedy_order", lambda table: table.assign(layer=table.layer + 1), "has no entropy of the head"),
        ("attention_entropy", lambda table: table.drop(index=20), "has no entropy of some heads of albert"),
        ("solutions", lambda table: table.assign(kept="?"), "solutions.csv cannot be read"),
    ],
)
def test_tables_that_contradict_themselves_are_refused(name, change, complaint, tmp_path):
    folder = tables(tmp_path)
    change(pd.read_csv(tmp_path / f"{name}.csv")).to_csv(tmp_path / f"{name}.csv", index=False)
    with pytest.raises(ValueError, match=complaint):
        published_claims(folder, ["roberta"])


def test_run_all_writes_the_tables_and_remembers_the_files_not_the_folder(tmp_path, monkeypatch, capsys):
    folder, output = tables(tmp_path / "theirs"), tmp_path / "out"
    arguments = ("--profile", "smoke", "--models", "roberta", "--only", "published_claims", "--published")
    assert in_process(output, monkeypatch, *arguments, folder) == 0
    assert pd.read_csv(tables_folder("smoke") / "published_claims.csv").larger.tolist() == [1]
    assert len(pd.read_csv(tables_folder("smoke") / "published_dip.csv")) == 5
    given = json.loads(stamp_file("smoke", "published_claims").read_text("utf-8"))["parameters"]["published"]
    assert given.keys() == {
        f"{name}.csv" for name in ("curves", "random", "greedy_order", "solutions", "attention_entropy")
    }
    assert str(tmp_path) not in manifest_file("smoke").read_text("utf-8")
    moved = (tmp_path / "theirs").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert in_process(output, monkeypatch, *arguments, str(moved)) == 0
    assert "published_claims: unchanged, not run again" in capsys.readouterr().out
    assert in_process(output, monkeypatch, "--profile", "smoke", "--report") == 0  # without the folder
    assert "ut of date" not in (output / "experiments_results/smoke/report/index.html").read_text("utf-8")
    plan = runner.make_plan(run_all.NOTEBOOKS + run_all.OPTIONAL, ["published_claims"], "smoke", published=str(moved))
    assert runner.done(plan) == {"published_claims": False}  # other models
    (moved / "curves.csv").write_text((moved / "curves.csv").read_text("utf-8") + "bert,greedy_gnorm,0,1\n", "utf-8")
    assert runner.published_digests(str(moved))["curves.csv"] != given["curves.csv"]


def test_with_the_folder_named_the_notebook_runs_beside_the_others(tmp_path):
    order = run_all.NOTEBOOKS + run_all.OPTIONAL
    asked = runner.make_plan(order, None, "smoke", published=tables(tmp_path), default=["four_models"])
    assert asked.notebooks == ["four_models", "published_claims"]
    assert runner.make_plan(order, None, "smoke", default=["four_models"]).notebooks == ["four_models"]


def test_the_caption_names_the_split_of_every_model_where_they_differ():
    runs = {name: {"greedy_gnorm": trajectory([0.9, 0.5])} for name in ("bert", "albert")}
    assert "n = bert 100, albert 100 texts of the evaluation split." in plots.pruning_curves(runs).get_supxlabel()
    runs["albert"]["greedy_gnorm"].info["evaluated_on"] = {"split": "test"}
    assert "n = bert 100 (evaluation), albert 100 (test) texts. Bands" in plots.pruning_curves(runs).get_supxlabel()
