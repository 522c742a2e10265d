"""The command ``gnorm``: what it prints and leaves, its exit codes, and going on after an interruption."""

import copy
import dataclasses
import os
import platform
import re
import shutil
import signal
from importlib.metadata import entry_points
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from precision import close
from tiny import ragged_batches, tiny_model

import gnorm
from experiments.data import tasks
from gnorm import shipping
from gnorm.journal import Journal
from gnorm.methods import find_method
from gnorm.metrics import correct_texts
from gnorm.shipping.command import main

pytestmark = pytest.mark.usefixtures("quick_costs")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint and a file of texts."""
    home, task = tmp_path_factory.mktemp("home"), tasks.load("smoke", "bert", device="cpu", progress=False)
    task.model.save_pretrained(home / "ck")
    task.tokenizer.save_pretrained(home / "ck")
    task.splits["test"].to_pandas().to_csv(home / "texts.csv", index=False)
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    for name in ("ck", "texts.csv"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(capsys):
    return capsys.readouterr().err.split("gnorm: ")[-1]


def test_prune_does_what_the_functions_do_and_says_it_in_five_lines(home, capsys):
    assert main(["prune", "ck", "texts.csv", "small", "--budget", "0.05"]) == 0
    own = shipping.load("ck", "texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing, shipping.RECOMMENDED, progress=False)
    pruned = shipping.choose(own, run, 0.05)
    model = gnorm.load_pruned("small")
    assert torch.equal(gnorm.head_mask_of(model), run.mask(pruned))
    before, after = gnorm.accuracy(own.model, own.testing), gnorm.accuracy(model, own.testing)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    title = find_method(shipping.RECOMMENDED).title
    clause = "as many went as keep a promise: " + shipping.Promise(0.05).says(run.metric)
    assert lines[0] == f"ck: {pruned} of 8 heads removed by {title}; {clause}."
    assert lines[1].startswith(
        f"accuracy on 67 texts that nothing was chosen by: {before:.4f} before, {after:.4f} after"
    )
    total = sum(p.numel() for p in own.model.parameters())
    left = sum(p.numel() for p in model.parameters())
    assert lines[2] == f"parameters: {total:,} before, {left:,} after ({100 * left / total:.0f} %)."
    assert (
        lines[4] == f"the run ended at step {pruned + 1}, where the answer was known; --all goes on to the last head."
    )
    assert lines[5] == 'saved in small, with its tokenizer and a model card; gnorm.load_pruned("small") loads it.'
    assert not (home / "small.journal.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "pruned"), [(["--heads", "3"], 3), (["--parameters", "0.93"], 3), (["--parameters", "1"], 0)]
)
def test_the_number_of_heads_follows_from_what_is_asked(home, capsys, arguments, pruned):
    assert main(["prune", "ck", "texts.csv", "small", "--method", "weight_magnitude", *arguments]) == 0
    assert int((~gnorm.head_mask_of(gnorm.load_pruned("small"))).sum()) == pruned


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["prune", "none", "texts.csv", "small"], "none has no config.json"),
        (["prune", "ck", "none.csv", "small"], "none.csv is not there"),
        (["prune", "ck", "texts.csv", "ck"], "ck exists already and holds"),
        (["prune", "ck", "texts.csv", "small", "--method", "best"], "method 'best' is not known"),
        (["prune", "ck", "texts.csv", "small", "--metric", "mse"], "mse needs a model that gives each text a number"),
        (["prune", "ck", "texts.csv", "small", "--heads", "9"], "--heads 9 is out of range: 8 heads"),
        (["prune", "ck", "texts.csv", "small"], "budget of at least 0.034, or --confidence none."),
        (
            ["prune", "ck", "texts.csv", "small", "--budget", "0.05", "--recover", "1"],
            "32 texts to choose by are too few",
        ),
        (
            ["prune", "ck", "texts.csv", "small", "--units", "heads,layers"],
            "--units layers is not known: name",
        ),
        (["prune", "ck", "texts.csv", "small", "--units", "neurons", "--heads", "3"], "--heads is for heads alone"),
        (["prune", "ck", "texts.csv", "small", "--recover", "-1"], "--recover=-1 is out of range"),
        (["prune", "ck", "texts.csv", "small", "--confidence", "1"], "confidence=1.0 is out of range"),
        (["prune", "ck", "texts.csv", "small", "--budget", "1.5"], "1.5 points of it are 0.015."),
        (
            ["prune", "ck", "texts.csv", "small", "--budget", "-1", "--confidence", "none"],
            "budget=-1.0 is out of range",
        ),
        (["prune", "ck", "texts.csv", "small", "--latency", "2"], "latency=2 is out of range"),
        (["prune", "ck", "texts.csv", "small", "--metric", "matthews", "--budget", "0.02"], "one class has"),
        (["prune", "ck", "texts.csv", "ck", "--overwrite"], "ck holds"),
        (["prune", "ck", "texts.csv", ".", "--overwrite"], "holds the working directory"),
        (["score", "ck", "texts.csv", "--method", "best"], "method 'best' is not known"),
        (["cost", "none"], "none has no config.json"),
    ],
)
def test_what_will_not_do_is_said_in_a_sentence_before_anything_is_pruned(home, capsys, arguments, complaint):
    assert main(arguments) == 2
    error = error_of(capsys)
    assert complaint in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in home.iterdir()) == ["ck", "texts.csv"]


def test_a_disk_that_cannot_hold_the_model_is_refused_before_the_run(home, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10_000))
    assert main(["prune", "ck", "texts.csv", "in/small"]) == 2
    assert re.search(r"in/small may need \d+ MB, and its disk has 0 MB left: make room, or give", error_of(capsys))
    assert sorted(path.name for path in home.iterdir()) == ["ck", "texts.csv"]


def test_what_the_model_is_made_of_is_never_replaced(home, made, capsys):
    inside = home / "models"
    inside.mkdir()
    for name in ("ck", "texts.csv"):
        (home / name).unlink()
    shutil.copytree(made / "ck", inside / "ck")
    shutil.copy(made / "texts.csv", inside)
    files = {path: path.read_bytes() for path in inside.rglob("*") if path.is_file()}
    for out in ("models", "models/ck", "models/../models"):
        assert main(["prune", "models/ck", "models/texts.csv", out, "--heads", "1", "--overwrite"]) == 2
        assert f"{out} holds {inside / 'ck'}, which is read and never replaced: give another name." in error_of(capsys)
    own = shipping.load("models/ck", "models/texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing, "weight_magnitude", steps=1, progress=False)
    with pytest.raises(FileExistsError, match="which is read and never replaced"):
        shipping.ship(own, run, "models", 1, by="heads", overwrite=True)
    assert {path: path.read_bytes() for path in inside.rglob("*") if path.is_file()} == files


def test_a_pruned_model_is_measured_beside_itself_and_one_without_heads_is_refused(home, capsys):
    own = shipping.load("ck", "texts.csv")
    for name, heads in (("half", 4), ("bare", 0)):
        model = copy.deepcopy(own.model)
        gnorm.remove_heads(model, torch.arange(8).view(2, 4) < heads)
        gnorm.save_pruned(model, name, own.tokenizer)
    assert main(["prune", "half", "texts.csv", "small", "--heads", "1"]) == 0
    before, after = (sum(p.numel() for p in gnorm.load_pruned(name).parameters()) for name in ("half", "small"))
    assert f"parameters: {before:,} before, {after:,} after" in capsys.readouterr().out
    assert main(["prune", "bare", "texts.csv", "less", "--budget", "0.5"]) == 2
    assert "bare has no head left to remove" in error_of(capsys)


def test_a_confidence_that_is_no_number_is_refused_in_words(home, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["prune", "ck", "texts.csv", "small", "--confidence", "sure"])
    assert stopped.value.code == 2
    assert "'sure' is neither a number such as 0.9 nor none" in capsys.readouterr().err
    assert (
        main(["prune", "ck", "texts.csv", "small", "--confidence", "None", "--units", "heads, neurons", "--all"]) == 0
    )


def test_a_share_that_is_not_reached_keeps_the_steps(home, capsys):
    command = ["prune", "ck", "texts.csv", "small", "--method", "weight_magnitude"]
    assert main([*command, "--parameters", "0.1"]) == 1
    assert "more than 10%: give a larger share. Finished steps are kept in small.journal.jsonl" in error_of(capsys)
    assert main([*command, "--parameters", "0.9"]) == 2
    assert "small.journal.jsonl holds the steps of an earlier run: add --resume to go on" in error_of(capsys)
    assert main([*command, "--parameters", "0.9", "--resume"]) == 0
    assert (home / "small" / "config.json").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak)]
)
def test_a_run_that_was_stopped_goes_on(home, capsys, monkeypatch, number, code):
    calls = []

    def stops(model, batches):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return gnorm.gnorm_scores(model, batches)

    command = ["prune", "ck", "texts.csv", "small", "--method", "stops", "--budget", "0.3", "--all"]
    monkeypatch.setitem(gnorm.MORE_METHODS, "stops", gnorm.Method("Stops", stops, rescore_every=1))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    try:
        assert main(command) == code
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert signal.getsignal(signal.SIGTERM) == before[1]
    assert error_of(capsys) == "stopped; the same command with --resume goes on from here.\n"
    assert main([*command, "--resume"]) == 0
    assert len(calls) == 4 + 8 - 3  # the three steps that were finished are not scored again
    assert main(["prune", "ck", "texts.csv", "whole", "--budget", "0.3", "--method", "greedy_gnorm"]) == 0
    resumed, whole = (gnorm.head_mask_of(gnorm.load_pruned(folder)) for folder in ("small", "whole"))
    assert torch.equal(resumed, whole)


@pytest.mark.parametrize(
    ("out", "folder"),
    [
        (".", "top/here"),
        ("~/small", "top/small"),
        ("../link", "top/link"),
        pytest.param("small/", "top/here/small", marks=pytest.mark.soak),
        pytest.param("../empty/../here/.", "top/here", marks=pytest.mark.soak),
        pytest.param("new/below", "top/here/new/below", marks=pytest.mark.soak),
    ],
)
def test_the_journal_lies_beside_the_folder_however_that_is_named(home, monkeypatch, out, folder):
    for name in ("here", "empty"):
        (home / "top" / name).mkdir(parents=True)
    (home / "top" / "link").symlink_to(home / "top" / "empty")
    monkeypatch.chdir(home / "top" / "here")
    monkeypatch.setenv("HOME", str(home / "top"))
    command = ["prune", "../../ck", "../../texts.csv", out, "--method", "weight_magnitude"]
    folder, journal = home / folder, home / f"{folder}.journal.jsonl"
    assert main([*command, "--parameters", "0.1"]) == 1
    assert journal.is_file()
    assert not folder.exists() or not any(folder.iterdir())
    assert main([*command, "--parameters", "0.9", "--resume"]) == 0
    assert (folder / "config.json").is_file()
    assert not journal.exists()


def test_a_checkpoint_that_is_the_working_directory_has_a_name(home, monkeypatch):
    monkeypatch.chdir(home / "ck")
    assert shipping.load(".", "../texts.csv").checkpoint == shipping.load("../ck/", "../texts.csv").checkpoint == "ck"


def test_a_journal_of_other_versions_is_kept_and_nothing_is_promised(home, capsys, monkeypatch):
    command = ["prune", "ck", "texts.csv", "small", "--method", "weight_magnitude"]
    assert main([*command, "--parameters", "0.1"]) == 1
    before = (home / "small.journal.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "python_version", lambda: "9.1")
        assert main([*command, "--parameters", "0.9", "--resume"]) == 2
    said = error_of(capsys)
    now = platform.python_version()
    assert f"(versions differ): install the versions that it was written with (python {now}, now 9.1)" in said
    assert "goes on" not in said
    assert (home / "small.journal.jsonl").read_bytes() == before
    assert main([*command, "--parameters", "0.9", "--resume"]) == 0


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_second_run_beside_one_that_is_at_work_is_refused_in_a_sentence(home, capsys, monkeypatch, more):
    monkeypatch.setattr("gnorm.journal.LOCK_SECONDS", 0.1)
    with Journal(home / "small.journal.jsonl", {}):
        assert main(["prune", "ck", "texts.csv", "small", "--heads", "8", "--method", "weight_magnitude", *more]) == 1
    assert error_of(capsys) == "another run is writing small.journal.jsonl: wait for it, or stop it.\n"


def test_the_same_mistake_again_is_said_without_a_promise(home, capsys, monkeypatch):
    def fails(model, batches):
        if len(gnorm.head_mask_of(model)[gnorm.head_mask_of(model)]) < 7:
            raise ValueError("no more scores.")
        return gnorm.gnorm_scores(model, batches)

    monkeypatch.setitem(gnorm.MORE_METHODS, "fails", gnorm.Method("Fails", fails, rescore_every=1))
    command = ["prune", "ck", "texts.csv", "small", "--budget", "0.1", "--method", "fails"]
    assert main(command) == 1
    assert error_of(capsys).startswith("no more scores. Finished steps are kept in small.journal.jsonl; the same")
    assert main([*command, "--resume"]) == 2
    assert error_of(capsys) == "no more scores.\n"


def test_what_a_message_advises_can_be_done_with_the_command(home, capsys):
    table = pd.read_csv("texts.csv")
    model = tasks.load("smoke", "bert", device="cpu", progress=False).model
    model.config.id2label = dict(enumerate(["1", "0", *"23456789"][: model.config.num_labels]))
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    model.save_pretrained("other")
    shipping.load("ck", "texts.csv").tokenizer.save_pretrained("other")
    numbers = {name: i for i, name in enumerate(sorted(set(table.label)))}
    table.assign(label=table.label.map(numbers)).to_csv("numbers.csv", index=False)
    command = ["score", "other", "numbers.csv", "--method", "weight_magnitude"]
    assert main(command) == 2
    assert error_of(capsys).endswith("add --labels names or --labels numbers.\n")
    assert main([*command, "--labels", "numbers"]) == 0
    assert main(["prune", "ck", "texts.csv", "ck"]) == 2
    assert "add --overwrite" in error_of(capsys)


def test_score_prints_the_table_and_a_map(home, capsys):
    model = gnorm.load_pruned(gnorm.save_pruned(_without_a_head(), "less"))
    own = shipping.load("ck", "texts.csv")
    own.tokenizer.save_pretrained("less")
    assert main(["score", "less", "texts.csv", "--method", "weight_magnitude"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = find_method("weight_magnitude").scores(model, own.scoring, torch.Generator())
    assert lines[0] == "Weight magnitude: scores by layer and head, the lowest would go first"
    cells = [line.split()[2:] for line in lines[1:3]]
    assert cells[0][1] == "·"
    assert [float(c) for row in cells for c in row if c != "·"] == pytest.approx(
        scores[scores.isfinite()].tolist(), rel=1e-3
    )
    shades = [line.split()[2:] for line in lines[-2:]]
    first = divmod(int(scores.masked_fill(scores.isinf(), torch.inf).argmin()), 4)
    last = divmod(int(scores.argmax()), 4)
    assert shades[first[0]][first[1]] == "░░"
    assert shades[last[0]][last[1]] == "██"
    assert shades[0][1] == "··"


def _without_a_head():
    model = tasks.load("smoke", "bert", device="cpu", progress=False).model
    gnorm.remove_heads(model, [[1, 0, 1, 1], [1, 1, 1, 1]])
    return model


def test_cost_methods_and_families_are_printed(home, capsys):
    assert main(["cost", "ck"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["batch", "length", "parameters"]
    assert len(table) == 4
    assert main(["methods"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [*gnorm.METHODS, *gnorm.MORE_METHODS]
    assert main(["families"]) == 0
    assert capsys.readouterr().out.split() == list(gnorm.heads.FAMILIES)


def test_the_command_is_installed_with_the_package():
    assert entry_points(group="console_scripts", name="gnorm")["gnorm"].value == "gnorm.shipping.command:main"


@pytest.fixture(scope="module")
def own(made):
    return shipping.load(made / "ck", made / "texts.csv")


@pytest.fixture(scope="module")
def run(own):
    return gnorm.prune(own.model, own.scoring, own.choosing, "weight_magnitude", progress=False)


def test_costs_fall_along_the_run_and_budgets_are_met_by_the_fewest_heads(own, run):
    table = shipping.along(own, run)
    assert list(table.columns) == ["pruned_heads", "accuracy", "parameters", "operations", "latency"]
    assert table.pruned_heads.tolist() == list(range(9))
    pd.testing.assert_series_equal(table.accuracy, gnorm.trajectory.curve(run), check_index=False, check_names=False)
    intact = sum(p.numel() for p in own.model.parameters())
    a_head = 3 * (32 * 8 + 8) + 8 * 32  # rows of query, key and value with their biases, columns of the output
    close(table.parameters, [1 - n * a_head / intact for n in range(9)], torch.float64)
    assert (table.operations.diff().dropna() < 0).all()
    assert table.operations[0] == 1
    for cost in ("parameters", "operations"):
        for pruned in (0, 1, 5, 8):
            assert shipping.choose(own, run, table[cost][pruned], cost) == pruned
        assert shipping.choose(own, run, (table[cost][2] + table[cost][3]) / 2, cost) == 3
    assert 0 <= shipping.choose(own, run, 0.95, "latency") <= 8


@pytest.mark.parametrize(
    ("budget", "by", "complaint"),
    [
        (0.5, "speed", "by='speed' is not known: choose one of metric, heads, parameters, operations, latency"),
        (9, "heads", "the run has no state with 9 heads removed: give one of 0 to 8"),
        (2.5, "heads", "no state with 2.5 heads"),
        (80, "parameters", "parameters=80 is out of range: it is a share of the intact model's, 0.8 for 80 %"),
        (0.01, "operations", "with all heads removed the model still has .* of the operations, more than 1%"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(own, run, budget, by, complaint):
    with pytest.raises(ValueError, match=complaint):
        shipping.choose(own, run, budget, by)


def test_the_card_says_what_the_number_was_chosen_by(own, run, tmp_path, monkeypatch):
    folder = shipping.ship(own, run, tmp_path / "small", 0.9, by="parameters")
    text = " ".join((folder / "README.md").read_text("utf-8").split())
    assert "as few went as bring the parameters down to 0.9 of the intact model's." in text


def test_recovery_learns_labels_and_the_logits_of_a_teacher(own, run):
    class Steps:  # of the accuracy and of the distance to the intact model's logits
        def __init__(self, model):
            self.accuracy = gnorm.accuracy(model, own.testing)
            pairs = [(model(**b).logits, own.model(**b).logits) for b in own.testing]
            self.apart = sum((a - b).square().sum() for a, b in pairs).item()

    with torch.no_grad():
        pruned = gnorm.shipping.choosing.pruned_copy(own, run, 7)
        before = Steps(pruned)
    state, texts = torch.get_rng_state(), [*own.scoring, *own.choosing]
    shipping.recover(pruned, texts, teacher=own.model, epochs=6, lr=5e-3, progress=False)
    with torch.no_grad():
        after = Steps(pruned)
    assert after.accuracy > before.accuracy + 0.1
    assert after.apart < before.apart
    assert not pruned.training
    assert torch.equal(state, torch.get_rng_state())
    assert int((~gnorm.head_mask_of(pruned)).sum()) == 7


def test_one_logit_that_is_a_probability_learns_by_binary_cross_entropy():
    """The squared error of the logit would pull it towards 0 and 1."""
    config = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}
    model, texts = tiny_model("bert", num_labels=1, **config), ragged_batches(4)
    batches = [batch | {"labels": (batch["input_ids"][:, 0] > 60).float()} for batch in texts]
    shipping.recover(model, batches, epochs=30, lr=3e-3, progress=False)
    y = torch.cat([batch["labels"] for batch in batches])
    for teacher in (None, model):
        further = copy.deepcopy(model)
        shipping.recover(further, batches, teacher, epochs=5, lr=1e-3, progress=False)
        with torch.no_grad():
            z = torch.cat([further(b["input_ids"], b["attention_mask"]).logits[:, 0] for b in batches])
        assert gnorm.accuracy(further, batches) == 1
        assert ((2 * y - 1) * z).min() > 1.5


def test_recovery_refuses_what_it_cannot_train_on(own):
    model = tiny_model("bert")
    batches = [{name: t for name, t in own.scoring[0].items() if name != "labels"}]
    with pytest.raises(ValueError, match="batch 0 has no `labels`: training needs"):
        shipping.recover(own.model, batches)
    with pytest.raises(ValueError, match="batch 0 has token ids from .*, the model knows 0 to 119"):
        shipping.recover(model, own.scoring)
    with pytest.raises(ValueError, match="lr=0 is out of range"):
        shipping.recover(model, own.scoring, lr=0)


def test_the_card_tells_before_pruned_and_trained(own, run, tmp_path, monkeypatch):
    pruned = shipping.smaller_model(own, run, 7, by="heads")
    better = pruned.recovered([*own.scoring, *own.choosing], distil=True, epochs=4, lr=5e-3, progress=False)
    values = [gnorm.accuracy(model, own.testing) for model in (own.model, pruned.model, better.model)]
    assert values[2] > values[1]
    assert f"{values[1]:.4f} after, {values[2]:.4f} trained further (change {values[2] - values[0]:+.4f}" in (
        better.summary()
    )
    folder = better.save(tmp_path / "better")
    text = (folder / "README.md").read_text("utf-8")
    rows = [
        line.split(" | ")[:3] for line in text.splitlines() if line.startswith(("| intact", "| pruned", "| change"))
    ]
    expected = ["| intact", "| pruned", "| pruned, then trained", "| change"]
    assert rows == [
        [name, "67", f"{value:{sign}.4f}"]
        for name, value, sign in zip(expected, [*values, values[2] - values[0]], ["", "", "", "+"], strict=True)
    ]
    assert "4 epochs on 133 texts, none of those below; half of the loss was the\ndistance" in text
    assert gnorm.accuracy(gnorm.load_pruned(folder), own.testing) == values[2]


def test_what_is_left_is_trained_as_far_as_the_promise_holds(made, home, capsys):
    frame = tasks.load("smoke", "bert", device="cpu", progress=False).splits["train"].to_pandas()[:700]
    frame.to_csv("more.csv", index=False)
    assert main(["prune", "ck", "more.csv", "small", "--budget", "0.15", "--recover", "2"]) == 0
    own, promise = shipping.load("ck", "more.csv"), shipping.Promise(0.15)
    run = gnorm.prune(own.model, own.scoring, own.choosing, shipping.RECOMMENDED, progress=False)
    tested = own.choosing[1::2]
    labels = torch.cat([batch["labels"] for batch in tested]).numpy()
    before = correct_texts(own.model, tested).numpy()
    texts = torch.cat([torch.arange(len(b["labels"])) * 0 + i for i, b in enumerate(own.choosing)])
    mine = (texts % 2 == 0).numpy()
    untrained = promise.last_kept(dataclasses.replace(run, text_values=run.text_values[:, mine]))
    kept = {}
    for pruned in range(untrained, 9):
        model = copy.deepcopy(own.model)
        gnorm.remove_heads(model, run.mask(pruned))
        shipping.recover(model, [*own.scoring, *own.choosing[::2]], own.model, epochs=2, progress=False)
        if not promise.holds(run.metric, before, correct_texts(model, tested).numpy(), labels):
            break
        kept[pruned] = model
    pruned = max(kept)
    saved = gnorm.load_pruned("small")
    assert torch.equal(gnorm.head_mask_of(saved), run.mask(pruned))
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, kept[pruned].state_dict()[name])
    after, out = gnorm.accuracy(saved, own.testing), capsys.readouterr().out
    assert f"{after:.4f} trained further" in out
    shown = promise.verdict(
        run.metric,
        correct_texts(own.model, own.testing).numpy(),
        correct_texts(saved, own.testing).numpy(),
        labels,
    )
    assert f"of the trained model {shown}" in out
    assert shown.endswith(
        "show that with 90 % confidence the accuracy on texts like these falls by less than 15 points"
    )


def test_neurons_go_beside_heads_where_that_is_asked(home, capsys):
    command = ["prune", "ck", "texts.csv", "small", "--units", "heads,neurons"]
    assert main([*command, "--budget", "0.1"]) == 0
    own, promise = shipping.load("ck", "texts.csv"), shipping.Promise(0.1)
    run = shipping.prune_units(own.model, own.scoring, own.choosing, progress=False)
    pruned = promise.last_kept(run)
    mask, model = run.mask(pruned), gnorm.load_pruned("small")
    heads, neurons = ((run.start & ~mask)[:, part] for part in (slice(0, 4), slice(4, None)))
    assert torch.equal(gnorm.head_mask_of(model), mask[:, :4])
    assert model.config.feed_forward_sizes == mask[:, 4:].sum(1).tolist()
    assert 0 < neurons.sum() < neurons.numel()
    out, card = capsys.readouterr().out, (home / "small" / "README.md").read_text("utf-8")
    gone = f"{heads.sum()} of 8 heads and {neurons.sum()} of {neurons.numel()} feed-forward neurons removed"
    assert out.startswith(f"ck: {gone} by Head importance (Michel); as many went as keep a promise: {promise}")
    left = len(run.table.pruned_heads[run.table.pruned_heads <= pruned]) - 1
    assert f"the run ended at step {left + 1}, where" in out
    first, second = mask[:, 4:].sum(1).tolist()
    assert (
        f"| heads kept | {' | '.join(map(str, mask[:, :4].sum(1).tolist()))} |\n| neurons kept | {first} | {second} |"
        in card
    )
    assert "for each operation saved, a head or a block of neurons at a time" in card
    assert main([*command, "--overwrite", "--parameters", "0.8"]) == 0
    smaller = gnorm.load_pruned("small")
    counts = [sum(p.numel() for p in each.parameters()) for each in (smaller, own.model)]
    assert counts[0] <= 0.8 * counts[1]
    with pytest.raises(ValueError, match="heads=3 is for heads alone, and neurons went too"):
        shipping.choose(own, run, 3, "heads")
