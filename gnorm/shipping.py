"""A checkpoint and a CSV of texts in, a smaller model with its card out.

    import gnorm.shipping
    own = gnorm.shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing)
    gnorm.shipping.ship(own, run, "my-smaller-model", budget=0.01)
    model = gnorm.load_pruned("my-smaller-model")

The texts are shared out at random: heads are scored on some, the number of heads that go is chosen on others, and what
the card says of accuracy is measured on the rest, which nothing was chosen by.
"""

from __future__ import annotations

import copy
import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import jinja2
import numpy as np
import scipy.stats
import torch
from huggingface_hub import ModelCardData
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig

from . import results
from .batches import longest_text, num_texts, prepare
from .costs import cost
from .heads import head_mask_of, wrapped_in
from .hub import TOKENIZERS
from .pruning import Trajectory, find_method, whole
from .scoring import correct_texts
from .surgery import load_pruned, refuse_existing, remove_heads, save_pruned
from .tasks import batched, default_device
from .texts import Labels, class_names, in_short, labelled, name_of

FEWEST = 30  # texts, a third of them for each purpose: fewer say nothing


@dataclass(frozen=True)
class Own:
    """A user's model with its texts, shared out to what they are for; each a list of batches."""

    model: Any
    tokenizer: Any
    scoring: list[dict[str, Tensor]]
    choosing: list[dict[str, Tensor]]
    testing: list[dict[str, Tensor]]
    checkpoint: str
    data: str


def load(
    checkpoint: str | os.PathLike[str],
    texts: Any,
    scoring: int = 128,
    batch: int = 32,
    max_length: int | None = None,
    seed: int = 0,
    device: str | None = None,
    labels: Labels | None = None,
) -> Own:
    """A fine-tuned text classifier and its texts.

    checkpoint: a folder (or a name on the hub) with model and tokenizer; a pruned model may be pruned further.
    texts: the path of a CSV, JSON-lines or Parquet file with columns text and label, and text_pair where the model
    reads pairs; or such a table, a DataFrame or a ``datasets.Dataset``. Labels are class names as in the model's
    ``config.id2label``, or else class numbers. A text that comes twice is taken once. Rows are counted from 1.
    scoring: how many texts, drawn at random, heads are scored on, at most a third; the others are halved, to choose by
    and to test on. batch, max_length, seed: texts a batch, tokens a text (what the model takes, if None), the draw.
    device: the accelerator if there is one, else the CPU, if None. labels: "names" or "numbers", for a column that can
    be read both ways.

    Raises ``FileNotFoundError`` for a file or a checkpoint that is not there, and for a folder without a tokenizer;
    ``TypeError`` for what is no path and no table; ``ValueError`` for a checkpoint that has no classifier or is
    damaged, for numbers out of range, too few texts, and as ``texts.labelled`` and ``prepare`` do.
    """
    scoring, batch, seed = whole("scoring", scoring, 1), whole("batch", batch, 1), whole("seed", seed, 0)
    model, tokenizer = _checkpoint(checkpoint)
    if max_length is not None:
        max_length = whole("max_length", max_length, tokenizer.num_special_tokens_to_add() + 1)
    head_mask_of(model)  # refuses what cannot be pruned before anything is read
    frame = labelled(texts, model.config, str(checkpoint), labels)
    if len(frame) < FEWEST:
        raise ValueError(
            f"{name_of(texts)} has {len(frame)} different texts; give at least {FEWEST}, better some hundreds."
        )
    frame = frame.sample(frac=1, random_state=seed)
    first = min(scoring, len(frame) // 3)
    rest = first + (len(frame) - first) // 2
    tokens = max_length or min(filter(None, (tokenizer.model_max_length, longest_text(model))))
    scored, chosen, tested = (
        batched(tokenizer, {str(name): column.tolist() for name, column in part.items()}, batch, tokens, model)
        for part in (frame[:first], frame[first:rest], frame[rest:])
    )
    model = model.to(device or default_device()).eval()
    prepare([*scored, *chosen, *tested], model)  # refuses what the model does not take before anything long begins
    return Own(
        model=model,
        tokenizer=tokenizer,
        scoring=scored,
        choosing=chosen,
        testing=tested,
        checkpoint=Path(checkpoint).name,
        data=name_of(texts),
    )


def _checkpoint(checkpoint: str | os.PathLike[str]) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder or of a name on the hub."""
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(
            f"a checkpoint is a folder, not a {type(checkpoint).__name__}: save {wrapped_in(checkpoint) or 'the model'}"
            " and its tokenizer with save_pretrained, and give the folder."
        )
    folder = Path(checkpoint)
    if folder.is_file():
        raise ValueError(
            f"{checkpoint} is a file: give the folder that it lies in, with config.json and the tokenizer."
        )
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{checkpoint} holds an adapter, which is no model of its own: save what merge_and_unload() of the "
            "PeftModel returns, and the tokenizer, with save_pretrained, and give that folder."
        )
    embeds = (folder / "modules.json").is_file()  # a CrossEncoder has the file too, but a classifier with it
    no_classifier = (
        f"{checkpoint} holds a SentenceTransformer, which has no classifier: fine-tune an "
        "AutoModelForSequenceClassification from it first."
    )
    if embeds and not (folder / "config.json").is_file():
        raise ValueError(no_classifier)
    if folder.is_dir() and not any(file for name in TOKENIZERS for file in folder.glob(name)):
        # for want of one the library would make up an empty tokenizer
        raise FileNotFoundError(
            f"{checkpoint} has no tokenizer: save the one that the model was fine-tuned with there."
        )
    with _legible(checkpoint):
        written = PreTrainedConfig.get_config_dict(checkpoint)[0].get("id2label") or {}
    if not all(str(key).strip().isdecimal() for key in written):
        raise ValueError(
            f"id2label in config.json of {checkpoint} must give names to numbers, as in "
            '{"0": "negative", "1": "positive"}.'
        )
    with _legible(checkpoint):
        config, tokenizer = AutoConfig.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    class_names(config, str(checkpoint))  # refuses what is no classifier before its weights are read
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {checkpoint} has no padding token: set its pad_token and save it anew.")
    if getattr(config, "head_mask", None):
        return load_pruned(checkpoint), tokenizer
    with _legible(checkpoint):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            checkpoint, output_loading_info=True, ignore_mismatched_sizes=True
        )
    if found["mismatched_keys"]:
        name, stored, wanted = min(found["mismatched_keys"])
        raise ValueError(
            f"the weights in {checkpoint} contradict its config.json: {name} is {tuple(stored)}, by id2label and sizes "
            f"there it is {tuple(wanted)}."
        )
    if found["missing_keys"]:
        raise ValueError(no_classifier if embeds else _lacking(checkpoint, model.base_model_prefix, **found))
    return model, tokenizer


@contextmanager
def _legible(checkpoint: str | os.PathLike[str]) -> Iterator[None]:
    """What a library raises about a checkpoint, in a sentence."""
    try:
        yield
    except (SafetensorError, UnpicklingError) as error:
        reason = f" ({in_short(error)})" if isinstance(error, SafetensorError) else ""  # torch advises to unpickle all
        raise ValueError(f"the weights in {checkpoint} are damaged{reason}: save the model anew.") from None
    except Exception as error:  # noqa: BLE001 libraries raise anything for a broken file
        if not Path(checkpoint).is_dir():
            raise FileNotFoundError(
                f"{checkpoint} is no folder, and the hub gives no model of that name: give the folder that "
                "save_pretrained wrote."
            ) from None
        raise ValueError(
            f"{checkpoint} cannot be loaded ({in_short(error)}): give a folder that save_pretrained wrote, with "
            "config.json, model.safetensors and the tokenizer's files."
        ) from None


def _lacking(checkpoint: Any, base: str, missing_keys: set[str], unexpected_keys: set[str], **_: Any) -> str:
    """What to do where weights are missing: they may be there under longer names. base: where the encoder lies."""
    if prefixes := {
        long.removesuffix(name) for name in missing_keys for long in unexpected_keys if long.endswith(f".{name}")
    }:
        return (
            f"{checkpoint} has its weights under names that begin with {min(prefixes)!r}, as those of a wrapped model "
            "do: save the model inside the wrapper, or take the prefix off the names."
        )
    if head := [name for name in missing_keys if not name.startswith(f"{base}.")]:
        return f"{checkpoint} has no weights for {min(head)}: fine-tune it as a classifier first."
    return f"{checkpoint} has no weights for {min(missing_keys)}, which its config.json asks for: save the model anew."


def ship(own: Own, run: Trajectory, folder: str | os.PathLike[str], budget: float = 0.01) -> Path:
    """Remove as many heads as the budget allows, save the smaller model with its tokenizer and card; the folder.

    run: what ``prune`` made of ``own.model``, ``own.scoring`` and ``own.choosing``. budget: accuracy that may be lost
    on the texts to choose by (0.01 is a point). ``own.model`` stays as it was.

    Raises ``FileExistsError`` where the folder exists already, ``ValueError`` where the run is not of this model or has
    several trials, and for a budget below 0.
    """
    refuse_existing(folder)
    if not budget >= 0:
        raise ValueError(f"budget={budget} is out of range: it is the accuracy that may be lost, 0.01 for a point.")
    if run.info["trials"] > 1:
        raise ValueError(f"the run has {run.info['trials']} trials, whose mean is no model: prune with trials=1.")
    if not torch.equal(run.start, head_mask_of(own.model)):
        raise ValueError("the run began with other heads than the model has: prune own.model itself.")
    pruned = results.solution(run, budget)
    smaller = copy.deepcopy(own.model)
    remove_heads(smaller, run.mask(pruned))
    before, after = (correct_texts(model, own.testing).numpy() for model in (own.model, smaller))
    curve = results.curve(run)
    text = card(
        name=Path(folder).name,
        checkpoint=own.checkpoint,
        data=own.data,
        model=smaller,
        pruned=pruned,
        of=int(run.start.sum()),
        method=find_method(run.info["method"]).title,
        heads_per_step=run.info["heads_per_step"],
        budget=budget,
        chosen={"before": float(curve.iloc[0]), "after": float(curve[pruned])},
        correct={"before": before, "after": after},
        texts={name: num_texts(getattr(own, name)) for name in ("scoring", "choosing", "testing")},
        costs=cost(smaller),
        versions=run.info["versions"],
    )
    return save_pruned(smaller, folder, own.tokenizer, text)


def card(*, model: Any, correct: dict[str, np.ndarray], **about: Any) -> str:
    """The text of a model card, README.md, in Markdown with the head that model hubs read.

    correct: (text,) bool, before and after, of the same test texts; accuracies come with 95 % Wilson intervals, their
    difference with a 95 % bootstrap interval over texts. about: what else ``card.md.j2`` names.
    """
    change = correct["after"].astype(float) - correct["before"]
    low, high = scipy.stats.bootstrap((change,), np.mean, method="percentile", rng=0).confidence_interval
    environment = jinja2.Environment(loader=jinja2.PackageLoader("gnorm", ""), undefined=jinja2.StrictUndefined)
    return environment.get_template("card.md.j2").render(
        head=ModelCardData(
            library_name="transformers",
            pipeline_tag="text-classification",
            tags=["attention-head-pruning", "gnorm"],
        ).to_yaml(),
        accuracy={name: _share(hits) for name, hits in correct.items()},
        change={"mean": change.mean(), "low": low, "high": high},
        kept=head_mask_of(model).sum(1).tolist(),
        device=model.device.type,
        threads=torch.get_num_threads(),
        date=datetime.date.today().isoformat(),
        **about,
    )


def _share(hits: np.ndarray) -> dict[str, float]:
    low, high = results.wilson(int(hits.sum()), len(hits))
    return {"share": float(hits.mean()), "low": low, "high": high}
