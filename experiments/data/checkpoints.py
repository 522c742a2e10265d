"""Trained models on disk: each recipe is trained once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import torch

from gnorm.journal import digest
from gnorm.metrics import find_metric, measure
from gnorm.storage.loading import quiet_library
from gnorm.storage.tokenizing import batched

from ..files.cache import cached_folder
from .corpora import load_data
from .training import Recipe, train, untrained

RECIPE_VERSION = 6  # to be raised when a change of the code changes the checkpoint that a recipe gives


def checkpoint(name: str, recipe: Mapping[str, Any], progress: bool = True) -> Path:
    """The folder of the checkpoint that ``recipe`` makes; it is trained now unless an earlier call trained it.

    The folder lies in $GNORM_CACHE (else ~/.cache/gnorm). Its name is ``name`` and a digest of the recipe and of the
    packages' versions, so a changed recipe is trained again. It holds the model, the tokenizer, the texts
    (``load_splits``) and training.json: accuracy (a fraction) or perplexity on the test split, texts, seconds, seed,
    device, versions, recipe. The folder appears whole or not at all, and two processes never train the same one.

    Raises ``ValueError`` for a recipe that cannot be read, ``FileNotFoundError`` for a package that is not installed,
    and ``OSError`` where the folder cannot be written or the pieces of ``start`` are damaged.
    """
    plan = Recipe.read(recipe)
    identity = {
        "recipe": plan.identity(),
        "versions": plan.versions(),
        "recipe_version": RECIPE_VERSION,
    }

    def make(folder: Path) -> None:
        record = _make(name, plan, folder, progress)
        (folder / "training.json").write_text(json.dumps(record | identity, indent=2) + "\n")

    return cached_folder(f"{name}-{digest(identity)}", make)


def _make(name: str, recipe: Recipe, folder: Path, progress: bool) -> dict[str, Any]:
    """Train by the recipe, save model, tokenizer and texts in ``folder``, and return the record for training.json."""
    started = time.perf_counter()
    splits = load_data(recipe.data)
    texts = splits["train"].shuffle(seed=recipe.seed)
    texts = texts.select(range(min(len(texts), recipe.train_texts or len(texts))))
    # On the CPU, so that a checkpoint does not depend on the accelerator.
    with quiet_library(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, tokenizer = untrained(recipe, texts)
        train(name, recipe, model, tokenizer, texts, progress)
        held_out = batched(tokenizer, splits["test"][:], 64, recipe.max_length, model)
        metric = find_metric(None, model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        splits.save_to_disk(str(folder / "data"))
    seconds = round(time.perf_counter() - started, 1)
    return {
        metric.name: measure(model, held_out, metric),
        "n": len(splits["test"]),
        "train_texts": len(texts),
        "seconds": seconds,
        "seed": recipe.seed,
        "device": str(model.device),
    }


def load_splits(folder: Path) -> datasets.DatasetDict:
    """The splits that the checkpoint in ``folder`` was trained and tested on, as they were saved beside it."""
    return cast(datasets.DatasetDict, datasets.load_from_disk(str(folder / "data")))
