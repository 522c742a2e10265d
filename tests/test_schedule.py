"""When heads are scored, and from which layers they go, each against the literal loop; journals cut at every line."""

import math

import literal
import numpy as np
import pytest
import torch
from crosses import one_by_all
from precision import close, close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm.methods import find_method

SCORING, EVALUATION = ragged_batches(2), ragged_batches(2, seed=7)
TWELVE = [2, 0, 0, 1, 2, 1, 0, 2, 1, 1, 2, 0]  # the layers of twelve heads, four in each of three layers
EIGHT = [1, 0, 0, 1, 1, 1, 0, 0]  # of eight, four in each of two


def model(family="bert", layers=3):
    return tiny_model(family, num_hidden_layers=layers).double()


def run(given=None, evaluation=EVALUATION, **options):
    return gnorm.prune(given or model(), SCORING, evaluation, progress=False, **options)


def equals_literal(trajectory, given=None, evaluation=EVALUATION, **options):
    """Order, scores and accuracies are those of the literal loop."""
    order, products, accuracies = literal.prune(given or model(), SCORING, evaluation, **options)
    assert trajectory.order() == order
    close_logs(trajectory.table.score[1:], np.log(products), torch.float64)
    expected = [accuracies[pruned] for pruned in trajectory.table.pruned_heads]
    close(trajectory.table.accuracy, expected, torch.float64)


def same(first, second):
    assert first.table.equals(second.table)
    assert (first.correct == second.correct).all()
    assert first.info["smallest_gap"] == second.info["smallest_gap"]


# ---------------------------------------------------------------- when heads are scored


SHARED = [(0, None), (1, None), (3, None), (100, None)]  # accuracy is read off the passes that score


@pytest.mark.parametrize(("every", "evaluation"), [*SHARED, (0, EVALUATION), (3, EVALUATION)])
def test_heads_are_scored_before_every_step_of_that_number(every, evaluation):
    found = run(model(layers=2), evaluation, rescore_every=every)
    equals_literal(found, model(layers=2), evaluation or SCORING, rescore_every=every)


def test_a_shared_block_is_scored_when_it_is_due():
    for every in (0, 3):
        equals_literal(run(model("albert"), rescore_every=every), model("albert"), rescore_every=every)


def test_every_schedule_is_another_run():
    given = model(layers=2)
    tables = [run(given, rescore_every=every).table for every in (0, 1, 3)]
    assert not any(first.equals(second) for first, second in zip(tables, [*tables[1:], tables[0]], strict=True))
    assert run(given, rescore_every=100).table.equals(tables[0])


def test_steps_are_counted_not_heads():
    given = model(layers=2)
    by_twos = run(given, rescore_every=2, heads_per_step=2)
    one_by_one = run(given, rescore_every=4)
    assert by_twos.order() == one_by_one.order()
    assert by_twos.table.score.equals(one_by_one.table.score)
    last_of_each = by_twos.table.drop_duplicates("pruned_heads")
    assert last_of_each.accuracy.tolist() == one_by_one.table.accuracy[::2].tolist()


def test_no_more_is_scored_than_is_asked_for(monkeypatch):
    row, calls = find_method("greedy_gnorm"), []
    monkeypatch.setattr(
        "gnorm.pruning.find_method",
        lambda _: row.__class__(
            "counted", lambda *given: calls.append(int(gnorm.head_mask_of(given[0]).sum())) or row.criterion(*given)
        ),
    )
    every_step = [8, 7, 6, 5, 4, 3, 2, 1]
    for every, expected in ((0, [8]), (1, every_step), (3, [8, 5, 2]), (100, [8])):
        for evaluation in (None, EVALUATION) if every == 3 else (None,):
            calls.clear()
            run(model(layers=2), evaluation, rescore_every=every)
            assert calls == expected


@pytest.mark.parametrize(
    ("method", "every", "row"),
    [
        ("greedy_gnorm", 0, "gnorm_once"),
        ("greedy_gnorm", 4, "gnorm_every_4"),
        ("attention_entropy", 1, "entropy_every_step"),
        ("head_importance", 8, "importance_every_8"),
    ],
)
def test_rows_say_when_they_are_scored(method, every, row):
    given = model(layers=3 if every == 8 else 2)
    asked, named = run(given, method=method, rescore_every=every), run(given, method=row)
    same(asked, named)
    assert asked.info["rescore_every"] == named.info["rescore_every"] == every
    assert named.info["method"] == row


@pytest.mark.parametrize(
    ("every", "error", "says"),
    [
        (-1, ValueError, r"rescore_every=-1 is out of range: it must be at least 0\."),
        (1.5, TypeError, r"rescore_every=1\.5 must be a whole number, it is of type float\."),
        (True, TypeError, r"rescore_every=True must be a whole number, it is of type bool\."),
    ],
)
def test_numbers_that_are_no_schedule_are_refused(every, error, says, tmp_path):
    with pytest.raises(error, match=says):
        run(rescore_every=every, journal=tmp_path / "journal")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(("method", "highest"), [("greedy_gnorm", False), ("inverse_greedy_gnorm", True)])
def test_heads_go_from_the_layers_that_are_given_the_lowest_of_each(method, highest):
    trajectory = run(model(layers=2), method=method, layers=EIGHT)
    assert [layer for layer, _ in trajectory.order()] == EIGHT
    equals_literal(trajectory, model(layers=2), highest_first=highest, layers=EIGHT)
    assert trajectory.info["layers"] == EIGHT
    assert "layers" not in run(steps=0).info


def test_several_heads_of_a_step_go_from_their_layers_and_the_last_step_is_smaller():
    trajectory = run(model(layers=2), layers=EIGHT, heads_per_step=3)
    assert trajectory.table.pruned_heads.tolist() == [0, 3, 3, 3, 6, 6, 6, 8, 8]
    equals_literal(trajectory, model(layers=2), rescore_every=3, layers=EIGHT)


def test_layers_and_a_schedule_go_together():
    equals_literal(run(layers=TWELVE, rescore_every=5), rescore_every=5, layers=TWELVE)


def test_the_gap_is_that_between_heads_that_go_and_heads_of_the_layer_that_stay():
    scores = gnorm.gnorm_scores(model(), SCORING).sort(1).values
    trajectory = run(layers=[2, 0, 2], heads_per_step=3, steps=1)
    expected = min(scores[2, 2] - scores[2, 1], scores[0, 1] - scores[0, 0]).item()
    close_logs(trajectory.info["smallest_gap"], expected, torch.float64)
    emptied = run(layers=[1, 1, 1, 1], heads_per_step=4, steps=1)  # all of a layer: nothing was chosen
    assert emptied.info["smallest_gap"] == math.inf
    assert emptied.order() == [(1, int(head)) for head in gnorm.gnorm_scores(model(), SCORING)[1].argsort()]


def test_layers_may_be_numpy_numbers_and_more_than_are_used():
    expected = run(layers=TWELVE[:5], steps=5)
    same(run(layers=np.array(TWELVE), steps=5), expected)
    same(run(layers=[np.int32(layer) for layer in TWELVE], steps=5), expected)
    assert expected.info["layers"] == TWELVE[:5]


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        (TWELVE[:11], ValueError, r"layers names 11 heads' layers, this run prunes 12\."),
        ([], ValueError, r"layers names 0 heads' layers, this run prunes 12\."),
        ([3, *TWELVE[1:]], ValueError, r"layers takes 1 heads from layer 3, which has 0\."),
        ([1, *TWELVE[1:]], ValueError, r"layers takes 5 heads from layer 1, which has 4\."),
        ([-1, *TWELVE[1:]], ValueError, r"a layer=-1 is out of range: it must be at least 0\."),
        ([2.0, *TWELVE[1:]], TypeError, r"a layer=2\.0 must be a whole number, it is of type float\."),
        ([True, *TWELVE[1:]], TypeError, r"a layer=True must be a whole number, it is of type bool\."),
    ],
)
def test_layers_that_have_not_the_heads_are_refused(layers, error, says, tmp_path):
    with pytest.raises(error, match=says):
        run(layers=layers, journal=tmp_path / "journal")
    assert not list(tmp_path.iterdir())


def test_layers_of_a_pruned_model_have_the_heads_that_are_left():
    pruned = model()
    gnorm.remove_heads(pruned, torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 0]]))
    assert run(pruned, layers=[2, 0, 0]).order()[0] == (2, 2)
    assert {head for _, head in run(pruned, layers=[0, 0, 2]).order()[:2]} == {0, 3}
    with pytest.raises(ValueError, match="layers takes 2 heads from layer 2, which has 1"):
        run(pruned, layers=[2, 2, 0])


@pytest.mark.parametrize("heads_per_step", [2, pytest.param(1, marks=pytest.mark.soak)])
def test_matched_random_goes_through_the_layers_of_greedy_gnorm(heads_per_step):
    given = model(layers=2)
    greedy = [layer for layer, _ in run(given, heads_per_step=heads_per_step).order()]
    options = {"method": "matched_random", "trials": 3, "heads_per_step": heads_per_step}
    matched = run(given, **options)
    orders = [matched.order(trial) for trial in range(3)]
    assert [[layer for layer, _ in order] for order in orders] == [greedy] * 3
    assert len({tuple(order) for order in orders}) == 3
    assert all(len(set(order)) == 8 for order in orders)
    same(matched, run(given, **options, layers=greedy))
    assert run(given, method="matched_random", layers=EIGHT).info["layers"] == EIGHT


def test_within_a_layer_matched_random_takes_heads_by_chance():
    """First heads of forty trials: each of the four heads of the layer is among them."""
    matched = run(method="matched_random", trials=40, steps=1, layers=[2])
    assert {matched.order(trial)[0] for trial in range(40)} == {(2, head) for head in range(4)}


# ---------------------------------------------------------------- journals


RESUMED = {
    "every third step, shared": ({"rescore_every": 3}, None),
    "every third step, separate": ({"rescore_every": 3}, EVALUATION),
    "once": ({"rescore_every": 0}, None),
    "layers": ({"layers": EIGHT, "rescore_every": 2}, None),
    "layers, three heads a step": ({"layers": EIGHT, "heads_per_step": 3}, EVALUATION),
    "matched random": ({"method": "matched_random", "trials": 2, "heads_per_step": 3}, None),
}


@pytest.mark.parametrize(("case", "every"), one_by_all(RESUMED, (False, True)))
def test_a_journal_that_is_cut_at_any_line_ends_in_the_same_table(case, every, tmp_path):
    """At every line of one run, at the second, one in the middle and the last of the others."""
    options, evaluation = RESUMED[case]
    path, given = tmp_path / "journal", model(layers=2)
    whole = run(given, evaluation, journal=path, **options)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole.table.drop_duplicates(["trial", "pruned_heads"]))
    for cut in range(1, len(lines)) if every else (2, len(lines) // 2, len(lines) - 1):
        path.write_bytes(b"".join(lines[:cut]))
        same(run(given, evaluation, journal=path, **options), whole)
        assert len(path.read_bytes().splitlines()) == len(lines)


@pytest.mark.parametrize(
    ("first", "second", "differs"),
    [
        ({"layers": EIGHT}, {"layers": EIGHT[::-1]}, "layers"),
        ({"layers": EIGHT}, {}, "layers"),
        ({}, {"layers": EIGHT}, "layers"),
        ({"rescore_every": 3}, {"rescore_every": 1}, "rescore_every"),
    ],
)
def test_the_journal_of_another_schedule_is_refused(first, second, differs, tmp_path):
    path, given = tmp_path / "journal", model(layers=2)
    run(given, journal=path, **first)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"journal of another run \({differs} differ\)"):
        run(given, journal=path, **second)
    assert path.read_bytes() == before
