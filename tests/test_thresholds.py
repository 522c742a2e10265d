"""Orders read again with refitted class biases and AUROC, and how deep the dips are: by hand and by brute force."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from precision import close
from sklearn.metrics import roc_auc_score

import gnorm
from experiments import runs
from experiments.analysis import plots, tables
from experiments.data import tasks
from experiments.pipeline import jobs
from experiments.runs import after_pruning, thresholds
from experiments.runs.thresholds import auroc, refitted_biases


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))


def drawn(texts, classes, seed):
    """Logits (text, class) of few different rows, so that many texts tie, and labels that some of them follow."""
    numbers = np.random.default_rng(seed)
    rows = numbers.integers(-2, 3, (5, classes))[numbers.integers(0, 5, texts)]
    labels = np.where(numbers.random(texts) < 0.4, rows.argmax(1), numbers.integers(0, classes, texts))
    return torch.from_numpy(rows).double(), torch.from_numpy(labels)


def by_pairs(logits, labels):
    """The mean over classes of the share of pairs, one text of the class and one of another, in the right order."""
    odds = [[1 / sum(math.exp(z - row[c]) for k, z in enumerate(row) if k != c) for c in range(len(row))]
            for row in logits.tolist()]  # fmt: skip
    shares = []
    for label in sorted(set(labels.tolist())):
        own = [row[label] for row, of in zip(odds, labels.tolist(), strict=True) if of == label]
        rest = [row[label] for row, of in zip(odds, labels.tolist(), strict=True) if of != label]
        shares.append(np.mean([(a > b) + (a == b) / 2 for a, b in itertools.product(own, rest)]))
    return np.mean(shares)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_auroc_counts_pairs_in_order_and_ties_half(classes):
    for seed in range(10):
        logits, labels = drawn(40, classes, seed)
        close(auroc(logits, labels), by_pairs(logits, labels), torch.float64)
    every = torch.randn(200, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(200) % classes
    probabilities = every.softmax(1)[:, 1] if classes == 2 else every.softmax(1)
    close(auroc(every, labels), roc_auc_score(labels, probabilities, multi_class="ovr"), torch.float64)


def test_auroc_passes_by_classes_without_texts_and_needs_two():
    logits = torch.tensor([[1.0, 0, 5], [0, 1, 5], [0, 2, 5]])
    assert auroc(logits, torch.tensor([0, 1, 1])) == 1
    assert auroc(logits, torch.tensor([1, 0, 0])) == 0
    assert auroc(torch.zeros(4, 3), torch.tensor([0, 0, 2, 1])) == 0.5
    with pytest.raises(ValueError, match="all 3 texts are of class 1: AUROC needs texts of two classes"):
        auroc(logits, torch.tensor([1, 1, 1]))


def test_biases_do_not_change_auroc_of_two_classes_even_where_probabilities_are_1():
    logits, labels = drawn(40, 2, 0)
    assert auroc(logits + torch.tensor([0.0, 64.0]), labels) == auroc(logits, labels)
    assert auroc(logits + torch.tensor([0.0, 64.0]), labels) != 0.5


def test_biases_of_texts_that_are_alike_are_the_logarithms_of_shares():
    logits = torch.tensor([3.0, -1.0, 0.5]).repeat(10, 1)
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 3)
    found = refitted_biases(logits, labels)
    assert found[0] == 0
    close((logits[0] + found).softmax(0), [0.5, 0.2, 0.3])


def told_apart(classes, texts=20):
    """Logits that a symmetric classifier gives: the class itself 1, any other 0; a fifth of the labels is another."""
    labels = torch.arange(texts * classes) % classes
    seen = torch.where(torch.arange(len(labels)) % (5 * classes) < classes, (labels + 1) % classes, labels)
    return torch.nn.functional.one_hot(seen, classes).double(), labels


@pytest.mark.parametrize("classes", [2, 3, 20])
@pytest.mark.parametrize("size", [0.5, 30.0])
def test_a_shift_of_whole_classes_is_repaired(classes, size):
    logits, labels = told_apart(classes)
    answers = logits.argmax(1)
    assert float((answers == labels).double().mean()) == 0.8
    shift = size * torch.randn(classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    assert size < 1 or not torch.equal((logits + shift).argmax(1), answers)
    biases = refitted_biases(logits + shift, labels)
    close(biases, shift[0] - shift, scale=1 + float(shift.abs().max()))  # by symmetry, unshifted logits need none
    assert torch.equal((logits + shift + biases).argmax(1), answers)
    shares = labels.bincount().double() / len(labels)
    close((logits + shift + biases).softmax(1).mean(0), shares)


@pytest.mark.parametrize("labels", [[0, 0, 2], [0, 1, 3]])
def test_classes_without_texts_have_no_biases(labels):
    with pytest.raises(ValueError, match=r"3 classes cannot be fitted on texts of the classes \[0, .*texts of each"):
        refitted_biases(torch.eye(3), torch.tensor(labels))


def test_one_logit_has_no_biases():
    with pytest.raises(ValueError, match="biases of 1 classes cannot be fitted"):
        refitted_biases(torch.zeros(3, 1), torch.tensor([0, 1, 0]))


def by_triples(values):
    """The largest of min(values[i], values[k]) - values[j], i < j < k, or 0."""
    return max([0, *(min(i, k) - j for i, j, k in itertools.combinations(values, 3))])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.8, 0.5], [0, 0, 0]),
        ([0.75, 0.25, 0.5], [0, 0.25, 0]),
        ([0.5, 0.25, 0.75], [0, 0.25, 0]),
        ([1, 0.25, 0.75, 0.5, 0.625], [0, 0.5, 0, 0.125, 0]),
        ([0.5], [0]),
    ],
)
def test_depth_is_what_lies_below_the_lower_shoulder(values, expected):
    assert tables.depths(np.array(values)).tolist() == expected


def test_the_largest_depth_is_that_of_all_triples():
    numbers = np.random.default_rng(0)
    for length in [*range(1, 9), 30]:
        for _ in range(20):
            values = numbers.integers(0, 10, length)
            assert tables.depths(values).max() == by_triples(values.tolist())


def curves(method, accuracy, refitted, ranked):
    rows = {"model": "m", "training": "m/seed0", "method": method, "share": np.linspace(0, 1, len(accuracy))}
    return pd.DataFrame({**rows, "accuracy": accuracy, "refitted": refitted, "AUROC": ranked})


def test_dips_are_judged_by_what_refitting_gives_back():
    falls = [1.0, 0.5, 0.75, 0.75, 0.5]
    table = pd.concat(
        [
            curves("greedy_gnorm", falls, [1.0, 0.875, 1.0, 0.75, 0.5], [1.0, 0.9375, 1.0, 0.5, 0.75]),
            curves("head_importance", falls, falls, falls),
            curves("random", [1.0, 0.75, 0.75, 0.5, 0.5], falls, falls),
            curves("gnorm_once", [1.0, 0.75 - 1 / 64, 0.75, 0.5, 0.5], falls, falls),
        ]
    )
    found = tables.threshold_dips(table).set_index("method")
    assert found.verdict.to_dict() == {
        "greedy_gnorm": "threshold", "head_importance": "heads", "random": "no dip", "gnorm_once": "no dip"
    }  # fmt: skip
    first = found.loc["greedy_gnorm"]
    assert (first.share, first.dip, first["given back"]) == (0.25, 0.25, 0.5)
    assert (first["refitted there"], first["AUROC there"], first["refitted dip"], first["AUROC dip"]) == (
        *(0.125, 0.0625, 0.125),
        0.25,
    )
    assert (first.area, first["refitted area"], first["AUROC area"]) == (0.6875, 0.84375, 0.828125)
    assert found.loc["head_importance", "given back"] == 0
    assert found.loc["random", ["share", "given back"]].isna().all()
    assert found.loc["gnorm_once", "given back"] == -15  # refitting makes it a dip
    figure = plots.thresholds(table, found.reset_index(), ["greedy_gnorm", "random"], "smoke")
    drawn_, flat = figure.axes
    assert [line.get_ydata().tolist() for line in flat.lines] == [[1.0, 0.75, 0.75, 0.5, 0.5], falls, falls]
    assert drawn_.lines[3].get_xdata() == [0.25, 0.25]


def test_states_are_the_runs_own_or_spread_evenly(monkeypatch):
    run = runs.trajectories("smoke", ["bert"], ["random"], "cpu")["bert"]["random"]
    assert thresholds.states(run) == [0, 2, 4, 6, 8]
    monkeypatch.setattr(thresholds, "STATES", 3)
    assert thresholds.states(run) == [0, 4, 8]


def test_every_state_is_that_of_the_trajectory_and_biases_are_of_other_texts():
    table = thresholds.with_refitted_biases("smoke", ["bert"], "cpu")
    assert tuple(table.columns) == thresholds.COLUMNS
    assert list(table.groupby("method", sort=False).size().items()) == list(
        zip(thresholds.METHODS, (9, 9, 5), strict=True)
    )
    found = runs.trajectories("smoke", ["bert"], thresholds.METHODS, "cpu")["bert"]
    task = tasks.load("smoke", "bert", "cpu", progress=False)
    for method, rows in table.groupby("method"):
        first = found[method].table.query("trial == 0").drop_duplicates("pruned_heads")
        assert rows["pruned heads"].tolist() == first.pruned_heads.tolist()
        assert rows.accuracy.tolist() == first.accuracy.tolist()
        assert rows.share.tolist() == [number / 8 for number in first.pruned_heads]
    for number in (0, 5):
        smaller = copy.deepcopy(task.model)
        gnorm.remove_heads(smaller, found["greedy_gnorm"].mask(number))
        own, others = task.batches("evaluation"), task.texts("validation")
        assert sum(len(batch["labels"]) for batch in others) == 100  # all of the split
        with torch.no_grad():
            logits, other_logits = (torch.cat([smaller(**b).logits for b in each]).double() for each in (own, others))
        labels, other_labels = (torch.cat([b["labels"] for b in each]) for each in (own, others))
        biases = refitted_biases(other_logits, other_labels)
        (row,) = table[(table["method"] == "greedy_gnorm") & (table["pruned heads"] == number)].to_dict("records")
        assert row["refitted"] == float(((logits + biases).argmax(1) == labels).double().mean())
        close(row["AUROC"], auroc(logits, labels), torch.float64)  # no pair of texts changes its order
    assert row["refitted"] > row["accuracy"]


def test_a_stopped_run_goes_on_from_its_last_order(monkeypatch):
    read, asked = after_pruning.class_logits, []

    def stopping(model, batches):
        asked.append(len(batches))
        if len(asked) == 15:  # 2 passes for each of 5 states of albert: in the second order
            raise KeyboardInterrupt
        return read(model, batches)

    monkeypatch.setattr(thresholds, "class_logits", stopping)
    with pytest.raises(KeyboardInterrupt):
        thresholds.with_refitted_biases("smoke", ["albert"], "cpu")
    table = thresholds.with_refitted_biases("smoke", ["albert"], "cpu")
    assert len(table) == 2 * 3 * 5  # trainings, methods, states
    assert len(asked) == 15 + 2 * (len(table) - 5)  # the first order was read from its file
    pd.testing.assert_frame_equal(thresholds.with_refitted_biases("smoke", ["albert"], "cpu"), table)
    assert len(asked) == 15 + 2 * (len(table) - 5)


def test_models_of_language_are_passed_by():
    asked = jobs.asked_for("smoke", ["gpt2", "bert"], ["thresholds"])
    assert [str(job) for job in asked] == [f"bert/{method}" for method in thresholds.METHODS]


def test_biases_are_not_fitted_on_the_texts_that_are_measured():
    task = tasks.load("smoke", "bert", "cpu", progress=False)
    same = dataclasses.replace(task.spec, evaluation=task.spec.scoring)
    run = runs.trajectories("smoke", ["bert"], ["random"], "cpu")["bert"]["random"]
    with pytest.raises(ValueError, match="bert of profile smoke is scored and measured on the split 'validation'"):
        thresholds._read_again(dataclasses.replace(task, spec=same), run)
