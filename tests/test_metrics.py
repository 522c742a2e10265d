"""Any head on top and any metric, each against plain autograd and a plain computation, text by text."""

import math
import re

import literal
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
import transformers
from crosses import one_by_all
from literal import inputs_of
from precision import close, close_logs, close_tables
from tiny import SIZES, ragged_batches, tiny_model

import gnorm
from experiments.analysis import tables
from experiments.runs import results
from gnorm import criteria
from gnorm.engine.model.problems import PROBLEMS, problem_of
from gnorm.metrics import correct_texts
from gnorm.trajectory import area_interval, bootstrap, curve, solution

CLASSES = {
    "single_label_classification": "BertForSequenceClassification",
    "multi_label_classification": "BertForSequenceClassification",
    "binary_classification": "BertForSequenceClassification",
    "regression": "BertForSequenceClassification",
    "token_classification": "BertForTokenClassification",
    "question_answering": "BertForQuestionAnswering",
    "multiple_choice": "BertForMultipleChoice",
    "masked_lm": "BertForMaskedLM",
    "causal_lm": "BertLMHeadModel",
}
OPTIONS = {
    "multi_label_classification": {"problem_type": "multi_label_classification"},
    "binary_classification": {"num_labels": 1, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1},
    "question_answering": {"num_labels": 2},
}
OTHERS = [name for name in CLASSES if name != "single_label_classification"]


def model_for(problem):
    config = transformers.BertConfig(**{**SIZES, "num_hidden_layers": 2, **OPTIONS.get(problem, {})})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, CLASSES[problem])(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def batches_for(problem, seed=1):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for batch in ragged_batches(count=2, size=5, seed=seed, longest=9):
        texts, width = batch["input_ids"].shape
        real = batch["attention_mask"] == 1
        lengths = real.sum(1)
        if problem == "multi_label_classification":
            batch["labels"] = torch.randint(0, 2, (texts, 3), generator=generator).float()
        elif problem == "binary_classification":
            batch["labels"] = torch.rand(texts, 1, generator=generator).round(decimals=1)
        elif problem == "regression":
            batch["labels"] = torch.randn(texts, generator=generator)
        elif problem == "question_answering":
            del batch["labels"]
            two = (torch.rand(texts, 2, generator=generator) * lengths[:, None]).long().sort(1).values
            batch["start_positions"], batch["end_positions"] = two.unbind(1)
        elif problem == "multiple_choice":
            for name in ("input_ids", "attention_mask"):
                batch[name] = torch.stack([batch[name], batch[name].roll(1, 0)], 1)
            batch["labels"] = batch["labels"].clamp(max=1)
        elif problem != "single_label_classification":
            some = real & (torch.rand(texts, width, generator=generator) < 0.6)
            classes = 3 if problem == "token_classification" else 120
            labels = torch.randint(0, classes, (texts, width), generator=generator)
            batch["labels"] = labels.masked_fill(~(real if problem == "causal_lm" else some), -100)
        batches.append(batch)
    return batches


def texts_of(batches):
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            yield {name: tensor[i : i + 1] for name, tensor in batch.items()}


def norm_of_real_logits(model, batch):
    output, real = model(**inputs_of(batch)), batch["attention_mask"] == 1
    if "start_positions" in batch:
        return torch.cat([output.start_logits[real], output.end_logits[real]]).norm()
    return (output.logits[real] if output.logits.dim() == 3 else output.logits).norm()


@pytest.mark.parametrize("problem", CLASSES)
def test_gnorm_is_that_of_all_logits_that_are_not_padding(problem):
    model, batches = model_for(problem), batches_for(problem)
    assert problem_of(model) is PROBLEMS[problem]
    expected = literal.products(model, batches, norm_of_real_logits).log()
    close_logs(gnorm.gnorm_scores(model, batches), expected)
    one_by_one = gnorm.prepare(batches, model, max_tokens=1)
    assert max(len(micro.index) for micro in one_by_one) == 1
    close_logs(gnorm.gnorm_scores(model, one_by_one), expected)


@pytest.mark.parametrize("problem", CLASSES)
def test_criteria_of_a_loss_take_the_models_own(problem):
    model, batches = model_for(problem), batches_for(problem)
    expected = literal.products(model, batches, literal.loss).log()
    close_logs(criteria.gnorm_cross_entropy(model, batches), expected)
    sums, counted = torch.zeros(2, 4, dtype=torch.float64), 0
    for text in texts_of(batches):
        if (
            problem.endswith(("lm", "token_classification"))
            and not (text["labels"][:, problem == "causal_lm" :] >= 0).any()
        ):
            continue  # the mean over no token
        sums += literal.saliency(model, text)
        counted += 1
    found = criteria.head_importance(model, batches)
    close(found, sums / counted)


def plain_metric(problem, model, batches):
    """The metric of the problem, computed text by text from the logits."""
    kept = []
    for text in texts_of(batches):
        with torch.no_grad():
            output, real = model(**inputs_of(text)), text["attention_mask"][0] == 1
        if problem == "question_answering":
            start, end = output.start_logits[0][real].tolist(), output.end_logits[0][real].tolist()
            spans = [(start[i] + end[j], i, j) for i in range(len(start)) for j in range(i, len(end))]
            _, first, last = max(spans)
            said = set(range(first, last + 1))
            meant = set(range(int(text["start_positions"]), int(text["end_positions"]) + 1))
            kept.append(2 * len(said & meant) / (len(said) + len(meant)))
            continue
        z, labels = output.logits[0], text["labels"][0]
        if problem in ("single_label_classification", "multiple_choice"):
            kept.append(float(z.argmax() == labels))
        elif problem == "multi_label_classification":
            kept.append(torch.stack([(z > 0).float(), labels], 1))
        elif problem in ("regression", "binary_classification"):
            said = z[0] if problem == "regression" else 1 / (1 + (-z[0]).exp())
            kept.append(float((said - labels) ** 2))
        else:
            z, labels = (z[:-1], labels[1:]) if problem == "causal_lm" else (z, labels)
            z, labels = z[labels >= 0], labels[labels >= 0]
            own = torch.nn.functional.cross_entropy(z, labels, reduction="none")
            kept.append((z.argmax(1) == labels).float() if problem == "token_classification" else own)
    if problem == "multi_label_classification":
        said, meant = torch.cat(kept).unbind(1)
        return float(2 * (said * meant).sum() / (said.sum() + meant.sum()))
    value = float(torch.cat(kept).mean()) if isinstance(kept[0], torch.Tensor) else sum(kept) / len(kept)
    return math.exp(value) if problem.endswith("lm") else value


@pytest.mark.parametrize("problem", CLASSES)
def test_every_state_is_measured_and_a_resumed_run_is_the_same(problem, tmp_path, monkeypatch):
    model, batches, held_out = model_for(problem), batches_for(problem), batches_for(problem, seed=2)
    journal = tmp_path / "journal"
    run = gnorm.prune(model, batches, held_out, heads_per_step=2, journal=journal, progress=False)
    name = PROBLEMS[problem].metric
    assert run.info["metric"] == name
    assert list(run.table.columns) == ["trial", "pruned_heads", "layer", "head", "score", name]
    for pruned, value in run.table.groupby("pruned_heads")[name].last().items():
        with gnorm.masked(model, run.mask(pruned)):
            close(value, plain_metric(problem, model, held_out))
    shared = gnorm.prune(model, held_out, progress=False, steps=0)  # read off the pass that scores
    close(shared.table[name][0], run.table[name][0])
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:4]))
    resumed = gnorm.prune(model, batches, held_out, heads_per_step=2, journal=journal, progress=False)
    assert resumed.table.equals(run.table)
    assert resumed.text_values.dtype == run.text_values.dtype
    assert (resumed.text_values == run.text_values).all()
    with pytest.warns(DeprecationWarning, match="is called text_values now"):
        assert run.predictions is run.text_values
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    results.save_trajectory(run, "smoke", "bert", "greedy_gnorm")
    back = results.load_trajectory("smoke", "bert", "greedy_gnorm")
    close_tables(back.table, run.table, torch.float64)
    assert back.metric is run.metric is gnorm.METRICS[name]
    assert (back.text_values == run.text_values).all()
    assert bootstrap(back, samples=100).tolist() == bootstrap(run, samples=100).tolist()


OTHER = ("gnorm_margin", "oracle", "attention_entropy", "flap", "gnorm_by_text", "fisher")
SPANS_FIRST = ["question_answering", *(name for name in CLASSES if name != "question_answering")]


@pytest.mark.parametrize(("problem", "method"), one_by_all(SPANS_FIRST, OTHER))
def test_other_methods_take_any_head_of_a_model(problem, method):
    model, batches = model_for(problem), batches_for(problem)
    if problem in ("regression", "binary_classification") and method == "gnorm_margin":
        with pytest.raises(ValueError, match="one number a text, so there is no margin"):
            gnorm.prune(model, batches, method=method, progress=False)
        return
    run = gnorm.prune(model, batches, method=method, progress=False, steps=1)
    name, alone = run.metric.name, gnorm.prune(model, batches, method="weight_magnitude", progress=False, steps=0)
    close(run.table[name][0], alone.table[name][0])
    if method == "oracle":  # whatever the order of the fields
        turned = [dict(reversed(batch.items())) for batch in batches]
        assert gnorm.prune(model, turned, method=method, progress=False, steps=1).order() == run.order()


def test_metrics_of_classes_are_those_of_scikit_learn():
    model, batches = tiny_model("bert"), ragged_batches()
    said = torch.cat([model(**inputs_of(batch)).logits.argmax(1) for batch in batches])
    meant = torch.cat([batch["labels"] for batch in batches])
    expected = {
        "f1_macro": sklearn.metrics.f1_score(meant, said, average="macro", zero_division=0.0),
        "f1_micro": sklearn.metrics.f1_score(meant, said, average="micro", zero_division=0.0),
        "matthews": sklearn.metrics.matthews_corrcoef(meant, said),
    }
    for name, value in expected.items():
        run = gnorm.prune(model, batches, method="random", metric=name, steps=2, progress=False)
        close(run.table[name][0], value, torch.float64)
        assert (run.text_values[0] == said.numpy()).all()
        assert (run.labels == meant.numpy()).all()
    with pytest.raises(AttributeError, match="this run was measured by matthews"):
        run.correct  # noqa: B018


def test_metrics_of_numbers_and_of_constants():
    model, batches = model_for("regression"), batches_for("regression")
    said = torch.cat([model(**inputs_of(batch)).logits[:, 0] for batch in batches]).detach().double().numpy()
    meant = torch.cat([batch["labels"] for batch in batches]).double().numpy()
    ranks = [pd.Series(values).rank() for values in (said, meant)]
    expected = {
        "pearson": np.corrcoef(said, meant)[0, 1],
        "spearman": np.corrcoef(*ranks)[0, 1],
        "r2": 1 - ((said - meant) ** 2).sum() / ((meant - meant.mean()) ** 2).sum(),
        "mse": ((said - meant) ** 2).mean(),
    }
    for name, value in expected.items():
        run = gnorm.prune(model, batches, method="random", metric=name, steps=0, progress=False)
        close(run.table[name][0], value)
    assert gnorm.METRICS["pearson"].value(np.ones(4), np.arange(4.0)) == 0


SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "regression"),
        ({"problem_type": "regression"}, "regression"),
        ({"problem_type": "multi_label_classification"}, "binary_classification"),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, "binary_classification"),
        ({"sentence_transformers": {"activation_fn": SIGMOID}, "problem_type": "regression"}, "binary_classification"),
        ({"sentence_transformers": {"version": "4.1.0"}}, "binary_classification"),  # its default for one logit
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, "regression"),
        ({"sbert_ce_default_activation_function": SIGMOID}, "binary_classification"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "regression"),
        ({"sentence_transformers": {"activation_fn": SIGMOID}, "num_labels": 3}, "single_label_classification"),
        ({"sentence_transformers": None}, "regression"),
    ],
)
def test_what_one_logit_means_is_what_the_configuration_says(said, problem):
    config = transformers.BertConfig(**{**SIZES, "num_labels": 1, **said})
    assert problem_of(transformers.BertForSequenceClassification(config)) is PROBLEMS[problem]


@pytest.mark.parametrize("axes", ["text", "text and class"])
def test_one_logit_is_right_where_its_sigmoid_and_its_label_are_on_one_side_of_a_half(axes):
    model, batches = model_for("binary_classification"), batches_for("binary_classification")
    batches = [batch | {"labels": batch["labels"].round()} for batch in batches]
    if axes == "text":
        batches = [batch | {"labels": batch["labels"][:, 0]} for batch in batches]
    logits = torch.cat([model(**inputs_of(batch)).logits[:, 0] for batch in batches]).detach()
    with torch.no_grad():
        model.classifier.bias -= logits.median()  # half of the texts on either side
    said = (logits > logits.median()).tolist()
    meant = [bool(label) for batch in batches for label in batch["labels"].flatten()]
    assert correct_texts(model, batches).tolist() == [a == b for a, b in zip(said, meant, strict=True)]
    run = gnorm.prune(model, batches, metric="accuracy", steps=1, progress=False)
    assert run.table["accuracy"][0] == gnorm.accuracy(model, batches)
    assert 0 < run.table["accuracy"][0] < 1


def test_a_function_of_ones_own_and_its_bootstrap(tmp_path, monkeypatch):
    def worst_class(predictions, labels):
        return min((predictions[labels == c] == c).mean() if (labels == c).any() else 1.0 for c in range(3))

    model, batches = tiny_model("bert"), ragged_batches()
    run = gnorm.prune(model, batches, metric=worst_class, steps=2, progress=False)
    hits, labels = correct_texts(model, batches).numpy(), torch.cat([b["labels"] for b in batches]).numpy()
    assert run.table["worst_class"][0] == min(hits[labels == c].mean() for c in range(3))
    assert run.info["metric"] == "worst_class"
    samples = bootstrap(run, samples=500)
    assert samples.shape == (50, 3)
    assert samples[:, 0].min() <= run.table["worst_class"][0] <= samples[:, 0].max()
    low, high = area_interval(run)
    assert low <= high
    assert tables.summary_row(run)["0%"] == run.table["worst_class"][0]
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    results.save_trajectory(run, "smoke", "bert", "greedy_gnorm")
    with pytest.raises(ValueError, match="measured by 'worst_class': give it a row in gnorm.METRICS"):
        results.load_trajectory("smoke", "bert", "greedy_gnorm")


def test_the_first_line_names_the_metric_that_nobody_named(capsys):
    gnorm.prune(model_for("regression"), batches_for("regression"), steps=1)
    bars = capsys.readouterr().err
    assert re.search(r"Greedy-Gnorm, mse: .*mse=\d", bars)


def test_lower_is_better_where_the_row_says_so():
    model, batches = model_for("regression"), batches_for("regression")
    run = gnorm.prune(model, batches, progress=False)
    errors = curve(run)
    assert not run.metric.higher_is_better
    for budget in (0.0, 0.01, 0.1, 10.0):
        allowed = [pruned for pruned, error in errors.items() if error <= errors[0] + budget + 1e-12]
        assert solution(run, budget) == max(allowed)


SINGLE, MULTI = "single_label_classification", "multi_label_classification"
WHOLE = torch.zeros(5, dtype=torch.long)
NONE = "every label -100"


def nothing(predictions, labels):
    return math.nan


REFUSED = [  # problem, metric, what is changed in the first batch, the error
    (SINGLE, "acuracy", {}, "metric 'acuracy' is not known; choose one of accuracy, f1_macro"),
    (
        SINGLE,
        "mse",
        {},
        "mse needs a model that gives each text a number or .* logit; this model gives each text one of se",
    ),
    ("regression", "accuracy", {}, "accuracy needs a model .* gives each text a number: choose one of pearson"),
    (SINGLE, nothing, {}, "nothing of 8 texts is not a number"),
    ("regression", None, {"labels": WHOLE}, "labels of evaluation batch 0 are torch.int64 .*: give a floating-point"),
    ("regression", None, {"labels": WHOLE * math.nan}, "evaluation batch 0 has labels from nan to nan: give a float"),
    ("binary_classification", None, {"labels": torch.full((5, 1), 1.5)}, "has labels from 1.5 to 1.5: give a float"),
    ("binary_classification", None, {"labels": WHOLE}, "torch.int64 .*: give a floating-point number from 0 to 1 for"),
    ("binary_classification", "f1_micro", {}, "this model gives each text a probability, the sigmoid of its one logit"),
    (MULTI, None, {"labels": torch.zeros(5, 2)}, r"are torch.float32 of shape \(5, 2\): give 0.0 or 1.0"),
    (MULTI, None, {"labels": torch.full((5, 3), 2.0)}, "has labels from 2 to 2: give 0.0 or 1.0"),
    ("token_classification", None, {"labels": WHOLE}, r"of shape \(5,\): give the index of a class, or -100, for each"),
    (
        "question_answering",
        None,
        {"end_positions": None},
        "has no `start_positions` and `end_positions`: span_f1 needs",
    ),
    ("question_answering", None, {"end_positions": WHOLE + 99}, "to 99, the model's classes are 0 to"),
    ("question_answering", None, {"end_positions": WHOLE - 1, "start_positions": WHOLE}, "labels from -1 to 0"),
    ("question_answering", None, {"start_positions": WHOLE + 1, "end_positions": WHOLE}, "0 has an answer that ends"),
    ("multiple_choice", None, {"labels": WHOLE + 2}, "labels from 2 to 2, the model's classes are 0 to 1"),
    ("multiple_choice", None, {"attention_mask": torch.ones(5, 9)}, r"must be \(text, choice, token\)"),
    ("masked_lm", None, NONE, "every label is -100, which is not counted: perplexity needs"),
]


@pytest.mark.parametrize(("problem", "metric", "changes", "says"), REFUSED, ids=[row[3][:30] for row in REFUSED])
def test_what_does_not_go_together_is_refused_in_a_sentence(problem, metric, changes, says):
    batches = batches_for(problem)
    if changes is NONE:
        batches = [batch | {"labels": torch.full_like(batch["labels"], -100)} for batch in batches]
    else:
        first = {name: tensor for name, tensor in (batches[0] | changes).items() if tensor is not None}
        batches = [first, *batches[1:]]
    with pytest.raises(ValueError, match=says) as caught:
        gnorm.prune(model_for(problem), batches, metric=metric, progress=False)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_what_is_neither_a_name_nor_a_function_is_no_metric():
    with pytest.raises(TypeError, match="metric=3 is neither a name nor a function"):
        gnorm.prune(tiny_model("bert"), ragged_batches(), metric=3)


# ---------------------------------------------------------------- labels that differ from batch to batch


def numbers(change):
    """Batches of numbers that float16 holds, the labels of the second one changed."""
    batches = [{**batch, "labels": batch["labels"] / 4} for batch in ragged_batches()]
    return [batches[0], {**batches[1], "labels": change(batches[1]["labels"])}, batches[2]]


@pytest.mark.parametrize(
    "change", [torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16, lambda labels: labels[:, None]]
)
def test_numbers_may_differ_in_type_and_axes_from_batch_to_batch(change):
    model = tiny_model("bert", num_labels=1)
    expected, batches = numbers(lambda labels: labels), numbers(change)
    assert gnorm.measure(model, batches) == gnorm.measure(model, expected)
    assert gnorm.measure(model, batches[1:2]) == gnorm.measure(model, expected[1:2])
    found, wanted = (criteria.head_importance(model, given) for given in (batches, expected))
    close(found, wanted)
    with pytest.raises(ValueError, match=r"labels of batch 1 are torch.complex64 .*: give a floating-point number"):
        gnorm.measure(model, numbers(lambda labels: labels.to(torch.complex64)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_whole_numbers_may_be_of_any_type(dtype):
    model, batches = tiny_model("bert"), ragged_batches()
    small = [batches[0], {name: tensor.to(dtype) for name, tensor in batches[1].items()}, batches[2]]
    assert gnorm.measure(model, small) == gnorm.measure(model, batches)
    close_logs(gnorm.gnorm_scores(model, small), gnorm.gnorm_scores(model, batches))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("without", [(0, 1, 2), (1,)])
def test_scores_need_no_labels_and_metrics_say_which_are_missing(family, without):
    """Of packed decoders, and of packed classifiers."""
    kind = transformers.AutoModelForCausalLM if family != "bert" else transformers.AutoModelForSequenceClassification
    model = kind.from_config(transformers.AutoConfig.for_model(family, **SIZES)).eval()
    batches = ragged_batches()
    if family != "bert":
        batches = [{**b, "labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in batches]
    bare = [{n: t for n, t in b.items() if n != "labels" or i not in without} for i, b in enumerate(batches)]
    for score in (gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.activation_energy):
        close(score(model, bare), score(model, batches))
    run = gnorm.prune(model, bare, batches, progress=False, steps=1)
    assert run.table.equals(gnorm.prune(model, batches, batches, progress=False, steps=1).table)
    with pytest.raises(ValueError, match=f"batch {without[0]} has no `labels`"):
        gnorm.measure(model, bare)


def test_positions_of_answers_may_be_a_column():
    model = model_for("question_answering")
    batches = batches_for("question_answering")
    columns = [{n: t[:, None].int() if n.endswith("_positions") else t for n, t in b.items()} for b in batches]
    assert gnorm.measure(model, columns) == gnorm.measure(model, batches)
    close(criteria.head_importance(model, columns), criteria.head_importance(model, batches))


@pytest.mark.parametrize("problem", ["token_classification", "masked_lm"])
def test_labels_of_padding_do_not_count(problem):
    model, batches = model_for(problem), batches_for(problem)
    padded = [{**b, "labels": b["labels"].masked_fill(b["attention_mask"] == 0, 2)} for b in batches]
    assert any(not torch.equal(a["labels"], b["labels"]) for a, b in zip(padded, batches, strict=True))
    assert gnorm.measure(model, padded) == gnorm.measure(model, batches)
    close(criteria.head_importance(model, padded), criteria.head_importance(model, batches))
