"""The cost of pruned models: operations counted by hand, time measured in turns."""

import copy

import pytest
import torch
from models import make, random_masks
from precision import close
from tiny import tiny_model

import gnorm
from gnorm.shipping.costs import seconds_of


def operations(heads, batch, tokens):
    """Of the tiny BERT: ``heads`` left in each layer, 8 wide, hidden 32, feed-forward 48; pooler and three classes."""
    a_layer = [2 * batch * tokens * 8 * n * (4 * 32 + 2 * tokens) + 2 * batch * tokens * 2 * 32 * 48 for n in heads]
    return sum(a_layer) + 2 * batch * 32 * (32 + 3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kept", [(4, 2, 0), (0, 0, 0), (1, 1, 1)])
def test_operations_are_those_counted_by_hand(attention, kept):
    model = tiny_model("bert", attn_implementation=attention)
    gnorm.remove_heads(model, torch.stack([torch.arange(4) < n for n in kept]))
    table = gnorm.cost(model, batch_sizes=(1, 3), lengths=(7, 20), rounds=1, seconds=0)
    assert table[["batch", "length"]].to_numpy().tolist() == [[1, 7], [3, 7], [1, 20], [3, 20]]
    for row in table.to_dict("records"):
        before, after = (operations(heads, row["batch"], row["length"]) for heads in ((4, 4, 4), kept))
        assert row["GFLOP"] == before / 1e9
        assert row["GFLOP after"] == after / 1e9
        close(row["flops saved"], 1 - after / before, torch.float64)
        close(row["returned"], row["time saved"] / row["flops saved"], torch.float64)
        per_head = 4 * 8 * 32 + 3 * 8
        assert row["parameters"] - row["parameters after"] == (12 - sum(kept)) * per_head
        close((row["MB"] - row["MB after"]) * 2**20, (12 - sum(kept)) * per_head * 4, torch.float64)
        assert min(row["ms"], row["ms after"]) > 0


@pytest.mark.parametrize("name", ["albert", "deberta-v2/relative", "mpnet", "distilbert", "vit", "deit"])
def test_every_kind_of_encoder_is_measured_and_left_as_it_was(name):
    model = make(name)
    gnorm.remove_heads(model, random_masks(gnorm.head_mask_of(model).shape)[0])
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    table = gnorm.cost(model, batch_sizes=(2,), rounds=1, seconds=0)
    assert (table["flops saved"] > 0).all()
    assert table.length.tolist() == ({"vit": [16], "deit": [16], "mpnet": [32, 38]}.get(name, [32, 40]))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_an_intact_model_saves_nothing():
    row = gnorm.cost(tiny_model("bert"), batch_sizes=(1,), lengths=(5,), rounds=1, seconds=0).iloc[0]
    assert row["flops saved"] == 0
    assert row["returned"] != row["returned"]


def test_models_take_turns_and_rounds_are_bounded_by_their_number_and_by_time():
    seen = []
    models = [torch.nn.Identity(), torch.nn.Identity()]
    for i, model in enumerate(models):
        model.register_forward_pre_hook(lambda *_, i=i: seen.append(i))
    assert seconds_of(models, {"input": torch.zeros(1)}, rounds=9, seconds=60).shape == (9, 2)
    assert seen == [0, 1, 1, 0] * 5 + [0, 1]
    assert seconds_of(models, {"input": torch.zeros(1)}, rounds=9, seconds=0).shape == (5, 2)


def test_a_model_fed_with_something_else_is_refused():
    model = tiny_model("bert")
    model.main_input_name = "waveform"
    with pytest.raises(ValueError, match="inputs called 'waveform' are not known; known: input_ids, pixel_values"):
        gnorm.cost(model)


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("llama", [32, 128]),
        ("t5", [32, 128]),
        ("bart", [32, 40]),
        ("marian", [32, 40]),
        ("wav2vec2", [16_000]),
        ("audio-spectrogram-transformer", [24]),
        ("whisper", [48]),
    ],
)
def test_decoders_and_sounds_are_measured_too(name, lengths):
    model = make(name)
    intact = sum(parameter.numel() for parameter in model.parameters())
    gnorm.remove_heads(model, random_masks(gnorm.head_mask_of(model).shape)[0])
    table = gnorm.cost(model, batch_sizes=(2,), rounds=1, seconds=0)
    assert table.length.tolist() == lengths
    assert set(table.parameters) == {intact}
    assert set(table["parameters after"]) == {sum(parameter.numel() for parameter in model.parameters())}
    assert (table["flops saved"] > 0).all()


@pytest.mark.parametrize("name", ["vit", "deit", "beit/relative"])
def test_images_need_not_be_square(name):
    model = make(name, image_size=(8, 20))
    gnorm.remove_heads(model, random_masks(gnorm.head_mask_of(model).shape)[0])
    table = gnorm.cost(model, batch_sizes=(2,), rounds=1, seconds=0)
    assert table.length.tolist() == [(8, 20)]
    square = gnorm.cost(make(name, image_size=[16, 16]), batch_sizes=(2,), rounds=1, seconds=0)
    assert square.length.tolist() == [16]
    assert table.GFLOP[0] < square.GFLOP[0]  # of 10 patches and of 16
