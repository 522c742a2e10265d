"""What models read: segment ids where they tell segments apart, and the ids that the paper's models were given."""

import json
from pathlib import Path

import literal
import published_tokenizers as published
import pytest
import torch
import transformers
from precision import close, close_logs, differ
from tiny import ragged_batches, tiny_model
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import gnorm
from experiments.data import tokenizers
from gnorm.storage.tokenizing import batched

WORDS = ("no", "dogs", "ran", "some", "moved")
ROWS = {"text": ["no dogs ran", "dogs"], "text_pair": ["some moved", "ran"], "label": [0, 1]}
BERT = {piece: i for i, piece in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
ALBERT = [
    *((piece, 0.0) for piece in ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    *((f"▁{w}", -1.0) for w in WORDS),
]
XLM = [
    *((piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")),
    *((f"▁{w}", -1.0) for w in WORDS),
    ("<mask>", 0.0),
]
TWO = [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]]
SEGMENTS = {
    "bert": (transformers.BertTokenizer(vocab=BERT), {}, TWO),
    "albert": (transformers.AlbertTokenizer(vocab=ALBERT), {"embedding_size": 16}, TWO),
    "electra": (transformers.ElectraTokenizer(vocab=BERT), {}, TWO),
    "deberta-v2": (transformers.DebertaV2Tokenizer(vocab=ALBERT), {"type_vocab_size": 0}, None),
    "mpnet": (transformers.BertTokenizer(vocab=BERT), {}, None),
    "distilbert": (
        transformers.BertTokenizer(vocab=BERT),
        {"dim": 32, "n_heads": 4, "hidden_dim": 48, "n_layers": 2},
        None,
    ),
    "roberta": (transformers.BertTokenizer(vocab=BERT), {"type_vocab_size": 1}, None),
    "xlm-roberta": (transformers.XLMRobertaTokenizer(vocab=XLM), {"type_vocab_size": 1}, None),
    "camembert": (transformers.XLMRobertaTokenizer(vocab=XLM), {"type_vocab_size": 2}, [[0] * 9, [0] * 9]),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_pair_reaches_each_family_with_the_segments_it_tells_apart(name):
    tokenizer, sizes, expected = SEGMENTS[name]
    model = tiny_model(name, **sizes)
    (batch,) = batched(tokenizer, ROWS, 2, 30, model)
    given = batch["token_type_ids"].tolist() if "token_type_ids" in batch else None
    assert given == expected
    if expected == TWO:
        assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3, 8, 9, 3], [2, 6, 3, 7, 3, 0, 0, 0]]
        assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 5 + [0] * 3]
    gnorm.accuracy(model, [batch])


def test_segments_decide_what_albert_scores():
    """By the literal algorithm, with segment ids; without them the scores are others."""
    model = tiny_model("albert")
    tokenizer, _, _ = SEGMENTS["albert"]
    (batch,) = batched(tokenizer, ROWS, 2, 30, model)
    scores = gnorm.gnorm_scores(model, [batch])
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    layer = gnorm.attention_blocks(model)[0]
    weights = [layer.query.weight, layer.key.weight, layer.value.weight]
    gradients = torch.autograd.grad(model(**inputs).logits.norm(), weights)
    literal = sum(gradient.view(4, -1).norm(dim=1).double().log() for gradient in gradients)
    close_logs(scores[0], literal)
    del batch["token_type_ids"]
    differ(gnorm.gnorm_scores(model, [batch]), scores)


@pytest.mark.parametrize("rows", [{"text": ["no dogs", "ran"], "label": [0, 1]}, ROWS | {"text_pair": ["", " "]}])
def test_a_single_text_is_one_segment(rows):
    tokenizer, sizes, _ = SEGMENTS["albert"]
    (batch,) = batched(tokenizer, rows, 2, 30, tiny_model("albert", **sizes))
    second = [[i >= len(rows["text"][row].split()) + 2 for i in range(batch["input_ids"].shape[1])] for row in (0, 1)]
    expected = (torch.tensor(second) & (batch["attention_mask"] == 1)).long()
    assert torch.equal(batch["token_type_ids"], expected)


def test_pairs_are_cut_by_the_longer_one_with_their_segments():
    tokenizer, sizes, _ = SEGMENTS["albert"]
    rows = {"text": ["no dogs ran no dogs ran", "no"], "text_pair": ["some", "moved " * 9], "label": [0, 1]}
    (batch,) = batched(tokenizer, rows, 2, 8, tiny_model("albert", **sizes))
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 5, 3, 8, 3], [2, 5, 3, 9, 9, 9, 9, 3]]
    assert batch["token_type_ids"].tolist() == [[0] * 6 + [1] * 2, [0] * 3 + [1] * 5]


def without_segments(**options):
    """As [CLS] A [SEP] B [SEP], every token of segment 0."""
    backend = Tokenizer(models.WordLevel(BERT, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", **options)


def test_a_tokenizer_that_gives_both_texts_of_a_pair_one_segment_is_refused():
    model = tiny_model("bert")
    with pytest.raises(
        ValueError, match=r"both texts of a pair segment 0, BertForSequenceClassification tells segments"
    ):
        batched(without_segments(), ROWS, 2, 30, model)
    alone = {"text": ROWS["text"], "label": [0, 1]}
    assert not batched(without_segments(), alone, 2, 30, model)[0]["token_type_ids"].any()
    said = without_segments(model_input_names=["input_ids", "attention_mask"])  # the remedy that the message names
    assert "token_type_ids" not in batched(said, ROWS, 2, 30, model)[0]
    assert "token_type_ids" not in batched(without_segments(), ROWS, 2, 30, tiny_model("bert", type_vocab_size=1))[0]


# ---------------------------------------------------------------- as transformers 4.36.2 read them

EXPECTED = json.loads(Path(__file__).with_name("published_tokenizers.json").read_text())


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory):
    return published.checkouts(tmp_path_factory.mktemp("tokenizers"))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_papers_tokenizers_give_what_the_authors_version_gave(name, checkouts):
    assert published.read(tokenizers.load_published(checkouts[name])) == EXPECTED[name]


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_segments_come_from_bare_vocabularies_too(name, checkouts):
    """As a user's own checkpoint is read: a vocab.txt or spiece.model and no tokenizer.json."""
    (batch,) = batched(AutoTokenizer.from_pretrained(checkouts[name]), ROWS, 2, 30, tiny_model(name))
    assert batch["token_type_ids"].tolist() == TWO


def test_a_full_stop_and_a_last_space_are_what_the_authors_version_made_of_them(checkouts):
    """The two that transformers 5 reads otherwise in ordinary texts."""
    albert, xlm = (tokenizers.load_published(checkouts[name]) for name in ("albert", "xlm-roberta"))
    assert albert.convert_ids_to_tokens(albert("no - dogs.").input_ids) == [
        "[CLS]",
        "▁no",
        "▁",
        "-",
        "▁dogs",
        ".",
        "[SEP]",
    ]
    assert xlm.convert_ids_to_tokens(xlm("no dogs ").input_ids) == ["<s>", "▁no", "▁dogs", "▁", "</s>"]


def test_a_tokenizer_file_is_taken_at_its_word(checkouts, tmp_path):
    """Normaliser and pre-tokenizer come from tokenizer.json; saved and read again, the ids stay."""
    backend = Tokenizer(models.Unigram([*XLM[:4], ("▁", -9.0), *XLM[4:]], unk_id=3))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex("dogs?"), "ran")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "xlm-roberta"}')
    found = tokenizers.load_published(tmp_path)
    assert found("no dogs ").input_ids == [0, 5, 7, 4, 2]
    assert found(["no", "no dogs"], padding=True).input_ids == [[0, 5, 2, 1], [0, 5, 7, 2]]
    found.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("no dogs ").input_ids == [0, 5, 7, 4, 2]


def test_ids_with_segments_go_through_the_engine_as_they_are():
    """Packed or padded, pruned or not: the same accuracy and scores with segment ids as text by text."""
    model, batches = tiny_model("albert"), ragged_batches(vocabulary=120)
    for batch in batches:
        position = torch.arange(batch["input_ids"].shape[1])[None]
        batch["token_type_ids"] = ((position > 2) & (batch["attention_mask"] == 1)).long()
    close(gnorm.accuracy(model, batches), literal.accuracy(model, batches), torch.float64)
    alone = list(literal.texts(batches))
    close(gnorm.attention_entropy(model, batches), gnorm.attention_entropy(model, alone))
