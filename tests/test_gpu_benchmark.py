"""What a GPU would launch and wait for, counted on a CPU, and the benchmark that measures it where there is one."""

import json
import subprocess
import sys
from unittest import mock

import pytest
import torch
from crosses import one_by_all
from pipeline import ROOT
from precision import close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from benchmarks import gpu
from gnorm.engine.backward import factors

WEIGHTED, PARTS = {"weighted": True}, {"projections": ("query", "output")}


@pytest.mark.parametrize(
    ("family", "options", "max_tokens"), one_by_all(("bert", "albert", "gpt2"), ({}, WEIGHTED, PARTS), (None, 20))
)
def test_gradients_taken_together_are_those_taken_one_by_one(family, options, max_tokens):
    """Few large products, and as many norms, on a GPU: the same scores but for rounding; also of cut batches."""
    more = {"n_embd": 32, "n_layer": 3, "n_head": 4} if family == "gpt2" else {}
    model, batches = tiny_model(family, **more), ragged_batches()
    mask = torch.ones(gnorm.head_mask_of(model).shape)
    mask[0, 1:3] = 0  # blocks of unequal sizes do not share a product
    gnorm.remove_heads(model, mask)
    expected = gnorm.gnorm_scores(model, gnorm.prepare(batches, model, max_tokens=max_tokens), **options)
    with gpu.as_on_a_gpu():
        found = gnorm.gnorm_scores(model, gnorm.prepare(batches, model, max_tokens=max_tokens), **options)
    close_logs(found, expected)


def test_a_scoring_launches_few_operations_and_waits_once():
    """The counts are exact: 96 texts in 3 batches by 2 layers. What is read is on the CPU by then, but once."""
    counted = gpu.counted_scoring(small=True)
    assert counted["batches"] == 3
    assert counted["passes"] == 1
    assert counted["operations"] <= 340
    assert counted["reads"] <= 3


def test_gradients_whose_squares_fp32_does_not_hold_are_taken_once_more_in_float64():
    """Gradients of 1e-18, as logits of 1e-9 have them before they are divided by their norm. The observer sees each
    text once."""
    model, batches, seen = tiny_model("bert"), ragged_batches(), []
    with torch.no_grad():
        model.classifier.weight *= 1e-9
        model.classifier.bias *= 1e-9
    expected = gnorm.gnorm_scores(model, batches)
    with gpu.as_on_a_gpu(), mock.patch.object(factors, "log_norm", wraps=factors.log_norm) as in_float64:
        prepared = gnorm.prepare(batches, model).with_observer(lambda logits, _: seen.append(len(logits)))
        found = gnorm.gnorm_scores(model, prepared)
    assert in_float64.called
    assert sum(seen) == sum(len(batch["labels"]) for batch in batches)
    close_logs(found, expected)


def test_a_batch_more_costs_few_launches_and_no_read():
    """It would cost a product and a norm for each projection, were these not taken together."""
    model = gpu.model_of(gpu.narrow(gpu.CASES[0]))
    texts = gpu.texts_of(gpu.narrow(gpu.CASES[0]), 32)
    counts = []
    with gpu.as_on_a_gpu():
        for given in (texts[:4], texts[:8]):
            prepared = gnorm.prepare(given, model)
            with gpu.Counted() as counted:
                gnorm.gnorm_scores(model, prepared)
            counts.append((len(prepared), counted.operations, counted.reads))
    (passes, few, reads), (same_passes, more, same_reads) = counts
    assert passes == same_passes == 1
    assert reads == same_reads
    assert more - few <= 4 * 19  # 6 projections: 12 products and norms, and what they are divided by, before


def test_a_pass_of_a_pruned_model_reads_nothing():
    """Index tensors come from prepare; those of other numbers of heads are computed from them."""
    model = tiny_model("bert")
    prepared = gnorm.prepare(ragged_batches(), model)
    with gpu.Counted() as counted:
        for micro in prepared:
            for heads in (1, 2, 3):
                micro.packed.heads_in_groups(heads)
    assert counted.reads == 0


def test_the_benchmark_runs_on_a_cpu_and_leaves_nothing_out(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--output", str(path)]) == 0
    found = json.loads(path.read_text("utf-8"))
    assert found["left out"] == []
    assert found["prune"] is True  # the steps that are timed are those of gnorm.prune
    assert {row["model"] for row in found["models"]} == {case.name for case in gpu.CASES}
    assert {row["precision"] for row in found["models"]} == set(gpu.PRECISIONS)
    exact = next(row for row in found["order"] if row["precision"] == "fp32")
    assert exact["same until"] == exact["heads"] == 8
    assert all(row["launches"] > 100 and row["s a step"] > 0 for row in found["models"])
    assert str(path) in capsys.readouterr().out


def test_parts_that_time_does_not_suffice_for_are_named(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--small", "--budget", "0", "--output", str(path)]) == 0
    found = json.loads(path.read_text("utf-8"))
    assert found["models"] == found["order"] == []
    assert "BERT-base in TF32: 1 s were not left" in found["left out"]
    assert "left out: the order of heads" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, so the benchmark would run")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert capsys.readouterr().err.startswith("there is no GPU that torch can use here")


def test_it_runs_without_the_packages_that_a_bare_machine_lacks():
    code = """if True:
        import sys
        sys.modules.update(dict.fromkeys(["pandas", "scipy", "sklearn", "textpruner", "datasets", "matplotlib"]))
        from benchmarks import gpu
        run = gpu.Run(gpu.narrow(gpu.CASES[0]), "cpu", gpu.torch.float32)
        print(gpu.MISSING, run.left, [run.step() for _ in range(run.left)][-1] in {(0, 0), (1, 0)}, run.left)
        print(gpu.Clock(1.0).left_out)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("['pandas', 'scipy'] 8 ")
    assert first.endswith(" 0")
    assert "no pandas here" in second
