"""Controls: the oracle against a model without the head, text by text; what is shuffled and what is not."""

import copy
import math

import literal
import pytest
import torch
from precision import close, differ
from tiny import ragged_batches, tiny_model
from torch.nn.functional import cross_entropy

import gnorm
from gnorm import criteria
from gnorm.engine.texts.batches import prepare
from gnorm.methods import find_method

BATCHES = ragged_batches(2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- oracle


def cost_without(model, layer, head, batches):
    """Wrong texts, and the mean cross-entropy, once this head is gone as well."""
    model = copy.deepcopy(model)
    literal.zero_head(model, layer, head)
    wrong, losses = 0, []
    for text in literal.texts(batches):
        with torch.no_grad():
            logits = literal.forward(model, text)
        wrong += int(logits.argmax()) != int(text["labels"])
        losses.append(cross_entropy(logits, text["labels"]).item())
    return wrong, sum(losses) / len(losses)


def test_the_oracle_counts_the_texts_that_are_wrong_without_the_head(model):
    model = model.double()
    layers = len(literal.projections(model))
    costs = [[cost_without(model, layer, head, BATCHES) for head in range(4)] for layer in range(layers)]
    expected = torch.tensor([[wrong + c / (1 + c) for wrong, c in row] for row in costs], dtype=torch.float64)
    found = criteria.oracle(model, BATCHES)
    close(found, expected, torch.float64)
    assert found.floor().tolist() == [[wrong for wrong, _ in row] for row in costs]


def test_of_heads_with_as_many_wrong_texts_the_oracle_takes_the_one_with_the_smaller_loss():
    model = tiny_model("bert")
    with torch.no_grad():
        model.classifier.bias[0] += 50  # every text is of class 0, whatever the heads
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    costs = {at: cost_without(model, *at, BATCHES) for at in heads}
    assert len({wrong for wrong, _ in costs.values()}) == 1
    scores = criteria.oracle(model, BATCHES)
    assert min(heads, key=lambda at: scores[at]) == min(heads, key=lambda at: costs[at][1])
    assert len(set(scores.flatten().tolist())) == 12


def test_the_oracle_goes_where_its_own_scores_say():
    """The accuracy that it foresees is the accuracy that is measured."""
    run = gnorm.prune(tiny_model("bert"), BATCHES, method="oracle", progress=False)
    expected = [1 - math.floor(score) / 8 for score in run.table.score[1:]]
    close(run.table.accuracy[1:], expected, torch.float64)


def test_the_oracle_shows_the_logits_of_the_model_as_it_is():
    model, shown = tiny_model("bert"), {}
    prepared = prepare(BATCHES, model)

    def show(logits, micro):
        shown.update(zip(micro.index.tolist(), logits.tolist(), strict=True))

    criteria.oracle(model, prepared.with_observer(show))
    with torch.no_grad():
        expected = torch.cat([literal.forward(model, text) for text in literal.texts(BATCHES)])
    close(torch.tensor([shown[i] for i in range(8)]), expected)


# ---------------------------------------------------------------- shuffled weights and labels


def test_shuffled_weights_are_the_same_numbers_in_another_order():
    model, seen = tiny_model("bert"), []
    before = copy.deepcopy(model.state_dict())
    criteria.shuffled_weights(
        model, BATCHES, criterion=lambda model, batches: seen.append((model, batches)), generator=seeded(3)
    )
    ((shuffled, batches),) = seen
    assert batches.observer is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, parameter in shuffled.named_parameters():
        old = before[name]
        assert torch.equal(parameter.flatten().sort().values, old.flatten().sort().values), name
        if old.unique().numel() > 10:
            assert not torch.equal(parameter, old), name


def test_labels_are_dealt_out_anew_over_all_texts():
    model, seen = tiny_model("bert"), []
    criteria.shuffled_labels(model, BATCHES, criterion=lambda _, batches: seen.append(batches), generator=seeded(3))
    dealt = seen[0].batches
    for batch, given in zip(dealt, BATCHES, strict=True):
        assert batch.keys() == given.keys()
        assert len(batch["labels"]) == len(given["labels"])
        assert all(batch[name] is given[name] for name in given if name != "labels")
    labels, old = (torch.cat([batch["labels"] for batch in batches]) for batches in (dealt, BATCHES))
    assert labels.sort().values.tolist() == old.sort().values.tolist()
    assert labels.tolist() != old.tolist()
    order = torch.randperm(8, generator=seeded(3))
    assert labels.tolist() == old[order].tolist()


@pytest.mark.parametrize("name", ["gnorm_shuffled_weights", "importance_shuffled_labels"])
def test_what_is_shuffled_scores_the_same_with_the_same_generator_and_otherwise_not(name):
    model = tiny_model("bert")
    row, plain = find_method(name), {"gnorm_shuffled_weights": "greedy_gnorm"}.get(name, "head_importance")
    first, again, other = (row.scores(model, BATCHES, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    differ(first, other)
    differ(first, find_method(plain).scores(model, BATCHES, seeded(3)))
    run = gnorm.prune(model, BATCHES, method=name, trials=2, steps=3, progress=False)
    assert run.order(0) != run.order(1)


def test_labels_that_are_not_there_cannot_be_shuffled():
    unlabelled = [{name: tensor for name, tensor in batch.items() if name != "labels"} for batch in BATCHES]
    with pytest.raises(ValueError, match="batch 0 has no `labels`: shuffled labels needs? the class of each text"):
        criteria.shuffled_labels(
            tiny_model("bert"), unlabelled, criterion=criteria.head_importance, generator=seeded(0)
        )
