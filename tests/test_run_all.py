"""The pipeline as its users have it: the real run_all.py, in a process of its own, on the smoke profile."""

import html.parser
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest

import gnorm
import run_all
from gnorm import METHODS, results, tasks
from gnorm.pruning import MORE_METHODS

ROOT = Path(__file__).parents[1]
TABLES = (
    *("pruning_results", "pruning_summary", "all_methods", "winners", "four_models", "greedyprune_all_models"),
    *("closeness", "gradient_test", "underflow_entropy", "underflow_products", "costs"),
)
FIGURES = (
    *("pruning_results", "random_pruning", "final_solutions", "data_processing", "greedy_pruning", "ae_pruning"),
    *("inverse_greedy_gnorm_pruning", "ae_inverse_pruning", "greedyprune_all_models", "gradient_test"),
    *("gradient_pooling", "attention_entropy", "costs"),
)


def call(*arguments, output, root=ROOT, **environment):
    return subprocess.run(
        [sys.executable, str(root / "run_all.py"), *arguments],
        env=os.environ | {"GNORM_OUTPUT": str(output)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
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
    assert "Greedy-Gnorm: 100%" in done.stderr  # the notebook's own progress, live
    assert "Traceback" not in done.stderr


def test_smoke_leaves_the_results_that_are_promised(smoke, monkeypatch):
    output, _ = smoke
    monkeypatch.setenv("GNORM_OUTPUT", str(output))
    folder = output / "experiments_results" / "smoke"
    for model, spec in tasks.read_profile("smoke").models.items():
        assert results.saved_methods("smoke", model) == list(METHODS)
        random = results.load_trajectory("smoke", model, "random")
        assert random.table.trial.nunique() == spec.random.trials
        trajectory = results.load_trajectory("smoke", model, "greedy_gnorm")
        heads = int(trajectory.start.sum())
        assert trajectory.table.pruned_heads.tolist() == list(range(heads + 1))
        assert trajectory.info["evaluation_texts"] == spec.evaluation.texts
        assert trajectory.table.accuracy[0] >= spec.min_accuracy
        assert {"seed", "device", "dtype", "versions", "commit", "evaluated_on", "data"} <= trajectory.info.keys()
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


def test_a_second_run_does_nothing_again(smoke):
    output, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.suffix != ".lock"}
    again = call("--profile", "smoke", output=output)
    assert again.returncode == 0
    assert again.stdout.count("unchanged, not run again") == len(run_all.NOTEBOOKS)
    assert all(path.stat().st_mtime_ns == moment for path, moment in before.items())


def test_missing_and_altered_files_are_made_again_with_the_same_bytes(smoke):
    output, _ = smoke
    tables = output / "experiments_results" / "smoke" / "tables"
    missing, altered = tables / "pruning_results.csv", tables / "pruning_results.md"
    before = missing.read_bytes(), altered.read_bytes()
    missing.unlink()
    altered.write_text("| model | area |\n")
    again = call("--profile", "smoke", "--only", "show_pruning_result", output=output)
    assert again.returncode == 0, again.stderr
    assert (missing.read_bytes(), altered.read_bytes()) == before


def test_a_stamp_counts_as_long_as_what_was_written_is_there_and_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    files = [results.write(tmp_path / name, "{}") for name in ("a.csv", "a.json")]
    stamp = {"written": {path.name: run_all.digest_of(path) for path in files}}
    results.write_json(results.run_folder("smoke") / "stamps" / "greedy_pruning.json", stamp)
    assert run_all.stamp_of("smoke", "greedy_pruning") == stamp
    files[1].write_text('{"commit": "another"}')
    assert run_all.stamp_of("smoke", "greedy_pruning") == stamp
    files[0].write_text("altered")
    assert run_all.stamp_of("smoke", "greedy_pruning") == {}
    files[0].write_text("{}")
    files[1].unlink()
    assert run_all.stamp_of("smoke", "greedy_pruning") == {}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"written": ["a"]}', '{"written": {"gone.csv": "0"}}'])
def test_a_damaged_stamp_counts_as_not_done(content, tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    stamp = results.run_folder("smoke") / "stamps" / "greedy_pruning.json"
    results.write(stamp, content)
    assert run_all.stamp_of("smoke", "greedy_pruning") == {}


def in_process(output, monkeypatch, *arguments):
    """``run_all.main`` without a process of its own, for what ends before a notebook runs."""
    monkeypatch.setenv("GNORM_OUTPUT", str(output))
    return run_all.main(list(arguments))


def test_list_names_the_notebooks_and_runs_none(smoke, tmp_path, monkeypatch, capsys):
    assert in_process(smoke[0], monkeypatch, "--profile", "smoke", "--list") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [[n, "done"] for n in run_all.NOTEBOOKS]
    assert in_process(tmp_path, monkeypatch, "--profile", "smoke", "--list") == 0
    assert "done" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def copied(tmp_path):
    """A copy of the project whose notebooks may be altered."""
    root = tmp_path / "projekt für köpfe"
    root.mkdir()
    for name in ("gnorm", "notebooks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_all.py", root)
    return root


def alter(root, name, change):
    path = root / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        change(cell)
    nbformat.write(notebook, path)


def test_a_notebook_without_the_parameter_is_refused_before_anything_runs(copied):
    def rename(cell):
        cell.source = cell.source.replace("models: list", "encoders: list")

    alter(copied, "greedy_pruning", rename)
    done = call("--profile", "smoke", output=copied, root=copied)
    assert done.returncode == 2
    assert "notebook greedy_pruning has no parameter 'models'" in done.stderr
    assert not (copied / "experiments_results").exists()


def test_a_failing_cell_is_named_with_its_error_and_the_executed_copy(copied):
    def fail(cell):
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            cell.source = "raise LookupError('no such head')"

    alter(copied, "show_pruning_result", fail)
    done = call("--profile", "smoke", "--only", "show_pruning_result", output=copied, root=copied)
    assert done.returncode == 1
    *_, failure, where = done.stderr.strip().splitlines()
    assert failure.startswith("[1/1] show_pruning_result failed in cell [3]: LookupError: no such head")
    executed = copied / "experiments_results" / "smoke" / ".run" / "executed" / "show_pruning_result.ipynb"
    assert "is experiments_results/smoke/.run/executed/show_pruning_result.ipynb; finished steps are kept" in where
    assert "LookupError" in executed.read_text()
    assert not (copied / "experiments_results" / "smoke" / ".run" / "stamps").exists()
    assert "Traceback" not in done.stderr


def test_missing_trajectories_name_the_remedy(tmp_path):
    done = call("--profile", "smoke", "--only", "pruning_summary", "--models", "bert", output=tmp_path)
    assert done.returncode == 1
    assert "run `python run_all.py --profile smoke --models bert` first" in done.stderr


# ---------------------------------------------------------------- the report


class Page(html.parser.HTMLParser):
    """What a page links to and loads."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.text = [], [], ""
        self.feed(path.read_text("utf-8"))

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
        assert (folder / target).exists(), target
    figures = {path.name for path in (output / "figures" / "smoke").glob("*.png")}
    assert {Path(target).name for target in index.loads} == figures
    assert [f"{name}.html" for name in run_all.NOTEBOOKS] == [link for link in index.links if link.endswith(".html")]
    for table in ("pruning_results", "pruning_summary", "all_methods", "winners", "four_models"):
        assert table in index.text
    assert "../manifest.json" in index.links
    for name in run_all.NOTEBOOKS:
        page = Page(folder / f"{name}.html")
        assert not [target for target in page.loads if not target.startswith("data:")], name
    if browser := shutil.which("chromium"):
        opened = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            + ["--user-data-dir=" + str(output / "browser"), "--dump-dom", (folder / "index.html").as_uri()],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert "Greedy-Gnorm, profile smoke" in opened.stdout


def test_a_notebook_runs_from_its_own_folder(smoke, tmp_path):
    output, _ = smoke
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "greedy_pruning.ipynb"]
        + ["--output-dir", str(tmp_path)],
        cwd=ROOT / "notebooks",
        env=os.environ | {"GNORM_OUTPUT": str(output)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "figures/smoke/greedy_pruning.png" in (tmp_path / "greedy_pruning.ipynb").read_text()


# ---------------------------------------------------------------- runs that are cut off

CUT = ("--profile", "smoke", "--models", "bert", "--only", "greedy_pruning,random_pruning")


def trajectories(output):
    """Every trajectory of bert, by name."""
    return {path.name: path.read_bytes() for path in (output / "experiments_results" / "smoke" / "bert").glob("*.csv")}


def launch(output):
    """A run in the background."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_all.py"), *CUT],
        env=os.environ | {"GNORM_OUTPUT": str(output)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start(output, until):
    """A run in the background, handed over as soon as the file ``until`` is there."""
    process = launch(output)
    deadline = time.monotonic() + 120
    while not list(output.rglob(until)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{until} did not appear"
        time.sleep(0.01)
    return process


def test_a_killed_run_goes_on_and_ends_with_the_same_tables(smoke, tmp_path):
    whole = trajectories(smoke[0])
    process = start(tmp_path, "greedy_gnorm-*.jsonl")
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.kill()
    process.communicate()
    again = call(*CUT, output=tmp_path)  # at once: the orphaned kernel is still at work
    assert again.returncode == 0, again.stderr
    assert trajectories(tmp_path) == {name: whole[name] for name in ("greedy_gnorm.csv", "random.csv")}
    _, alive = psutil.wait_procs(kernels, timeout=5)
    assert not alive
    assert not list(tmp_path.rglob("*.unfinished*"))
    assert [path.name for path in tmp_path.rglob("*.lock")] == ["run.lock"]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_so_and_leaves_no_kernel(smoke, tmp_path, how, code):
    process = start(tmp_path, "executed/greedy_pruning.unfinished.ipynb")
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in printed
    assert "the same command goes on from here" in printed
    _, alive = psutil.wait_procs(kernels, timeout=20)
    assert not alive


def test_a_second_run_in_the_same_folder_is_refused_and_a_killed_kernel_is_said(smoke, tmp_path):
    process = start(tmp_path, "executed/greedy_pruning.unfinished.ipynb")
    second = call(*CUT, output=tmp_path)
    assert second.returncode == 2
    assert "another run is at work in experiments_results/smoke" in second.stderr
    assert process.poll() is None
    for kernel in psutil.Process(process.pid).children(recursive=True):
        kernel.kill()
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "[1/2] greedy_pruning ended with its kernel killed, perhaps for want of memory; finished steps" in printed
    assert "Traceback" not in printed


def test_a_missing_kernel_is_named(copied, tmp_path, monkeypatch, capsys):
    path = copied / "notebooks" / "greedy_pruning.ipynb"
    path.write_text(path.read_text("utf-8").replace('"name": "python3"', '"name": "no-such-kernel"'), "utf-8")
    monkeypatch.setattr(run_all, "ROOT", copied)
    with pytest.raises(SystemExit) as stopped:
        in_process(tmp_path / "out", monkeypatch, "--profile", "smoke", "--only", "greedy_pruning")
    assert stopped.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == (
        "[1/1] greedy_pruning needs the Jupyter kernel 'no-such-kernel', which is not installed: run `make setup`."
    )


def mounted(folder, options):
    """Mount a file system in memory, or skip the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk of its own, by options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield lambda options: mounted(folder, options) or folder
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_folder_that_cannot_be_written_is_said(disk, tmp_path, monkeypatch, capsys):
    if os.geteuid() == 0:  # whom permissions do not stop
        folder = disk("size=1m,ro")
    else:
        folder = tmp_path / "disk"
        folder.chmod(0o555)
    with pytest.raises(SystemExit) as stopped:
        in_process(folder, monkeypatch, "--profile", "smoke", "--only", "greedy_pruning")
    assert stopped.value.code == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"run_all.py: a file in {folder} could not be read or written")
    assert "what is finished is kept: make room or grant access" in said


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(smoke, disk):
    folder, part = disk("size=24k"), ("--profile", "smoke", "--models", "bert", "--only", "greedy_pruning")
    failed = call(*part, output=folder)
    assert failed.returncode == 1
    assert "No space left on device" in failed.stderr.strip().splitlines()[-1] + failed.stderr.splitlines()[-2]
    assert "Traceback" not in failed.stderr
    (journal,) = folder.rglob("greedy_gnorm-*.jsonl")
    kept = journal.read_bytes()
    assert kept.count(b"\n") > 1
    subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
    again = call(*part, output=folder)
    assert again.returncode == 0, again.stderr
    assert journal.read_bytes().startswith(kept)
    assert trajectories(folder) == {"greedy_gnorm.csv": trajectories(smoke[0])["greedy_gnorm.csv"]}


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


def test_methods_that_the_results_name_exist():
    assert set(results.saved_methods("smoke", "bert")) <= set(METHODS)


def test_notebooks_beyond_the_paper_run_by_name(smoke, tmp_path):
    """criteria_comparison takes up the trajectories that are there; prune_your_model ends in a folder with a card."""
    shutil.copytree(smoke[0], tmp_path, dirs_exist_ok=True)
    names = ",".join(run_all.OPTIONAL)
    done = call("--profile", "smoke", "--models", "bert", "--only", names, output=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "experiments_results" / "smoke"
    table = pd.read_csv(folder / "tables" / "criteria_comparison.csv")
    assert set(MORE_METHODS) - {"activation_energy", "inverse_activation_energy"} <= set(table.method)
    assert (table.area_low < table.area).all()
    assert (table.area < table.area_high).all()
    for figure in ("criteria_comparison", "criteria_curves", "prune_your_model"):
        assert (tmp_path / "figures" / "smoke" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    smaller = folder / ".run" / "example" / "bert" / "smaller"
    assert "attention heads removed" in (smaller / "README.md").read_text("utf-8")
    assert not gnorm.head_mask_of(gnorm.load_pruned(smaller)).all()
    index = Page(folder / "report" / "index.html")
    assert {"criteria_comparison.html", "prune_your_model.html"} <= set(index.links)
