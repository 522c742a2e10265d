"""The engine against the literal algorithm: order, score and accuracy, four families, to the last head."""

import copy

import literal
import numpy as np
import pytest
import torch
from crosses import one_by_all
from precision import close, close_logs
from tiny import FAMILIES, ragged_batches, tiny_model

import gnorm

SHARED, OWN = "the scoring texts", "texts of their own"


@pytest.mark.parametrize(
    ("family", "method", "evaluation"), one_by_all(FAMILIES, ("greedy_gnorm", "inverse_greedy_gnorm"), (SHARED, OWN))
)
def test_prune_equals_the_literal_algorithm(family, method, evaluation):
    model, scoring, highest_first = tiny_model(family), ragged_batches(2), method == "inverse_greedy_gnorm"
    held_out = None if evaluation == SHARED else ragged_batches(2, seed=7)
    order, scores, accuracies = literal.prune(copy.deepcopy(model), scoring, held_out or scoring, highest_first)

    trajectory = gnorm.prune(model, scoring, held_out, method=method, progress=False)

    assert trajectory.order() == order
    close_logs(trajectory.table.score[1:], np.log(scores))
    close(trajectory.table.accuracy, accuracies, torch.float64)
    assert trajectory.table.pruned_heads.tolist() == list(range(len(order) + 1))


def test_scores_equal_the_literal_ones(model):
    batches = ragged_batches(2)
    expected = literal.scores(model, batches).log()
    close_logs(gnorm.gnorm_scores(model, batches), expected)


def test_a_batch_cut_into_single_texts_scores_like_one_forward(model):
    batches = ragged_batches(2)
    singles = gnorm.engine.texts.batches.prepare(batches, model, max_tokens=1)
    assert all(len(micro.index) == 1 for micro in singles)
    close_logs(gnorm.gnorm_scores(model, singles), gnorm.gnorm_scores(model, batches))


def test_prune_leaves_the_model_as_it_was(model):
    model.train()
    next(model.parameters()).requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    gnorm.prune(model, ragged_batches(2), steps=2, progress=False)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert bool(gnorm.head_mask_of(model).all())


def test_scores_that_underflow_in_fp32_products_keep_their_order():
    """The value projection shrunk to 1e-30: norms of about 1e-30 x 1e-30 x 1, products of fp32 all zero."""
    model = tiny_model("bert").double()
    batches = ragged_batches(2)
    with torch.no_grad():
        for block in gnorm.attention_blocks(model):
            block.output.weight.mul_(1e-30)
    expected = literal.products(model, batches)
    assert bool((expected.float() == 0).all())  # what an fp32 product would have had to order
    order, _, _ = literal.prune(copy.deepcopy(model), batches, None)
    trajectory = gnorm.prune(model, batches, progress=False)
    assert trajectory.order() == order
    assert trajectory.info["ties"] == 0
    with torch.no_grad():
        for block in gnorm.attention_blocks(model):
            block.output.weight.mul_(1e-100)  # the products are below 1e-308 now: float64 has none of them either
    assert bool((literal.products(model, batches) == 0).all())
    assert bool(gnorm.gnorm_scores(model, batches).isfinite().all())


def test_exact_ties_go_to_the_lowest_layer_and_head_and_are_counted():
    model = tiny_model("bert", num_hidden_layers=1)
    block = gnorm.attention_blocks(model)[0]
    with torch.no_grad():  # four equal heads: every score ties
        for linear in (block.query, block.key, block.value):
            linear.weight.copy_(linear.weight[:8].repeat(4, 1))
            linear.bias.copy_(linear.bias[:8].repeat(4))
        block.output.weight.copy_(block.output.weight[:, :8].repeat(1, 4))
    for method in ("greedy_gnorm", "inverse_greedy_gnorm"):
        scores = torch.zeros(1, 4, dtype=torch.float64)
        chosen, gap = gnorm.pruning._choose(scores, torch.ones(1, 4, dtype=torch.bool), 2, method.startswith("inv"))
        assert [(layer, head) for layer, head, _ in chosen] == [(0, 0), (0, 1)]
        assert gap == 0
    scores = gnorm.gnorm_scores(model, ragged_batches(2))
    close_logs(scores, scores[:, :1].expand(1, 4))


def test_half_precision_gradients_are_scaled_and_the_scale_taken_out(model):
    batches = ragged_batches(2)
    exact = gnorm.gnorm_scores(model, batches)
    for dtype in (torch.float16, torch.bfloat16):
        scores = gnorm.gnorm_scores(copy.deepcopy(model).to(dtype), batches)
        assert scores.dtype == torch.float64
        close_logs(scores, exact, dtype)


def test_summed_gradients_are_those_of_the_literal_objective(model):
    batches = ragged_batches(2)
    reference = copy.deepcopy(model)
    for batch in batches:
        literal.forward(reference, batch).norm().backward()
    gradients = gnorm.engine.backward.gradients.weight_gradients(model, batches)
    for layer, found in zip(literal.projections(reference), gradients, strict=True):
        for linear, gradient in zip(layer[:3], found, strict=True):
            close(gradient, linear.weight.grad)
