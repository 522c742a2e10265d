"""Every notebook alone, where no other ran before it: what it needs and does not find, it makes."""

import os
import subprocess
import sys
from unittest import mock

import nbformat
import pytest
import torch
from pipeline import ROOT, execute, saved_methods
from precision import close, close_tables

import run_all
from experiments import runs
from experiments.data.profiles import models_for
from experiments.files import paths
from experiments.files.paths import results_folder
from experiments.runs import trajectories
from gnorm import METHODS, MORE_METHODS
from gnorm.engine.model import blocks as heads

MODEL = "bert"


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    """A folder for results that holds none; nothing is drawn in a window."""
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    return tmp_path


@pytest.fixture
def ran(monkeypatch):
    """The (model, method) of every run, as it begins."""
    ran, run = [], runs.run
    monkeypatch.setattr(runs, "run", lambda task, method: (ran.append((task.name, method)), run(task, method))[1])
    return ran


TABLES = {"show_pruning_result": ["pruning_results"], "pruning_summary": ["pruning_summary", "winners"]}


@pytest.mark.parametrize("first", ["show_pruning_result", pytest.param("pruning_summary", marks=pytest.mark.soak)])
def test_what_reads_results_makes_them_where_there_are_none_and_reads_them_after_that(first, ran, empty):
    def tables():
        return {path.stem: path.read_text() for path in (results_folder("smoke") / "tables").glob("*.csv")}

    (second,) = TABLES.keys() - {first}
    execute(first, models=[MODEL])
    assert ran == [(MODEL, method) for method in METHODS]
    assert saved_methods("smoke", MODEL) == list(METHODS)
    before = tables()
    (results_folder("smoke") / MODEL / "random.csv").unlink()
    execute(second, models=[MODEL])
    assert ran[len(METHODS) :] == [(MODEL, "random")]  # taken up from its journal; the others are read
    before |= tables()
    execute(first, models=[MODEL])
    assert len(ran) == len(METHODS) + 1
    after = tables()
    assert before.keys() == after.keys() == {"costs", *TABLES[first], *TABLES[second]}
    assert all(after[name] == before[name] for name in before.keys() - {"costs"})


def test_what_is_asked_for_is_made_and_nothing_else(ran, empty):
    shown = execute("show_pruning_result", models=[MODEL], methods=["random"])
    assert list(shown["table"].method) == ["random"]
    assert ran == [(MODEL, "random")]
    summary = execute("pruning_summary", models=[MODEL], methods=["random"])
    assert list(summary["every"][MODEL]) == ["random"]
    assert list(summary["runs"][MODEL]) == ["greedy_gnorm"]
    assert ran == [(MODEL, "random"), (MODEL, "greedy_gnorm")]  # the solution is that of another method


def test_trajectories_that_are_read_are_those_that_were_run(ran, empty):
    made = trajectories("smoke", [MODEL], ["random", "weight_magnitude"])
    read = trajectories("smoke", [MODEL], ["random", "weight_magnitude"])
    assert len(ran) == 2
    for method, trajectory in made[MODEL].items():
        close_tables(read[MODEL][method].table, trajectory.table, torch.float64)
        assert (read[MODEL][method].correct == trajectory.correct).all()


@pytest.mark.parametrize(
    ("models", "methods", "complaint"),
    [
        ([MODEL, "gpt"], ["random"], "profile smoke has no model 'gpt'; it has bert, albert, roberta, xlm-roberta"),
        ([MODEL], ["random", "magic"], "method 'magic' is not known; choose one of greedy_gnorm"),
        (MODEL, ["random"], f"no model '{MODEL[0]}'; it has bert, .*; give a list of names, not one string"),
        ([MODEL], "random", "method 'r' is not known; choose .*; give a list of names, not one string"),
    ],
)
def test_unknown_names_are_refused_before_anything_runs(models, methods, complaint, ran, empty):
    with pytest.raises(ValueError, match=complaint):
        trajectories("smoke", models, methods)
    assert not ran
    assert not list(empty.iterdir())


def test_a_bert_is_rebuilt_by_hand_where_none_is_among_the_models(empty):
    with mock.patch.dict(heads.FAMILIES), mock.patch.dict(MORE_METHODS):
        rebuilt = execute("custom_bert_pruning", models=["roberta"], steps=2)
    assert rebuilt["by_hand"].order() == rebuilt["theirs"].order()
    assert rebuilt["task"].model.config.model_type == "bert"


def test_decoders_are_pruned_whichever_models_are_named(ran, empty):
    shown = execute("decoder_pruning", models=[MODEL], methods=["greedy_gnorm"])
    assert ran == [("gpt2", "greedy_gnorm")]
    task, (run,) = shown["decoders"]["gpt2"], shown["runs"]["gpt2"].values()
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in task.batches("evaluation"):
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            text = ids[None, mask == 1]
            with torch.no_grad():
                sums += torch.tensor([float(task.model(text, labels=text).loss) * (len(text[0]) - 1), len(text[0]) - 1])
    close(run.table.perplexity[0], (sums[0] / sums[1]).exp())
    assert run.table.perplexity[0] < task.model.config.vocab_size / 2  # it has learned something
    assert shown["table"].area_low[0] < shown["table"].area[0] < shown["table"].area_high[0]
    with pytest.raises(ValueError, match="profile paper has no model for causal_lm: choose another profile"):
        models_for("causal_lm", "paper", [])


def test_where_results_go_does_not_depend_on_the_working_directory(empty, monkeypatch, capsys):
    monkeypatch.delenv("GNORM_OUTPUT")
    monkeypatch.setattr(paths, "REPOSITORY", empty / "repository")
    elsewhere = empty / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    execute("greedy_pruning", models=[MODEL])
    assert "figures/smoke/greedy_pruning.png" in capsys.readouterr().out
    assert (empty / "repository" / "figures" / "smoke" / "greedy_pruning.png").exists()
    assert (empty / "repository" / "experiments_results" / "smoke" / MODEL / "greedy_gnorm.csv").exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.soak
@pytest.mark.parametrize("folder", [".", "notebooks"])
@pytest.mark.parametrize("name", [*run_all.NOTEBOOKS, *run_all.OPTIONAL])
def test_every_notebook_runs_alone_from_the_root_and_from_its_own_folder(name, folder, empty):
    commands = {
        ".": ["papermill", "--no-progress-bar", f"notebooks/{name}.ipynb", str(empty / f"{name}.ipynb")],
        "notebooks": ["nbconvert", "--to", "notebook", "--execute", f"{name}.ipynb", "--output-dir", str(empty)],
    }
    done = subprocess.run(
        [sys.executable, "-m", *commands[folder]],
        cwd=ROOT / folder,
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outputs = [
        output
        for cell in nbformat.read(empty / f"{name}.ipynb", as_version=4).cells
        for output in cell.get("outputs", [])
    ]
    assert outputs
    assert not [output for output in outputs if "Warning" in output.get("text", "")]
