"""Detects divergence from one evaluation to the next: a run may end without an error and its result still be worthless.

Only what every classifier has is judged: ``accuracy`` and ``loss`` (mean cross-entropy in nats) of all test samples
together, of which chance is 1/K and ln K for K classes. A method that knows of other ways to fail raises its own alarm
with `fedlab.method.ServerContext.alarm`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ABOVE_CHANCE = 1.5
"""A result of so many times chance has learned something: accuracy from 1.5/K on, a loss below ln K / 1.5."""
_PATIENCE = 5  # evaluations at chance before a run that never learned anything is suspected


class Watch:
    """Compares each evaluation with those before it.

    Args:
        num_classes: K; below 2 there is no chance level, and nothing is said.
    """

    def __init__(self, num_classes: int) -> None:
        self._classes = num_classes
        self._learned = {"accuracy": False, "loss": False}
        self._at_chance = 0

    def see(self, pooled: Mapping[str, float]) -> list[str]:
        """Alarms of one evaluation, given metric values of all test samples together."""
        accuracy, loss, k = pooled.get("accuracy"), pooled.get("loss"), self._classes
        if accuracy is None or loss is None or k < 2:
            return []
        if not math.isfinite(loss):
            return ["divergence: the loss on test samples is not finite"]
        found = []
        if self._learned["accuracy"] and accuracy <= 1 / k:
            found.append(f"divergence: accuracy has fallen back to chance (1/{k}); it was above before")
        if self._learned["loss"] and loss >= math.log(k):
            found.append(f"divergence: the loss has risen to that of chance (ln {k}) or above; it was below before")
        self._learned["accuracy"] |= accuracy >= ABOVE_CHANCE / k
        self._learned["loss"] |= loss <= math.log(k) / ABOVE_CHANCE
        self._at_chance = 0 if accuracy > 1 / k else self._at_chance + 1
        if self._at_chance >= _PATIENCE and not self._learned["accuracy"]:
            found.append(f"nothing is learned: accuracy is at chance (1/{k}) or below in {_PATIENCE} evaluations")
        return found

    def book(self) -> dict[str, Any]:
        """What lasts from round to round, for a checkpoint."""
        return {"learned": dict(self._learned), "at_chance": self._at_chance}

    def restore(self, book: Mapping[str, Any]) -> None:
        """Take over the `book` of a checkpoint; an empty one is of a run without."""
        self._learned |= {name: bool(value) for name, value in book.get("learned", {}).items()}
        self._at_chance = int(book.get("at_chance", 0))
