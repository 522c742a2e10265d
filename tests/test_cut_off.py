"""Pipelines that fail, are killed, stopped or refused, and go on."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from pipeline import ROOT, alter, call, in_process

from gnorm import METHODS
from gnorm.experiments import paths


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


def test_missing_trajectories_are_made(tmp_path):
    done = call("--profile", "smoke", "--only", "pruning_summary", "--models", "bert", output=tmp_path)
    assert done.returncode == 0, done.stderr
    assert trajectories(tmp_path).keys() == {f"{method}.csv" for method in METHODS}


CUT = ("--profile", "smoke", "--models", "bert", "--only", "greedy_pruning,random_pruning")


def trajectories(output):
    """Every trajectory of bert, by name."""
    return {path.name: path.read_bytes() for path in (output / "experiments_results" / "smoke" / "bert").glob("*.csv")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The trajectories of a run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole")
    done = call(*CUT, output=output)
    assert done.returncode == 0, done.stdout + done.stderr
    return trajectories(output)


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


def test_a_killed_run_goes_on_and_ends_with_the_same_tables(whole, tmp_path):
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
def test_a_stopped_run_says_so_and_leaves_no_kernel(whole, tmp_path, how, code):
    process = start(tmp_path, "executed/greedy_pruning.unfinished.ipynb")
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in printed
    assert "the same command goes on from here" in printed
    _, alive = psutil.wait_procs(kernels, timeout=20)
    assert not alive


def test_a_second_run_in_the_same_folder_is_refused_and_a_killed_kernel_is_said(whole, tmp_path):
    process = start(tmp_path, "greedy_gnorm-*.jsonl")
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    for kernel in kernels:
        kernel.suspend()  # it may be done before the second run has come to be refused
    second = call(*CUT, output=tmp_path)
    assert second.returncode == 2
    assert "another run is at work in experiments_results/smoke" in second.stderr
    assert process.poll() is None
    for kernel in kernels:
        kernel.kill()
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "[1/2] greedy_pruning ended with its kernel killed, perhaps for want of memory; finished steps" in printed
    assert "Traceback" not in printed


def test_a_missing_kernel_is_named(copied, tmp_path, monkeypatch, capsys):
    path = copied / "notebooks" / "greedy_pruning.ipynb"
    path.write_text(path.read_text("utf-8").replace('"name": "python3"', '"name": "no-such-kernel"'), "utf-8")
    monkeypatch.setattr(paths, "REPOSITORY", copied)
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


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(whole, disk):
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
    assert trajectories(folder) == {"greedy_gnorm.csv": whole["greedy_gnorm.csv"]}
