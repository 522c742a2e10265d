"""Language models with an encoder and a decoder, held against plain autograd and plain computations by text."""

import copy
import math

import literal
import pytest
import torch
from models import make
from precision import close, close_logs
from transformers import AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

import gnorm
from gnorm import criteria, shipping
from gnorm.engine.model.problems import problem_of
from gnorm.engine.trials.examples import inputs_of
from gnorm.metrics import find_metric, text_values_of

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


@pytest.fixture(params=["t5", "bart", "marian", "pegasus"])
def name(request):
    return request.param


def test_scores_are_those_of_autograd(name):
    model, batches = model_of(name), batches_of()
    assert problem_of(model).name == "seq2seq_lm"

    def norm(model, batch):  # of the logits of all tokens of the targets; text by text, so nothing is padded
        return torch.cat([model(**text).logits.flatten() for text in texts_of([batch])]).norm()

    expected = literal.products(model, batches, norm).log()
    close_logs(gnorm.gnorm_scores(model, batches), expected)
    one_by_one = gnorm.prepare(batches, model, max_tokens=1)
    assert max(len(micro.index) for micro in one_by_one) == 1
    close_logs(gnorm.gnorm_scores(model, one_by_one), expected)
    by_loss = literal.products(model, batches, literal.loss).log()
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
    hits = text_values_of(model, batches, find_metric("token_accuracy", model))
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
    some[0]["labels"][:, 0] = -100  # a token that is not padding and does not count
    close_logs(gnorm.gnorm_scores(model, some), expected)
    assert gnorm.prune(model, some, steps=0, progress=False).text_values[0, :, 1].tolist() == [2, 5, 1, 4]


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


class Again:
    """Batches that are read anew for every pass."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def perplexity_by_hand(model, batches):
    with torch.no_grad():
        counts = [(batch["labels"] != -100).sum() for batch in batches]
        losses = [model(**batch).loss.double() * count for batch, count in zip(batches, counts, strict=True)]
    return math.exp(sum(losses) / sum(counts))


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "mbart", "marian", "pegasus", "m2m_100", "whisper"])
def test_the_decoder_reads_what_the_model_makes_of_labels_alone(name):
    """Whether or not the class has a method for it, and of batches that are read anew too."""
    batches, auto = batches_of(), AutoModelForSpeechSeq2Seq if name == "whisper" else AutoModelForSeq2SeqLM
    model = make(name, auto)
    if name == "whisper":
        sounds = torch.randn(2, 2, 16, 48, generator=torch.Generator().manual_seed(2))
        batches = [{"input_features": s, "labels": b["labels"]} for s, b in zip(sounds, batches, strict=True)]
    expected = perplexity_by_hand(model, batches)
    close(gnorm.measure(model, batches), expected)
    close(gnorm.measure(model, Again(batches)), expected)
    scores = gnorm.gnorm_scores(model, batches)
    close_logs(gnorm.gnorm_scores(model, Again(batches)), scores)
    small = [batches[0], {**batches[1], "labels": batches[1]["labels"].to(torch.int16)}]
    close_logs(gnorm.gnorm_scores(model, small), scores)


def test_labels_that_the_model_makes_nothing_of_are_refused():
    model = model_of("m2m_100")
    model.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match=r"makes no decoder_input_ids of the labels of batch 0 .*: give decoder_input"):
        gnorm.gnorm_scores(model, batches_of())
    assert not model.get_decoder()._forward_pre_hooks


@pytest.mark.parametrize(("source", "target"), [(120, 200), (200, 120)])
def test_a_decoder_has_a_vocabulary_of_its_own(source, target):
    two = {"decoder_vocab_size": target, "share_encoder_decoder_embeddings": False}
    model, batches = make("marian", AutoModelForSeq2SeqLM, vocab_size=source, **two), batches_of()
    batches[0]["labels"][0, 0], batches[0]["input_ids"][0, 0] = target - 1, source - 1  # the last of either
    close(gnorm.measure(model, batches), perplexity_by_hand(model, batches))
    assert int(inputs_of(model, 40, 40)["decoder_input_ids"].max()) < target
    for name, size in (("labels", target), ("input_ids", source)):
        beyond = copy.deepcopy(batches)
        beyond[0][name][0, 0] = size
        with pytest.raises(ValueError, match=f"batch 0 has .* from .* to {size}, the model"):
            gnorm.measure(model, beyond)
    beyond[0] = batches[0] | {"decoder_input_ids": batches[0]["labels"].clamp(min=0).clone()}  # labels alone are beyond
    beyond[0]["labels"] = batches[0]["labels"].clone()
    beyond[0]["labels"][0, 0] = target
    with pytest.raises(ValueError, match=f"batch 0 has labels from .* to {target}, the model's classes are 0 to"):
        gnorm.measure(model, beyond[:1])


def test_labels_may_be_given_with_some_batches():
    model, batches = model_of("bart"), batches_of()
    expected, bare = gnorm.gnorm_scores(model, batches), dict(batches[1])
    labels = bare.pop("labels")
    bare["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    bare["decoder_attention_mask"] = (labels != -100).long()
    close_logs(gnorm.gnorm_scores(model, [batches[0], bare]), expected)
    with pytest.raises(ValueError, match="batch 1 has no `labels`"):
        gnorm.measure(model, [batches[0], bare])


@pytest.mark.parametrize("name", ["t5", "bart", "m2m_100"])
def test_a_teacher_is_asked_about_the_decoder_inputs_of_the_student(name):
    """In training texts and targets are of like width, where BART would take the texts for inputs of its decoder."""
    teacher, batches, asked = model_of(name), batches_of(), []
    student = copy.deepcopy(teacher)
    gnorm.remove_heads(student, torch.arange(gnorm.head_mask_of(student).numel()).view(-1, 2) % 3 > 0)

    def note(_, args, named):
        asked.append((named["decoder_input_ids"], named.get("decoder_attention_mask"), named.get("labels")))

    hooks = [each.register_forward_pre_hook(note, with_kwargs=True) for each in (teacher, student)]
    shipping.recover(student, batches, teacher, progress=False)
    for hook in hooks:
        hook.remove()
    assert len(asked) == 4
    for (ids, mask, labels), (of_teacher, mask_of_teacher, none) in (asked[:2], asked[2:]):
        assert none is None
        assert torch.equal(ids, of_teacher)
        assert torch.equal(mask, mask_of_teacher)
        assert torch.equal(mask, (labels != -100).long())
        assert torch.equal(ids[:, 1:][labels[:, :-1] != -100], labels[:, :-1][labels[:, :-1] != -100])
