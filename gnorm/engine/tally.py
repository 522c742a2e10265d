"""Values of each text that a metric needs, read off its logits, off the passes that score heads too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .forward.packing import not_finite
from .model.problems import NOT_COUNTED, Problem
from .texts.batches import Prepared
from .texts.micro_batches import MicroBatch, labels_of
from .texts.ranks import gather

# (problem, logits (text, ...) with padding at -inf, labels as the batch has them) -> values (text, ...)
TextValues = Callable[[Problem, Tensor, Tensor], Tensor]


def predictions(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """The model's predictions, of the shape of the labels; ``NOT_COUNTED`` for a token whose label is not counted."""
    predicted, targets = problem.predict(problem.aligned_logits(logits)), problem.targets(labels)
    return (
        predicted.masked_fill(targets == NOT_COUNTED, NOT_COUNTED) if targets.dim() > 1 and problem.whole else predicted
    )


def hits(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """(text,) bool: whether the text is classified as its label says; of one logit, whether its sigmoid and its label
    are on the same side of 1/2."""
    aligned, targets = problem.aligned_logits(logits), problem.targets(labels)
    return (aligned > 0) == (targets > 0.5) if aligned.dim() == 1 else aligned.argmax(-1) == targets


def token_hits(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """(text, 2) how many tokens are predicted as their labels say, and how many are counted."""
    targets = problem.targets(labels)
    counted = targets != NOT_COUNTED
    return torch.stack([(problem.predict(problem.aligned_logits(logits)) == targets) & counted, counted], 1).sum(2)


def losses(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """(text, 2) float64: the sum of the terms of the text's loss, and how many there are."""
    terms = problem.loss_terms(logits, labels).double().reshape(len(labels), -1)
    return torch.stack([terms.sum(1), problem.terms_of(labels).double()], 1)


class Tally:
    """The values of each text that a metric needs, collected micro-batch by micro-batch.

    text_values: how they are computed. purpose: what labels are for, in messages. Raises ``ValueError`` as
    ``check_labels`` does, when it is made.
    """

    def __init__(self, prepared: Prepared, text_values: TextValues = hits, purpose: str = "accuracy") -> None:
        if prepared.batches:
            prepared.check_labels(purpose)
        self._problem, self._text_values, self._texts = prepared.subject.problem, text_values, prepared.num_texts
        self._group = prepared.group
        self._texts_seen = 0
        self._seen: list[tuple[Tensor, ...]] = []

    def __call__(self, logits: Tensor, micro: MicroBatch) -> None:
        z, labels = micro.mask_padding(logits.detach()), labels_of(micro, logits)
        finite = z.flatten(1).isfinite().all(1)
        values = self._text_values(self._problem, micro.mask_padding(z, -torch.inf), labels)
        if self._text_values is predictions and micro.width:  # as wide as the labels that they are held against
            values = pad(values, (0, micro.width - logits.shape[1]), value=NOT_COUNTED)
        self._seen.append((micro.index, values, _counted(self._problem, labels), finite))  # stays on the device
        self._texts_seen += len(micro.index)

    @property
    def complete(self) -> bool:
        """True if every text has been seen, by this rank or another."""
        return sum(gather(self._group, self._texts_seen)) >= self._texts

    def result(self) -> Tensor:
        """(text, ...) in the order in which the batches were given, texts that are ``NOT_COUNTED`` left out.

        Texts of different widths end in ``NOT_COUNTED``. Raises ``ValueError`` for logits that are not finite.
        """
        of_ranks = gather(self._group, self._seen if self._group is None else self._on_cpu())
        seen = [share for of_rank in of_ranks for share in of_rank]
        if sum(len(index) for index, *_ in seen) > self._texts:  # every rank has seen every text
            seen = of_ranks[0]
        finite = torch.cat([finite for *_, finite in seen]).cpu()
        if not bool(finite.all()):
            raise ValueError(not_finite(f"text {int(torch.cat([index for index, *_ in seen])[~finite].min())}"))
        return _in_order([share[:3] for share in seen])

    def _on_cpu(self) -> list[tuple[Tensor, ...]]:
        return [tuple(part.cpu() for part in share) for share in self._seen]


def labels_in_order(prepared: Prepared) -> Tensor:
    """(text, ...) the labels that metrics compare predictions with, in the order of ``Tally.result``."""
    problem, shares, before = prepared.subject.problem, [], 0
    for batch in prepared.batches:
        if (labels := problem.counted_labels_in(batch)) is None:
            raise ValueError(f"text {before} has no label: give `labels` with every batch.")
        index = torch.arange(before, before + len(labels))
        before += len(labels)
        shares.append((index, problem.targets(labels).cpu(), _counted(problem, labels).cpu()))
    return _in_order(shares)


def _counted(problem: Problem, labels: Tensor) -> Tensor:
    """(text,) bool: whether the label of a text counts; a text with several labels does."""
    by_text = labels if problem.labels == ("text",) else torch.zeros(len(labels), device=labels.device)
    return by_text != NOT_COUNTED


def _in_order(shares: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """(text, ...) on the CPU, from shares of texts: their positions (text,), values (text, ...), and whether they count
    (text,). Values and flags are joined before they leave the device."""
    if shares[0][1].dim() > 1:
        width = max(values.shape[1] for _, values, _ in shares)
        shares = [(i, pad(v, (0, width - v.shape[1]), value=NOT_COUNTED), c) for i, v, c in shares]
    index, values, counted = (torch.cat([share[i] for share in shares]).cpu() for i in range(3))
    order = index.argsort()
    return values[order][counted[order]]


def as_json(values: np.ndarray) -> dict[str, Any]:
    """Values of texts, (text, ...), for a line of JSON: (text,) bool as bits, others with type and shape."""
    if values.dtype == bool and values.ndim == 1:
        return {"correct": np.packbits(values).tobytes().hex()}
    return {"kept": [values.dtype.str, values.shape, values.tobytes().hex()]}


def from_json(line: Mapping[str, Any], texts: int) -> np.ndarray:
    """Inverse of ``as_json``, for ``texts`` texts."""
    if "correct" in line:
        bits = np.frombuffer(bytes.fromhex(line["correct"]), np.uint8)
        return np.unpackbits(bits, count=texts).astype(bool)
    kind, shape, content = line["kept"]
    return np.frombuffer(bytes.fromhex(content), kind).reshape(shape)
