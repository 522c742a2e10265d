"""A user's checkpoint and texts: checked, and the texts split by purpose."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from torch import Tensor
from transformers.utils import cached_file

from ..engine.forward.failures import PassError
from ..engine.forwarding import try_pass
from ..engine.model.blocks import wrapped_in
from ..engine.model.problems import PROBLEMS, Problem, activation_of, problem_of, problem_of_class
from ..engine.model.state import default_device
from ..engine.texts.batches import prepare
from ..engine.trials.examples import longest_text
from ..heads import head_mask_of
from ..pruning import checked_int
from ..storage.errors import in_short
from ..storage.labels import Labels, class_names
from ..storage.loading import TOKENIZERS, MisfitError, find_class, load_checked, read_config
from ..storage.saving import check_saving
from ..storage.tokenizing import Encoder, in_batches
from .inputs import right_padded, special_ids
from .readers import NEEDS, READERS, Reader, labelled
from .texts import name_of

log = logging.getLogger(__name__)

KINDS_TRIED = 8  # of texts, by the special tokens in them, that pass through the model before a run

PADDING_READ = 0.02  # of the largest logit: more than rounding changes, in half precision too

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
    read: tuple[Path, ...] = ()  # the folder and the file that they come from


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
    """Load a fine-tuned model of texts and split its texts by purpose.

    checkpoint: a folder (or a name on the hub) with model and tokenizer; the model may be pruned already. Its config
    names its class, and so its task; a model of no task that is known is loaded as a sequence classifier.
    texts: the path of a file in one of ``texts.FORMATS``, or a DataFrame or a ``datasets.Dataset``, with the columns of
    the task (``readers.READERS``): text and label for classes, several classes or a number, with text_pair for pairs;
    tokens and tags; question, context, answer and answer_start; text, choices and label; text and target for an
    encoder with a decoder; text alone for other language models. Labels are class names as in the model's
    ``config.id2label``, or class numbers. A text that occurs twice is used once. Messages count rows from 1.
    scoring: the number of texts, drawn at random, on which heads are scored; at most a third of all. Half of the others
    are to choose by, half to test on. batch: texts a batch. max_length: tokens a text (if None, what the model takes).
    seed: of the draw, and of the tokens that are masked for a masked language model. device: if None, the accelerator
    if there is one, else the CPU. labels: "names" or "numbers", for a column that can be read both ways. model_class:
    the model's class, if it is one of your own.

    Raises ``FileNotFoundError`` where a file or a checkpoint does not exist, and for a folder without a tokenizer;
    ``TypeError`` for what is neither path nor table; ``ValueError`` for a checkpoint without a classifier or damaged,
    for a tokenizer that lacks what the task needs, for numbers out of range, for a device that is not there, for too
    few texts, for a text that tokenizer or model do not take; and as ``readers.labelled``, ``prepare`` and
    ``check_saving`` do.
    """
    scoring, batch, seed = (
        checked_int("scoring", scoring, 1),
        checked_int("batch", batch, 1),
        checked_int("seed", seed, 0),
    )
    device = device or default_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device} is not there ({in_short(error)}): give another, or leave it out.") from None
    model, tokenizer = _checkpoint(checkpoint, model_class)
    if max_length is not None:
        max_length = checked_int("max_length", max_length, tokenizer.num_special_tokens_to_add() + 1)
    head_mask_of(model)  # refuses models of unknown families before the texts are read
    check_saving(model, tokenizer)  # before the run that would end with it
    problem = problem_of(model)
    reader = READERS[problem.name]
    tokens = max_length or longest_text(model, tokenizer)
    # a copy: what a call cuts and pads to, a fast tokenizer keeps, and would save
    with_padding = copy.deepcopy(tokenizer) if problem.by_text else right_padded(tokenizer)
    encode = Encoder(with_padding, model, tokens, torch.Generator().manual_seed(seed))
    frame = labelled(texts, model.config, str(checkpoint), labels, problem)
    if reader.fits is not None:
        fits = reader.fits(encode, _rows(frame))
        if left_out := fits.count(False):
            log.warning("%d of %d texts are left out: their answers lie beyond %d tokens.", left_out, len(fits), tokens)
        frame = frame[fits]
    if len(frame) < FEWEST:
        raise ValueError(
            f"{name_of(texts)} has {len(frame)} different texts; give at least {FEWEST}, better some hundreds."
        )
    frame = frame.sample(frac=1, random_state=seed)
    first = min(scoring, len(frame) // 3)
    rest = first + (len(frame) - first) // 2
    shares = (frame[:first], frame[first:rest], frame[rest:])
    scored, chosen, tested = (in_batches(reader.inputs, encode, _rows(share), batch) for share in shares)
    model = model.to(device).eval()
    batches = [*scored, *chosen, *tested]
    unlike = _unlike(batches, tokenizer, frame, name_of(texts))
    prepare(batches, model)  # refuses texts that the model does not take before pruning begins
    _try(model, encode, reader, frame.iloc[unlike], name_of(texts))
    return Own(
        model=model,
        tokenizer=tokenizer,
        scoring=scored,
        choosing=chosen,
        testing=tested,
        checkpoint=Path(os.path.abspath(checkpoint)).name,  # of "." too
        data=name_of(texts),
        read=tuple(
            Path(given).expanduser().resolve() for given in (checkpoint, texts) if isinstance(given, str | os.PathLike)
        ),
    )


def _rows(frame: pd.DataFrame) -> dict[str, list[Any]]:
    return {str(name): column.tolist() for name, column in frame.items()}


def _unlike(batches: Sequence[dict[str, Tensor]], tokenizer: Any, frame: pd.DataFrame, where: str) -> list[int]:
    """The positions of texts that differ in what models stumble over: the shortest, the longest, and one for each way
    in which texts hold special tokens; first two of the most common way. ``ValueError`` for a text without a token."""
    special = special_ids(tokenizer)
    lengths, kinds = list[int](), list[tuple[int, ...]]()
    for batch in batches:
        masks = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        for ids, mask in zip(batch["input_ids"].flatten(1), masks.flatten(1).bool(), strict=True):
            tokens = ids[mask]
            lengths.append(len(tokens))
            kinds.append(tuple(sorted(tokens[torch.isin(tokens, special)].tolist())))
    if 0 in lengths:
        text = frame.iloc[lengths.index(0)]
        raise ValueError(
            f"row {text.name} of {where} ({text.iloc[0]!r:.60}) has no token for the tokenizer: delete it."
        )
    (usual, _), *others = Counter(kinds).most_common(KINDS_TRIED)
    two = [kinds.index(usual), len(kinds) - 1 - kinds[::-1].index(usual)]
    extremes = [lengths.index(min(lengths)), lengths.index(max(lengths))]
    return list(dict.fromkeys([*two, *extremes, *(kinds.index(kind) for kind, _ in others)]))


def _try(model: Any, encode: Encoder, reader: Reader, texts: pd.DataFrame, where: str) -> None:
    """Pass texts through the model, together and the first one alone.

    Raises ``ValueError``, which names the row, where the model does not take a text, and where it takes the tokenizer's
    padding for a part of a text.
    """
    try:
        logits = try_pass(
            in_batches(reader.inputs, encode, _rows(texts), len(texts))[0], model, torch.tensor(texts.index)
        )
    except PassError as error:
        if error.text is None:
            raise
        quoted = f"{texts.iloc[:, 0][error.text]!r:.60}"
        raise ValueError(f"row {error.text} of {where} ({quoted}): {error}") from error
    pads, expected = encode.tokenizer.pad_token_id, getattr(model.config, "pad_token_id", None)
    if problem_of(model).by_text and expected not in (None, pads):
        alone = torch.cat([try_pass(one, model) for one in in_batches(reader.inputs, encode, _rows(texts), 1)])
        if float((logits - alone).abs().max()) > PADDING_READ * float(alone.abs().max()):
            raise ValueError(
                f"the tokenizer pads with token {pads}, config.pad_token_id is {expected}, and the model reads that as "
                "a part of the text: set both to the token that it was fine-tuned with."
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
    config = read_config(checkpoint)
    if quantised := getattr(config, "quantization_config", None):
        method = dict(quantised).get("quant_method", "in a way that it does not name")
        raise ValueError(
            f"{checkpoint} is quantised ({method}), and heads are scored and removed by weights in floating point: "
            "give the checkpoint that it was made from, and quantise the smaller model."
        )
    _read_activation(checkpoint, config)
    if folder.is_dir() and not any(file for name in TOKENIZERS for file in folder.glob(name)):
        # transformers would make an empty tokenizer instead
        raise FileNotFoundError(
            f"{checkpoint} has no tokenizer: save the one that the model was fine-tuned with there."
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, config=config)
    except Exception as error:  # noqa: BLE001 libraries raise anything for a broken file
        remedy = "install what it needs" if isinstance(error, ImportError) else "save it anew with save_pretrained"
        raise ValueError(f"the tokenizer in {checkpoint} cannot be read ({in_short(error)}): {remedy}.") from None
    kind = find_class(checkpoint, config, model_class or _class_of(config), {})
    _check_task(problem_of_class(kind, config), config, tokenizer, str(checkpoint))  # before the weights are read
    try:
        return load_checked(checkpoint, kind, config=config)[0], tokenizer
    except MisfitError:
        if embeds:
            raise ValueError(no_classifier) from None
        raise


def _read_activation(checkpoint: str, config: Any) -> None:
    """Write into ``config`` what a CrossEncoder of sentence-transformers 6 says of its logits in a file of its own."""
    with suppress(Exception):  # there is none, or it is no JSON
        file = cached_file(checkpoint, "config_sentence_transformers.json")
        said = json.loads(Path(file).read_text("utf-8"))
        if said.get("model_type") == "CrossEncoder" and not activation_of(config):
            config.sentence_transformers = {"activation_fn": said["activation_fn"]}


def _class_of(config: Any) -> Any:
    """None, for the class that the configuration names, where that has a task; else that of sequence classifiers."""
    named = tuple((config.architectures or [""])[:1])
    heads = tuple(name for problem in PROBLEMS.values() for name in problem.heads)
    return None if any(name.endswith(heads) for name in named) else transformers.AutoModelForSequenceClassification


def _check_task(problem: Problem, config: Any, tokenizer: Any, checkpoint: str) -> None:
    """``ValueError`` where names of classes or the tokenizer are not what the problem needs."""
    if problem.classes == "num_labels" and problem.logits[-1] == "class" and config.num_labels > 1:
        class_names(config, checkpoint)
    activation = activation_of(config)
    if problem.squeezed and config.num_labels == 1 and activation not in ("", "Identity", "Sigmoid"):
        raise ValueError(
            f"{checkpoint} gives {activation} of its one logit, which no metric here does: let its CrossEncoder give "
            "the logit itself (torch.nn.Identity) or a probability (torch.nn.Sigmoid), and save it anew."
        )
    if problem.by_text and tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {checkpoint} has no padding token: set its pad_token and save it anew.")
    if problem.input_prefix and hasattr(tokenizer, "tgt_lang"):
        _check_languages(copy.deepcopy(tokenizer), checkpoint)
    if (needs := READERS[problem.name].needs) and not getattr(tokenizer, needs, None):
        raise ValueError(f"the tokenizer of {checkpoint} has no {NEEDS[needs]}.")


def _check_languages(tokenizer: Any, checkpoint: str) -> None:
    """``ValueError`` where the tokenizer of a translator of many languages lacks one, or has one that it does not know.

    Without a target language such tokenizers fail, or mark targets as texts in the language of the sources.
    """
    for name, argument in (("src_lang", "text"), ("tgt_lang", "text_target")):
        if (language := getattr(tokenizer, name, None)) is None:
            what = f"names no {name}"
        else:
            with suppress(Exception):  # libraries raise anything for a language that is none
                if tokenizer.unk_token_id not in tokenizer(**{argument: "", "verbose": False})["input_ids"]:
                    continue
            what = f"does not know its {name}, {language!r}"
        raise ValueError(
            f"the tokenizer of {checkpoint} {what}: set its {name} to the language of the "
            f"{'texts' if argument == 'text' else 'targets'}, one that it knows, and save it anew."
        )
