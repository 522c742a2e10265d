"""A profile file -> model, tokenizer, scoring and evaluation batches."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dacite
import datasets
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from . import embedded
from .scoring import accuracy

PROFILES = Path(__file__).with_name("profiles")
# What a trajectory depends on: a change here makes finished runs stale, a change to plots or tables does not.
ENGINE = (
    "heads",
    "norms",
    "packing",
    "batches",
    "scoring",
    "criteria",
    "pruning",
    "journal",
    "surgery",
    "tasks",
    "embedded",
)
_ENGINE = [Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in ENGINE]  # as it was imported


@dataclass(frozen=True)
class Sizes:
    """The first ``texts`` texts of ``split``, in batches of ``batch``."""

    split: str
    texts: int
    batch: int = 32


@dataclass(frozen=True)
class RandomSizes:
    """How often random pruning is tried, and how many heads go in one step."""

    trials: int
    heads_per_step: int


@dataclass(frozen=True)
class ModelSpec:
    """One model of a profile: where it and its texts come from, and the sizes it is scored and measured with."""

    title: str
    data: dict[str, Any]
    max_length: int
    min_accuracy: float  # on the evaluation texts; below it nothing is pruned
    budget: float  # accuracy that a final solution may lose, as a fraction
    scoring: Sizes
    evaluation: Sizes
    entropy: Sizes
    random: RandomSizes
    training: dict[str, Any]

    @property
    def recipe(self) -> dict[str, Any]:
        return {"data": self.data, "max_length": self.max_length, **self.training}


@dataclass(frozen=True)
class Profile:
    """A profile file: which models, which data, which sizes."""

    description: str
    models: dict[str, ModelSpec]
    name: str = field(default="")


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def read_profile(name: str) -> Profile:
    """The profile called ``name``.

    Raises ``ValueError`` where there is none of that name, or where the file is not TOML, has unknown or missing keys
    or values of the wrong type.
    """
    if name not in profile_names():
        raise ValueError(f"profile {name!r} is not known; choose one of {', '.join(profile_names())}.")
    path = PROFILES / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text("utf-8"))
        return dacite.from_dict(Profile, {**table, "name": name}, dacite.Config(strict=True))
    except (tomllib.TOMLDecodeError, dacite.DaciteError) as error:
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
        return {name: self._tokenised(getattr(self.spec, name)) for name in ("scoring", "evaluation", "entropy")}

    def _tokenised(self, sizes: Sizes) -> list[dict[str, Tensor]]:
        split = self.splits[sizes.split]
        if len(split) < sizes.texts:
            raise ValueError(f"{self.name}: split {sizes.split} has {len(split)} texts, {sizes.texts} are asked for.")
        columns = [name for name in ("text", "text_pair") if name in split.features]
        batches = []
        for begin in range(0, sizes.texts, sizes.batch):
            rows = split[begin : min(begin + sizes.batch, sizes.texts)]
            encoded = self.tokenizer(
                *(rows[name] for name in columns),
                padding=True,
                truncation=True,
                max_length=self.spec.max_length,
                return_tensors="pt",
            )
            batches.append({**encoded, "labels": torch.tensor(rows["label"])})
        return batches

    @cached_property
    def accuracy(self) -> float:
        """Accuracy of the intact model on the evaluation texts."""
        return accuracy(self.model, self.batches("evaluation"))

    @cached_property
    def hash(self) -> str:
        """What finished runs of this task depend on, beside the method: its sizes, its weights' recipe, the engine."""
        engine = [Path(__file__).with_name(f"{name}.py").read_text("utf-8") for name in ENGINE]
        return digest(
            [dataclasses.asdict(self.spec), self.source, str(self.model.device), str(self.model.dtype), engine]
        )


def digest(content: Any) -> str:
    """SHA-256, 12 digits, of anything JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]


def load(profile: str, model: str, device: str | None = None, progress: bool = True) -> Task:
    """The task ``model`` of ``profile``, its weights trained first where that was not done before.

    device: where the model goes; the accelerator if there is one, else the CPU, if None.

    Raises ``ValueError`` for an unknown profile or model, and ``RuntimeError`` where the model is less accurate on its
    evaluation texts than the profile demands.
    """
    spec = _spec(profile, model)
    folder = embedded.checkpoint(f"{profile}-{model}", spec.recipe, progress=progress)
    with embedded.quiet_library():
        classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    task = Task(
        profile=profile,
        name=model,
        spec=spec,
        model=classifier.to(device or default_device()).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        splits=embedded.load_splits(folder),
        source=_stable(json.loads((folder / "training.json").read_text("utf-8"))),
    )
    if task.accuracy < spec.min_accuracy:
        raise RuntimeError(
            f"{model} of profile {profile} classifies {task.accuracy:.4f} of its {spec.evaluation.texts} evaluation texts "
            f"correctly, {spec.min_accuracy} are demanded before anything is pruned: change its training in "
            f"gnorm/profiles/{profile}.toml."
        )
    return task


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
