"""The numerical tests as on other processors: without instructions that those lack, with one thread and with two."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import ROOT

PROCESSORS = {  # what PyTorch and oneDNN use of the instructions that are there; what PyTorch calls it
    "SSE4": ({"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}, "DEFAULT"),
    "AVX2": ({"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "AVX2"),
    "this one": ({}, None),
}
COMPARES = re.compile(r"^from precision import (close(,|$)|.*close_logs)", re.MULTILINE)
NUMERICAL = [path.name for path in sorted(Path(__file__).parent.glob("test_*.py")) if COMPARES.search(path.read_text())]


def run_as(processor, threads, *command):
    """Python on ``processor``, with nothing of the process that runs this test."""
    asked = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}  # other tests may have the other core
    environment = os.environ | PROCESSORS[processor][0] | asked
    environment.pop("PYTEST_XDIST_WORKER", None)
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_scores_of_streams_are_those_of_lists_on_an_older_processor():
    """Windows add what whole lists add, in another order."""
    done = run_as(
        "AVX2", 1, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_streams.py", "-k", "lists or its_batches"
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("processor", PROCESSORS)
def test_instructions_are_those_that_were_asked_for(processor):
    done = run_as(processor, 2, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())")
    assert PROCESSORS[processor][1] in (None, done.stdout.strip())


@pytest.mark.soak
@pytest.mark.parametrize(
    ("processor", "threads"), [("SSE4", 1), ("SSE4", 2), ("AVX2", 1), ("AVX2", 2), ("this one", 2)]
)
@pytest.mark.parametrize("name", NUMERICAL)
def test_numbers_are_right_on_every_processor(name, processor, threads):
    done = run_as(processor, threads, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{name}")
    assert done.returncode == 0, done.stdout + done.stderr
