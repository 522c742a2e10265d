"""Reading what the hub brought: a checkpoint's configuration, model and tokenizer; a data set's splits and labels."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pickle import UnpicklingError
from typing import Any

import datasets
import pandas as pd
import torch
import transformers
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from gnorm.storage.errors import in_short
from gnorm.storage.loading import TOKENIZERS, MisfitError, load_checked, quiet_library

from .hub import AssetError, AssetState, Checkpoint, DataSet, find, matching, root_of
from .tokenizers import load_published

NO_CLASS = -100  # the label of a text that no class of the model fits: scored, never evaluated


@contextlib.contextmanager
def _reading(state: AssetState, what: str) -> Iterator[None]:
    """Turns what a library raises into an ``AssetError``. The files are as they were published: ``fetch`` checked."""
    try:
        yield
    except (AssetError, MisfitError):
        raise
    except Exception as error:  # noqa: BLE001 whatever a library raises
        why = in_short(cause := root_of(error))
        if isinstance(cause, UnpicklingError) or "weights_only" in str(cause):
            why = "it is a pickle that holds more than tensors, which torch's weights-only loader does not read"
        raise AssetError(
            f"{what} of {state.name} at {state.commit[:12]} cannot be read ({why}), and was published so: name another "
            "revision in the profile."
        ) from None  # a chain that begins with StopIteration would end the context manager


def load_config(state: AssetState) -> Any:
    """The configuration of a checkpoint in the cache; ``AssetError`` where it does not fit."""
    asset = state.asset
    assert isinstance(asset, Checkpoint)
    name = f"config.json of {state.name}"
    with _reading(state, "config.json"):
        about = json.loads((state.path / "config.json").read_text("utf-8-sig"))
        kind = about.get("model_type") if isinstance(about, dict) else None
        if kind not in CONFIG_MAPPING:
            raise AssetError(
                f"{name} has the model_type {kind!r}, which transformers {transformers.__version__} does not know; "
                "code of the repository is not run."
            )
        _check_classes(name, about)
        config = CONFIG_MAPPING[kind].from_pretrained(state.path)
        if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise AssetError(f"{name} has the model_type {kind!r}, of which transformers has no sequence classifier.")
        if config.num_labels != asset.classes:
            raise AssetError(f"{state.name} has {config.num_labels} classes, {asset.classes} are expected.")
        with torch.device("meta"):
            AutoModelForSequenceClassification.from_config(config)
    return config


def _check_classes(name: str, about: dict[str, Any]) -> None:
    """Raise ``AssetError`` where id2label does not number distinct names from 0, or label2id contradicts it."""
    classes = about.get("id2label")
    if classes is None:
        return
    names = list(classes.values()) if isinstance(classes, dict) else []
    if not names or sorted(map(str, classes)) != sorted(map(str, range(len(names)))):
        raise AssetError(f"{name} does not number its classes from 0 in id2label ({classes}): correct it there.")
    if odd := [each for each in names if not isinstance(each, str) or names.count(each) > 1]:
        raise AssetError(f"{name} gives the class {odd[0]!r} in id2label no name, or twice: correct it there.")
    numbers = about.get("label2id")
    if isinstance(numbers, dict) and set(numbers) == set(names):
        for i, each in classes.items():
            if str(numbers[each]) != str(i):
                raise AssetError(f"{name} calls {each!r} {i} in id2label and {numbers[each]} in label2id: correct one.")


def load_checkpoint(state: AssetState) -> tuple[Any, Any]:
    """The model, in fp32, and its tokenizer.

    Raises ``AssetError`` where a file cannot be read, a weight is missing, left over, not finite or of the wrong shape
    (nothing is left at random), the tokenizer has no vocabulary, or the number of classes is not the profile's.
    """
    config = load_config(state)
    where = f"{state.name} at {state.commit[:12]}"
    model = _load_model(state, config)
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise AssetError(
                f"the weights of {where} hold a number that is not finite in {name}: take another revision."
            )
    files = ", ".join(matching(state.files, (*TOKENIZERS, "merges.txt", "tokenizer_config.json")))
    with _reading(state, f"the tokenizer ({files})"), quiet_library():
        about = state.path / "tokenizer_config.json"
        if about.is_file() and "AutoTokenizer" in json.loads(about.read_bytes()).get("auto_map", ()):
            raise AssetError(f"the tokenizer of {where} is code of the repository, which is not run.")
        tokenizer = load_published(state.path)
        tokenizer("a \N{SNOWMAN}")  # to see whether it can do a word that it does not know
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise AssetError(
            f"the tokenizer of {where} has no vocabulary: its files are not those that {type(tokenizer).__name__} "
            "reads."
        )
    return model, tokenizer


def _load_model(state: AssetState, config: Any) -> Any:
    """The model of a checkpoint, in fp32, every weight of it from the file; raises ``AssetError``."""
    try:
        with _reading(state, "the weights"):
            model, report = load_checked(
                state.path, AutoModelForSequenceClassification, config=config, dtype=torch.float32
            )
    except MisfitError as error:
        model, report, why = None, dict(error.report), str(error)
    # What a classifier does not use, such as a pooler, is left over; layers that config.json does not count are not.
    beyond = [name for name in report["unexpected_keys"] if re.search(r"\.layers?\.\d+\.", name)]
    where = f"{state.name} at {state.commit[:12]}"
    for what, keys in (
        ("lack", report["missing_keys"]),
        ("do not fit config.json in", [name for name, *_ in report["mismatched_keys"]]),
        ("go beyond config.json in", beyond),
    ):
        if keys:
            names = ", ".join(sorted(keys)[:3])
            raise AssetError(f"the weights of {where} {what} {names}: weights and config.json are of different models.")
    if model is None:
        raise AssetError(why)
    return model


def load_splits(state: AssetState, splits: Iterable[str] | None = None) -> datasets.DatasetDict:
    """The data set as it is on the hub: every split, or those named.

    Raises ``AssetError`` where a file cannot be read, or a split or a column is not there.
    """
    asset = state.asset
    assert isinstance(asset, DataSet)
    # In memory, so that nothing but a temporary folder has to be writable.
    with quiet_library(), tempfile.TemporaryDirectory() as folder:
        files, features = dict[str, Any](asset.files), None
        if not files:
            with _reading(state, "the layout"):
                found = datasets.load_dataset_builder(str(state.path), cache_dir=folder)
                files, features = dict(found.config.data_files), found.info.features
        chosen = list(splits if splits is not None else files)
        if lacking := [split for split in chosen if split not in files]:
            raise AssetError(f"{state.name} has no split {lacking[0]!r}; it has {', '.join(map(str, files))}.")
        loaded = {}
        for split in chosen:  # each by itself, since another's columns or types would be forced upon it
            with _reading(state, f"the split {split}"):
                loaded[split] = rows = datasets.load_dataset(
                    str(state.path), data_files={split: files[split]}, split=split, features=features,
                    verification_mode="no_checks", cache_dir=folder, keep_in_memory=True,
                )  # fmt: skip
                columns, used = rows.column_names, (*asset.text, asset.label)
                if absent := [name for name in used if name not in columns]:
                    raise AssetError(
                        f"{split} of {state.name} has no column {absent[0]!r}; it has {', '.join(columns)}."
                    )
                rows.select_columns(list(used))[:]  # texts are decoded only now
    return datasets.DatasetDict(loaded)


def described(asset: DataSet) -> str:
    """A data set that is inspected, in words: the labels and first rows of each split; or why it is missing."""
    try:
        loaded = load_splits(find(asset))
    except AssetError as error:
        return f"{asset.repo} is inspected, not used, and not here: {error}"
    lines = []
    for split, rows in loaded.items():
        labels = pd.Series(rows[asset.label]).value_counts().sort_index().to_dict()
        lines += [f"{asset.repo}, {split}: {len(rows)} texts, labels {labels}"]
        lines += [pd.DataFrame(rows[:3]).to_string(max_colwidth=60)]
    return "\n".join(lines)


def labelled(rows: datasets.Dataset, asset: DataSet, config: Any, split: str = "") -> datasets.Dataset:
    """The columns text, text_pair (of pairs) and label: the class by the checkpoint's own numbering, or ``NO_CLASS``.

    A label finds its class by name (the profile's, else its own) in ``config.id2label``, upper and lower case alike.
    Numbers without names, and checkpoints that only number their classes (LABEL_0), are taken as they are.

    Raises ``AssetError`` for a label that is missing or no class of the checkpoint, or where a text is empty or not
    text; it names the row, counted from 0, of ``split``.
    """
    of = f"of {asset.repo}{f', split {split},' if split else ''}"
    columns: dict[str, list[Any]] = {}
    for target, name in zip(("text", "text_pair"), asset.text, strict=False):
        columns[target] = list(rows[name])
        odd = [i for i, text in enumerate(columns[target]) if not isinstance(text, str) or not text.strip()]
        if odd:
            value = columns[target][odd[0]]
            what = f": it holds {value!r}" if value is not None else ": it is empty, or reads as missing (NA, null)"
            raise AssetError(f"row {odd[0]} {of} has no text in column {name!r}{what}.")
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in rows[asset.label]]
    empty = [
        i
        for i, v in enumerate(values)
        if v is None or (isinstance(v, float) and math.isnan(v)) or (isinstance(v, str) and not v.strip())
    ]
    if empty:
        cut = "; the file may end too early" if empty[0] == len(values) - 1 else ""
        raise AssetError(
            f"row {empty[0]} {of} has no label in column {asset.label!r} ({len(empty)} of {len(values)} rows have "
            f"none{cut}): fill it in or take the row out."
        )
    number = _numbering(rows.features[asset.label], asset, config)
    known = {value: number(value) for value in dict.fromkeys(values)}
    if unknown := [value for value, label in known.items() if label is None]:
        classes = ", ".join(str(config.id2label[i]) for i in range(config.num_labels))
        raise AssetError(
            f"row {values.index(unknown[0])} {of} has the label {unknown[0]!r} in column {asset.label!r}, the "
            f"checkpoint's classes are {classes}: say what it stands for in the profile's `labels`."
        )
    if set(known.values()) == {NO_CLASS}:
        raise AssetError(f"no row {of} has a label that stands for a class: correct the profile's `labels`.")
    return datasets.Dataset.from_dict({**columns, "label": [known[value] for value in values]})


def _numbering(feature: Any, asset: DataSet, config: Any) -> Callable[[Any], int | None]:
    """The function from a label to its class."""
    classes = {str(label).casefold(): int(i) for i, label in config.id2label.items()}
    unnamed = all(re.fullmatch(r"label_\d+|\d+", label) for label in classes)
    if unnamed and asset.labels:
        classes = {label.casefold(): i for i, label in enumerate(filter(None, dict.fromkeys(asset.labels.values())))}
    names = getattr(feature, "names", None)

    def number(value: Any) -> int | None:
        numeric = re.fullmatch(r"\d+", str(value)) is not None
        name = names[value] if names and numeric and int(value) < len(names) else str(value)
        if str(value) in asset.labels or name in asset.labels:
            target = asset.labels.get(str(value), asset.labels.get(name, ""))
            return classes.get(target.casefold()) if target else NO_CLASS
        if name.casefold() in classes:
            return classes[name.casefold()]
        speaking = names and not all(re.fullmatch(r"label_\d+|\d+", str(each).casefold()) for each in names)
        if asset.labels or not numeric or (speaking and not unnamed):
            return None
        return int(value) if int(value) < config.num_labels else None

    return number
