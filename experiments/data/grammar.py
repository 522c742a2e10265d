"""Pairs of sentences from a small grammar: entailment, neutral or contradiction by construction."""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# The lexicon. In both trees each word implies the word above it: poodles are dogs, dogs are animals.
NOUNS = {
    "animals": {
        "dogs": ("poodles", "terriers", "spaniels"),
        "birds": ("parrots", "owls", "geese"),
        "horses": ("ponies", "mares", "stallions"),
    },
    "people": {
        "children": ("boys", "girls", "toddlers"),
        "workers": ("nurses", "bakers", "farmers"),
        "musicians": ("drummers", "pianists", "singers"),
    },
}

VERBS = {
    "moved": {
        "ran": ("sprinted", "jogged", "galloped"),
        "walked": ("strolled", "limped", "marched"),
        "jumped": ("hopped", "leapt", "bounced"),
    },
    "ate": {
        "ate fruit": ("ate apples", "ate cherries", "ate plums"),
        "ate meat": ("ate ham", "ate beef", "ate chicken"),
        "ate bread": ("ate toast", "ate rolls", "ate crusts"),
    },
}

ADJECTIVES = ("small", "old", "hungry", "happy", "brown", "noisy", "tired", "young")

PLACES = ("in the garden", "in the park", "near the river", "at the market", "on the hill", "by the road")

# By quantifier: its denial, and whether a sentence stays true for wider (+1) or narrower (-1) nouns and verbs.
QUANTIFIERS = {"some": ("no", +1), "no": ("some", -1)}


def _wider(tree: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, str]:
    """For each word of a tree except the roots, the word above it."""
    above = {word: root for root, branch in tree.items() for word in branch}
    return above | {leaf: word for branch in tree.values() for word, leaves in branch.items() for leaf in leaves}


ABOVE = _wider(NOUNS) | _wider(VERBS)

BELOW = {word: [low for low, high in ABOVE.items() if high == word] for word in ABOVE.values()}


class Phrase(NamedTuple):
    """A noun with an adjective, or a verb with a place; the modifier "" stands for none."""

    word: str
    modifier: str = ""

    def moves(self, direction: int, modifiers: Sequence[str]) -> list["Phrase"]:
        """The phrases one step wider (+1) or narrower (-1): a word up or down the tree, or a modifier less or more."""
        words = [ABOVE[self.word]] if self.word in ABOVE else []
        words, others = (words, [""]) if direction > 0 else (BELOW.get(self.word, []), list(modifiers))
        changes_modifier = bool(self.modifier) == (direction > 0)
        return [Phrase(word, self.modifier) for word in words] + [
            Phrase(self.word, other) for other in others if changes_modifier
        ]

    def within(self, other: "Phrase") -> bool:
        """True if ``other`` is true of everything that this phrase is true of."""
        word = self.word
        while word != other.word and word in ABOVE:
            word = ABOVE[word]
        return word == other.word and other.modifier in ("", self.modifier)


class Sentence(NamedTuple):
    """A quantifier, a noun phrase and a verb phrase: (no, dogs, ran) is the sentence "No dogs ran."."""

    quantifier: str
    noun: Phrase
    verb: Phrase

    def __str__(self) -> str:
        words = (self.quantifier, self.noun.modifier, self.noun.word, self.verb.word, self.verb.modifier)
        return " ".join(filter(None, words)).capitalize() + "."

    def entails(self, other: "Sentence") -> bool:
        """True if ``other`` follows: the same quantifier, and both phrases wider (some) or narrower (no), or equal."""
        (_, direction), pairs = QUANTIFIERS[self.quantifier], ((self.noun, other.noun), (self.verb, other.verb))
        return self.quantifier == other.quantifier and all(
            mine.within(its) if direction > 0 else its.within(mine) for mine, its in pairs
        )

    def label(self, hypothesis: "Sentence") -> int:
        """The label of (this sentence, hypothesis): 0 entailment, 1 neutral, 2 contradiction."""
        denied = hypothesis._replace(quantifier=QUANTIFIERS[hypothesis.quantifier][0])
        return 0 if self.entails(hypothesis) else 2 if self.entails(denied) else 1


def _moved(phrase: Phrase, modifiers: Sequence[str], rng: random.Random) -> Phrase:
    """The phrase as it is, one step wider, or one step narrower."""
    direction = rng.choice((-1, 0, 1))
    moves = phrase.moves(direction, modifiers) if direction else []
    return rng.choice(moves or [phrase])


def _premises(hypothesis: Sentence, rng: random.Random) -> list[Sentence]:
    """A premise for each of the three labels, in order; an empty list if 60 draws do not give all three."""
    premises: dict[int, Sentence] = {}
    for _ in range(60):
        quantifier = rng.choice((hypothesis.quantifier, QUANTIFIERS[hypothesis.quantifier][0]))
        noun, verb = _moved(hypothesis.noun, ADJECTIVES, rng), _moved(hypothesis.verb, PLACES, rng)
        if (noun, verb) != (hypothesis.noun, hypothesis.verb):
            premise = Sentence(quantifier, noun, verb)
            premises.setdefault(premise.label(hypothesis), premise)
    return [premises[label] for label in range(3)] if len(premises) == 3 else []


def entailment_pairs(count: int, rng: random.Random) -> list[tuple[str, str, int]]:
    """At least ``count`` rows (premise, hypothesis, label): 0 for entailment, 1 for neutral, 2 for contradiction.

    A premise has a wider or narrower noun and verb than its hypothesis, and the same quantifier or its denial. Each
    hypothesis is drawn once and has three rows, one for each label; see ``Sentence.label``.
    """
    nouns, verbs = ([*tree, *itertools.chain(*tree.values())] for tree in (NOUNS, VERBS))
    drawn: dict[str, list[Sentence]] = {}
    while 3 * len(drawn) < count:
        hypothesis = Sentence(
            rng.choice(list(QUANTIFIERS)),
            Phrase(rng.choice(nouns), rng.choice(("", rng.choice(ADJECTIVES)))),
            Phrase(rng.choice(verbs), rng.choice(("", rng.choice(PLACES)))),
        )
        if str(hypothesis) not in drawn and (premises := _premises(hypothesis, rng)):
            drawn[str(hypothesis)] = premises
    return [(str(p), h, label) for h, premises in drawn.items() for label, p in enumerate(premises)]
