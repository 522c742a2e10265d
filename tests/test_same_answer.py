"""The same question, the same answer: twice, with more threads, with texts in another order, cut another way."""

import copy

import pytest
import torch
from crosses import one_by_all
from hypothesis import given, settings
from hypothesis import strategies as st
from precision import close, close_logs
from tiny import FAMILIES, ragged_batches, tiny_model

import gnorm
from gnorm.engine.model.state import evaluating
from gnorm.engine.texts.batches import prepare
from gnorm.engine.texts.micro_batches import _group_sizes
from gnorm.methods import METHODS
from gnorm.trajectory import NEAR_TIE

BATCHES = ragged_batches(count=3, size=7)
SLOW = settings(max_examples=12, deadline=None)


def of(model, **options):
    return gnorm.prune(model, BATCHES, progress=False, **options)


@pytest.mark.parametrize(("family", "method", "count"), one_by_all(FAMILIES, METHODS, (3, 1)))
def test_two_runs_give_identical_tables(family, method, count):
    first, second = (of(tiny_model(family), method=method, heads_per_step=count) for _ in range(2))
    assert first.table.equals(second.table)
    assert (first.correct == second.correct).all()
    seconds = {"seconds": 0, "scoring_seconds": 0}
    assert first.info | seconds == second.info | seconds


@pytest.fixture
def threads():
    """Sets the number of threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_one_thread_and_two_threads_give_the_same_order(threads):
    """Sums are rounded otherwise: scores differ, by less than what counts as a near-tie; no gap here is as small."""
    model = tiny_model("bert", hidden_size=384, intermediate_size=384, num_hidden_layers=2)
    batches, runs = ragged_batches(count=2, size=40), []
    for number in (1, 2):
        threads(number)
        runs.append(gnorm.prune(model, batches, heads_per_step=2, progress=False))
    one, two = runs
    assert min(one.info["smallest_gap"], two.info["smallest_gap"]) > NEAR_TIE
    assert one.order() == two.order()
    assert one.table.accuracy.tolist() == two.table.accuracy.tolist()
    close_logs(one.table.score, two.table.score)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_cuda_agree(model):
    """Scores to the precision, TF32 off; the order is the same wherever there is no near tie."""
    on_cpu, on_cuda = of(model), of(copy.deepcopy(model).cuda())
    close_logs(gnorm.gnorm_scores(copy.deepcopy(model).cuda(), BATCHES), gnorm.gnorm_scores(model, BATCHES))
    if min(on_cpu.info["smallest_gap"], on_cuda.info["smallest_gap"]) > NEAR_TIE:
        assert on_cpu.order() == on_cuda.order()


@pytest.mark.parametrize(
    ("family", "method", "count"), one_by_all(FAMILIES, [name for name in METHODS if name != "random"], (3, 1))
)
def test_texts_in_another_order_within_their_batch_give_the_same_order(family, method, count):
    model, generator = tiny_model(family), torch.Generator().manual_seed(5)
    shuffled = []
    for batch in BATCHES:
        order = torch.randperm(len(batch["labels"]), generator=generator)
        shuffled.append({name: tensor[order] for name, tensor in batch.items()})
    options = {"method": method, "heads_per_step": count, "progress": False}
    plain, other = (gnorm.prune(model, given, **options) for given in (BATCHES, shuffled))
    assert min(plain.info["smallest_gap"], other.info["smallest_gap"]) > NEAR_TIE
    assert other.order() == plain.order()
    assert other.table.accuracy.tolist() == plain.table.accuracy.tolist()


def test_a_near_tie_is_counted():
    """Scores set by hand: a gap below what rounding may change, one that is wider, one that is exactly none."""
    scores = torch.tensor([[0.0, NEAR_TIE / 2, 1.0, 1.0]], dtype=torch.float64)
    METHODS["by hand"] = gnorm.Method("By hand", lambda *_, **__: scores)
    try:
        info = of(tiny_model("bert", num_hidden_layers=1), method="by hand").info
    finally:
        del METHODS["by hand"]
    assert (info["smallest_gap"], info["near_ties"], info["ties"]) == (0.0, 2, 1)


# ---------------------------------------------------------------- properties


@st.composite
def batches_of_texts(draw):
    """One batch of up to nine texts of 1 to 20 tokens, not all of one: there no gradient flows through attention."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 20), min_size=1, max_size=9).filter(lambda n: max(n) > 1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = (torch.arange(int(lengths.max()))[None] < lengths[:, None]).long()
    ids = torch.randint(3, 120, mask.shape, generator=generator)
    labels = torch.randint(0, 3, (len(lengths),), generator=generator)
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask, "labels": labels}


@SLOW
@given(batches_of_texts(), st.integers(1, 60), st.sampled_from(["bert", "albert"]))
def test_however_a_batch_is_cut_its_scores_are_the_same(batch, max_tokens, family):
    model = tiny_model(family).double()
    whole = gnorm.gnorm_scores(model, prepare([batch], model, max_tokens=10**6))
    cut = prepare([batch], model, max_tokens=max_tokens)
    close_logs(gnorm.gnorm_scores(model, cut), whole, torch.float64)
    assert gnorm.accuracy(model, cut) == gnorm.accuracy(model, [batch])


@SLOW
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=3, max_size=3), st.data())
def test_masked_equals_removed(mask, data):
    model = tiny_model(data.draw(st.sampled_from(["bert", "roberta"]))).double()
    inputs = {name: tensor for name, tensor in BATCHES[0].items() if name != "labels"}
    with gnorm.masked(model, mask), evaluating(model), torch.inference_mode():
        masked = model(**inputs).logits.clone()
    gnorm.remove_heads(model, mask)
    with evaluating(model), torch.inference_mode():
        close(model(**inputs).logits, masked, torch.float64)
    assert gnorm.head_mask_of(model).tolist() == mask


@given(st.lists(st.integers(1, 600), max_size=40), st.integers(0, 100), st.integers(1, 2000))
def test_cuts_hold_every_text_once_and_no_more_than_they_may(lengths, overhead, most):
    lengths = sorted(lengths, reverse=True)
    sizes = _group_sizes(lengths, overhead, most)
    assert sum(sizes) == len(lengths)
    assert all(size > 0 for size in sizes)
    begin = 0
    for size in sizes:
        assert size == 1 or lengths[begin] * size <= most
        begin += size
