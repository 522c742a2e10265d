"""The examples of CONTRIBUTING.md run as they stand, and what it names is there."""

import importlib
import re

import pytest
import torch
from pipeline import ROOT, in_process
from precision import close_logs
from tiny import tiny_model

import gnorm
import run_all
from gnorm.engine.model.families import FAMILIES

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = {
    title: example
    for section in TEXT.split("\n## ")[1:]
    for title in [section.partition("\n")[0]]
    for example in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
}


def run_example(title):
    """The names that the example of a section defines."""
    namespace = {"__name__": "example"}
    exec(compile(EXAMPLES[title], f"CONTRIBUTING.md, {title}", "exec"), namespace)  # noqa: S102
    return namespace


@pytest.fixture(autouse=True)
def rows_of_before():
    """Rows that an example adds to a table go again."""
    tables = [(table, dict(table)) for table in (FAMILIES, gnorm.MORE_METHODS, gnorm.METRICS)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


def test_every_section_that_promises_an_example_has_one():
    assert list(EXAMPLES) == ["A criterion", "A metric", "A family of models", "A notebook"]


def test_a_criterion(capsys):
    example = run_example("A criterion")
    task, run = example["task"], example["run"]
    heads_of_task = gnorm.head_mask_of(task.model).numel()
    assert run.table.pruned_heads.max() == heads_of_task
    scores = example["value_norm"](task.model, [])
    block = gnorm.attention_blocks(task.model)[1]
    rows = slice(2 * block.head_dim, 3 * block.head_dim)
    close_logs(scores[1, 2], block.value.weight[rows].double().norm().log().detach(), torch.float64)
    assert run.order()[0] == divmod(int(scores.argmin()), scores.shape[1])
    model = tiny_model("bert")
    mask = gnorm.head_mask_of(model)
    mask[0] = False
    gnorm.remove_heads(model, mask)
    assert torch.equal(example["value_norm"](model, []).isneginf(), ~mask)


def test_a_metric():
    example = run_example("A metric")
    run, labels = example["run"], torch.as_tensor(example["run"].labels)
    hits = gnorm.metrics.correct_texts(example["task"].model, example["task"].batches("evaluation"))
    assert run.table["worst_class"][0] == min(hits[labels == c].double().mean().item() for c in labels.unique())
    assert run.info["metric"] == "worst_class"


def test_a_family(capsys):
    assert "dots1" not in FAMILIES
    example = run_example("A family of models")
    assert "dots1" in FAMILIES
    assert gnorm.head_mask_of(example["smaller"]).sum() == 5
    intact = example["model"](example["batches"][0]["input_ids"]).logits
    assert not torch.equal(intact, example["masked"])


def test_a_notebook(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(copied)
    run_example("A notebook")
    monkeypatch.setattr(run_all, "OPTIONAL", (*run_all.OPTIONAL, "weight_pruning"))
    arguments = ["--profile", "smoke", "--only", "weight_pruning", "--models", "bert"]
    assert in_process(tmp_path / "results", monkeypatch, *arguments, root=copied) == 0
    assert (tmp_path / "results" / "figures" / "smoke" / "weight_pruning.png").exists()
    assert (tmp_path / "results" / "experiments_results" / "smoke" / "bert" / "weight_magnitude.csv").exists()


def test_the_table_names_functions_that_are_there():
    rows = re.findall(r"^\| .* \| \[(\S+)\]\((\S+)\) \| `(\w+)` \|$", TEXT, re.MULTILINE)
    assert len(rows) >= 8
    for shown, target, name in rows:
        assert shown == target
        assert callable(getattr(importlib.import_module(target.removesuffix(".py").replace("/", ".")), name))


def test_files_and_folders_that_are_named_exist():
    (tree,) = re.findall(r"```\n(gnorm/ .*?)```", TEXT, re.DOTALL)
    paths = {line.split()[0] for line in tree.splitlines()} | {"benchmarks/"}
    named = set(re.findall(r"`((?:gnorm|experiments|tests|tools|docs|notebooks)/[\w/.]+)`", TEXT))
    for path in paths | named:
        assert (ROOT / path).exists(), path
