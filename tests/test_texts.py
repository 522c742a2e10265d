"""Tables of texts and labels as users have them: what is read, which class a label is, and what is refused."""

import gzip
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from transformers import BertConfig

from gnorm.shipping.readers import labelled
from gnorm.shipping.texts import name_of
from gnorm.storage.labels import class_names, classes_of

STARS = ["1", "2", "3", "4", "5"]
DEFAULT = ["LABEL_0", "LABEL_1"]
CSV = "text,label\na,pos\nb,neg\n"
LINES = '{"text":"a","label":"pos"}\n{"text":"b","label":"neg"}\n'


def config_of(names=("neg", "pos"), **changes):
    mappings = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return BertConfig(**{**mappings, **changes})


def classes(column, names=("neg", "pos"), labels=None):
    """The class numbers of a column of a DataFrame, each label with a text of its own."""
    texts = [f"text {i}" for i in range(len(column))]
    table = labelled(pd.DataFrame({"text": texts, "label": column}), config_of(names), "my-model", labels)
    assert table.text.tolist() == texts
    return table.label.tolist()


def a_dataset(names, numbers):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": [f"t{i}" for i in range(len(numbers))], "label": numbers}, features)


@pytest.fixture(autouse=True)
def _at_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.csv", CSV.replace(",", ";")),
        ("a.tsv", CSV.replace(",", "\t")),
        ("a.txt", CSV.replace(",", "|")),
        ("a.csv", CSV.replace("text,label", "Text, LABEL ")),
        ("a.csv", CSV.replace("text,label", '"text","label"').replace("\n", "\r\n")),
        ("a.csv", "\ufeff" + CSV),
        ("a.csv", '\ufeff"text","label"\na,pos\nb,neg\n'),
        ("a.csv", "number,text,label\n0,a,pos\n1,b,neg\n"),
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("a.jsonl", LINES),
        ("a.json", "\ufeff" + LINES),
        ("a.ndjson.gz", gzip.compress(LINES.encode(), mtime=0)),
        ("a.json", f"[{LINES.strip()}]".replace("\n", ",")),
        ("a.json", '{"text":["a","b"],"label":["pos","neg"]}'),
    ],
)
def test_a_file_is_read_whatever_its_dialect(name, content):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for path in (name, Path(name)):
        table = labelled(path, config_of(), "my-model")
        assert (table.text.tolist(), table.label.tolist()) == (["a", "b"], [1, 0])


def test_cells_keep_separators_line_breaks_and_what_looks_like_something_else():
    Path("a.csv").write_text('text;text pair;label\n"a;\nb";NA;pos\n 007;null;neg\n')
    table = labelled("a.csv", config_of(), "my-model")
    assert table.to_dict("list") == {"text": ["a;\nb", " 007"], "text_pair": ["NA", "null"], "label": [1, 0]}
    Path("a.jsonl").write_text('{"text":"2020-01-01","label":"01"}\n{"text":"1577836800","label":0}\n')
    table = labelled("a.jsonl", config_of(), "my-model")
    assert table.to_dict("list") == {"text": ["2020-01-01", "1577836800"], "label": [1, 0]}


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", "", "a.csv cannot be read: it is empty"),
        ("a.csv", "\n\n", r"a.csv cannot be read as CSV \(No columns"),
        ("a.csv", CSV.encode("utf-16"), "a.csv is in UTF-16: save it as UTF-8"),
        ("a.csv", CSV.encode("utf-16-le"), "a.csv is in UTF-16: save it as UTF-8"),
        ("a.csv", CSV.encode("utf-32"), "a.csv is in UTF-32: save it as UTF-8"),
        ("a.csv", "text,label\ncafé,pos\n".encode("latin-1"), 'cannot be read as UTF-8 .* such as "latin-1"'),
        ("a.json", '{"text":"café","label":1}'.encode("latin-1"), "cannot be read as UTF-8"),
        ("a.csv", gzip.compress(CSV.encode(), mtime=0), "a.csv is compressed by gzip: end its name in .gz"),
        ("a.csv.gz", gzip.compress(CSV.encode() * 99, mtime=0)[:-9], "a.csv.gz cannot be read as CSV .*: save it anew"),
        ("a.csv.gz", CSV, r"a.csv.gz cannot be read as CSV \(Not a gzipped file"),
        ("a.xlsx", b"PK\x03\x04...", "a.xlsx is an Excel or zip file: save it as CSV"),
        ("a.csv", b"PAR1...", "a.csv is a Parquet file: end its name in .parquet"),
        ("a.arrow", b"\xff\xff\xff\xff...", "a.arrow is an Arrow file: give datasets.Dataset.from_file of it"),
        ("a.parquet", CSV, r"a.parquet cannot be read as Parquet \(.*\): save it anew as Parquet"),
        ("a.csv", "text,label\na,b,pos\n", "Expected 2 fields in line 2, saw 3.*: put texts that hold a separator"),
        ("a.tsv", 'text\tlabel\n"a\tpos\nb\tneg\n"c\tneg\n', "a cell that begins with a quote runs on over rows"),
        ("a.csv", "text,label\na\nb,pos\n", "row 1 of a.csv has an empty label: fill it in or delete it"),
        ("a.csv", "text,label\na,pos\n ,neg\n", "row 2 of a.csv has an empty text: fill it in or delete it"),
        ("a.csv", "text,Text,label\na,b,pos\n", r"a.csv has the column 'text' 2 times \('text', 'Text'\): keep one"),
        ("a.csv", "text,label,label\na,pos,neg\n", r"has the column 'label' 2 times"),
        ("a.csv", "sentence;label\na, b, c;pos\n", r"no column 'text': .*; it has 'sentence', 'label'\.$"),
        ("a.csv", "what a film,pos\nb,neg\n", "no column 'label': .*; it has 'what a film', 'pos'"),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":"b"}\n', "row 2 of a.jsonl has an empty label"),
        ("a.jsonl", '{"text":"a","label":1}\n{"label":1}\n', "row 2 of a.jsonl has an empty text"),
        ("a.jsonl", '{"text":"a","label":null}', "row 1 of a.jsonl has an empty label"),
        (
            "a.jsonl",
            '{"text":5,"label":1}',
            "row 1 of a.jsonl has 5 as text, which is not a string: make it a column of strings",
        ),
        ("a.jsonl", '{"text":"a","label":1}\n{"text":\n', r"a.jsonl cannot be read as JSON-lines \(.*\): save it anew"),
        ("a.json", '{"data":[{"text":"a","label":1}]}', "a.json has no column 'label': .*; it has 'data'"),
    ],
)
def test_a_file_that_will_not_do_is_named_with_what_is_wrong(name, content, complaint):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=complaint):
        labelled(name, config_of(), "my-model")


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv is not there: give a CSV file with columns text and label"):
        labelled("none.csv", config_of(), "my-model")
    with pytest.raises(ValueError, match="is a folder: give a file in it"):
        labelled(tmp_path, config_of(), "my-model")
    splits = datasets.DatasetDict({"train": a_dataset(["neg", "pos"], [0]), "test": a_dataset(["neg", "pos"], [1])})
    with pytest.raises(TypeError, match=r"holds the splits train, test: give one of them, as texts\['train'\]"):
        labelled(splits, config_of(), "my-model")
    for odd in ({"text": ["a"], "label": [0]}, [("a", 0)], None, b"a.csv"):
        with pytest.raises(TypeError, match=f"texts is of type {type(odd).__name__}: give the path of a CSV"):
            labelled(odd, config_of(), "my-model")


def test_tables_in_memory_are_as_good_as_files():
    frame = pd.DataFrame({"Text": ["a", "b", "a"], "label": pd.Categorical(["pos", "neg", "pos"])}, index=[7, 7, 7])
    assert labelled(frame, config_of(), "my-model").to_dict("list") == {"text": ["a", "b"], "label": [1, 0]}
    assert frame.columns.tolist() == ["Text", "label"]
    assert name_of(frame) == "a DataFrame"
    assert name_of(Path("somewhere/a.csv")) == name_of("somewhere/a.csv") == "a.csv"
    for given in (a_dataset(["pos", "neg"], [0, 1]), a_dataset(["pos", "neg"], [0, 1]).to_iterable_dataset()):
        assert labelled(given, config_of(), "my-model").label.tolist() == [1, 0]
    assert name_of(given) == "a IterableDataset"


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        (["a", np.nan], "row 2 of the DataFrame has an empty text"),
        (pd.array(["a", None], dtype="string"), "row 2 of the DataFrame has an empty text"),
        (["a", 5], "row 2 of the DataFrame has 5 as text, which is not a string: make it a column of strings"),
        ([["a"], ["b"]], r"row 1 of the DataFrame has \['a'\] as text"),
    ],
)
def test_texts_in_memory_that_are_none_are_named_by_row(column, complaint):
    with pytest.raises(ValueError, match=complaint):
        labelled(pd.DataFrame({"text": column, "label": ["pos", "neg"]}), config_of(), "my-model")


REJECTED = {  # columns of annotation tools, with whether each row counts
    "answer": (["accept", "reject", "ignore", "accept"], "1001"),  # Prodigy
    " Answer": (["ACCEPT", "accept", None, "Reject"], "1110"),
    "status": (["Validated", "Discarded", "Default", ""], "1011"),  # Argilla
    "label.responses.status": ([["submitted"], ["discarded"], ["submitted", "discarded"], []], "1011"),
    "AssignmentStatus": (["Approved", "Submitted", "Rejected", "Approved"], "1101"),  # Mechanical Turk
    "Reject": (["", "x", None, ""], "1011"),
    "was_cancelled": ([False, True, False, False], "1011"),  # Label Studio
    "isSkipped": (["false", "true", "true", "false"], "1001"),
    "rejected": ([0, 1.0, np.nan, 0], "1011"),
    "status of it": (["open", "rejected", "rejected", "closed"], "1111"),  # of something else
    "skipped": (["a song", "skip", "", "reject"], "1111"),
    "answers": (["yes", "reject", "no", "no"], "1111"),
}


@pytest.mark.parametrize("name", REJECTED)
@pytest.mark.parametrize("in_a_file", [False, True])
def test_rows_that_an_annotator_rejected_are_left_out_and_said(name, in_a_file, tmp_path, caplog):
    column, expected = REJECTED[name]
    counts = [bit == "1" for bit in expected]
    labels = [label if counted else "" for label, counted in zip(["pos", "neg", "pos", "neg"], counts, strict=True)]
    table = pd.DataFrame({"text": list("abcd"), "label": labels, name: column})
    if in_a_file:
        table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
        table = tmp_path / "a.jsonl"
    read = labelled(table, config_of(), "my-model")
    assert read.text.tolist() == [text for text, counted in zip("abcd", counts, strict=True) if counted]
    assert read.index.tolist() == [row for row, counted in enumerate(counts, 1) if counted]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if all(counts) else 1)
    assert all(f"{counts.count(False)} of 4 rows of" in one and repr(name) in one for one in said)


def test_rows_keep_their_numbers_where_others_are_left_out():
    def table(**columns):
        answers = ["reject", "accept", "ignore", "accept", "accept"]
        return pd.DataFrame({"text": list("vwxyz"), "label": ["neg"] * 5, "answer": answers} | columns)

    for changed, complaint in (
        ({"label": ["neg", "neg", "?", "neg", "none"]}, "row 5 of the DataFrame has the label 'none'"),
        ({"text": ["v", "w", None, "y", ""]}, "row 5 of the DataFrame has an empty text"),
        ({"text": list("vwxyw"), "label": ["neg"] * 4 + ["pos"]}, "rows 2 and 5 of the DataFrame hold the same text"),
        ({"text": ["v", "w", "x", 7, "z"]}, "row 4 of the DataFrame has 7 as text"),
    ):
        with pytest.raises(ValueError, match=complaint):
            labelled(table(**changed), config_of(), "my-model")


def test_a_column_that_may_say_which_rows_were_rejected_is_asked_about():
    table = pd.DataFrame({"text": ["a", "b"], "label": ["pos", "neg"], "decision": ["accept", "reject"]})
    with pytest.raises(ValueError, match=r"'decision' .* seems to say which rows were rejected \(row 2 has 'reject'\)"):
        labelled(table, config_of(), "my-model")
    both = pd.DataFrame({"text": ["a", "b"], "label": ["accept", "reject"]})
    assert labelled(both, config_of(names=["accept", "reject"]), "my-model").label.tolist() == [0, 1]


def test_a_text_with_two_labels_is_refused_and_one_that_comes_twice_is_taken_once():
    frame = pd.DataFrame({"text": ["a", "b", "b", "a"], "label": ["pos", "neg", "NEG", "neg"]})
    assert labelled(frame[:3], config_of(), "my-model").text.tolist() == ["a", "b"]
    complaint = r"rows 1 and 4 of the DataFrame hold the same text with the labels 'pos' and 'neg' \(1 row contradicts"
    with pytest.raises(ValueError, match=complaint):
        labelled(frame, config_of(), "my-model")
    pairs = frame.assign(text_pair=["x", "x", "x", "y"])
    assert labelled(pairs, config_of(), "my-model").label.tolist() == [1, 0, 0]


# ------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("names", "column", "numbers"),
    [
        (["neg", "pos"], ["pos", "neg"], [1, 0]),
        (["neg", "pos"], [" POS", "Neg "], [1, 0]),
        (["neg", "pos"], ["1", "00", "1.0", " 1"], [1, 0, 1, 1]),
        (["neg", "pos"], [1, 0], [1, 0]),
        (["neg", "pos"], [1.0, 0.0], [1, 0]),
        (["neg", "pos"], np.array([1, 0], dtype="int8"), [1, 0]),
        (["neg", "pos"], pd.array([1, 0], dtype="Int64"), [1, 0]),
        (["neg", "pos"], pd.Categorical([1, 0]), [1, 0]),
        (["us", "US"], ["US", "us"], [1, 0]),  # told apart by their case alone
        (["False", "True"], [True, False], [1, 0]),
        (["False", "True"], ["true", "FALSE"], [1, 0]),
        (["0", "1"], [1, 0], [1, 0]),  # either reading is the same
        (STARS, STARS, [0, 1, 2, 3, 4]),
        (STARS, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),  # 0 is no name: all are numbers
        (STARS, [5.0, 1.0], [4, 0]),  # 5 is no number: all are names
        (STARS, ["05", "1"], [4, 0]),
        (["-1", "0", "1"], ["-1", "0", "1"], [0, 1, 2]),
        (["-1", "0", "1"], ["0", "1", "2"], [0, 1, 2]),
        (DEFAULT, ["LABEL_1", "label_0"], [1, 0]),
        (DEFAULT, ["1", "0"], [1, 0]),
        (DEFAULT, [True, False], [1, 0]),
        (DEFAULT, ["True", "False"], [1, 0]),
    ],
)
def test_labels_are_read_by_name_or_by_number_the_whole_column_at_once(names, column, numbers):
    assert classes(column, names) == numbers


@pytest.mark.parametrize(
    ("names", "column"),
    [(STARS, ["1", "4"]), (STARS, [4, 1]), (STARS, ["01", "4.0"]), (["-1", "0", "1"], [0, 1]), (["1", "0"], [0, 1])],
)
def test_labels_that_can_be_read_both_ways_have_to_be_explained(names, column):
    complaint = f"may be names or numbers of classes, and {column[0]!r} is the name of class .*: say labels="
    with pytest.raises(ValueError, match=complaint):
        classes(column, names)
    assert classes(column, names, "numbers") == [int(float(cell)) for cell in column]
    assert classes(column, names, "names") == [names.index(str(int(float(cell)))) for cell in column]


@pytest.mark.parametrize(
    ("names", "column", "complaint"),
    [
        (
            ["neg", "pos"],
            ["pos", "xx"],
            "row 2 of the DataFrame has the label 'xx'; the model knows neg, pos: write these",
        ),
        (
            ["neg", "pos"],
            ["pos", "1"],
            "row 2 of the DataFrame has the label '1'; the model knows neg, pos: .* in all rows",
        ),
        (
            ["neg", "pos"],
            [0, 2],
            "row 2 of the DataFrame has the label 2; the model knows classes 0 to 1: count classes from 0",
        ),
        (
            ["neg", "pos"],
            [0, -100],
            "has the label -100; the model knows classes 0 to 1: .* delete rows that have none",
        ),
        (["neg", "pos"], pd.Series([0, np.int64(7)], dtype=object), "has the label 7;"),
        (["neg", "pos"], [0.5, 1.0], "row 1 of the DataFrame has the label 0.5"),
        (["neg", "pos"], [True, False], "has the label True; the model knows neg, pos"),
        (["neg", "pos"], [[0], [1]], r"has the label \[0\]; the model knows neg, pos"),
        (["neg", "pos"], ["pos", None], "row 2 of the DataFrame has an empty label"),
        (["neg", "pos"], [1, np.nan], "row 2 of the DataFrame has an empty label"),
        (["us", "US"], ["us", "Us"], "row 2 of the DataFrame has the label 'Us'"),
        (DEFAULT, ["pos", "neg"], "or name the classes in id2label and label2id in config.json of my-model"),
        ([f"c{i}" for i in range(77)], ["zz"], "the model knows c0, .*, c11 and 65 others"),
    ],
)
def test_labels_that_are_no_class_are_named_by_row(names, column, complaint):
    with pytest.raises(ValueError, match=complaint):
        classes(column, names)


def test_the_reading_that_was_asked_for_is_the_only_one():
    with pytest.raises(ValueError, match="has the label 5; the model knows classes 0 to 4"):
        classes([1, 5], STARS, "numbers")
    with pytest.raises(ValueError, match="has the label 0; the model knows 1, 2, 3, 4, 5"):
        classes([1, 0], STARS, "names")
    with pytest.raises(ValueError, match="labels='name' is not known"):
        classes([1, 0], STARS, "name")


@pytest.mark.parametrize(
    ("declared", "numbers", "names", "expected"),
    [
        (["pos", "neg"], [0, 1], ["neg", "pos"], [1, 0]),
        (["neutral", "neg", "pos"], [1, 2], ["neg", "pos"], [0, 1]),
        (["pos", "neg"], [0, 1], DEFAULT, [0, 1]),  # the model has no names: it was trained on these numbers
        (["LABEL_1", "LABEL_0"], [0, 1], DEFAULT, [1, 0]),
        (STARS, [0, 3], STARS, [0, 3]),
        (STARS, [0, 4], [f"LABEL_{i}" for i in range(5)], [0, 4]),
        (["0", "1"], [0, 1], ["neg", "pos"], [0, 1]),
    ],
)
def test_the_names_that_a_data_set_declares_count(declared, numbers, names, expected):
    dataset = a_dataset(declared, numbers)
    assert labelled(dataset, config_of(names), "my-model").label.tolist() == expected
    dataset.to_parquet("a.parquet")  # datasets writes the names along
    assert labelled("a.parquet", config_of(names), "my-model").label.tolist() == expected


@pytest.mark.parametrize(
    ("names", "declared", "meanings", "cells", "expected"),
    [
        (["neg", "pos"], None, {"0": "neg", "1": "", "2": "pos"}, [2, 1, "0", 2.0], [1, -100, 0, 1]),
        (["neg", "pos"], None, {"bad": "neg"}, ["bad", "POS"], [0, 1]),
        (["neg", "pos"], ["bad", "good"], {"bad": "neg", "good": "pos"}, [1, 0], [1, 0]),
        (["neg", "pos"], ["x", "y"], {"0": "pos", "1": "neg"}, [1, 0], [0, 1]),  # the number before the name
        (DEFAULT, None, {"2": "no", "4": "yes"}, [4, 2], [1, 0]),  # the model numbers its classes: in this order
        (["neg", "pos"], None, {"5": "neg"}, [5, 1], "row 2 of t has the label '?1'?; the model knows neg, pos"),
        (["neg", "pos"], None, {"5": "so so"}, [5], "row 1 of t has the label 'so so'; the model knows neg, pos"),
    ],
)
def test_labels_stand_for_the_classes_that_they_are_said_to(names, declared, meanings, cells, expected):
    if isinstance(expected, list):
        assert classes_of(cells, names, declared, None, "t", "my-model", None, meanings) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            classes_of(cells, names, declared, None, "t", "my-model", None, meanings)


def test_declared_names_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match="row 1 of the Dataset has the label 'good'; the model knows neg, pos"):
        labelled(a_dataset(["good", "bad"], [0, 1]), config_of(), "my-model")
    with pytest.raises(ValueError, match="row 2 of the Dataset has the label -1"):
        labelled(a_dataset(["pos", "neg"], [0, -1]), config_of(), "my-model")
    with pytest.raises(ValueError, match="may be names or numbers"):  # 0 and 1, which the names only repeat
        labelled(a_dataset(["0", "1"], [0, 1]), config_of(["-1", "0", "1"]), "my-model")


# ------------------------------------------------------------------------------------------ names of classes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label2id": None},
        {"label2id": {"LABEL_0": 0, "LABEL_1": 1}},
        {"id2label": {0: "LABEL_0", 1: "LABEL_1"}},
        {"problem_type": "single_label_classification"},
    ],
)
def test_class_names_come_from_the_mapping_that_has_them(changes):
    assert class_names(config_of(**changes), "my-model") == ["neg", "pos"]


def test_class_names_may_differ_in_case_and_be_no_strings():
    assert class_names(config_of(label2id={"Neg": 0, "POS": 1}), "my-model") == ["neg", "pos"]
    flags = config_of(id2label={0: False, 1: True}, label2id={"false": 0, "true": 1})
    assert class_names(flags, "my-model") == ["False", "True"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"label2id": {"neg": "0", "pos": "1"}},
            "label2id in config.json of my-model gives '0' for 'neg': write the num",
        ),
        ({"label2id": {"neg": 0.0, "pos": 1.0}}, "label2id in config.json of my-model gives 0.0 for 'neg'"),
        ({"label2id": {"neg": 1, "pos": 0}}, "gives 1 for 'neg', id2label 0: correct the one that is wrong"),
        ({"label2id": {"neg": 0}}, "gives no number for 'pos', id2label 1: correct"),
        ({"label2id": {"neg": 0, "pos": 1, "x": 2}}, "gives 2 for 'x', id2label none: correct"),
        ({"id2label": {0: "neg", 2: "pos"}}, "id2label in config.json of my-model names 2 classes, but none 1"),
        ({"id2label": {0: "neg", 1: None}}, "id2label in config.json of my-model names 2 classes, but none 1"),
        ({"id2label": {0: "neg", 1: "neg"}}, "id2label in config.json of my-model names two classes 'neg'"),
        (
            {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"neg": 0, "pos": 0}},
            "label2id in config.json of my-model must give each number from 0 to 1 once",
        ),
    ],
)
def test_class_names_that_contradict_or_lack_are_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        class_names(config_of(**changes), "my-model")
