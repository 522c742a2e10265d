"""Norms, entropy, energy, accuracy and micro-batches, with values worked out by hand where they can be."""

import copy
import math

import literal
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from precision import close, close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm.engine.model.norms import log_norm
from gnorm.engine.texts.batches import prepare
from gnorm.engine.texts.micro_batches import PACKED_MAX_TOKENS
from gnorm.metrics import correct_texts
from gnorm.scoring import ENTROPY_FORMS

# ---------------------------------------------------------------- norms


def test_log_norm_exact_values():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    assert log_norm(x).tolist() == [math.log(5), -math.inf, 0.0]
    close_logs(log_norm(x.double()).tolist(), [math.log(5), -math.inf, 0.0], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_of_norms_far_below_fp32_neither_underflow_nor_tie(dtype):
    product = 3 * log_norm(torch.tensor([[1e-40]], dtype=dtype))
    other = 3 * log_norm(torch.tensor([[2e-40]], dtype=dtype))
    assert torch.tensor(1e-40) ** 3 == torch.tensor(2e-40) ** 3 == 0
    close_logs((other - product).item(), 3 * math.log(2))  # 1e-40 is subnormal in fp32: 5 digits


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6),
    st.integers(-300, 290),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_log_norm_of_scaled_rows(values, exponent, dtype):
    if dtype == torch.float32:
        exponent = max(-30, min(30, exponent))
    x = torch.tensor([values], dtype=dtype) * 10.0**exponent
    x = torch.where(x.abs() < torch.finfo(dtype).tiny, 0, x)
    expected = math.hypot(*x[0].tolist())
    close_logs(log_norm(x).item(), math.log(expected) if expected else -math.inf, dtype)


def test_log_norm_keeps_what_is_not_finite():
    assert log_norm(torch.tensor([[1.0, math.nan]])).isnan().all()
    assert log_norm(torch.tensor([[1.0, math.inf]], dtype=torch.float64)).item() == math.inf


# ---------------------------------------------------------------- micro-batches


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 80))
def test_micro_batches_hold_every_text_once_cut_to_its_length(lengths, max_tokens):
    model = tiny_model("bert")
    width = max(lengths)
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.arange(len(lengths))[:, None] + 3 + torch.zeros_like(mask)
    batches = [{"input_ids": i * m, "attention_mask": m} for i, m in zip(ids.split(5), mask.split(5), strict=True)]
    prepared = prepare(batches, model, max_tokens=max_tokens)
    assert sorted(i for micro in prepared for i in micro.index.tolist()) == list(range(len(lengths)))
    for micro in prepared:
        assert micro.inputs["input_ids"].shape[1] == max(lengths[i] for i in micro.index)
        assert len(micro.packed.indices) <= max_tokens or len(micro.index) == 1
        assert micro.inputs["attention_mask"].sum(1).tolist() == [lengths[i] for i in micro.index]
        assert micro.inputs["input_ids"][:, 0].tolist() == [i + 3 for i in micro.index.tolist()]
        for part in micro.batch_slices:
            assert {i // 5 for i in micro.index[part.texts].tolist()} == {part.batch}
            row = micro.inputs["input_ids"].flatten()[micro.packed.indices[part.tokens]]
            assert set(row.tolist()) - {0} == {i + 3 for i in micro.index[part.texts].tolist()}
    ends = [part.batch for micro in prepared for part in micro.batch_slices if part.last]
    assert ends == list(range(len(batches)))


def test_left_padding_is_kept_and_scores_the_same_as_one_forward():
    model = tiny_model("bert")
    batch = ragged_batches(1, 6)[0]
    flipped = {n: t.flip(1) if t.dim() == 2 else t for n, t in batch.items()}
    with torch.no_grad():
        whole = model(input_ids=flipped["input_ids"], attention_mask=flipped["attention_mask"]).logits.argmax(-1)
    assert torch.equal(correct_texts(model, [flipped]), whole == flipped["labels"])


def test_a_batch_without_attention_mask_goes_whole():
    model = tiny_model("bert")
    batch = {"input_ids": torch.randint(3, 99, (4, 7)), "labels": torch.zeros(4, dtype=torch.long)}
    full = batch | {"attention_mask": torch.ones(4, 7, dtype=torch.long)}
    close_logs(gnorm.gnorm_scores(model, [batch]), gnorm.gnorm_scores(model, [full]))


# ---------------------------------------------------------------- accuracy


def test_accuracy_equals_one_text_at_a_time(model):
    batches = ragged_batches(count=5, seed=11)
    expected = literal.hits(model, batches)
    assert correct_texts(model, batches).tolist() == expected
    assert gnorm.accuracy(model, batches) == sum(expected) / len(expected)


# ---------------------------------------------------------------- entropy and energy


def test_entropy_equals_one_text_at_a_time(family):
    model = tiny_model(family, attn_implementation="eager")
    batches = ragged_batches()
    close(gnorm.attention_entropy(model, batches), literal.entropy(model, batches))


def test_entropy_leaves_the_attention_implementation_as_it_was():
    model = tiny_model("bert", attn_implementation="sdpa")
    gnorm.attention_entropy(model, ragged_batches())
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match="all padding"):
        gnorm.attention_entropy(model, [{"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.zeros(1, 2)}])
    assert model.config._attn_implementation == "sdpa"


def test_uniform_attention_has_the_entropy_of_its_length():
    model = tiny_model("bert")
    with torch.no_grad():
        for block in gnorm.attention_blocks(model):
            block.query.weight.zero_()
            block.query.bias.zero_()
    batches = ragged_batches()
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    expected = sum(math.log(n) for n in lengths) / len(lengths)
    close(gnorm.attention_entropy(model, batches), torch.full((3, 4), expected).double())


def test_entropy_forms():
    a = torch.tensor([0.0, 0.5])
    assert ENTROPY_FORMS["plain"](a, 0.1)[0].isnan()
    close(ENTROPY_FORMS["exact"](a, 0.1).tolist(), [0.0, 0.5 * math.log(2)])
    close(ENTROPY_FORMS["eps_inside"](a, 0.1).tolist(), [0.0, -0.5 * math.log(0.6)])
    close(ENTROPY_FORMS["eps_both"](a, 0.1).tolist(), [-0.1 * math.log(0.1), -0.6 * math.log(0.6)])
    with pytest.raises(ValueError, match="entropy form 'log2' is not known"):
        gnorm.attention_entropy(tiny_model("bert"), ragged_batches(), form="log2")


def test_saturated_attention_is_nan_in_the_plain_form_alone():
    model = tiny_model("bert")
    with torch.no_grad():
        for block in gnorm.attention_blocks(model):
            block.query.weight.mul_(1e4)
    batches = ragged_batches()
    assert gnorm.attention_entropy(model, batches, form="plain").isnan().all()
    for form in ("exact", "eps_inside", "eps_both"):
        assert gnorm.attention_entropy(model, batches, form=form).isfinite().all()


def test_activation_energy_equals_one_text_at_a_time(model):
    batches = ragged_batches()
    close(gnorm.activation_energy(model, batches), literal.energy(model, batches))


def test_criteria_of_a_pruned_model_speak_of_the_heads_that_are_left(model):
    mask = torch.ones_like(gnorm.head_mask_of(model))
    mask[0, 1] = False
    with gnorm.masked(model, mask):
        expected = gnorm.gnorm_scores(model, ragged_batches())
    pruned = copy.deepcopy(model)
    gnorm.remove_heads(pruned, mask)
    scores = gnorm.gnorm_scores(pruned, ragged_batches())
    assert scores[0, 1] == -torch.inf
    close_logs(scores, expected)
    for criterion in (gnorm.attention_entropy, gnorm.activation_energy):
        assert criterion(pruned, ragged_batches())[0, 1] == -torch.inf


def test_max_tokens_bounds_every_micro_batch():
    model = tiny_model("bert")
    assert len(prepared := prepare(ragged_batches(2, 120), model)) > 1
    assert max(len(micro.packed.indices) for micro in prepared) <= PACKED_MAX_TOKENS["cpu"]
