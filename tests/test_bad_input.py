"""Bad input is refused: by the documented exception, in one sentence that names the thing, with nothing written
and no hook left behind. What is odd but can work, works."""

import re
import shutil

import pytest
import tiny
import torch
from crosses import one_by_all
from tiny import ragged_batches
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, CodeGenConfig, CodeGenForCausalLM

import gnorm
import run_all
from experiments import runs
from experiments.data import tasks
from experiments.files.errors import UsageError
from experiments.pipeline.execution import check_parameters
from experiments.runs import results
from gnorm.journal import InUseError, Journal
from gnorm.methods import METHODS, Method

MADE = []  # every model of the case at hand


def model(family="bert", **overrides):
    MADE.append(tiny.tiny_model(family, **overrides))
    return MADE[-1]


def damaged(name="classifier.weight", value=torch.nan):
    """A model with one weight that is not finite."""
    broken = model()
    with torch.no_grad():
        broken.get_parameter(name).view(-1)[0] = value
    return broken


def prune(*arguments, **options):
    """With a journal, so that a journal left behind is seen."""
    return gnorm.prune(*arguments, **{"journal": "journal.jsonl", "progress": False} | options)


def batch(texts=2, tokens=5, **changes):
    """One batch of whole texts; a change to None takes the tensor out."""
    content = {
        "input_ids": torch.full((texts, tokens), 7),
        "attention_mask": torch.ones(texts, tokens, dtype=torch.long),
        "labels": torch.zeros(texts, dtype=torch.long),
    }
    return {name: tensor for name, tensor in (content | changes).items() if tensor is not None}


def of_zeros(*shape):
    return torch.zeros(*shape, dtype=torch.long)


GOOD = ragged_batches()
ONES = torch.ones(3, 4)


def split_over_devices():
    half = model()
    half.classifier.to("meta")
    return half


def decoder():
    MADE.append(CodeGenForCausalLM(CodeGenConfig(vocab_size=120, n_layer=1, n_embd=8, n_head=2, rotary_dim=4)).eval())
    return MADE[-1]


def built_as(auto, **overrides):
    MADE.append(auto.from_config(AutoConfig.for_model("bert", **tiny.SIZES, **overrides)).eval())
    return MADE[-1]


def with_criterion(criterion):
    METHODS["own"] = Method("Own", criterion)
    try:
        prune(model(), GOOD, method="own", journal=None)  # it would hold the intact model, which is measured first
    finally:
        del METHODS["own"]


def within_mask(mask):
    with gnorm.masked(model(), mask):
        pytest.fail("the mask was taken")


BATCHES = {
    "no batches": ([], "there are no batches"),
    "a batch with nothing in it": ([{}], "batch 0 is empty"),
    "a batch of no texts": ([*GOOD, batch(0)], "batch 3 is empty"),
    "one batch instead of a list": (GOOD[0], TypeError, "batch 0 is of type str: give a sequence of mappings"),
    "a list of texts": (["a text"], TypeError, "batch 0 is of type str"),
    "texts beside the tensors": ([batch(text=["a", "b"])], TypeError, "text of batch 0 is of type list, not a tensor"),
    "lists of token ids": ([batch(input_ids=[[7] * 5] * 2)], TypeError, "input_ids of batch 0 .* return_tensors="),
    "a number for a tensor": ([batch(labels=torch.tensor(1))], "labels of batch 0 is a single number"),
    "unequal numbers of texts": ([batch(labels=of_zeros(3))], "disagree on how many texts there are: .*3"),
    "a text of padding only": (
        [GOOD[0], batch(attention_mask=torch.tensor([[1, 1, 1, 0, 0], [0] * 5]))],
        "text 1 of batch 1 is all padding",
    ),
    "a batch of padding only": ([batch(attention_mask=of_zeros(2, 5))], "text 0 of batch 0 is all padding"),
    "texts of no token": ([batch(tokens=0, attention_mask=None)], "texts of batch 0 have no token"),
    "an attention mask of pairs": (
        [batch(attention_mask=torch.ones(2, 5, 5))],
        r"attention mask of batch 0 has shape \(2, 5, 5\), it must be \(text, token\)",
    ),
    "an attention mask of another width": (
        [batch(attention_mask=torch.ones(2, 4))],
        r"attention mask \(2, 4\) and token ids \(2, 5\) do not match",
    ),
    "a token the model does not know": (
        [batch(input_ids=torch.full((2, 5), 120))],
        "token ids from 120 to 120, the model knows 0 to 119: use the tokenizer",
    ),
    "a negative token": ([batch(input_ids=torch.full((2, 5), -1))], "token ids from -1 to -1"),
    "a text that is too long": ([batch(tokens=41)], "has 41 tokens, the model takes 40: .*max_length=40"),
    "a text that is too long, no mask": ([batch(tokens=41, attention_mask=None)], "has 41 tokens"),
    "a mask of other values": (
        [batch(attention_mask=torch.full((2, 5), -10000.0))],
        "attention mask of batch 0 holds values other than 0, for padding, and 1",
    ),
    "a token type that the model does not know": (
        [batch(token_type_ids=torch.full((2, 5), 2))],
        "batch 0 has token type ids from 2 to 2, the model knows 0 to 1: leave token_type_ids out",
    ),
    "token types that are fractions": (
        [batch(token_type_ids=torch.zeros(2, 5))],
        "token type ids of batch 0 are torch.float32",
    ),
    "token types of another width": (
        [batch(token_type_ids=of_zeros(2, 4))],
        r"attention mask \(2, 5\) and token type ids \(2, 4\) do not match",
    ),
    "token types of another width, no mask": (
        [batch(token_type_ids=of_zeros(2, 4), attention_mask=None)],
        r"token ids \(2, 5\) and token type ids \(2, 4\) do not match",
    ),
    "a position that the model does not know": (
        [batch(position_ids=torch.arange(38, 43).repeat(2, 1))],
        "batch 0 has position ids from 38 to 42, the model knows 0 to 39: leave position_ids out",
    ),
    "embeddings of another width": (
        [batch(input_ids=None, inputs_embeds=torch.zeros(2, 4, 32))],
        r"inputs_embeds of batch 0 have shape \(2, 4, 32\): .*, as wide as the attention mask \(2, 5\)",
    ),
}
EVALUATION = {
    "labels that are fractions": ([batch(labels=torch.zeros(2))], "labels of .*batch 0 are torch.float32"),
    "labels of several columns": ([batch(labels=of_zeros(2, 3))], r"of shape \(2, 3\): give the index"),
    "no labels": ([batch(labels=None)], "evaluation batch 0 has no `labels`"),
    "labels too high": ([batch(labels=torch.tensor([0, 3]))], "labels from 0 to 3, .* classes are 0 to 2"),
    "labels below zero": ([batch(labels=torch.tensor([-100, 1]))], "labels from -100 to 1"),
    "batches that hold different things": (
        [batch(), batch(token_type_ids=of_zeros(2, 5))],
        "batch 1 holds input_ids, .*token_type_ids, batch 0 input_ids, .*: give all the same",
    ),
    "widths that differ, no mask": (
        [batch(attention_mask=None), batch(tokens=6, attention_mask=None)],
        "input_ids differs in shape from batch to batch: give an attention_mask",
    ),
}
ALSO = ("no batches", "texts beside the tensors", "a text of padding only")  # every door looks by the same function
EVERY_DOOR = {  # the others, by the soak
    f"{door}: {name}": (lambda b=b, before=before: prune(model(), *before, b), *rest)
    for door, before in (("pruning", ()), ("evaluation", (GOOD,)))
    for name, (b, *rest) in BATCHES.items()
    if name not in ALSO
}
CASES = {
    **{f"scoring: {name}": (lambda b=b: gnorm.gnorm_scores(model(), b), *rest) for name, (b, *rest) in BATCHES.items()},
    **{
        f"evaluation: {name}": (lambda b=b: prune(model(), GOOD, b), *rest)
        for name, (b, *rest) in (BATCHES | EVALUATION).items()
        if name in EVALUATION or name in ALSO
    },
    **{f"pruning: {name}": (lambda b=BATCHES[name][0]: prune(model(), b), *BATCHES[name][1:]) for name in ALSO},
    **{
        f"accuracy: {name}": (lambda b=b: gnorm.accuracy(model(), b), *rest)
        for name, (b, *rest) in EVALUATION.items()
        if "fractions" in name or "columns" in name
    },
    "a RoBERTa counts positions behind its padding": (
        lambda: prune(model("roberta"), [batch(tokens=39)]),
        "has 39 tokens, the model takes 38",
    ),
    "accuracy without labels": (
        lambda: gnorm.accuracy(model(), [batch(labels=None)]),
        "batch 0 has no `labels`: accuracy needs the class of each text",
    ),
    # the model
    "NaN among the weights": (lambda: prune(damaged(), GOOD), "logits of batch 0 are not finite: .* NaN"),
    "infinity among the weights": (lambda: prune(damaged(value=torch.inf), GOOD), "batch 0 are not finite"),
    "NaN logits, random pruning": (lambda: prune(damaged(), GOOD, method="random"), "logits of text 0 are not finite"),
    "NaN logits, entropy": (lambda: gnorm.attention_entropy(damaged(), GOOD), "logits of a text are not"),
    "NaN logits, energy": (lambda: gnorm.activation_energy(damaged(), GOOD), "logits of a text are not"),
    "NaN logits, accuracy": (lambda: gnorm.accuracy(damaged(), GOOD), "logits of text 0 are not finite"),
    "NaN in an attention block": (
        lambda: prune(damaged("bert.encoder.layer.1.attention.self.query.weight"), GOOD),
        "not finite",
    ),
    "a decoder": (
        lambda: prune(decoder(), GOOD),
        r"model_type 'codegen' are not known \(known: bert, .*gnorm.register\('codegen'",
    ),
    "cross-attention that the row does not name": (
        lambda: prune(model(is_decoder=True, add_cross_attention=True), GOOD),
        "the row of model_type 'bert' names no cross-attention",
    ),
    "no model of transformers": (
        lambda: prune(nn.Linear(2, 2), GOOD),
        TypeError,
        "Linear is not a model of transformers",
    ),
    "no classifier on top": (
        lambda: gnorm.gnorm_scores(built_as(AutoModel), GOOD),
        "BertModel gives no logits, not .* load it as a sequence classifier",
    ),
    "a language model": (
        lambda: gnorm.accuracy(built_as(AutoModelForMaskedLM), GOOD),
        "accuracy needs a model that gives each text one of several classes .* gives masked tokens: choose one of",
    ),
    "accuracy of a wrapper": (
        lambda: gnorm.accuracy(nn.DataParallel(model()), GOOD),
        "DataParallel wraps a model: give its .module",
    ),
    "accuracy of no model": (
        lambda: gnorm.accuracy(nn.Linear(2, 2), GOOD),
        TypeError,
        "is not a model of transformers",
    ),
    "a function instead of a model": (lambda: prune(len, GOOD), TypeError, "is not a model of transformers"),
    "no layers at all": (lambda: prune(model(num_hidden_layers=0), GOOD), "no module of BertModel is named"),
    "a model without weights": (lambda: prune(model().to("meta"), GOOD), "meta device, .* load them first"),
    "a model on two devices": (
        lambda: prune(split_over_devices(), GOOD),
        r"lies on cpu and meta: bring it to one device",
    ),
    # the run
    "an unknown method": (lambda: prune(model(), GOOD, method="gnrom"), "method 'gnrom' is not known; choose"),
    "an unknown form of entropy": (
        lambda: gnorm.attention_entropy(model(), GOOD, form="bits"),
        "entropy form 'bits' is not known; choose one of exact",
    ),
    "steps beyond the heads": (lambda: prune(model(), GOOD, steps=13), "steps=13 is out of range: 12 heads"),
    "steps below zero": (lambda: prune(model(), GOOD, steps=-1), "steps=-1 is out of range"),
    "half a step": (lambda: prune(model(), GOOD, steps=2.5), TypeError, "steps=2.5 must be a whole number, .* float"),
    "no heads a step": (lambda: prune(model(), GOOD, heads_per_step=0), "heads_per_step=0 is out of range"),
    "no trials": (lambda: prune(model(), GOOD, trials=0), "trials=0 is out of range"),
    "trials of what draws nothing": (lambda: prune(model(), GOOD, trials=2), "draws nothing at random"),
    "a seed below zero": (lambda: prune(model(), GOOD, seed=-1), "seed=-1 is out of range"),
    "a seed in words": (lambda: prune(model(), GOOD, seed="one"), TypeError, "seed='one' must be a whole number"),
    "scores of another shape": (
        lambda: with_criterion(lambda *_, **__: torch.zeros(4, 3)),
        r"gave scores of shape \(4, 3\), this model needs \(layer, head\) = \(3, 4\)",
    ),
    "a score that is NaN": (lambda: with_criterion(lambda *_, **__: torch.full((3, 4), torch.nan)), "a score is NaN"),
    "a trial that was not run": (
        lambda: prune(model(), GOOD, steps=0, journal=None).order(1),
        "there is no trial 1: this run has trials 0 to 0",
    ),
    "a mask after more heads than went": (
        lambda: prune(model(), GOOD, steps=2, journal=None).mask(3),
        "pruned_heads=3 is out of range: this run pruned 2 heads",
    ),
    # masks
    "a mask of another shape": (lambda: within_mask(torch.ones(4, 3)), r"has shape \(4, 3\), .* \(3, 4\)"),
    "a mask of one dimension": (lambda: within_mask([1] * 12), r"has shape \(12,\)"),
    "a mask of halves": (lambda: within_mask(ONES / 2), "other than 0 and 1"),
    "a mask of NaN": (lambda: within_mask(ONES * torch.nan), "other than 0 and 1"),
    "a ragged mask": (lambda: within_mask([[1], [1, 1]]), "head mask is no .* table of numbers"),
    "no mask": (lambda: within_mask(None), "head mask is no .* table of numbers"),
    "removal by another shape": (lambda: gnorm.remove_heads(model(), torch.ones(4, 3)), r"shape \(4, 3\)"),
    "removal by other values": (lambda: gnorm.remove_heads(model(), ONES * 2), "other than 0 and 1"),
    "a pruned model from nowhere": (
        lambda: gnorm.load_pruned("nowhere"),
        FileNotFoundError,
        "nowhere has no config.json",
    ),
    # profiles and results
    "an unknown profile": (lambda: tasks.load("huge", "bert"), "profile 'huge' is not known; choose one of"),
    "an unknown model": (lambda: tasks.load("smoke", "gpt"), "profile smoke has no model 'gpt'; it has bert"),
    "results that are not there": (
        lambda: results.load_trajectory("smoke", "bert", "random"),
        FileNotFoundError,
        "experiments_results/smoke/bert/random.csv is not there: run `python run_all.py --profile smoke --models bert`",
    ),
}


def tree(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder that is the working directory and the place for results, its name with spaces and an umlaut."""
    folder = tmp_path / "köpfe und 头"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GNORM_OUTPUT", str(folder))
    MADE.clear()
    return folder


def refused(folder, call, *expected):
    """That the call is refused as it should be, by ``expected``: the exception, if not ValueError, and what it says."""
    exception, fragment = (ValueError, *expected)[-2:]
    before = tree(folder)
    with pytest.raises(exception, match=fragment) as caught:
        call()
    assert caught.type is exception
    assert "\n" not in str(caught.value)
    assert tree(folder) == before
    for used in MADE:
        assert not [h for m in used.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks)]
        assert not any(module.training for module in used.modules())
        assert getattr(used.config, "head_mask", None) is None


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.soak) for case in EVERY_DOOR)])
def test_what_cannot_work_is_refused(case, here):
    refused(here, *(CASES | EVERY_DOOR)[case])


def test_every_batch_and_criterion_is_looked_at_by_every_function(here):
    blank = [batch(attention_mask=of_zeros(2, 5))]
    for function in (gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.activation_energy, gnorm.accuracy):
        refused(here, lambda function=function: function(model(), blank), "text 0 of batch 0 is all padding")


# ---------------------------------------------------------------- journals


def test_a_journal_that_is_a_folder_is_refused(here):
    (here / "journal.jsonl").mkdir()
    refused(here, lambda: prune(model(), GOOD), IsADirectoryError, "journal.jsonl")


def test_a_journal_that_another_run_writes_is_refused(here, monkeypatch):
    monkeypatch.setattr(gnorm.journal, "LOCK_SECONDS", 0.1)
    with Journal("journal.jsonl", {}):
        refused(here, lambda: prune(model(), GOOD), InUseError, "another run is writing journal.jsonl: wait for it")
    assert not list(here.iterdir())


# ---------------------------------------------------------------- results


def test_results_of_another_run_are_refused(here):
    run = gnorm.prune(model(), GOOD, method="random", progress=False)
    results.save_trajectory(run, "smoke", "bert", "random")
    folder = here / "experiments_results"
    for place in ("local/bert/random", "smoke/albert/random", "smoke/bert/greedy_gnorm"):
        for suffix in (".csv", ".json", ".npz"):
            target = folder / f"{place}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "smoke" / "bert" / f"random{suffix}", target)
        refused(
            here,
            lambda place=place: results.load_trajectory(*place.split("/")),
            f"{place}.csv holds the results of random on bert of profile smoke",
        )
    assert results.load_trajectory("smoke", "bert", "random").order() == run.order()


# ---------------------------------------------------------------- the command line

WRONG_USAGE = {
    "an unknown profile": (["--profile", "huge"], "profile 'huge' is not known; choose one of"),
    "an unknown model": (["--profile", "smoke", "--models", "gpt"], "profile smoke has no model 'gpt'; it has bert"),
    "an unknown notebook": (["--profile", "smoke", "--only", "greedy"], "notebook 'greedy' is not known; choose from"),
    "an unknown flag": (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    "an unknown device": (["--device", "tpu"], "invalid choice: 'tpu'"),
    "a device that is not there": (["--profile", "smoke", "--device", "mps"], "device mps is not there"),
    "no models": (["--profile", "smoke", "--models", ""], "--models '' holds an empty name"),
    "a comma too many": (["--profile", "smoke", "--models", "bert,"], "--models 'bert,' holds an empty name"),
    "a model twice": (["--profile", "smoke", "--models", "bert,bert"], "--models names 'bert' twice"),
    "no notebooks": (["--profile", "smoke", "--only", ""], "--only '' holds an empty name"),
    "a notebook twice": (["--profile", "smoke", "--only", "ae_pruning,ae_pruning"], "--only names 'ae_pruning' twice"),
    "code for a model": (
        ["--profile", "smoke", "--models", '"]; raise SystemExit'],
        "has no model '\"]; raise SystemExit'",
    ),
    "a path for a profile": (["--profile", "../smoke"], "profile '../smoke' is not known"),
}


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage_of_the_command_line(case, here, monkeypatch, capsys):
    arguments, fragment = WRONG_USAGE[case]
    with pytest.raises(SystemExit) as stopped:
        run_all.main(arguments)
    assert stopped.value.code == 2
    assert fragment in capsys.readouterr().err.splitlines()[-1]
    assert not list(here.iterdir())


def test_parameters_of_another_type_than_the_notebook_declares():
    for parameters, complaint in (
        ({"profile": ["smoke"], "models": ["bert"]}, "declares 'profile' as str, it is given a list"),
        ({"profile": "smoke", "models": "bert"}, "declares 'models' as list, it is given a str"),
        ({"profile": "smoke", "modles": []}, "has no parameter 'modles'"),
    ):
        with pytest.raises(UsageError, match=re.escape(complaint)):
            check_parameters("greedy_pruning", parameters)


# ---------------------------------------------------------------- odd, but it works


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [{"num_attention_heads": 1}, {"num_hidden_layers": 1}], ids=["one head", "one layer"])
def test_one_head_or_one_layer(method, sizes, here):
    table = prune(model(**sizes), GOOD, method=method).table
    heads = 3 if "num_attention_heads" in sizes else 4
    assert table.pruned_heads.tolist() == list(range(heads + 1))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_whose_heads_are_all_gone(method, here):
    bare = model()
    gnorm.remove_heads(bare, torch.zeros(3, 4))
    assert prune(bare, GOOD, method=method).table.pruned_heads.tolist() == [0]
    for criterion in (gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.activation_energy):
        assert criterion(bare, GOOD).tolist() == [[-torch.inf] * 4] * 3


DTYPES = (torch.float16, torch.bfloat16, torch.float64)
RECORDED = ("greedy_gnorm", "attention_entropy", "random")


@pytest.mark.parametrize(("family", "dtype", "method"), one_by_all(tiny.FAMILIES, DTYPES, RECORDED))
def test_other_precisions_are_pruned_and_recorded(family, dtype, method, here):
    run = prune(model(family).to(dtype), GOOD, method=method)
    assert run.info["dtype"] == str(dtype).removeprefix("torch.")
    assert len(set(run.order())) == int(run.start.sum())
    assert prune(model(family).to(dtype), GOOD, method=method).table.equals(run.table)  # read back


def test_a_model_in_train_mode_is_scored_in_eval_mode_and_left_in_train_mode(here):
    expected = [f(model(), GOOD) for f in (gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.accuracy)]
    training = model().train()
    for function, value in zip((gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.accuracy), expected, strict=True):
        assert torch.equal(torch.as_tensor(function(training, GOOD)), torch.as_tensor(value))
        assert all(module.training for module in training.modules())
    assert prune(training, GOOD, steps=2).table.equals(prune(model(), GOOD, steps=2, journal=None).table)


def test_an_empty_text_is_its_special_tokens(here):
    task = tasks.load("smoke", "bert", "cpu", progress=False)
    encoded = task.tokenizer(["", "ein Text"], padding=True, return_tensors="pt")
    assert encoded["attention_mask"].sum(1)[0] == 2
    batches = [{**encoded, "labels": torch.tensor([0, 1])}]
    assert gnorm.gnorm_scores(task.model, batches).isfinite().all()
    assert len(gnorm.prune(task.model, batches, steps=1, progress=False).order()) == 1


def test_names_with_spaces_and_letters_beyond_ascii(here):
    task = tasks.load("smoke", "bert", "cpu", progress=False)
    run = runs.run(task, "random", progress=False)
    assert results.load_trajectory("smoke", "bert", "random").table.equals(run.table)
    folder = gnorm.save_pruned(gnorm_removed(task.model, run.mask(3)), here / "gestutztes Modell 头")
    assert torch.equal(gnorm.head_mask_of(gnorm.load_pruned(folder)), run.mask(3))
    assert prune(model(), GOOD, journal=here / "ein Protokoll é.jsonl").table.pruned_heads.max() == 12
    assert (here / "ein Protokoll é.jsonl").exists()


def gnorm_removed(found, mask):
    gnorm.remove_heads(found, mask)
    return found
