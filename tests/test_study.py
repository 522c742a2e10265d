"""The study, small, through the real run_all.py: every method, two training seeds, and what is made of them."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from pipeline import ROOT, call, copy_of_the_project, in_process, trajectories_of
from precision import close, close_files
from test_published import tables as published_tables

from experiments import runs
from experiments.analysis import claims, paired
from experiments.analysis.published_claims import published_claims, published_dip
from experiments.data import profiles, tasks
from experiments.data.profiles import read_profile, repetitions
from experiments.data.training import Recipe, train
from experiments.files.paths import stamp_file
from experiments.pipeline import jobs
from experiments.runs import results, rewritten
from gnorm.methods import METHODS, MORE_METHODS
from gnorm.metrics import accuracy
from gnorm.trajectory import area, curve

sys.path.insert(0, str(ROOT / "tools"))

import claims_page

NOTEBOOKS = read_profile("study").notebooks
ARGUMENTS = ("--profile", "smoke", "--models", "albert", "--only", ",".join(NOTEBOOKS))


# What the notebooks name, beside the paper's methods; of other rows one, which is compared with none of these.
SOME = ("gnorm_once", "head_importance", "importance_once", "matched_random", "weight_magnitude")
SOME += ("gnorm_shuffled_weights", "importance_shuffled_labels")
TITLE = 'title = "ALBERT (tiny), four languages"\n'


@pytest.fixture(scope="module", params=[SOME, pytest.param(tuple(MORE_METHODS), marks=pytest.mark.soak)], ids=len)
def project(request, tmp_path_factory):
    """A copy of the project whose study leaves out all methods beyond the paper but some; or, in soak, none."""
    root = copy_of_the_project(tmp_path_factory.mktemp("project"))
    profile = root / "experiments" / "profiles" / "smoke.toml"
    left_out = [name for name in MORE_METHODS if name not in request.param]
    profile.write_text(
        profile.read_text("utf-8").replace(TITLE, f"{TITLE}leave_out = {json.dumps(left_out)}\n"), "utf-8"
    )
    return root


@pytest.fixture(scope="module")
def study(project, tmp_path_factory):
    output = tmp_path_factory.mktemp("study")
    done = call(*ARGUMENTS, output=output, root=project)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(autouse=True)
def folder(study, project, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(study))
    monkeypatch.setattr(profiles, "PROFILES", project / "experiments" / "profiles")
    return study / "experiments_results" / "smoke"


def methods():
    return runs.left_in("smoke", "albert", METHODS | MORE_METHODS)


def table(folder, name):
    return pd.read_csv(folder / "tables" / f"{name}.csv")


def test_every_method_pruned_every_training(folder):
    assert repetitions("smoke", "albert") == ["albert/seed0", "albert/seed1"]
    for name in repetitions("smoke", "albert"):
        for method in methods():
            run = results.load_trajectory("smoke", name, method)
            assert run.table.pruned_heads.max() == 4
            assert run.info["weights"]["recipe"]["seed"] == int(name[-1])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_pieces_of_a_notebook_are_those_that_it_asks_for(name, folder):
    stamp = json.loads(stamp_file("smoke", name).read_text())
    asked = {str(job) for job in jobs.asked_for("smoke", ["albert"], [name])}
    assert trajectories_of(stamp, "written") | trajectories_of(stamp, "read") == asked


def test_matched_random_takes_the_layers_of_greedy_gnorm(folder):
    greedy, matched = (results.load_trajectory("smoke", "albert/seed0", m) for m in ("greedy_gnorm", "matched_random"))
    layers = [layer for layer, _ in greedy.order()]
    assert [[layer for layer, _ in matched.order(trial)] for trial in range(3)] == [layers] * 3


def test_differences_are_those_of_the_trajectories(folder):
    rows = table(folder, "differences")
    expected = {pair for pair in claims.pairs() if {*pair} <= {*methods()}}
    assert set(zip(rows["method"], rows.baseline)) == expected
    areas = {
        method: np.array(
            [area(curve(results.load_trajectory("smoke", name, method))) for name in repetitions("smoke", "albert")]
        )
        for method in {*rows["method"], *rows.baseline}
    }
    for row in rows[rows.endpoint == "area"].to_dict("records"):
        gains = areas[row["method"]] - areas[row["baseline"]]
        close(row["difference"], np.mean(gains), torch.float64, scale=1)
        assert row["low"] <= row["difference"] + 1e-9
        assert row["high"] >= row["difference"] - 1e-9
        assert (row["seeds"], row["texts"]) == (2, 64)
        assert 0 <= row["p"] <= 1


def test_verdicts_follow_the_rule(folder):
    rows = table(folder, "differences")
    of_pretrained = table(folder, "pretrained_differences")
    assert set(of_pretrained.model) == {"bert"}  # which the study of profile smoke names
    for name, asked, differences in (
        ("claims", claims.CLAIMS, rows),
        ("questions", claims.QUESTIONS, rows),
        ("pretrained", claims.OF_PRETRAINED, of_pretrained),
    ):
        saved = table(folder, name)
        pd.testing.assert_frame_equal(saved, claims.verdicts(differences, asked))
        assert "supported" not in set(saved.verdict)  # one model is not three


def test_each_comparison_names_what_it_took(folder):
    took = table(folder, "comparison_seconds")
    pairs = [(c.name, c.method, other) for c in claims.CLAIMS + claims.QUESTIONS for other in c.others]
    asked = [pair for pair in pairs if {*pair[1:]} <= {*methods()}]
    assert list(zip(took.claim, took["method"], took.baseline)) == asked
    runs = [
        results.load_trajectory("smoke", name, method)
        for name in repetitions("smoke", "albert")
        for method in ("greedy_gnorm", "attention_entropy")
    ]
    assert took.seconds[0] == pytest.approx(sum(run.info["seconds"] for run in runs), abs=0.06)


def test_scoring_texts_and_batches_are_varied(folder):
    rows = table(folder, "scoring_variants").set_index(["varied", "number", "draw"])
    assert list(rows.index) == [("texts", 8, 1), ("texts", 24, 0), ("batch", 4, 0), ("batch", 8, 0)]
    close(rows.loc[("texts", 24, 0), "rank correlation"], 1, torch.float64)
    close(rows.loc[("batch", 8, 0), "rank correlation"], 1, torch.float64)  # the profile's own
    own, varied = (
        results.load_trajectory("smoke", name, "greedy_gnorm") for name in ("albert/seed0", "albert/seed0/texts8/draw1")
    )
    close(rows.loc[("batch", 8, 0), "area"], area(curve(own)), torch.float64)
    close(rows.loc[("texts", 8, 1), "area"], area(curve(varied)), torch.float64)
    assert (own.info["scoring_texts"], varied.info["scoring_texts"]) == (24, 8)


def test_pruned_models_are_asked_and_trained_further(folder):
    answers = table(folder, "answers")
    intact = answers[answers.share == 0]
    assert (intact.agreement == 1).all()
    for row in answers[answers.share == 0.5].to_dict("records"):
        run = results.load_trajectory("smoke", row["repetition"], row["method"])
        close(row["accuracy"], run.table[run.table.pruned_heads == 2].accuracy.iloc[0], torch.float64)
    recovery = table(folder, "recovery")
    assert set(recovery.repetition) == {"albert/seed0"}  # the profile tunes one
    assert recovery["method"].is_unique
    assert (recovery.intact == recovery.intact[0]).all()
    assert (recovery.trained != recovery.pruned).any()
    (control,) = recovery["intact trained"].unique()
    task = tasks.load("smoke", "albert/seed0", "cpu", progress=False)
    recipe = dataclasses.replace(Recipe.read(task.spec.recipe), epochs=1)
    train("albert", recipe, task.model, task.tokenizer, task.splits["train"], progress=False)
    assert accuracy(task.model, task.batches("evaluation")) == pytest.approx(control, abs=2 / 64)  # other threads


def test_heads_written_otherwise_are_compared_with_the_same_training(folder):
    rows = table(folder, "rescaled_orders")
    grid = read_profile("smoke").study
    runs_of = [run for run in rewritten.variants("smoke", "albert", grid) if run[1:4] != ("values", 0, 0)]
    assert [*rows[["training", "pair", "method"]].itertuples(index=False, name=None)] == [
        (name, pair, method) for name, pair, _, _, method in runs_of
    ]
    (row,) = rows[(rows["method"] == "greedy_gnorm") & (rows.pair == "values")].to_dict("records")
    own, other = (
        results.load_trajectory("smoke", f"albert/seed0/{name}", "greedy_gnorm")
        for name in ("values0/drawn0", "values200/drawn1")
    )
    close(row["area"], area(curve(other)) - area(curve(own)), torch.float64, scale=1)
    close(row["half"], area(curve(other)[:3]) - area(curve(own)[:3]), torch.float64, scale=1)  # of four heads
    assert row["same order"] == (own.order() == other.order())
    kept = rows[rows["method"] == "head_importance"]
    assert (kept["same order"] == 1).all()
    assert (kept["rank correlation"] == 1).all()
    assert (kept.area == 0).all()
    summary = table(folder, "rescaling")
    assert summary.runs.sum() == len(rows)
    assert (table(folder, "logits_moved").change == 0).all()


def test_figures_are_there(study):
    for name in (
        *("claims", "questions", "curves", "matched_random", "ablations", "when_scored", "other_criteria"),
        *("training_seeds", "scoring_variants", "sanity_checks", "cost_quality", "recovery", "calibration"),
        *("rescaling", "layers_and_heads", "sharpness", "thresholds"),
        *("pretrained_half", "pretrained_within", "pretrained_area"),
    ):
        assert (study / "figures" / "smoke" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_claims_is_written_from_the_tables(folder, monkeypatch, tmp_path):
    shutil.copytree(folder / "tables", tmp_path / "tables")
    theirs = published_tables(tmp_path / "theirs")
    published_claims(theirs, ["roberta"]).to_csv(tmp_path / "tables" / "published_claims.csv", index=False)
    published_dip(theirs, ["roberta"]).to_csv(tmp_path / "tables" / "published_dip.csv", index=False)
    monkeypatch.setattr(claims_page, "RESULTS", tmp_path)
    text = claims_page.page()
    assert "The largest change of a logit is 0, on 64 texts" in text
    assert "| rho query less value " in text
    assert "- **albert**: " in text.partition("## Dips: ")[2].partition("## Afterwards")[0]
    for claim in claims.CLAIMS + claims.QUESTIONS:
        assert f"### {claim.name}. {claim.says}: " in text
    rows = table(folder, "differences").set_index(["method", "baseline", "endpoint"])
    for endpoint in paired.ENDPOINTS:
        assert f"{rows.loc[('greedy_gnorm', 'random', endpoint)].difference:+.3f} (" in text
    assert claims.recommended(table(folder, "methods")) in text
    assert "The fall is steps 2 to 3" in text
    bert = results.load_trajectory("smoke", "bert", "greedy_gnorm")
    assert f"Accuracy of the intact models, median: bert {curve(bert).iloc[0]:.3f} (1 trainings)." in text


def test_a_second_run_does_nothing(study, project, monkeypatch, capsys):
    assert in_process(study, monkeypatch, *ARGUMENTS, root=project) == 0
    assert capsys.readouterr().out.count("unchanged, not run again") == len(NOTEBOOKS)


MEASURED = ("comparison_seconds", "cost_quality")  # tables with seconds in them


def files(output):
    """Every table, trajectory and figure, by path, but for what holds seconds."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.suffix in (".csv", ".npz", ".md", ".tex", ".png", ".pdf")
        and ".run" not in path.parts
        and path.stem not in MEASURED
    }


@pytest.mark.soak
@pytest.mark.parametrize("written", [1, 25, 70, 80])  # claims makes 78, stability 3 more
def test_a_killed_study_goes_on_to_the_same_files(written, study, project, tmp_path):
    """Killed, with its kernel, when so many trajectories are there: at the first, among seeds, in another notebook."""
    command = [sys.executable, str(project / "run_all.py"), *ARGUMENTS]
    environment = os.environ | {"GNORM_OUTPUT": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 250
        while len(list(tmp_path.glob("experiments_results/smoke/albert/**/*.csv"))) < written:
            assert run.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for process in [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]:
            process.kill()
        run.wait()
    done = call(*ARGUMENTS, output=tmp_path, root=project)
    assert done.returncode == 0, done.stderr
    close_files(files(tmp_path), files(study))
