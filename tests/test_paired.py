"""Paired differences of areas: exact values where there are any, known distributions where there are none."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from precision import close

from experiments.analysis import claims, paired, plots, tables
from gnorm.metrics import METRICS
from gnorm.trajectory import Trajectory, area, curve, solution, text_areas


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


def test_holm_steps_down():
    close(paired.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], torch.float64)
    assert paired.holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert paired.holm([]).tolist() == []


def test_seeds_and_texts_are_crossed_in_the_interval():
    """By sums over single cells, as a textbook has the analysis of variance in two ways."""
    seeds, texts = 3, 5
    d = np.random.default_rng(0).normal(size=(seeds, texts)) + np.arange(seeds)[:, None] + 2.0 * np.arange(texts)
    mean = sum(d[s][x] for s in range(seeds) for x in range(texts)) / (seeds * texts)
    row = [sum(d[s]) / texts for s in range(seeds)]
    column = [sum(d[s][x] for s in range(seeds)) / seeds for x in range(texts)]
    of_seed = texts * sum((r - mean) ** 2 for r in row) / (seeds - 1)
    of_text = seeds * sum((c - mean) ** 2 for c in column) / (texts - 1)
    rest = sum((d[s][x] - row[s] - column[x] + mean) ** 2 for s in range(seeds) for x in range(texts))
    rest /= (seeds - 1) * (texts - 1)
    variance = (of_seed + of_text - rest) / (seeds * texts)
    freedom = (of_seed + of_text - rest) ** 2 / (
        of_seed**2 / (seeds - 1) + of_text**2 / (texts - 1) + rest**2 / ((seeds - 1) * (texts - 1))
    )
    found = paired.crossed(d)
    parts = (found.mean, found.error**2, found.freedom, found.of_seeds, found.of_texts, found.of_rest)
    close(parts, (mean, variance, freedom, (of_seed - rest) / texts, (of_text - rest) / seeds, rest), torch.float64)
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    close(found.interval(0.95), (mean - half, mean + half), torch.float64)
    close(found.p, 2 * scipy.stats.t.sf(abs(mean) / math.sqrt(variance), freedom), torch.float64)


def test_where_components_cancel_the_seeds_decide():
    d = np.array([[1.0, -1.0], [-1.0, 1.0]])  # all of it is interaction
    d[0] += 1e-3
    found = paired.crossed(d)
    assert found.freedom == 1
    close(found.error, math.sqrt(2 * 2 * (5e-4) ** 2 / 4), torch.float64)
    same = paired.crossed(np.zeros((3, 4)))
    assert (same.interval(0.95), same.p) == ((0.0, 0.0), 1.0)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    generator, held, draws = np.random.default_rng(seeds), 0, 1000
    for _ in range(draws):
        d = generator.normal(size=(seeds, 1)) + generator.normal(size=30) + 2 * generator.normal(size=(seeds, 30))
        low, high = paired.crossed(d).interval(0.95)
        held += low <= 0 <= high
    assert 0.93 * draws <= held <= 0.975 * draws


def test_over_seeds_it_is_the_t_test_of_one_sample():
    gains = np.array([0.1, 0.3, -0.1, 0.2])
    found, test = paired.over_seeds(gains), scipy.stats.ttest_1samp(gains, 0)
    close(found.p, test.pvalue, torch.float64)
    close(found.interval(0.9), tuple(test.confidence_interval(0.9)), torch.float64)


def test_endpoints_of_a_curve():
    shares, values = np.array([0, 0.4, 0.8, 1.0]), np.array([0.9, 0.89, 0.88, 0.1])
    half = (0.4 * (0.9 + 0.89) / 2 + 0.1 * (0.89 + 0.8875) / 2) / 0.5
    by_hand = {"half": half, "within": 0.8, "area": np.trapezoid(values, shares)}
    for name, endpoint in paired.ENDPOINTS.items():
        close(endpoint.of(shares, values, METRICS["accuracy"]), by_hand[name], torch.float64)
        close(endpoint.of(shares, np.stack([values, values]), METRICS["accuracy"]), [by_hand[name]] * 2, torch.float64)
    rising = paired.ENDPOINTS["area"].of(shares, values, METRICS["mse"])
    close(rising, -by_hand["area"], torch.float64)


def test_the_table_of_differences():
    better = [random_run(seed, 0.9) for seed in range(5)]
    worse = [random_run(10 + seed, 0.5) for seed in range(5)]
    pairs = [("greedy_gnorm", "random"), ("greedy_gnorm", "flap"), ("greedy_gnorm", "again")]
    runs = {"greedy_gnorm": better, "random": worse, "again": worse}
    table = paired.differences({"bert": runs}, pairs)
    assert list(table.columns) == list(paired.COLUMNS)
    assert table.endpoint.tolist() == ["half"] * 2 + ["within"] * 2 + ["area"] * 2  # nothing was pruned by flap
    assert table.same_as.tolist() == ["", "random"] * 3
    row = table[table.endpoint == "area"].iloc[0]
    gains = np.stack([text_areas(a) - text_areas(b) for a, b in zip(better, worse)])
    found = paired.crossed(gains)
    close((row.difference, row.p), (np.mean(gains), found.p), torch.float64)
    close((row.low, row.high, row.low90, row.high90), (*found.interval(0.95), *found.interval(0.9)), torch.float64)
    assert row.low > 0
    assert (row.seeds, row.texts) == (5, 60)
    within = table[table.endpoint == "within"].iloc[0]
    one, other = ([solution(run, 0.02) / 3 for run in runs] for runs in (better, worse))
    test = scipy.stats.ttest_rel(one, other)
    close(
        (within.difference, within.p),
        (np.mean(one) - np.mean(other), test.pvalue),
        torch.float64,
    )


def test_one_seed_is_compared_over_its_texts():
    one, other = random_run(0, 0.9), random_run(1, 0.5)
    (row,) = paired.differences({"bert": {"a": [one], "b": [other]}}, [("a", "b")])[2:].to_dict("records")
    gains = text_areas(one) - text_areas(other)
    close(row["difference"], gains.mean(), torch.float64)
    error = gains.std() / math.sqrt(len(gains))
    ends = gains.mean() - 1.96 * error, gains.mean() + 1.96 * error
    assert (row["low"], row["high"]) == pytest.approx(ends, abs=0.3 * error)
    assert row["p"] == 0
    assert np.isnan(row["of_seeds"])


def test_methods_measured_on_other_texts_are_refused():
    runs = {"bert": {"a": [random_run(0, 0.5, texts=60)], "b": [random_run(1, 0.5, texts=50)]}}
    with pytest.raises(ValueError, match=r"bert: methods were not measured on the same seeds and texts: .*60.*50"):
        paired.differences(runs, [("a", "b")])


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
    whole = paired.differences(runs, [("random", "greedy_gnorm"), ("greedy_gnorm", "random")])
    assert set(whole.endpoint) == {"half", "area"}  # points are those of a fraction
    table = whole[whole.endpoint == "area"]
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
    (axis,) = plots.differences(whole, {"": [("random", "greedy_gnorm")]}, "smoke", "perplexity").axes
    assert axis.get_xlabel() == "the other less Random:\nwhole area"
    (axis,) = plots.areas(
        tables.summary_table({"bert": {n: r[0] for n, r in runs["bert"].items()}}), "smoke", "mse"
    ).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["Greedy-Gnorm", "Random"]  # the best on top


def test_runs_by_different_metrics_are_not_compared():
    runs = {"bert": {"a": [run_by_perplexity(0, 0.1)], "b": [random_run(1, 0.5)]}}
    with pytest.raises(ValueError, match="methods were measured by perplexity and by accuracy: compare runs of one"):
        paired.differences(runs, [("a", "b")])


ENDS = {1: (0.1, 0.2), 0: (-0.1, 0.1), -1: (-0.2, -0.1), "=": (-0.004, 0.009)}
SIDE = {1: "above 0", 0: "across 0", -1: "below 0", "=": "across 0"}


def table_of(*sides, p=0.001, **columns):
    """A row of differences a model: +1 lies above 0, -1 below, 0 across, "=" within a hundredth of it."""
    rows = [
        {"model": str(i), "low": ENDS[s][0], "high": ENDS[s][1], "p": p if s in (1, -1) else 0.5, "same_as": ""}
        for i, s in enumerate(sides)
    ]
    table = pd.DataFrame(rows, columns=["model", "low", "high", "p", "same_as"])
    return table.assign(low90=table.low, high90=table.high, endpoint="area", **columns)


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
        (("=", "=", "=", "="), "equal"),
        (("=", "=", "=", 0), "open"),
        ((), "open"),
    ],
)
def test_the_rule(sides, expected):
    assert paired.verdict([SIDE[side] for side in sides], [side == "=" for side in sides]) == expected
    claim = claims.Claim("C", "says", ("b",), method="m")
    found = claims.verdicts(table_of(*sides, method="m", baseline="b"), [claim])
    assert found.set_index("endpoint").verdict.to_dict() == {"half": "open", "within": "open", "area": expected}


def test_a_claim_needs_all_of_its_comparisons():
    claim = claims.Claim("C", "says", ("a", "b"), method="m")
    for of_b, whole in (((1, 1, 1, 1), "supported"), ((1, 0, 0, 0), "open"), ((-1, -1, 1, 1), "contradicted")):
        tables = [table_of(1, 1, 1, 0, method="m", baseline="a"), table_of(*of_b, method="m", baseline="b")]
        found = claims.verdicts(pd.concat(tables, ignore_index=True), [claim])
        found = found[found.endpoint == "area"]
        assert found.verdict.tolist() == [whole] * 2
        assert found["of this comparison"].tolist()[0] == "supported"
        assert found.iloc[0][["above 0", "across 0", "below 0", "equal"]].tolist() == [3, 1, 0, 0]


def test_p_values_are_corrected_inside_a_claim_and_what_is_one_counts_once():
    def verdicts(p, others, **changes):
        tables = [table_of(1, 1, 1, p=p, method="m", baseline=other) for other in others]
        table = pd.concat(tables, ignore_index=True)
        for column, values in changes.items():
            table[column] = values
        found = claims.verdicts(table, [claims.Claim("C", "says", others, method="m")])
        return found[found.endpoint == "area"]["above 0"].tolist()

    assert verdicts(0.04, ("a",)) == [3]
    assert verdicts(0.04, ("a", "b")) == [0, 0]
    assert verdicts(0.02, ("a", "b")) == [3, 3]
    assert verdicts(0.04, ("a", "b"), same_as=[""] * 3 + ["a"] * 3) == [3, 3]
    assert verdicts(0.04, ("a",), same_as=["", "", "random"]) == [2]  # counted where random is


def test_the_rule_errs_as_often_as_simulations_of_whole_tables_say():
    columns = {"seeds": 5, "texts": 40, "of_seeds": 4e-4, "of_texts": 2e-3, "of_rest": 1e-2}
    table = pd.DataFrame([columns] * 4)
    found = paired.error_rates(table, effect=0.05).set_index("truth")
    assert found.index.tolist() == ["no effect", "0.05 on two models", "0.05 on all"]
    generator, words, held = np.random.default_rng(1), [], 0
    for _ in range(500):
        d = 0.05 + 0.02 * generator.normal(size=(4, 5, 1)) + math.sqrt(2e-3) * generator.normal(size=(4, 1, 40))
        of_models = [paired.crossed(one + 0.1 * generator.normal(size=(5, 40))) for one in d]
        low, high = np.array([one.interval(0.95) for one in of_models]).T
        held += ((low <= 0.05) & (high >= 0.05)).sum()
        sides = np.select([low > 0, high < 0], ["above 0", "below 0"], "across 0")
        words.append(paired.verdict(sides.tolist(), [False] * 4))
    assert found.loc["0.05 on all", "supported"] == pytest.approx(words.count("supported") / 500, abs=0.07)
    assert found.loc["0.05 on all", "coverage"] == pytest.approx(held / 2000, abs=0.02)
    assert found.loc["no effect", "supported"] < 0.01
    close(found[["supported", "contradicted", "equal", "open"]].sum(axis=1), [1.0] * 3, torch.float64)


def test_every_claim_and_question_is_compared_and_no_pair_twice():
    pairs = claims.pairs()
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
