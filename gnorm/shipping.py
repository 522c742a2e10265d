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
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import scipy.stats
import torch
from huggingface_hub import ModelCardData
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from . import results
from .batches import num_texts
from .costs import cost
from .export import longest_text
from .folders import free_folder
from .heads import head_mask_of
from .hub import TOKENIZERS
from .pruning import Trajectory, find_method, whole
from .scoring import correct_texts
from .surgery import check_saving, load_checked, read_config, remove_heads, save_pruned
from .tasks import batched, default_device

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
    texts: str | os.PathLike[str],
    scoring: int = 128,
    batch: int = 32,
    max_length: int | None = None,
    seed: int = 0,
    device: str | None = None,
    model_class: Any = None,
) -> Own:
    """A fine-tuned text classifier and its texts.

    checkpoint: a folder (or a name on the hub) with model and tokenizer; a pruned model may be pruned further.
    texts: a CSV file with columns text and label, and text_pair where the model reads pairs. Labels are the names in
    the model's ``config.label2id`` or class numbers. A text that comes twice is taken once.
    scoring: how many texts, drawn at random, heads are scored on, at most a third; the others are halved, to choose by
    and to test on. batch, max_length, seed: texts a batch, tokens a text (what the model takes, if None), the draw.
    device: the accelerator if there is one, else the CPU, if None. model_class: the model's class, if it is one of your
    own.

    Raises ``FileNotFoundError`` for a CSV that is not there, ``ValueError`` for one without these columns, with an
    empty text, a label that the model has no class for, or too few texts, for numbers out of range, and where the
    checkpoint has no classifier or is damaged; ``FileNotFoundError`` too for a folder without a tokenizer.
    """
    scoring, batch = whole("scoring", scoring, 1), whole("batch", batch, 1)
    checkpoint = os.path.expanduser(checkpoint)
    read_config(checkpoint)  # refuses what is no checkpoint before anything else of it is read
    if (folder := Path(checkpoint)).is_dir() and not any(file for name in TOKENIZERS for file in folder.glob(name)):
        # for want of one the library would make up an empty tokenizer
        raise FileNotFoundError(
            f"{checkpoint} has no tokenizer: save the one that the model was fine-tuned with there."
        )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if max_length is not None:
        max_length = whole("max_length", max_length, tokenizer.num_special_tokens_to_add() + 1)
    model, _ = load_checked(checkpoint, model_class or AutoModelForSequenceClassification)
    head_mask_of(model)  # refuses what cannot be pruned before anything is read
    frame = _read(Path(texts), model.config)
    frame = frame.sample(frac=1, random_state=seed)
    first = min(scoring, len(frame) // 3)
    rest = first + (len(frame) - first) // 2
    tokens = max_length or min(tokenizer.model_max_length, longest_text(model.config))
    scored, chosen, tested = (
        batched(tokenizer, {str(name): column.tolist() for name, column in part.items()}, batch, tokens)
        for part in (frame[:first], frame[first:rest], frame[rest:])
    )
    return Own(
        model=model.to(device or default_device()).eval(),
        tokenizer=tokenizer,
        scoring=scored,
        choosing=chosen,
        testing=tested,
        checkpoint=Path(checkpoint).name,
        data=Path(texts).name,
    )


def _read(path: Path, config: Any) -> pd.DataFrame:
    """Columns text, text_pair where there is one, and label as a class number."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: give a CSV file with columns text and label.")
    try:  # "NA" is a text; a comma too many makes no index of the first column
        with warnings.catch_warnings(action="error", category=pd.errors.ParserWarning):
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserWarning) as error:  # not UTF-8, not CSV, empty
        raise ValueError(
            f"{path} cannot be read ({error}): give a CSV file in UTF-8 with columns text and label, texts with commas "
            "in quotes."
        ) from None
    if missing := {"text", "label"} - set(frame.columns):
        raise ValueError(f"{path} has no column {min(missing)!r}: name its columns text and label (and text_pair).")
    columns = [name for name in ("text", "text_pair") if name in frame.columns]
    for column in columns:
        if (empty := frame[column].str.strip() == "").any():
            raise ValueError(f"row {int(empty.argmax()) + 1} of {path} has an empty {column}: fill it in or delete it.")
    known = {str(number): number for number in range(config.num_labels)} | dict(config.label2id)
    if unknown := sorted(set(frame.label) - set(known)):
        raise ValueError(f"{path} has the label {unknown[0]!r}; the model knows {', '.join(config.label2id)}.")
    frame = frame[[*columns, "label"]].assign(label=frame.label.map(known)).drop_duplicates(columns)
    if len(frame) < FEWEST:
        raise ValueError(f"{path} has {len(frame)} different texts; give at least {FEWEST}, better some hundreds.")
    return frame


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
    interval = scipy.stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {"share": float(hits.mean()), "low": interval.low, "high": interval.high}
