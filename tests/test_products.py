"""Products by oneDNN against PyTorch's own, and the engine that uses them against the literal algorithm."""

import contextlib
import copy

import literal
import numpy as np
import pytest
import torch
from crosses import one_by_all
from precision import close, close_logs
from tiny import FAMILIES, ragged_batches, tiny_model
from torch.nn.functional import linear

import gnorm
from gnorm.engine.forward import products
from gnorm.methods import METHODS, MORE_METHODS

HERE = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch was built without oneDNN")


@pytest.fixture
def counted(monkeypatch):
    """Every product is worth it, and those that were taken are counted: [(x, weight) shapes]."""
    monkeypatch.setattr(products, "SMALLEST", 1)
    taken, before = [], products._worthwhile

    def worthwhile(x, weight):
        if answer := before(x, weight):
            taken.append((tuple(x.shape), tuple(weight.shape)))
        return answer

    monkeypatch.setattr(products, "_worthwhile", worthwhile)
    return taken


@contextlib.contextmanager
def switched_off():
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = True


@HERE
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 20), (2, 5, 20), (0, 20)])
def test_values_and_gradients_are_those_of_linear(counted, shape, bias):
    torch.manual_seed(0)
    inputs = [torch.randn(*shape), torch.randn(6, 20), torch.randn(6) if bias else None]
    x, weight, b = (None if t is None else t.double().requires_grad_() for t in inputs)
    expected = linear(x, weight, b)
    cotangent = torch.randn(*shape[:-1], 6)
    wanted = torch.autograd.grad(expected, [x, weight, *([b] if bias else [])], cotangent.double())
    mine = [None if t is None else t.clone().requires_grad_() for t in inputs]
    with products._FasterLinear():
        found = linear(*mine)
    assert bool(counted) == (0 not in shape)
    close(found.double(), expected)
    for one, other in zip(torch.autograd.grad(found, mine[: 2 + bias], cotangent), wanted, strict=True):
        close(one.double(), other)


@HERE
def test_views_are_taken_as_they_lie(counted):
    torch.manual_seed(0)
    wide, tall = torch.randn(9, 60), torch.randn(30, 9)
    for x, weight in ((wide[:, 5:25], torch.randn(6, 20)), (tall.T[:, ::2], torch.randn(12, 15)[::2]), (wide.T, tall)):
        close(products.product(x, weight), x @ weight.T)
    assert len(counted) == 3


@pytest.mark.parametrize(
    ("prepare", "within"),
    [
        (lambda t: t.double(), contextlib.nullcontext),
        (lambda t: t.bfloat16(), contextlib.nullcontext),
        (lambda t: t.to("meta"), contextlib.nullcontext),
        (lambda t: t, lambda: torch.autocast("cpu", torch.bfloat16)),
        (lambda t: t, switched_off),
    ],
    ids=["fp64", "bf16", "another device", "autocast", "switched off"],
)
def test_what_is_not_fp32_on_a_cpu_is_left_to_linear(counted, prepare, within):
    torch.manual_seed(0)
    x, weight, bias = (prepare(torch.randn(*shape)) for shape in ((7, 20), (6, 20), (6,)))
    with within():
        expected = linear(x, weight, bias)
        with products._FasterLinear():
            found = linear(x, weight, bias)
    assert counted == []
    assert found.dtype == expected.dtype
    assert found.device == expected.device
    assert found.is_meta or torch.equal(found, expected)


def test_weights_of_a_kind_of_their_own_are_left_to_it(counted):
    class Doubled(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            args = [2 * a.as_subclass(torch.Tensor) if isinstance(a, cls) else a for a in args]
            return function(*args, **(kwargs or {}))

    x, weight = torch.randn(7, 20), torch.randn(6, 20)
    with products._FasterLinear():
        found = linear(x, weight.as_subclass(Doubled), None)
    close(found, 2 * x @ weight.T)


@HERE
@pytest.mark.parametrize(("family", "method"), one_by_all(FAMILIES, ("greedy_gnorm", "inverse_greedy_gnorm")))
def test_prune_equals_the_literal_algorithm(counted, family, method):
    model, batches = tiny_model(family), ragged_batches()
    order, scores, accuracies = literal.prune(copy.deepcopy(model), batches, batches, method != "greedy_gnorm")
    assert counted == []
    trajectory = gnorm.prune(model, batches, method=method, progress=False)
    assert counted
    assert trajectory.order() == order
    close_logs(trajectory.table.score[1:], np.log(scores))
    close(trajectory.table.accuracy, accuracies, torch.float64)


ALL = METHODS | MORE_METHODS
BY_CRITERION = {row.criterion: name for name, row in reversed(ALL.items())}.values()


@HERE
@pytest.mark.parametrize(("family", "name"), one_by_all(FAMILIES, BY_CRITERION))
def test_no_criterion_gives_other_scores(counted, family, name):
    method, model, batches = ALL[name], tiny_model(family), ragged_batches(2)
    found = method.scores(model, batches, torch.Generator().manual_seed(0))
    assert bool(counted) == (method.criterion not in (gnorm.scoring.uniform_scores, gnorm.criteria.weight_magnitude))
    counted.clear()
    with switched_off():
        expected = method.scores(model, batches, torch.Generator().manual_seed(0))
    assert counted == []
    close(found, expected)


@HERE
def test_a_mode_left_by_an_error_is_gone(counted):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), products._FasterLinear():
        linear(torch.randn(3, 4), torch.randn(5, 6), None)
    assert torch.equal(linear(torch.ones(3, 4), torch.ones(5, 4), None), torch.full((3, 5), 4.0))
    assert counted == []
