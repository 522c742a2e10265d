"""Variants of G-norm, each against whole gradients by plain autograd, batch by batch, in float64."""

import literal
import pytest
import torch
from precision import close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm import criteria
from gnorm.engine.texts.batches import prepare
from gnorm.heads import head_mask_of
from gnorm.methods import MORE_METHODS

BATCHES = ragged_batches(2)


def norm_of_centred(model, batch):
    logits = literal.forward(model, batch)
    return (logits - logits.mean(1, keepdim=True)).norm()


def mean_margin(model, batch):
    first, second = literal.forward(model, batch).topk(2, dim=1).values.unbind(1)
    return (first - second).mean()


def norms(model, objective=literal.norm, weighted=False):
    return literal.gradients(model, BATCHES, objective, weighted)


def balance(model):
    """(layer, head) the root of the norm of the value rows over that of the output columns."""
    rows = []
    for _, _, value, output in literal.projections(model):
        heads = head_mask_of(model).shape[1]
        of_value = value.weight.detach().unflatten(0, (heads, -1)).flatten(1).norm(dim=1)
        of_output = output.weight.detach().T.unflatten(0, (heads, -1)).flatten(1).norm(dim=1)
        rows.append((of_value / of_output).sqrt())
    return torch.stack(rows)


def test_rows_of_one_factor_are_what_they_say(family):
    model = tiny_model(family).double()
    with torch.no_grad():
        for _, _, value, _ in literal.projections(model):
            value.weight[:16] *= 30  # so that the value's gradient is not the largest of every head
    q, k, v, o = norms(model).unbind(1)
    expected = {
        "gnorm_once": q * k * v,
        "gnorm_sum": q + k + v,
        "gnorm_max": torch.maximum(torch.maximum(q, k), v),
        "gnorm_q": q,
        "gnorm_k": k,
        "gnorm_v": v,
        "gnorm_qk": q * k,
        "gnorm_qkvo": q * k * v * o,
        "gnorm_weighted": norms(model, weighted=True)[:, :3].prod(1),
        "gnorm_centred": norms(model, norm_of_centred)[:, :3].prod(1),
        "gnorm_margin": norms(model, mean_margin)[:, :3].prod(1),
        "gnorm_balanced": q * k * v * balance(model),
    }
    expected["gnorm_by_layer"] = expected["gnorm_once"] / expected["gnorm_once"].log().mean(1, keepdim=True).exp()
    for name, products in expected.items():
        close_logs(MORE_METHODS[name].criterion(model, BATCHES), products.log(), torch.float64)
    assert len({tuple(products.flatten().tolist()) for products in expected.values()}) == len(expected)


def test_a_single_head_of_a_layer_is_as_good_as_its_layer():
    model = tiny_model("bert")
    output = literal.projections(model)[0][3]
    with torch.no_grad():
        output.weight[:, 8:] = 0  # heads but the first hand nothing on
    mask = gnorm.head_mask_of(model)
    mask[1, 1:] = False
    gnorm.remove_heads(model, mask)
    scores = MORE_METHODS["gnorm_by_layer"].criterion(model, BATCHES)
    assert scores[:2, 0].tolist() == [0, 0]
    assert (scores[:2, 1:] == -torch.inf).all()


def test_options_go_together():
    model = tiny_model("roberta").double()
    expected = norms(model, norm_of_centred, weighted=True)[:, [3, 1]].sum(1)
    options = {"projections": ("output", "key"), "combine": "sum", "weighted": True, "centred": True}
    close_logs(gnorm.gnorm_scores(model, BATCHES, **options), expected.log(), torch.float64)


@pytest.mark.parametrize("name", ["gnorm_qkvo", "gnorm_weighted", "gnorm_centred", "gnorm_margin"])
def test_batches_that_are_split_and_texts_that_share_a_pass_score_the_same(name):
    model, criterion = tiny_model("bert").double(), MORE_METHODS[name].criterion
    expected = criterion(model, BATCHES)
    for max_tokens in (1, 7, 1000):
        prepared = prepare(BATCHES, model, max_tokens=max_tokens)
        close_logs(criterion(model, prepared), expected, torch.float64)


def test_no_variant_looks_at_labels():
    model = tiny_model("bert")
    unlabelled = [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in BATCHES]
    for name in ("gnorm_sum", "gnorm_qkvo", "gnorm_weighted", "gnorm_centred", "gnorm_margin"):
        criterion = MORE_METHODS[name].criterion
        assert torch.equal(criterion(model, unlabelled), criterion(model, BATCHES))


def test_an_unknown_combination_and_unknown_parts_are_refused():
    model = tiny_model("bert")
    with pytest.raises(ValueError, match=r"combine='mean' is not known; choose one of product, sum, max\."):
        gnorm.gnorm_scores(model, BATCHES, combine="mean")
    for parts in ((), "query", ("query", "dense"), ("key", "key")):
        with pytest.raises(ValueError, match=r"projections=.* must name some of query, key, value, output"):
            gnorm.gnorm_scores(model, BATCHES, projections=parts)


def test_one_logit_has_no_margin():
    model = tiny_model("bert", num_labels=1)
    with pytest.raises(ValueError, match="one number a text, so there is no margin between two"):
        criteria.gnorm_margin(model, BATCHES)
    assert not [hook for module in model.modules() for hook in module._forward_hooks]


@pytest.mark.parametrize("criterion", [criteria.gnorm_margin, criteria.oracle])
def test_logits_that_are_not_finite_are_refused(criterion):
    model = tiny_model("bert")
    with torch.no_grad():
        model.classifier.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        criterion(model, BATCHES)
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks]


def test_the_old_name_of_an_option_is_taken_with_a_warning():
    model = tiny_model("bert")
    expected = gnorm.gnorm_scores(model, BATCHES, projections=("query",))
    with pytest.warns(DeprecationWarning, match="is now called projections="):
        assert torch.equal(gnorm.gnorm_scores(model, BATCHES, parts=("query",)), expected)
