"""A projection is a plain linear layer with parameters of its own; others are refused with the remedy."""

import pytest
import torch
from precision import close_logs
from tiny import ragged_batches, tiny_model
from torch import nn
from torch.nn.utils import parametrizations, prune

import gnorm
from gnorm.engine.model.families import FAMILIES

MASK = [[1, 0, 1, 1]] * 3
NAMES = ("query", "key", "value")


class Adapter(nn.Module):
    """The module that PEFT puts in the place of a layer."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer = linear
        self.lora_A, self.lora_B = nn.Linear(32, 2, bias=False), nn.Linear(2, 32, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class WithAdapter(nn.Linear):
    """A linear layer whose forward adds to its product."""

    def forward(self, x):
        return super().forward(x) + x


class Named(nn.Linear):
    """A linear layer by another name, with the same forward."""


def attention(model, layer):
    return model.bert.encoder.layer[layer].attention.self


def replaced(kind):
    return lambda model: setattr(attention(model, 1), "value", kind(attention(model, 1).value))


def of_class(kind):
    def change(model):
        attention(model, 1).value.__class__ = kind

    return change


def int8(model):
    attention(model, 2).key.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)


def shared(model):
    attention(model, 1).key.weight = attention(model, 1).query.weight


def own_forward(model):
    linear = attention(model, 0).query
    linear.forward = lambda x: nn.functional.linear(x, linear.weight)


REFUSED = {
    "an adapter": (
        replaced(Adapter),
        r"value projection of layer 1 carries an adapter \(Adapter\): .*merge_and_unload",
    ),
    "another forward": (
        of_class(WithAdapter),
        "value projection of layer 1 is not a torch.nn.Linear .* but WithAdapter",
    ),
    "no layer at all": (replaced(lambda _: nn.Identity()), "value projection of layer 1 is not a torch.nn.Linear"),
    "weight_norm": (
        lambda model: parametrizations.weight_norm(attention(model, 0).query),
        "query projection of layer 0 is under a parametrization of torch.nn.utils: call .*remove_parametrizations",
    ),
    "spectral_norm on the output": (
        lambda model: parametrizations.spectral_norm(model.bert.encoder.layer[2].attention.output.dense),
        "output projection of layer 2 is under a parametrization",
    ),
    "weight_norm of old": (
        lambda model: nn.utils.weight_norm(attention(model, 0).query),
        "query projection of layer 0 is under weight_norm: call torch.nn.utils.remove_weight_norm",
    ),
    "eight bits": (int8, r"key projection of layer 2 is quantised \(Linear\): load the model in float32"),
    "a weight for two": (shared, "key projection of layer 1 shares its weight with the query projection of layer 1"),
    "a forward of its own": (own_forward, "somebody replaced the forward of the query projection of layer 0"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_linear_layer_is_refused_and_nothing_is_changed(case, tmp_path):
    change, complaint = REFUSED[case]
    model = tiny_model("bert")
    change(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for call in (
        lambda: gnorm.gnorm_scores(model, ragged_batches()),
        lambda: gnorm.prune(model, ragged_batches(), progress=False),
        lambda: gnorm.masked(model, MASK).__enter__(),
        lambda: gnorm.remove_heads(model, MASK),
        lambda: gnorm.save_pruned(model, tmp_path / "model"),
    ):
        with pytest.raises(ValueError, match=complaint):
            call()
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert getattr(model.config, "head_mask", None) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_quantised_model_is_refused():
    model = torch.ao.quantization.quantize_dynamic(tiny_model("bert"), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"query projection of layer 0 is quantised \(Linear\)"):
        gnorm.gnorm_scores(model, ragged_batches())


def test_a_linear_layer_of_another_name_is_as_good():
    model, plain = tiny_model("bert"), tiny_model("bert")
    for name in NAMES:
        getattr(attention(model, 1), name).__class__ = Named
    found = gnorm.prune(model, ragged_batches(), progress=False).order()
    assert found == gnorm.prune(plain, ragged_batches(), progress=False).order()


@pytest.mark.parametrize("name", [*NAMES])
def test_weights_under_a_pruning_mask_are_scored_and_heads_removed_once_it_is_final(name):
    model, plain = tiny_model("bert"), tiny_model("bert")
    for layer in range(3):
        prune.l1_unstructured(getattr(attention(model, layer), name), "weight", 0.3)
        prune.l1_unstructured(getattr(attention(plain, layer), name), "weight", 0.3)
        prune.remove(getattr(attention(plain, layer), name), "weight")
    expected = gnorm.gnorm_scores(plain, ragged_batches())
    close_logs(gnorm.gnorm_scores(model, ragged_batches()), expected)
    for call in (lambda: gnorm.prune(model, ragged_batches(), progress=False), lambda: gnorm.remove_heads(model, MASK)):
        with pytest.raises(ValueError, match=r'made anew before every pass: .*prune.remove\(projection, "weight"\)'):
            call()
    assert attention(model, 0).query.weight.shape == (32, 32)
    for layer in range(3):
        prune.remove(getattr(attention(model, layer), name), "weight")
    gnorm.remove_heads(model, MASK)
    assert attention(model, 0).query.weight.shape == (24, 32)


def test_a_removal_that_is_refused_in_the_last_layer_has_cut_no_other():
    model = tiny_model("bert")
    attention(model, 2).query = Adapter(attention(model, 2).query)
    with pytest.raises(ValueError, match="query projection of layer 2 carries an adapter"):
        gnorm.remove_heads(model, MASK)
    assert {attention(model, layer).key.out_features for layer in range(3)} == {32}


def test_a_row_with_a_wrong_per_head_is_refused(monkeypatch):
    monkeypatch.setitem(FAMILIES, "bert", FAMILIES["bert"])
    names = ("encoder.layer.*.attention", "self.query", "self.key", "self.value", "output.dense")
    gnorm.register("bert", *names, per_head="position_bias")
    with pytest.raises(ValueError, match="BertSelfAttention takes no 'position_bias': correct per_head"):
        gnorm.attention_blocks(tiny_model("bert"))
