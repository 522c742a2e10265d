"""A profile file -> model, tokenizer, scoring and evaluation batches."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import timeit
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import dacite
import datasets
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from . import embedded, hub
from .batches import num_texts
from .heads import head_mask_of
from .journal import hash_of_model
from .scoring import accuracy, gnorm_scores
from .tokenizing import encoded

PROFILES = Path(__file__).with_name("profiles")
# What a trajectory depends on: a change here makes finished runs stale, a change to plots or tables does not.
ENGINE = (
    *("heads", "norms", "packing", "batches", "scoring", "criteria", "pruning", "journal", "surgery"),
    *("tasks", "embedded", "hub", "tokenizing"),
)
_ENGINE = [Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in ENGINE]  # as it was imported


@dataclass(frozen=True)
class Sizes:
    """The first ``texts`` texts of ``split``, or "all", in batches of ``batch``.

    overlong: texts with more tokens than the model takes are cut, or left out.
    """

    split: str
    texts: int | Literal["all"]
    batch: int = 32
    overlong: Literal["cut", "leave out"] = "cut"

    def __post_init__(self) -> None:
        _at_least_one(texts=1 if self.texts == "all" else self.texts, batch=self.batch)


@dataclass(frozen=True)
class RandomSizes:
    """How often random pruning is tried, and how many heads go in one step."""

    trials: int
    heads_per_step: int

    def __post_init__(self) -> None:
        _at_least_one(trials=self.trials, heads_per_step=self.heads_per_step)


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} = {number}, it must be at least 1")


@dataclass(frozen=True)
class Published:
    """What the paper reports of a model, and where.

    accuracy, parameters, mb: before and after its final solution, which prunes ``heads_pruned`` of ``heads``.
    area: under the accuracy curve, by method. curve: accuracy at 0, 25, 50, 75 and 100 % of the heads, by method.
    tolerance: how far the published intact accuracy may lie outside the interval of the measured one, as a fraction.
    """

    source: str
    heads_pruned: int
    heads: int
    accuracy: list[float]
    parameters: list[int]
    mb: list[float]
    area: dict[str, float]
    curve: dict[str, list[float]]
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance = {self.tolerance}, it must be at least 0 and below 1")


@dataclass(frozen=True)
class ModelSpec:
    """One model of a profile: where it and its texts come from, and the sizes it is scored and measured with.

    Either it is made from what the packages bring, by ``data`` and ``training``, or it comes from the hub, by
    ``checkpoint`` and ``dataset``. max_length: tokens a text is cut to; what the model takes, if None.
    """

    title: str
    budget: float  # accuracy that a final solution may lose, as a fraction
    scoring: Sizes
    evaluation: Sizes
    entropy: Sizes
    random: RandomSizes
    max_length: int | None = None
    min_accuracy: float = 0.0  # on the evaluation texts; below it nothing is pruned
    data: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    checkpoint: hub.Checkpoint | None = None
    dataset: hub.DataSet | None = None
    published: Published | None = None

    def __post_init__(self) -> None:
        made = None not in (self.data, self.training, self.max_length)
        fetched = None not in (self.checkpoint, self.dataset)
        if made == fetched or (self.data is None) == (self.checkpoint is None):
            raise ValueError(f"{self.title} needs data, training and max_length, or else checkpoint and dataset")

    @property
    def recipe(self) -> dict[str, Any]:
        return {"data": self.data, "max_length": self.max_length, **(self.training or {})}

    @property
    def assets(self) -> list[hub.Asset]:
        """What has to come from the hub."""
        return [asset for asset in (self.checkpoint, self.dataset) if asset is not None]

    @property
    def published_rows(self) -> dict[str, int]:
        """How many rows the splits had that the paper used."""
        return self.dataset.rows if self.dataset else {}

    @property
    def data_name(self) -> str:
        """The data source or repository."""
        return self.dataset.repo if self.dataset else str((self.data or {})["source"])

    @property
    def about_data(self) -> dict[str, Any]:
        """The data source, as results tell of it."""
        return dataclasses.asdict(self.dataset) if self.dataset else self.data or {}


@dataclass(frozen=True)
class Profile:
    """A profile file: which models, which data, which sizes.

    protocol: "held out", the rule here, scores and measures on different splits; "paper" does what the paper did, be
    it on the same split (docs/protocol.md). inspected: data sets that are looked at and not used.
    """

    description: str
    models: dict[str, ModelSpec]
    protocol: Literal["held out", "paper"] = "held out"
    inspected: list[hub.DataSet] = field(default_factory=list)
    name: str = field(default="")

    def __post_init__(self) -> None:
        for name, spec in self.models.items():
            if self.protocol == "held out" and spec.scoring.split == spec.evaluation.split:
                raise ValueError(f"{name} is scored and measured on the split {spec.scoring.split!r}: name another")

    def assets(self, models: Sequence[str]) -> list[hub.Asset]:
        """What ``models`` need of the hub, each once."""
        needed = [asset for model in models for asset in self.models[model].assets]
        return [asset for i, asset in enumerate(needed) if asset not in needed[:i]]


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def read_profile(name: str) -> Profile:
    """The profile called ``name``.

    Raises ``ValueError`` where there is none of that name, or where the file is not TOML, has unknown or missing keys
    or values of the wrong type or out of range.
    """
    if name not in profile_names():
        raise ValueError(f"profile {name!r} is not known; choose one of {', '.join(profile_names())}.")
    path = PROFILES / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        return dacite.from_dict(Profile, {**table, "name": name}, dacite.Config(strict=True))
    except (ValueError, dacite.DaciteError) as error:  # what is not TOML or not UTF-8 is a ValueError
        raise ValueError(f"{path.name} cannot be read: {error}.") from None


@dataclass(frozen=True)
class Task:
    """A model ready to be pruned, with its texts tokenised and batched."""

    profile: str
    name: str
    spec: ModelSpec
    model: Any
    tokenizer: Any
    splits: datasets.DatasetDict
    source: dict[str, Any]  # where the weights come from and how they were made

    def batches(self, sizes: str) -> list[dict[str, Tensor]]:
        """The batches of "scoring", "evaluation" or "entropy", in data-set order, each padded to its longest text."""
        return self._batches[sizes]

    @cached_property
    def _batches(self) -> dict[str, list[dict[str, Tensor]]]:
        return {name: self._tokenised(name) for name in ("scoring", "evaluation", "entropy")}

    def num_texts(self, sizes: str) -> int:
        """How many texts the batches of "scoring", "evaluation" or "entropy" hold."""
        return num_texts(self.batches(sizes))

    @cached_property
    def max_length(self) -> int:
        """Tokens that a text is cut to."""
        return self.spec.max_length or hub.max_length(self.model, self.tokenizer)

    def _tokenised(self, name: str) -> list[dict[str, Tensor]]:
        sizes: Sizes = getattr(self.spec, name)
        if sizes.split not in self.splits:
            raise ValueError(f"{self.name}: there is no split {sizes.split!r}; there are {', '.join(self.splits)}.")
        split = self.splits[sizes.split]
        if name == "evaluation":  # texts that no class of the model fits are scored, not evaluated
            split = split.select([i for i, label in enumerate(split["label"]) if label != hub.NO_CLASS])
        if sizes.overlong == "leave out":
            whole = encoded(self.tokenizer, split[:], self.model, truncation=False, verbose=False)
            lengths = [len(ids) for ids in whole["input_ids"]]
            split = split.select([i for i, length in enumerate(lengths) if length <= self.max_length])
        count = len(split) if sizes.texts == "all" else sizes.texts
        if self.spec.dataset:  # a data set of the hub is what it is; how many there were is recorded
            count = min(count, len(split))
        if len(split) < count or not count:
            raise ValueError(f"{self.name}: split {sizes.split} has {len(split)} texts, {count} are asked for.")
        batches = batched(self.tokenizer, split[:count], sizes.batch, self.max_length, self.model)
        largest = max(int(batch["input_ids"].max()) for batch in batches)
        if largest >= self.model.config.vocab_size:
            raise hub.AssetError(
                f"{self.name}: its tokenizer gives token {largest}, its model knows {self.model.config.vocab_size}."
            )
        return batches

    @cached_property
    def accuracy(self) -> float:
        """Accuracy of the intact model on the evaluation texts."""
        return accuracy(self.model, self.batches("evaluation"))

    @cached_property
    def hash(self) -> str:
        """What finished runs of this task depend on, beside the method: its sizes, its weights, the engine."""
        engine = [Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in ENGINE]
        weights = hash_of_model(self.model)  # trained again on another machine, a recipe gives others
        return digest([dataclasses.asdict(self.spec), self.source, weights, str(self.model.device), engine])


def batched(tokenizer: Any, rows: Mapping[str, Any], size: int, max_length: int, model: Any) -> list[dict[str, Tensor]]:
    """Columns text, text_pair for pairs, and label, lists all, in consecutive batches of ``size``, each padded to its
    longest text, as ``model`` reads them; texts are cut to ``max_length`` tokens.

    Raises ``ValueError`` as ``encoded`` does."""
    batches = []
    cut = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    for begin in range(0, len(rows["label"]), size):
        some = {name: column[begin : begin + size] for name, column in rows.items()}
        tensors = encoded(tokenizer, some, model, **cut)
        batches.append({**tensors, "labels": torch.tensor(some["label"])})
    return batches


def digest(content: Any) -> str:
    """SHA-256, 12 digits, of anything JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def load(profile: str, model: str, device: str | None = None, progress: bool = True) -> Task:
    """The task ``model`` of ``profile``; weights of packages are trained and those of the hub fetched where that was not
    done before.

    device: where the model goes; the accelerator if there is one, else the CPU, if None.

    Raises ``ValueError`` for an unknown profile or model, ``hub.AssetError`` where something of the hub is missing or
    not what the profile says, ``RuntimeError`` where the model is less accurate on its evaluation texts than the
    profile demands or was damaged since it was trained, and ``OSError`` where trained models cannot be kept.
    """
    spec = _spec(profile, model)
    classifier, tokenizer, splits, source = _from_hub(spec) if spec.checkpoint else _made(profile, model, progress)
    task = Task(
        profile=profile,
        name=model,
        spec=spec,
        model=classifier.to(device or default_device()).eval(),
        tokenizer=tokenizer,
        splits=splits,
        source=source,
    )
    if spec.min_accuracy and task.accuracy < spec.min_accuracy:
        raise RuntimeError(
            f"{model} of profile {profile} classifies {task.accuracy:.4f} of its {task.num_texts('evaluation')} evaluation "
            f"texts correctly, {spec.min_accuracy} are demanded before anything is pruned: change its training in "
            f"gnorm/profiles/{profile}.toml."
        )
    return task


Origin = tuple[Any, Any, datasets.DatasetDict, dict[str, Any]]  # model, tokenizer, splits, and how they came about


def _made(profile: str, model: str, progress: bool) -> Origin:
    """What the packages bring, trained by the profile's recipe."""
    spec = _spec(profile, model)
    folder = embedded.checkpoint(f"{profile}-{model}", spec.recipe, progress=progress)
    try:
        for name in ("config.json", "model.safetensors", "tokenizer.json", "training.json"):
            if not (folder / name).is_file():  # for want of one the library would make up an empty tokenizer
                raise FileNotFoundError(f"it has no {name}")
        with embedded.quiet_library():
            classifier, found = AutoModelForSequenceClassification.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True
            )
        if found["missing_keys"]:
            raise ValueError(f"it has no weights for {', '.join(sorted(found['missing_keys'])[:3])}")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        source = _stable(json.loads((folder / "training.json").read_text("utf-8")))
        return classifier, tokenizer, embedded.load_splits(folder), source
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RuntimeError(
            f"the trained model in {folder} is damaged ({str(error).rstrip('.')}): delete the folder, and it is trained "
            "anew."
        ) from error


def _from_hub(spec: ModelSpec) -> Origin:
    """A checkpoint and a data set of the hub, with the columns text, text_pair for pairs, and label: the class by the
    checkpoint's numbering."""
    assert spec.checkpoint
    assert spec.dataset
    checkpoint, dataset = (hub.fetch(found) for found in hub.look_up([spec.checkpoint, spec.dataset]))
    classifier, tokenizer = hub.load_checkpoint(checkpoint)
    wanted = dict.fromkeys(sizes.split for sizes in (spec.scoring, spec.evaluation, spec.entropy))
    loaded = hub.load_splits(dataset, wanted)
    splits = datasets.DatasetDict(
        {split: hub.labelled(rows, spec.dataset, classifier.config, split) for split, rows in loaded.items()}
    )
    source = {"checkpoint": checkpoint.record(), "dataset": dataset.record()}
    source["dataset"]["rows"] = {split: len(rows) for split, rows in splits.items()}
    return classifier, tokenizer, splits, source


ASSUMED_TOKENS = 40  # of a text, for an estimate made before there is any


def estimate(spec: ModelSpec, config: Any, device: str) -> float:
    """Seconds that the five methods take on a checkpoint with this configuration.

    From a forward and a backward pass of its first layer, random weights, on texts of ``ASSUMED_TOKENS`` tokens: an
    upper bound for those, since heads that are gone save time.
    """
    with torch.device("meta"):
        heads = head_mask_of(AutoModelForSequenceClassification.from_config(config)).numel()
    layer = copy.deepcopy(config)
    layer.num_hidden_layers, layer.vocab_size = 1, min(config.vocab_size, 1000)
    model = AutoModelForSequenceClassification.from_config(layer).to(device).eval()
    tokens = min(ASSUMED_TOKENS, config.max_position_embeddings // 2)
    ids = torch.randint(5, layer.vocab_size, (spec.scoring.batch, tokens), generator=torch.Generator().manual_seed(0))
    batches = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(len(ids), dtype=torch.long)}
    ]
    step, forward = (
        min(timeit.repeat(partial(measured, model, batches), number=1, repeat=3)) * config.num_hidden_layers / len(ids)
        for measured in (gnorm_scores, accuracy)
    )
    rows = {
        name: spec.published_rows.get(sizes.split, 0) if sizes.texts == "all" else sizes.texts
        for name, sizes in (("scoring", spec.scoring), ("evaluation", spec.evaluation), ("entropy", spec.entropy))
    }
    evaluation = 0 if spec.scoring == spec.evaluation else rows["evaluation"] * forward  # read off the scoring pass
    greedy = heads * (rows["scoring"] * step + evaluation)
    once = rows["entropy"] * forward + heads * rows["evaluation"] * forward
    random = spec.random.trials * -(-heads // spec.random.heads_per_step) * rows["evaluation"] * forward
    return 2 * greedy + 2 * once + random


def _spec(profile: str, model: str) -> ModelSpec:
    models = read_profile(profile).models
    if model not in models:
        raise ValueError(f"profile {profile} has no model {model!r}; it has {', '.join(models)}.")
    return models[model]


def _stable(training: Mapping[str, Any]) -> dict[str, Any]:
    """How the weights were made, without how long it took."""
    return {name: value for name, value in training.items() if name != "seconds"}


def default_device() -> str:
    """$GNORM_DEVICE, else cuda, mps or cpu: the first there is."""
    if device := os.environ.get("GNORM_DEVICE"):
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def check_models(profile: str, models: Sequence[str]) -> None:
    """Raise ``ValueError`` where one of ``models`` is not in the profile."""
    for model in models:
        _spec(profile, model)
