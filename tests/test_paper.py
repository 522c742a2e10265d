"""The paper profile against a hub of our own: what the profile says, what is fetched, what happens when it fails."""

import dataclasses
import errno
import io
import json
import os
import re
import socket
import time
from functools import partial
from pathlib import Path
from unittest import mock

import datasets
import huggingface_hub
import pandas as pd
import pytest
import torch
from hub import (
    Hub,
    aim,
    cached,
    checkpoint,
    csv,
    cut,
    language_pieces,
    parquet,
    repositories,
    short,
    status,
    wordpiece,
)
from huggingface_hub import constants
from pipeline import call, execute, in_process, saved_methods
from precision import close
from test_run_all import FIGURES, TABLES
from transformers import AutoConfig, AutoModelForSequenceClassification

import gnorm
import run_all
from experiments.analysis.published import against_published
from experiments.data import hub, profiles, reading, tasks
from experiments.data.profiles import PROFILES, read_profile
from experiments.files import paths
from experiments.files.paths import figures_folder, results_folder, run_folder, tables_folder
from experiments.pipeline import preflight, runner
from experiments.report import rendering
from experiments.runs import intact, results
from gnorm.engine.model import blocks as heads
from gnorm.shipping.costs import memory_mb, num_parameters

ROOT = Path(__file__).parents[1]
BERT = ("models", "hw2942/bert-base-chinese-finetuning-financial-news-sentiment-v2")
NEWS = ("datasets", "hw2942/financial-news-sentiment")
MNLI = ("models", "Alireza1044/albert-base-v2-mnli")
TWEETS = ("datasets", "rahmaabusalma/tweets_sentiment_analysis")
LANGUAGES = ("datasets", "papluca/language-identification")
PAPER = read_profile("paper")


@pytest.fixture(scope="session")
def server():
    with Hub(repositories()) as server:
        yield server


@pytest.fixture
def home(server, tmp_path, monkeypatch):
    """An empty HF_HOME whose hub is the one of these tests; returns it."""
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path / "results"))
    aim(monkeypatch, tmp_path / "hf home", server.url)
    yield tmp_path / "hf home"
    huggingface_hub.utils.close_session()


# ---------------------------------------------------------------- what the paper says

CONFIGURATIONS = {
    "bert": {"vocab_size": 21128},
    "albert": {
        "embedding_size": 128,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 30000,
    },
    "roberta": {
        "vocab_size": 50265,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "xlm-roberta": {"vocab_size": 250002, "max_position_embeddings": 514, "type_vocab_size": 1},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_parameters_before_and_after_the_published_solution_are_the_published_ones(name):
    spec = PAPER.models[name]
    config = AutoConfig.for_model(name, num_labels=spec.checkpoint.classes, **CONFIGURATIONS[name])
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    mask = gnorm.head_mask_of(model)
    assert mask.numel() == spec.published.heads
    assert num_parameters(model) == spec.published.parameters[0]
    assert round(memory_mb(model), 2) == spec.published.mb[0]
    mask.view(-1)[torch.arange(spec.published.heads_pruned) * 7 % mask.numel() if name != "albert" else range(3)] = (
        False
    )
    assert int(mask.sum()) == spec.published.heads - spec.published.heads_pruned
    gnorm.remove_heads(model, mask)
    assert num_parameters(model) == spec.published.parameters[1]
    assert round(memory_mb(model), 2) == pytest.approx(spec.published.mb[1], abs=0.011)


def test_the_profile_holds_the_sizes_of_the_paper():
    sizes = {
        name: [(s.split, s.texts, s.batch) for s in (m.scoring, m.evaluation, m.entropy)]
        + [(m.random.trials, m.random.heads_per_step)]
        for name, m in PAPER.models.items()
    }  # fmt: skip
    matched, validation = "validation_matched", "validation"
    assert sizes == {
        "bert": [("train", "all", 32)] * 3 + [(100, 6)],
        "albert": [(matched, "all", 32)] * 3 + [(25, 1)],
        "roberta": [(validation, 250, 4), (validation, 1000, 32), (validation, "all", 32), (25, 16)],
        "xlm-roberta": [(validation, 500, 8), (validation, 3000, 32), (validation, "all", 32), (25, 6)],
    }
    assert PAPER.protocol == "paper"
    for spec in PAPER.models.values():
        before, after = spec.published.accuracy
        close(spec.budget, before - after, torch.float64, scale=1)
        assert spec.published.area.keys() == gnorm.METHODS.keys()
        assert spec.published.curve.keys() == gnorm.METHODS.keys() - {"random"}
        assert all(len(values) == 5 for values in spec.published.curve.values())
        assert {values[0] for values in spec.published.curve.values()} == {round(before, 3)}


# ---------------------------------------------------------------- what is fetched, and what becomes of it


def test_assets_are_reachable_then_cached_and_then_need_no_hub(server, home, monkeypatch):
    assets = PAPER.assets(list(PAPER.models)) + PAPER.inspected
    assert [found.status for found in hub.look_up(assets)] == ["reachable"] * 9
    fetched = [hub.fetch(found) for found in hub.look_up(assets)]
    asked = [line for line in server.log if "training_args.bin" in line or ".py" in line or "/ax/" in line]
    assert not asked  # neither pickles that are no weights, nor code, nor another configuration
    assert not [line for line in server.log if "GET" in line and "mnli/train" in line]  # nor another split
    before = cached(home)
    again = hub.look_up(assets)
    assert [found.status for found in again] == ["cached"] * 9
    aim(monkeypatch, home, f"http://127.0.0.1:{_closed_port()}")
    offline = hub.look_up(assets)
    assert [(f.status, f.commit, f.files) for f in offline] == [(f.status, f.commit, f.files) for f in fetched]
    assert cached(home) == before
    task = tasks.load("paper", "bert", device="cpu")
    assert task.source["checkpoint"] == {
        "repo": BERT[1],
        "revision": "main",
        "commit": fetched[0].commit,
        "weights": "safetensors",
    }


def _closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_cache_that_others_filled_is_found(server, home, monkeypatch):
    """As transformers and datasets leave it: without refs, fetched by commit, only the files they read."""
    for found in hub.look_up(PAPER.models["bert"].assets):
        asset = found.asset
        for name in found.files:
            huggingface_hub.hf_hub_download(asset.repo, name, repo_type=asset.kind, revision=found.commit)
    assert not list(home.glob("hub/*/refs/*"))  # nor does a look at the hub write one
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [found.status for found in hub.look_up(PAPER.models["bert"].assets)] == ["cached", "cached"]
    assert tasks.load("paper", "bert", device="cpu").num_texts("evaluation") == 45


def test_a_look_at_the_hub_does_not_take_the_cache_away(server, home, monkeypatch):
    """The hub has a newer commit, which is not fetched."""
    asset = PAPER.models["bert"].checkpoint
    before = hub.find(asset)
    with server.replaced(BERT, {"config.json": server.content(BERT, "config.json").read() + b" "}):
        (newer,) = hub.look_up([asset])
    assert newer.status == "reachable"
    assert newer.commit != before.commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.find(asset).commit == before.commit


def test_what_changes_while_it_is_fetched_is_refused(server, home):
    (found,) = hub.look_up([PAPER.models["bert"].dataset])
    with (
        server.replaced(NEWS, {"README.md": b"new"}),
        pytest.raises(hub.AssetError, match="changed on the hub while it was fetched: run the same command again"),
    ):
        hub.fetch(found)


def test_a_split_in_two_files_is_read_whole(server, home):
    key, name = ("datasets", "nyu-mll/glue"), "mnli/validation_matched-0000{}-of-00002.parquet"
    whole = server.repositories[key]["mnli/validation_matched-00000-of-00001.parquet"]
    two = {"mnli/validation_matched-00000-of-00001.parquet": None, name.format(0): whole, name.format(1): whole}
    with server.replaced(key, two):
        found = hub.find(PAPER.models["albert"].dataset)
        assert len(reading.load_splits(found)["validation_matched"]) == 96


def test_other_layouts_do_as_well(server, home):
    """Pickled weights, other tokenizer files; labels named by a card, by Parquet, by text; other data files."""
    names = {"0": "negative", "1": "neutral", "2": "positive"}
    features = [{"name": "Title", "dtype": "string"}, {"name": "labels", "dtype": {"class_label": {"names": names}}}]
    card = {"features": features, "splits": [{"name": "train", "num_examples": 3}]}
    news = {"README.md": f"---\ndataset_info: {json.dumps(card)}\n---\n".encode(), "train.json": None}
    news |= {"data/train.csv": csv(Title=["a", "b", "c"], labels=[0, 1, 2])}
    with server.replaced(NEWS, news), server.replaced(BERT, tiny(pickled=True) | {"model.safetensors": None}):
        bert = tasks.load("paper", "bert", device="cpu")
    named = [bert.model.config.id2label[label] for label in bert.splits["train"]["label"]]
    assert named == ["Negative", "Neutral", "Positive"]
    assert bert.source["checkpoint"]["weights"].startswith("pickle")

    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "neutral", "positive"])}
    tweets = dict.fromkeys(("train_df.csv", "val_df.csv", "test_df.csv"))
    tweets |= {"data/validation-00000-of-00001.parquet": parquet(kinds, text=["a", "b", "c"], label=[2, 1, 0])}
    with server.replaced(TWEETS, tweets):
        roberta = tasks.load("paper", "roberta", device="cpu")
    assert roberta.splits["validation"]["label"][:] == [1, -100, 0]
    assert roberta.num_texts("scoring") == 3
    assert roberta.num_texts("evaluation") == 2

    rows = "".join(json.dumps({"labels": code, "text": "abd egi"}) + "\n" for code in ("th", "ja", "sw"))
    languages = dict.fromkeys(("train.csv", "valid.csv", "test.csv")) | {"validation.jsonl": rows.encode()}
    xlm_key = ("models", "papluca/xlm-roberta-base-language-detection")
    with (
        server.replaced(LANGUAGES, languages),
        server.replaced(xlm_key, language_pieces() | {"tokenizer.json": None}),
    ):
        xlm = tasks.load("paper", "xlm-roberta", device="cpu")
    assert [xlm.model.config.id2label[label] for label in xlm.splits["validation"]["label"]] == ["th", "ja", "sw"]
    assert xlm.num_texts("entropy") == 3


def test_the_estimate_counts_every_pass(server, home, monkeypatch):
    monkeypatch.setattr(tasks.timeit, "repeat", lambda *_, **__: [3.0, 1.0])
    found = hub.find(PAPER.models["bert"].checkpoint)
    second = 2 / 32  # a text: two layers, batches of 32
    greedy, once, random = 8, 1 + 8, 100 * 2  # 8 heads; of 100 trials each takes 8 heads in 2 steps
    expected = (2 * greedy + 2 * once + random) * 2329 * second
    close(tasks.estimate(PAPER.models["bert"], reading.load_config(found), "cpu"), expected, torch.float64)


def test_a_task_changes_with_the_commits_of_its_assets(server, home):
    before = tasks.load("paper", "bert", device="cpu").hash
    assert tasks.load("paper", "bert", device="cpu").hash == before
    with server.replaced(BERT, {"README.md": b"new"}):
        assert tasks.load("paper", "bert", device="cpu").hash != before
    with server.replaced(NEWS, {"README.md": b"new"}):
        assert tasks.load("paper", "bert", device="cpu").hash != before


def test_texts_and_labels_are_those_of_the_paper(server, home):
    roberta = tasks.load("paper", "roberta", device="cpu")
    rows = pd.read_csv(server.content(TWEETS, "val_df.csv"))
    assert roberta.splits["validation"]["text"][:] == rows.text.tolist()
    scoring = torch.cat([batch["labels"] for batch in roberta.batches("scoring")])
    assert scoring.tolist() == [{0: 0, 1: -100, 2: 1}[label] for label in rows.label]  # neutral texts are scored
    assert [len(batch["labels"]) for batch in roberta.batches("scoring")] == [4] * 15
    evaluated = torch.cat([batch["labels"] for batch in roberta.batches("evaluation")])
    assert evaluated.tolist() == [label // 2 for label in rows.label if label != 1]
    first = roberta.tokenizer(rows.text[rows.label != 1].tolist()[:32], padding=True, return_tensors="pt")
    assert torch.equal(roberta.batches("evaluation")[0]["input_ids"], first["input_ids"])

    albert = tasks.load("paper", "albert", device="cpu")
    names = [albert.model.config.id2label[label] for label in albert.splits["validation_matched"]["label"][:3]]
    assert names == ["entailment", "neutral", "contradiction"]  # by name: the checkpoint numbers them otherwise
    assert albert.splits["validation_matched"]["label"][:3] == [1, 2, 0]
    pair = albert.splits["validation_matched"][0]
    assert albert.tokenizer(pair["text"], pair["text_pair"])["input_ids"] == [
        token
        for token in albert.batches("scoring")[0]["input_ids"][0].tolist()
        if token != albert.tokenizer.pad_token_id
    ]
    batch = albert.batches("scoring")[0]  # the second text of a pair is the second segment
    first = (batch["input_ids"] == albert.tokenizer.sep_token_id).long().argmax(1)
    second = torch.arange(batch["input_ids"].shape[1])[None] > first[:, None]
    assert torch.equal(batch["token_type_ids"], (second & (batch["attention_mask"] == 1)).long())
    assert albert.source["checkpoint"]["weights"] == "pickle, read by torch's weights-only loader"

    xlm = tasks.load("paper", "xlm-roberta", device="cpu")
    codes = pd.read_csv(server.content(LANGUAGES, "valid.csv"), keep_default_na=False).labels.tolist()
    assert [xlm.model.config.id2label[i] for i in xlm.splits["validation"]["label"]] == codes
    assert xlm.num_texts("evaluation") == 60
    assert xlm.num_texts("entropy") == 59  # one is too long
    assert max(batch["input_ids"].shape[1] for batch in xlm.batches("evaluation")) == xlm.max_length == 38


@pytest.mark.parametrize(
    ("feature", "values", "classes", "labels", "expected"),
    [
        (datasets.ClassLabel(names=["Neg", "POS"]), [0, 1], ["pos", "neg"], {}, [1, 0]),
        (datasets.Value("string"), ["neg", "Pos"], ["pos", "neg"], {}, [1, 0]),
        (datasets.Value("int64"), [0, 1], ["pos", "neg"], {}, [0, 1]),
        (datasets.Value("string"), ["0", "1"], ["pos", "neg"], {}, [0, 1]),
        (datasets.ClassLabel(names=["Neg", "POS"]), [0, 1], ["LABEL_0", "LABEL_1"], {}, [0, 1]),
        (datasets.ClassLabel(num_classes=2), [0, 1], ["pos", "neg"], {}, [0, 1]),
        (datasets.Value("int64"), [0, 1, 2], ["pos", "neg"], {"0": "neg", "1": "", "2": "pos"}, [1, -100, 0]),
        (datasets.Value("int64"), [2, 1, 0], ["LABEL_0", "LABEL_1"], {"0": "neg", "1": "", "2": "pos"}, [1, -100, 0]),
        (datasets.ClassLabel(names=["x", "y", "z"]), [2, 0], ["pos", "neg"], {"0": "neg", "2": "pos"}, [0, 1]),
        (datasets.Value("string"), ["pos", "meh"], ["pos", "neg"], {}, "'meh'"),
        (datasets.Value("int64"), [0, 2], ["pos", "neg"], {}, "2"),
        (datasets.Value("int64"), [-1, 0], ["pos", "neg"], {}, "-1"),
        (datasets.ClassLabel(names=["yes", "no"]), [0, 1], ["pos", "neg"], {}, "'yes'"),
        (datasets.Value("int64"), [0, 3], ["pos", "neg"], {"0": "neg", "2": "pos"}, "3"),
    ],
)
def test_labels_find_their_class(feature, values, classes, labels, expected):
    rows = datasets.Dataset.from_dict(
        {"t": ["a"] * len(values), "l": values}, datasets.Features({"t": datasets.Value("string"), "l": feature})
    )
    asset = hub.DataSet("some/data", ["t"], "l", labels=labels)
    config = AutoConfig.for_model("bert", id2label=dict(enumerate(classes)))
    if isinstance(expected, str):
        with pytest.raises(
            hub.AssetError, match=f"some/data has the label {expected}; the model knows .* the profile's `labels`"
        ):
            reading.labelled(rows, asset, config)
    else:
        assert list(reading.labelled(rows, asset, config)["label"]) == expected


@pytest.mark.parametrize(
    ("feature", "texts", "values", "complaint"),
    [
        ("int64", ["a", "b", "c"], [0, None, 1], r"row 1 .* has no label in column 'l' \(1 of 3 rows have none\)"),
        ("float64", ["a", "b", "c"], [None, 1.0, 1.0], r"row 0 .* has no label"),
        ("float64", ["a", "b", "c"], [0.0, float("nan"), 1.0], r"row 1 .* has no label"),
        ("string", ["a", "b", "c"], ["pos", " ", "neg"], r"row 1 .* has no label"),
        ("int64", ["a", "b", "c"], [0, 1, None], r"row 2 .* has no label .*; the file may end too early"),
        ("float64", ["a", "b", "c"], [0.0, 0.5, 1.0], r"row 1 of split train of some/data has the label 0.5"),
        ("int64", ["a", None, "c"], [0, 1, 1], r"row 1 .* has no text in column 't': it is empty, or reads as missing"),
        ("int64", ["a", "b", " "], [0, 1, 1], r"row 2 .* has no text in column 't': it holds ' '"),
    ],
)
def test_a_cell_without_a_label_or_a_text_is_named_by_its_row(feature, texts, values, complaint):
    rows = datasets.Dataset.from_dict(
        {"t": texts, "l": values}, datasets.Features({"t": datasets.Value("string"), "l": datasets.Value(feature)})
    )
    config = AutoConfig.for_model("bert", id2label={0: "pos", 1: "neg"})
    with pytest.raises(hub.AssetError, match=complaint.replace(".*", "of some/data, split train,.*", 1)):
        reading.labelled(rows, hub.DataSet("some/data", ["t"], "l"), config, "train")


# ---------------------------------------------------------------- what fails, and how

RUN = ("--profile", "paper", "--models", "bert", "--only", "greedy_pruning")


def refused(capsys, *arguments):
    """What run_all.py says when it ends with 2, before any notebook runs."""
    with pytest.raises(SystemExit) as stopped:
        run_all.main(list(arguments or RUN))
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert not list(paths.root().rglob("*.ipynb"))
    return printed


@pytest.mark.parametrize(
    ("where", "answer", "complaint"),
    [
        (r"api/models/hw2942", status(404, X_Error_Code="RepoNotFound"), "answered 404 (not found)"),
        (r"api/models/hw2942", status(401), "answered 401 (it may be private or gone)"),
        (r"api/models/hw2942", status(429, Retry_After=60), "answered 429 (too many requests, try again later)"),
        (r"api/models/hw2942", status(500), "answered 500 (the hub failed, try again later)"),
        (r"api/models/hw2942", cut, "cannot be reached (RemoteProtocolError)"),
        *((r"api/", lambda handler, body=body: handler.answer(200, body),
           "does not answer as a hub does: HF_ENDPOINT, or a proxy, may lead elsewhere")
          for body in (b"<html>sign in</html>", b"[]", b"{}")),
        (r"HEAD .*v2/resolve/.*/model.safetensors", status(500), "answered 500 (the hub failed, try again later)"),
        (r"HEAD .*v2/resolve/.*/vocab.txt", status(404, X_Error_Code="EntryNotFound"), "answered 404 (not found)"),
        (r"GET .*v2/resolve/.*/model.safetensors", status(403), "v2 could not be fetched: "),
        (r"GET .*v2/resolve/.*/model.safetensors", status(429), "answered 429 (too many requests, try again later)"),
        (r"GET .*v2/resolve/.*/model.safetensors", cut, "v2 could not be fetched: "),
        (r"GET .*v2/resolve/.*/model.safetensors", short, "Consistency check failed"),
        (r"GET .*sentiment/resolve/.*/train.json", status(500), "financial-news-sentiment could not be fetched: "),
    ],
)  # fmt: skip
def test_a_hub_that_fails_leaves_nothing_half_written(where, answer, complaint, server, home, capsys):
    began = time.monotonic()
    with server.fault(where, answer):
        assert complaint in refused(capsys).err
    assert time.monotonic() - began < 30
    assert not [name for name in cached(home) if "incomplete" in name or name.endswith(where.rpartition("/")[2] or "-")]
    assert tasks.load("paper", "bert", device="cpu").num_texts("evaluation") == 45  # and the next run finds it whole


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("CAS service error")])
def test_a_disk_that_is_full_is_said(error, server, home, monkeypatch, capsys):
    def fail(*_, **options):
        if options.get("dry_run"):
            return download(*_, **options)
        raise error

    download = hub.snapshot_download
    monkeypatch.setattr(hub, "snapshot_download", fail)
    monkeypatch.setattr(hub, "in_cache", lambda asset: hub.AssetState(asset, "missing"))
    assert f"could not be fetched: {error}." in refused(capsys).err


def test_a_cache_that_is_whole_will_do_where_the_hub_fails(server, home):
    bert = PAPER.models["bert"].assets
    whole = [hub.find(asset) for asset in bert]
    with server.fault("/", status(503)):
        assert [hub.find(asset) for asset in bert] == whole


def tiny(*classes, **options):
    return checkpoint("bert", wordpiece(), classes or ("Neutral", "Positive", "Negative"), pad_token_id=0, **options)


@pytest.mark.parametrize(
    ("key", "files", "complaint"),
    [
        (BERT, tiny("yes", "no"), "v2 has 2 classes, 3 are expected"),
        (BERT, {"vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n" + b"-\n" * 400 + b"[SEP]"}, "its tokenizer gives token 403, its"),
        (NEWS, {"train.json": None, "news.py": b"raise SystemExit"}, "the repository has no data files"),
    ],
)
def test_an_asset_that_is_not_what_it_should_be_is_refused(key, files, complaint, server, home, capsys):
    with server.replaced(key, files):
        assert complaint in refused(capsys).err
    assert tasks.load("paper", "bert", device="cpu").num_texts("evaluation") == 45


def test_a_missing_hub_is_said_quickly_with_every_asset_and_two_ways_out(home, monkeypatch, capsys):
    aim(monkeypatch, home, f"http://127.0.0.1:{_closed_port()}")
    printed = refused(capsys, "--profile", "paper")
    assert "9 of the 9 assets of profile paper are missing" in printed.err
    for asset in PAPER.assets(list(PAPER.models)) + PAPER.inspected:
        assert asset.repo in printed.err
    assert f"fill HF_HOME ({home})" in printed.err
    assert "`python run_all.py --profile local`" in printed.err
    assert printed.out.count(" missing ") == 9


def test_a_hub_that_never_answers_is_given_up(server, home, monkeypatch, capsys):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    began = time.monotonic()
    with server.fault("/api/", lambda handler: handler.server.silence.wait(5)):
        assert "9 of the 9 assets" in refused(capsys, "--profile", "paper").err
    server.silence.set()
    assert time.monotonic() - began < 4


def test_auto_takes_the_paper_where_it_can_and_says_why_not(server, home, capsys):
    begun = len(server.log)
    assert preflight.choose_profile("auto", "cpu") == "local"
    assert capsys.readouterr().out.startswith("profile local, chosen by auto: there is no accelerator")
    assert len(server.log) == begun
    assert preflight.choose_profile("auto", "cuda") == "paper"
    assert capsys.readouterr().out.startswith(
        "profile paper, chosen by auto: its assets are cached or reachable, and cuda"
    )
    for asset in (PAPER.models["xlm-roberta"].checkpoint, PAPER.models["bert"].dataset):
        with server.fault(f"api/[a-z]+/{asset.repo}", status(404, X_Error_Code="RepoNotFound")):
            assert preflight.choose_profile("auto", "cuda") == "local"
        assert (
            "profile local, chosen by auto: 1 of the paper's assets are neither cached nor reachable, "
            f"the first of them {asset.repo}" in capsys.readouterr().out
        )
    with server.fault(f"api/[a-z]+/{PAPER.inspected[0].repo}", status(404, X_Error_Code="RepoNotFound")):
        assert preflight.choose_profile("auto", "cuda") == "paper"  # what is inspected and not used decides nothing
    assert preflight.choose_profile("paper", "cpu") == "paper"


def test_a_pickle_that_would_run_something_is_refused(server, home, capsys):
    with server.replaced(MNLI, {"pytorch_model.bin": _pickle_bomb(home)}):
        refused(capsys, "--profile", "paper", "--models", "albert", "--only", "greedy_pruning")
    assert not (home / "ran").exists()


def _pickle_bomb(home):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(home / "ran"),))

    file = io.BytesIO()
    torch.save({"classifier.bias": Bomb()}, file)
    return file.getvalue()


# ---------------------------------------------------------------- from end to end, as its users have it


def with_fewer_trials(folder):
    """Give the paper profile in ``folder`` two random trials a model, change nothing else."""
    profile = folder / "paper.toml"
    profile.write_text(re.sub(r"trials = \d+", "trials = 2", (PROFILES / "paper.toml").read_text("utf-8")), "utf-8")


@pytest.fixture
def fewer_trials(copied):
    """The project, its paper profile with two random trials a model and nothing else changed."""
    with_fewer_trials(copied / "experiments" / "profiles")
    return copied


# The first looks at data sets of its own, the second makes every trajectory and reads what was published.
END_TO_END = ("data_processing", "show_pruning_result")


def test_the_paper_profile_from_the_hub_and_then_from_the_cache(server, fewer_trials, tmp_path, monkeypatch, capsys):
    """run_all.py as its users have it, with nothing cached; then again with no hub."""
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    hub_of_ours = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    arguments = ("--profile", "paper", "--only", ",".join(END_TO_END))
    first = call(*arguments, output=tmp_path, root=fewer_trials, **hub_of_ours)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count(" reachable ") == 9
    assert "bert: train has 45 rows, the paper's had 2329; the results say so." in first.stdout
    assert all(f"{model}: about " in first.stdout for model in PAPER.models)
    assert first.stdout.count(": intact accuracy not as published: ") == len(PAPER.models)  # random weights

    folder = results_folder("paper")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert list(manifest["notebooks"]) == list(END_TO_END)
    assets = manifest["assets"]
    assert {asset["repo"]: len(asset["commit"]) for asset in assets} == {
        asset.repo: 40 for asset in PAPER.assets(list(PAPER.models)) + PAPER.inspected
    }
    weights = [asset["weights"].split(",")[0] for asset in assets if "weights" in asset]
    assert weights == ["safetensors", "pickle", "safetensors", "safetensors"]
    executed = (folder / ".run" / "executed" / "data_processing.ipynb").read_text()
    assert "tyqiangz/multilingual-sentiments, train: 12 texts, labels {0: 4, 1: 4, 2: 4}" in executed
    for model in PAPER.models:
        info = json.loads((folder / model / "greedy_gnorm.json").read_text())
        assert info["weights"]["checkpoint"]["repo"] == PAPER.models[model].checkpoint.repo
        assert len(info["weights"]["dataset"]["commit"]) == 40
        assert info["published"]["heads_pruned"] == PAPER.models[model].published.heads_pruned
        assert saved_methods("paper", model) == list(gnorm.METHODS)
        assert results.load_trajectory("paper", model, "random").table.trial.nunique() == 2
    solutions = pd.read_csv(folder / "tables" / "published_solutions.csv")
    assert solutions["published parameters"].tolist() == [m.published.parameters[1] for m in PAPER.models.values()]
    verdicts = [manifest["intact_accuracy"][model] for model in PAPER.models]
    assert solutions["intact accuracy"].tolist() == verdicts
    assert all(verdict.startswith("not as published: 0.") for verdict in verdicts)
    page = (folder / "report" / "index.html").read_text()
    assert page.count('class="warning"') == len(PAPER.models)
    areas = pd.read_csv(folder / "tables" / "pruning_results.csv")
    assert areas.published.tolist() == [
        PAPER.models[row.model].published.area[row.method] for row in areas.itertuples()
    ]
    close(areas.difference, areas.area - areas.published, torch.float64, scale=1)
    assert (figures_folder("paper") / "pruning_results.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "report" / "index.html").exists()

    asked = len(server.log)
    aim(monkeypatch, tmp_path / "hf", "")
    monkeypatch.setattr(profiles, "PROFILES", fewer_trials / "experiments" / "profiles")
    capsys.readouterr()
    assert in_process(tmp_path, monkeypatch, *arguments, root=fewer_trials) == 0
    said = capsys.readouterr().out
    assert said.count(" cached ") == 9
    assert said.count("unchanged, not run again") == len(END_TO_END)  # the same commits, from the cache
    assert len(server.log) == asked


@pytest.mark.soak
def test_the_other_notebooks_run_on_checkpoints_and_data_of_the_hub(server, home, tmp_path, monkeypatch):
    """In this process, one after the other, from a cache that is filled, as kernels find it."""
    with_fewer_trials(tmp_path)
    monkeypatch.setattr(profiles, "PROFILES", tmp_path)
    for found in hub.look_up(PAPER.assets(list(PAPER.models)) + PAPER.inspected):
        hub.fetch(found)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with mock.patch.dict(heads.FAMILIES), mock.patch.dict(gnorm.MORE_METHODS):  # custom_bert_pruning adds rows
        for name in [name for name in run_all.NOTEBOOKS if name not in END_TO_END]:
            execute(name, profile="paper", models=list(PAPER.models))
    assert {path.stem for path in tables_folder("paper").glob("*.csv")} == set(TABLES) - {"pruning_results"}
    shown = {"data_processing", "pruning_results"}  # by the notebooks that run from end to end
    assert {path.stem for path in figures_folder("paper").glob("*.png")} == set(FIGURES) - shown
    for model in PAPER.models:
        assert saved_methods("paper", model) == list(gnorm.METHODS)


# ---------------------------------------------------------------- held against what was published


def test_an_intact_accuracy_is_held_against_the_published_one():
    """Wilson's interval of 80 of 100 is 0.7112 to 0.8666; the tolerance lies around it."""
    say = partial(against_published, 0.8, 100)
    assert say({"accuracy": [0.8666, 0.5], "tolerance": 0.0}) == (
        "as published: 0.8000 on 100 texts (95 % 0.7112 to 0.8666), published 0.8666, tolerance 0"
    )
    assert say({"accuracy": [0.7112, 0.5]}).startswith("as published")  # a file from before there was a tolerance
    for published in (0.7101, 0.8677):
        assert say({"accuracy": [published, 0.5], "tolerance": 0.0}).startswith("not as published: 0.8000 on 100 texts")
        assert say({"accuracy": [published, 0.5], "tolerance": 0.0012}).startswith("as published")


def test_tolerances_of_the_profile_are_no_wider_than_the_flaws_they_cover():
    assert {name: spec.published.tolerance for name, spec in PAPER.models.items()} == {
        "bert": 0.0001, "albert": 0.0001, "roberta": 0.0015, "xlm-roberta": 0.0015
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"tolerance = 1\.5, it must be at least 0 and below 1"):
        dataclasses.replace(PAPER.models["bert"].published, tolerance=1.5)


def quoting(accuracy, monkeypatch):
    """The paper profile, with another published accuracy of the intact BERT."""
    spec = PAPER.models["bert"]
    published = dataclasses.replace(spec.published, accuracy=[accuracy, 0.1])
    models = PAPER.models | {"bert": dataclasses.replace(spec, published=published)}
    for module in (profiles, runner):
        monkeypatch.setattr(module, "read_profile", lambda _: dataclasses.replace(PAPER, models=models))


def test_strict_ends_before_anything_is_pruned_where_a_model_is_not_as_published(server, home, capsys, monkeypatch):
    monkeypatch.setattr(runner, "run_notebooks", lambda *_: pytest.fail("it ran"))
    printed = refused(capsys, *RUN, "--device", "cpu", "--strict")
    measured = tasks.load("paper", "bert", device="cpu").accuracy
    said = against_published(measured, 45, dataclasses.asdict(PAPER.models["bert"].published))
    assert said.startswith("not as published: ")
    assert (
        f"intact accuracy not as published, and --strict is given; nothing was pruned:\n  bert: {said}\n" in printed.err
    )
    assert "name in the profile the `revision` of checkpoint and data set" in printed.err
    assert "bert: its intact accuracy is measured, once, and held against the published one" in printed.out


@pytest.mark.parametrize("strict", [[], ["--strict"]])
def test_a_model_as_published_runs_and_one_that_is_not_runs_unless_strict(strict, server, home, capsys, monkeypatch):
    given = []
    monkeypatch.setattr(runner, "run_notebooks", lambda *arguments: given.append(arguments) or 0)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    measured = tasks.load("paper", "bert", device="cpu").accuracy
    quoting(measured, monkeypatch)
    assert run_all.main([*RUN, "--device", "cpu", *strict]) == 0
    assert f"bert: intact accuracy as published: {measured:.4f} on 45 texts" in capsys.readouterr().out
    assert given[0][2]["intact_accuracy"]["bert"].startswith("as published")
    if not strict:
        quoting(0.999, monkeypatch)
        assert run_all.main([*RUN, "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        assert f"bert: intact accuracy not as published: {measured:.4f} on 45 texts" in printed
        assert "bert: results cannot be compared with the published ones; name in the profile the `revision`" in printed


def test_an_intact_accuracy_is_measured_once_and_anew_where_the_task_changed(server, home, monkeypatch):
    passes = []
    monkeypatch.setattr(tasks, "accuracy", lambda *_: passes.append(1) or 0.6)
    measured = [intact(tasks.load("paper", "bert", device="cpu")) for _ in range(2)]
    assert measured == [{"accuracy": 0.6, "texts": 45}] * 2
    assert len(passes) == 1
    intact(tasks.load("paper", "bert", device="cpu"), fresh=True)
    assert len(passes) == 2
    (kept,) = run_folder("paper").glob("intact/bert.json")
    for damage in ("", "[]", '{"task": "another", "accuracy": 1, "texts": 9}'):
        kept.write_text(damage)
        intact(tasks.load("paper", "bert", device="cpu"))
    assert len(passes) == 5


def test_a_profile_that_quotes_nothing_is_held_against_nothing(capsys):
    known = read_profile("smoke")
    assert preflight.compare_with_published(known, list(known.models), "cpu", False, True) == {}
    assert capsys.readouterr().out == ""


def test_the_report_begins_with_what_is_not_as_published(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path))
    environment = {"machine": "", "packages": {}, "python": "", "threads": 1}
    manifest = {"environment": environment, "notebooks": {}}
    verdicts = {"bert": "as published: 0.97", "albert": "not as published: 0.33 on 9 texts"}
    page = rendering.write_report("paper", "", manifest | {"intact_accuracy": verdicts}, {}).read_text()
    assert page.count('class="warning"') == 1
    assert "<strong>albert</strong>: its intact accuracy is not as published: 0.33 on 9 texts." in page
    assert page.index("albert") < page.index("What was asked")
    assert 'class="warning"' not in rendering.write_report("paper", "", manifest, {}).read_text()
