"""Ranges of numbers that a search draws from, as they are written: ``log(1e-4, 1e-1)``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.distributions import FloatDistribution, IntDistribution

_KINDS = ("float", "log", "int", "logint")
_FORM = "float(low, high), log(low, high), int(low, high) or logint(low, high); float and int also with a step"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        kind: ``float`` and ``int`` are even, ``log`` and ``logint`` even in the logarithm.
        low: the smallest number.
        high: the largest number.
        step: distance of the numbers, counted from `low`; None for all numbers of the kind.
    """

    kind: str
    low: float
    high: float
    step: float | None = None

    @classmethod
    def parse(cls, text: str) -> Range:
        """A range from its text.

        Raises:
            ValueError: it is not written as one, or there are no numbers in it.
        """
        found = re.fullmatch(r"\s*([a-z]+)\((.*)\)\s*", text)
        parts = [part.strip() for part in found[2].split(",")] if found else []
        if not found or found[1] not in _KINDS or len(parts) not in (2, 3):
            raise ValueError(f"a list of values, or a range: {_FORM}; not {text!r}")
        kind = found[1]
        try:
            low, high, *rest = (int(part) if kind.endswith("int") else float(part) for part in parts)
        except ValueError:
            whole = "whole numbers" if kind.endswith("int") else "numbers"
            raise ValueError(f"{whole} in {text!r}") from None
        made = cls(kind, low, high, *rest)
        made._check(text)
        return made

    def _check(self, text: str) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)) or self.low >= self.high:
            raise ValueError(f"a lower bound below the upper one in {text!r}")
        if self.kind.startswith("log") and self.low <= 0:
            raise ValueError(f"a lower bound above 0 in {text!r}, because its logarithm is drawn")
        if self.step is not None and (self.kind.startswith("log") or not 0 < self.step <= self.high - self.low):
            raise ValueError(f"a step above 0 that fits into the range, and none for log and logint, in {text!r}")

    @property
    def distribution(self) -> FloatDistribution | IntDistribution:
        """The same for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        log = self.kind.startswith("log")
        if self.kind.endswith("int"):
            return IntDistribution(int(self.low), int(self.high), log=log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=log, step=self.step)
