"""A user's checkpoint and texts: checked, and the texts split by purpose."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor

from ..engine.batches import prepare
from ..engine.checks import longest_text
from ..engine.state import default_device
from ..heads import head_mask_of, wrapped_in
from ..pruning import whole
from ..storage.errors import in_short
from ..storage.loading import TOKENIZERS, load_checked, read_config
from ..storage.tokenizing import batched
from .labels import Labels, class_names
from .texts import labelled, name_of

FEWEST = 30  # texts, a third for each purpose: an accuracy on fewer is too uncertain


@dataclass(frozen=True)
class Own:
    """A user's model and tokenizer, and the texts as lists of batches: to score heads, to choose by, to test on."""

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
    """Load a fine-tuned text classifier and split its texts by purpose.

    checkpoint: a folder (or a name on the hub) with model and tokenizer; the model may be pruned already.
    texts: the path of a CSV, JSON-lines or Parquet file with columns text and label, and text_pair where the model
    reads pairs; or a DataFrame or a ``datasets.Dataset`` with these columns. Labels are class names as in the model's
    ``config.id2label``, or class numbers. A text that occurs twice is used once. Messages count rows from 1.
    scoring: the number of texts, drawn at random, on which heads are scored; at most a third of all. Half of the others
    are to choose by, half to test on. batch: texts a batch. max_length: tokens a text (if None, what the model takes).
    seed: of the draw. device: if None, the accelerator if there is one, else the CPU. labels: "names" or "numbers", for
    a column that can be read both ways. model_class: the model's class, if it is one of your own.

    Raises ``FileNotFoundError`` where a file or a checkpoint does not exist, and for a folder without a tokenizer;
    ``TypeError`` for what is neither path nor table; ``ValueError`` for a checkpoint without a classifier or damaged,
    for numbers out of range, for too few texts; and as ``texts.labelled`` and ``prepare`` do.
    """
    scoring, batch, seed = whole("scoring", scoring, 1), whole("batch", batch, 1), whole("seed", seed, 0)
    model, tokenizer = _checkpoint(checkpoint, model_class)
    if max_length is not None:
        max_length = whole("max_length", max_length, tokenizer.num_special_tokens_to_add() + 1)
    head_mask_of(model)  # refuses models of unknown families before the texts are read
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
        batched(tokenizer, {str(name): column.tolist() for name, column in rows.items()}, batch, tokens, model)
        for rows in (frame[:first], frame[first:rest], frame[rest:])
    )
    model = model.to(device or default_device()).eval()
    prepare([*scored, *chosen, *tested], model)  # refuses texts that the model does not take before pruning begins
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
    """The model and the tokenizer of a folder or of a name on the hub, checked before the weights are read."""
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(
            f"a checkpoint is a folder, not a {type(checkpoint).__name__}: save {wrapped_in(checkpoint) or 'the model'}"
            " and its tokenizer with save_pretrained, and give the folder."
        )
    checkpoint = os.path.expanduser(checkpoint)
    folder = Path(checkpoint)
    embeds = (folder / "modules.json").is_file()  # true for a CrossEncoder too, which has a classifier
    no_classifier = (
        f"{checkpoint} holds a SentenceTransformer, which has no classifier: fine-tune an "
        "AutoModelForSequenceClassification from it first."
    )
    if embeds and not (folder / "config.json").is_file():
        raise ValueError(no_classifier)
    id2label: Any = {}
    with suppress(Exception):  # read_config gives the error a message
        id2label = transformers.PreTrainedConfig.get_config_dict(checkpoint)[0].get("id2label") or {}
    if not all(str(key).strip().isdecimal() for key in id2label):
        raise ValueError(
            f"id2label in config.json of {checkpoint} must give names to numbers, as in "
            '{"0": "negative", "1": "positive"}.'
        )
    config = read_config(checkpoint)
    if folder.is_dir() and not any(file for name in TOKENIZERS for file in folder.glob(name)):
        # transformers would make an empty tokenizer instead
        raise FileNotFoundError(
            f"{checkpoint} has no tokenizer: save the one that the model was fine-tuned with there."
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    except Exception as error:  # noqa: BLE001 libraries raise anything for a broken file
        raise ValueError(
            f"the tokenizer in {checkpoint} cannot be read ({in_short(error)}): save it anew with save_pretrained."
        ) from None
    class_names(config, checkpoint)  # refuses models without classes before the weights are read
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {checkpoint} has no padding token: set its pad_token and save it anew.")
    try:
        return load_checked(checkpoint, model_class or transformers.AutoModelForSequenceClassification)[0], tokenizer
    except ValueError:
        if embeds:
            raise ValueError(no_classifier) from None
        raise
