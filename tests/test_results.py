"""Tables, curves and intervals, with values worked out by hand; files that were damaged."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from precision import close
from tiny import ragged_batches, tiny_model

import gnorm
from experiments.analysis import tables
from experiments.analysis.tables import summary_row
from experiments.runs import results
from gnorm.storage.files import write
from gnorm.trajectory import Trajectory, area, bootstrap, curve, interval, solution


def trajectory(accuracies, texts=100, pruned=None, trial=0):
    """A single-layer trajectory whose states have these accuracies."""
    pruned = pruned or list(range(len(accuracies)))
    correct = np.stack([np.arange(texts) < round(a * texts) for a in accuracies])
    rows = {"trial": trial, "pruned_heads": pruned, "layer": 0, "head": [max(0, n - 1) for n in pruned]}
    table = pd.DataFrame({**rows, "score": 0.0, "accuracy": accuracies}).astype({"layer": "Int64", "head": "Int64"})
    table.loc[0, ["layer", "head"]] = pd.NA
    return Trajectory(table, correct, torch.ones(1, max(pruned), dtype=torch.bool), {"profile": "smoke"})


def test_area_under_the_curve():
    assert area(curve(trajectory([1.0, 0.5, 0.0]))) == 0.5
    assert area(curve(trajectory([1.0, 1.0, 0.0]))) == 0.75
    assert area(curve(trajectory([1.0, 0.0], pruned=[0, 4]))) == 0.5
    assert area(curve(trajectory([1.0, 0.5, 0.0])), until=0.5) == 0.75
    assert area(curve(trajectory([1.0, 0.0], pruned=[0, 4])), until=0.5) == 0.75  # between states, on the line


def test_the_solution_is_the_last_state_within_the_budget():
    run = trajectory([0.9, 0.89, 0.85, 0.88, 0.5])
    assert solution(run, 0.02) == 3  # a dip in between does not matter
    assert solution(run, 0.0) == 0
    assert solution(run, 1.0) == 4


def test_summary_reads_the_nearest_state():
    row = summary_row(trajectory([1.0, 0.8, 0.6, 0.4, 0.2]))
    assert [row[name] for name in ("0%", "25%", "50%", "75%", "100%")] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert row["area_low"] <= row["area"] <= row["area_high"]


def test_bootstrap_intervals_are_those_of_a_share():
    run = trajectory([0.8, 0.5], texts=400)
    low, high = interval(bootstrap(run, samples=4000))
    for i, share in enumerate((0.8, 0.5)):
        half = 1.96 * math.sqrt(share * (1 - share) / 400)
        assert low[i] == pytest.approx(share - half, abs=0.006)
        assert high[i] == pytest.approx(share + half, abs=0.006)
    assert (bootstrap(run) == bootstrap(run)).all()


def test_the_verdict_names_the_winner_and_whether_it_is_one():
    runs = {
        "clear": {"greedy_gnorm": trajectory([1.0, 1.0, 0.5]), "random": trajectory([1.0, 0.5, 0.5])},
        "close": {"greedy_gnorm": trajectory([1.0, 0.70, 0.5]), "random": trajectory([1.0, 0.72, 0.5])},
    }
    winners = tables.winners(runs).set_index("model")
    assert winners.loc["clear", "largest area"] == "greedy_gnorm"
    close(winners.loc["clear", "difference"], 0.25, torch.float64)  # half of the curve's width, 0.5 lower at its end
    assert winners.loc["clear", "low"] > 0
    assert winners.loc["close", "largest area"] == "random"
    assert winners.loc["close", "runner-up"] == "greedy_gnorm"
    assert winners.loc["close", "low"] < winners.loc["close", "difference"] < winners.loc["close", "high"]


def test_a_model_pruned_by_one_method_has_no_winner():
    assert tables.winners({"bert": {"random": trajectory([1.0, 0.5])}}).empty


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    run = gnorm.prune(tiny_model("bert"), ragged_batches(), method="random", trials=2, progress=False)
    return run, results.save_trajectory(run, "smoke", "bert", "random")


def test_a_saved_trajectory_reads_back_the_same(saved):
    run, path = saved
    back = results.load_trajectory("smoke", "bert", "random")
    pd.testing.assert_frame_equal(back.table, run.table)
    assert (back.correct == run.correct).all()
    assert torch.equal(back.start, run.start)
    assert back.order(1) == run.order(1)
    assert back.info["method"] == "random"
    assert sorted(file.name for file in path.parent.iterdir()) == ["random.csv", "random.json", "random.npz"]


@pytest.mark.parametrize("suffix", ["csv", "json", "npz"])
@pytest.mark.parametrize("damage", ["cut", "emptied"])
def test_damaged_results_are_recognised(saved, suffix, damage):
    _, path = saved
    file = path.with_suffix(f".{suffix}")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage == "cut" else b"")
    with pytest.raises(ValueError, match="delete them and run again"):
        results.load_trajectory("smoke", "bert", "random")


def test_missing_results_name_the_command(saved):
    with pytest.raises(FileNotFoundError, match="run `python run_all.py --profile smoke --models bert` first"):
        results.load_trajectory("smoke", "bert", "greedy_gnorm")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write(tmp_path / "table.csv", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_tables_are_written_three_ways_small_numbers_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    results.save_table(pd.DataFrame({"a_b": ["50%"], "x": [2.5e-8], "n": [102269955]}), "smoke", "t")
    folder = tmp_path / "experiments_results" / "smoke" / "tables"
    assert (folder / "t.csv").read_text() == "a_b,x,n\n50%,2.5e-08,102269955\n"
    assert (folder / "t.md").read_text().splitlines()[2].split() == ["|", "50%", "|", "2.5e-08", "|", "102269955", "|"]
    latex = (folder / "t.tex").read_text()
    assert r"\begin{tabular}{lrr}" in latex
    assert r"a\_b & x & n \\" in latex
    assert r"50\% & 2.5e-08 & 102269955 \\" in latex
    assert "experiments_results/smoke/tables/t.csv" in capsys.readouterr().out
