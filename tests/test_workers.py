"""Jobs side by side: by several workers, after one of them was killed, and beside another run."""

import ast
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import papermill
import psutil
import pytest
from distributed import Client, LocalCluster
from filelock import Timeout
from pipeline import ROOT, in_process
from precision import close_files

import experiments
import run_all
from experiments import runs
from experiments.data import tasks
from experiments.data.profiles import as_trained
from experiments.files import locks, paths
from experiments.files.errors import NotebookError, RunError, UsageError
from experiments.files.locks import is_held, locked
from experiments.pipeline import execution, jobs, runner, workers
from experiments.pipeline.jobs import Job
from gnorm.methods import names_of
from gnorm.storage import files

METHODS = ("greedy_gnorm", "random", "matched_random")
WANTED = [Job(model, method) for model in ("bert", "albert/seed1") for method in METHODS]


def saved(output):
    """Every table and array of trajectories, by path; the JSON beside them says how long they took."""
    folder = output / "experiments_results" / "smoke"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in (".csv", ".npz")
    }


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """What the jobs leave that one process makes, one after the other."""
    output = tmp_path_factory.mktemp("one by one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNORM_OUTPUT", str(output))
        for job in WANTED:
            runs.run(tasks.load("smoke", job.model), job.method, progress=False)
    return saved(output)


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    return tmp_path


@pytest.fixture
def threads(monkeypatch):
    """Workers that are threads of this process: no imports to wait for."""

    @contextmanager
    def client(*_):
        with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
            yield client

    monkeypatch.setattr(workers, "_client", client)
    monkeypatch.setattr(jobs.torch, "set_num_threads", lambda _: None)


def context(run="run", **changed):
    about = {"device": "cpu", "environment": {}, "versions": jobs.versions(), **changed}
    return jobs.WorkerContext(run, "smoke", **about)


# ---------------------------------------------------------------- the same results


def test_workers_leave_what_one_process_leaves(one_by_one, output, threads, capsys):
    workers.make_jobs(WANTED, "smoke", "cpu", {}, at_once=2)
    close_files(saved(output), one_by_one)
    said = capsys.readouterr().err
    assert "jobs 100%" in said
    assert "running=0" in said
    assert "left=0" in said
    assert not list((output / "experiments_results" / "smoke" / ".run" / "locks" / "runs").iterdir())


@pytest.mark.soak
def test_a_cluster_of_which_a_worker_is_killed_leaves_what_one_process_leaves(one_by_one, output):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        Client(cluster) as client,
        ThreadPoolExecutor(1) as beside,
    ):
        at_first = client.run(os.getpid)
        work = beside.submit(
            workers.make_jobs, WANTED, "smoke", "cpu", dict(os.environ), address=cluster.scheduler_address
        )
        while not list(output.rglob("*.jsonl")):
            assert not work.done(), work.result()
            time.sleep(0.002)
        psutil.Process(next(iter(at_first.values()))).kill()
        work.result(200)
        assert not work.exception()
        assert len(set(client.run(os.getpid).values()) - set(at_first.values())) == 1  # Dask put another in its place
    close_files(saved(output), one_by_one)


def test_gpus_are_dealt_out_and_threads_divided(output, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-7")
    assert workers._gpus() == ("3", "5", "GPU-7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert workers._gpus() == ()
    seen = {}
    monkeypatch.setattr(jobs, "_task", lambda *_: None)
    monkeypatch.setattr(jobs.torch, "set_num_threads", lambda n: seen.update(threads=n))
    with (
        locked("smoke", "runs", "dealt"),
        LocalCluster(n_workers=3, processes=False, dashboard_address=None) as cluster,
    ):
        around = context("dealt", gpus=("3", "5"), threads=4)
        for worker in cluster.workers.values():
            monkeypatch.setattr("distributed.get_worker", lambda worker=worker: worker)
            jobs.load(around, "bert")
            seen[worker.name] = os.environ["CUDA_VISIBLE_DEVICES"]
    assert seen == {0: "3", 1: "5", 2: "3", "threads": 4}


@pytest.mark.parametrize(
    ("device", "cores", "memory", "free", "wanted", "fit"),
    [
        ("cpu", 8, 64e9, 64e9, 20, 8),
        ("cpu", 8, 64e9, 64e9, 3, 3),  # no more than there is to do
        ("cpu", 8, 64e9, 7e9, 20, 2),  # others take the rest
        ("cpu", 8, 10e9, 64e9, 20, 3),  # a control group
        ("cpu", 8, 64e9, 1e9, 20, 1),
        ("cpu", 8, 64e9, 64e9, 0, 1),
        ("cuda", 8, 64e9, 64e9, 20, 3),
        ("mps", 8, 64e9, 64e9, 20, 1),
    ],
)
def test_by_default_as_many_workers_as_the_machine_has_room_for(device, cores, memory, free, wanted, fit, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,GPU-7")
    monkeypatch.setattr("dask.system.CPU_COUNT", cores)
    monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert workers.that_fit(wanted, device) == fit


def test_without_dask_there_is_one_worker(monkeypatch):
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None)
    assert workers.that_fit(20, "cpu") == 1


def test_notebooks_run_side_by_side_once_their_trajectories_are_made(output, monkeypatch):
    both, began = threading.Barrier(2, timeout=60), []

    def execute(notebook, parameters, label, fingerprint, stamped):
        began.append((notebook, label))
        if notebook == "ae_pruning":
            both.wait()
            raise NotebookError("ae_pruning failed")
        if len(began) <= 2:
            both.wait()
        time.sleep(0.2)
        return {"seconds": 1.0}

    monkeypatch.setattr(execution, "execute", execute)
    names = ["greedy_pruning", "ae_pruning", "random_pruning", "gradient_test", "four_models", "solve_underflow"]
    asked = plan(names, ["bert"])
    ran = runner._side_by_side(asked, dict.fromkeys(asked.notebooks, ""), ["greedy_pruning", "random_pruning"], 2)
    assert ran == {"greedy_pruning", "random_pruning"}
    assert sorted(began) == [
        ("greedy_pruning", "[1/6] greedy_pruning"),
        ("random_pruning", "[3/6] random_pruning"),
    ]
    began.clear()
    with pytest.raises(NotebookError, match="ae_pruning failed"):
        runner._side_by_side(asked, dict.fromkeys(asked.notebooks, ""), asked.notebooks, 2)
    assert len(began) < len(names)


def test_what_follows_another_method_comes_last_and_repetitions_share_a_model():
    asked = [Job("bert", method) for method in ("matched_random", "greedy_gnorm", "random")]
    submitted = []
    client = SimpleNamespace(submit=lambda *given, **named: submitted.append((given, named)) or object())
    workers._submit(client, context(), [*asked, Job("albert", "random")], "bert")
    first = sorted(submitted, key=lambda each: -each[1]["priority"])  # as Dask takes them
    assert [job.method for (_, _, job), _ in first] == ["greedy_gnorm", "random", "matched_random"]
    assert len({named["key"][0] for _, named in submitted}) == 1  # of one group, which Dask hands out one by one
    assert as_trained("roberta/seed2/batch8") == "roberta/seed2"
    assert as_trained("roberta/texts8/draw1") == "roberta"


def test_a_job_that_takes_long_holds_no_other_up(output, threads, monkeypatch):
    asked = [Job(f"albert/seed{seed}/batch{number}", "random") for seed in range(2) for number in range(1, 9)]
    made, rest = [], threading.Event()

    def run(model, method, **_):
        if (job := Job(model, method)) == asked[0]:
            assert rest.wait(60)
        made.append(job)
        if len(made) == len(asked) - 1:
            rest.set()

    monkeypatch.setattr(jobs, "ALONE", nullcontext())  # workers are of one process here
    monkeypatch.setattr(jobs, "_task", lambda _run, _profile, model, _device: model)
    monkeypatch.setattr(jobs.runs, "run", run)
    workers.make_jobs(asked, "smoke", "cpu", {}, at_once=2)
    assert {*made} == {*asked}
    assert made[-1] == asked[0]


@pytest.mark.parametrize(("name", "models"), [("criteria_comparison", ["bert"]), ("decoder_pruning", ["gpt2"])])
def test_what_a_notebook_asks_for_is_what_its_parameters_name(name, models):
    parameters = papermill.inspect_notebook(str(paths.notebook_file(name)))
    methods = ast.literal_eval(parameters["methods"]["default"])
    if name == "criteria_comparison":  # which takes every row of that kind beside them
        methods += names_of("criterion")
    for asked in (models, ["roberta", *models]):
        found = jobs.asked_for("smoke", asked, [name])
        own = asked if name == "criteria_comparison" else models
        assert set(found) == {Job(model, method, True) for model in own for method in methods}
    assert jobs.asked_for("paper", ["bert"], ["decoder_pruning"]) == []  # it has no decoder


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "0"], "--jobs 0 is out of range: name 1 worker or more."),
        (
            ["--jobs", "2"],
            "--jobs needs Dask: run `pip install 'dask[distributed]'`, the extra `dask` of this package.",
        ),
        (["--dask", "tcp://a:1"], "--dask needs Dask: run `pip install 'dask[distributed]'`, the extra"),
    ],
)
def test_workers_that_cannot_be_are_refused_before_anything_runs(arguments, said, output, monkeypatch, capsys):
    find = workers.importlib.util.find_spec
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None if name == "distributed" else find(name))
    with pytest.raises(SystemExit) as stopped:
        in_process(output, monkeypatch, "--profile", "smoke", *arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not list(output.iterdir())


def test_no_import_loads_dask():
    """So everything but the two flags works without it; see also the test above."""
    for path in [ROOT / "run_all.py", *(ROOT / "gnorm").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"dask", "distributed", "bokeh"}, path


def test_a_scheduler_that_is_not_there_is_named(output, monkeypatch, capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    with pytest.raises(UsageError, match=f"no Dask scheduler answers at {address} .*: start one with `dask scheduler`"):
        workers.make_jobs(WANTED, "smoke", "cpu", {}, address=address)


def test_a_piece_that_fails_is_named_and_the_rest_called_off(output, threads, monkeypatch):
    def fail(task, method, progress):
        raise LookupError("no such head.")

    monkeypatch.setattr(runs, "run", fail)
    says = "^(bert|albert/seed1)/.*random|greedy_gnorm failed: LookupError: no such head; finished steps are kept, and"
    with pytest.raises(RunError, match=says):
        workers.make_jobs(WANTED, "smoke", "cpu", {}, at_once=2)


def test_a_worker_that_would_give_other_results_is_refused(output):
    with locked("smoke", "runs", "ours"):
        jobs._refuse_outsiders("ours", "smoke", "cpu", tuple(jobs.versions().items()))
        others = jobs.versions() | {"torch": "1.0"}
        with pytest.raises(UsageError, match=r"a worker on .* has another torch \(.*\) than the run \(1.0\): install"):
            jobs.load(context("ours", versions=others), "bert")
        with pytest.raises(UsageError, match="device mps is not there"):
            jobs.load(context("ours", device="mps"), "bert")
    with pytest.raises(UsageError, match=r"does not see the run's lock in .*: it needs the same folder under the same"):
        jobs.load(context("nobody's"), "bert")


# ---------------------------------------------------------------- beside another run


def test_a_job_that_another_has_is_waited_for_and_made_once(output, capfd, monkeypatch):
    task, began = tasks.load("smoke", "bert"), []
    prune = runs.prune
    monkeypatch.setattr(runs, "prune", lambda *given, **named: began.append(1) or prune(*given, **named))
    capfd.readouterr()  # of training
    said, expected = "", "waiting for another run, which is at work on bert/weight_magnitude\n"
    with locked("smoke", "jobs", "bert/weight_magnitude"):
        other = threading.Thread(target=runs.run, args=(task, "weight_magnitude", False))
        other.start()
        while len(said) < len(expected):  # it comes in parts
            said += capfd.readouterr().err
            time.sleep(0.01)
        assert not began
    other.join(60)
    assert said == expected
    assert began == [1]


def plan(notebooks, models, **options):
    return runner.make_plan(run_all.NOTEBOOKS, notebooks, "smoke", models, "cpu", **options)


def test_runs_of_other_models_or_notebooks_go_side_by_side_and_the_same_is_refused(output):
    with runner._held_alone(plan(["greedy_pruning", "ae_pruning"], ["bert", "albert"])):
        for notebooks, models in ((["greedy_pruning"], ["roberta"]), (["random_pruning"], ["bert", "albert"])):
            with runner._held_alone(plan(notebooks, models)):
                assert is_held("smoke", "runs", f"{models[0]}/{notebooks[0]}")
        with pytest.raises(UsageError, match="another run is at work in .*smoke on ae_pruning with albert; wait"):
            with runner._held_alone(plan(["random_pruning", "ae_pruning"], ["albert", "roberta"])):
                pass
        assert not is_held("smoke", "runs", "albert/random_pruning")  # which the refused run had taken


def test_the_lock_of_a_killed_process_blocks_nobody(output):
    code = "import time; from experiments.files.locks import locked\n"
    code += "with locked('smoke', 'jobs', 'a/b'): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert is_held("smoke", "jobs", "a/b")
    with pytest.raises(Timeout), locked("smoke", "jobs", "a/b", wait=False):
        pass
    holder.kill()
    holder.communicate()
    with locked("smoke", "jobs", "a/b", wait=False):
        assert is_held("smoke", "jobs", "a/b")
    assert not is_held("smoke", "jobs", "a/b")


def test_a_fresh_run_takes_no_journal_from_a_run_that_is_at_work(output, monkeypatch):
    journal = files.write(paths.journals_folder("smoke", "bert/seed0") / "greedy_gnorm-abc.jsonl", "")
    table = files.write(paths.results_folder("smoke") / "bert" / "seed0" / "random.csv", "")
    seen = []
    monkeypatch.setattr(locks, "lock_file", lambda *which: seen.append(which) or paths.lock_file(*which))
    runner._clear(plan(["greedy_pruning"], ["bert"], fresh=True))
    assert seen == [("smoke", "jobs", f"bert/seed0/{method}") for method in ("greedy_gnorm", "random")]
    assert not journal.exists()
    assert not table.exists()


def test_only_what_a_dead_writer_left_is_deleted(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname().partition(".")[0]
    names = {
        f".a.csv.{host}.{dead.pid}.x1.unfinished": False,
        f".a.csv.{host}.{os.getpid()}.x2.unfinished": True,
        f".a.csv.{host}.1.x3.unfinished": True,  # of somebody else, perhaps
        ".a.csv.elsewhere.1.x4.unfinished": True,
        ".old.csv.elsewhere.1.x5.unfinished": False,
        ".old.x6.unfinished": False,
        "greedy_pruning.unfinished.ipynb": True,
        "a.csv": True,
    }
    for name in names:
        (tmp_path / name).touch()
        if name.startswith(".old"):
            os.utime(tmp_path / name, (0, 0))
    files.delete_unfinished(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_file_in_the_making_names_its_writer(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda _: seen.extend(path.name for path in tmp_path.iterdir()))
    files.write(tmp_path / "a.csv", "1")
    host = socket.gethostname().partition(".")[0]
    assert seen[0].startswith(f".a.csv.{host}.{os.getpid()}.")
    assert seen[0].endswith(files.UNFINISHED)


# ---------------------------------------------------------------- which files a notebook used


def test_files_are_credited_to_the_process_that_used_them(tmp_path, monkeypatch):
    record = tmp_path / "record"
    files.write(tmp_path / "before.csv", "")
    monkeypatch.setenv(files.RECORD, str(record))
    files.write_together({tmp_path / "b.csv": "", tmp_path / "a.csv": ""})
    files.write(tmp_path / "a.csv", "")
    files.record("read", [tmp_path / "c.csv"])
    if not (child := os.fork()):  # another process, which is not told of the record
        del os.environ[files.RECORD]
        files.write(tmp_path / "other.csv", "")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "other.csv").exists()
    assert files.recorded("written", record) == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert files.recorded("read", record) == [tmp_path / "c.csv"]
    assert files.recorded("read", tmp_path / "none") == []


def test_workers_import_from_this_checkout_and_leave_the_environment_to_kernels(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()  # that of another checkout, in the working directory
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    with workers._client(1, None) as client:
        assert dict(os.environ) == before
        assert set(client.run(lambda: __import__("experiments").__file__).values()) == {experiments.__file__}
