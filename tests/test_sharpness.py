"""Sharp attention: attention logits times a factor, what the factor does to gradients by itself, and the tables."""

import math

import literal
import numpy as np
import pandas as pd
import pytest
import torch
from precision import close, close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from experiments.analysis.tables import EXPECTED, sharpness_by_layer, sharpness_effects
from experiments.runs.sharpness import FACTORS, head_rows, sharpened
from gnorm.engine.model.blocks import QKV

BATCHES = ragged_batches(2)
SOFTMAX = torch.nn.functional.softmax


def every_head(model, factor=1.0):
    mask = gnorm.head_mask_of(model)
    table = pd.DataFrame(head_rows(model, BATCHES, mask, factor))
    assert [*table[["layer", "head"]].itertuples(index=False, name=None)] == [*map(tuple, mask.nonzero().tolist())]
    return table


def logits_times(factor, monkeypatch):
    """What goes into every softmax of eager attention is multiplied by the factor."""
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, *args, **kw: SOFTMAX(factor * x, *args, **kw))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["bert", "albert", "gpt2", "llama"])  # fused and grouped projections too
def test_logits_are_those_of_attention_scores_times_the_factor_to_the_last_bit(name, factor, monkeypatch):
    model = tiny_model(name)
    as_trained = [tensor.clone() for tensor in model.state_dict().values()]
    other = sharpened(model, factor)
    for each in (model, other):
        each.set_attn_implementation("eager")
    with torch.no_grad():
        found = [literal.forward(other, batch) for batch in BATCHES]
        logits_times(factor, monkeypatch)
        expected = [literal.forward(model, batch) for batch in BATCHES]
    assert all(map(torch.equal, found, expected))
    assert all(map(torch.equal, model.state_dict().values(), as_trained))


def test_logits_with_a_position_bias_are_refused():
    with pytest.raises(ValueError, match="MPNetSelfAttention adds a bias or positions to its attention logits"):
        sharpened(tiny_model("mpnet"), 2.0)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ["bert", "albert"])
def test_norms_are_those_of_the_literal_model_less_the_logarithm_of_the_factor(name, factor, monkeypatch):
    """With the weights as they were and scores times c, gradients of query and key both have the factor c."""
    model = tiny_model(name).double()
    found = every_head(sharpened(model, factor), factor)
    model.set_attn_implementation("eager")
    logits_times(factor, monkeypatch)
    expected = literal.gradients(model, BATCHES).log()
    for at, (projection, trivial) in enumerate(zip(QKV, (math.log(factor), math.log(factor), 0.0), strict=True)):
        close_logs(found[projection] + trivial, expected[:, at].flatten(), torch.float64)


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_small_logits_may_be_doubled_and_nothing_changes_but_by_the_factor(name):
    """The softmax of small logits is flat, and its derivative the same whatever they are."""
    model, small = tiny_model(name).double(), 2.0**-24
    one, two = (every_head(sharpened(model, factor), factor) for factor in (small, 2 * small))
    for column in ("entropy", *QKV):
        np.testing.assert_allclose(two[column], one[column], rtol=0, atol=1e-5)
    key = [gnorm.gnorm_scores(sharpened(model, c), BATCHES, projections=["key"]) for c in (small, 2 * small)]
    np.testing.assert_allclose(key[1] - key[0], math.log(2), rtol=0, atol=1e-5)


def test_the_norms_make_up_the_score_of_the_heads_that_are_left():
    model = tiny_model("bert")
    mask = gnorm.head_mask_of(model)
    mask[0, 1] = mask[2] = False
    with gnorm.masked(model, mask):
        table = pd.DataFrame(head_rows(model, BATCHES, mask))
        scores, entropy = gnorm.gnorm_scores(model, BATCHES), gnorm.attention_entropy(model, BATCHES)
    assert len(table) == mask.sum()
    close_logs(table[[*QKV]].sum(axis=1), scores[mask])
    close(table.entropy, entropy[mask])


def test_entropy_of_a_shared_block_is_the_mean_over_its_passes():
    model = tiny_model("albert")
    model.set_attn_implementation("eager")
    close(every_head(model).entropy, literal.entropy(model, BATCHES)[0] / model.config.num_hidden_layers)


def test_query_and_key_of_a_saturated_head_have_no_gradient_and_value_has():
    model = tiny_model("bert").double()
    before = every_head(model)
    query = literal.projections(model)[1][0]
    with torch.no_grad():
        query.weight[:8] *= 2.0**40  # of head 0: the largest logit of each token is far above the others
    after = every_head(model)
    of_head = (after.layer == 1) & (after["head"] == 0)
    assert after.entropy[of_head].item() < 1e-9 < before.entropy[of_head].item()
    assert (after.loc[of_head, ["query", "key"]] < -50).all(axis=None)
    assert (after.loc[~of_head, ["query", "key"]] > -20).all(axis=None)
    assert (after.value - before.value).abs().max() < 2


# ---------------------------------------------------------------- tables


def heads_of(training, factor=1.0, share=0.0, up=0.0, model="m"):
    """Two layers of four heads: entropy goes with query, against key, and value has one head of another order."""
    entropy = [1.0, 2.0, 3.0, 4.0]
    table = pd.DataFrame({"layer": [0] * 4 + [1] * 4, "head": [*range(4)] * 2, "entropy": entropy * 2})
    table = table.assign(query=table.entropy + up, key=-table.entropy, value=[1.0, 2.0, 4.0, 3.0] * 2)
    table.loc[table.layer == 1, "query"] -= 3
    names = {"model": model, "training": training, "factor": factor, "share": share}
    return table.assign(**names)[[*names, *table.columns]]


def test_effects_are_those_of_the_heads():
    parts = [heads_of("m/seed0"), heads_of("m/seed1"), heads_of("m/seed0", 2.0, up=-1), heads_of("m/seed1", 2.0, up=-3)]
    found = sharpness_effects(pd.concat(parts, ignore_index=True)).set_index(["factor", "effect"])
    assert {*EXPECTED} <= {effect for _, effect in found.index}
    own = found.loc[1.0]
    assert not any(effect.startswith("change") for effect in own.index)
    for effect, mean, positive in (
        ("rho query", 1.0, 4),
        ("rho key", -1.0, 0),
        ("rho value", 0.8, 4),
        ("rho query less value", 0.2, 4),
        ("last layer, query less value", -3.0, 0),
        ("last layer, key less value", 0.0, 0),
    ):
        row = own.loc[effect]
        close(row[["mean", "low", "high"]].tolist(), [mean] * 3, torch.float64, scale=10)
        assert (row.positive, row.layers) == (positive, 2 if effect.startswith("last") else 4)
    assert own.loc["rho query less value", ["expected", "found"]].tolist() == ["above 0", "above 0"]
    assert own.loc["rho key", ["expected", "found"]].tolist() == ["above 0", "below 0"]
    assert own.loc["rho value", "expected"] == ""
    assert own.loc["last layer, query less value", ["expected", "found"]].tolist() == ["below 0", "below 0"]
    change = found.loc[(2.0, "change of query less value")]
    half = 12.706204736174707  # Student's t of two trainings, times the standard error of -1 and -3, which is 1
    close(change[["mean", "low", "high"]].tolist(), [-2, -2 - half, -2 + half], torch.float64)
    assert change[["expected", "found"]].tolist() == ["below 0", "across 0"]


def test_with_halved_logits_the_opposite_change_is_expected_and_one_training_has_no_interval():
    table = pd.concat([heads_of("m"), heads_of("m", 0.5, up=1)], ignore_index=True)
    found = sharpness_effects(table).set_index(["factor", "effect"])
    change = found.loc[(0.5, "change of query less value")]
    assert change[["mean", "expected", "found"]].tolist() == [1, "above 0", ""]
    assert np.isnan([change.low, change.high]).all()


def test_heads_without_a_gradient_rank_lowest_and_are_in_no_mean():
    table = heads_of("m")
    table.loc[0, "query"] = -np.inf  # of the lowest entropy
    table.loc[7, "key"] = -np.inf  # of the highest
    (first, second) = sharpness_by_layer(table).to_dict("records")
    assert (first["rho query"], second["rho key"]) == (1, -1)
    assert (first["query"], second["key"]) == (3, -2)
    assert (first["heads"], first["trainings"]) == (4, 1)


def test_two_heads_of_a_layer_have_no_rank_correlation():
    few = heads_of("m", share=0.5).query("layer == 0 or head < 2")
    rows = sharpness_by_layer(pd.concat([heads_of("m"), few], ignore_index=True)).set_index(["share", "layer"])
    assert rows[[f"rho {name}" for name in QKV]].isna().all(axis=1).tolist() == [False, False, False, True]
    effects = sharpness_effects(pd.concat([heads_of("m"), few], ignore_index=True))
    assert effects[(effects.share == 0.5) & (effects.effect == "rho query")].layers.item() == 1
