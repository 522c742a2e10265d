"""The promise of a budget: its tests beside plain enumeration, how often it is broken, and where it ends a run."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy
import torch
from precision import close
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm.metrics import METRICS, Metric
from gnorm.shipping import Promise, choose, until_known
from gnorm.shipping.promise import GRID, paired_hits
from gnorm.trajectory import Trajectory, solution

ACCURACY, F1 = METRICS["accuracy"], METRICS["f1_macro"]


def tango(lost, gained, n, d):
    """Tango 1998, the likeliest share of gains under the hypothesis found by search, not in closed form."""

    def unlikeliness(q):
        shares = np.array([q + d, q, 1 - 2 * q - d])
        return -scipy.special.xlogy([lost, gained, n - lost - gained], shares).sum()

    q = scipy.optimize.minimize_scalar(
        unlikeliness, bounds=(0, (1 - d) / 2), method="bounded", options={"xatol": 1e-12}
    ).x
    q = 0.0 if gained == 0 and unlikeliness(1e-300) <= unlikeliness(q) else q
    return (lost - gained - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))


@pytest.mark.parametrize(("lost", "gained", "budget"), [(0, 0, 0.1), (1, 0, 0.2), (2, 3, 0.15), (4, 1, 0.3)])
def test_the_exact_test_is_the_largest_probability_of_results_as_far(lost, gained, budget):
    n = 12
    results = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    far = [(b, c) for b, c in results if tango(b, c, n, budget) <= tango(lost, gained, n, budget) + 1e-6]

    def probability(changed):
        shares = np.maximum([(changed + budget) / 2, (changed - budget) / 2, 1 - changed], 0)
        return sum(scipy.stats.multinomial.pmf([b, c, n - b - c], n, shares / shares.sum()) for b, c in far)

    expected = max(map(probability, np.geomspace(budget, 1, GRID)))
    assert abs(paired_hits(lost, gained, n, budget) - expected) < 1e-7
    assert expected < 1


@pytest.mark.parametrize(("budget", "texts"), [(0.02, 114), (0.01, 230), (0.1, 22)])
def test_the_fewest_texts_are_those_by_which_no_change_keeps_the_promise(budget, texts):
    promise = Promise(budget)
    assert promise.fewest_texts(ACCURACY) == texts
    assert paired_hits(0, 0, texts, budget) <= 0.1 < paired_hits(0, 0, texts - 1, budget)
    close(paired_hits(0, 0, texts, budget), (1 - budget) ** texts, torch.float64)
    assert Promise(budget).fewest_texts(METRICS["perplexity"]) == 1


def drawn(generator, texts, lost, gained):
    """Hits of two models: of the intact one, and of one that loses and gains these shares of all texts."""
    kind = generator.choice(3, texts, p=[lost, gained, 1 - lost - gained])
    before = np.where(kind == 2, generator.random(texts) < 0.9, kind == 0)
    return before, np.where(kind == 2, before, kind == 1)


@pytest.mark.parametrize(("texts", "gained"), [(130, 0.0), (400, 0.01), (400, 0.1)])
def test_a_loss_of_the_budget_is_passed_no_more_often_than_was_said(texts, gained):
    generator, promise, draws = np.random.default_rng(0), Promise(0.02), 400
    passed = sum(promise.holds(ACCURACY, *drawn(generator, texts, 0.02 + gained, gained), None) for _ in range(draws))
    assert passed <= scipy.stats.binom.ppf(0.999, draws, 0.1)
    passed = sum(promise.holds(ACCURACY, *drawn(generator, texts, 0.005, 0.005), None) for _ in range(draws))
    assert passed > draws / 2


@pytest.mark.parametrize("metric", [METRICS["token_accuracy"], METRICS["mse"]], ids=lambda metric: metric.name)
def test_so_it_is_with_metrics_that_are_no_hits(metric):
    generator, draws, texts = np.random.default_rng(0), 60, 200

    def texts_of(n):
        if metric.name == "mse":
            labels = generator.normal(size=n)
            before = labels + 0.3 * generator.normal(size=n)
            return before, before + 0.2 * generator.normal(size=n), labels
        tokens = generator.integers(1, 9, n)
        before = generator.binomial(tokens, 0.9)
        after = before - generator.binomial(before, 0.05 * (generator.random(n) < 0.5))
        return np.stack([before, tokens], 1), np.stack([after, tokens], 1), np.zeros(n)

    before, after, labels = texts_of(200_000)
    loss = abs(metric.value(before, labels) - metric.value(after, labels))
    passed = sum(Promise(loss).holds(metric, *texts_of(texts)) for _ in range(draws))
    assert passed <= scipy.stats.binom.ppf(0.999, draws, 0.13)  # bootstraps are exact for many texts alone
    assert sum(Promise(3 * loss).holds(metric, *texts_of(texts)) for _ in range(draws)) > 0.7 * draws


def a_run(lost, texts=400, metric=ACCURACY):
    """A run of which each state has lost these numbers of texts, all of them hit before."""
    predictions = np.ones((len(lost) + 1, texts), bool)
    for state, number in enumerate(lost, start=1):
        predictions[state, :number] = False
    table = pd.DataFrame(
        {
            "trial": 0,
            "pruned_heads": range(len(predictions)),
            "layer": [None, *[0] * len(lost)],
            "head": [None, *range(len(lost))],
            "score": 0.0,
            "accuracy": predictions.mean(1),
        }
    ).astype({"layer": "Int64", "head": "Int64"})
    start = torch.ones(1, len(lost), dtype=torch.bool)
    return Trajectory(table, predictions, start, {"trials": 1}, metric, np.ones(texts))


def test_the_answer_is_the_last_state_before_the_first_that_is_not_shown():
    run = a_run([0, 2, 3, 2, 9, 0, 40])
    passes = [paired_hits(n, 0, 400, 0.02) <= 0.1 for n in (0, 2, 3, 2, 9, 0, 40)]
    assert passes == [True, True, True, True, False, True, False]
    assert Promise(0.02).last_kept(run) == choose(None, run, 0.02) == 4
    assert choose(None, run, 0.02, confidence=0.999) == 1
    assert choose(None, run, 0.02, confidence=None) == solution(run, 0.02) == 6
    assert Promise(0.02).last_kept(a_run([9, 0, 0])) == 0


@pytest.mark.parametrize(
    ("budget", "confidence", "complaint"),
    [
        (0, 0.9, "budget=0 is out of range: no number of texts shows that nothing at all is lost"),
        (float("nan"), 0.9, "budget=nan is out of range"),
        (0.01, 1.0, "confidence=1.0 is out of range: it is a probability from 0.5"),
        (0.01, float("nan"), "confidence=nan is out of range"),
        (
            0.01,
            0.9,
            (
                r"^67 texts .* too few: 230 are needed to say that with 90 % confidence the accuracy on "
                r"texts like these falls by less than 1 point\. Give some 588 texts in all, a budget of at least "
                r"0\.034, or confidence=None"
            ),
        ),
    ],
)
def test_a_promise_that_cannot_be_made_is_refused(budget, confidence, complaint):
    with pytest.raises(ValueError, match=complaint):
        choose(None, a_run([1, 2], texts=67), budget, confidence=confidence)


@pytest.mark.parametrize(
    ("name", "budget", "counts", "needed"),
    [("f1_macro", 0.02, (200, 56), 57), ("f1_macro", 0.2, (200, 200, 2), 3), ("matthews", 0.02, (500, 113), 114)],
)
def test_a_class_whose_loss_would_not_be_seen_is_too_few_texts(name, budget, counts, needed):
    """Where no text of a class changes, a share of them as large as the budget allows may be lost by chance."""
    promise, labels = Promise(budget), np.repeat(np.arange(len(counts)), counts)
    with pytest.raises(ValueError, match=rf"one class has {min(counts)} of the {len(labels)} .*: {needed} of each are"):
        promise.holds(METRICS[name], labels, labels, labels)
    enough = np.repeat(np.arange(len(counts)), [max(n, needed) for n in counts])
    assert promise.holds(METRICS[name], enough, enough, enough)
    several = np.eye(len(counts), dtype=int)[labels]
    with pytest.raises(ValueError, match=f"{needed} of each are needed"):
        promise.check_classes(METRICS[name], several)


@pytest.mark.parametrize(("name", "texts"), [("accuracy", 216), ("perplexity", 132)])
def test_no_texts_to_choose_by_are_too_few_whatever_the_budget(name, texts):
    """With training, every other batch is to choose by: there is none where one batch holds them all."""
    with pytest.raises(ValueError, match=rf"^0 texts .* too few: .*\. Give some {texts} texts in all, or confidence="):
        Promise(0.1).check(METRICS[name], 0, shares=4)


@pytest.mark.parametrize(
    ("metric", "budget", "words"),
    [
        (ACCURACY, 0.01, "with 90 % confidence the accuracy on texts like these falls by less than 1 point"),
        (F1, 0.025, "with 90 % confidence the f1_macro on texts like these falls by less than 2.5 points"),
        (METRICS["mse"], 0.5, "with 90 % confidence the mse on texts like these rises by less than 0.5"),
    ],
)
def test_the_promise_in_words(metric, budget, words):
    assert Promise(budget).says(metric) == words


def test_a_changed_prediction_that_no_metric_sees_breaks_no_promise():
    first = Metric("first", lambda kept, _: float(kept[0, 0]), per_text=None)
    kept = np.zeros((40, 2))
    assert Promise(0.1).holds(first, kept, kept + [0, 1], np.zeros(40))


def test_until_ends_a_run_and_the_journal_goes_on_without_it(tmp_path):
    model, batches, journal = tiny_model("bert"), ragged_batches(3, 4), tmp_path / "run.jsonl"
    whole = gnorm.prune(model, batches, method="weight_magnitude", progress=False)
    seen = []

    def until(run):
        seen.append(len(run.order()))
        return len(run.order()) == 3

    short = gnorm.prune(model, batches, method="weight_magnitude", progress=False, journal=journal, until=until)
    assert seen == [0, 1, 2, 3]
    assert short.info["steps"] == 3
    pd.testing.assert_frame_equal(short.table, whole.table[:4])
    assert journal.read_bytes().count(b"\n") == 5  # a header, and four states
    again = gnorm.prune(model, batches, method="weight_magnitude", progress=False, journal=journal)
    pd.testing.assert_frame_equal(again.table, whole.table)
    shorter = gnorm.prune(
        model, batches, method="weight_magnitude", progress=False, journal=journal, until=lambda run: True
    )
    assert len(shorter.table) == 1
    with pytest.raises(ValueError, match="until ends a run of one trial, trials=2 are asked for"):
        gnorm.prune(model, batches, method="random", trials=2, progress=False, until=until)


@pytest.mark.parametrize(("by", "budget"), [("parameters", 0.9), ("operations", 0.95)])
def test_a_run_for_a_share_ends_with_the_first_model_that_is_cheap_enough(by, budget):
    model, batches = tiny_model("bert"), ragged_batches(3, 4)
    own = SimpleNamespace(model=model, choosing=batches)
    options = {"method": "weight_magnitude", "progress": False}
    whole = gnorm.prune(model, batches, **options)
    short = gnorm.prune(model, batches, **options, until=until_known(own, budget, by))
    assert len(short.order()) == choose(own, whole, budget, by) == choose(own, short, budget, by) > 0
    assert len(short.order()) < len(whole.order())
    assert until_known(own, 0.5, "latency") is until_known(own, 3, "heads") is None
