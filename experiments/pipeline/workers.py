"""Jobs side by side, on this machine or on a cluster, by dask.distributed.

Dask starts the workers, gives them jobs, and gives the jobs of a worker that died to another one. There is no
scheduler here and nothing is tried again.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from gnorm.methods import find_method

from ..data.profiles import as_trained
from ..files import paths
from ..files.errors import RunError, UsageError
from ..files.locks import locked
from ..files.paths import lock_file
from . import jobs
from .execution import THREADS, Terminal
from .jobs import Job, WorkerContext

if TYPE_CHECKING:
    from distributed import Client, Future

PATIENCE = 10.0  # seconds to wait for an answer of a scheduler
RARELY = 15.0  # seconds between the lines of a log
# A worker is given one job at a time, and the rest waits for whoever is free: Dask does not know how long jobs take.
# Dask has its workers give freed memory back to the system at once: then every tensor is new pages, and passes on a CPU
# take longer (findings/dask_trims_memory.sh). And it has a thread of each watch the others, which wait for it.
OPTIONS = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.multiprocessing-method": "forkserver",
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
}
ROOM = 3e9  # bytes of memory for a worker: Python and its packages, a model with its gradients, and its texts


def check(at_once: int | None, address: str | None) -> None:
    """Raise ``UsageError`` for a number of workers below 1, and where Dask is asked for and not installed."""
    if at_once is not None and at_once < 1:
        raise UsageError(f"--jobs {at_once} is out of range: name 1 worker or more.")
    if (at_once or address) and importlib.util.find_spec("distributed") is None:
        flag = "--jobs" if at_once else "--dask"
        raise UsageError(f"{flag} needs Dask: run `pip install 'dask[distributed]'`, the extra `dask` of this package.")


def that_fit(wanted: int, device: str) -> int:
    """The number of workers that this machine has room for, at least 1 and at most ``wanted``.

    One a core that this process may use, or one a GPU, with ``ROOM`` for each in the memory that is free. 1 where Dask
    is not installed.
    """
    if device != "cpu" or importlib.util.find_spec("distributed") is None:
        fit = len(_gpus()) if device == "cuda" else 1
    else:
        import psutil
        from dask.system import CPU_COUNT  # by affinity and control group
        from distributed.system import MEMORY_LIMIT  # by control group and resource limit

        fit = min(CPU_COUNT, int(min(MEMORY_LIMIT, psutil.virtual_memory().available) / ROOM))
    return max(1, min(fit, wanted))


def make_jobs(
    wanted: Sequence[Job],
    profile: str,
    device: str,
    environment: Mapping[str, str],
    at_once: int | None = None,
    address: str | None = None,
) -> None:
    """Make these jobs, on ``at_once`` workers of this machine or on those of the Dask scheduler at ``address``.

    environment: variables that every worker needs. A model is loaded, and trained where it never was, before its jobs
    begin. Progress goes to standard error.

    Raises ``UsageError`` where no scheduler answers or a worker cannot take part, ``RunError`` where a job fails or
    the scheduler is lost; what is finished is kept.
    """
    name = uuid.uuid4().hex[:12]
    with locked(profile, "runs", name):
        try:
            with _client(at_once, address) as client:
                threads = THREADS if at_once else None
                gpus = _gpus() if at_once and device == "cuda" else ()
                around = WorkerContext(name, profile, device, environment, jobs.versions(), threads, gpus)
                if importlib.util.find_spec("bokeh"):  # what Dask draws its dashboard with
                    print(f"Dask's dashboard: {client.dashboard_link}", flush=True)
                if not client.nthreads():
                    print("no worker is there yet: jobs wait for the first one", flush=True)
                _follow(client, around, wanted)
        except OSError as error:
            raise RunError(f"run_all.py: the connection to Dask broke ({error}); finished steps are kept.") from error
        finally:
            lock_file(profile, "runs", name).unlink()  # of this run alone: nobody waits for it


@contextmanager
def _client(at_once: int | None, address: str | None) -> Iterator[Client]:
    """A client of the scheduler at ``address``, or of one started here with ``at_once`` workers, which ends here."""
    import dask
    from distributed import Client, LocalCluster, utils

    if address:
        try:
            client = Client(address, timeout=PATIENCE, name="gnorm")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {address} ({error}): start one with `dask scheduler`, and name the "
                "address that it prints."
            ) from None
        with client:
            yield client
    else:
        # Workers are forked from a process that has imported everything and computed nothing: imports take longest.
        # It imports from this checkout, not from the working directory nor from where the package was installed.
        # Kernels do not get these variables: ipykernel takes the working directory out of a path that begins with it.
        sources = [str(paths.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        before = dict(os.environ)
        os.environ |= {"PYTHONPATH": os.pathsep.join(sources), "PYTHONSAFEPATH": "1"}
        with dask.config.set(OPTIONS):
            utils.get_mp_context().set_forkserver_preload(["experiments.pipeline.jobs"])
            try:
                cluster = LocalCluster(
                    n_workers=at_once,
                    threads_per_worker=1,
                    memory_limit=None,  # Dask would halt workers, and cannot put their models aside
                    dashboard_address="127.0.0.1:0",
                    silence_logs=logging.CRITICAL,
                )
            finally:
                os.environ.clear()
                os.environ.update(before)
            with cluster, Client(cluster) as client:
                yield client


def _gpus() -> tuple[str, ...]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them, where there are several."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
    return tuple(gpus) if len(gpus) > 1 else ()


def _load(client: Client, around: WorkerContext, wanted: Sequence[Job]) -> dict[Future, str]:
    """A future for every model that the jobs need, with its name."""
    models = dict.fromkeys(as_trained(job.model) for job in wanted)
    return {
        client.submit(jobs.load, around, model, key=f"load-{model}-{around.run}", pure=False): model for model in models
    }


def _submit(client: Client, around: WorkerContext, wanted: Sequence[Job], model: str) -> dict[Future, str]:
    """A future for every job of a model that is loaded, with what it makes.

    Jobs depend on no future, and their keys are of one group: so the scheduler keeps them, and hands one to each worker
    that is free. Last go those that follow another method, whose trajectory they read or else wait for.
    """
    return {
        client.submit(
            jobs.make,
            around,
            job,
            key=(f"make-{around.run}", str(job)),
            priority=-bool(find_method(job.method).follows),
            pure=False,
        ): str(job)
        for job in wanted
        if as_trained(job.model) == model
    }


def _follow(client: Client, around: WorkerContext, wanted: Sequence[Job]) -> None:
    """Load every model, and make its jobs once it is there. Show the progress of all: one line that is redrawn, or in a
    log a line now and then.

    Raises as ``make_jobs`` does, at the first job that fails; the rest is called off.
    """
    from distributed import as_completed

    futures = models = _load(client, around, wanted)
    terminal = Terminal("jobs")
    every = 0.5 if terminal.live else RARELY
    try:
        with (
            closing(terminal),
            tqdm(total=len(models) + len(wanted), unit="job", file=terminal, mininterval=every) as bar,
        ):
            done = as_completed(list(models))
            for future in done:
                _raise_failure(future, futures[future])
                if future in models:
                    made = _submit(client, around, wanted, models[future])
                    done.update(made)
                    futures = futures | made
                running = sum(map(bool, client.processing().values()))
                left = len(models) + len(wanted) - bar.n - 1
                bar.set_postfix(running=min(running, left), left=left, refresh=False)
                bar.update()
    except BaseException:
        with suppress(OSError):
            client.cancel(list(futures))
        raise


def _raise_failure(future: Future, what: str) -> None:
    from distributed import KilledWorker

    error: Any = future.exception() if future.status != "cancelled" else None
    if future.status == "finished":
        return
    if isinstance(error, UsageError):
        raise error
    kept = "finished steps are kept, and once the cause is fixed the same command goes on from them"
    if isinstance(error, KilledWorker):
        says = "its worker was killed again and again, perhaps out of memory"
    else:
        says = f"{type(error).__name__}: {error}" if error else "the scheduler is gone"
    raise RunError(f"{what} failed: {says.rstrip('.')}; {kept}")
