"""The installable package: what it declares is what it imports, and its wheel works by itself."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile

import hatchling.build
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pipeline import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CORE, EXTRAS = PROJECT["dependencies"], PROJECT["optional-dependencies"]
# Modules whose package has another name, or is always there with a package that is declared.
PACKAGES = {
    "IPython": "ipykernel",
    "faker": "Faker",
    "httpx2": "huggingface-hub",
    "jupyter_client": "ipykernel",
    "vl_convert": "vl-convert-python",
    "sklearn": "scikit-learn",
}
EXAMPLE = """
import sys

sys.path.insert(0, {folder!r})
import torch
from transformers import BertConfig, BertForSequenceClassification

import gnorm
import gnorm.shipping

assert gnorm.__file__.startswith({folder!r}), gnorm.__file__
config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
model = BertForSequenceClassification(config).eval()
batches = [{{"input_ids": torch.tensor([[3, 4], [5, 6]]), "labels": torch.tensor([0, 1])}}]
run = gnorm.prune(model, batches, journal="run.jsonl", progress=False)
gnorm.remove_heads(model, run.mask(1))
gnorm.save_pruned(model, "smaller")
print(gnorm.head_mask_of(gnorm.load_pruned("smaller")).sum().item(), len(gnorm.cost(model, [1], [4], 5)))
print(*sys.modules)
"""


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def imported(folder):
    """The packages that the modules of a folder import, at the top of a file or later."""
    found = set()
    for path in folder.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    others = found - set(sys.stdlib_module_names) - {"gnorm", "experiments"}
    return {canonicalize_name(PACKAGES.get(name, name)) for name in others}


def test_what_is_imported_is_declared():
    package = ROOT / "gnorm"
    assert imported(package) <= names(CORE)
    assert imported(ROOT / "experiments") <= names(CORE + EXTRAS["experiments"] + EXTRAS["dask"])


def test_the_pinned_versions_are_those_that_are_declared():
    lines = re.findall(r"^[\w.-]+==[\w.]+", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    for line in CORE + EXTRAS["experiments"] + EXTRAS["onnx"] + EXTRAS["dask"] + EXTRAS["train"]:
        declared = Requirement(line)
        assert declared.specifier.contains(pinned[canonicalize_name(declared.name)]), line


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel of this tree holds."""
    root = tmp_path_factory.mktemp("wheel")
    source = subprocess.run(["git", "ls-files", "-z", "gnorm"], cwd=ROOT, capture_output=True, text=True, check=False)
    files = source.stdout.split("\0")[:-1] or [str(p.relative_to(ROOT)) for p in ROOT.glob("gnorm/**/*") if p.is_file()]
    for name in ("pyproject.toml", "README.md", "LICENSE", *files):
        if (ROOT / name).is_file():
            (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "source" / name).write_bytes((ROOT / name).read_bytes())
    with pytest.MonkeyPatch.context() as patch:  # as pip calls it
        patch.chdir(root / "source")
        wheel = hatchling.build.build_wheel(str(root))
    with zipfile.ZipFile(root / wheel) as archive:
        archive.extractall(root / "site")
    return root / "site"


def test_the_wheel_holds_everything_that_is_not_code(installed):
    held = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.suffix != ".py"}
    wanted = [*ROOT.glob("gnorm/**/*.toml"), *ROOT.glob("gnorm/**/*.j2"), ROOT / "gnorm" / "py.typed"]
    assert {path.relative_to(ROOT).as_posix() for path in wanted} <= held
    assert not [name for name in held if name.startswith(("tests", "benchmarks", "tools", "experiments"))]


def test_the_wheel_works_and_loads_nothing_of_the_extras(installed, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLE.format(folder=str(installed))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    numbers, loaded = done.stdout.splitlines()
    assert numbers == "1 1"
    modules = {"Faker": "faker", "ipykernel": "IPython"}
    packages = [Requirement(line).name for extra in EXTRAS.values() for line in extra]
    extras = {modules.get(name, name) for name in packages}
    loaded_packages = {name.partition(".")[0] for name in loaded.split()}
    assert not loaded_packages & (
        extras - {"sentencepiece", "protobuf", "accelerate", "psutil"}
    )  # transformers loads these if it can
