"""Heads written otherwise: what a model computes stays to the last bit, and which scores and orders stay with it."""

import copy
import itertools
import math

import literal
import pytest
import torch
from precision import close, close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from experiments.data.profiles import StudyGrid, model_spec
from experiments.runs import rewritten
from gnorm.criteria import rescaling
from gnorm.criteria.rescaling import PAIRS, factors, rescale
from gnorm.methods import find_method
from gnorm.pruning import prune

BATCHES = ragged_batches(2)
ELSEWHERE = ("gpt2", "llama", "modernbert")  # fused, grouped, and rotated projections


def rescaled(model, pair, draw=1):
    other = copy.deepcopy(model)
    drawn = factors(other, 2.0, draw)
    rescale(other, pair, drawn)
    return other, drawn.double()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta", "albert", *ELSEWHERE])
def test_not_one_bit_of_a_logit_moves(name, pair):
    model = tiny_model(name)
    other, drawn = rescaled(model, pair)
    assert len(drawn.unique()) > 1
    with torch.no_grad():
        assert all(torch.equal(literal.forward(model, b), literal.forward(other, b)) for b in BATCHES)


@pytest.mark.parametrize("pair", PAIRS)
def test_rows_and_columns_of_a_head_have_its_factor(model, pair):
    other, drawn = rescaled(model, pair)
    names = ("query", "key", "value", "output")
    for own, rewritten_, of_layer in zip(literal.projections(model), literal.projections(other), drawn, strict=True):
        for name, before, after in zip(names, own, rewritten_, strict=True):
            scale = {PAIRS[pair][0]: of_layer, PAIRS[pair][1]: 1 / of_layer}.get(name, torch.ones_like(of_layer))
            wide = scale.repeat_interleave(len(before.weight) // len(scale)).float()
            of_output = name == "output"
            assert torch.equal(after.weight, before.weight * (wide if of_output else wide[:, None]))
            assert torch.equal(after.bias, before.bias if of_output else before.bias * wide)


def test_factors_are_powers_of_two_of_the_deviation_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(rescaling, "head_mask_of", lambda _: torch.ones(100, 100))
    logs = factors(None, 1.0, 3).double().log2()
    assert torch.equal(logs, logs.round())
    rounding = 1 / 12  # the variance of rounding to whole numbers
    close(logs.std(), math.sqrt(1 / math.log(2) ** 2 + rounding), scale=2000)  # of 10,000 draws: within 0.02
    assert not torch.equal(factors(None, 1.0, 4), factors(None, 1.0, 3))


def test_the_score_of_the_paper_falls_by_the_logarithm_of_the_factor(model):
    other, drawn = rescaled(model.double(), "values")
    shift = gnorm.gnorm_scores(other, BATCHES) - gnorm.gnorm_scores(model, BATCHES)
    close_logs(shift, -drawn.log(), torch.float64)


MOVED = [(pair, method) for pair, methods in rewritten.MOVED.items() for method in methods]
KEPT = [(pair, method) for pair, methods in rewritten.KEPT.items() for method in methods]


def order(model, method):
    return prune(model, BATCHES, BATCHES, method=method, progress=False).order()


@pytest.mark.parametrize(("pair", "method"), KEPT)
def test_orders_that_stay_stay_to_the_last_head(model, pair, method):
    other, _ = rescaled(model, pair)
    criterion = find_method(method).criterion
    close_logs(criterion(other, BATCHES), criterion(model, BATCHES), torch.float64)  # though computed in float32
    assert order(other, method) == order(model, method)


@pytest.mark.parametrize(("pair", "method"), MOVED)
def test_orders_that_move_do(pair, method):
    model = tiny_model("bert")
    orders = [order(model, method), *(order(rescaled(model, pair, draw)[0], method) for draw in (1, 2, 3))]
    assert any(one != other for one, other in itertools.pairwise(orders))


def test_variants_name_every_run_of_the_grid():
    grid = StudyGrid(rescaled=["albert"], rescaled_seeds=1, rescaled_draws=2, deviations=[50, 200])
    found = list(rewritten.variants("smoke", "albert", grid))
    assert len(found) == len(set(found)) == 3 * 2 * 2 + len(KEPT) + 1 + len(rewritten.METHODS)
    assert {method for *_, method in found} == {*rewritten.METHODS}
    assert found[0] == ("albert/seed0", "values", 0, 0, "greedy_gnorm")  # what the others are compared with
    name, pair, deviation, draw, _ = found[len(rewritten.METHODS) + 3]
    assert rewritten.variant(name, pair, deviation, draw) == "albert/seed0/values200/drawn2"
    spec = model_spec("smoke", "albert/seed0/values200/drawn2").rescaling
    assert (spec.values, spec.keys, spec.drawn) == (200, 0, 2)


def test_heads_that_are_gone_and_dead_heads_score_as_low_as_can_be():
    model = tiny_model("bert")
    output = literal.projections(model)[0][3]
    with torch.no_grad():
        output.weight[:, :8] = 0  # head 0 hands nothing on
    mask = gnorm.head_mask_of(model)
    mask[1, 2] = False
    gnorm.remove_heads(model, mask)
    scores = find_method("gnorm_balanced").criterion(model, BATCHES)
    assert scores[0, 0] == scores[1, 2] == -torch.inf
    assert int(scores.isfinite().sum()) == scores.numel() - 2
