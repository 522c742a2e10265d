"""Nothing that is installed, read or shown can bring code in: pinned and hashed packages, no pickle, escaped pages."""

import ast
import re
import sys
import threading
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
from papermill.translators import PythonTranslator

import gnorm
from experiments import runs
from experiments.data import tasks
from experiments.files import provenance
from experiments.files.paths import figures_folder
from experiments.report import rendering
from experiments.runs import results
from gnorm.storage.files import write

ROOT = Path(__file__).parents[1]
BY_HAND = ("requirements-nodeps", "requirements-mpnet", "requirements-smollm2")
LOCKS = {f"{name}.txt": f"{name}.lock" for name in ("requirements", *BY_HAND)}
UNPICKLED = []  # the files whose code unpickled a class while WATCHED was set
WATCHED = threading.Event()


def pins(text):
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_pinned_and_locked_with_its_hash(name):
    wanted = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    wanted = [line for line in wanted if line]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in wanted), wanted
    lock = (ROOT / LOCKS[name]).read_text()
    locked = {normal(package): version for package, version in pins(lock).items()}
    stale = [line for line in wanted if locked.get(normal(line.partition("==")[0])) != line.partition("==")[2]]
    assert not stale, f"{LOCKS[name]} does not hold {', '.join(stale)}: run `make lock`"
    for entry in re.split(r"^(?=\S)", lock, flags=re.MULTILINE):
        if "==" in entry:
            assert "--hash=sha256:" in entry, entry


def watch(event, _):
    if event == "pickle.find_class" and WATCHED.is_set():
        UNPICKLED.append(sys._getframe(1).f_code.co_filename)


sys.addaudithook(watch)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    """Python announces every class that a pickle names before it is looked up; none is, from loading to saving."""
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    WATCHED.set()
    try:
        task = tasks.load("smoke", "bert", "cpu", progress=False)
        run = runs.run(task, "random", progress=False)
        results.load_trajectory("smoke", "bert", "random")
        gnorm.remove_heads(task.model, run.mask(3))
        gnorm.load_pruned(gnorm.save_pruned(task.model, tmp_path / "pruned"))
        assert not UNPICKLED
        torch.save(torch.Size([1]), tmp_path / "pickled")
        torch.load(tmp_path / "pickled", weights_only=False)
        assert UNPICKLED  # the watch works
    finally:
        WATCHED.clear()
        UNPICKLED.clear()


def test_no_source_reads_pickles_or_runs_text():
    sources = {
        path: path.read_text("utf-8")
        for path in [*(ROOT / "gnorm").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), ROOT / "run_all.py"]
    }
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        sources[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for path, source in sources.items():
        for call in (
            "import pickle",
            "pickle.load",
            "torch.load",
            "weights_only=False",
            "joblib",
            "trust_remote_code",
        ):
            assert call not in source, f"{path.name}: {call}"
        assert not re.search(r"(?<![\w.])(eval|exec)\(", source), path.name


def test_the_report_escapes_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    attack = "<script>alert(1)</script>"
    results.save_table(pd.DataFrame({attack: [attack], "x": [1.5]}), "smoke", "table")
    write(figures_folder("smoke") / "a&b'c.png", b"\x89PNG")
    environment = {**provenance.environment(), "commit": attack, "machine": attack}
    manifest = {"finished": attack, "device": attack, "environment": environment, "notebooks": {}}
    page = rendering.write_report("smoke", attack, manifest, {}).read_text("utf-8")
    assert attack not in page
    assert page.count("&lt;script&gt;alert(1)") >= 6
    assert "a&b'c" not in page


def test_parameters_written_into_a_notebook_are_values():
    """papermill writes parameters as Python: whatever a string holds, it stays that string."""
    hostile = '"]\nraise SystemExit(1)  # \\'
    cell = ast.parse(PythonTranslator.codify({"profile": hostile, "models": [hostile]}))
    assert all(isinstance(line, ast.Assign) for line in cell.body)
    assert [ast.literal_eval(line.value) for line in cell.body] == [hostile, [hostile]]
