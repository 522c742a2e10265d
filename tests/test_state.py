"""What a call borrows from a model is the call's alone: threads, shared configurations, autograd, compiled modules."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from crosses import one_by_all
from models import make
from precision import close, close_logs, differ
from tiny import SIZES, ragged_batches, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import gnorm
from gnorm.engine.model.state import in_use
from gnorm.shipping import recover

MASKS = [torch.ones(3, 4) - torch.nn.functional.one_hot(torch.tensor([head] * 3), 4) for head in range(4)]
INPUTS = {name: tensor for name, tensor in ragged_batches(1)[0].items() if name != "labels"}


def logits(model):
    with torch.no_grad():
        return model(**INPUTS).logits


def hooks_of(model):
    return [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


@contextmanager
def at_work(model, call, texts):
    """Another thread is within a pass of ``call(model, texts)``; yields what lets it go on and returns its result."""
    inside, done = threading.Event(), threading.Event()

    def wait(*_):
        inside.set()
        done.wait(30)

    hold = model.bert.embeddings.register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call, model, texts)
        assert inside.wait(30)
        yield lambda: (done.set(), waiting.result(30))[1]
    hold.remove()


# ---------------------------------------------------------------- threads


def test_one_model_in_several_threads_gives_each_what_it_gives_alone():
    model, given = tiny_model("bert"), [ragged_batches(seed=seed) for seed in range(4)]
    alone = [gnorm.gnorm_scores(model, batches) for batches in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, expected in zip(pool.map(lambda b: gnorm.gnorm_scores(model, b), given), alone, strict=True):
                close_logs(found, expected)
    assert not hooks_of(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_methods_in_threads_leave_the_trajectories_that_they_leave_alone():
    model, texts = tiny_model("bert"), ragged_batches()
    methods = ["greedy_gnorm", "attention_entropy", "random", "head_importance"]

    def run(method):
        return gnorm.prune(model, texts, method=method, progress=False, steps=3).table

    alone = [run(method) for method in methods]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(run, methods), alone, strict=True):
            assert found.equals(expected)


def test_two_models_on_one_configuration_are_scored_side_by_side():
    first = tiny_model("bert")
    torch.manual_seed(1)
    second = AutoModelForSequenceClassification.from_config(first.config).eval()
    second.config = second.bert.config = first.config
    texts = ragged_batches()
    alone = [gnorm.gnorm_scores(model, texts) for model in (first, second)]
    plain = logits(second)
    with at_work(first, gnorm.gnorm_scores, texts) as result:
        assert first.config._attn_implementation == second.config._attn_implementation == "sdpa"
        close_logs(gnorm.gnorm_scores(second, texts), alone[1])
        assert torch.equal(logits(second), plain)
        close_logs(result(), alone[0])


def test_removal_leaves_another_model_on_the_same_configuration_whole():
    first = tiny_model("bert")
    second = AutoModelForSequenceClassification.from_config(first.config).eval()
    second.config = first.config
    gnorm.remove_heads(first, MASKS[0])
    assert gnorm.head_mask_of(first).sum() == 9
    assert bool(gnorm.head_mask_of(second).all())
    assert logits(second).shape == (3, 3)


def test_a_forward_pass_in_another_thread_is_refused_while_the_model_is_at_work():
    model, texts = tiny_model("bert"), ragged_batches()
    with at_work(model, gnorm.accuracy, texts) as result:
        with pytest.raises(ValueError, match=r"works on this model in another thread: .*copy.deepcopy"):
            logits(model)
        result()
    assert not hooks_of(model)


def test_a_model_under_a_mask_is_refused_to_other_threads_and_nests_in_its_own():
    model, texts = tiny_model("bert"), ragged_batches()
    with gnorm.masked(model, MASKS[0]), gnorm.masked(model, MASKS[1]), ThreadPoolExecutor(1) as pool:
        for call in (gnorm.accuracy, gnorm.gnorm_scores, gnorm.prune):
            with pytest.raises(ValueError, match="under gnorm.masked in another thread: give each thread a model"):
                pool.submit(call, model, texts).result(30)
        gnorm.accuracy(model, texts)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gnorm.accuracy, model, texts).result(30)


def test_a_thread_that_waits_learns_of_a_mask():
    model, texts = tiny_model("bert"), ragged_batches()
    with ThreadPoolExecutor(1) as pool, in_use(model):
        waiting = pool.submit(gnorm.accuracy, model, texts)
        with gnorm.masked(model, MASKS[0]), pytest.raises(ValueError, match="under gnorm.masked"):
            waiting.result(30)


# ---------------------------------------------------------------- autograd modes


METHODS = ["greedy_gnorm", "head_importance", "gnorm_by_text", "attention_entropy"]
AUTOCAST = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad, AUTOCAST])
def test_modes_around_a_call_do_not_matter(mode):
    model, texts = tiny_model("bert"), ragged_batches()
    scores, run = gnorm.gnorm_scores(model, texts), gnorm.prune(model, texts, heads_per_step=4, progress=False)
    with mode():
        within = ragged_batches()  # inference tensors, in that mode
        assert torch.equal(gnorm.gnorm_scores(model, within), scores)
        assert gnorm.prune(model, within, heads_per_step=4, progress=False).table.equals(run.table)
        for method in ("head_importance", "attention_entropy"):
            gnorm.prune(model, within, method=method, progress=False, steps=2)
        gnorm.remove_heads(model, MASKS[0])
    assert not any(parameter.is_inference() for parameter in model.parameters())
    model(**INPUTS).logits.sum().backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad is not None


@pytest.mark.parametrize(("family", "method"), one_by_all(("llama", "deberta-v2"), METHODS))
def test_autocast_is_off_within_a_call_and_on_again_behind_it(family, method):
    """Padded classifiers, and packed decoders with rotary positions."""
    texts, auto = ragged_batches(), AutoModelForSequenceClassification
    if family == "llama":
        auto = AutoModelForCausalLM
        texts = [{**b, "labels": b["input_ids"].masked_fill(b["attention_mask"] == 0, -100)} for b in texts]
    model = auto.from_config(AutoConfig.for_model(family, **SIZES)).eval()
    expected = gnorm.prune(model, texts, method=method, progress=False, steps=1)
    with AUTOCAST():
        run = gnorm.prune(model, texts, method=method, progress=False, steps=1)
        assert torch.is_autocast_enabled("cpu")
    assert run.table.equals(expected.table)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, AUTOCAST])
def test_modes_around_training_do_not_matter(mode):
    teacher, batches = tiny_model("bert", seed=1), ragged_batches()
    alone, within = tiny_model("bert"), tiny_model("bert")
    recover(alone, batches, teacher, lr=1e-3, progress=False)
    with mode():
        recover(within, batches, teacher, lr=1e-3, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), within.parameters(), strict=True))
    assert not torch.equal(alone.classifier.weight, tiny_model("bert").classifier.weight)


def test_a_model_made_within_inference_mode_is_refused_and_its_copy_is_not():
    with torch.inference_mode():
        model = tiny_model("bert")
    with pytest.raises(
        ValueError, match=r"made within torch.inference_mode\(\), .*copy.deepcopy\(model\), made outside"
    ):
        gnorm.gnorm_scores(model, ragged_batches())
    close(
        gnorm.gnorm_scores(copy.deepcopy(model), ragged_batches()),
        gnorm.gnorm_scores(tiny_model("bert"), ragged_batches()),
    )


def test_feed_forward_blocks_in_chunks_change_nothing(model):
    expected = gnorm.gnorm_scores(model, ragged_batches())
    chunked = tiny_model(model.config.model_type, chunk_size_feed_forward=7)
    close_logs(gnorm.gnorm_scores(chunked, ragged_batches()), expected)
    gnorm.prune(chunked, ragged_batches(), method="head_importance", progress=False)
    assert {m.chunk_size_feed_forward for m in chunked.modules() if hasattr(m, "chunk_size_feed_forward")} == {7}


# ---------------------------------------------------------------- compiled modules


def compiled_whole(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_encoder(model):
    model.bert.encoder = torch.compile(model.bert.encoder, backend="eager")
    return model


def compiled_layers(model):
    for i, layer in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[i] = torch.compile(layer, backend="eager")
    return model


def compiled_forward(model):
    for layer in model.bert.encoder.layer:
        layer.forward = torch.compile(layer.forward, backend="eager")
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "compiled", [compiled_whole, compiled_in_place, compiled_encoder, compiled_layers, compiled_forward]
)
def test_a_compiled_model_is_masked_scored_and_pruned_as_it_is_written(compiled):
    plain, model, texts = tiny_model("bert"), compiled(tiny_model("bert")), ragged_batches()
    intact = logits(model)  # compiled now
    for mask in MASKS[:2]:
        with gnorm.masked(model, mask), gnorm.masked(plain, mask):
            close(logits(model), logits(plain))
            differ(logits(model), intact)
            assert gnorm.accuracy(model, texts) == gnorm.accuracy(plain, texts)
    close_logs(gnorm.gnorm_scores(model, texts), gnorm.gnorm_scores(plain, texts))
    close(gnorm.attention_entropy(model, texts), gnorm.attention_entropy(plain, texts))
    found = gnorm.prune(model, texts, progress=False, steps=2).order()
    assert found == gnorm.prune(plain, texts, progress=False, steps=2).order()
    close(logits(model), intact)
    with pytest.raises(ValueError, match="the model is compiled"):
        gnorm.cost(model)


def test_a_forward_that_would_call_the_original_from_a_copy_is_refused():
    model = tiny_model("bert")
    layer = model.bert.encoder.layer[1]
    whole = layer.forward
    layer.forward = lambda *arguments, **options: whole(*arguments, **options)
    for method in ("random", "greedy_gnorm"):
        with pytest.raises(ValueError, match="the forward of bert.encoder.layer.1 was replaced by a function"):
            gnorm.prune(model, ragged_batches(), method=method, progress=False)
    layer.forward = whole  # a bound method is copied with its module
    found = gnorm.prune(model, ragged_batches(), progress=False)
    assert found.order() == gnorm.prune(tiny_model("bert"), ragged_batches(), progress=False).order()


def test_a_model_that_cannot_be_copied_is_refused():
    model = tiny_model("bert")
    model.classifier.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"BertForSequenceClassification cannot be copied \(.*lock.*\): take off"):
        gnorm.prune(model, ragged_batches(), progress=False)


def test_what_a_model_keeps_of_a_pass_can_be_trained_with():
    """BEiT keeps the index of relative positions of a number of patches for all models of a process: made within
    inference mode, it would stop the backward pass of whoever trains one later. No other test has images of this size.
    """
    model, generator = make("beit/relative", image_size=20), torch.Generator().manual_seed(0)
    batch = {"pixel_values": torch.randn(2, 3, 20, 20, generator=generator), "labels": torch.tensor([0, 1])}
    gnorm.accuracy(model, [batch])
    gnorm.activation_energy(model, [batch])
    model.train()(**batch).loss.backward()
    assert all(bool(block.value.weight.grad.any()) for block in gnorm.attention_blocks(model))
