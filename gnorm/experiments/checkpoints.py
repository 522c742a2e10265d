"""Trained models, kept on disk: a recipe is trained once."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from filelock import FileLock

from ..storage.checkpoints import quiet_library
from .corpora import load_data
from .training import Recipe, encode, loader_of, share_correct, train_classifier, untrained

RECIPE_VERSION = 4  # raise it when a change in this file changes what a recipe gives


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


def _make(name: str, recipe: Recipe, folder: Path, progress: bool) -> dict[str, Any]:
    """Trains by the recipe, saves model and tokenizer in `folder`, and returns what `training.json` tells."""
    started = time.perf_counter()
    splits = load_data(recipe.data)
    train = splits["train"].shuffle(seed=recipe.seed)
    train = train.select(range(min(len(train), recipe.train_texts or len(train))))
    # On the CPU, so that a checkpoint is the same beside any accelerator.
    with quiet_library(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, tokenizer = untrained(recipe, train)
        train_classifier(name, recipe, model, encode(train, tokenizer, recipe.max_length, model), tokenizer, progress)
        held_out = encode(splits["test"], tokenizer, recipe.max_length, model)
        held_out.sort(key=lambda row: len(row["input_ids"]))
        accuracy = share_correct(model, loader_of(held_out, tokenizer, 64))
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
