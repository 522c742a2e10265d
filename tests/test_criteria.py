"""Criteria beside the paper's, each against a literal computation: whole gradients of weights, text by text."""

import copy
import math

import literal
import pytest
import textpruner
import torch
from crosses import one_by_all
from literal import saliency, texts
from precision import close, close_logs, differ
from tiny import FAMILIES, ragged_batches, tiny_model

import gnorm
from gnorm import criteria
from gnorm.engine.texts.batches import prepare
from gnorm.methods import METHODS, MORE_METHODS

BATCHES = ragged_batches(2)
OF_LOSS = ("head_importance", "output_saliency", "gnorm_cross_entropy", "fisher", "oracle")
NAMES = (*OF_LOSS, "weight_magnitude", "hies", "gnorm_by_text", "gnorm_margin", "output_norm", "flap")


def test_head_importance_takes_the_absolute_value_text_by_text(model):
    expected = torch.stack([saliency(model, text) for text in texts(BATCHES)]).mean(0)
    close(criteria.head_importance(model, BATCHES), expected)


def test_output_saliency_takes_it_batch_by_batch(model):
    expected = torch.stack([saliency(model, batch) for batch in BATCHES]).sum(0) / 8
    close(criteria.output_saliency(model, BATCHES), expected)


def test_fisher_information_is_the_sum_of_squares_over_texts(model):
    model = model.double()
    expected = torch.stack([saliency(model, text) for text in texts(BATCHES)]).square().sum(0)
    close(criteria.fisher(model, BATCHES), expected, torch.float64)


def test_the_output_norm_is_that_of_what_a_head_adds_to_its_layer(model):
    model = model.double()
    expected = torch.zeros(len(literal.projections(model)), 4, dtype=torch.float64)
    for text in texts(BATCHES):
        for layer, passes in enumerate(literal.contexts(model, text)):
            output = literal.projections(model)[layer][3].weight.detach()
            for head in range(4):
                columns = output[:, 8 * head : 8 * head + 8]
                expected[layer, head] += sum((c[:, head] @ columns.T).norm(dim=1).mean() for c in passes) / 8
    close(criteria.output_norm(model, BATCHES), expected, torch.float64)


def fluctuation(model, batches):
    """[(head,)] of each layer: variance of the contexts over all tokens, weighted with the output projection."""
    by_text = [literal.contexts(model, text) for text in texts(batches)]
    found = []
    for layer, block in enumerate(literal.projections(model)):
        tokens = torch.cat([c for of_text in by_text for c in of_text[layer]])  # (token, head, head_dim)
        squares = block[3].weight.detach().square().sum(0).view(4, 8)
        found.append((tokens.var(0, correction=1) * squares).sum(1))
    return found


def standardised(scores):
    return (scores - scores.mean()) / scores.std(correction=1)


def test_flap_is_the_fluctuation_over_all_tokens_standardised_by_layer(model):
    model = model.double()
    expected = torch.stack([standardised(of_layer) for of_layer in fluctuation(model, BATCHES)])
    found = criteria.flap(model, BATCHES)
    close(found, expected, torch.float64)
    other = [{**text, "labels": text["labels"]} for text in texts(BATCHES)][::-1]  # batches do not matter
    close(criteria.flap(model, other), expected, torch.float64)


def test_flap_is_zero_in_a_layer_of_one_head_and_in_one_whose_heads_are_alike():
    model = tiny_model("bert").double()
    expected = standardised(fluctuation(model, BATCHES)[0][[0, 1, 3]])  # the lowest layer sees no other's change
    with torch.no_grad():
        literal.projections(model)[2][3].weight.zero_()
    gnorm.remove_heads(model, torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]]))
    found = criteria.flap(model, BATCHES)
    close(found[0, [0, 1, 3]], expected, torch.float64)
    assert found[1].tolist() == [-math.inf, -math.inf, 0, -math.inf]
    assert found[2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_output_saliency_is_textpruners_own(family, tmp_path):
    model = tiny_model(family)
    pruner = textpruner.TransformerPruner(
        copy.deepcopy(model), general_config=textpruner.GeneralConfig(use_device="cpu", output_dir=str(tmp_path))
    )
    expected, _ = pruner.get_importance_score(BATCHES)
    close(criteria.output_saliency(model, BATCHES), expected.double())


def test_weight_magnitude_is_the_norm_of_all_weights_of_a_head(model):
    found = criteria.weight_magnitude(model, [])
    for layer, (query, key, value, output) in enumerate(literal.projections(model)):
        for head in range(4):
            rows = slice(8 * head, 8 * head + 8)
            squares = [w.weight[rows].double().square().sum().item() for w in (query, key, value)]
            squares.append(output.weight[:, rows].double().square().sum().item())
            close_logs(found[layer, head], 0.5 * math.log(sum(squares)))


@pytest.mark.parametrize(("family", "alpha"), one_by_all(FAMILIES, (0.5, 0.0, 0.8)))
def test_hies_weighs_what_both_say_between_their_extremes(family, alpha):
    model = tiny_model(family)
    importance = criteria.head_importance(model, BATCHES).flatten().tolist()
    entropy = gnorm.attention_entropy(model, BATCHES).flatten().tolist()
    expected = [
        alpha * (i - min(importance)) / (max(importance) - min(importance))
        + (1 - alpha) * (1 - (e - min(entropy)) / (max(entropy) - min(entropy)))
        for i, e in zip(importance, entropy, strict=True)
    ]
    found = criteria.hies(model, BATCHES, alpha=alpha).flatten().tolist()
    close(found, expected, torch.float64)
    assert 0 <= min(found) <= max(found) <= 1


def test_hies_of_the_last_head_is_a_number():
    model = tiny_model("bert")
    mask = torch.zeros(3, 4)
    mask[1, 2] = 1
    gnorm.remove_heads(model, mask)
    assert criteria.hies(model, BATCHES)[1, 2] == 0.5


def test_gnorm_by_text_is_the_literal_score_of_single_texts_whatever_the_batches(model):
    expected = literal.products(model, list(texts(BATCHES))).log()
    close_logs(criteria.gnorm_by_text(model, BATCHES), expected)
    other = list(texts(BATCHES))[::-1]
    close_logs(criteria.gnorm_by_text(model, other), expected)
    differ(gnorm.gnorm_scores(model, BATCHES), expected)


def test_gnorm_of_the_cross_entropy_equals_backward_on_whole_batches(model):
    expected = literal.products(model, BATCHES, literal.loss).log()
    close_logs(criteria.gnorm_cross_entropy(model, BATCHES), expected)


def same_as_under_a_mask(model, mask, criterion, name):
    """Heads that ``mask`` removes score -inf, the others as while they are masked."""
    with gnorm.masked(model, mask):
        expected = criterion(model, BATCHES)
    gnorm.remove_heads(model, mask)
    scores = criterion(model, BATCHES)
    assert torch.equal(scores.isneginf(), ~mask)
    if name == "flap":  # standardised over the heads that are left
        for row, of_layer, kept in zip(scores, expected, mask, strict=True):
            again = standardised(of_layer[kept]) if kept.sum() > 1 else torch.zeros(int(kept.sum()))
            close(row[kept], again.double())
    elif name != "hies":  # whose extremes are those of the heads that are left
        (close_logs if "gnorm" in name else close)(scores[mask], expected[mask])


@pytest.mark.parametrize(("family", "name"), one_by_all(("albert", "bert", "roberta", "xlm-roberta"), NAMES))
def test_heads_that_are_gone_count_for_nothing_and_the_others_as_under_a_mask(family, name):
    model = tiny_model(family)
    mask = torch.ones_like(gnorm.head_mask_of(model))
    mask[0, 1] = mask[-1, 3] = False
    same_as_under_a_mask(model, mask, getattr(criteria, name), name)


VARIANTS = [name for name in MORE_METHODS if name.startswith("gnorm_") and MORE_METHODS[name].rescore_every == 1]
MASKS = {
    "an empty layer": [[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]],
    "one head in the whole": [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]],
}


@pytest.mark.parametrize("left", MASKS)
@pytest.mark.parametrize("name", sorted({*NAMES, *VARIANTS}))
def test_layers_without_heads_and_the_last_head_score_as_under_a_mask(name, left):
    same_as_under_a_mask(tiny_model("bert"), torch.tensor(MASKS[left]) == 1, MORE_METHODS[name].criterion, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_prunes_to_the_last_head_and_leaves_the_model_alone(name):
    assert MORE_METHODS[name].criterion is getattr(criteria, name)
    assert name not in METHODS
    model = tiny_model("bert")
    before = copy.deepcopy(model.state_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    run = gnorm.prune(model, BATCHES, method=name, heads_per_step=3, progress=False)
    assert len(set(run.order())) == 12
    separate = gnorm.prune(model, BATCHES, ragged_batches(2), method=name, heads_per_step=3, progress=False)
    assert run.table.accuracy.tolist() == separate.table.accuracy.tolist()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks]


@pytest.mark.parametrize("name", [*OF_LOSS, "hies"])
def test_criteria_of_a_loss_need_labels(name):
    unlabelled = [{key: tensor for key, tensor in batch.items() if key != "labels"} for batch in BATCHES]
    model = tiny_model("bert")
    with pytest.raises(ValueError, match="batch 0 has no `labels`: .* needs the class of each text"):
        getattr(criteria, name)(model, unlabelled)
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks]


def test_prepared_batches_serve_criteria_with_and_without_gradients_in_turn(model):
    prepared = prepare(ragged_batches(), model)
    expected = criteria.head_importance(model, ragged_batches())
    gnorm.attention_entropy(model, prepared)
    assert torch.equal(criteria.head_importance(model, prepared), expected)


LEFT_OUT = torch.tensor([0, 3])  # of every batch


def with_left_out(batches, label=-100):
    """Texts of ``LEFT_OUT`` labelled -100."""
    return [b | {"labels": b["labels"].index_fill(0, LEFT_OUT[len(b["labels"]) > LEFT_OUT], label)} for b in batches]


ALL = gnorm.METHODS | gnorm.MORE_METHODS
BY_CRITERION = list({row.criterion: name for name, row in reversed(ALL.items())}.values())
LOSS_FIRST = ["head_importance", *(name for name in BY_CRITERION if name != "head_importance")]


@pytest.mark.parametrize(("name", "dtype"), one_by_all(LOSS_FIRST, (torch.uint8, torch.int32, torch.int8, torch.bool)))
def test_labels_of_any_whole_type_are_the_same_labels(name, dtype):
    model = tiny_model("bert", num_hidden_layers=1)
    two = [batch | {"labels": batch["labels"].clamp(max=1)} for batch in BATCHES]
    found, expected = (
        ALL[name].scores(
            model, [batch | {"labels": batch["labels"].to(kind)} for batch in two], torch.Generator().manual_seed(0)
        )
        for kind in (dtype, torch.int64)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", OF_LOSS)
def test_texts_labelled_minus_100_are_in_no_loss(name):
    model, criterion = tiny_model("bert"), getattr(criteria, name)
    kept = [torch.tensor([i for i in range(len(b["labels"])) if i not in LEFT_OUT]) for b in BATCHES]
    without = [{n: t[rows] for n, t in b.items()} for b, rows in zip(BATCHES, kept, strict=True)]
    agree = close_logs if "gnorm" in name else close
    agree(criterion(model, with_left_out(BATCHES)), criterion(model, without))
    nothing = [b | {"labels": torch.full_like(b["labels"], -100)} for b in BATCHES[:1]]
    agree(criterion(model, [*BATCHES[1:], *nothing]), criterion(model, BATCHES[1:]))
    with pytest.raises(ValueError, match="every label is -100, which is not counted"):
        criterion(model, nothing)


@pytest.mark.parametrize("name", [*OF_LOSS, "hies"])
def test_labels_that_are_no_class_are_refused_by_criteria_of_a_loss(name):
    criterion, model = getattr(criteria, name), tiny_model("bert")
    for change, says in ((lambda t: t + 1, "labels from 1 to 3, .* 0 to 2"), (lambda t: t - 1, "labels from -1 to 1")):
        with pytest.raises(ValueError, match=says):
            criterion(model, [batch | {"labels": change(batch["labels"])} for batch in BATCHES])
    for options in ({"num_labels": 1}, {"problem_type": "multi_label_classification"}, {"problem_type": "regression"}):
        with pytest.raises(ValueError, match="labels of batch 0 are torch.int64 .*: give (a floating-|0.0 or)"):
            criterion(tiny_model("bert", **options), BATCHES)


def test_the_cross_entropy_is_as_exact_as_the_model():
    """Texts that the model is sure of: 1 - p is 1e-9 and less, which fp32 would round to nothing."""
    model = tiny_model("bert").double()
    with torch.no_grad():
        model.classifier.weight.mul_(0.1)
        model.classifier.bias.copy_(torch.tensor([24.0, 0.0, -3.0]))
    sure = [batch | {"labels": torch.zeros_like(batch["labels"])} for batch in BATCHES]

    def exact_loss(model, batch):
        others = literal.forward(model, batch).softmax(1)[:, 1:].sum(1)
        assert bool((others < 1e-9).all())
        return -torch.log1p(-others).mean()

    expected = literal.products(model, sure, exact_loss).log()
    close(criteria.gnorm_cross_entropy(model, sure), expected, torch.float64, scale=1e7)  # of 1 - p ten digits cancel


HEAD_BY_HEAD = [pytest.param(name, 1, marks=pytest.mark.soak) for name in ALL]


@pytest.mark.parametrize(("name", "count"), [*((name, 3) for name in BY_CRITERION), *HEAD_BY_HEAD])
def test_every_method_does_empty_layers_spare_groups_and_chunks(name, count):
    spare = tiny_model("albert", num_hidden_layers=2, num_hidden_groups=3)  # the third group is never called
    plain, empty, chunked = (tiny_model("bert", num_hidden_layers=2, chunk_size_feed_forward=n) for n in (0, 0, 3))
    gnorm.remove_heads(empty, torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0]]))
    options = {"method": name, "heads_per_step": count, "progress": False}
    for whole, heads in ((spare, 12), (empty, 3)):
        assert len(set(gnorm.prune(whole, BATCHES, **options).order())) == heads
    orders = [gnorm.prune(m, BATCHES, steps=3 // count, **options).order() for m in (chunked, plain)]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 3
