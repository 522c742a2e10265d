"""The methods, a row each: a criterion, which end goes first, when it is scored afresh."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .criteria import (
    fisher,
    flap,
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
from .engine.batches import Prepared
from .engine.checks import Batch
from .engine.gradients import QKV
from .scoring import Criterion, activation_energy, attention_entropy, gnorm_scores, uniform_scores


@dataclass(frozen=True)
class Method:
    """A row: which criterion scores the heads, which end goes first, and how often they are scored afresh.

    rescore_every: the heads are scored afresh before every step of this number; once, on the intact model, if 0.
    seeded: the criterion takes a ``generator``, and trials differ by the seed. follows: the method whose layers it
    takes heads from, one by one; "" for any layer.
    """

    title: str
    criterion: Criterion
    highest_first: bool = False
    rescore_every: int = 0
    seeded: bool = False
    follows: str = ""
    scored_on: str = "scoring"  # which texts of a profile it looks at

    def scores(self, model: nn.Module, batches: Iterable[Batch] | Prepared, generator: torch.Generator) -> Tensor:
        """(layer, head) float64, by the criterion; ``generator`` is for methods that draw at random."""
        drawn = {"generator": generator} if self.seeded else {}
        return self.criterion(model, batches, **drawn)


def _gnorm(what: str, **options: Any) -> Method:
    """The row of a variant of G-norm, scored afresh at every step."""
    return Method(f"G-norm, {what}", partial(gnorm_scores, **options), rescore_every=1)


def _entropy(when: str, rescore_every: int) -> Method:
    """The row of attention entropy as the paper has it, but for when it is scored."""
    return Method(
        f"Attention entropy, {when}",
        attention_entropy,
        highest_first=True,
        rescore_every=rescore_every,
        scored_on="entropy",
    )


METHODS: dict[str, Method] = {
    "greedy_gnorm": Method("Greedy-Gnorm", gnorm_scores, rescore_every=1),
    "inverse_greedy_gnorm": Method("Inverse Greedy-Gnorm", gnorm_scores, highest_first=True, rescore_every=1),
    "attention_entropy": Method("Attention entropy", attention_entropy, highest_first=True, scored_on="entropy"),
    "inverse_attention_entropy": Method("Inverse attention entropy", attention_entropy, scored_on="entropy"),
    "random": Method("Random", uniform_scores, seeded=True),
}


# Methods that are not the paper's, under the same protocol: rows like those of METHODS, found by the same names.
MORE_METHODS: dict[str, Method] = {
    # Other people's criteria.
    "activation_energy": Method("Activation energy", activation_energy, highest_first=True, scored_on="entropy"),
    "inverse_activation_energy": Method("Inverse activation energy", activation_energy, scored_on="entropy"),
    "head_importance": Method("Head importance (Michel)", head_importance, rescore_every=1),
    "output_saliency": Method("Output saliency (TextPruner)", output_saliency, rescore_every=1),
    "weight_magnitude": Method("Weight magnitude", weight_magnitude),
    "hies": Method("HIES", hies, rescore_every=1),
    "fisher": Method("Fisher information", fisher, rescore_every=1),
    "output_norm": Method("Output norm (AHON)", output_norm, rescore_every=1),
    "flap": Method("FLAP", flap, rescore_every=1),
    # Controls: what is left without the score, without what the model has learned, and with the answer itself.
    "matched_random": Method("Matched random", uniform_scores, seeded=True, follows="greedy_gnorm"),
    "gnorm_shuffled_weights": Method(
        "G-norm of shuffled weights", partial(shuffled_weights, criterion=gnorm_scores), seeded=True
    ),
    "importance_shuffled_labels": Method(
        "Head importance of shuffled labels",
        partial(shuffled_labels, criterion=head_importance),
        rescore_every=1,
        seeded=True,
    ),
    "oracle": Method("Oracle", oracle, rescore_every=1),
    # When heads are scored.
    "gnorm_once": Method("G-norm, once", gnorm_scores),
    "gnorm_every_8": Method("G-norm, every 8th step", gnorm_scores, rescore_every=8),
    "gnorm_every_4": Method("G-norm, every 4th step", gnorm_scores, rescore_every=4),
    "entropy_every_8": _entropy("every 8th step", 8),
    "entropy_every_4": _entropy("every 4th step", 4),
    "entropy_every_step": _entropy("every step", 1),
    "importance_once": Method("Head importance, once", head_importance),
    "importance_every_8": Method("Head importance, every 8th step", head_importance, rescore_every=8),
    "importance_every_4": Method("Head importance, every 4th step", head_importance, rescore_every=4),
    # What is scored, one factor at a time beside the paper's choice.
    "gnorm_sum": _gnorm("sum of norms", combine="sum"),
    "gnorm_max": _gnorm("largest norm", combine="max"),
    "gnorm_q": _gnorm("query alone", parts=("query",)),
    "gnorm_k": _gnorm("key alone", parts=("key",)),
    "gnorm_v": _gnorm("value alone", parts=("value",)),
    "gnorm_qk": _gnorm("query and key", parts=("query", "key")),
    "gnorm_qkvo": _gnorm("with the output projection", parts=(*QKV, "output")),
    "gnorm_weighted": _gnorm("weight times gradient", weighted=True),
    "gnorm_centred": _gnorm("logits centred over classes", centred=True),
    "gnorm_margin": Method("G-norm of the margin", gnorm_margin, rescore_every=1),
    "gnorm_cross_entropy": Method("G-norm of the cross-entropy", gnorm_cross_entropy, rescore_every=1),
    "gnorm_by_text": Method("G-norm by text", gnorm_by_text, rescore_every=1),
}


def find_method(name: str) -> Method:
    """The row of METHODS or MORE_METHODS called ``name``; ``ValueError`` where there is none."""
    methods = METHODS | MORE_METHODS
    if name not in methods:
        letter = "; give a list of names, not one string" if len(name) == 1 else ""
        raise ValueError(f"method {name!r} is not known; choose one of {', '.join(methods)}{letter}.")
    return methods[name]
