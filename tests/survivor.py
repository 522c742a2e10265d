"""Runs that are killed, or whose disk fills up, at random moments, and taken up again until they end.

python tests/survivor.py FOLDER COUNT SEED prints a line of JSON for the run that nobody disturbed and one for each of
COUNT runs that were killed and COUNT whose files could not grow. A run is what a notebook does: a method on the smoke
profile's bert, journal and results in a folder of its own. Each is forked from this process, which has everything
imported and computes nothing itself, so a run takes the fraction of a second that its work takes.
"""

import hashlib
import itertools
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

from experiments.data import tasks
from experiments.files.paths import results_folder
from experiments.runs import results, run

METHODS = ("greedy_gnorm", "random")

# tqdm's own lock is shared with forked processes: one that is killed while it holds it would stop all the others.
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())


def start(task, method, folder, most_bytes=None):
    """A forked process that does the run in ``folder`` and may make no file larger than ``most_bytes``; its id."""
    if child := os.fork():
        return child
    try:
        os.environ["GNORM_OUTPUT"] = str(folder)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
        run(task, method, progress=False)
    except OSError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(f"{folder}.error").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)


def end(child):
    """The end of the process: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def saved(folder, method):
    """The files that the run left, without how long it took: a hash of each result, and whether they can be read."""
    os.environ["GNORM_OUTPUT"] = str(folder)
    path = results_folder("smoke") / "bert" / f"{method}.csv"
    if not path.exists():
        return None
    about = results.load_trajectory("smoke", "bert", method).info
    content = path.read_bytes() + path.with_suffix(".npz").read_bytes()
    return hashlib.sha256(content + json.dumps({**about, "seconds": 0, "scoring_seconds": 0}).encode()).hexdigest()


def steps_kept(folder):
    """Finished lines of the run's journal, the header not counted."""
    journals = list(Path(folder).rglob("*.jsonl"))
    assert len(journals) <= 1, journals
    return max(0, sum(path.read_bytes().count(b"\n") for path in journals) - 1)


def main(folder, count, seed):
    folder, generator = Path(folder), random.Random(seed)
    task = tasks.load("smoke", "bert", "cpu", progress=False)
    task.batches("scoring")
    whole, seconds, largest = {}, {}, {}
    for method in METHODS:
        clock = time.perf_counter()
        assert end(start(task, method, folder / method)) == 0
        seconds[method] = time.perf_counter() - clock
        whole[method] = saved(folder / method, method)
        files = [path.stat().st_size for path in (folder / method).rglob("*") if path.is_file()]
        largest[method] = max(files)
        print(json.dumps({"how": "whole", "method": method, "steps": steps_kept(folder / method)}), flush=True)
    for how, number in itertools.product(("killed", "full"), range(count)):
        method, place, code, tries = METHODS[number % 2], folder / f"{how}-{number}", 0, 0
        while code == 0:  # a run that ended before its moment came does not count
            tries += 1
            place = folder / f"{how}-{number}-{tries}"
            if how == "killed":
                child = start(task, method, place)
                time.sleep(generator.uniform(0, seconds[method]))
                os.kill(child, signal.SIGKILL)
            else:
                child = start(task, method, place, most_bytes=generator.randrange(largest[method]))
            code = end(child)
        left, kept = saved(place, method), steps_kept(place)
        again = end(start(task, method, place))
        report = {
            "how": how,
            "method": method,
            "code": code,
            "error": error.read_text() if (error := Path(f"{place}.error")).exists() else "",
            "steps": kept,
            "left": left in (None, whole[method]),
            "again": again,
            "same": saved(place, method) == whole[method],
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
