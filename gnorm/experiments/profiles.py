"""Profile files: which models, which data, which sizes."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import dacite

from .assets import Asset, Checkpoint, DataSet
from .paths import PROFILES


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
    checkpoint: Checkpoint | None = None
    dataset: DataSet | None = None
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
    def assets(self) -> list[Asset]:
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
    inspected: list[DataSet] = field(default_factory=list)
    name: str = field(default="")

    def __post_init__(self) -> None:
        for name, spec in self.models.items():
            if self.protocol == "held out" and spec.scoring.split == spec.evaluation.split:
                raise ValueError(f"{name} is scored and measured on the split {spec.scoring.split!r}: name another")

    def assets(self, models: Sequence[str]) -> list[Asset]:
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


def model_spec(profile: str, model: str) -> ModelSpec:
    models = read_profile(profile).models
    if model not in models:
        raise ValueError(f"profile {profile} has no model {model!r}; it has {', '.join(models)}.")
    return models[model]


def check_models(profile: str, models: Sequence[str]) -> None:
    """Raise ``ValueError`` where one of ``models`` is not in the profile."""
    for model in models:
        model_spec(profile, model)
