"""A cache of the hub of which one thing is damaged, lacking or odd: the preflight names it and gives no number."""

import errno
import gzip
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
from hub import Hub, aim, csv, parquet, repositories
from huggingface_hub import constants
from huggingface_hub.utils.sha import git_hash
from safetensors.torch import load, save

from experiments.data import hub, reading, tasks
from experiments.data.profiles import read_profile
from experiments.files.errors import UsageError
from experiments.pipeline import preflight

PAPER = read_profile("paper")
BERT, ALBERT, ROBERTA, XLM = (model.checkpoint for model in PAPER.models.values())
NEWS, GLUE, TWEETS, LANGUAGES = (model.dataset for model in PAPER.models.values())
REVIEWS = PAPER.inspected[0]
MATCHED = "mnli/validation_matched-00000-of-00001.parquet"


class Cache:
    """A cache that holds all that the paper profile asks for, and ways to break it."""

    def __init__(self, home, patch):
        self.home, self.patch = home, patch

    def storage(self, asset):
        return self.home / "hub" / f"{asset.kind}s--{asset.repo.replace('/', '--')}"

    def file(self, asset, name):
        return next(self.storage(asset).glob("snapshots/*")) / name

    def damage(self, asset, name, change):
        """Other content under the same name."""
        path = self.file(asset, name).resolve()
        path.write_bytes(change(path.read_bytes()))

    def publish(self, asset, files):
        """As if the repository held these files from the start; a function is given the old content, None takes out."""
        (tree,) = self.storage(asset).glob("trees/*")
        listed = json.loads(tree.read_text())
        for name, content in files.items():
            path = self.file(asset, name)
            content = content(path.read_bytes()) if callable(content) else content
            path.unlink(missing_ok=True)
            listed["files"].pop(name, None)
            if content is not None:
                blob = self.storage(asset) / "blobs" / git_hash(content)
                blob.write_bytes(content)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(os.path.relpath(blob, path.parent))
                listed["files"][name] = {"size": len(content), "blob_id": blob.name}
        tree.write_text(json.dumps(listed))

    def plain(self):
        """As a copy is that follows links: no name tells of the content."""
        for path in [path for path in self.home.glob("hub/*/snapshots/**/*") if path.is_symlink()]:
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)

    def unlisted(self):
        """As libraries leave it that fetch file by file: without lists of files."""
        for tree in self.home.glob("hub/*/trees"):
            shutil.rmtree(tree)

    def refs(self, asset, **commits):
        """These refs alone."""
        shutil.rmtree(self.storage(asset) / "refs")
        for name, commit in commits.items():
            path = self.storage(asset) / "refs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(commit)


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
    monkeypatch.setattr(tasks, "estimate", lambda *_: 0)
    yield Cache(tmp_path / "hf", monkeypatch)
    huggingface_hub.utils.close_session()


def bring(asset):
    """The preflight of the model that needs the asset, or of an inspected one."""
    model = next((name for name, spec in PAPER.models.items() if asset in spec.assets), "bert")
    needed = PAPER.models[model].assets + [asset] * (asset in PAPER.inspected)
    return preflight.bring_assets(PAPER, [model], needed, "cpu")


def refusal(asset, cache):
    """The refusal of the preflight; the cache stays as it was, for there is no hub to fetch from."""
    there = sorted(cache.home.rglob("*"))
    with pytest.raises(UsageError) as refused:
        bring(asset)
    assert sorted(cache.home.rglob("*")) == there
    said = str(refused.value)
    assert asset.repo in said or asset == ALBERT
    for never in ("Traceback", "weights_only=", "trust_remote_code", "pip install"):
        assert never not in said
    return said


def half(content):
    return content[: len(content) // 2]


def flip(content):
    at = len(content) * 3 // 4
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def config(**values):
    """Other values in config.json; None takes one out."""

    def change(content):
        both = {**json.loads(content), **values}
        return json.dumps({name: value for name, value in both.items() if value is not None}).encode()

    return {"config.json": change}


def classes(*names):
    return config(id2label=dict(enumerate(names)), label2id=None)


def weights(change):
    def changed(content):
        change(tensors := load(content))
        return save(tensors, {"format": "pt"})

    return {"model.safetensors": changed}


def torch_file(content):
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def shards(cache, absent="", renamed="", index=None):
    """The weights in two files, of which one is absent or has another name in the index."""
    tensors = load(cache.file(BERT, "model.safetensors").read_bytes())
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


def shards_of_a_split(cache, absent):
    rows = cache.file(GLUE, MATCHED).read_bytes()
    there = {f"mnli/validation_matched-0000{i}-of-00003.parquet": rows for i in range(3) if i != absent}
    cache.publish(GLUE, {MATCHED: None, **there})


def pairs(**columns):
    text = datasets.Value("string")
    kinds = {"premise": text, "hypothesis": text, "label": datasets.ClassLabel(3)}
    rows = {"premise": ["a", "b"], "hypothesis": ["a", "b"], "label": [0, 1]} | columns
    return {MATCHED: parquet(kinds, **rows)}


def tweets(**columns):
    """Another validation split; None leaves a column out."""
    rows = {"text": ["abd", "egi", "abd"], "label": [0, 1, 2]} | columns
    return {"val_df.csv": csv(**{name: values for name, values in rows.items() if values is not None})}


def news(*rows):
    return {"train.json": "".join(json.dumps(row) + "\n" for row in rows).encode()}


def not_finite(tensors):
    tensors["classifier.bias"][0] = float("nan")


def smaller(tensors):
    tensors["classifier.weight"] = torch.zeros(3, 7)


# ---------------------------------------------------------------- damaged: other content than was published

PAGE = b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n"
DAMAGED = [
    *((asset, name, flip) for asset, name in [
        (BERT, "config.json"), (BERT, "vocab.txt"), (BERT, "model.safetensors"), (ALBERT, "pytorch_model.bin"),
        (ALBERT, "spiece.model"), (XLM, "tokenizer.json"), (NEWS, "train.json"), (GLUE, MATCHED), (GLUE, "README.md"),
        (TWEETS, "val_df.csv"),
    ]),
    *((BERT, "model.safetensors", change) for change in (half, lambda _: b"", lambda _: PAGE)),
    (TWEETS, "val_df.csv", half),
]  # fmt: skip


@pytest.mark.parametrize(
    ("known", "asset", "name", "change"),
    [
        *(("by link and list", *damaged) for damaged in DAMAGED),
        *((known, *DAMAGED[2]) for known in ("by list", "by link", "by nothing")),
        ("by link", *DAMAGED[-1]),
    ],
)
def test_a_file_of_other_content_is_refused_by_its_hash(known, asset, name, change, cache):
    """The list of files that came with the commit tells the hash, and so does the name that a link leads to."""
    if known in ("by list", "by nothing"):
        cache.plain()
    if known in ("by link", "by nothing"):
        cache.unlisted()
    cache.damage(asset, name, change)
    found = hub.in_cache(asset)
    assert found.status == "cached"
    path = re.escape(str(cache.file(asset, name).resolve()))
    what = "damaged, its content is not what was published"
    if known == "by nothing":
        what, name, path = "cannot be checked, since nothing in the cache tells its hash", ".*", ".*"
    remedy = f"delete {path}, and run the same command where the hub can be reached"
    with pytest.raises(hub.AssetError, match=f"^{name} of {asset.repo} at .{{12}} (is )?{what}: {remedy}.$"):
        hub.find(asset)


def test_the_preflight_refuses_a_damaged_file(cache):
    asset, name, change = DAMAGED[0]
    cache.damage(asset, name, change)
    assert f"{name} of {asset.repo} at " in (said := refusal(asset, cache))
    assert "is damaged" in said


def test_a_deleted_file_comes_again_from_the_hub(server, cache):
    aim(cache.patch, cache.home, server.url)
    whole = cache.file(BERT, "model.safetensors").read_bytes()
    cache.damage(BERT, "model.safetensors", flip)
    said = refusal(BERT, cache)
    Path(re.search("delete (.*), and run", said)[1]).unlink()
    bring(BERT)
    assert cache.file(BERT, "model.safetensors").read_bytes() == whole


def test_a_file_that_may_not_be_read_is_named(cache):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    cache.patch.setattr(hub, "_hash", refuse)
    assert re.search("config.json of .* cannot be read: .*Permission denied", refusal(BERT, cache))


# ---------------------------------------------------------------- as it was published, and unreadable

UNREADABLE = {
    "config.json": (BERT, [half, b"", b'{"a": "\xe9"}', *(config(**values)["config.json"] for values in (
        {"num_hidden_layers": "two"}, {"num_attention_heads": 5}, {"hidden_act": "nope"})
    )]),
    "the tokenizer (vocab.txt)": (BERT, [b"", b"[PAD]\n\xe9\n", b"a\nb\n"]),
    "the tokenizer (tokenizer.json)": (XLM, [half, b"{}"]),
    "the tokenizer (spiece.model)": (ALBERT, [half]),
    "the tokenizer (merges.txt, vocab.json)": (ROBERTA, [b"a\n"]),
    "the tokenizer (tokenizer_config.json, vocab.txt)": (BERT, [b'{"tokenizer_class": "HermitTokenizer"}']),
    "the weights (model.safetensors)": (BERT, [half, b"", PAGE]),
    "the weights (pytorch_model.bin)": (ALBERT, [
        half, torch_file([1, 2]), torch_file({"a": Path("a")}), pickle.dumps({"a": Path("a")}, protocol=2)
    ]),
    f"the split validation_matched ({MATCHED})": (GLUE, [half, *pairs(premise=[], hypothesis=[], label=[]).values()]),
    "the split validation (val_df.csv)": (TWEETS, [
        b"", b"text,label\n", "text,label\nabd,0\né,2\n".encode("latin-1"), "text,label\nabd,0\n".encode("utf-16"),
        b"text,label\nabd,0\na,b,2\n", b'text,label\nabd,0\n"egi,2\n',
    ]),
    "the split train (train.json)": (NEWS, [
        half, b"", b"[]", b'{"Title": "a", "labels": 0}\n{"Title\n', b'{"Title": "\xe9", "labels": 0}\n'
    ]),
    "the layout (README.md)": (TWEETS, [
        b"---\nconfigs: [a, {b\n---\n", b"---\nconfigs: mnli\n---\n", b"---\nconfigs:\n- mnli\n---\n",
        b"---\nconfigs:\n- config_name: default\n  data_files: data/a.json\n---\n",
        b"---\nconfigs:\n- config_name: a\n  data_files:\n  - split: train\n---\n", b"---\nconfigs: \xff\n---\n",
        b"---\ndataset_info:\n- config_name: default\n  features: 7\n---\n",
    ]),
}  # fmt: skip
CONTENTS = [(what, asset, content) for what, (asset, contents) in UNREADABLE.items() for content in contents]


@pytest.mark.parametrize(("what", "asset", "content"), CONTENTS)
def test_what_cannot_be_read_is_said_to_be_published_so(what, asset, content, cache):
    what, _, name = what.rstrip(")").partition(" (")
    cache.publish(asset, {(name or what).split(", ")[0]: content})
    said = refusal(asset, cache)
    assert re.search(f"{what} .*of {asset.repo} at .{{12}} cannot be read .*, and was published so: name another", said)


def test_a_compressed_file_that_ends_early_is_refused(cache):
    cache.publish(LANGUAGES, {"valid.csv": None, "valid.csv.gz": half(gzip.compress(csv(labels=["en"], text=["a"])))})
    assert "the split validation of papluca/language-identification at" in refusal(LANGUAGES, cache)


# ---------------------------------------------------------------- not what the profile says

# Of cells that are no label or no text one: test_paper.py has the others.
MISFITS = {
    "no model_type": (BERT, config(model_type=None), "the model_type None, which transformers .* does not know"),
    "a list": (BERT, {"config.json": b"[1]"}, "has the model_type None"),
    "code of its own": (BERT, config(model_type="hermit", auto_map={"AutoConfig": "a.B"}), "'hermit', .*is not run"),
    "no classifier": (BERT, config(model_type="clip"), "'clip', of which transformers has no sequence classifier"),
    "other model_type": (BERT, config(model_type="roberta"), "the weights of .* lack classifier.dense.bias.*: weights"),
    "two classes": (BERT, classes("a", "b"), "has 2 classes, 3 are expected"),
    "gaps": (BERT, config(id2label={0: "a", 2: "b", 5: "c"}), "id2label in .* names 3 classes, but none 1"),
    "words": (BERT, config(id2label={"a": "x", "b": "y", "c": "z"}), "config.json of .* cannot be read .*'a'"),
    "a list of classes": (BERT, config(id2label=["a", "b", "c"]), "config.json of .* cannot be read .*list"),
    "a class twice": (ALBERT, classes("entailment", "neutral", "neutral"), "id2label .* names two classes 'neutral'"),
    "a class without name": (BERT, classes(None, "b", "c"), "id2label in .* names 3 classes, but none 0"),
    "label2id": (BERT, config(label2id={"Neutral": 2, "Positive": 1, "Negative": 0}), "gives 2 for 'Neutral', id2"),
    "other classes": (ALBERT, classes("yes", "no", "maybe"), "row 0 of .* the model knows yes, no, maybe"),
    "fewer layers": (BERT, config(num_hidden_layers=1), "the weights of .* go beyond config.json in bert.encoder.lay"),
    "more layers": (BERT, config(num_hidden_layers=3), "the weights of .* lack bert.encoder.layer.2"),
    "vocabulary": (BERT, config(vocab_size=300), "do not fit config.json in bert.embeddings.word_embeddings.weight"),
    "code of a tokenizer": (
        BERT, {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["a.B", null]}}'}, "is code of the repository"
    ),
    "a shape": (BERT, weights(smaller), "the weights of .* do not fit config.json in classifier.weight"),
    "a weight less": (BERT, weights(lambda them: them.pop("classifier.bias")), "the weights .* lack classifier.bias:"),
    "not finite": (BERT, weights(not_finite), "hold a number that is not finite in classifier.bias"),
    "one level down": (ALBERT, {"pytorch_model.bin": torch_file({"model": {}})}, "the weights of .* lack albert"),
    "columns": (GLUE, {MATCHED: parquet({"a": datasets.Value("string")}, a=["b"])}, "no column 'premise'; it has a"),
    "no label": (GLUE, pairs(label=[None, 1]), "row 0 of .* has no label in column 'label' .1 of 2 rows have none"),
    "semicolons": (TWEETS, {"val_df.csv": b"text;label\nabd;0\n"}, "has no column 'text'; it has text;label"),
    "capital letters": (TWEETS, {"val_df.csv": b"Text,Label\nabd,0\n"}, "no column 'text'; it has Text, Label"),
    "zero bytes": (TWEETS, {"val_df.csv": b"text,label\nabd,0\n" + bytes(50)}, "row 1 of .* has no label"),
    "no label column": (TWEETS, tweets(label=None), "validation of .* has no column 'label'; it has text"),
    "no text column": (TWEETS, tweets(text=None), "validation of .* has no column 'text'; it has label"),
    "neutral alone": (TWEETS, tweets(label=[1, 1, 1]), "no row of .*, split validation, has a label that stands for a"),
    "split absent": (TWEETS, {"val_df.csv": None}, "has no split 'validation'; it has train, test"),
    "lists": (NEWS, news({"Title": ["a"], "labels": 0}), r"row 0 of .* in column 'Title': it holds \['a'\]"),
}  # fmt: skip


@pytest.mark.parametrize(("asset", "files", "sentence"), MISFITS.values(), ids=MISFITS)
def test_what_the_profile_does_not_say_is_refused(asset, files, sentence, cache):
    cache.publish(asset, files)
    assert re.search(sentence, refusal(asset, cache))


def test_the_tokenizer_of_another_model_is_refused(cache):
    cache.publish(BERT, {"vocab.txt": None, "spiece.model": cache.file(ALBERT, "spiece.model").read_bytes()})
    assert re.search("tokenizer of .* has no vocabulary: its files are not those that BertTok", refusal(BERT, cache))


# ---------------------------------------------------------------- incomplete


def lost(asset, name):
    """Gone from the cache, though the commit has it."""
    return asset, lambda cache: cache.file(asset, name).unlink(), rf"is incomplete: 1 file.* \({name}\)"


def not_there(asset, name, sentence):
    return asset, lambda cache: cache.publish(asset, {name: None}), sentence


def in_place_of(asset, name, put):
    return asset, lambda cache: (cache.file(asset, name).unlink(), put(cache.file(asset, name)), cache.unlisted())


def two_snapshots(cache):
    cache.refs(BERT)
    shutil.copytree(cache.file(BERT, ""), cache.storage(BERT) / "snapshots" / ("f" * 40), symlinks=True)


def home_is_a_file(cache):
    shutil.rmtree(cache.home)
    cache.home.write_text("")


NOT_THERE = "HF_HUB_OFFLINE is set; not in .*hub at the revision main"
INCOMPLETE = {
    "a small file": lost(BERT, "vocab.txt"),
    "a split": lost(NEWS, "train.json"),
    "a split not read": lost(TWEETS, "train_df.csv"),
    "no config.json": not_there(BERT, "config.json", "has no config.json"),
    "no tokenizer": not_there(BERT, "vocab.txt", "has no tokenizer .one of tokenizer.json, vocab.txt"),
    "no merges": not_there(ROBERTA, "merges.txt", "has no merges.txt, without which vocab.json is not a tokenizer"),
    "no weights": not_there(BERT, "model.safetensors", "has no weights .model.safetensors or pytorch_model.bin."),
    "no file of a split": not_there(GLUE, MATCHED, r"has no data files mnli/validation_matched-\*"),
    "no data": not_there(NEWS, "train.json", "has no data files"),
    "a shard less": (
        BERT, lambda cache: shards(cache, "model-00002-of-00002.safetensors"), r"lacks one of model-\*-of-00002.safete"
    ),
    "no index": (BERT, lambda cache: shards(cache, "model.safetensors.index.json"), "no weights .* no index of shards"),
    "other shard": (BERT, lambda cache: shards(cache, renamed="other.safetensors"), "weights of .* cannot be read"),
    "index": (BERT, lambda cache: shards(cache, index=b'{"weight_map": {}}'), "the weights of .* cannot be read"),
    "half an index": (BERT, lambda cache: shards(cache, index=b'{"weight_map": {"a'), "the weights of .* cannot be"),
    "first shard": (GLUE, lambda cache: shards_of_a_split(cache, 0), r"lacks one of mnli/.*-\*-of-00003"),
    "last shard": (GLUE, lambda cache: shards_of_a_split(cache, 2), r"lacks one of mnli/.*-\*-of-00003"),
    "link to nothing": (
        BERT, lambda cache: cache.file(BERT, "model.safetensors").resolve().unlink(), "lacks model.safetensors"
    ),
    "link to itself": (*in_place_of(BERT, "config.json", lambda path: path.symlink_to(path)), "lacks config.json"),
    "folder for a file": (*in_place_of(TWEETS, "val_df.csv", Path.mkdir), "lacks val_df.csv"),
    "no HF_HOME": (BERT, lambda cache: shutil.rmtree(cache.home), NOT_THERE),
    "HF_HOME a file": (BERT, home_is_a_file, NOT_THERE),
    "HF_HOME too deep": (
        BERT, lambda cache: cache.patch.setattr(constants, "HF_HUB_CACHE", str(cache.home / "hub" / "hub")), NOT_THERE
    ),
    "no repository": (BERT, lambda cache: shutil.rmtree(cache.storage(BERT)), NOT_THERE),
    "no snapshot": (BERT, lambda cache: shutil.rmtree(cache.storage(BERT) / "snapshots"), NOT_THERE),
    "other ref": (BERT, lambda cache: cache.refs(BERT, main="0" * 40), NOT_THERE),
    "ref empty": (BERT, lambda cache: cache.refs(BERT, main=""), "what is in .* has no config.json"),
    "ref outside": (BERT, lambda cache: cache.refs(BERT, main="../.."), "what is in .* has no config.json"),
    "ref of data empty": (NEWS, lambda cache: cache.refs(NEWS, main=""), "'snapshots' is not a commit"),
    "two snapshots": (BERT, two_snapshots, NOT_THERE),
    "other branch": (NEWS, lambda cache: cache.refs(NEWS, develop=cache.file(NEWS, "").name), NOT_THERE),
}  # fmt: skip


@pytest.mark.parametrize(("asset", "change", "sentence"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_what_is_lacking_is_named(asset, change, sentence, cache):
    change(cache)
    assert re.search(sentence, refusal(asset, cache))


# ---------------------------------------------------------------- odd, and good

GOOD = {
    "whole": (BERT, lambda _: None),
    "copied": (BERT, Cache.plain),
    "without lists": (BERT, Cache.unlisted),
    "no ref, one snapshot": (BERT, lambda cache: cache.refs(BERT)),
    "shards": (BERT, shards),
    "half a vocabulary": (BERT, lambda cache: cache.publish(BERT, {"vocab.txt": half})),
    "byte-order mark": (
        TWEETS, lambda cache: cache.publish(TWEETS, {"val_df.csv": b"\xef\xbb\xbftext,label\nabd,0\n"})
    ),
    "fractions": (TWEETS, lambda cache: cache.publish(TWEETS, tweets(label=[0.0, 1.0, 2.0]))),
    "a list of rows": (NEWS, lambda cache: cache.publish(NEWS, {"train.json": b'[{"Title": "a", "labels": 0}]'})),
    "other columns in another split": (LANGUAGES, lambda cache: cache.publish(LANGUAGES, {"train.csv": csv(a=["en"])})),
    "no datasets cache": (BERT, lambda cache: (cache.home / "datasets").write_text("")),
}  # fmt: skip


@pytest.mark.parametrize(("asset", "change"), GOOD.values(), ids=GOOD)
def test_what_is_odd_but_whole_is_read(asset, change, cache, capsys):
    change(cache)
    assert [state.status for state in bring(asset)] == ["cached", "cached"]
    assert " has 1 rows, the paper's had" in capsys.readouterr().out or asset not in (NEWS,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda cache: shutil.rmtree(cache.storage(REVIEWS)), "not in .*hub"),
        (
            lambda cache: cache.refs(REVIEWS, main=cache.file(REVIEWS, "").name),
            "not in .*hub at the revision refs/conv",
        ),
        (lambda cache: cache.damage(REVIEWS, "english/test/0000.parquet", half), "is damaged"),
        (lambda cache: cache.publish(REVIEWS, {"english/test/0000.parquet": half}), "cannot be read"),
        (lambda cache: cache.file(REVIEWS, "english/test/0000.parquet").unlink(), "is incomplete"),
    ],
)
def test_what_is_inspected_stops_nothing(change, sentence, cache, capsys):
    change(cache)
    assert [state.status for state in bring(REVIEWS)] == ["cached", "cached", "missing"]
    printed = capsys.readouterr().out
    assert re.search(f"{sentence}.*", printed)
    assert "It is inspected, not used: the rest runs without it." in printed or " missing " in printed
    assert f"{REVIEWS.repo} is inspected, not used, and not here: " in reading.described(REVIEWS)


def test_a_notebook_shows_what_is_inspected(cache):
    shown = reading.described(REVIEWS)
    assert "tyqiangz/multilingual-sentiments, train: 12 texts, labels {0: 4, 1: 4, 2: 4}" in shown
    assert shown.count("made up") == 9


def test_a_file_is_hashed_once_in_a_process_and_not_in_notebooks(cache):
    hashed = []
    digest = hub.sha_fileobj
    cache.patch.setattr(hub, "sha_fileobj", lambda file: hashed.append(file.name) or digest(file))
    for _ in range(2):
        commit = hub.find(BERT).commit
    assert len(hashed) == 1  # the weights alone are named by a SHA-256
    cache.damage(BERT, "model.safetensors", flip)
    cache.patch.setenv(hub.CHECKED, f"{'0' * 40},{commit}")
    assert hub.find(BERT).commit == commit  # as a notebook does
    assert len(hashed) == 1
