"""Runs that are killed or run out of room at random moments, taken up again: nothing lost, nothing mixed."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipeline import call
from precision import close_files
from test_cut_off import launch, trajectories

TWO_NOTEBOOKS = ("--profile", "smoke", "--models", "bert", "--only", "greedy_pruning,random_pruning")
COUNT = 50  # runs that are killed, and as many that run out of room

pytestmark = pytest.mark.soak  # tests/test_cut_off.py has one of each kind for every run


def test_runs_that_were_killed_or_ran_out_of_room_end_in_the_same_tables(tmp_path):
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("survivor.py")), str(tmp_path), str(COUNT), "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    whole = {report["method"]: report["steps"] for report in reports if report["how"] == "whole"}
    killed = [report for report in reports if report["how"] == "killed"]
    full = [report for report in reports if report["how"] == "full"]
    assert len(killed) == len(full) == COUNT
    for report in killed + full:
        assert report["left"], report  # no result, or the right one
        assert report["steps"] <= whole[report["method"]]
        assert report["again"] == 0, report
        assert report["same"], report
    assert {report["code"] for report in killed} == {-9}
    assert {report["code"] for report in full} == {1}
    for report in full:
        assert report["error"].startswith("OSError: [Errno 27] File too large"), report
        assert "experiments_results/smoke/" in report["error"]
    for reports in (killed, full):  # the moments are spread over the run
        assert len({report["steps"] for report in reports}) >= 4
        assert any(0 < report["steps"] < whole[report["method"]] for report in reports)


def test_pipelines_that_were_killed_end_in_the_same_tables(tmp_path):
    clock = time.monotonic()
    assert call(*TWO_NOTEBOOKS, output=tmp_path / "whole").returncode == 0
    seconds, generator = time.monotonic() - clock, random.Random(0)
    whole = trajectories(tmp_path / "whole")
    for number in range(10):
        output = tmp_path / str(number)
        for _ in range(2):  # killed, taken up, killed again
            process = launch(output, TWO_NOTEBOOKS)
            time.sleep(generator.uniform(0, seconds))
            process.kill()
            process.communicate()
        again = call(*TWO_NOTEBOOKS, output=output)
        assert again.returncode == 0, again.stderr
        close_files(trajectories(output), whole)
        assert not list(output.rglob("*.unfinished*"))
        shutil.rmtree(output)
