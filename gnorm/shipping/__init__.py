"""A checkpoint and a file of texts in, a smaller model with its card out.

    import gnorm.shipping
    own = gnorm.shipping.load("my-checkpoint", "my-texts.csv")
    run = gnorm.prune(own.model, own.scoring, own.choosing)
    gnorm.shipping.ship(own, run, "my-smaller-model", budget=0.01)
    model = gnorm.load_pruned("my-smaller-model")

The texts are shared out at random: heads are scored on some, the number of heads that go is chosen on others, and what
the card says of accuracy is measured on the rest, which nothing was chosen by.
"""

from .loading import Own, load
from .model_card import card
from .release import ship

__all__ = ["Own", "card", "load", "ship"]
