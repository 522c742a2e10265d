"""Profile files: which models, which data, which sizes; TOML, checked when read."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import dacite

from ..files.paths import PROFILES
from .hub import Asset, Checkpoint, DataSet


@dataclass(frozen=True)
class Sizes:
    """The first ``texts`` texts of ``split``, or "all", in batches of ``batch``.

    overlong: whether texts with more tokens than the model takes are cut or left out. draw: 0 takes the texts in the
    order of the data set; another number takes them in an order of its own.
    """

    split: str
    texts: int | Literal["all"]
    batch: int = 32
    overlong: Literal["cut", "leave out"] = "cut"
    draw: int = 0

    def __post_init__(self) -> None:
        _at_least_one(texts=1 if self.texts == "all" else self.texts, batch=self.batch)
        if self.draw < 0:
            raise ValueError(f"draw = {self.draw}, it must be at least 0")


@dataclass(frozen=True)
class RandomSizes:
    """Trials of random pruning, and heads removed in a step."""

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
    """The results that the paper reports for a model.

    source: the tables of the paper. accuracy (fractions), parameters, mb (2**20 bytes): before and after its final
    solution, which prunes ``heads_pruned`` of ``heads``. area: under the accuracy curve, by method. curve: accuracy at
    0, 25, 50, 75 and 100 % of the heads pruned, by method. tolerance: how far, as a fraction, the published intact
    accuracy may lie outside the interval of the measured one.
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
class Rescaling:
    """How far the heads of a trained model are written otherwise, and do the same (``gnorm.criteria.rescaling``).

    values, keys: the standard deviation, in hundredths, of the logarithm of the factor between value and output
    projection, and between query and key. drawn: which draw of the factors.
    """

    values: int = 0
    keys: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """A model of a profile: where it and its texts come from, and with how many texts it is scored and measured.

    ``data`` and ``training`` describe a model that is trained on the data of installed packages; ``checkpoint`` and
    ``dataset`` describe one of the hub. max_length: tokens a text is cut to; if None, what the model takes. seeds: the
    training seeds that a study repeats its runs with; none for the seed of ``training`` alone. leave_out: methods that
    a study leaves out, since they take too long on this model. extra: asked for by name alone, ``--models``. rescaling:
    of a variant, how its heads are written. layers_of: of a variant, whose layers heads go from (``LAYERS_OF``); "" for
    those that the method takes itself.
    """

    title: str
    budget: float  # of the metric, that a final solution may lose: of accuracy, as a fraction
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
    seeds: list[int] = field(default_factory=list)
    leave_out: list[str] = field(default_factory=list)
    extra: bool = False
    rescaling: Rescaling = Rescaling()
    layers_of: str = ""

    def __post_init__(self) -> None:
        made = None not in (self.data, self.training, self.max_length)
        fetched = None not in (self.checkpoint, self.dataset)
        if made == fetched or (self.data is None) == (self.checkpoint is None):
            raise ValueError(f"{self.title} needs data, training and max_length, or else checkpoint and dataset")

    @property
    def recipe(self) -> dict[str, Any]:
        """The table that ``training.Recipe`` reads."""
        return {"data": self.data, "max_length": self.max_length, **(self.training or {})}

    @property
    def task(self) -> str:
        """The name of the model's problem."""
        return str(self.recipe.get("task", "single_label_classification"))

    @property
    def assets(self) -> list[Asset]:
        """The checkpoint and the data set of the hub that the model needs; none for a model that is trained here."""
        return [asset for asset in (self.checkpoint, self.dataset) if asset is not None]

    @property
    def published_rows(self) -> dict[str, int]:
        """The number of rows of each split that the paper used; empty where the profile does not say."""
        return self.dataset.rows if self.dataset else {}

    @property
    def data_name(self) -> str:
        """The data source or repository."""
        return self.dataset.repo if self.dataset else str((self.data or {})["source"])

    @property
    def about_data(self) -> dict[str, Any]:
        """The data source, as it is recorded beside results."""
        return dataclasses.asdict(self.dataset) if self.dataset else self.data or {}


@dataclass(frozen=True)
class StudyGrid:
    """The grid of a study beside its methods.

    texts, batches: numbers of scoring texts, and batch sizes, that Greedy-Gnorm is repeated with. draws: how often for
    each number of texts but the largest. varied: the models that are pruned with each; on the others, scores alone are
    compared. tuned: the models that are trained further after pruning; tuned_seeds: how many repetitions of each.
    rescaled: the models that are pruned with their heads written otherwise; rescaled_seeds: how many repetitions of
    each; deviations: of the logarithm of the factors, in hundredths; rescaled_draws: how often factors are drawn.
    layered: the models that are pruned with the layers of one method and the heads of another. pretrained: the models
    that the claims are asked of where a model was pretrained.
    """

    texts: list[int] = field(default_factory=lambda: [16, 64, 128])
    batches: list[int] = field(default_factory=lambda: [8, 32])
    draws: int = 1
    varied: list[str] = field(default_factory=list)
    tuned: list[str] = field(default_factory=lambda: ["bert", "albert", "roberta", "xlm-roberta"])
    tuned_seeds: int = 1
    rescaled: list[str] = field(default_factory=list)
    rescaled_seeds: int = 1
    deviations: list[int] = field(default_factory=lambda: [50, 100, 200])
    rescaled_draws: int = 1
    layered: list[str] = field(default_factory=list)
    pretrained: list[str] = field(default_factory=lambda: ["bert"])


@dataclass(frozen=True)
class Profile:
    """A profile file: which models, which data, which sizes.

    protocol: "held out", the default, demands different splits for scoring and measuring; "paper" follows the paper,
    which uses the same split (docs/protocol.md). inspected: data sets that are shown and not used. notebooks: those to
    run, where they are not the paper's. study: how far a study goes. jobs: how many workers make trajectories where
    the command line does not say; as many as the machine has room for, if None. extends: the profile whose file this
    one adds to, table by table.
    """

    description: str
    models: dict[str, ModelSpec]
    protocol: Literal["held out", "paper"] = "held out"
    inspected: list[DataSet] = field(default_factory=list)
    notebooks: list[str] = field(default_factory=list)
    study: StudyGrid = field(default_factory=StudyGrid)
    jobs: int | None = None
    extends: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        _at_least_one(jobs=self.jobs or 1)
        for name, spec in self.models.items():
            if self.protocol == "held out" and spec.scoring.split == spec.evaluation.split:
                raise ValueError(f"{name} is scored and measured on the split {spec.scoring.split!r}: name another")

    @property
    def usual_models(self) -> list[str]:
        """The models that are taken where none is named: all but the extra ones."""
        return [name for name, spec in self.models.items() if not spec.extra]

    def assets(self, models: Sequence[str]) -> list[Asset]:
        """The checkpoints and data sets of the hub that ``models`` need, each once."""
        needed = [asset for model in models for asset in self.models[model].assets]
        return [asset for i, asset in enumerate(needed) if asset not in needed[:i]]


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def read_profile(name: str) -> Profile:
    """The profile called ``name``.

    Raises ``ValueError`` where there is none of that name, and where its file is not TOML, has unknown or missing keys,
    or has values of the wrong type or out of range.
    """
    if name not in profile_names():
        raise ValueError(f"profile {name!r} is not known; choose one of {', '.join(profile_names())}.")
    path = PROFILES / f"{name}.toml"
    try:
        text = path.read_text("utf-8")
        base = _base(text)
        return _parsed(name, text, (PROFILES / f"{base}.toml").read_text("utf-8") if base else "")
    except (ValueError, OSError, dacite.DaciteError) as error:  # ValueError: not TOML or not UTF-8
        raise ValueError(f"{path.name} cannot be read: {error}.") from None


@cache  # a study asks for its profile thousands of times
def _base(text: str) -> str:
    """The profile that a profile's file extends; "" for none."""
    return str(tomllib.loads(text).get("extends", ""))


@cache
def _parsed(name: str, text: str, below: str) -> Profile:
    """The profile of a file's text, and of the text of the file that it extends."""
    table = _merged(tomllib.loads(below), tomllib.loads(text))
    return dacite.from_dict(Profile, {**table, "name": name}, dacite.Config(strict=True))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below`` with what ``above`` says instead, table by table."""
    both = {name: _merged(below[name], above[name]) for name in above if _is_table(below.get(name), above[name])}
    return {**below, **above, **both}


def _is_table(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


# Whose layers heads are taken from, step by step: those of a method's order, or one layer after the other.
LAYERS_OF = ("greedy_gnorm", "gnorm_once", "head_importance", "in turn")

# What a part of a model's name changes, such as "texts64" in "roberta/seed0/texts64": the specification and the number
# -> the changed specification.
VARIANTS: dict[str, Callable[[ModelSpec, int], ModelSpec]] = {
    "seed": lambda spec, n: replace(spec, training={**(spec.training or {}), "seed": n}),
    "texts": lambda spec, n: replace(spec, scoring=replace(spec.scoring, texts=n)),
    "batch": lambda spec, n: replace(spec, scoring=replace(spec.scoring, batch=n)),
    "draw": lambda spec, n: replace(spec, scoring=replace(spec.scoring, draw=n)),
    "values": lambda spec, n: replace(spec, rescaling=replace(spec.rescaling, values=n)),
    "keys": lambda spec, n: replace(spec, rescaling=replace(spec.rescaling, keys=n)),
    "drawn": lambda spec, n: replace(spec, rescaling=replace(spec.rescaling, drawn=n)),
    "layers": lambda spec, n: replace(spec, layers_of=LAYERS_OF[n]),
}


def model_spec(profile: str, model: str) -> ModelSpec:
    """A model of a profile, or a variant of it: "roberta/seed2/batch8" is trained with seed 2 and scored in batches of
    8. ``ValueError`` for an unknown profile, model or variant, and for a seed that the profile does not name."""
    models = read_profile(profile).models
    name, *variants = model.split("/")
    if name not in models:
        letter = "; give a list of names, not one string" if len(name) == 1 else ""
        raise ValueError(f"profile {profile} has no model {name!r}; it has {', '.join(models)}{letter}.")
    spec, named = models[name], [variant.rstrip("0123456789") for variant in variants]
    for variant, what in zip(variants, named, strict=True):
        number = variant.removeprefix(what)
        known = what in VARIANTS and number != "" and named.count(what) == 1
        if (
            not known
            or (what == "seed" and int(number) not in spec.seeds)
            or (what == "layers" and int(number) >= len(LAYERS_OF))
        ):
            seeds = ", ".join(map(str, spec.seeds)) or "none"
            raise ValueError(
                f"{model}: {variant!r} is not a variant of {name}; there are {', '.join(VARIANTS)} with a number "
                f"behind, each once, and the seeds {seeds}."
            )
        spec = VARIANTS[what](spec, int(number))
    return spec


def as_trained(model: str) -> str:
    """The model whose weights a variant has: "roberta/seed2" of "roberta/seed2/batch8"."""
    name, *variants = model.split("/")
    return "/".join([name, *(variant for variant in variants if variant.startswith("seed"))])


def repetitions(profile: str, model: str) -> list[str]:
    """The names of a model's repetitions, one for each training seed: "albert/seed0"; its own, where there are no
    seeds. ``ValueError`` for an unknown profile or model."""
    return [f"{model}/seed{seed}" for seed in model_spec(profile, model).seeds] or [model]


def check_models(profile: str, models: Sequence[str]) -> None:
    """``ValueError`` for an unknown profile and for a model that the profile does not have."""
    for model in models:
        model_spec(profile, model)


def pretrained(profile: str, models: Sequence[str]) -> list[str]:
    """Those of ``models`` that the profile's study names as pretrained, and the extra ones that it names; all that it
    names, where that leaves none. ``ValueError`` for an unknown profile or model."""
    check_models(profile, models)
    known = read_profile(profile)
    named = known.study.pretrained
    return [name for name in named if name in models or known.models[name].extra] or named


def models_for(task: str, profile: str, models: Sequence[str]) -> list[str]:
    """Those of ``models`` that do ``task``, or else all of the profile that do, the extra ones too.

    Raises ``ValueError`` where there are none, and for an unknown profile or model.
    """
    check_models(profile, models)
    doing = [name for name, spec in read_profile(profile).models.items() if spec.task == task]
    if not doing:
        raise ValueError(f"profile {profile} has no model for {task}: choose another profile.")
    return [name for name in models if name in doing] or doing
