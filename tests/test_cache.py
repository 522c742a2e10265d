"""The paper profile on a cache of the hub of which one thing is broken: the preflight answers by an exit code and a
sentence, before anything runs."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
from hub import Hub, csv, parquet, repositories, status
from huggingface_hub import constants
from safetensors.torch import load, save

import run_all
from experiments.data import hub, hub_cache, reading, tasks
from experiments.data.profiles import read_profile
from experiments.pipeline import runner

PAPER = read_profile("paper")
BERT, ALBERT, ROBERTA, XLM = (model.checkpoint for model in PAPER.models.values())
NEWS, GLUE, TWEETS, LANGUAGES = (model.dataset for model in PAPER.models.values())
REVIEWS = PAPER.inspected[0]  # only looked at
MATCHED = "mnli/validation_matched-00000-of-00001.parquet"
NOT_ITS_NAME = (
    r"is damaged \(its content is not what its name in the cache says\) and stays in the cache: HF_HUB_OFFLINE"
)


class Cache:
    """A cache that holds all that the paper profile asks for, and ways to break it."""

    def __init__(self, home, patch):
        self.home, self.patch = home, patch

    def storage(self, asset):
        return self.home / "hub" / f"{asset.kind}s--{asset.repo.replace('/', '--')}"

    def file(self, asset, name):
        return next(self.storage(asset).glob("snapshots/*")) / name

    def read(self, asset, name):
        return self.file(asset, name).read_bytes()

    def damage(self, asset, name, change):
        """Other content under the same name."""
        path = self.file(asset, name).resolve()
        path.write_bytes(change(path.read_bytes()))

    def publish(self, asset, files):
        """As if the repository held these files from the start; None takes one out."""
        for name, content in files.items():
            path = self.file(asset, name)
            path.unlink(missing_ok=True)
            if content is not None:
                blob = self.storage(asset) / "blobs" / hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                blob.write_bytes(content)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(os.path.relpath(blob, path.parent))

    def plain(self):
        """As a copy is that follows links: no name tells of the content."""
        for path in [path for path in self.home.glob("hub/*/snapshots/**/*") if path.is_symlink()]:
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)

    def refs(self, asset, **commits):
        """These refs alone."""
        shutil.rmtree(self.storage(asset) / "refs")
        for name, commit in commits.items():
            path = self.storage(asset) / "refs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)


def aim(patch, home, url):
    patch.setattr(constants, "HF_HUB_OFFLINE", not url)
    patch.setattr(constants, "HF_HOME", str(home))
    patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(scope="module")
def server():
    with Hub(repositories()) as server:
        yield server


@pytest.fixture(scope="module")
def filled(server, tmp_path_factory):
    home = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        aim(patch, home, server.url)
        for found in hub.look_up(PAPER.assets(list(PAPER.models)) + PAPER.inspected):
            hub.fetch(found)
        huggingface_hub.utils.close_session()
    return home


@pytest.fixture
def cache(filled, tmp_path, monkeypatch):
    shutil.copytree(filled, tmp_path / "hf", symlinks=True)
    aim(monkeypatch, tmp_path / "hf", "")
    monkeypatch.setenv("GNORM_OUTPUT", str(tmp_path / "results"))
    monkeypatch.delenv(hub.CHECKED, raising=False)
    monkeypatch.setattr(runner, "run_notebooks", lambda *_: 0)  # the preflight is what is asked here
    monkeypatch.setattr(tasks, "estimate", lambda *_: 0)
    yield Cache(tmp_path / "hf", monkeypatch)
    huggingface_hub.utils.close_session()


def answer(asset, capsys):
    """The exit code of the preflight of what needs the asset, and all that it says."""
    model = next((name for name, spec in PAPER.models.items() if asset in spec.assets), "bert")
    only = "data_processing" if asset == REVIEWS else "greedy_pruning"
    try:
        code = run_all.main(["--profile", "paper", "--models", model, "--only", only])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    said = printed.out + printed.err
    for never in ("Traceback", "weights_only", "trust_remote_code", "pip install"):
        assert never not in said
    return code, said


# ---------------------------------------------------------------- ways to break something


def half(content):
    return content[: len(content) // 2]


def flip(content):
    at = len(content) * 3 // 4
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def becomes(content):
    return lambda _: content


def damaged(asset, name, change):
    return asset, lambda cache: cache.damage(asset, name, change)


def copied(asset, name, change):
    """Damaged where nothing is named by its content."""
    return asset, lambda cache: (cache.plain(), cache.damage(asset, name, change))


def published(asset, **files):
    return asset, lambda cache: cache.publish(asset, {name.replace("__", "."): files[name] for name in files})


def with_files(asset, files):
    return asset, lambda cache: cache.publish(asset, files)


def edited(asset, name, change):
    return asset, lambda cache: cache.publish(asset, {name: change(cache.read(asset, name))})


def config(asset=BERT, **values):
    """Other values in config.json; None takes one out."""

    def change(content):
        both = {**json.loads(content), **values}
        return json.dumps({name: value for name, value in both.items() if value is not None}).encode()

    return edited(asset, "config.json", change)


def classes(*names, asset=BERT):
    return config(asset, id2label=dict(enumerate(names)), label2id=None)


def weights(change):
    def changed(content):
        tensors = load(content)
        change(tensors)
        return save(tensors, {"format": "pt"})

    return edited(BERT, "model.safetensors", changed)


def torch_file(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def shards(absent="", renamed="", index=None):
    """The weights in two files, of which one is absent or has another name in the index."""

    def split(cache):
        tensors = load(cache.read(BERT, "model.safetensors"))
        names = sorted(tensors)
        files, where = {"model.safetensors": None}, {}
        for i in range(2):
            name = f"model-0000{i + 1}-of-00002.safetensors"
            files[name] = save({key: tensors[key] for key in names[i::2]}, {"format": "pt"})
            where |= dict.fromkeys(names[i::2], name)
        if renamed:
            where[names[0]] = renamed
        files["model.safetensors.index.json"] = index or json.dumps({"metadata": {}, "weight_map": where}).encode()
        cache.publish(BERT, {name: content for name, content in files.items() if name != absent})

    return BERT, split


def in_place_of(asset, name, put):
    """Something that is no link to content: ``put`` is given the path."""

    def replace(cache):
        path = cache.file(asset, name)
        path.unlink()
        put(path)

    return asset, replace


def no_content(asset, name):
    return asset, lambda cache: cache.file(asset, name).resolve().unlink()


def card(text, asset=GLUE):
    return with_files(asset, {"README.md": text if isinstance(text, bytes) else f"---\n{text}\n---\n".encode()})


def mnli(*splits):
    """A card that names files for the splits of mnli."""
    named = "".join(f"\n  - split: {split}\n    path: {path}" for split, path in splits)
    return f"configs:\n- config_name: mnli\n  data_files:{named}"


def shards_of_a_split(absent):
    def split(cache):
        rows = cache.read(GLUE, MATCHED)
        there = {f"mnli/validation_matched-0000{i}-of-00003.parquet": rows for i in range(3) if i != absent}
        cache.publish(GLUE, {MATCHED: None, **there})

    return GLUE, split


def pairs(**columns):
    kinds = {
        "premise": datasets.Value("string"),
        "hypothesis": datasets.Value("string"),
        "label": datasets.ClassLabel(3),
    }
    rows = {"premise": ["a", "b"], "hypothesis": ["a", "b"], "label": [0, 1]} | columns
    return with_files(GLUE, {MATCHED: parquet({name: kinds[name] for name in rows}, **rows)})


def tweets(**columns):
    """Another validation split: columns, or its bytes as ``raw``; None leaves a column out."""
    rows = {"text": ["abd", "egi", "abd"], "label": [0, 1, 2]} | columns
    content = columns.get("raw") or csv(**{name: values for name, values in rows.items() if values is not None})
    return with_files(TWEETS, {"val_df.csv": content})


def news(*rows):
    return with_files(NEWS, {"train.json": "".join(json.dumps(row) + "\n" for row in rows).encode()})


def cache_is(change):
    return BERT, change


def other_branch(asset, name):
    return asset, lambda cache: cache.refs(asset, **{name: cache.file(asset, "").name})


def two_snapshots(cache):
    cache.refs(BERT)
    shutil.copytree(cache.file(BERT, ""), cache.storage(BERT) / "snapshots" / ("f" * 40), symlinks=True)


def home_is_a_file(cache):
    shutil.rmtree(cache.home)
    cache.home.write_text("")


def home_one_too_deep(cache):
    cache.patch.setattr(constants, "HF_HUB_CACHE", str(cache.home / "hub" / "hub"))


def not_allowed(cache):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    cache.patch.setattr(hub, "flaw_of", refuse)


def not_finite(tensors):
    tensors["classifier.bias"][0] = float("nan")


def smaller(tensors):
    tensors["classifier.weight"] = torch.zeros(3, 7)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n"
KINDS = "{'a': 'x', 'b': 'y', 'c': 'z'}"
BROKEN = {
    # configuration
    "no config.json": (*published(BERT, config__json=None), 2, "has no config.json"),
    "half a config.json": (
        *edited(BERT, "config.json", half), 2, r"config.json of .* cannot be read: it is not JSON at line"
    ),
    "config.json damaged": (*damaged(BERT, "config.json", flip), 2, f"config.json of .* {NOT_ITS_NAME}"),
    "config.json empty": (*published(BERT, config__json=b""), 2, "config.json of .* cannot be read: it is empty"),
    "config.json a list": (*published(BERT, config__json=b"[1]"), 2, "has the model_type None"),
    "config.json not UTF-8": (*published(BERT, config__json=b'{"a": "\xe9"}'), 2, "line 1 is not UTF-8"),
    "no model_type": (*config(model_type=None), 2, "has the model_type None, which transformers .* does not know"),
    "unknown model_type": (
        *config(model_type="hermit"), 2, "has the model_type 'hermit', which transformers .* does not"
    ),
    "code of its own": (
        *config(model_type="hermit", auto_map={"AutoConfig": "a.B"}), 2, "code of the repository is not run"
    ),
    "no classifier of its kind": (
        *config(model_type="clip"), 2, "'clip', of which transformers has no sequence classifier"
    ),
    "other model_type": (
        *config(model_type="roberta"), 2, "the weights of .* lack classifier.dense.bias.*: weights and conf"
    ),
    "two classes": (*classes("a", "b"), 2, "has 2 classes, 3 are expected"),
    "classes with gaps": (
        *config(id2label={0: "a", 2: "b", 5: "c"}), 2, "does not number its classes from 0 in id2label"
    ),
    "classes by word": (*config(id2label={"a": "x", "b": "y", "c": "z"}), 2, f"from 0 in id2label \\({KINDS}\\): mend"),
    "classes in a list": (*config(id2label=["a", "b", "c"]), 2, "does not number its classes from 0 in id2label"),
    "a class twice": (
        *classes("entailment", "neutral", "neutral", asset=ALBERT), 2, "class 'neutral' in id2label, .* there twice"
    ),
    "a class without name": (*classes(None, "b", "c"), 2, "the class None in id2label, which is no name"),
    "id2label against label2id": (
        *config(label2id={"Neutral": 2, "Positive": 1, "Negative": 0}), 2, "calls 'Neutral' 0 in id2l"
    ),
    "other classes": (
        *classes("yes", "no", "maybe", asset=ALBERT), 2, r"row 0 of .* has the label 0 .* classes are yes, no, maybe"
    ),
    "fewer layers": (
        *config(num_hidden_layers=1), 2, "the weights of .* go beyond config.json in bert.encoder.layer.1"
    ),
    "more layers": (*config(num_hidden_layers=3), 2, "the weights of .* lack bert.encoder.layer.2"),
    "layers in words": (
        *config(num_hidden_layers="two"), 2, "config.json of .* describes no model: .*'num_hidden_layers'"
    ),
    "heads that do not divide": (
        *config(num_attention_heads=5), 2, "describes no model: The hidden size .32. is not a multiple"
    ),
    "unknown activation": (*config(hidden_act="nope"), 2, "describes no model: there is no 'nope'"),
    "smaller vocabulary": (
        *config(vocab_size=300), 2, "do not fit config.json in bert.embeddings.word_embeddings.weight"
    ),
    # tokenizer
    "no tokenizer": (*published(BERT, vocab__txt=None), 2, "has no tokenizer .one of tokenizer.json, vocab.txt"),
    "tokenizer of another model": (
        BERT,
        lambda cache: cache.publish(BERT, {"vocab.txt": None, "spiece.model": cache.read(ALBERT, "spiece.model")}),
        2,
        "tokenizer of .* has no vocabulary: its files are not those that BertTokenizer reads",
    ),
    "vocabulary empty": (*published(BERT, vocab__txt=b""), 2, "vocab.txt of .* cannot be read: it is empty"),
    "half a vocabulary": (
        *edited(BERT, "vocab.txt", half), 0, r"its tokenizer knows \d+ tokens, its model 400; see that they"
    ),
    "vocabulary not UTF-8": (*published(BERT, vocab__txt=b"[PAD]\n\xe9\n"), 2, "vocab.txt of .* line 2 is not UTF-8"),
    "vocabulary without [UNK]": (
        *published(BERT, vocab__txt=b"a\nb\n"), 2, r"tokenizer .vocab.txt. of .* Missing \[UNK\] token"
    ),
    "vocabulary damaged": (*damaged(BERT, "vocab.txt", flip), 2, f"vocab.txt of .* {NOT_ITS_NAME}"),
    "half a tokenizer.json": (
        *edited(XLM, "tokenizer.json", half), 2, "tokenizer.json of .* it is not JSON at line 1, and was"
    ),
    "tokenizer.json without content": (
        *published(XLM, tokenizer__json=b"{}"), 2, "the tokenizer .tokenizer.json. of .* cannot be"
    ),
    "no merges": (
        *published(ROBERTA, merges__txt=None), 2, "has no merges.txt, without which vocab.json is no tokenizer"
    ),
    "merges of one part": (
        *published(ROBERTA, merges__txt=b"a\n"), 2, "tokenizer .merges.txt, vocab.json. of .* Merges text file"
    ),
    "half a SentencePiece model": (*edited(ALBERT, "spiece.model", half), 2, "spiece.model of .* it is not whole"),
    "unknown tokenizer class": (
        *published(BERT, tokenizer_config__json=b'{"tokenizer_class": "HermitTokenizer"}'),
        2,
        "tokenizer .tokenizer_config.json,",
    ),
    "tokenizer of its own code": (
        *published(BERT, tokenizer_config__json=b'{"auto_map": {"AutoTokenizer": ["a.B", null]}}'),
        2,
        "is code of the repository",
    ),
    # weights
    "no weights": (
        *published(BERT, model__safetensors=None), 2, "has no weights .model.safetensors or pytorch_model.bin."
    ),
    "half the weights": (*damaged(BERT, "model.safetensors", half), 2, f"model.safetensors of .* {NOT_ITS_NAME}"),
    "a flipped bit of the weights": (
        *damaged(BERT, "model.safetensors", flip), 2, f"model.safetensors of .* {NOT_ITS_NAME}"
    ),
    "weights empty": (*damaged(BERT, "model.safetensors", becomes(b"")), 2, f"model.safetensors of .* {NOT_ITS_NAME}"),
    "half the weights, copied": (
        *copied(BERT, "model.safetensors", half), 2, r"is damaged \(it is not whole\) and stays"
    ),
    "half the weights, published": (
        *edited(BERT, "model.safetensors", half), 2, "it is not whole, and was published so: name"
    ),
    "a pointer": (
        *copied(BERT, "model.safetensors", becomes(POINTER)), 2, "it is a pointer of Git LFS, whose file `git lfs pull`"
    ),
    "a web page": (
        *copied(BERT, "model.safetensors", becomes(PAGE)), 2, r"is damaged \(it is a web page\) and stays in the cache"
    ),
    "a weight of another shape": (
        *weights(smaller), 2, "the weights of .* do not fit config.json in classifier.weight"
    ),
    "a weight less": (
        *weights(lambda tensors: tensors.pop("classifier.bias")), 2, "the weights of .* lack classifier.bias:"
    ),
    "a weight that is no number": (*weights(not_finite), 2, "hold a number that is not finite in classifier.bias"),
    "half a pickle": (*damaged(ALBERT, "pytorch_model.bin", half), 2, f"pytorch_model.bin of .* {NOT_ITS_NAME}"),
    "half a pickle, copied": (
        *copied(ALBERT, "pytorch_model.bin", half), 2, r"pytorch_model.bin of .* damaged \(it is not whole"
    ),
    "a flipped bit, copied": (
        *copied(ALBERT, "pytorch_model.bin", flip), 2, "pytorch_model.bin of .* in it was altered|not whole"
    ),
    "a pickle with objects": (
        *published(ALBERT, pytorch_model__bin=torch_file({"classifier.bias": Path("a")})),
        2,
        "are a pickle that holds more than ten",
    ),
    "a pickle of nothing of torch's": (
        *published(ALBERT, pytorch_model__bin=pickle.dumps({"a": Path("a")}, protocol=2)),
        2,
        "take a revision with model.safetensors",
    ),
    "a pickled list": (
        *published(ALBERT, pytorch_model__bin=torch_file([1, 2])), 2, "the weights of .* cannot be read: "
    ),
    "weights one level down": (
        *published(ALBERT, pytorch_model__bin=torch_file({"model": {}})), 2, "the weights of .* lack alb"
    ),
    "shards": (*shards(), 0, "cached"),
    "a shard less": (*shards(absent="model-00002-of-00002.safetensors"), 2, "lacks model-00002-of-00002.safetensors"),
    "a shard of another name": (*shards(renamed="other.safetensors"), 2, "lacks other.safetensors"),
    "shards without index": (
        *shards(absent="model.safetensors.index.json"), 2, "has no weights .* and no index of shards"
    ),
    "an index without metadata": (*shards(index=b'{"weight_map": {}}'), 2, "the weights of .* there is no 'metadata'"),
    "half an index": (*shards(index=b'{"weight_map": {"a'), 2, "index.json of .* it is not JSON at line 1"),
    # what is no file
    "link to nothing": (
        *no_content(BERT, "model.safetensors"), 2, "lacks what the link model.safetensors leads to, .*blobs/"
    ),
    "link to nothing, data": (*no_content(NEWS, "train.json"), 2, "lacks what the link train.json leads to"),
    "link to itself": (
        *in_place_of(BERT, "config.json", lambda path: path.symlink_to(path)),
        2,
        "lacks what the link config.json leads to",
    ),
    "folder for a file": (
        *in_place_of(BERT, "config.json", Path.mkdir), 2, "has a folder in the place of the file config.json"
    ),
    "folder for data": (
        *in_place_of(TWEETS, "val_df.csv", Path.mkdir), 2, "a folder in the place of the file val_df.csv: del"
    ),
    "file without permission": (
        BERT, not_allowed, 2, "cannot be read: Permission denied .*grant access or set HF_HOME"
    ),
    # cards
    "no card": (
        *with_files(GLUE, {"README.md": None}), 2, r"has no configuration 'mnli': its card \(README.md\) is not there"
    ),
    "card that is not YAML": (
        *card("configs: [a, {b"), 2, r"a card \(README.md\) whose header cannot be read \(line \d is not YAML"
    ),
    "card that is not UTF-8": (
        *card(b"---\nconfigs: \xff\n---\n"), 2, "a card .README.md. whose header cannot be read"
    ),
    "card damaged": (*damaged(GLUE, "README.md", flip), 2, f"README.md of .* {NOT_ITS_NAME}"),
    "card damaged, not needed": (
        NEWS, lambda cache: (cache.publish(NEWS, {"README.md": b"# a\n"}), cache.damage(NEWS, "README.md", half)),
        2,
        NOT_ITS_NAME,
    ),
    "card empty": (*card(b""), 2, r"has no configuration 'mnli': its card \(README.md\) names none"),
    "card without configurations": (
        *card("license: mit"), 2, r"has no configuration 'mnli': its card \(README.md\) names none"
    ),
    "card with another": (
        *card("configs:\n- config_name: ax\n  data_files: ax/test-*"),
        2,
        r"'mnli': its card \(README.md\) names ax alone",
    ),
    "configurations in words": (*card("configs: mnli"), 2, "header cannot be read .Expected configs to be a list"),
    "configurations without name": (*card("configs:\n- mnli"), 2, "header cannot be read .Each config must include"),
    "split without path": (
        *card("configs:\n- config_name: mnli\n  data_files:\n  - split: train"),
        2,
        "header cannot be read .Expected data_files",
    ),
    "card with an absent file": (
        *card(mnli(("validation_matched", "mnli/dev.parquet"))),
        2,
        "lacks mnli/dev.parquet, which its card names for the split",
    ),
    "card with an absent file, not asked for": (
        *card(mnli(("train", "mnli/all.parquet"), ("validation_matched", "mnli/validation_matched-*"))),
        2,
        "lacks mnli/all.parquet",
    ),
    "card without the split": (
        *card(mnli(("train", "mnli/train-*"))), 2, "has no split 'validation_matched'; it has train"
    ),
    "default configuration": (
        *card("configs:\n- config_name: default\n  data_files: data/a.json", NEWS),
        2,
        "lacks data/a.json, which its card names",
    ),
    "columns in words": (
        *card(
            mnli(("validation_matched", "mnli/validation_matched-*"))
            + "\ndataset_info:\n- config_name: mnli\n  features: 7"
        ),
        2,
        "header cannot be read .Expected a dict or a list",
    ),
    # Parquet
    "split absent": (
        *with_files(GLUE, {MATCHED: None}), 2, r"lacks mnli/validation_matched-\*, which its card names for the split"
    ),
    "first shard absent": (*shards_of_a_split(0), 2, "lacks mnli/validation_matched-00000-of-00003.parquet"),
    "last shard absent": (*shards_of_a_split(2), 2, "lacks mnli/validation_matched-00002-of-00003.parquet"),
    "half a Parquet file": (
        *damaged(GLUE, MATCHED, half), 2, f"validation_matched-00000-of-00001.parquet.* {NOT_ITS_NAME}"
    ),
    "a flipped bit of Parquet": (
        *damaged(GLUE, MATCHED, flip), 2, f"validation_matched-00000-of-00001.parquet.* {NOT_ITS_NAME}"
    ),
    "half a Parquet file, copied": (
        *copied(GLUE, MATCHED, half), 2, r"damaged \(it is not a whole Parquet file\) and stays"
    ),
    "Parquet of other columns": (
        *with_files(GLUE, {MATCHED: parquet({"a": datasets.Value("string")}, a=["b"])}),
        2,
        "has no column 'premise'; it has a",
    ),
    "Parquet without rows": (
        *pairs(premise=[], hypothesis=[], label=[]), 2, "parquet of .* cannot be read: it has no rows"
    ),
    "hidden labels": (*pairs(label=[0, -1]), 2, "row 1 of nyu-mll/glue, split validation_matched, has the label -1"),
    "no label in Parquet": (
        *pairs(label=[None, 1]), 2, "row 0 of .* has no label in column 'label' .1 of 2 rows have none"
    ),
    "no text in Parquet": (
        *pairs(hypothesis=["a", None]), 2, "row 1 of .* has no text in column 'hypothesis': it is empty"
    ),
    # CSV
    "half a CSV": (*damaged(TWEETS, "val_df.csv", half), 2, f"val_df.csv of .* {NOT_ITS_NAME}"),
    "a flipped bit of a CSV": (*damaged(TWEETS, "val_df.csv", flip), 2, f"val_df.csv of .* {NOT_ITS_NAME}"),
    "half a CSV, copied": (
        *copied(TWEETS, "val_df.csv", half), 2, r"row 30 of .* no label .* \(1 of 31 .*may end too early"
    ),
    "CSV empty": (*published(TWEETS, val_df__csv=b""), 2, "val_df.csv of .* cannot be read: it is empty"),
    "CSV of a header": (*tweets(raw=b"text,label\n"), 2, "val_df.csv of .* cannot be read: it has no rows"),
    "semicolons": (
        *tweets(raw=b"text;label\nabd;0\n"), 2, "has no column 'text'; it has text;label: .* set apart by ';'"
    ),
    "tabs": (*tweets(raw=b"text\tlabel\nabd\t0\n"), 2, r"has no column 'text'; .* set apart by '\\t', not by commas"),
    "byte-order mark": (
        *tweets(raw=b"\xef\xbb\xbftext,label\nabd,0\n"), 0, "validation has 1 rows, the paper's had 5205"
    ),
    "Latin-1": (*tweets(raw="text,label\nabd,0\né,2\n".encode("latin-1")), 2, "val_df.csv of .* line 3 is not UTF-8"),
    "UTF-16": (*tweets(raw="text,label\nabd,0\n".encode("utf-16")), 2, "val_df.csv of .* line 1 is not UTF-8"),
    "zero bytes": (*tweets(raw=b"text,label\nabd,0\n" + bytes(50)), 2, "val_df.csv of .* line 3 holds zero bytes"),
    "capital letters": (
        *tweets(raw=b"Text,Label\nabd,0\n"), 2, "validation of .* has no column 'text'; it has Text, Label"
    ),
    "one field too many": (
        *tweets(raw=b"text,label\nabd,0\na,b,2\n"), 2, "the split validation .* Expected 2 fields in line 3"
    ),
    "open quotes": (*tweets(raw=b'text,label\nabd,0\n"egi,2\n'), 2, "the split validation of .* EOF inside string"),
    "page for a CSV": (
        *copied(TWEETS, "val_df.csv", becomes(PAGE)), 2, r"val_df.csv of .* is damaged \(it is a web page\)"
    ),
    "no label column": (*tweets(label=None), 2, "validation of .* has no column 'label'; it has text"),
    "no text column": (*tweets(text=None), 2, "validation of .* has no column 'text'; it has label"),
    "unknown label": (*tweets(label=[0, 1, 5]), 2, "row 2 of .*, split validation, has the label 5 in column 'label'"),
    "label in words": (*tweets(label=["0", "so so", "2"]), 2, "row 1 of .* has the label 'so so' in column 'label'"),
    "label between two": (*tweets(label=[0, 1.5, 2]), 2, "row 1 of .* has the label 1.5"),
    "no label": (
        *tweets(label=[0, None, 2]), 2, "row 1 of .* has no label in column 'label' .1 of 3 rows have none.: fill it in"
    ),
    "no labels": (*tweets(label=[None] * 3), 2, "row 0 of .* has no label in column 'label' .3 of 3 rows have none"),
    "labels as fractions": (*tweets(label=[0.0, 1.0, 2.0]), 0, "validation has 3 rows"),
    "neutral alone": (
        *tweets(label=[1, 1, 1]), 2, "no row of .*, split validation, has a label that stands for a class"
    ),
    "empty text": (
        *tweets(text=["abd", "", "egi"]), 2, "row 1 of .* has no text in column 'text': it is empty, or reads as mi"
    ),
    "blank text": (*tweets(text=["abd", " ", "egi"]), 2, "row 1 of .* has no text in column 'text': it holds ' '"),
    "numbers for texts": (*tweets(text=[1, 2, 3]), 2, "row 0 of .* has no text in column 'text': it holds 1"),
    "split of a CSV absent": (*published(TWEETS, val_df__csv=None), 2, "has no split 'validation'; it has train, test"),
    "unknown language": (
        *published(LANGUAGES, valid__csv=csv(labels=["en", "xx"], text=["a", "b"])), 2, "row 1 .* label 'xx'"
    ),
    "other columns in a split not asked for": (
        *published(LANGUAGES, train__csv=csv(a=["en"])), 0, "validation has 60 rows"
    ),
    "no data": (*published(LANGUAGES, train__csv=None, valid__csv=None, test__csv=None), 2, "has no data files"),
    "half a gzip": (
        *with_files(
            LANGUAGES, {"valid.csv": None, "valid.csv.gz": half(gzip.compress(csv(labels=["en"], text=["a"])))}
        ),
        2,
        "valid.csv.gz of .* it is not whole",
    ),
    "half a zip": (
        *with_files(LANGUAGES, {"valid.csv": None, "valid.zip": b"PK\3\4abc"}), 2, "valid.zip of .* it is not whole"
    ),
    # JSON
    "half a JSON": (*damaged(NEWS, "train.json", half), 2, f"train.json of .* {NOT_ITS_NAME}"),
    "half a JSON, copied": (
        *copied(NEWS, "train.json", half), 2, r"train.json of .* damaged \(it is not JSON at line 23\)"
    ),
    "a line that is not JSON": (
        *published(NEWS, train__json=b'{"Title": "a", "labels": 0}\n{"Title\n'),
        2,
        "train.json of .* it is not JSON at line 2",
    ),
    "JSON empty": (*published(NEWS, train__json=b""), 2, "train.json of .* it is empty"),
    "JSON without rows": (*published(NEWS, train__json=b"[]"), 2, "train.json of .* it is an empty list"),
    "JSON not UTF-8": (
        *published(NEWS, train__json=b'{"Title": "\xe9", "labels": 0}\n'), 2, "train.json of .* line 1 is not UTF-8"
    ),
    "no label in JSON": (
        *news({"Title": "a", "labels": None}, {"Title": "b", "labels": 0}), 2, "row 0 of .* has no label"
    ),
    "no labels at last": (
        *news({"Title": "a", "labels": 0}, {"Title": "b"}), 2, "row 1 of .* no label .*; the file may end too"
    ),
    "empty text in JSON": (
        *news({"Title": "a", "labels": 0}, {"Title": "", "labels": 0}), 2, "row 1 of .* it holds ''"
    ),
    "lists for texts": (
        *news({"Title": ["a"], "labels": 0}), 2, r"row 0 of .* no text in column 'Title': it holds \['a'\]"
    ),
    "a document of rows": (*published(NEWS, train__json=b'[{"Title": "a", "labels": 0}]'), 0, "train has 1 rows"),
    # the cache
    "whole": (BERT, lambda _: None, 0, "train has 45 rows"),
    "whole, copied": (*cache_is(Cache.plain), 0, "train has 45 rows"),
    "no HF_HOME": (
        *cache_is(lambda cache: shutil.rmtree(cache.home)), 2, "not in .*hub, which is not there: HF_HOME may lead"
    ),
    "HF_HOME a file": (*cache_is(home_is_a_file), 2, "hf is a file, not a folder: set HF_HOME to a folder"),
    "HF_HOME one too deep": (
        *cache_is(home_one_too_deep), 2, "it is not in .*hub/hub but in .*hub: set HF_HUB_CACHE to that"
    ),
    "repository absent": (*cache_is(lambda cache: shutil.rmtree(cache.storage(BERT))), 2, "not in .*hub\n"),
    "no snapshot": (
        *cache_is(lambda cache: shutil.rmtree(cache.storage(BERT) / "snapshots")),
        2,
        "has refs/main point to .*, which is absent; there is none",
    ),
    "no snapshot, no ref": (
        *cache_is(lambda cache: [shutil.rmtree(cache.storage(BERT) / name) for name in ("snapshots", "refs")]),
        2,
        "has no snapshot",
    ),
    "ref to an absent snapshot": (
        *cache_is(lambda cache: cache.refs(BERT, main="0" * 40)), 2, "has refs/main point to .*'0{40}'"
    ),
    "ref empty": (
        *cache_is(lambda cache: cache.refs(BERT, main="")), 2, "has refs/main point to the snapshot '', which is absent"
    ),
    "ref out of the folder": (
        *cache_is(lambda cache: cache.refs(BERT, main="../..")), 2, r"point to the snapshot '../..', which"
    ),
    "no ref, one snapshot": (*cache_is(lambda cache: cache.refs(BERT)), 0, "train has 45 rows"),
    "no ref, two snapshots": (
        *cache_is(two_snapshots), 2, "has no refs/main to say which snapshot to read; there is .*, ffffffffffff"
    ),
    "another branch": (*other_branch(NEWS, "develop"), 2, "was fetched from develop, where the profile asks for main"),
    "a lock left": (
        *cache_is(lambda cache: (cache.home / "hub" / ".locks").mkdir(exist_ok=True)), 0, "train has 45 rows"
    ),
    "HF_DATASETS_CACHE a file": (
        *cache_is(lambda cache: (cache.home / "datasets").write_text("")), 0, "train has 45 rows"
    ),
    # what is only looked at
    "reviews absent": (
        REVIEWS, lambda cache: shutil.rmtree(cache.storage(REVIEWS)), 0, "not in .*hub. It is only looked at: the rest"
    ),
    "reviews of another branch": (
        *other_branch(REVIEWS, "main"), 0, "was fetched from main, where .* asks for refs/convert/parquet"
    ),
    "reviews damaged": (
        *damaged(REVIEWS, "english/test/0000.parquet", half), 0, f"{NOT_ITS_NAME}.* It is only looked at"
    ),
    "half the reviews": (
        *edited(REVIEWS, "english/test/0000.parquet", half), 0, "not a whole Parquet file.* It is only looked at"
    ),
    "reviews without content": (
        *no_content(REVIEWS, "english/test/0000.parquet"), 0, "lacks what the link .* It is only looked"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("asset", "change", "code", "sentence"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_said_before_anything_runs(asset, change, code, sentence, cache, capsys):
    change(cache)
    there = sorted(cache.home.rglob("*"))
    answered, said = answer(asset, capsys)
    assert answered == code, said
    assert any(re.search(sentence, line) for line in said.splitlines(keepends=True)), said
    assert sorted(cache.home.rglob("*")) == there  # without a hub, nothing is deleted


# ---------------------------------------------------------------- what the hub can bring again


@pytest.mark.parametrize(
    ("asset", "name"), [(BERT, "model.safetensors"), (BERT, "config.json"), (TWEETS, "val_df.csv"), (GLUE, "README.md")]
)
def test_what_the_hub_can_bring_again_is_taken_out_and_comes_again(asset, name, server, cache, capsys):
    aim(cache.patch, cache.home, server.url)
    path = cache.file(asset, name)
    whole, blob = path.read_bytes(), path.resolve()
    cache.damage(asset, name, flip)
    code, said = answer(asset, capsys)
    assert code == 2
    assert "is damaged and was taken out of the cache: run the same command again to fetch it anew" in said
    assert not path.is_symlink()
    assert not blob.exists()
    assert answer(asset, capsys)[0] == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (status(404, X_Error_Code="EntryNotFound"), "it cannot be fetched again, .* answered 404"),
        (status(429), "it cannot be fetched again, .* answered 429 .*; run again when it can, or put a whole file at"),
        (status(500), "it cannot be fetched again, .* answered 500"),
    ],
)
def test_what_the_hub_does_not_give_again_stays(fault, sentence, server, cache, capsys):
    aim(cache.patch, cache.home, server.url)
    cache.damage(BERT, "model.safetensors", flip)
    with server.fault("HEAD .*/model.safetensors", fault):
        code, said = answer(BERT, capsys)
    assert code == 2
    assert re.search(f"is damaged .* and stays in the cache: {sentence}", said)
    assert cache.file(BERT, "model.safetensors").exists()


def test_a_cache_that_cannot_be_written_keeps_its_damaged_file_and_says_so(server, cache, capsys):
    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    aim(cache.patch, cache.home, server.url)
    cache.damage(BERT, "model.safetensors", flip)
    cache.patch.setattr(Path, "unlink", read_only)
    code, said = answer(BERT, capsys)
    assert code == 2
    assert "stays in the cache: Read-only file system; delete" in said


def test_what_a_link_leads_to_outside_of_the_cache_is_not_deleted(server, cache, capsys, tmp_path):
    aim(cache.patch, cache.home, server.url)
    path, own = cache.file(BERT, "model.safetensors"), tmp_path / "own.safetensors"
    own.write_bytes(half(path.read_bytes()))
    path.unlink()
    path.symlink_to(own)
    assert "was taken out of the cache" in answer(BERT, capsys)[1]
    assert not path.is_symlink()
    assert own.exists()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "blob"),
         "No space left on device .blob., make room or set HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system", "blob"),
         "Read-only file system .blob., set HF_HOME to a folder that"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied, grant access or set HF_HOME"),
        (RuntimeError("Data processing error: CAS service error"), "Data processing error"),
    ],
)  # fmt: skip
def test_a_download_that_fails_is_said_with_its_remedy(error, sentence, server, cache, capsys):
    def fail(*_, **__):
        raise error

    aim(cache.patch, cache.home, server.url)
    shutil.rmtree(cache.storage(NEWS))
    cache.patch.setattr(hub, "hf_hub_download", fail)
    code, said = answer(NEWS, capsys)
    assert code == 2
    assert re.search(f"train.json of {NEWS.repo} could not be fetched: {sentence}", said)


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"[]", b"{}"])
def test_an_endpoint_that_is_no_hub_is_said_to_be_none(body, server, cache, capsys):
    aim(cache.patch, cache.home, server.url)
    shutil.rmtree(cache.home / "hub")
    with server.fault("GET /api", lambda handler: handler.answer(200, body)):
        code, said = answer(BERT, capsys)
    assert code == 2
    assert f"{server.url} does not answer as a hub does: HF_ENDPOINT, or a proxy, may lead elsewhere; not in" in said


def test_a_whole_cache_will_do_where_the_hub_is_no_hub(server, cache, capsys):
    aim(cache.patch, cache.home, server.url)
    with server.fault("/", status(503)):
        assert answer(BERT, capsys)[0] == 0


# ---------------------------------------------------------------- how often, and what notebooks see


def test_a_file_is_hashed_once_in_a_process_and_not_in_notebooks(cache, capsys):
    hashed = []
    digest = hub_cache.sha_fileobj
    cache.patch.setattr(hub_cache, "sha_fileobj", lambda file: hashed.append(file.name) or digest(file))
    assert answer(BERT, capsys)[0] == 0
    assert len(hashed) == 1  # the weights alone are named by a SHA-256
    commit = cache.file(BERT, "").name
    assert commit in os.environ[hub.CHECKED].split(",")
    cache.damage(BERT, "model.safetensors", flip)
    assert hub.find(BERT).commit == commit  # what a notebook does
    assert len(hashed) == 1
    cache.patch.delenv(hub.CHECKED)
    with pytest.raises(hub.DamagedError, match="model.safetensors of .* is damaged"):
        hub.find(BERT)


def test_a_notebook_shows_what_is_only_looked_at_or_why_it_is_not_there(cache):
    shown = reading.described(REVIEWS)
    assert "tyqiangz/multilingual-sentiments (english), train: 12 texts, labels {0: 4, 1: 4, 2: 4}" in shown
    assert shown.count("made up") == 9
    cache.damage(REVIEWS, "english/test/0000.parquet", half)
    assert re.match(
        "tyqiangz/multilingual-sentiments is only looked at, and not here: english/test/0000.parquet of .* is damaged",
        reading.described(REVIEWS),
    )
