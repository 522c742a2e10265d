"""From a checkpoint and a file of texts to a smaller model with its model card.

    import gnorm.shipping
    own = gnorm.shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing, method=gnorm.shipping.RECOMMENDED)
    gnorm.shipping.ship(own, run, "my-smaller-model", budget=0.01)
    model = gnorm.load_pruned("my-smaller-model")

The model may classify texts or tokens, give a number, answer questions, choose, or be a language model; ``load`` says
which columns its texts come in. They are split at random into three: on one the heads are scored, on the next the
number of heads to remove is chosen, and on the last, which no choice depends on, the card's metric is measured. Any
method of ``gnorm.METHODS`` and ``gnorm.MORE_METHODS`` will do; the recommended one keeps the most accuracy in
docs/claims.md. A budget is a ``Promise`` for texts like these, with 90 % confidence; ``prune(..., until=
until_known(own, budget))`` ends the run where the answer is known. ``prune_units`` takes feed-forward neurons beside
heads. ``smaller_model`` gives what ``ship`` saves before it is saved, so that it can be trained further.
"""

from .choosing import along, choose, until_known
from .loading import Own, load
from .model_card import card
from .promise import Promise
from .recovery import most_within, recover, recovered_along
from .release import Release, ship, smaller_model
from .units import prune_units

RECOMMENDED = "head_importance"  # the largest area, in the mean over the models of the study

__all__ = [
    "RECOMMENDED",
    "Own",
    "Promise",
    "Release",
    "along",
    "card",
    "choose",
    "load",
    "most_within",
    "prune_units",
    "recover",
    "recovered_along",
    "ship",
    "smaller_model",
    "until_known",
]
