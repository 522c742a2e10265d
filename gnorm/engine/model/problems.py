"""The problems that models are for, a row each: the axes of its logits and labels, its predictions, and its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss, one_hot, pad

# The label of a text, or of a token, that metrics and losses leave out, as torch.nn.functional.cross_entropy does.
NOT_COUNTED = -100


POSITIONS = ("start_positions", "end_positions")  # the labels of question answering: the first token and the last one


LABELS = ("labels", *POSITIONS)  # what a batch calls its labels


@dataclass(frozen=True)
class Loss:
    """A loss of transformers as a sum of terms, one for each label; the mean of the terms that count is the loss.

    terms: (logits, labels, reduction="none") -> terms of the shape of the labels, 0 where the label is
    ``NOT_COUNTED``; reduction="sum" -> their sum, added up as torch's own losses do.
    derivative: (logits, labels) -> the derivative of their sum, of the shape of the logits.
    """

    terms: Callable[..., Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]


def _cross_entropies(logits: Tensor, labels: Tensor, reduction: str = "none") -> Tensor:
    """Of each label (...) among classes on the last axis of the logits (..., class)."""
    flat = cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction=reduction, ignore_index=NOT_COUNTED)
    return flat.view(labels.shape) if reduction == "none" else flat


def _of_cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    counted = (labels != NOT_COUNTED)[..., None]
    return (logits.softmax(-1) - one_hot(labels.clamp(min=0), logits.shape[-1])) * counted


CROSS_ENTROPY = Loss(_cross_entropies, _of_cross_entropies)


def _binary(logits: Tensor, labels: Tensor, reduction: str = "none") -> Tensor:
    return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction=reduction)


def _squares(logits: Tensor, labels: Tensor, reduction: str = "none") -> Tensor:
    return mse_loss(logits, labels.to(logits.dtype), reduction=reduction)


BINARY_CROSS_ENTROPY = Loss(_binary, lambda z, y: z.sigmoid() - y)


SQUARED_ERROR = Loss(_squares, lambda z, y: 2 * (z - y))


def _largest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _span(logits: Tensor) -> Tensor:
    """(text, 2) the first and the last token of the best span, by the sum of their logits (text, boundary, token)."""
    start, end = logits.unbind(1)
    best, at = start.cummax(1)  # the best start up to each token
    last = (best + end).argmax(1, keepdim=True)
    return torch.cat([at.gather(1, last), last], 1)


@dataclass(frozen=True)
class Problem:
    """A row of ``PROBLEMS``.

    gives: what the model gives, for messages. needs, each: what its labels are, for messages. metric: the one that is
    used if none is named. logits, labels: their axes. whole: labels are whole numbers, those of classes. heads: what
    the names of classes of one's own end in; the others are told by the configuration. classes: the key of the
    configuration that counts the classes. predict: logits, padding at -inf -> predictions, of the shape of the labels.
    squeezed: the axis of classes may be left out where there is one. own_loss: ``loss`` may not be the one that classes
    of transformers compute. shifted: the logits of a token are for the next one. input_prefix: what the names of the
    inputs begin with whose tokens have logits, "decoder_" where those are not the tokens of input_ids.
    """

    name: str
    gives: str
    needs: str
    each: str
    metric: str
    logits: tuple[str, ...]
    labels: tuple[str, ...]
    loss: Loss = CROSS_ENTROPY
    whole: bool = True
    heads: tuple[str, ...] = ()
    classes: str = "num_labels"
    predict: Callable[[Tensor], Tensor] = _largest
    squeezed: bool = False
    own_loss: bool = False
    shifted: bool = False
    input_prefix: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The axes of token ids."""
        return ("text", "choice", "token") if "choice" in self.logits else ("text", "token")

    @property
    def by_text(self) -> bool:
        """True if a text has one label, or a row of them, whatever its length."""
        return "token" not in self.logits

    def logit_mask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        """The logits that are of tokens and not of padding: bool, 1 on every axis of the logits but text and token;
        None where no logit is of padding."""
        if self.by_text or (mask := inputs.get(f"{self.input_prefix}attention_mask")) is None or bool(mask.all()):
            return None
        return mask.bool().view(
            [mask.shape[("text", "token").index(a)] if a in ("text", "token") else 1 for a in self.logits]
        )

    def counted_labels(self, labels: Tensor, real: Tensor | None) -> Tensor:
        """The labels, ``NOT_COUNTED`` where the logits that are for a token are those of padding: of padding itself, or
        of the first token of a text with padding before it. real: what ``logit_mask`` says of the text."""
        if real is None or "token" not in self.labels or labels.shape != real.shape[:2]:
            return labels
        padding = ~real[..., 0]
        return labels.masked_fill(pad(padding[:, :-1], (1, 0)) if self.shifted else padding, NOT_COUNTED)

    def counted_labels_in(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """``counted_labels`` of the labels of a batch; None where it has none."""
        labels = labels_in(batch)
        return labels if labels is None else self.counted_labels(labels, self.logit_mask(batch))

    def aligned_logits(self, logits: Tensor) -> Tensor:
        """A view of the logits: those that labels are held against, entry by entry."""
        return logits[:, :-1] if self.shifted else logits.squeeze(1) if self.squeezed else logits

    def targets(self, labels: Tensor) -> Tensor:
        """The labels that ``aligned_logits`` are held against."""
        return labels[:, 1:] if self.shifted else labels.squeeze(1) if self.squeezed and labels.dim() > 1 else labels

    def loss_terms(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The terms of the loss, text by text (text, ...), in fp32 at least; labels as a batch gives them."""
        wide = self.aligned_logits(logits).to(torch.promote_types(logits.dtype, torch.float32))
        return self.loss.terms(wide, self.targets(labels))

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of ``loss_terms``, one number."""
        wide = self.aligned_logits(logits).to(torch.promote_types(logits.dtype, torch.float32))
        return self.loss.terms(wide, self.targets(labels), reduction="sum")

    def loss_derivative(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The derivative of the sum of ``loss_terms`` by the logits, of their shape; computed in fp32 at least."""
        derivative = torch.zeros_like(logits)
        wide = self.aligned_logits(logits).to(torch.promote_types(logits.dtype, torch.float32))
        self.aligned_logits(derivative).copy_(self.loss.derivative(wide, self.targets(labels)))
        return derivative

    def terms_of(self, labels: Tensor) -> Tensor:
        """(text,) how many terms of the loss each text has."""
        targets = self.targets(labels).reshape(len(labels), -1)
        return (
            (targets != NOT_COUNTED).sum(1) if self.whole else torch.full_like(targets[:, 0], targets.shape[1]).long()
        )


def _tokens(name: str, gives: str, heads: tuple[str, ...], metric: str, classes: str, **others: Any) -> Problem:
    """The row of a problem with a class for each token."""
    axes = ("text", "token")
    needs, each = "the class of each token", "the index of a class, or -100, for each token"
    return Problem(name, gives, needs, each, metric, (*axes, "class"), axes, heads=heads, classes=classes, **others)


_ROWS = (
    Problem(
        "single_label_classification",
        "each text one of several classes",
        "the class of each text",
        "the index of a class for each text",
        "accuracy",
        ("text", "class"),
        ("text",),
    ),
    Problem(
        "multi_label_classification",
        "each text any number of several classes",
        "the classes of each text",
        "0.0 or 1.0 for each text and class",
        "f1_micro",
        ("text", "class"),
        ("text", "class"),
        BINARY_CROSS_ENTROPY,
        whole=False,
        predict=lambda logits: logits > 0,
    ),
    Problem(
        "binary_classification",
        "each text a probability, the sigmoid of its one logit",
        "the probability of each text",
        "a floating-point number from 0 to 1 for each text",
        "mse",
        ("text", "class"),
        ("text", "class"),
        BINARY_CROSS_ENTROPY,
        whole=False,
        predict=lambda logits: logits.double().sigmoid(),
        squeezed=True,
        own_loss=True,
    ),
    Problem(
        "regression",
        "each text a number",
        "the number of each text",
        "a floating-point number for each text",
        "mse",
        ("text", "class"),
        ("text", "class"),
        SQUARED_ERROR,
        whole=False,
        predict=lambda logits: logits.double(),
        squeezed=True,
    ),
    _tokens("token_classification", "each token a class", ("ForTokenClassification",), "token_accuracy", "num_labels"),
    Problem(
        "question_answering",
        "each text a span of tokens",
        "the first and the last token of each answer",
        "the position of a token for each text",
        "span_f1",
        ("text", "boundary", "token"),
        ("text", "boundary"),
        heads=("ForQuestionAnswering",),
        predict=_span,
    ),
    Problem(
        "multiple_choice",
        "each text one of several choices",
        "the choice of each text",
        "the index of a choice for each text",
        "accuracy",
        ("text", "choice"),
        ("text",),
        heads=("ForMultipleChoice",),
    ),
    _tokens("masked_lm", "masked tokens", ("ForMaskedLM",), "perplexity", "vocab_size"),
    _tokens("causal_lm", "each next token", ("ForCausalLM", "LMHeadModel"), "perplexity", "vocab_size", shifted=True),
    _tokens(
        "seq2seq_lm",
        "each token of a decoder",
        ("ForConditionalGeneration", "MTModel"),
        "perplexity",
        "vocab_size",
        input_prefix="decoder_",
    ),
)


PROBLEMS: dict[str, Problem] = {row.name: row for row in _ROWS}


# What the classes in Auto mappings of transformers are for. A class in several is for the first one: the mapping of
# masked language models has BART too, that of causal ones XLM, which gives masked tokens.
AUTO_MAPPINGS = {
    "SEQ_TO_SEQ_CAUSAL_LM": "seq2seq_lm",
    "SPEECH_SEQ_2_SEQ": "seq2seq_lm",
    "TOKEN_CLASSIFICATION": "token_classification",
    "QUESTION_ANSWERING": "question_answering",
    "DOCUMENT_QUESTION_ANSWERING": "question_answering",
    "MULTIPLE_CHOICE": "multiple_choice",
    "MASKED_LM": "masked_lm",
    "CAUSAL_LM": "causal_lm",
}


def problem_of(model: Any) -> Problem:
    """The problem of ``model``: by its class or one that it derives from, else by its configuration."""
    model = getattr(model, "_orig_mod", model)  # of a compiled model
    return problem_of_class(type(model), getattr(model, "config", None))


def gives_tokens(model: Any) -> bool:
    """True if ``model`` gives what it was trained on before any task, of each token and in no row of ``PROBLEMS``:
    ELECTRA's discriminator says which tokens were replaced."""
    kinds = type(getattr(model, "_orig_mod", model)).__mro__
    return any(kind.__name__.endswith("ForPreTraining") for kind in kinds)


def num_classes(model: Any) -> int | None:
    """The number of classes of the logits of ``model``; None where it is not known.

    Words are counted by the layer that gives their logits: a configuration may count those of the encoder alone.
    """
    key, head = problem_of(model).classes, None
    if key == "vocab_size" and hasattr(model, "get_output_embeddings"):
        head = model.get_output_embeddings()
    return getattr(head, "out_features", None) or getattr(model.config, key, None)


@cache
def _row_of(kind: type) -> Problem | None:
    """The row of a class: of transformers by its Auto mappings, of others by the ending of its name."""
    if not kind.__module__.startswith("transformers.models."):
        return next((row for row in _ROWS if kind.__name__.endswith(row.heads)), None)
    from transformers.models.auto import modeling_auto

    for mapping, problem in AUTO_MAPPINGS.items():
        given = getattr(modeling_auto, f"MODEL_FOR_{mapping}_MAPPING_NAMES").values()
        if any(kind.__name__ in ([names] if isinstance(names, str) else names) for names in given):
            return PROBLEMS[problem]
    return None


def problem_of_class(kind: type, config: Any) -> Problem:
    """``problem_of`` a model of this class and configuration."""
    by_class = filter(None, map(_row_of, kind.__mro__))
    alone, said = "single_label_classification", getattr(config, "problem_type", None)
    if getattr(config, "num_labels", None) == 1:
        alone = "regression"
        if activation_of(config) == "Sigmoid" or said == "multi_label_classification":
            said = "binary_classification"
    return next(by_class, PROBLEMS.get(said or alone, PROBLEMS[alone]))


def activation_of(config: Any) -> str:
    """The activation of a CrossEncoder of sentence-transformers, such as "Sigmoid"; "" where none is named."""
    said = getattr(config, "sentence_transformers", None)
    by_default = "Sigmoid" if said is not None and config.num_labels == 1 else ""
    path = (said or {}).get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    return str(path or by_default).rpartition(".")[2]


def labels_in(batch: Mapping[str, Tensor]) -> Tensor | None:
    """The labels (text, ...) of a batch; of question answering (text, boundary), from positions (text,) or (text, 1);
    None where there are none, or where the two positions of an answer do not go together."""
    if "labels" in batch:
        return batch["labels"]
    given = [batch[name] for name in POSITIONS if name in batch]
    positions = [each.flatten() if each.shape[1:] == (1,) else each for each in given]
    together = len(positions) == 2 and positions[0].shape == positions[1].shape and positions[0].dim() == 1
    return torch.stack(positions, 1) if together else None
