"""Language models with an encoder and a decoder, held against plain autograd and plain computations by text."""

import math

import layouts
import pytest
import torch
from precision import close, close_logs
from test_families import make
from transformers import AutoModelForSeq2SeqLM

import gnorm
from gnorm import criteria
from gnorm.engine.problems import problem_of
from gnorm.metrics import find_metric, kept_of

LENGTHS = ((5, 3), (2, 6), (6, 1), (4, 4))  # tokens of each text, and of its target


def model_of(name):
    return make(name, AutoModelForSeq2SeqLM)


def batches_of():
    """Two batches of two texts with targets, without anything for the decoder; in one both sides are 6 tokens wide."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for of_batch in (LENGTHS[:2], LENGTHS[2:]):
        ids, labels = torch.ones(2, 6).long(), torch.full((2, 6), -100)
        for i, (text, target) in enumerate(of_batch):
            ids[i, :text] = torch.randint(3, 120, (text,), generator=generator)
            labels[i, :target] = torch.randint(3, 120, (target,), generator=generator)
        batches.append({"input_ids": ids, "attention_mask": (ids != 1).long(), "labels": labels})
    return batches


def texts_of(batches):
    """Every text and its target alone, without padding."""
    for batch in batches:
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            yield {"input_ids": ids[None, ids != 1], "labels": labels[None, labels >= 0]}


def scores_by_hand(model, batches, objective):
    blocks = layouts.blocks(model)
    sums = torch.zeros(len(blocks), 3, 2, dtype=torch.float64)
    for batch in batches:
        model.zero_grad()
        objective(batch).backward()
        for row, block in zip(sums, blocks, strict=True):
            row += torch.stack([part.by_head(part.module.weight.grad).double().norm(dim=1) for part in block[:3]])
    model.zero_grad()
    return sums.prod(1).log()


@pytest.fixture(params=["t5", "bart", "marian", "pegasus"])
def name(request):
    return request.param


def test_scores_are_those_of_autograd(name):
    model, batches = model_of(name), batches_of()
    assert problem_of(model).name == "seq2seq_lm"

    def norm(batch):  # of the logits of all tokens of the targets; text by text, so nothing is padded
        return torch.cat([model(**text).logits.flatten() for text in texts_of([batch])]).norm()

    expected = scores_by_hand(model, batches, norm)
    close_logs(gnorm.gnorm_scores(model, batches), expected)
    one_by_one = gnorm.prepare(batches, model, max_tokens=1)
    assert max(len(micro.index) for micro in one_by_one) == 1
    close_logs(gnorm.gnorm_scores(model, one_by_one), expected)
    by_loss = scores_by_hand(model, batches, lambda batch: model(**batch).loss)
    close_logs(criteria.gnorm_cross_entropy(model, batches), by_loss)


def test_entropy_of_cross_attention_leaves_out_padding_of_either_side(name):
    model, batches = model_of(name), batches_of()
    for form in ("exact", "eps_both"):  # in the second a key that is padding would count
        whole = gnorm.attention_entropy(model, batches, form=form)
        alone = [gnorm.attention_entropy(model, [text], form=form) for text in texts_of(batches)]
        close(whole, torch.stack(alone).mean(0))


@pytest.mark.parametrize("method", ["greedy_gnorm", "head_importance"])
def test_every_state_has_the_perplexity_of_the_masked_model(name, method):
    model, batches = model_of(name), batches_of()
    run = gnorm.prune(model, batches, method=method, progress=False)
    assert run.info["metric"] == "perplexity"
    for pruned, value in enumerate(run.table.perplexity):
        with gnorm.masked(model, run.mask(pruned)), torch.no_grad():
            sums = [model(**text).loss.double() * text["labels"].numel() for text in texts_of(batches)]
        close(value, math.exp(sum(sums) / sum(target for _, target in LENGTHS)))
    hits = kept_of(model, batches, find_metric("token_accuracy", model))
    with torch.no_grad():
        plain = [(model(**text).logits.argmax(-1) == text["labels"]).sum() for text in texts_of(batches)]
    assert hits.tolist() == [[int(right), target] for right, (_, target) in zip(plain, LENGTHS, strict=True)]


def test_inputs_of_the_decoder_may_be_given(name):
    model, batches = model_of(name), batches_of()
    expected = gnorm.gnorm_scores(model, batches)
    given = [
        {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels=batch["labels"]),
            "decoder_attention_mask": (batch["labels"] >= 0).long(),
        }
        for batch in batches
    ]
    close_logs(gnorm.gnorm_scores(model, given), expected)
    some = [batch | {"labels": batches[i]["labels"].clone()} for i, batch in enumerate(given)]
    some[0]["labels"][:, 0] = -100  # a token that is no padding and does not count
    close_logs(gnorm.gnorm_scores(model, some), expected)
    assert gnorm.prune(model, some, steps=0, progress=False).predictions[0, :, 1].tolist() == [2, 5, 1, 4]


PAD = torch.tensor([[1, 5, 1], [1, 6, 7]])
REFUSED = [
    ({"labels": None}, "batch 0 has no decoder_input_ids, nor labels that the model makes them of"),
    ({"labels": torch.full((2, 3), -100)}, "a text of batch 0 has the first label -100, which may be padding or not"),
    ({"labels": None, "decoder_input_ids": PAD}, "decoder_input_ids of batch 0 hold the padding token, which may be"),
    ({"decoder_input_ids": PAD + 200}, "of the decoder: batch 0: attention mask .2, 6. and token ids .2, 3. do not"),
    ({"labels": PAD, "decoder_input_ids": PAD + 200}, "of the decoder: batch 0 has token ids from 201 to 207"),
    ({"labels": PAD + 200}, "of the decoder: batch 0 has token ids from 1 to 206, the model knows 0 to 119"),
]


@pytest.mark.parametrize(("changes", "complaint"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_what_leaves_open_what_is_padding_is_refused(changes, complaint):
    batch = {name: tensor for name, tensor in (batches_of()[0] | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=complaint) as caught:
        gnorm.prune(model_of("bart"), [batch], progress=False)
    assert str(caught.value).endswith(".")
