"""What is kept of a model's answers, text by text: as much as a metric needs, off the passes that score heads too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .batches import MicroBatch, Prepared, labels_of
from .packing import not_finite
from .problems import NOT_COUNTED, Problem, problem_of
from .ranks import gather

# (problem, logits (text, ...) with padding at -inf, labels as the batch has them) -> what is kept of each text
Kept = Callable[[Problem, Tensor, Tensor], Tensor]


def predictions(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """What the model predicts, of the shape of the labels; ``NOT_COUNTED`` for a token whose label is not counted."""
    predicted, targets = problem.predict(problem.answers(logits)), problem.targets(labels)
    return (
        predicted.masked_fill(targets == NOT_COUNTED, NOT_COUNTED) if targets.dim() > 1 and problem.whole else predicted
    )


def hits(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """(text,) bool: whether the text is classified as its label says; of one logit, whether its sigmoid and its label
    are on the same side of 1/2."""
    answers, targets = problem.answers(logits), problem.targets(labels)
    return (answers > 0) == (targets > 0.5) if answers.dim() == 1 else answers.argmax(-1) == targets


def token_hits(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """(text, 2) how many tokens are predicted as their labels say, and how many are counted."""
    targets = problem.targets(labels)
    counted = targets != NOT_COUNTED
    return torch.stack([(problem.predict(problem.answers(logits)) == targets) & counted, counted], 1).sum(2)


def losses(problem: Problem, logits: Tensor, labels: Tensor) -> Tensor:
    """(text, 2) float64: the sum of the terms of the text's loss, and how many there are."""
    terms = problem.loss_terms(logits, labels).double().reshape(len(labels), -1)
    return torch.stack([terms.sum(1), problem.terms_of(labels).double()], 1)


class Tally:
    """What a metric keeps of each text, collected micro-batch by micro-batch.

    kept: what that is. purpose: what labels are for, in messages. Raises ``ValueError`` as ``check_labels`` does, when
    it is made.
    """

    def __init__(self, prepared: Prepared, model: nn.Module, kept: Kept = hits, purpose: str = "accuracy") -> None:
        if prepared.batches:
            prepared.check_labels(model, purpose)
        self._problem, self._kept, self._texts = problem_of(model), kept, prepared.num_texts
        self._group = prepared.group
        self._texts_seen = 0
        self._seen: list[tuple[Tensor, ...]] = []

    def __call__(self, logits: Tensor, micro: MicroBatch) -> None:
        z, labels = micro.without_padding(logits.detach()), labels_of(micro, logits)
        finite = z.flatten(1).isfinite().all(1)
        kept = self._kept(self._problem, micro.without_padding(z, -torch.inf), labels)
        if self._kept is predictions and micro.width:  # as wide as the labels that they are held against
            kept = pad(kept, (0, micro.width - logits.shape[1]), value=NOT_COUNTED)
        self._seen.append((micro.index, kept, _counted(self._problem, labels), finite))  # stays on the device
        self._texts_seen += len(micro.index)

    @property
    def complete(self) -> bool:
        """Whether every text has been seen, by this rank or another."""
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


def labels_in_order(prepared: Prepared, model: nn.Module) -> Tensor:
    """(text, ...) the labels that metrics compare predictions with, in the order of ``Tally.result``."""
    problem, shares, before = problem_of(model), [], 0
    for batch in prepared.batches:
        if (labels := problem.foreseen_in(batch)) is None:
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


def as_json(kept: np.ndarray) -> dict[str, Any]:
    """What a tally kept, (text, ...), for a line of JSON: (text,) bool as bits, others with type and shape."""
    if kept.dtype == bool and kept.ndim == 1:
        return {"correct": np.packbits(kept).tobytes().hex()}
    return {"kept": [kept.dtype.str, kept.shape, kept.tobytes().hex()]}


def from_json(line: Mapping[str, Any], texts: int) -> np.ndarray:
    """What ``as_json`` made a line of, of ``texts`` texts."""
    if "correct" in line:
        bits = np.frombuffer(bytes.fromhex(line["correct"]), np.uint8)
        return np.unpackbits(bits, count=texts).astype(bool)
    kind, shape, content = line["kept"]
    return np.frombuffer(bytes.fromhex(content), kind).reshape(shape)
