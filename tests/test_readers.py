"""Every task from a file of texts to a smaller model with its card; how cells become labels; what is refused."""

import json
import re
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from precision import close
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import gnorm
from gnorm import shipping
from gnorm.engine.model.problems import PROBLEMS, problem_of
from gnorm.engine.tally import labels_in_order
from gnorm.metrics import find_metric, text_values_of
from gnorm.shipping.readers import READERS, labelled

WORDS = [f"w{i}" for i in range(60)]
PIECES = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##0", "##x"])}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
NAMES = ["red", "green", "blue"]
CLASSES = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
SEQ2SEQ = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "bos_token_id": 3, "eos_token_id": 3}
MODELS = {  # by problem: the class, and options of its configuration
    "single_label_classification": ("BertForSequenceClassification", CLASSES),
    "multi_label_classification": (
        "BertForSequenceClassification",
        CLASSES | {"problem_type": "multi_label_classification"},
    ),
    "binary_classification": (
        "BertForSequenceClassification",
        {"num_labels": 1, "problem_type": "multi_label_classification"},
    ),
    "regression": ("BertForSequenceClassification", {"num_labels": 1}),
    "token_classification": ("BertForTokenClassification", CLASSES),
    "question_answering": ("BertForQuestionAnswering", {}),
    "multiple_choice": ("BertForMultipleChoice", {}),
    "masked_lm": ("BertForMaskedLM", {}),
    "causal_lm": ("GPT2LMHeadModel", GPT2),
    "seq2seq_lm": ("T5ForConditionalGeneration", SEQ2SEQ),
}


def tokenizer_of(problem):
    """Of words and pieces; those of decoders have no padding token, and end texts by [SEP]."""
    if problem not in ("causal_lm", "seq2seq_lm"):
        return transformers.BertTokenizer(vocab=PIECES, model_max_length=30)
    plain = Tokenizer(models.WordLevel(PIECES, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    pad = {"pad_token": "[PAD]"} if problem == "seq2seq_lm" else {}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="[SEP]", **pad)


def save(problem, folder="checkpoint"):
    kind, options = MODELS[problem]
    kind = getattr(transformers, kind)
    sizes = {"vocab_size": len(PIECES), "max_position_embeddings": 40, **SIZES} if "Bert" in kind.__name__ else {}
    config = kind.config_class(**{"vocab_size": len(PIECES), "pad_token_id": 0, **sizes, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    tokenizer_of(problem).save_pretrained(folder)


def text(i, words=6):
    return " ".join(WORDS[(i * 7 + k * (i + 1)) % 60] for k in range(2 + i % words))


ROWS = {
    "single_label_classification": lambda i: {"text": text(i), "label": NAMES[i % 3]},
    "multi_label_classification": lambda i: {"text": text(i), "label": ["red|blue", "", "green"][i % 3]},
    "binary_classification": lambda i: {"text": text(i), "text_pair": text(i + 1), "label": i % 2},
    "regression": lambda i: {"text": text(i), "label": i / 7},
    "token_classification": lambda i: {
        "tokens": text(i).split(),
        "tags": [NAMES[(i + k) % 3] for k in range(len(text(i).split()))],
    },
    "question_answering": lambda i: {
        "question": f"w{i}",
        "context": text(i),
        "answers": {"text": [text(i).split()[-1]], "answer_start": [text(i).rindex(text(i).split()[-1])]},
    },
    "multiple_choice": lambda i: {"text": text(i), "choices": [f"w{i}", f"w{i + 1}"], "label": i % 2},
    "masked_lm": lambda i: {"text": text(i)},
    "causal_lm": lambda i: {"text": text(i)},
    "seq2seq_lm": lambda i: {"text": text(i), "target": text(i + 1, 3)},
}


@pytest.fixture(autouse=True)
def _at_home(tmp_path, monkeypatch, quick_costs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gnorm.shipping.model_card.SAMPLES", 50)


def write(problem, count=36):
    """A file of texts, CSV where its cells are simple; its path."""
    rows = [ROWS[problem](i) for i in range(count)]
    if any(isinstance(cell, list | dict) for cell in rows[0].values()):
        Path("texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return "texts.jsonl"
    pd.DataFrame(rows).to_csv("texts.csv", index=False)
    return "texts.csv"


def test_every_problem_has_a_row_and_a_model_here():
    assert set(READERS) == set(PROBLEMS) == set(MODELS) == set(ROWS)


@pytest.mark.parametrize("problem", MODELS)
def test_from_a_file_to_a_smaller_model_whose_card_tells_its_metric(problem):
    save(problem)
    own = shipping.load("checkpoint", write(problem), scoring=10, batch=8)
    assert problem_of(own.model) is PROBLEMS[problem]
    run = gnorm.prune(own.model, own.scoring, own.choosing, method=shipping.RECOMMENDED, steps=2, progress=False)
    name, before = run.metric.name, gnorm.head_mask_of(own.model)
    folder = shipping.ship(own, run, "smaller", budget=100.0)
    model = gnorm.load_pruned(folder)
    assert gnorm.head_mask_of(model).sum() == before.sum() - 2
    card = (folder / "README.md").read_text("utf-8")
    assert huggingface_hub.ModelCard(card).data.pipeline_tag == READERS[problem].tag
    metric, labels = find_metric(None, model), labels_in_order(gnorm.prepare(own.testing, model)).numpy()
    assert f"| | n | {name} | 95 % interval |" in card
    assert ("Lower is better" in card) == (name in ("mse", "perplexity"))
    for which, measured in (("intact", own.model), ("pruned", model)):
        value = metric.value(text_values_of(measured, own.testing, metric).numpy(), labels)
        (cells,) = re.findall(rf"^\| {which} \| \d+ \| (\S+) \| (\S+) to (\S+) \|$", card, re.MULTILINE)
        assert float(cells[0]) == pytest.approx(value, abs=6e-5)
        assert float(cells[1]) <= float(cells[0]) <= float(cells[2])
    *lines, last = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1].strip().splitlines()
    found = {}
    exec("\n".join(lines), found)  # noqa: S102 our own card
    assert eval(last, found) is not None


def labels_for(problem, table, **changes):
    kind, options = MODELS[problem]
    config = getattr(transformers, kind).config_class(**{**options, **changes})
    found = labelled(table, config, "my-model", problem=PROBLEMS[problem])
    return found.label.tolist()


def batch_for(problem, rows):
    """The first rows of a file as one batch, and the tokenizer; the file is filled up with others."""
    save(problem)
    more = [ROWS[problem](i) for i in range(36)]
    table = pd.DataFrame(rows + more)
    own = shipping.load("checkpoint", table, scoring=1, batch=100)
    batches = [*own.scoring, *own.choosing, *own.testing]
    return batches, own.tokenizer


def test_the_first_piece_of_a_word_has_its_tag():
    rows = [{"tokens": ["w59", "w590x", "w58"], "tags": ["red", "green", "blue"]}]
    batches, tokenizer = batch_for("token_classification", rows)
    ids = tokenizer(rows[0]["tokens"], is_split_into_words=True)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "w59", "w59", "##0", "##x", "w58", "[SEP]"]
    found = [
        labels[: len(ids)].tolist()
        for batch in batches
        for row, labels in zip(batch["input_ids"].tolist(), batch["labels"], strict=True)
        if row[: len(ids)] == ids
    ]
    assert found == [[-100, 0, 1, -100, -100, 2, -100]]


def test_answers_are_found_by_their_characters_and_those_cut_off_are_left_out(caplog):
    rows = [
        {"question": "w1", "context": "w2 w3 w4 w5", "answers": {"text": ["w3 w4"], "answer_start": [3]}},
        {"question": "w2", "context": "w2 w3", "answers": {"text": [], "answer_start": []}},
        {"question": "w3", "context": "w9 " * 40 + "w3", "answers": {"text": ["w3"], "answer_start": [120]}},
        {"question": "w4 " * 40, "context": "w3", "answers": {"text": ["w3"], "answer_start": [0]}},
    ]
    batches, tokenizer = batch_for("question_answering", rows)
    said = {}
    for batch in batches:
        for ids, first, last in zip(batch["input_ids"], batch["start_positions"], batch["end_positions"], strict=True):
            said[tokenizer.decode(ids, skip_special_tokens=True)] = tokenizer.decode(ids[first : last + 1])
    assert said["w1 w2 w3 w4 w5"] == "w3 w4"
    assert said["w2 w2 w3"] == "[CLS]"
    assert "2 of 40 texts are left out: their answers lie beyond 30 tokens" in caplog.text


def test_what_is_masked_is_drawn_once_by_the_seed():
    save("masked_lm")
    path = write("masked_lm", 200)
    one, same, other = (shipping.load("checkpoint", path, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(one.testing, same.testing, strict=True))
    assert not all(torch.equal(a["labels"], b["labels"]) for a, b in zip(one.testing, other.testing, strict=False))
    batches = [*one.scoring, *one.choosing, *one.testing]
    words = sum(int((batch["input_ids"] > 3).sum()) for batch in batches)
    counted = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert 0.1 < counted / words < 0.2
    for batch in batches:
        assert not (batch["labels"] >= 0)[batch["attention_mask"] == 0].any()
        assert set(batch["labels"].unique().tolist()) <= {-100, *range(5, 65)}  # no special token


def test_texts_of_a_decoder_without_a_padding_token_are_right_padded():
    save("causal_lm")
    own = shipping.load("checkpoint", write("causal_lm"), batch=100)
    (batch,) = own.testing
    assert own.tokenizer.pad_token is None
    assert set(batch) == {"input_ids", "attention_mask", "labels"}  # token types would be looked up among the words
    real = batch["attention_mask"] == 1
    assert not real.all()
    assert (batch["input_ids"][~real] == 3).all()
    assert (batch["labels"][~real] == -100).all()
    assert (batch["labels"][real] == batch["input_ids"][real]).all()
    assert (batch["labels"] == 3).sum() == len(real)  # the end of a text counts


def many(column):
    return {"text": [f"t{i}" for i in range(len(column))], "label": column}


HOT = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    "table",
    [
        many(["red|blue", "", "green"]),
        many(["red; blue", "", "green"]),
        many(["Red,Blue", None, "Green"]),
        many([["red", "blue"], [], ["green"]]),
        many(["0|2", "", "1"]),
        many([[0, 2], [], [1]]),
        many([np.array([1, 0, 1]), [0, 0, 0], [0, 1, 0]]),
        {"text": ["a", "b", "c"], "Red": ["1", "0", "0"], "green": [0, 0, 1.0], "blue": [True, False, False]},
    ],
)
def test_several_labels_are_read_in_every_way_to_write_them(table):
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in table.items()})
    assert labels_for("multi_label_classification", frame) == HOT


def test_several_labels_that_a_data_set_declares_are_taken_by_their_names():
    names = datasets.Sequence(datasets.ClassLabel(names=["blue", "red", "green"]))
    features = datasets.Features({"text": datasets.Value("string"), "labels": names})
    rows = {"text": ["a", "b", "c"], "labels": [[1, 0], [], [2]]}
    dataset = datasets.Dataset.from_dict(rows, features)
    assert labels_for("multi_label_classification", dataset) == HOT
    dataset.to_parquet("a.parquet")
    assert labels_for("multi_label_classification", "a.parquet") == HOT
    tags = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": names})
    tagged = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 0]]}, tags)
    assert labels_for("token_classification", tagged) == [[0, 2]]


def test_numbers_come_in_a_column_each_or_in_lists():
    Path("a.csv").write_text("text;text pair;label\na;b;0.5\nc;d;-1e2\n")
    assert labels_for("regression", "a.csv") == [0.5, -100.0]
    two = {"num_labels": 2, "problem_type": "regression"}
    for names in (["label_0", "label_1"], ["LABEL 0", "LABEL 1"]):
        table = pd.DataFrame({"text": ["a", "b"], names[0]: [1, 2], names[1]: ["3", 4.5]})
        assert labels_for("regression", table, **two) == [[1.0, 3.0], [2.0, 4.5]]
    named = two | {"id2label": {0: "x", 1: "y"}, "label2id": {"x": 0, "y": 1}}
    assert labels_for("regression", pd.DataFrame({"text": ["a"], "y": [1], "x": [2]}), **named) == [[2.0, 1.0]]
    assert labels_for("regression", pd.DataFrame({"text": ["a"], "label": [[1, 2]]}), **two) == [[1.0, 2.0]]


def test_probabilities_are_numbers_or_flags():
    table = pd.DataFrame({"text": list("abcdef"), "label": [0, "1", 0.25, "True", False, 1.0]})
    assert labels_for("binary_classification", table) == [0.0, 1.0, 0.25, 1.0, 0.0, 1.0]


def test_labels_0_and_1_of_a_logit_of_which_nothing_is_said_are_refused():
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": [0, 1, 1]})
    with pytest.raises(ValueError, match=r"are 0 and 1, and config.json of my-model does not say what its one logit"):
        labels_for("regression", table)
    for said, problem in (("regression", "regression"), ("multi_label_classification", "binary_classification")):
        assert labels_for(problem, table, num_labels=1, problem_type=said) == [0.0, 1.0, 1.0]


SIGMOID, TANH = (f"torch.nn.modules.activation.{name}" for name in ("Sigmoid", "Tanh"))


@pytest.mark.parametrize("file", ["config.json", "config_sentence_transformers.json"])
def test_what_a_cross_encoder_makes_of_its_logit_is_measured_and_saved(file):
    save("regression")
    before = json.loads(Path("checkpoint/config.json").read_text())
    for activation, problem in ((SIGMOID, "binary_classification"), (TANH, None)):
        own = {"model_type": "CrossEncoder", "activation_fn": activation}
        said = before | {"sentence_transformers": {"activation_fn": activation}} if file == "config.json" else own
        Path("checkpoint", file).write_text(json.dumps(said))
        if problem is None:
            with pytest.raises(ValueError, match="checkpoint gives Tanh of its one logit, which no metric here does"):
                shipping.load("checkpoint", write("binary_classification"))
            continue
        own = shipping.load("checkpoint", write("binary_classification"))
        z, y = (
            torch.cat(each).detach().double()
            for each in zip(*((own.model(**{**b, "labels": None}).logits[:, 0], b["labels"]) for b in own.testing))
        )
        close(gnorm.measure(own.model, own.testing), float((z.sigmoid() - y).square().mean()))
        run = gnorm.prune(own.model, own.scoring, own.choosing, "random", metric="accuracy", steps=2, progress=False)
        reloaded = gnorm.load_pruned(shipping.ship(own, run, "smaller", 1, by="heads"))
        assert problem_of(reloaded) is PROBLEMS[problem]
        assert "model(**inputs).logits.sigmoid().item()" in Path("smaller/README.md").read_text()
        assert reloaded.config.sentence_transformers == {"activation_fn": SIGMOID}


def test_answers_and_choices_are_read_from_simple_columns():
    table = pd.DataFrame({"question": ["q", "q"], "context": ["a b a", "b c"], "answer": ["a", " c"]})
    with pytest.raises(ValueError, match="row 1 of the DataFrame has the answer 'a' 2 times: say its answer_start"):
        labels_for("question_answering", table)
    assert labels_for("question_answering", table.assign(answer_start=["4", 1])) == [(4, 5), (2, 3)]
    assert labels_for("question_answering", table[1:]) == [(2, 3)]
    columns = {"text": ["a"], "choice_0": ["b"], "choice_1": ["c"], "choice_2": ["d"], "label": ["2"]}
    assert labels_for("multiple_choice", pd.DataFrame(columns)) == [2]


REFUSED = [  # problem, columns, the error
    ("regression", {"text": ["a", "b"], "label": ["1", "x"]}, "row 2 of .* has 'x' in the place of a number: write"),
    ("regression", {"text": ["a", "a"], "label": [1, 2]}, "rows 1 and 2 of .* the same text with the labels 1 and 2"),
    ("binary_classification", {"text": ["a"], "label": [1.5]}, "row 1 of .* has the label 1.5, the model gives prob"),
    ("binary_classification", {"text": ["a"], "label": ["yes"]}, "row 1 of .* has 'yes' in the place of a number"),
    ("regression", {"text": ["a"]}, "has no column 'label': name its columns text and label, a number, or"),
    (
        "multi_label_classification",
        many(["red|pink"]),
        r"row 1 of .* has the label 'red\|pink'; the model knows red, g",
    ),
    ("multi_label_classification", many([["red"], ["pink"]]), "row 2 of .* has the label 'pink'; the model knows"),
    (
        "multi_label_classification",
        {"text": ["a"], "red": [1], "green": [2], "blue": [0]},
        "row 1 of .* has 2 for a class: write 1 for the classes that it has, 0 for others",
    ),
    (
        "token_classification",
        {"tokens": ["a b"], "tags": ["red red"]},
        "has 'a b' as tokens, which is not a list: write l",
    ),
    (
        "token_classification",
        {"tokens": [["a", "b"]], "tags": [["red"]]},
        "row 1 .* has no list of 2 tags, one for",
    ),
    ("token_classification", {"tokens": [["a"]], "tags": [["pink"]]}, "row 1 of .* has the label 'pink'; the model"),
    (
        "question_answering",
        {"question": ["q"], "context": ["b"], "answer": ["c"], "answer_start": [0]},
        "row 1 of .* has no answer 'c' at character 0 of its context: count from 0",
    ),
    ("question_answering", {"question": ["q"], "context": ["b"], "answers": ["c"]}, "has 'c' as answers: write texts"),
    ("multiple_choice", {"text": ["a"], "choices": [["b", "c"]], "label": [2]}, "has the label 2: count its 2 choices"),
    (
        "multiple_choice",
        {"text": ["a", "d"], "choices": [["b", "c"], ["b"]], "label": [1, 0]},
        "row 2 of .* has not 2 strings as choices, as the first row has",
    ),
    ("causal_lm", {"texts": ["a"]}, "has no column 'text': name its columns text; it has 'texts'"),
    ("seq2seq_lm", {"text": ["a"], "target": [" "]}, "row 1 of .* has an empty target: fill it in or delete it"),
]


@pytest.mark.parametrize(("problem", "columns", "complaint"), REFUSED)
def test_cells_that_will_not_do_are_named_by_row(problem, columns, complaint):
    with pytest.raises(ValueError, match=complaint) as caught:
        labels_for(problem, pd.DataFrame(columns))
    assert str(caught.value).endswith(".")


def test_lists_that_can_be_read_both_ways_are_refused():
    two = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    with pytest.raises(ValueError, match="the lists of 0 and 1 in label may be numbers of classes, or say which class"):
        labels_for("multi_label_classification", pd.DataFrame(many([[0, 1], [1, 0]])), **two)
    assert labels_for("multi_label_classification", pd.DataFrame(many([[0, 1], [1, 1]])), **two)[1] == [1.0, 1.0]


def test_a_tokenizer_that_lacks_what_the_task_needs_is_refused():
    save("masked_lm")
    path = Path("checkpoint/tokenizer_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "mask_token": None}))
    with pytest.raises(ValueError, match="the tokenizer of checkpoint has no mask token: set its mask_token and save"):
        shipping.load("checkpoint", write("masked_lm"))


def checkpoint(kind, tokenizer, **changes):
    """A tiny model with its tokenizer, in the folder checkpoint."""
    sizes = {"vocab_size": len(PIECES), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    sizes |= {"decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "n_embd": 16}
    sizes |= {"n_layer": 2, "n_head": 2, "max_position_embeddings": 40, "n_positions": 40, "pad_token_id": 0}
    sizes |= {"eos_token_id": 3, "bos_token_id": 2, "decoder_start_token_id": 3, "num_labels": 3}
    kind = getattr(transformers, kind)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(kind.config_class(**sizes | {"initializer_range": 0.2, "init_std": 0.2} | changes)).save_pretrained(
            "checkpoint"
        )
    tokenizer.save_pretrained("checkpoint")


def of_words(template="[CLS] $A [SEP]", **tokens):
    plain = Tokenizer(models.WordLevel(PIECES, unk_token="[UNK]"))
    plain.normalizer = normalizers.Replace("\u200b", "")
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template:
        special = [(name, PIECES[name]) for name in ("[CLS]", "[SEP]")]
        plain.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "[SEP]", "cls_token": "[CLS]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names | tokens)


def labelled_texts(**texts):
    """A table of 36 texts, in which some rows, by r and their number, are as given."""
    table = pd.DataFrame([ROWS["single_label_classification"](i) for i in range(36)])
    table["label"] = [i % 3 for i in range(36)]
    for name, changed in texts.items():
        table.loc[int(name[1:]) - 1, "text"] = changed
    return table


@pytest.mark.parametrize(
    ("made", "table", "complaint"),
    [
        (
            lambda: checkpoint("BartForSequenceClassification", of_words()),
            labelled_texts(r8="w1 [SEP] w3"),
            r"row 8 of a DataFrame \('w1 \[SEP\] w3'\): .* text 8 beside others \(ValueError: All .* number of <eos>",
        ),
        (
            lambda: checkpoint("BartForSequenceClassification", of_words(""), eos_token_id=2),
            labelled_texts(),
            "BartForSequenceClassification does not take text .*see what inputs the model is made for",
        ),
        (
            lambda: checkpoint("LlamaForSequenceClassification", of_words(), pad_token_id=None),
            labelled_texts(),
            "LlamaForSequenceClassification takes one text at a time .* set config.pad_token_id",
        ),
        (
            lambda: checkpoint("GPT2ForSequenceClassification", of_words(), pad_token_id=None),
            labelled_texts(),
            "GPT2ForSequenceClassification takes one text at a time .* set config.pad_token_id",
        ),
        (
            lambda: checkpoint("LlamaForSequenceClassification", of_words(), pad_token_id=9),
            labelled_texts(),
            "the tokenizer pads with token 0, config.pad_token_id is 9, and the model reads that as a part of the text",
        ),
        (
            lambda: checkpoint("BertForSequenceClassification", of_words("")),
            labelled_texts(r20="\u200b"),
            r"row 20 of a DataFrame \('\\u200b'\) has no token for the tokenizer: delete it",
        ),
    ],
)
def test_texts_that_the_model_does_not_take_are_named_before_a_run(made, table, complaint):
    made()
    with pytest.raises(ValueError, match=complaint):
        shipping.load("checkpoint", table)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "Llama", "Bart"])
def test_special_tokens_within_texts_are_read_as_the_tokenizer_reads_them(kind):
    checkpoint(f"{kind}ForSequenceClassification", of_words())
    special = {"r4": "w1 [PAD] w3", "r5": "[MASK] w2"} | (
        {} if kind == "Bart" else {"r6": "w2 [SEP] w3", "r7": "[CLS]"}
    )
    own = shipping.load("checkpoint", labelled_texts(**special), batch=7)
    for batch in own.testing:
        alone = [own.model(**{n: t[i : i + 1, : int(batch["attention_mask"][i].sum())] for n, t in batch.items()
                              if n != "labels"}).logits[0].argmax() for i in range(len(batch["labels"]))]  # fmt: skip
        assert gnorm.accuracy(own.model, [batch]) == float((torch.stack(alone) == batch["labels"]).double().mean())


@pytest.mark.parametrize("problem", ["single_label_classification", "multiple_choice", "causal_lm", "seq2seq_lm"])
def test_a_tokenizer_that_gives_no_mask_by_itself_is_asked_for_one(problem):
    save(problem)
    table = write(problem)
    expected = shipping.load("checkpoint", table)
    settings = json.loads(Path("checkpoint/tokenizer_config.json").read_text("utf-8"))
    names = [name for name in ("input_ids", "token_type_ids") if name in expected.testing[0]]
    Path("checkpoint/tokenizer_config.json").write_text(json.dumps({**settings, "model_input_names": names}), "utf-8")
    own = shipping.load("checkpoint", table)
    assert "attention_mask" not in own.tokenizer.model_input_names
    for batch, one in zip(own.testing, expected.testing, strict=True):
        assert batch.keys() == one.keys()
        assert all(torch.equal(batch[name], one[name]) for name in one)


def test_special_tokens_within_texts_are_never_to_be_found():
    save("masked_lm")
    rows = pd.DataFrame({"text": [f"{text(i)} [SEP] [MASK] [PAD] [CLS] {text(i + 1)}" for i in range(36)]})
    own = shipping.load("checkpoint", rows)
    labels = {int(i) for batch in own.testing for i in batch["labels"].unique()}
    assert labels
    assert labels.isdisjoint(range(5))


class Broken(transformers.BertForSequenceClassification):
    """It fails for a text that holds token 60, for two texts with token 61, or for all texts."""

    fails = "never"

    def forward(self, input_ids, attention_mask=None, **inputs):
        held = [(input_ids == token).any(1) for token in (60, 61)]
        if held[0].any() or held[1].sum() > 1 or self.fails == "always":
            raise KeyError("no such thing")
        return super().forward(input_ids, attention_mask, **inputs)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[8], [9], [60], [7]], r"Broken does not take text 2 \(KeyError: 'no such thing'\): correct the text"),
        ([[60], [9], [8], [7]], r"Broken does not take text 0 \(KeyError"),
        ([[60]], r"Broken does not take text 0 \(KeyError"),
        ([[8], [61], [9], [61]], r"Broken does not take text 0, 1, 2, 3 \(KeyError"),
        ([[60], [60], [60]], r"Broken does not take text 0, 1, 2 \(KeyError.*: see what inputs the model is made for"),
        ([[60]] * 7, r"Broken does not take text 0, 1, 2, 3, 4 and others"),
    ],
)
def test_whatever_a_model_raises_becomes_a_sentence_that_names_the_text(tokens, message):
    model = Broken(transformers.BertConfig(vocab_size=70, num_labels=3, **SIZES)).eval()
    ids = torch.tensor(tokens)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(len(ids)).long()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = len(tokens) == 4 and tokens[2] == [60]  # of the texts, by every door
    for ask in (gnorm.accuracy, gnorm.gnorm_scores, gnorm.attention_entropy, gnorm.prune)[: 4 if first else 1]:
        with pytest.raises(ValueError, match=message) as raised:
            ask(model, [batch])
        assert isinstance(raised.value.__cause__, KeyError)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_out_of_memory_and_errors_of_our_own_stay_what_they_are(monkeypatch):
    model = Broken(transformers.BertConfig(vocab_size=70, num_labels=3, **SIZES)).eval()
    batch = {"input_ids": torch.tensor([[8], [9]]), "labels": torch.zeros(2).long()}
    for error in (MemoryError("no room"), torch.OutOfMemoryError("no room")):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(Broken, "forward", fails)
        with pytest.raises(type(error), match="^no room$"):
            gnorm.accuracy(model, [batch])


LETTERS = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"w0123456789"])}
SPEAKERS = {  # tokenizers of many languages, and languages that each knows
    "nllb": (lambda **options: transformers.NllbTokenizer(vocab=LETTERS, merges=[], **options), "eng_Latn", "fra_Latn"),
    "mbart": (lambda **options: transformers.MBartTokenizer(**options), "en_XX", "ro_RO"),
    "mbart50": (lambda **options: transformers.MBart50Tokenizer(**options), "en_XX", "ro_RO"),
}


@pytest.mark.parametrize("name", SPEAKERS)
def test_translators_of_many_languages_need_one_that_they_know(name):
    make, source, aim = SPEAKERS[name]
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    words = len(make()) + 8
    model = transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(vocab_size=words, encoder_attention_heads=2, decoder_attention_heads=2, **sizes)
    )
    table = pd.DataFrame([ROWS["seq2seq_lm"](i) for i in range(36)])
    for languages, complaint in (
        (
            {"src_lang": source},
            "the tokenizer of checkpoint names no tgt_lang: set its tgt_lang to the language of the",
        ),
        ({"src_lang": source, "tgt_lang": "French"}, "does not know its tgt_lang, 'French': set its tgt_lang to"),
    ):
        model.save_pretrained("checkpoint")
        tokenizer = make(src_lang=source)
        tokenizer.tgt_lang = languages.get("tgt_lang")
        tokenizer.save_pretrained("checkpoint")
        with pytest.raises(ValueError, match=complaint):
            shipping.load("checkpoint", table)
    tokenizer.tgt_lang = aim  # as the message says
    tokenizer.save_pretrained("checkpoint")
    own = shipping.load("checkpoint", table)
    labels = torch.cat([batch["labels"].flatten() for batch in own.testing])
    assert not (labels == tokenizer.convert_tokens_to_ids(source)).any()
    assert (labels == tokenizer.convert_tokens_to_ids(aim)).sum() == len(torch.cat([b["labels"] for b in own.testing]))
