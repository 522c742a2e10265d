"""Unknown models go the plain way: own classifiers, own attention, own fields, whatever the texts are like."""

import copy

import literal
import pytest
import torch
from crosses import one_by_all
from literal import inputs_of
from precision import close, close_logs
from tiny import FAMILIES, SIZES, ragged_batches, tiny_model
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, BertModel, BertPreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertSelfAttention

import gnorm
from gnorm.engine.model.known_models import ignores_padding, packable

MASK = [[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 0]]


class Own(BertPreTrainedModel):
    """A classifier of somebody's own on BERT."""

    width = 1

    def __init__(self, config):
        super().__init__(config)
        self.bert, self.classifier = BertModel(config), nn.Linear(self.width * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, labels=None):
        hidden = self.bert(input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        return SequenceClassifierOutput(logits=self.classifier(self.read(hidden, input_ids, attention_mask)))


class LastTwo(Own):
    def read(self, hidden, *_):
        return hidden[-1][:, 0] + hidden[-2][:, 0]


class SecondLast(Own):
    def read(self, hidden, *_):
        return hidden[-2][:, 0]


class MeanWithPadding(Own):
    def read(self, hidden, *_):
        return hidden[-1].mean(1)


class LastToken(Own):
    def read(self, hidden, _, mask):
        return hidden[-1][torch.arange(len(mask)), mask.sum(1) - 1]


class Marker(Own):
    """Reads the first token of a certain number, or the first of all."""

    def read(self, hidden, ids, _):
        return hidden[-1][torch.arange(len(ids)), (ids % 7 == 3).int().argmax(1)]


class Maximum(Own):
    def read(self, hidden, *_):
        return hidden[-1].amax(1)


TEXTS = {
    "of unequal lengths": lambda: ragged_batches(),
    "of one length": lambda: [b | {"attention_mask": torch.ones_like(b["attention_mask"])} for b in ragged_batches()],
    "one alone": lambda: [{name: tensor[:1] for name, tensor in ragged_batches(1)[0].items()}],
    "two": lambda: [{name: tensor[:2] for name, tensor in ragged_batches(2)[0].items()}],
}


def made(kind, seed=0, **changes):
    torch.manual_seed(seed)
    return kind(AutoConfig.for_model("bert", **{**SIZES, **changes})).eval()


def plain_scores(model, batches):
    """By autograd on whole padded batches: log prod over Q, K, V of the sum of norms."""
    return literal.products(model, batches).log()


@torch.no_grad()
def plain_accuracy(model, batches):
    hits = torch.cat([model(**inputs_of(b)).logits.argmax(1) == b["labels"] for b in batches])
    return hits.double().mean().item()


def assert_plain(model, batches):
    close_logs(gnorm.gnorm_scores(model, batches), plain_scores(model, batches))
    close(gnorm.accuracy(model, batches), plain_accuracy(model, batches), torch.float64)


KINDS = (Maximum, LastTwo, SecondLast, MeanWithPadding, LastToken, Marker)


@pytest.mark.parametrize(("kind", "texts"), one_by_all(KINDS, TEXTS))
def test_own_classifiers_are_given_their_batches_as_they_are(kind, texts):
    model, batches = made(kind), TEXTS[texts]()
    assert not ignores_padding(model)
    assert_plain(model, batches)
    found = gnorm.prune(model, batches, progress=False, steps=3)
    with gnorm.masked(model, found.mask(3)):
        close(found.table.accuracy.iloc[-1], plain_accuracy(model, batches), torch.float64)


def test_a_pooler_or_a_head_of_somebodys_own_is_not_packed():
    flat, other = tiny_model("bert"), tiny_model("roberta")
    flat.bert.pooler = nn.Sequential(nn.Flatten(1), nn.Linear(9 * 32, 32))
    other.classifier = nn.Sequential(nn.Flatten(1), nn.Linear(9 * 32, 3))
    ids = torch.randint(3, 120, (4, 9), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(4) % 3}
    for model in (flat, other):
        assert not ignores_padding(model)
        assert_plain(model, [batch])


def test_a_hook_or_a_patched_class_of_somebodys_own_is_not_packed(monkeypatch):
    model, batches = tiny_model("bert").double(), ragged_batches()
    prepared = gnorm.prepare(batches, model)
    assert packable(model)
    assert prepared.packing is not None
    hook = model.bert.encoder.layer[1].register_forward_hook(lambda _, __, hidden: hidden * hidden.shape[1])
    assert not packable(model)
    found = gnorm.gnorm_scores(model, prepared)  # prepared before the hook came
    close(found, plain_scores(model, batches), torch.float64, scale=1e4)  # attention is saturated: gradients cancel
    hook.remove()
    assert packable(model)
    whole = BertSelfAttention.forward
    monkeypatch.setattr(BertSelfAttention, "forward", lambda self, x, *a, **k: whole(self, x * x.shape[1], *a, **k))
    assert not packable(model)
    assert_plain(model, batches)


class ByDistance(BertSelfAttention):
    """Adds a bias by distance (ALiBi) to the mask that it hands on."""

    def forward(self, hidden_states, attention_mask=None, **options):
        at = torch.arange(hidden_states.shape[1])
        bias = (-0.5 * (at[:, None] - at).abs()).to(hidden_states.dtype).expand(1, self.num_attention_heads, -1, -1)
        if attention_mask is not None:
            low = torch.finfo(bias.dtype).min
            masked = attention_mask if attention_mask.is_floating_point() else (~attention_mask).to(bias.dtype) * low
            bias = bias + masked
        return super().forward(hidden_states, bias, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_with_a_bias_keeps_it_in_every_precision(dtype):
    model = tiny_model("bert", initializer_range=0.05)
    for layer in model.bert.encoder.layer:
        layer.attention.self.__class__ = ByDistance
    expected = plain_scores(copy.deepcopy(model).double(), ragged_batches())
    found = gnorm.gnorm_scores(model.to(dtype), ragged_batches())
    close_logs(found, expected, dtype)


def sharp(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    weights = query @ key.transpose(2, 3) * scaling * 4
    weights = (weights if attention_mask is None else weights + attention_mask).softmax(-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def silent(*arguments, **options):
    return sharp(*arguments, **options)[0], None


@pytest.mark.parametrize("again", ["sharp", "sdpa"])  # a name of its own, or one of transformers' taken over
def test_registered_attention_is_the_one_that_is_looked_at(again, monkeypatch):
    monkeypatch.setattr(AttentionInterface, "_global_mapping", {**AttentionInterface._global_mapping, again: sharp})
    masks = {**AttentionMaskInterface._global_mapping, again: ALL_MASK_ATTENTION_FUNCTIONS["eager"]}
    monkeypatch.setattr(AttentionMaskInterface, "_global_mapping", masks)
    model, batches = tiny_model("bert"), ragged_batches()
    model.set_attn_implementation(again)
    assert not packable(model)
    assert_plain(model, batches)
    close(gnorm.attention_entropy(model, batches), literal.entropy(model, batches))
    monkeypatch.setattr(AttentionInterface, "_global_mapping", {**AttentionInterface._global_mapping, again: silent})
    with pytest.raises(ValueError, match="does not return its attention weights; entropy needs them"):
        gnorm.attention_entropy(model, batches)


class TitleAndBody(Own):
    """Reads a second field, of no width in particular, padded with 1."""

    width = 2

    def forward(self, input_ids=None, attention_mask=None, title_ids=None, labels=None):
        real = (title_ids != 1)[..., None].float()
        title = (self.bert.embeddings.word_embeddings(title_ids) * real).sum(1) / real.sum(1)
        body = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        return SequenceClassifierOutput(logits=self.classifier(torch.cat([body, 3 * title], 1)))


@pytest.mark.parametrize("width", [None, 16, 17, 5])  # None: as wide as the texts of each batch
def test_a_field_of_somebodys_own_is_never_cut_by_its_width(width):
    generator, batches = torch.Generator().manual_seed(3), []
    for batch in ragged_batches():
        ids = torch.randint(3, 120, (len(batch["labels"]), width or batch["input_ids"].shape[1]), generator=generator)
        batches.append(batch | {"title_ids": ids})
    assert_plain(made(TitleAndBody), batches)
    small = gnorm.prepare(batches, made(TitleAndBody), max_tokens=1)
    assert {len(micro.index) for micro in small} == {1}
    close_logs(gnorm.gnorm_scores(made(TitleAndBody), small), plain_scores(made(TitleAndBody), batches))


def test_a_field_that_the_model_does_not_take_is_refused():
    batches = [batch | {"idx": torch.arange(len(batch["labels"]))} for batch in ragged_batches()]
    with pytest.raises(ValueError, match="idx of batch 0 is nothing that the model's forward takes: leave it out"):
        gnorm.gnorm_scores(made(LastTwo), batches)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_numbers_of_other_types_are_the_same_numbers(dtype, model):
    batches = [
        b | {"input_ids": b["input_ids"].to(dtype), "token_type_ids": 0 * b["input_ids"]} for b in ragged_batches()
    ]
    expected = gnorm.gnorm_scores(model, ragged_batches())
    assert torch.equal(gnorm.gnorm_scores(model, batches), expected)


# ---------------------------------------------------------------- prepared batches


def test_batches_prepared_for_another_model_give_what_they_give_anew():
    batches, deep, double = ragged_batches(), tiny_model("bert", num_hidden_layers=5), tiny_model("bert").double()
    model = tiny_model("bert")
    expected = gnorm.gnorm_scores(model, batches)
    for other in (deep, double, tiny_model("roberta")):
        prepared = gnorm.prepare(batches, other, max_tokens=30)
        anew = gnorm.prepare(batches, model, max_tokens=30)
        assert torch.equal(gnorm.gnorm_scores(model, prepared), gnorm.gnorm_scores(model, anew))
        close_logs(gnorm.gnorm_scores(model, prepared), expected)
        assert gnorm.accuracy(model, prepared) == gnorm.accuracy(model, batches)
    own = gnorm.prepare(batches, model)
    close_logs(gnorm.gnorm_scores(model.double(), own), expected)


def test_prepared_batches_go_wherever_batches_go(model):
    batches, held_out = ragged_batches(), ragged_batches(count=4, seed=7)
    expected = gnorm.prune(model, batches, held_out, heads_per_step=4, progress=False)
    prepared = gnorm.prepare(batches, model), gnorm.prepare(held_out, model, together=True)
    assert gnorm.prune(model, *prepared, heads_per_step=4, progress=False).table.equals(expected.table)


ALL = gnorm.METHODS | gnorm.MORE_METHODS
BY_CRITERION = {row.criterion: name for name, row in reversed(ALL.items())}.values()


@pytest.mark.parametrize(("family", "method"), one_by_all(FAMILIES, BY_CRITERION))
def test_prepared_batches_serve_every_method(family, method):
    model, batches = tiny_model(family), ragged_batches(2)
    prepared = gnorm.prepare(batches, model)
    runs = [gnorm.prune(model, given, method=method, progress=False, steps=1) for given in (prepared, batches)]
    assert runs[0].table.equals(runs[1].table)


def test_batches_prepared_together_are_not_scored_batch_by_batch():
    model = tiny_model("bert")
    together = gnorm.prepare(ragged_batches(), model, together=True)
    for criterion in (gnorm.gnorm_scores, gnorm.criteria.output_saliency, gnorm.criteria.gnorm_cross_entropy):
        with pytest.raises(ValueError, match="prepared together, as one batch: leave out together=True"):
            criterion(model, together)
    assert gnorm.accuracy(model, together) == gnorm.accuracy(model, ragged_batches())


# ---------------------------------------------------------------- labels and accuracy


def test_texts_labelled_minus_100_are_not_counted_and_evaluation_refuses_them():
    model, batches = tiny_model("bert"), ragged_batches()
    some = [b | {"labels": torch.where(torch.arange(len(b["labels"])) < 2, -100, b["labels"])} for b in batches]
    kept = [{name: tensor[2:] for name, tensor in batch.items()} for batch in batches]
    close(gnorm.accuracy(model, some), plain_accuracy(model, kept), torch.float64)
    with pytest.raises(ValueError, match="evaluation batch 0 has labels from -100 to"):
        gnorm.prune(model, some, progress=False)
    assert gnorm.prune(model, some, batches, progress=False, steps=1).correct.shape[1] == 13
    with pytest.raises(ValueError, match="every label is -100, which is not counted: accuracy needs some texts"):
        gnorm.accuracy(model, [b | {"labels": torch.full_like(b["labels"], -100)} for b in batches])


PROBLEMS = [{"num_labels": 1}, {"problem_type": "regression"}, {"problem_type": "multi_label_classification"}]


@pytest.mark.parametrize("options", PROBLEMS)
def test_accuracy_of_what_chooses_no_class_is_refused(options):
    model, batches = tiny_model("bert", **options), ragged_batches(labels=1)
    for call in (gnorm.accuracy, lambda *given: gnorm.prune(*given, metric="accuracy", progress=False)):
        with pytest.raises(ValueError, match="accuracy needs a model that gives each text one of several classes"):
            call(model, batches)
    assert gnorm.gnorm_scores(model, batches).isfinite().all()


def test_scores_that_use_no_labels_do_not_mind_them(model):
    expected = gnorm.gnorm_scores(model, ragged_batches())
    odd = [torch.rand(5, 7), torch.full((5,), 99), torch.rand(3)]
    batches = [batch | {"labels": labels} for batch, labels in zip(ragged_batches(), odd, strict=True)]
    assert torch.equal(gnorm.gnorm_scores(model, batches), expected)
    gnorm.attention_entropy(model, batches)
    gnorm.activation_energy(model, batches)
    partly = [{n: t for n, t in b.items() if n != "labels" or i} for i, b in enumerate(ragged_batches())]
    assert torch.equal(gnorm.gnorm_scores(model, partly), expected)
