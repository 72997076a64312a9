"""Rules that make false captions by changing a caption as little as possible.

The five subtypes of DeGLA (arXiv 2504.16801, §3.2), which has a language model write them, and the replaced relation
of SugarCrepe (Hsieh et al. 2023). A rule does not see the image. Whether its caption is really false depends on the
word lists: a relation must be asymmetric, and the adjectives must exclude each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Words = tuple[str, ...]
KINDS = ("reshuffle", "swap_noun", "swap_adjective", "replace_adjective", "replace_noun", "replace_relation", "order")


@dataclass(frozen=True)
class NegativeRules:
    """Rules over word lists; an empty list switches its rules off.

    Args:
        adjectives: words that exclude each other as attributes of one thing.
        nouns: words that exclude each other as names of one thing.
        relations: relation as words → its opposite as words, ``("left", "of"): ("right", "of")``.
    """

    adjectives: Collection[str] = ()
    nouns: Collection[str] = ()
    relations: Mapping[Words, Words] = field(default_factory=dict)

    def make(self, kind: str, words: Sequence[str], rng: np.random.Generator) -> Words | None:
        """A false caption of one kind, or None if the rule does not apply to this caption.

        Args:
            kind: one of `KINDS`. ``reshuffle`` exchanges what stands on either side of the relation; ``order``
                permutes all words, which mostly shows without the image.
            words: the true caption.
            rng: draws which words change.
        """
        rules: dict[str, Callable[[], Words | None]] = {
            "reshuffle": lambda: self._reshuffle(words),
            "swap_noun": lambda: _swap(words, self.nouns, rng),
            "swap_adjective": lambda: _swap(words, self.adjectives, rng),
            "replace_adjective": lambda: _replace(words, self.adjectives, rng),
            "replace_noun": lambda: _replace(words, self.nouns, rng),
            "replace_relation": lambda: self._replace_relation(words),
            "order": lambda: _permute(words, rng),
        }
        return rules[kind]()

    def _relation(self, words: Sequence[str]) -> tuple[int, Words] | None:
        """Where the first relation starts, and which it is; of two at one place the longer."""
        for start in range(len(words)):
            found = [phrase for phrase in self.relations if tuple(words[start : start + len(phrase)]) == phrase]
            if found:
                return start, max(found, key=len)
        return None

    def _reshuffle(self, words: Sequence[str]) -> Words | None:
        found = self._relation(words)
        if found is None:
            return None
        start, phrase = found
        left, right = tuple(words[:start]), tuple(words[start + len(phrase) :])
        return (*right, *phrase, *left) if left and right and left != right else None

    def _replace_relation(self, words: Sequence[str]) -> Words | None:
        found = self._relation(words)
        if found is None:
            return None
        start, phrase = found
        return (*words[:start], *self.relations[phrase], *words[start + len(phrase) :])


def _swap(words: Sequence[str], among: Collection[str], rng: np.random.Generator) -> Words | None:
    """Two different words of the list change places."""
    places = [place for place, word in enumerate(words) if word in among]
    pairs = [(a, b) for i, a in enumerate(places) for b in places[i + 1 :] if words[a] != words[b]]
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    changed = list(words)
    changed[a], changed[b] = words[b], words[a]
    return tuple(changed)


def _replace(words: Sequence[str], among: Collection[str], rng: np.random.Generator) -> Words | None:
    """One word of the list becomes one that the caption does not contain."""
    places = [place for place, word in enumerate(words) if word in among]
    others = sorted(set(among) - set(words))
    if not places or not others:
        return None
    changed = list(words)
    changed[places[int(rng.integers(len(places)))]] = others[int(rng.integers(len(others)))]
    return tuple(changed)


def _permute(words: Sequence[str], rng: np.random.Generator) -> Words | None:
    """All words in another order."""
    if len(set(words)) < 2:
        return None
    while True:
        changed = tuple(words[place] for place in rng.permutation(len(words)))
        if changed != tuple(words):
            return changed
