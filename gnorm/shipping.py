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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import scipy.stats
import torch
from huggingface_hub import ModelCardData
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedConfig

from . import results
from .batches import longest_text, num_texts, prepare
from .costs import cost
from .folders import free_folder
from .heads import head_mask_of, wrapped_in
from .hub import TOKENIZERS
from .pruning import Trajectory, find_method, whole
from .scoring import correct_texts
from .surgery import check_saving, load_checked, read_config, remove_heads, save_pruned
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
    model_class: Any = None,
) -> Own:
    """A fine-tuned text classifier and its texts.

    checkpoint: a folder (or a name on the hub) with model and tokenizer; a pruned model may be pruned further.
    texts: the path of a CSV, JSON-lines or Parquet file with columns text and label, and text_pair where the model
    reads pairs; or such a table, a DataFrame or a ``datasets.Dataset``. Labels are class names as in the model's
    ``config.id2label``, or else class numbers. A text that comes twice is taken once. Rows are counted from 1.
    scoring: how many texts, drawn at random, heads are scored on, at most a third; the others are halved, to choose by
    and to test on. batch, max_length, seed: texts a batch, tokens a text (what the model takes, if None), the draw.
    device: the accelerator if there is one, else the CPU, if None. labels: "names" or "numbers", for a column that can
    be read both ways. model_class: the model's class, if it is one of your own.

    Raises ``FileNotFoundError`` for a file or a checkpoint that is not there, and for a folder without a tokenizer;
    ``TypeError`` for what is no path and no table; ``ValueError`` for a checkpoint that has no classifier or is
    damaged, for numbers out of range, too few texts, and as ``texts.labelled`` and ``prepare`` do.
    """
    scoring, batch, seed = whole("scoring", scoring, 1), whole("batch", batch, 1), whole("seed", seed, 0)
    model, tokenizer = _checkpoint(checkpoint, model_class)
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


def _checkpoint(checkpoint: str | os.PathLike[str], model_class: Any) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder or of a name on the hub."""
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(
            f"a checkpoint is a folder, not a {type(checkpoint).__name__}: save {wrapped_in(checkpoint) or 'the model'}"
            " and its tokenizer with save_pretrained, and give the folder."
        )
    checkpoint = os.path.expanduser(checkpoint)
    folder = Path(checkpoint)
    embeds = (folder / "modules.json").is_file()  # a CrossEncoder has the file too, but a classifier with it
    no_classifier = (
        f"{checkpoint} holds a SentenceTransformer, which has no classifier: fine-tune an "
        "AutoModelForSequenceClassification from it first."
    )
    if embeds and not (folder / "config.json").is_file():
        raise ValueError(no_classifier)
    written: Any = {}
    with suppress(Exception):  # what is wrong with the file is said below
        written = PreTrainedConfig.get_config_dict(checkpoint)[0].get("id2label") or {}
    if not all(str(key).strip().isdecimal() for key in written):
        raise ValueError(
            f"id2label in config.json of {checkpoint} must give names to numbers, as in "
            '{"0": "negative", "1": "positive"}.'
        )
    config = read_config(checkpoint)
    if folder.is_dir() and not any(file for name in TOKENIZERS for file in folder.glob(name)):
        # for want of one the library would make up an empty tokenizer
        raise FileNotFoundError(
            f"{checkpoint} has no tokenizer: save the one that the model was fine-tuned with there."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except Exception as error:  # noqa: BLE001 libraries raise anything for a broken file
        raise ValueError(
            f"the tokenizer in {checkpoint} cannot be read ({in_short(error)}): save it anew with save_pretrained."
        ) from None
    class_names(config, checkpoint)  # refuses what is no classifier before its weights are read
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {checkpoint} has no padding token: set its pad_token and save it anew.")
    try:
        return load_checked(checkpoint, model_class or AutoModelForSequenceClassification)[0], tokenizer
    except ValueError:
        if embeds:
            raise ValueError(no_classifier) from None
        raise


def ship(
    own: Own, run: Trajectory, folder: str | os.PathLike[str], budget: float = 0.01, overwrite: bool = False
) -> Path:
    """Remove as many heads as the budget allows, save the smaller model with its tokenizer and card; the folder.

    run: what ``prune`` made of ``own.model``, ``own.scoring`` and ``own.choosing``. budget: accuracy that may be lost
    on the texts to choose by (0.01 is a point). overwrite: replace a folder that holds files; one that is empty is
    taken as it is. ``own.model`` stays as it was.

    Raises ``FileExistsError`` where the folder holds files, ``ValueError`` where the run is not of this model or has
    several trials, for a budget below 0, and as ``gnorm.surgery.check_saving`` does, before anything is measured.
    """
    folder = free_folder(folder, overwrite)
    if not budget >= 0:
        raise ValueError(f"budget={budget} is out of range: it is the accuracy that may be lost, 0.01 for a point.")
    if run.info["trials"] > 1:
        raise ValueError(f"the run has {run.info['trials']} trials, whose mean is no model: prune with trials=1.")
    if not torch.equal(run.start, head_mask_of(own.model)):
        raise ValueError("the run began with other heads than the model has: prune own.model itself.")
    check_saving(own.model, own.tokenizer)
    pruned = results.solution(run, budget)
    smaller = copy.deepcopy(own.model)
    remove_heads(smaller, run.mask(pruned))
    before, after = (correct_texts(model, own.testing).numpy() for model in (own.model, smaller))
    curve = results.curve(run)
    text = card(
        name=folder.resolve().name,
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
    return save_pruned(smaller, folder, own.tokenizer, text, overwrite)


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
