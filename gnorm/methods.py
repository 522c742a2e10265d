"""The methods, a row each: a criterion, which end goes first, when it is scored afresh."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .criteria import gnorm_by_text, gnorm_cross_entropy, head_importance, hies, output_saliency, weight_magnitude
from .engine.batches import Prepared
from .engine.checks import Batch
from .scoring import Criterion, activation_energy, attention_entropy, gnorm_scores, uniform_scores


@dataclass(frozen=True)
class Method:
    """A row: which criterion scores the heads, which end goes first, and whether every step scores afresh.

    seeded: the criterion takes a ``generator``, and trials differ by the seed.
    """

    title: str
    criterion: Criterion
    highest_first: bool = False
    rescore: bool = False
    seeded: bool = False
    scored_on: str = "scoring"  # which texts of a profile it looks at

    def scores(self, model: nn.Module, batches: Iterable[Batch] | Prepared, generator: torch.Generator) -> Tensor:
        """(layer, head) float64, by the criterion; ``generator`` is for methods that draw at random."""
        drawn = {"generator": generator} if self.seeded else {}
        return self.criterion(model, batches, **drawn)


METHODS: dict[str, Method] = {
    "greedy_gnorm": Method("Greedy-Gnorm", gnorm_scores, rescore=True),
    "inverse_greedy_gnorm": Method("Inverse Greedy-Gnorm", gnorm_scores, highest_first=True, rescore=True),
    "attention_entropy": Method("Attention entropy", attention_entropy, highest_first=True, scored_on="entropy"),
    "inverse_attention_entropy": Method("Inverse attention entropy", attention_entropy, scored_on="entropy"),
    "random": Method("Random", uniform_scores, seeded=True),
}


# Methods that are not the paper's, under the same protocol: rows like those of METHODS, found by the same names.
MORE_METHODS: dict[str, Method] = {
    "activation_energy": Method("Activation energy", activation_energy, highest_first=True, scored_on="entropy"),
    "inverse_activation_energy": Method("Inverse activation energy", activation_energy, scored_on="entropy"),
    "head_importance": Method("Head importance (Michel)", head_importance, rescore=True),
    "output_saliency": Method("Output saliency (TextPruner)", output_saliency, rescore=True),
    "weight_magnitude": Method("Weight magnitude", weight_magnitude),
    "hies": Method("HIES", hies, rescore=True),
    "gnorm_by_text": Method("G-norm by text", gnorm_by_text, rescore=True),
    "gnorm_cross_entropy": Method("G-norm of the cross-entropy", gnorm_cross_entropy, rescore=True),
}


def find_method(name: str) -> Method:
    """The row of METHODS or MORE_METHODS called ``name``; ``ValueError`` where there is none."""
    methods = METHODS | MORE_METHODS
    if name not in methods:
        raise ValueError(f"method {name!r} is not known; choose one of {', '.join(methods)}.")
    return methods[name]
