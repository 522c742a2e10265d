"""A model of a profile with its texts tokenised and batched."""

from __future__ import annotations

import copy
import dataclasses
import json
import timeit
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gnorm.criteria.rescaling import PAIRS, factors, rescale
from gnorm.engine.model.problems import NOT_COUNTED
from gnorm.engine.model.sizes import num_texts
from gnorm.engine.model.state import copy_of, default_device
from gnorm.engine.trials.examples import longest_text
from gnorm.heads import head_mask_of
from gnorm.journal import digest, hash_of_model
from gnorm.metrics import accuracy, measure
from gnorm.scoring import gnorm_scores
from gnorm.storage.loading import load_checked
from gnorm.storage.tokenizing import batched, encoded

from ..files.provenance import code_of
from . import checkpoints, hub, reading
from .hub import AssetError
from .profiles import ModelSpec, Sizes, as_trained, model_spec
from .training import AUTO, Recipe

SIZES = ("scoring", "evaluation", "entropy")  # what ``Task.batches`` holds


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
        return {name: self._tokenised(name) for name in SIZES}

    def texts(self, split: str, start: int = 0, stop: int | None = None, batch: int = 32) -> list[dict[str, Tensor]]:
        """The texts from ``start`` to ``stop`` of a split with their labels, or to its end, as batches."""
        return batched(self.tokenizer, self.splits[split][start:stop], batch, self.max_length, self.model)

    def num_texts(self, sizes: str) -> int:
        """The number of texts that the batches of "scoring", "evaluation" or "entropy" hold."""
        return num_texts(self.batches(sizes))

    @cached_property
    def max_length(self) -> int:
        """Tokens that a text is cut to."""
        return self.spec.max_length or longest_text(self.model, self.tokenizer)

    def _tokenised(self, name: str) -> list[dict[str, Tensor]]:
        sizes: Sizes = getattr(self.spec, name)
        if sizes.split not in self.splits:
            raise ValueError(f"{self.name}: there is no split {sizes.split!r}; there are {', '.join(self.splits)}.")
        split = self.splits[sizes.split]
        if name == "evaluation":  # texts that no class of the model fits are scored, not evaluated
            split = split.select([i for i, label in enumerate(split["label"]) if label != NOT_COUNTED])
        if sizes.overlong == "leave out":
            whole = encoded(self.tokenizer, split[:], self.model, truncation=False, verbose=False)
            lengths = [len(ids) for ids in whole["input_ids"]]
            split = split.select([i for i, length in enumerate(lengths) if length <= self.max_length])
        if sizes.draw:
            split = split.shuffle(seed=sizes.draw)
        count = len(split) if sizes.texts == "all" else sizes.texts
        if self.spec.dataset:  # a data set of the hub is what it is; how many there were is recorded
            count = min(count, len(split))
        if len(split) < count or not count:
            raise ValueError(f"{self.name}: split {sizes.split} has {len(split)} texts, {count} are asked for.")
        batches = batched(self.tokenizer, split[:count], sizes.batch, self.max_length, self.model)
        largest = max(int(batch["input_ids"].max()) for batch in batches)
        if largest >= self.model.config.vocab_size:
            raise AssetError(
                f"{self.name}: its tokenizer gives token {largest}, its model knows {self.model.config.vocab_size}."
            )
        return batches

    def variant(self, model: str) -> Task:
        """The same training as ``model`` names it, such as "roberta/seed2/batch8": scored or measured on other texts,
        or with its heads written otherwise. Raises as ``model_spec`` does."""
        if model == self.name:
            return self
        spec, classifier = model_spec(self.profile, model), self.model
        for pair in PAIRS:
            if deviation := getattr(spec.rescaling, pair) / 100:
                classifier = copy_of(self.model) if classifier is self.model else classifier
                rescale(classifier, pair, factors(classifier, deviation, spec.rescaling.drawn))
        other = dataclasses.replace(self, name=model, spec=spec, model=classifier)
        if all(getattr(spec, name) == getattr(self.spec, name) for name in SIZES):
            vars(other)["_batches"] = self._batches  # tokenised once
        return other

    @cached_property
    def accuracy(self) -> float:
        """Accuracy of the intact model on the evaluation texts."""
        return accuracy(self.model, self.batches("evaluation"))

    def measured(self) -> float:
        """The metric of the model's problem on the evaluation texts, as the model is now."""
        return measure(self.model, self.batches("evaluation"))

    @cached_property
    def hash(self) -> str:
        """Digest of everything but the method that finished runs depend on: sizes, weights, code."""
        weights = hash_of_model(self.model)  # trained again on another machine, a recipe gives others
        return digest(
            [
                dataclasses.asdict(self.spec),
                self.source,
                weights,
                str(self.model.device),
                code_of("gnorm.pruning", __name__),
            ]
        )


def load(profile: str, model: str, device: str | None = None, progress: bool = True) -> Task:
    """The task ``model`` of ``profile``: weights made by a recipe are trained, those of the hub fetched, each once.

    device: where the model goes; the accelerator if there is one, else the CPU, if None.

    Raises ``ValueError`` for an unknown profile or model, ``AssetError`` where something of the hub is missing or
    not what the profile says, ``RuntimeError`` where the model is less accurate on its evaluation texts than the
    profile demands or was damaged since it was trained, and ``OSError`` where trained models cannot be kept.
    """
    model_spec(profile, model)  # a variant that is not known is refused before anything is loaded
    trained = as_trained(model)
    spec = model_spec(profile, trained)
    classifier, tokenizer, splits, source = _from_hub(spec) if spec.checkpoint else _made(profile, trained, progress)
    task = Task(
        profile=profile,
        name=trained,
        spec=spec,
        model=classifier.to(device or default_device()).eval(),
        tokenizer=tokenizer,
        splits=splits,
        source=source,
    )
    if spec.min_accuracy and task.accuracy < spec.min_accuracy:
        raise RuntimeError(
            f"{model} of profile {profile} classifies {task.accuracy:.4f} of its {task.num_texts('evaluation')} "
            f"evaluation texts correctly, {spec.min_accuracy} are demanded before anything is pruned: change its "
            f"training in experiments/profiles/{profile}.toml."
        )
    return task.variant(model)


Origin = tuple[Any, Any, datasets.DatasetDict, dict[str, Any]]  # model, tokenizer, splits, and how they came about


def _made(profile: str, model: str, progress: bool) -> Origin:
    """A model trained by the profile's recipe on the texts of packages."""
    spec = model_spec(profile, model)
    folder = checkpoints.checkpoint("-".join([profile, *model.split("/")]), spec.recipe, progress=progress)
    try:
        for name in ("tokenizer.json", "training.json"):
            if not (folder / name).is_file():  # without it the library would make up an empty tokenizer
                raise FileNotFoundError(f"it has no {name}")
        auto = AUTO[Recipe.read(spec.recipe).task]
        classifier, _ = load_checked(folder, auto, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        source = _stable(json.loads((folder / "training.json").read_text("utf-8")))
        return classifier, tokenizer, checkpoints.load_splits(folder), source
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise RuntimeError(
            f"the trained model in {folder} is damaged ({str(error).rstrip('.')}): delete the folder, and it is "
            "trained again."
        ) from error


def _from_hub(spec: ModelSpec) -> Origin:
    """A checkpoint and a data set of the hub, with the columns text, text_pair for pairs, and label: the class by the
    checkpoint's numbering."""
    assert spec.checkpoint
    assert spec.dataset
    checkpoint, dataset = (hub.fetch(state) for state in hub.look_up([spec.checkpoint, spec.dataset]))
    classifier, tokenizer = reading.load_checkpoint(checkpoint)
    wanted = dict.fromkeys(sizes.split for sizes in (spec.scoring, spec.evaluation, spec.entropy))
    loaded = reading.load_splits(dataset, wanted)
    splits = datasets.DatasetDict(
        {split: reading.labelled(rows, spec.dataset, classifier.config, split) for split, rows in loaded.items()}
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


def _stable(training: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a training without its seconds."""
    return {name: value for name, value in training.items() if name != "seconds"}
