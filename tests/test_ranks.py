"""One run over several processes gives what one process gives: see two_ranks.py for the runs."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import two_ranks
from precision import close_tables

import gnorm
from gnorm.engine.texts import streams
from gnorm.engine.texts.ranks import Division


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two gloo ranks found, and what one process finds meanwhile."""
    folder = tmp_path_factory.mktemp("ranks")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*start, two_ranks.__file__, str(folder)]
    root = str(Path(gnorm.__file__).parents[1])
    found = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    options = {"cwd": root, "env": os.environ | {"PYTHONPATH": found}, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as torchrun:
        with mock.patch.dict(gnorm.MORE_METHODS), mock.patch.object(streams, "WINDOW_TEXTS"):  # put back afterwards
            alone = two_ranks.runs(folder)
        _, errors = torchrun.communicate(timeout=900)
    assert torchrun.returncode == 0, errors[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)], alone


def same(found, expected, name):
    """Orders and what was measured of each text are equal, scores and metrics to the precision."""
    (table, predictions), (of_one, its_predictions) = found, expected
    close_tables(table, of_one, logs="gnorm" in name)
    assert predictions.dtype == its_predictions.dtype
    assert np.array_equal(predictions, its_predictions), name


def test_every_run_is_equal_to_that_of_one_process(ranks):
    """Of every method, on four families."""
    both, alone = ranks
    assert len(alone) == 25
    for name, expected in alone.items():
        for of_rank in both:
            same(of_rank[name], expected, name)


def test_whole_batches_are_divided(ranks):
    (first, count), (second, _) = (of_rank["micro-batches"] for of_rank in ranks[0])
    assert sorted(first + second) == list(range(count))
    assert min(len(first), len(second)) > 1
    assert not set(ranks[0][0]["batches"]) & set(ranks[0][1]["batches"])


def test_an_error_of_one_rank_is_raised_on_all(ranks):
    for of_rank in ranks[0]:
        assert of_rank["fault"] == ("KeyError", "'a fault of this rank'")
        assert of_rank["unknown method on one"][0] == "ValueError"
        assert "rondom" in of_rank["unknown method on one"][1]


def test_ranks_that_were_given_different_runs_are_refused(ranks):
    for of_rank in ranks[0]:
        assert of_rank["other seeds"] == (
            "ValueError",
            "the ranks were given different runs (seed differ): give all the same.",
        )
        assert "(scoring differ)" in of_rank["other texts"][1]


def test_the_first_rank_writes_the_journal_and_all_go_on_from_it(ranks):
    both, alone = ranks
    assert (
        both[0]["lines of the journal"] == 4
    )  # the header, the intact model and two steps; the fault was in the third
    for of_rank in both:
        same(of_rank["after the fault"], alone["bert greedy_gnorm"], "gnorm")


def test_without_torchrun_process_group_says_what_to_do():
    with pytest.raises(ValueError, match="start the script by torchrun"):
        two_ranks.pruned(process_group=True)


def test_micro_batches_of_a_batch_stay_together(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_rank", lambda group: group)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 2)
    micro_batches = [(5, True), (4, False), (4, True), (1, True), (2, True), (1, True)]  # tokens, whether a batch ends
    taken = []
    for rank in (0, 1):
        division = Division(rank)
        taken.append([division.takes(*each) for each in micro_batches])
    assert taken[0] == [True, False, False, True, True, True]
    assert taken[1] == [not each for each in taken[0]]
