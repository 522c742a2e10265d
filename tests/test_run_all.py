"""The pipeline as its users have it: the real run_all.py, in a process of its own, on the smoke profile."""

import html.parser
import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from pipeline import ROOT, call, in_process, saved_methods, trajectories_of
from precision import close_files

import gnorm
import run_all
from experiments.data.profiles import read_profile
from experiments.files.errors import NotebookError, RunError, UsageError
from experiments.files.paths import run_folder, stamp_file
from experiments.pipeline import execution, jobs, runner
from experiments.runs import results, stamps
from gnorm import METHODS
from gnorm.storage.files import write, write_json
from gnorm.trajectory import solution

MASKS = {  # notebook -> the methods whose masks it writes
    "greedy_pruning": ["greedy_gnorm"],
    "inverse_greedy_gnorm_pruning": ["inverse_greedy_gnorm"],
    "ae_pruning": ["attention_entropy", "activation_energy"],
    "ae_inverse_pruning": ["inverse_attention_entropy", "inverse_activation_energy"],
}
TABLES = (
    *("pruning_results", "pruning_summary", "winners", "four_models", "greedyprune_all_models"),
    *("closeness", "gradient_test", "underflow_entropy", "underflow_products", "costs"),
)
FIGURES = (
    *("pruning_results", "random_pruning", "final_solutions", "data_processing", "greedy_pruning", "ae_pruning"),
    *("inverse_greedy_gnorm_pruning", "ae_inverse_pruning", "greedyprune_all_models", "gradient_test"),
    *("gradient_pooling", "attention_entropy", "costs", "custom_bert_pruning"),
    *(f"{name}_mask" for name in (*MASKS, "custom_bert_pruning")),
)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The output of one complete smoke run, and what it printed."""
    output = tmp_path_factory.mktemp("smoke output")  # with a space in its name
    done = call("--profile", "smoke", output=output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done


def test_smoke_runs_every_notebook_and_says_so(smoke):
    _, done = smoke
    assert done.stdout.splitlines()[0] == "profile smoke, models bert, albert, roberta, xlm-roberta, device cpu"
    for k, name in enumerate(run_all.NOTEBOOKS, start=1):
        assert f"[{k}/{len(run_all.NOTEBOOKS)}] {name}: " in done.stdout
    assert "Greedy-Gnorm, accuracy: 100%" in done.stderr  # the notebook's own progress, live
    assert "Traceback" not in done.stderr


def test_smoke_leaves_the_results_that_are_promised(smoke, monkeypatch):
    output, _ = smoke
    monkeypatch.setenv("GNORM_OUTPUT", str(output))
    folder = output / "experiments_results" / "smoke"
    profile = read_profile("smoke")
    for model in profile.usual_models:
        spec = profile.models[model]
        assert saved_methods("smoke", model) == list(METHODS)
        random = results.load_trajectory("smoke", model, "random")
        assert random.table.trial.nunique() == spec.random.trials
        trajectory = results.load_trajectory("smoke", model, "greedy_gnorm")
        heads = int(trajectory.start.sum())
        assert trajectory.table.pruned_heads.tolist() == list(range(heads + 1))
        assert trajectory.info["evaluation_texts"] == spec.evaluation.texts
        assert trajectory.table.accuracy[0] >= spec.min_accuracy
        assert {"seed", "device", "dtype", "versions", "commit", "evaluated_on", "data"} <= trajectory.info.keys()
        for method in (method for methods in MASKS.values() for method in methods):
            table = pd.read_csv(folder / model / f"{method}_mask.csv")
            run = results.load_trajectory("smoke", model, method)
            kept = torch.tensor(table.kept.to_numpy()).view(run.start.shape).bool()
            assert torch.equal(kept, run.mask(solution(run, spec.budget)))
            assert [(row.layer, row.head) for row in table.itertuples()] == list(np.ndindex(*kept.shape))
    mask = pd.read_csv(folder / "custom_bert" / "value_norm_mask.csv")
    assert len(mask) == results.load_trajectory("smoke", "bert", "greedy_gnorm").start.numel()
    assert set(mask.kept) <= {0, 1}
    for table in TABLES:
        for suffix in ("csv", "md", "tex"):
            assert (folder / "tables" / f"{table}.{suffix}").stat().st_size > 100
    for figure in FIGURES:
        assert (output / "figures" / "smoke" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (output / "figures" / "smoke" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["notebooks"]) == list(run_all.NOTEBOOKS)
    assert manifest["environment"]["packages"]["torch"]
    summary = pd.read_csv(folder / "tables" / "pruning_summary.csv")
    assert (summary["parameters after"] < summary.parameters).all()
    assert (summary["accuracy after"] >= summary.accuracy - summary.budget - 1e-9).all()


def test_executed_notebooks_show_their_figures_and_no_leftovers(smoke):
    output, _ = smoke
    pictures = 0
    for name in run_all.NOTEBOOKS:
        executed = output / "experiments_results" / "smoke" / ".run" / "executed" / f"{name}.ipynb"
        for cell in nbformat.read(executed, as_version=4).cells:
            for shown in cell.get("outputs", []):
                pictures += "image/png" in shown.get("data", {})
                assert "Warning" not in shown.get("text", ""), shown
    assert pictures == len(FIGURES)


def test_a_second_run_does_nothing_again(smoke, monkeypatch, capsys):
    output, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert in_process(output, monkeypatch, "--profile", "smoke") == 0
    assert capsys.readouterr().out.count("unchanged, not run again") == len(run_all.NOTEBOOKS)
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())


@pytest.mark.soak
def test_two_workers_leave_the_tables_that_one_process_leaves(smoke, tmp_path, monkeypatch, capsys):
    only = ("--only", "show_pruning_result,greedy_pruning", "--jobs", "2")  # the second's are among the first's
    assert in_process(tmp_path, monkeypatch, "--profile", "smoke", *only) == 0
    said = capsys.readouterr().out
    assert "20 trajectories: " in said
    assert "unchanged" not in said
    expected, found = (output / "experiments_results" / "smoke" for output in (smoke[0], tmp_path))
    made = [path.relative_to(found) for path in [*found.glob("*/*.csv"), *found.glob("*/*.npz")]]
    assert len(made) == 20 + 1 + 20
    names = [*made, *(Path("tables") / f"pruning_results.{suffix}" for suffix in ("md", "tex"))]
    close_files(*({str(name): (folder / name).read_bytes() for name in names} for folder in (found, expected)))
    stamp = json.loads(stamp_file("smoke", "show_pruning_result").read_text())
    assert not trajectories_of(stamp, "written")  # the notebook finds them


@pytest.mark.parametrize("name", run_all.NOTEBOOKS)
def test_the_pieces_of_a_notebook_are_those_that_it_asks_for(name, smoke, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(smoke[0]))
    stamp = json.loads(stamp_file("smoke", name).read_text())
    asked = jobs.asked_for("smoke", read_profile("smoke").usual_models, [name])
    assert trajectories_of(stamp, "written") == {str(job) for job in asked if job.afresh}
    assert trajectories_of(stamp, "read") == {str(job) for job in asked if not job.afresh}


def test_missing_and_altered_files_are_made_again_with_the_same_bytes(smoke, monkeypatch):
    output, _ = smoke
    tables = output / "experiments_results" / "smoke" / "tables"
    missing, altered = tables / "pruning_results.csv", tables / "pruning_results.md"
    before = missing.read_bytes(), altered.read_bytes()
    missing.unlink()
    altered.write_text("| model | area |\n")
    assert in_process(output, monkeypatch, "--profile", "smoke", "--only", "show_pruning_result") == 0
    assert (missing.read_bytes(), altered.read_bytes()) == before


def test_a_stamp_counts_as_long_as_what_was_written_is_there_and_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    files = [write(tmp_path / name, "{}") for name in ("a.csv", "a.json")]
    stamp = {"written": {path.name: stamps.digest_of(path) for path in files}}
    write_json(stamp_file("smoke", "greedy_pruning"), stamp)
    assert stamps.read_stamp("smoke", "greedy_pruning") == stamp
    files[1].write_text('{"commit": "another"}')
    assert stamps.read_stamp("smoke", "greedy_pruning") == stamp
    files[0].write_text("altered")
    assert stamps.read_stamp("smoke", "greedy_pruning") == {}
    files[0].write_text("{}")
    files[1].unlink()
    assert stamps.read_stamp("smoke", "greedy_pruning") == {}


@pytest.mark.parametrize(
    "content", ["", "[]", "[" * 100_000, "{}", '{"written": ["a"]}', '{"written": {"gone.csv": "0"}}']
)
def test_a_damaged_stamp_counts_as_not_done(content, tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    stamp = stamp_file("smoke", "greedy_pruning")
    write(stamp, content)
    assert stamps.read_stamp("smoke", "greedy_pruning") == {}


def test_fresh_leaves_the_journals_of_models_that_are_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    monkeypatch.setattr(execution, "execute", lambda *_: {"seconds": 0.0})
    run = run_folder("smoke")
    bert, albert = (write(run / "journals" / name / "greedy_gnorm-0.jsonl", "") for name in ("bert", "albert"))
    plan = runner.make_plan(run_all.NOTEBOOKS, ["data_processing"], "smoke", ["bert"], "cpu", fresh=True)
    runner.run_notebooks(plan, {"data_processing": ""}, {}, {})
    assert albert.exists()
    assert not bert.exists()


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("no such model"), 2, "run_all.py: no such model\n"),
        (RunError("no room"), 1, "no room\n"),
        (NotebookError("[1/1] greedy_pruning failed"), 1, "[1/1] greedy_pruning failed\n"),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error, code, said, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(runner, "run", fail)
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--profile", "smoke", "--only", "greedy_pruning"])
    assert stopped.value.code == code
    assert capsys.readouterr().err == said


def test_list_names_the_notebooks_and_runs_none(smoke, tmp_path, monkeypatch, capsys):
    assert in_process(smoke[0], monkeypatch, "--profile", "smoke", "--list") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [[n, "done"] for n in run_all.NOTEBOOKS]
    assert in_process(tmp_path, monkeypatch, "--profile", "smoke", "--list") == 0
    assert "done" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the report


class Page(html.parser.HTMLParser):
    """What a page links to and loads."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.text = [], [], ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in {"img", "script", "iframe"} and "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") == "stylesheet":
            self.loads.append(found["href"])

    def handle_data(self, data):
        self.text += data


def test_the_report_shows_everything_and_loads_nothing_from_elsewhere(smoke):
    output, _ = smoke
    folder = output / "experiments_results" / "smoke" / "report"
    index = Page(folder / "index.html")
    for target in [*index.links, *index.loads]:
        assert f'id="{target[1:]}"' in index.source if target.startswith("#") else (folder / target).exists(), target
    figures = {path.name for path in (output / "figures" / "smoke").glob("*.png")}
    assert {Path(target).name for target in index.loads} == figures
    pages = [link for link in index.links if link.endswith(".html")]
    assert pages == ["explore.html", *(f"{name}.html" for name in run_all.NOTEBOOKS)]
    for table in ("pruning_results", "pruning_summary", "winners", "four_models"):
        assert f"Table {table}" in index.text
    places = [index.text.index(words) for words in ("has the largest area", "Contents", "Table pruning_results")]
    assert places == sorted(places)
    assert "out of date" not in index.text
    assert "of another run" not in index.text
    assert "../manifest.json" in index.links
    for name in run_all.NOTEBOOKS:
        page = Page(folder / f"{name}.html")
        assert not [target for target in page.loads if not target.startswith("data:")], name
    assert not Page(folder / "explore.html").loads
    summary = (folder / "pruning_summary.html").read_text("utf-8")
    assert summary.count('src="data:image/png') == 2


def test_the_report_is_written_again_and_nothing_runs(smoke, tmp_path, monkeypatch, capsys):
    shutil.copytree(smoke[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "experiments_results" / "smoke"
    before = (folder / "report" / "index.html").read_text("utf-8")
    manifest = (folder / "manifest.json").read_bytes()
    monkeypatch.setattr(runner.execution, "execute", None)
    shutil.rmtree(folder / "report")
    assert in_process(tmp_path, monkeypatch, "--profile", "smoke", "--report") == 0
    assert capsys.readouterr().out == "written: experiments_results/smoke/report/index.html\n"
    assert (folder / "report" / "index.html").read_text("utf-8") == before
    assert (folder / "manifest.json").read_bytes() == manifest
    # As in a clone, where the records of the run are not; and after a change of what a notebook depends on.
    shutil.rmtree(folder / ".run")
    monkeypatch.setattr(runner, "fingerprint", lambda name, *_: name)
    assert in_process(tmp_path, monkeypatch, "--profile", "smoke", "--report") == 0
    index = Page(folder / "report" / "index.html")
    assert index.text.count("(no executed copy is here)") == len(run_all.NOTEBOOKS)
    assert f"--only {','.join(run_all.NOTEBOOKS)}" in index.text
    assert "trajectories are out of date." in index.text


@pytest.mark.parametrize(("manifest", "why"), [(None, "is not there"), ("{", "is damaged"), ("[]", "is damaged")])
def test_a_report_of_nothing_is_refused(manifest, why, tmp_path, monkeypatch, capsys):
    if manifest:
        write(tmp_path / "experiments_results" / "smoke" / "manifest.json", manifest)
    with pytest.raises(SystemExit) as stopped:
        in_process(tmp_path, monkeypatch, "--profile", "smoke", "--report")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"run_all.py: experiments_results/smoke/manifest.json {why}")
    assert said.endswith(": run `python run_all.py --profile smoke` first.\n")


# ---------------------------------------------------------------- the notebooks as they are stored


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stored_clean_and_thin(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].cell_type == "markdown"
    assert path.stem in notebook.cells[0].source.splitlines()[0]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    source = "\n".join(cell.source for cell in code)
    assert str(Path.home()) not in source
    assert "/tmp" not in source
    if path.stem != "custom_bert_pruning":
        assert "def " not in source
        assert "lambda" not in source


def test_every_notebook_is_in_the_order_and_the_order_names_no_other():
    names = sorted(run_all.NOTEBOOKS + run_all.OPTIONAL)
    assert names == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert len(run_all.NOTEBOOKS) == 13


def test_run_all_holds_the_order_and_the_command_line_alone():
    assert len((ROOT / "run_all.py").read_text("utf-8").splitlines()) < 200


def test_methods_that_the_results_name_exist():
    assert set(saved_methods("smoke", "bert")) <= set(METHODS)


@pytest.mark.soak
def test_notebooks_beyond_the_paper_run_by_name(smoke, tmp_path, monkeypatch):
    """criteria_comparison takes up the trajectories that are there; prune_your_model ends in a folder with a card."""
    shutil.copytree(smoke[0], tmp_path, dirs_exist_ok=True)
    names = "criteria_comparison,prune_your_model"  # tests/test_study.py has the others
    assert in_process(tmp_path, monkeypatch, "--profile", "smoke", "--models", "bert", "--only", names) == 0
    stamp = json.loads(stamp_file("smoke", "criteria_comparison").read_text())
    asked = jobs.asked_for("smoke", ["bert"], names.split(","))
    assert trajectories_of(stamp, "written") == {str(job) for job in asked if job.afresh}
    folder = tmp_path / "experiments_results" / "smoke"
    table = pd.read_csv(folder / "tables" / "criteria_comparison.csv")
    assert {"greedy_gnorm", "head_importance", "hies", "random"} <= set(table["method"])
    assert (table.area_low < table.area).all()
    assert (table.area < table.area_high).all()
    for figure in ("criteria_comparison", "criteria_curves", "prune_your_model"):
        assert (tmp_path / "figures" / "smoke" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    smaller = folder / ".run" / "example" / "bert" / "smaller"
    assert "attention heads removed" in (smaller / "README.md").read_text("utf-8")
    assert not gnorm.head_mask_of(gnorm.load_pruned(smaller)).all()
    index = Page(folder / "report" / "index.html")
    assert {"criteria_comparison.html", "prune_your_model.html"} <= set(index.links)
