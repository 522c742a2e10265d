"""benchmarks/promise.py: draws of models that are trained after pruning, with hits that are written by hand."""

import numpy as np

from benchmarks.promise import trained_loss

BEFORE = np.ones(1000, bool)


def without(texts):
    """Hits on all texts but the first ``texts``."""
    return np.arange(1000) >= texts


def draw(trained, budget=0.02):
    return trained_loss(BEFORE, trained, budget, np.random.default_rng(0))


def test_the_last_state_before_the_first_that_is_not_shown_is_taken():
    assert draw({0: BEFORE, 4: BEFORE, 8: without(500), 12: BEFORE}) == (0.0, 4, True)


def test_where_not_even_the_first_is_shown_nothing_goes():
    assert draw({0: without(500), 4: BEFORE}) == (0.0, 0, False)


def test_what_is_lost_is_measured_on_the_texts_that_nothing_was_chosen_by():
    chosen, tested = np.array_split(np.random.default_rng(0).permutation(1000), 2)
    hits = BEFORE.copy()
    hits[tested[:50]] = False
    assert draw({4: hits}) == (1 - 0.9, 4, True)
    hits = BEFORE.copy()
    hits[chosen[:50]] = False
    assert draw({4: hits}) == (0.0, 0, False)
