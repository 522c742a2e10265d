"""Paired differences of areas: exact values where there are any, known distributions where there are none."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from precision import close

from experiments.analysis import claims, paired, plots, tables
from gnorm.metrics import METRICS
from gnorm.trajectory import Trajectory, area, area_interval, curve, text_areas


def trajectory(correct, trials=1, **info):
    """A run of one layer: a row a state, a column a text; the trials follow each other."""
    correct = np.asarray(correct, dtype=bool)
    states = len(correct) // trials
    rows = [
        {"trial": trial, "pruned_heads": k, "layer": 0 if k else None, "head": k - 1 if k else None, "score": 0.0}
        for trial in range(trials)
        for k in range(states)
    ]
    table = pd.DataFrame(rows).assign(accuracy=correct.mean(1)).astype({"layer": "Int64", "head": "Int64"})
    start = torch.ones(1, states - 1, dtype=torch.bool)
    return Trajectory(table, correct, start, {"trials": trials, "seconds": 2.0, "scoring_seconds": 1.0, **info})


def random_run(seed, share, states=4, texts=60, trials=1):
    return trajectory(np.random.default_rng(seed).random((states * trials, texts)) < share, trials)


def test_areas_of_texts_are_those_of_their_own_curves():
    run = trajectory([[1, 1, 0], [1, 0, 0], [1, 0, 1]])
    assert text_areas(run).tolist() == [1.0, 0.25, 0.25]


def test_terms_of_texts_are_those_whose_mean_the_metric_is():
    generator, labels = np.random.default_rng(0), np.arange(12.0).reshape(6, 2)
    for metric, kept in ((METRICS["accuracy"], generator.random(6) < 0.5), (METRICS["mse"], generator.random((6, 2)))):
        assert metric.per_text(kept, labels).shape == (6,)
        close(metric.per_text(kept, labels).mean(), metric.value(kept, labels), torch.float64)
    with pytest.raises(ValueError, match="perplexity is not a mean over texts: its row in METRICS has no per_text"):
        text_areas(run_by_perplexity(0, 0.3))


@pytest.mark.parametrize("trials", [1, 3])
def test_their_mean_is_the_area_under_the_curve(trials):
    run = random_run(0, 0.7, trials=trials)
    close(text_areas(run).mean(), area(curve(run)), torch.float64)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.1, 0.2, 0.3, 0.1, 0.2], 2 / 32),
        ([-0.1, -0.2, -0.3], 2 / 8),
        ([0.1, -0.1], 1.0),
        ([0.3, 0.2, -0.1], 4 / 8),  # 0.4 in all; 0.6 and 0.4 are as large, on either side
        ([0.1], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
    ],
)
def test_signs_are_flipped_exactly(differences, p):
    close(paired.sign_flip(np.array(differences)), p, torch.float64)


def test_holm_steps_down():
    close(paired.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], torch.float64)
    assert paired.holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert paired.holm([]).tolist() == []


def test_the_bootstrap_of_one_seed_is_that_of_texts():
    areas = np.random.default_rng(1).random((1, 1, 400))
    means = paired.bootstrap_means(areas, samples=4000)[:, 0]
    assert means.mean() == pytest.approx(areas.mean(), abs=0.002)
    assert means.std() == pytest.approx(areas.std() / math.sqrt(400), rel=0.05)


def test_the_bootstrap_counts_seeds_and_texts():
    """The variance of a mean over s seeds drawn anew is that between seeds, and that of texts within, each over s."""
    generator = np.random.default_rng(2)
    between = np.array([0.2, 0.5, 0.4, 0.9])
    areas = (between[:, None] + 0.1 * generator.standard_normal((4, 300)))[None]
    means = paired.bootstrap_means(areas, samples=20_000)[:, 0]
    expected = (areas[0].mean(1).var() + areas[0].var(1).mean() / 300) / 4
    assert means.var() == pytest.approx(expected, rel=0.05)


def test_methods_meet_the_same_draws():
    areas = np.random.default_rng(3).random((1, 3, 50))
    means = paired.bootstrap_means(np.concatenate([areas, areas + 0.25]), samples=100)
    close((means[:, 1] - means[:, 0]), [0.25] * 100, torch.float64)


def test_the_table_of_differences():
    better = [random_run(seed, 0.9) for seed in range(5)]
    worse = [random_run(10 + seed, 0.5) for seed in range(5)]
    table = paired.differences(
        {"bert": {"greedy_gnorm": better, "random": worse}}, [[("greedy_gnorm", "random"), ("greedy_gnorm", "flap")]]
    )
    assert list(table.columns) == list(paired.COLUMNS)
    (row,) = table.to_dict("records")  # nothing was pruned by flap
    gains = [area(curve(a)) - area(curve(b)) for a, b in zip(better, worse)]
    close(row["difference"], np.mean(gains), torch.float64)
    assert row["low"] < row["difference"] < row["high"]
    assert row["low"] > 0
    assert (row["p"], row["p_holm"]) == (2 / 32, 2 / 32)
    assert (row["seeds"], row["texts"]) == (5, 60)


def test_p_values_are_corrected_within_a_family_of_one_model():
    runs = {name: [random_run(k + 5 * i, 0.9 - 0.2 * i) for k in range(5)] for i, name in enumerate("abc")}
    table = paired.differences({"bert": runs, "albert": runs}, [[("a", "b"), ("a", "c")], [("b", "c")]])
    assert table.p.tolist() == [2 / 32] * 6
    close(table.p_holm, [4 / 32, 4 / 32, 2 / 32] * 2, torch.float64)


def test_methods_measured_on_other_texts_are_refused():
    runs = {"bert": {"a": [random_run(0, 0.5, texts=60)], "b": [random_run(1, 0.5, texts=50)]}}
    with pytest.raises(ValueError, match=r"bert: methods were not measured on the same seeds and texts: .*60.*50"):
        paired.differences(runs, [[("a", "b")]])


def run_by_perplexity(seed, rate, states=4, texts=60):
    """A language model that gets worse from state to state: of each text the sum of its losses, and its tokens."""
    tokens = np.random.default_rng(seed % 100).integers(3, 9, size=texts)  # the same for every method
    means = 1 + rate * np.arange(states)[:, None] * np.random.default_rng(seed).random((states, texts))
    said = np.stack([means * tokens, np.broadcast_to(tokens, means.shape)], 2)
    row = METRICS["perplexity"]
    table = trajectory(np.ones((states, texts))).table.drop(columns="accuracy")
    table = table.assign(perplexity=[row.value(values, tokens) for values in said])
    return Trajectory(table, said, torch.ones(1, states - 1).bool(), {"trials": 1}, row, tokens)


def test_where_lower_is_better_the_smaller_area_is_above_0():
    better, worse = ([run_by_perplexity(seed + 100 * i, 0.2 + 0.3 * i) for seed in range(3)] for i in range(2))
    runs = {"bert": {"greedy_gnorm": worse, "random": better}}
    table = paired.differences(runs, [[("random", "greedy_gnorm"), ("greedy_gnorm", "random")]])
    gains = [area(curve(b)) - area(curve(a)) for a, b in zip(better, worse)]
    close(table.difference, [np.mean(gains), -np.mean(gains)], torch.float64)
    assert (table.low < table.difference).all()
    assert (table.difference < table.high).all()
    assert paired.sides(table).tolist() == ["above 0", "below 0"]
    assert (table.seeds.tolist(), table.texts.tolist()) == ([3, 3], [60, 60])
    (row,) = tables.winners({"bert": {name: of_method[0] for name, of_method in runs["bert"].items()}}).to_dict(
        "records"
    )
    assert (row["smallest area"], row["runner-up"]) == ("random", "greedy_gnorm")
    close(row["difference"], gains[0], torch.float64)
    assert tables.method_table(runs).method.tolist() == ["random", "greedy_gnorm"]
    methods = tables.method_table(runs)
    assert list(claims.mean_areas(methods, "perplexity").index) == ["random", "greedy_gnorm"]
    assert claims.recommended(methods, "perplexity") == "greedy_gnorm"  # random is a control
    (axis,) = plots.differences(table, {"": [("random", "greedy_gnorm")]}, "smoke", "perplexity").axes
    assert axis.get_xlabel() == "area of the other less area of Random"
    (axis,) = plots.areas(
        tables.summary_table({"bert": {n: r[0] for n, r in runs["bert"].items()}}), "smoke", "mse"
    ).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Greedy-Gnorm", "Random"]  # the best on top


def test_samples_of_an_area_follow_seeds_and_texts():
    """Of one seed they are the bootstrap over its texts; a method that predicts the same has the same samples."""
    one = run_by_perplexity(0, 0.3)
    samples = paired.resampled_areas({"a": [one], "b": [one]}, samples=300)
    assert (samples[:, 0] == samples[:, 1]).all()
    low, high = area_interval(one)
    assert np.quantile(samples[:, 0], [0.025, 0.975]).tolist() == pytest.approx([low, high], rel=0.2)
    by_accuracy = [random_run(seed, 0.7) for seed in range(3)]
    exact = paired.bootstrap_means(np.array([[text_areas(run) for run in by_accuracy]]))[:, 0]
    metric, ones = METRICS["token_accuracy"], np.ones((4, 60), dtype=int)  # of texts of one token
    by_token = [
        Trajectory(
            run.table.rename(columns={"accuracy": metric.name}),
            np.stack([run.correct, ones], 2),
            run.start,
            {},
            metric,
            ones[0],
        )
        for run in by_accuracy
    ]
    anew = paired.resampled_areas({"a": by_token}, samples=500)[:, 0]
    assert anew.mean() == pytest.approx(exact.mean(), abs=0.01)
    assert anew.std() == pytest.approx(exact.std(), rel=0.15)


def test_runs_by_different_metrics_are_not_compared():
    runs = {"bert": {"a": [run_by_perplexity(0, 0.1)], "b": [random_run(1, 0.5)]}}
    with pytest.raises(ValueError, match="methods were measured by perplexity and by accuracy: compare runs of one"):
        paired.differences(runs, [[("a", "b")]])


def table_of(*sides):
    """A row of differences a model: +1 lies above 0, -1 below, 0 across."""
    ends = {1: (0.1, 0.2), 0: (-0.1, 0.1), -1: (-0.2, -0.1)}
    return pd.DataFrame([{"model": str(i), "low": ends[s][0], "high": ends[s][1]} for i, s in enumerate(sides)])


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((1, 1, 1, 1), "supported"),
        ((1, 1, 1, 0), "supported"),
        ((1, 1, 1, -1), "open"),
        ((1, 1, 0, 0), "open"),
        ((1, 1, -1, -1), "contradicted"),
        ((0, 0, -1, -1), "contradicted"),
        ((0, 0, 0, -1), "open"),
        ((1, 1, 1), "supported"),
        ((), "open"),
    ],
)
def test_the_rule(sides, expected):
    assert paired.verdict(table_of(*sides).reindex(columns=["model", "low", "high"])) == expected


def test_a_claim_needs_all_of_its_comparisons():
    def rows(method, baseline, *sides):
        return table_of(*sides).assign(method=method, baseline=baseline)

    claim = claims.Claim("C", "says", ("a", "b"), method="m")
    for of_b, whole in (((1, 1, 1, 1), "supported"), ((1, 0, 0, 0), "open"), ((-1, -1, 1, 1), "contradicted")):
        table = pd.concat([rows("m", "a", 1, 1, 1, 0), rows("m", "b", *of_b)])
        found = claims.verdicts(table, [claim])
        assert found.verdict.tolist() == [whole] * 2
        assert found["of this comparison"].tolist()[0] == "supported"
        assert found.loc[0, ["above 0", "across 0", "below 0"]].tolist() == [3, 1, 0]


def test_every_claim_and_question_is_compared_and_no_pair_twice():
    pairs = [pair for family in claims.families() for pair in family]
    assert len(pairs) == len(set(pairs))
    for claim in claims.CLAIMS + claims.QUESTIONS:
        assert {(claim.method, other) for other in claim.others} <= set(pairs)
    assert {("greedy_gnorm", method) for group in claims.factors().values() for method in group} <= set(pairs)


def test_the_table_of_methods_is_sorted_by_median():
    runs = {"bert": {"a": [random_run(k, 0.4) for k in range(3)], "b": [random_run(9 + k, 0.8) for k in range(3)]}}
    table = tables.method_table(runs, seconds=True)
    assert table["method"].tolist() == ["b", "a"]
    areas = [area(curve(run)) for run in runs["bert"]["b"]]
    assert table.loc[0, ["minimum", "median", "maximum"]].tolist() == [min(areas), sorted(areas)[1], max(areas)]
    assert table.loc[0, ["seeds", "texts", "scoring seconds", "seconds"]].tolist() == [3, 60, 1.0, 2.0]
