"""Pipelines that fail, are killed, stopped or refused, and go on."""

import asyncio
import errno
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
from nbclient.exceptions import DeadKernelError
from pipeline import ROOT, alter, in_process
from precision import close_files

from experiments.data import tasks
from experiments.pipeline import execution
from experiments.runs import run


def test_a_notebook_without_the_parameter_is_refused_before_anything_runs(copied, monkeypatch, capsys):
    def rename(cell):
        cell.source = cell.source.replace("models: list", "encoders: list")

    alter(copied, "greedy_pruning", rename)
    with pytest.raises(SystemExit) as stopped:
        in_process(copied, monkeypatch, "--profile", "smoke", root=copied)
    assert stopped.value.code == 2
    assert "notebook greedy_pruning has no parameter 'models'" in capsys.readouterr().err
    assert not (copied / "experiments_results").exists()


CUT = ("--profile", "smoke", "--models", "bert", "--only", "greedy_pruning")


def trajectories(output):
    """Every trajectory of bert, by name."""
    folder = output / "experiments_results" / "smoke" / "bert"
    return {path.name: path.read_bytes() for path in folder.glob("*.csv") if not path.stem.endswith("_mask")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The trajectories of a run that nobody disturbed, without a pipeline."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNORM_OUTPUT", str(output))
        run(tasks.load("smoke", "bert"), "greedy_gnorm", progress=False)
    return trajectories(output)


def _heed_interrupts():
    """What a shell runs in the background ignores SIGINT, and hands that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def launch(output, arguments=CUT):
    """A run in the background."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run_all.py"), *arguments],
        env=os.environ | {"GNORM_OUTPUT": str(output)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_heed_interrupts,  # noqa: PLW1509 it sets a signal and no more
    )


def start(output, until, arguments=CUT):
    """A run in the background, handed over as soon as the file ``until`` is there."""
    process = launch(output, arguments)
    deadline = time.monotonic() + 120
    while not list(output.rglob(until)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{until} did not appear"
        time.sleep(0.01)
    return process


def test_a_killed_run_goes_on_and_ends_with_the_same_tables(whole, tmp_path, monkeypatch):
    process = start(tmp_path, "greedy_gnorm-*.jsonl")
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    process.kill()
    process.communicate()
    assert in_process(tmp_path, monkeypatch, *CUT) == 0  # at once: the orphaned kernel is still at work
    close_files(trajectories(tmp_path), whole)
    _, alive = psutil.wait_procs(kernels, timeout=60)
    assert not alive
    assert not list(tmp_path.rglob("*.unfinished*"))
    assert not list(tmp_path.rglob("*.jsonl.lock"))


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak)]
)
def test_a_run_refuses_a_second_one_and_says_that_it_was_stopped_and_leaves_no_kernel(
    how, code, tmp_path, monkeypatch, capsys
):
    process = start(tmp_path, "greedy_gnorm-*.jsonl")
    kernels = psutil.Process(process.pid).children(recursive=True)
    assert kernels
    for kernel in kernels:
        kernel.suspend()  # it may be done before the second run has come to be refused
    with pytest.raises(SystemExit) as stopped:
        in_process(tmp_path, monkeypatch, *CUT)
    assert stopped.value.code == 2
    assert "another run is at work in experiments_results/smoke" in capsys.readouterr().err
    assert process.poll() is None
    process.send_signal(how)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in printed
    assert "the same command goes on from here" in printed
    _, alive = psutil.wait_procs(kernels, timeout=60)
    assert not alive


def test_a_cell_left_behind_with_its_kernel_killed_is_no_traceback_and_another_task_is(caplog):
    async def left_behind():
        async def fail(error):
            raise error

        for error in (DeadKernelError("Kernel died"), LookupError("no such head")):
            asyncio.ensure_future(fail(error))
        await asyncio.sleep(0)

    asyncio.run(left_behind())
    gc.collect()
    assert [record.exc_info[0] for record in caplog.records if record.name == "asyncio"] == [LookupError]


def replaced(root, notebook, source):
    """Give every cell of a notebook but that of the parameters another source."""

    def change(cell):
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            cell.source = source

    alter(root, notebook, change)


def failure(output, root, monkeypatch, capsys):
    """What is said when greedy_pruning fails."""
    with pytest.raises(SystemExit) as stopped:
        in_process(output, monkeypatch, "--profile", "smoke", "--only", "greedy_pruning", root=root)
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_failing_cell_is_named_with_its_error_and_the_executed_copy(copied, monkeypatch, capsys):
    replaced(copied, "greedy_pruning", "raise LookupError('no such head')")
    *_, told, where = failure(copied, copied, monkeypatch, capsys).strip().splitlines()
    assert told.startswith("[1/1] greedy_pruning failed in cell [3]: LookupError: no such head")
    executed = copied / "experiments_results" / "smoke" / ".run" / "executed" / "greedy_pruning.ipynb"
    assert "is experiments_results/smoke/.run/executed/greedy_pruning.ipynb; finished steps are kept" in where
    assert "LookupError" in executed.read_text()
    assert not (copied / "experiments_results" / "smoke" / ".run" / "stamps").exists()


def test_a_killed_kernel_is_said(copied, tmp_path, monkeypatch, capsys):
    replaced(copied, "greedy_pruning", "import os\nos.kill(os.getpid(), 9)")
    said = failure(tmp_path / "out", copied, monkeypatch, capsys)
    assert "[1/1] greedy_pruning ended with its kernel killed, perhaps out of memory; finished steps" in said


def test_kernels_run_in_this_python(copied, tmp_path, monkeypatch, capsys):
    """Whatever Jupyter knows under the name that the notebook gives."""
    replaced(copied, "greedy_pruning", "import sys\nraise LookupError(sys.executable)")
    kernel = {"argv": [str(tmp_path / "gone" / "python"), "{connection_file}"], "display_name": "3"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(kernel | {"language": "python"}), "utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    said = failure(tmp_path / "out", copied, monkeypatch, capsys)
    assert f"failed in cell [3]: LookupError: {sys.executable}\n" in said


def test_a_kernel_that_does_not_start_is_told_with_its_log(copied, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(execution.QuietKernelManager.kernel_spec, "argv", [sys.executable, "-m", "no_kernel"])
    said = failure(tmp_path, copied, monkeypatch, capsys).strip().splitlines()[-1]
    log = "experiments_results/smoke/.run/kernel.log"
    assert said.startswith("[1/1] greedy_pruning could not be run to its end: Kernel died before replying")
    assert said.endswith(f"(the kernel's log is {log})")
    assert "No module named no_kernel" in (tmp_path / log).read_text("utf-8")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EMFILE, "Too many open files"),
            "the run ended in OSError .*Too many open files.*: fix that, and",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "x"),
            "the run ended in FileNotFoundError .*'x'.*fix that, and",
        ),
        (
            OSError(errno.ENOSPC, "No space left"),
            "a file in .* could not be read or written .*: make room or grant access",
        ),
    ],
)
def test_errors_of_the_operating_system_are_told_for_what_they_are(error, said, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("experiments.pipeline.runner.run_notebooks", fail)
    with pytest.raises(SystemExit) as stopped:
        in_process(tmp_path, monkeypatch, "--profile", "smoke", "--only", "greedy_pruning")
    assert stopped.value.code == 1
    assert re.search(f"^run_all.py: {said}", capsys.readouterr().err)


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


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(whole, disk, monkeypatch, capsys):
    folder = disk("size=24k")
    with pytest.raises(SystemExit) as stopped:
        in_process(folder, monkeypatch, *CUT)
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert "No space left on device" in "".join(said.splitlines()[-2:])
    assert "Traceback" not in said
    (journal,) = folder.rglob("greedy_gnorm-*.jsonl")
    kept = journal.read_bytes()
    assert kept.count(b"\n") > 1
    subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
    assert in_process(folder, monkeypatch, *CUT) == 0
    assert journal.read_bytes().startswith(kept)
    assert trajectories(folder) == whole
