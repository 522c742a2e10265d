"""The methods, a row each: a criterion, which end goes first, when it is scored afresh."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .criteria import (
    fisher,
    flap,
    gnorm_balanced,
    gnorm_by_layer,
    gnorm_by_text,
    gnorm_cross_entropy,
    gnorm_margin,
    head_importance,
    hies,
    oracle,
    output_norm,
    output_saliency,
    shuffled_labels,
    shuffled_weights,
    weight_magnitude,
)
from .engine.backward.gradients import QKV
from .engine.model.sizes import Batch
from .engine.texts.batches import Prepared
from .scoring import Criterion, activation_energy, attention_entropy, gnorm_scores, uniform_scores

# criterion: a score of its own. control: what is left without the score, without what the model has learned, or with
# the answer itself. schedule: another row's criterion, scored more or less often. variant: G-norm, one choice changed.
KINDS = ("criterion", "control", "schedule", "variant")


@dataclass(frozen=True)
class Method:
    """A row: which criterion scores the heads, which end goes first, and how often they are scored afresh.

    rescore_every: the heads are scored afresh before every step of this number; once, on the intact model, if 0.
    seeded: the criterion takes a ``generator``, and trials differ by the seed. follows: the method whose layers it
    takes heads from, one by one; "" for any layer. kind: a name in ``KINDS``; the study, the notebooks and the figures
    take their lists from it. factor: the choice of the paper that a schedule or variant of G-norm changes.
    """

    title: str
    criterion: Criterion
    highest_first: bool = False
    rescore_every: int = 0
    seeded: bool = False
    follows: str = ""
    scored_on: str = "scoring"  # which texts of a profile it looks at
    kind: str = "criterion"
    factor: str = ""

    def scores(self, model: nn.Module, batches: Iterable[Batch] | Prepared, generator: torch.Generator) -> Tensor:
        """(layer, head) float64, by the criterion; ``generator`` is for methods that draw at random."""
        drawn = {"generator": generator} if self.seeded else {}
        return self.criterion(model, batches, **drawn)


def _variant(factor: str, title: str, criterion: Criterion) -> Method:
    """The row of a variant of G-norm, scored afresh at every step."""
    return Method(title, criterion, rescore_every=1, kind="variant", factor=factor)


def _gnorm(factor: str, what: str, **options: Any) -> Method:
    return _variant(factor, f"G-norm, {what}", partial(gnorm_scores, **options))


def _scheduled(row: Method, title: str, when: str, rescore_every: int, factor: str = "") -> Method:
    """``row`` scored afresh as often as ``when`` says."""
    return replace(row, title=f"{title}, {when}", rescore_every=rescore_every, kind="schedule", factor=factor)


METHODS: dict[str, Method] = {
    "greedy_gnorm": Method("Greedy-Gnorm", gnorm_scores, rescore_every=1),
    "inverse_greedy_gnorm": Method("Inverse Greedy-Gnorm", gnorm_scores, highest_first=True, rescore_every=1),
    "attention_entropy": Method("Attention entropy", attention_entropy, highest_first=True, scored_on="entropy"),
    "inverse_attention_entropy": Method("Inverse attention entropy", attention_entropy, scored_on="entropy"),
    "random": Method("Random", uniform_scores, seeded=True, kind="control"),
}


_IMPORTANCE = Method("Head importance (Michel)", head_importance, rescore_every=1)
_GNORM, _ENTROPY = METHODS["greedy_gnorm"], METHODS["attention_entropy"]
_WHEN, _JOINED, _OF, _WHAT, _OBJECTIVE = (
    *("when it is scored", "how norms are joined", "of which projections", "of what", "objective"),
)

# Methods that are not the paper's, under the same protocol: rows like those of METHODS, found by the same names.
MORE_METHODS: dict[str, Method] = {
    "activation_energy": Method("Activation energy", activation_energy, highest_first=True, scored_on="entropy"),
    "inverse_activation_energy": Method("Inverse activation energy", activation_energy, scored_on="entropy"),
    "head_importance": _IMPORTANCE,
    "output_saliency": Method("Output saliency (TextPruner)", output_saliency, rescore_every=1),
    "weight_magnitude": Method("Weight magnitude", weight_magnitude),
    "hies": Method("HIES", hies, rescore_every=1),
    "fisher": Method("Fisher information", fisher, rescore_every=1),
    "output_norm": Method("Output norm (AHON)", output_norm, rescore_every=1),
    "flap": Method("FLAP", flap, rescore_every=1),
    "matched_random": Method("Matched random", uniform_scores, seeded=True, follows="greedy_gnorm", kind="control"),
    "gnorm_shuffled_weights": Method(
        "G-norm of shuffled weights", partial(shuffled_weights, criterion=gnorm_scores), seeded=True, kind="control"
    ),
    "importance_shuffled_labels": Method(
        "Head importance of shuffled labels",
        partial(shuffled_labels, criterion=head_importance),
        rescore_every=1,
        seeded=True,
        kind="control",
    ),
    "oracle": Method("Oracle", oracle, rescore_every=1, kind="control"),
    "gnorm_once": _scheduled(_GNORM, "G-norm", "once", 0, _WHEN),
    "gnorm_every_8": _scheduled(_GNORM, "G-norm", "every 8th step", 8, _WHEN),
    "gnorm_every_4": _scheduled(_GNORM, "G-norm", "every 4th step", 4, _WHEN),
    "entropy_every_8": _scheduled(_ENTROPY, "Attention entropy", "every 8th step", 8),
    "entropy_every_4": _scheduled(_ENTROPY, "Attention entropy", "every 4th step", 4),
    "entropy_every_step": _scheduled(_ENTROPY, "Attention entropy", "every step", 1),
    "importance_once": _scheduled(_IMPORTANCE, "Head importance", "once", 0),
    "importance_every_8": _scheduled(_IMPORTANCE, "Head importance", "every 8th step", 8),
    "importance_every_4": _scheduled(_IMPORTANCE, "Head importance", "every 4th step", 4),
    "gnorm_sum": _gnorm(_JOINED, "sum of norms", combine="sum"),
    "gnorm_max": _gnorm(_JOINED, "largest norm", combine="max"),
    "gnorm_q": _gnorm(_OF, "query alone", projections=("query",)),
    "gnorm_k": _gnorm(_OF, "key alone", projections=("key",)),
    "gnorm_v": _gnorm(_OF, "value alone", projections=("value",)),
    "gnorm_qk": _gnorm(_OF, "query and key", projections=("query", "key")),
    "gnorm_qkvo": _gnorm(_OF, "with the output projection", projections=(*QKV, "output")),
    "gnorm_weighted": _gnorm(_WHAT, "weight times gradient", weighted=True),
    "gnorm_centred": _gnorm(_OBJECTIVE, "logits centred over classes", centred=True),
    "gnorm_margin": _variant(_OBJECTIVE, "G-norm of the margin", gnorm_margin),
    "gnorm_cross_entropy": _variant(_OBJECTIVE, "G-norm of the cross-entropy", gnorm_cross_entropy),
    "gnorm_by_text": _variant(_WHAT, "G-norm by text", gnorm_by_text),
    "gnorm_by_layer": _variant(_WHAT, "G-norm less its layer's mean", gnorm_by_layer),
    "gnorm_balanced": _variant(_WHAT, "G-norm of balanced heads", gnorm_balanced),
}


def names_of(kind: str) -> list[str]:
    """The names in ``MORE_METHODS`` of the rows of this kind; ``ValueError`` for a kind that is not in ``KINDS``."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not known; choose one of {', '.join(KINDS)}.")
    return [name for name, row in MORE_METHODS.items() if row.kind == kind]


def find_method(name: str) -> Method:
    """The row of METHODS or MORE_METHODS called ``name``; ``ValueError`` where there is none."""
    methods = METHODS | MORE_METHODS
    if name not in methods:
        letter = "; give a list of names, not one string" if len(name) == 1 else ""
        raise ValueError(f"method {name!r} is not known; choose one of {', '.join(methods)}{letter}.")
    return methods[name]
