"""The loop around the criteria: methods, steps, trials, seeds, journals."""

import json
import logging
import math

import pytest
import torch
from crosses import one_by_all
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, ragged_batches, tiny_model

import gnorm
from gnorm.journal import Journal
from gnorm.methods import METHODS, Method

SCORING, EVALUATION = ragged_batches(), ragged_batches(count=4, seed=7)


def run(model=None, **options):
    return gnorm.prune(model or tiny_model("bert"), SCORING, EVALUATION, progress=False, **options)


def test_the_five_methods_of_the_paper():
    assert list(METHODS) == [
        "greedy_gnorm",
        "inverse_greedy_gnorm",
        "attention_entropy",
        "inverse_attention_entropy",
        "random",
    ]


def test_the_table_has_the_intact_model_first_and_a_row_for_every_head():
    trajectory = run(method="greedy_gnorm")
    table = trajectory.table
    assert list(table.columns) == ["trial", "pruned_heads", "layer", "head", "score", "accuracy"]
    assert len(table) == 13
    assert table.iloc[0][["layer", "head", "score"]].isna().all()
    assert table.iloc[0].accuracy == gnorm.accuracy(tiny_model("bert"), EVALUATION)
    assert len(set(trajectory.order())) == 12
    assert trajectory.correct.shape == (13, 18)
    assert trajectory.correct.mean(1).tolist() == table.accuracy.tolist()
    model = tiny_model("bert")
    gnorm.remove_heads(model, trajectory.mask(7))
    assert gnorm.accuracy(model, EVALUATION) == table.accuracy[7]


@pytest.mark.parametrize(("family", "method"), one_by_all(FAMILIES, ("attention_entropy", "inverse_attention_entropy")))
def test_entropy_is_scored_once_and_gives_the_order(family, method):
    model, highest = tiny_model(family), method == "attention_entropy"
    scores = gnorm.attention_entropy(model, SCORING)
    trajectory = run(model, method=method)
    flat = scores.flatten().tolist()
    expected = sorted(range(len(flat)), key=lambda i: -flat[i] if highest else flat[i])
    assert trajectory.order() == [divmod(i, 4) for i in expected]
    assert trajectory.table.score[1:].tolist() == [flat[i] for i in expected]


def test_random_trials_are_seeded_and_differ():
    trajectory = run(method="random", trials=3, heads_per_step=5, seed=4)
    again = run(method="random", trials=3, heads_per_step=5, seed=4)
    assert trajectory.table.equals(again.table)
    orders = [trajectory.order(trial) for trial in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == [(i, j) for i in range(3) for j in range(4)] for order in orders)
    assert run(method="random", trials=1, seed=5).order() != run(method="random", trials=1, seed=4).order()
    assert run(method="random", trials=1, seed=4).order() == orders[0]  # a trial does not depend on how many there are


def test_heads_of_one_step_share_its_count_and_accuracy():
    table = run(method="random", heads_per_step=5).table
    assert table.pruned_heads.tolist() == [0] + [5] * 5 + [10] * 5 + [12] * 2
    assert table.groupby("pruned_heads").accuracy.nunique().eq(1).all()


def test_several_heads_a_step_are_the_lowest_of_one_scoring():
    model = tiny_model("bert")
    scores = gnorm.gnorm_scores(model, SCORING).flatten()
    lowest = [divmod(int(i), 4) for i in scores.argsort()[:5]]
    assert run(model, heads_per_step=5, steps=1).order() == lowest


def test_a_sixth_method_is_one_row(monkeypatch):
    monkeypatch.setitem(METHODS, "energy", Method("Activation energy", gnorm.activation_energy))
    scores = gnorm.activation_energy(tiny_model("bert"), SCORING).flatten()
    assert run(method="energy").order() == [divmod(int(i), 4) for i in scores.argsort()]


def test_steps_bound_the_run():
    assert run(steps=0).table.pruned_heads.tolist() == [0]
    assert run(steps=3).table.pruned_heads.tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------- journal


class Interrupted(Exception):
    pass


def interrupted_after(monkeypatch, steps):
    """Make the journal fail once ``steps`` steps are on the disk, as a kill would."""
    append = gnorm.journal.Journal.append
    left = [steps]

    def counting(self, step):
        append(self, step)
        left[0] -= 1
        if not left[0]:
            raise Interrupted

    monkeypatch.setattr(gnorm.journal.Journal, "append", counting)


@pytest.mark.parametrize(("method", "count", "steps"), one_by_all(METHODS, (3, 1), (4, 1)))
def test_a_run_that_was_cut_off_ends_in_the_same_table(method, count, steps, tmp_path, monkeypatch):
    options = {"method": method, "heads_per_step": count}
    if method == "random":
        options |= {"trials": 3, "heads_per_step": 4}
    whole = run(**options)
    journal = tmp_path / "journal"
    with monkeypatch.context() as patch:
        interrupted_after(patch, steps)
        with pytest.raises(Interrupted):
            run(journal=journal, **options)
    assert len(journal.read_text().splitlines()) == 1 + steps
    resumed = run(journal=journal, **options)
    assert resumed.table.equals(whole.table)
    assert (resumed.correct == whole.correct).all()
    assert resumed.info["ties"] == whole.info["ties"]
    assert resumed.info["smallest_gap"] == whole.info["smallest_gap"]


def test_a_finished_journal_is_read_and_nothing_is_run(tmp_path, monkeypatch):
    first = run(journal=tmp_path / "journal")
    monkeypatch.setattr("gnorm.pruning.text_values_of", None)  # calling it would fail
    monkeypatch.setitem(METHODS, "greedy_gnorm", Method("Greedy-Gnorm", None, rescore_every=1))
    assert run(journal=tmp_path / "journal").table.equals(first.table)


def test_a_torn_last_line_is_dropped_and_said(tmp_path, caplog):
    journal = tmp_path / "journal"
    whole = run(journal=journal)
    journal.write_bytes(journal.read_bytes()[:-30])
    with caplog.at_level(logging.WARNING):
        assert run(journal=journal).table.equals(whole.table)
    assert "cut off" in caplog.text
    assert run(journal=journal).table.equals(whole.table)


def relabelled(batches):
    return [batch | {"labels": batch["labels"].roll(1)} for batch in batches]


def versions_of(monkeypatch, name):
    """The same run under another version of a package."""
    monkeypatch.setattr(f"gnorm.pruning.{name}.__version__", "9.9")
    return run


OTHER_RUNS = {
    "seed": lambda path, _: run(journal=path, seed=1),
    "method": lambda path, _: run(journal=path, method="inverse_greedy_gnorm"),
    "steps": lambda path, _: run(journal=path, steps=2),
    "heads_per_step, steps": lambda path, _: run(journal=path, heads_per_step=2),
    "model": lambda path, _: run(tiny_model("bert", seed=9), journal=path),
    "dtype, model": lambda path, _: run(tiny_model("bert").double(), journal=path),
    "scoring": lambda path, _: gnorm.prune(
        tiny_model("bert"), ragged_batches(seed=3), EVALUATION, journal=path, progress=False
    ),
    "evaluation": lambda path, _: gnorm.prune(
        tiny_model("bert"), SCORING, relabelled(EVALUATION), journal=path, progress=False
    ),
    "versions": lambda path, patch: versions_of(patch, "torch")(journal=path),
}


@pytest.fixture(scope="module")
def journalled(tmp_path_factory):
    """The journal of a finished run."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    run(journal=path)
    return path.read_bytes()


@pytest.mark.parametrize("differs", OTHER_RUNS)
def test_the_journal_of_another_run_is_refused(differs, journalled, tmp_path, monkeypatch):
    (tmp_path / "journal").write_bytes(before := journalled)
    with pytest.raises(ValueError, match=rf"journal of another run \({differs} differ\): .*delete it"):
        OTHER_RUNS[differs](tmp_path / "journal", monkeypatch)
    assert (tmp_path / "journal").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_the_header_says_what_the_run_depends_on(tmp_path):
    run(journal=tmp_path / "journal", steps=1)
    header = json.loads((tmp_path / "journal").read_text().splitlines()[0])
    assert {"model", "scoring", "evaluation", "method", "seed", "dtype", "matmul_precision", "device"} <= header.keys()
    assert header["versions"].keys() == {"python", "torch", "transformers"}
    assert header["journal"] == 1


def test_a_journal_without_a_finished_step_is_not_there_and_the_lock_goes(tmp_path):
    with Journal(tmp_path / "journal", {"run": 1}):
        assert [path.name for path in tmp_path.iterdir()] == ["journal.lock"]
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_dead_process_is_no_lock(tmp_path):
    (tmp_path / "journal.lock").touch()  # what a killed process leaves
    assert run(journal=tmp_path / "journal", steps=1).table.pruned_heads.max() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "gone": st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.floats(allow_nan=False)), max_size=3),
            "gap": st.floats(0, allow_nan=False),
            "correct": st.text("0123456789abcdef", max_size=8),
        }
    ),
    max_size=6,
)


def recorded(path, steps=()):
    """The content of a journal of one and the same run; ``steps`` are added."""
    with Journal(path, {"seed": 0, "model": "köpfe"}) as journal:
        found = journal.steps
        for step in steps:
            journal.append(step)
    return found


def as_json(steps):
    return json.loads(json.dumps(list(steps)))


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, more=STEPS)
def test_a_journal_gives_back_what_it_was_given(steps, more, tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "journal"
    recorded(path, steps)
    assert recorded(path, more) == as_json(steps)
    assert recorded(path) == as_json([*steps, *more])


def written(tmp_path_factory, steps):
    """A journal of these steps, and its bytes."""
    path = tmp_path_factory.mktemp("journal") / "journal"
    recorded(path, steps)
    return path, path.read_bytes()


@settings(max_examples=80, deadline=None)
@given(steps=STEPS.filter(len), data=st.data())
def test_a_journal_cut_at_any_byte_goes_on_from_the_last_whole_line(steps, data, tmp_path_factory):
    path, whole = written(tmp_path_factory, steps)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    path.write_bytes(cut)
    left = max(0, cut.count(b"\n") - 1)  # a line of them is the header
    assert recorded(path, as_json(steps)[left:]) == as_json(steps)[:left]
    assert path.read_bytes() == whole


@settings(max_examples=150, deadline=None)
@given(steps=STEPS.filter(len), data=st.data())
def test_any_altered_byte_of_a_journal_is_noticed(steps, data, tmp_path_factory):
    path, whole = written(tmp_path_factory, steps)
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    path.write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
    if at == len(whole) - 1:  # the last line is not ended any more: it counts as cut off
        assert recorded(path) == as_json(steps)[:-1]
    else:
        with pytest.raises(ValueError, match=r"delete the file|update gnorm"):
            recorded(path)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda lines: [*lines[:3], lines[3].replace('"trial": 0', '"trial": 7'), *lines[4:]], "line 4 .* was altered"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4 .* was altered"),
        (lambda lines: [*lines[:2], "nonsense", *lines[2:]], "line 3 .* is not a journal line"),
        (lambda lines: lines[1:], "is of journal format None"),
        (lambda lines: [lines[0].replace('"journal": 1', '"journal": 2'), *lines[1:]], "is of journal format 2"),
    ],
)
def test_a_damaged_journal_is_refused(damage, complaint, journalled, tmp_path):
    journal = tmp_path / "journal"
    journal.write_text("\n".join(damage(journalled.decode().splitlines())) + "\n")
    with pytest.raises(ValueError, match=complaint):
        run(journal=journal)


def test_scores_of_zero_are_ties_that_a_journal_can_hold(tmp_path):
    """Logits of zero have no gradient: every score is -inf, every step a tie, and the order that of the indices.

    A model whose layers all have heads is refused then; one that lost a layer's heads is not.
    """
    model = tiny_model("bert")
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
    with pytest.raises(ValueError, match="no gradient flows through any head of BertForSequenceClassification"):
        run(model)
    gnorm.remove_heads(model, [[1] * 4, [1] * 4, [0] * 4])
    first = run(model, journal=tmp_path / "journal")
    assert first.table.score[1:].tolist() == [-math.inf] * 8
    assert first.info["ties"] == 7
    assert first.order() == [(i, j) for i in range(2) for j in range(4)]
    assert run(model, journal=tmp_path / "journal").table.equals(first.table)


@pytest.mark.parametrize("content", [b"my notes", b"\x17\xae\x0b", b'{"journal'])
def test_a_file_that_is_no_journal_is_not_written_into(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    if content[:1] == b"{":  # a journal cut off in its first line
        gnorm.prune(tiny_model("bert"), ragged_batches(1), steps=0, journal=path, progress=False)
        return
    with pytest.raises(ValueError, match=r"notes.txt is not a journal: name another file"):
        gnorm.prune(tiny_model("bert"), ragged_batches(1), steps=0, journal=path, progress=False)
    assert path.read_bytes() == content


def test_a_journal_of_the_same_weights_in_another_model_is_refused(tmp_path):
    for family in ({"hidden_act": "relu"}, {"num_attention_heads": 8}):
        path = tmp_path / f"{next(iter(family))}.jsonl"
        gnorm.prune(tiny_model("bert", **family), ragged_batches(1), steps=1, journal=path, progress=False)
        with pytest.raises(ValueError, match=r"journal of another run \(config differ\)"):
            gnorm.prune(tiny_model("bert"), ragged_batches(1), steps=1, journal=path, progress=False)


def test_nothing_is_removed_from_a_masked_model(tmp_path):
    model, mask = tiny_model("bert"), [[1, 0, 1, 1]] * 3
    with gnorm.masked(model, mask):
        for remove in (
            lambda: gnorm.remove_heads(model, mask),
            lambda: gnorm.prune(model, ragged_batches(1), progress=False),
        ):
            with pytest.raises(ValueError, match="under gnorm.masked: leave that block first"):
                remove()
    gnorm.remove_heads(model, mask)
