"""Batches that are read anew for every pass give what a list of them gives."""

import datasets
import pytest
import torch
from precision import close, close_logs
from tiny import ragged_batches, tiny_model

import gnorm
from gnorm.engine.forwarding import layer_input_caches
from gnorm.engine.texts import streams


class Again:
    """Re-iterable batches that are not a sequence, and have no length."""

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
    assert layer_input_caches(prepared) == []
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
        (Shuffled(SCORING), "batch 0 differs from pass to pass: give batches that nothing shuffles, masks or draws"),
        (Again([]), "there are no batches"),
        (Again([*SCORING[:2], {"input_ids": torch.tensor([[500]])}]), "batch 2 has token ids from 500 to 500"),
    ],
)
def test_streams_that_are_none_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        gnorm.prepare(batches, tiny_model("bert"))


def test_a_stream_with_values_that_are_no_numbers_is_the_same_in_each_pass():
    embedded = {"inputs_embeds": torch.full((2, 3, 32), torch.nan), "attention_mask": torch.ones(2, 3).long()}
    with pytest.raises(ValueError, match="logits of .* are not finite"):
        gnorm.gnorm_scores(tiny_model("bert"), Again([embedded]))


def test_a_data_set_needs_a_batch_size():
    rows = datasets.Dataset.from_dict({"input_ids": [[5, 6]], "label": [0]})
    with pytest.raises(TypeError, match=r"this Dataset holds texts, not batches: give gnorm.TextSet"):
        gnorm.prepare(rows, tiny_model("bert"))
    with pytest.raises(TypeError, match="list is not a data set"):
        gnorm.TextSet([], 4)
    with pytest.raises(ValueError, match="batch_size=0 is out of range"):
        gnorm.TextSet(rows, 0)


ROWS = {"input_ids": [[5, 6], [7]], "decoder_input_ids": [[5], [6, 7]]}
MASKS = {"attention_mask": [[1, 1], [1, 0]], "decoder_attention_mask": [[1, 0], [1, 1]]}
IMAGE = [[[0.5, 0.25]], [[1.0, 2.0]]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ROWS, {"input_ids": [[5, 6], [7, 9]], "decoder_input_ids": [[5, 9], [6, 7]], **MASKS}),
        ({"labels": [[1, 2], [2]]}, {"labels": [[1, 2], [2, -100]]}),
        ({"label_ids": [0.5, 0.25], "label": ["a", "b"]}, {"labels": [0.5, 0.25]}),
        ({"labels": [[0.5, 0.0], [0.25, 1.0]]}, {"labels": [[0.5, 0.0], [0.25, 1.0]]}),
        (
            {"bbox": [[[1, 2]], [[3, 4], [5, 6]]], "tokens": [["a"], ["b"]]},
            {"bbox": [[[1, 2], [0, 0]], [[3, 4], [5, 6]]]},
        ),
        ({"pixel_values": [IMAGE, IMAGE], "label": [True, False]}, {"pixel_values": [IMAGE, IMAGE], "labels": [1, 0]}),
        (
            {"inputs_embeds": [[[0.5]], [[0.25], [0.5]]]},
            {"inputs_embeds": [[[0.5], [0.0]], [[0.25], [0.5]]], "attention_mask": [[1, 0], [1, 1]]},
        ),
        (
            {"input_ids": [[[5], [6, 7]]] * 2, "attention_mask": [[[1], [1, 1]]] * 2},
            {"input_ids": [[[5, 9], [6, 7]]] * 2},
        ),
    ],
)
def test_a_set_pads_each_column_by_what_is_not_counted(rows, expected):
    (batch,) = gnorm.TextSet(datasets.Dataset.from_dict(rows), 2, pad_token=9)
    assert {name: batch[name].tolist() for name in expected} == expected
    assert batch.keys() - {"attention_mask"} == expected.keys() - {"attention_mask"}
    assert all(t.dtype in (torch.int64, torch.float32) or name == "labels" for name, t in batch.items())


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "bool"])
def test_small_numbers_of_a_set_are_padded_too(kind):
    numbers = datasets.List(datasets.Value(kind))
    rows = datasets.Dataset.from_dict({"labels": [[1, 0], [1]]}, features=datasets.Features({"labels": numbers}))
    assert [batch["labels"].tolist() for batch in gnorm.TextSet(rows, 2)] == [[[1, 0], [1, -100]]]


def test_lists_and_arrays_of_a_fixed_size_are_read_as_lists_are():
    kinds = {
        "labels": datasets.List(datasets.Value("int32"), length=2),
        "pixel_values": datasets.Array2D((1, 2), "float32"),
    }
    rows = {"labels": [[1, 2], [3, 4]], "pixel_values": [[[0.5, 1.0]], [[2.0, 0.25]]]}
    (batch,) = gnorm.TextSet(datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)), 2)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == rows


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ({"label": [1, None]}, "the column label of the data set has an empty cell: fill it in"),
        ({"input_ids": [[5], None]}, "the column input_ids of the data set has an empty cell"),
        ({"label": [1, 2], "labels": [1, 2]}, "labels are in labels and in another column of the data set: remove one"),
        (
            {"labels": [[0.5], [0.5, 1.0]]},
            "labels of the data set differ in size within a batch: bring all to one size",
        ),
        ({"pixel_values": [IMAGE, IMAGE[:1]]}, "pixel_values of the data set differ in size within a batch"),
    ],
)
def test_a_set_that_leaves_open_what_a_text_has_is_refused(rows, complaint):
    with pytest.raises(ValueError, match=complaint):
        list(gnorm.TextSet(datasets.Dataset.from_dict(rows), 2))
