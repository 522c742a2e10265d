"""Batches that are read anew for every pass give what a list of them gives."""

import datasets
import pytest
import torch
from precision import close, close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm.engine import streams
from gnorm.engine.batches import layer_input_caches
from gnorm.experiments.text_sets import text_set


class Again:
    """Re-iterable batches that are no sequence, and have no length."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(streams, "WINDOW_TEXTS", 9)


SCORING, EVALUATION = ragged_batches(5), ragged_batches(4, seed=9)


def memory_mapped(batches, folder):
    """The texts of batches as a memory-mapped data set."""
    rows = {"input_ids": [], "label": []}
    for batch in batches:
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
            rows["input_ids"].append(ids[mask.bool()].tolist())
            rows["label"].append(int(label))
    datasets.Dataset.from_dict(rows).save_to_disk(folder)
    mapped = datasets.load_from_disk(folder)
    assert mapped.cache_files
    return mapped


METHODS = ("greedy_gnorm", "attention_entropy", "output_saliency", "flap", "oracle", "gnorm_by_text")


@pytest.mark.parametrize("method", [*METHODS, "importance_shuffled_labels", "gnorm_cross_entropy"])
def test_a_run_on_streams_is_the_run_on_lists(method):
    model, steps = tiny_model("bert"), 3
    expected = gnorm.prune(model, SCORING, EVALUATION, method, progress=False, steps=steps)
    run = gnorm.prune(model, Again(SCORING), Again(EVALUATION), method, progress=False, steps=steps)
    assert run.order() == expected.order()
    assert (run.correct == expected.correct).all()
    (close_logs if "gnorm" in method else close)(run.table.score, expected.table.score)
    assert (run.labels == expected.labels).all()
    assert run.info["scoring_texts"] == expected.info["scoring_texts"]


@pytest.mark.parametrize("family", ["roberta", "albert", "gpt2"])
def test_scores_of_a_memory_mapped_set_are_those_of_its_batches(family, tmp_path):
    """Packed, with a layer that is shared, and padded."""
    model = tiny_model(family)
    mapped = memory_mapped(SCORING, tmp_path)
    for data_set in (mapped, mapped.to_iterable_dataset()):
        texts = gnorm.TextSet(data_set, 5, pad_token=1)
        for batch, expected in zip(texts, SCORING, strict=True):
            assert all(torch.equal(batch[name], expected[name]) for name in expected)
        close_logs(gnorm.gnorm_scores(model, texts), gnorm.gnorm_scores(model, SCORING))
        close(gnorm.attention_entropy(model, texts), gnorm.attention_entropy(model, SCORING))


def test_a_stream_is_read_window_by_window_and_never_held():
    model, source = tiny_model("bert"), Again(SCORING)
    prepared = gnorm.prepare(source, model)
    windows = [(batch, text, len(found)) for batch, text, found in prepared.batches.windows()]
    assert windows == [(0, 0, 2), (2, 10, 2), (4, 20, 1)]
    assert prepared.streamed
    assert layer_input_caches(model, prepared) == []
    assert torch.equal(torch.cat([micro.index for micro in prepared]).sort().values, torch.arange(23))
    assert [micro.number for micro in prepared] == list(range(len(prepared)))
    before = source.passes
    gnorm.gnorm_scores(model, prepared)
    assert source.passes == before + 1


def test_the_journal_of_a_stream_is_that_of_its_list(tmp_path):
    model, journal = tiny_model("bert"), tmp_path / "run.jsonl"
    expected = gnorm.prune(model, SCORING, EVALUATION, journal=journal, progress=False, steps=2)
    run = gnorm.prune(model, Again(SCORING), Again(EVALUATION), journal=journal, progress=False, steps=2)
    assert run.table.equals(expected.table)


def test_an_iterator_is_taken_once_as_a_list():
    model = tiny_model("bert")
    assert torch.equal(gnorm.gnorm_scores(model, iter(SCORING)), gnorm.gnorm_scores(model, SCORING))
    assert not gnorm.prepare((batch for batch in SCORING), model).streamed


class Exhausted:
    """It says that it can be iterated over again, and cannot."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def __iter__(self):
        return self.batches


class Shuffled:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        self.batches = self.batches[1:] + self.batches[:1]
        return iter(self.batches)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (Exhausted(SCORING), "a second pass gives 0 batches, the first gave 5"),
        (Shuffled(SCORING), "batch 0 differs from pass to pass"),
        (Again([]), "there are no batches"),
        (Again([*SCORING[:2], {"input_ids": torch.tensor([[500]])}]), "batch 2 has token ids from 500 to 500"),
    ],
)
def test_streams_that_are_none_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        gnorm.prepare(batches, tiny_model("bert"))


def test_a_data_set_needs_a_batch_size():
    rows = datasets.Dataset.from_dict({"input_ids": [[5, 6]], "label": [0]})
    with pytest.raises(TypeError, match=r"this Dataset holds texts, not batches: give gnorm.TextSet"):
        gnorm.prepare(rows, tiny_model("bert"))
    with pytest.raises(TypeError, match="list is no data set"):
        gnorm.TextSet([], 4)
    with pytest.raises(ValueError, match="batch_size=0 is out of range"):
        gnorm.TextSet(rows, 0)


class Words:
    """A tokenizer that makes a token of every word, its length."""

    pad_token_id, init_kwargs = 1, {}

    def __call__(self, texts, return_token_type_ids, truncation, max_length):
        ids = [[len(word) + 2 for word in text.split()][:max_length] for text in texts]
        return {"input_ids": ids, "attention_mask": [[1] * len(text) for text in ids]}

    def num_special_tokens_to_add(self, pair):
        return 3


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_are_tokenised_once_to_arrow(streaming, tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a bb ccc", "dd", "e ff g h"], "label": [0, 1, 2]})
    rows = rows.to_iterable_dataset() if streaming else rows
    texts = text_set(Words(), rows, tiny_model("roberta"), 2, 3, tmp_path / "texts.arrow")
    first, second = texts
    assert first["input_ids"].tolist() == [[3, 4, 5], [4, 1, 1]]
    assert first["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert first["labels"].tolist() == [0, 1]
    assert second["input_ids"].tolist() == [[3, 4, 3]]
    with pytest.raises(ValueError, match="has no texts"):
        text_set(Words(), rows.filter(lambda _: False), tiny_model("roberta"), 2, 3, tmp_path / "none.arrow")
    assert [path.name for path in tmp_path.iterdir()] == ["texts.arrow"]
