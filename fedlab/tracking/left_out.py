"""Counts what was there and was not used, so that a result never has less behind it than it seems to have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

_SHOWN = 3


@dataclass(frozen=True)
class LeftOut:
    """Things of one kind that were left out for one reason.

    Args:
        what: the things, in the plural: ``files``, ``test samples``, ``seconds of sound``.
        count: how many were left out.
        why: the reason, as a clause: ``no client trains on their class``.
        total: how many there were, None where that is not known.
        fix: one sentence, what to do about it; "" where nothing is to be done.
        examples: names of some of them.
        wanted: whether the configuration asks for it; then it is reported as a note and not as a warning.
    """

    what: str
    count: float
    why: str
    total: float | None = None
    fix: str = ""
    examples: tuple[str, ...] = ()
    wanted: bool = False

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,.10g}"
        more = ", …" if len(self.examples) > _SHOWN or self.count > len(self.examples) else ""
        named = f" ({', '.join(self.examples[:_SHOWN])}{more})" if self.examples else ""
        fix = f" To do: {self.fix}" if self.fix else ""
        return f"{self.count:,.10g}{of} {self.what} left out: {self.why}{named}.{fix}"

    def __add__(self, other: LeftOut) -> LeftOut:
        """The sum of two counts of the same things, of different rounds or parts."""
        total = None if self.total is None or other.total is None else self.total + other.total
        examples = tuple(dict.fromkeys(self.examples + other.examples))
        return replace(self, count=self.count + other.count, total=total, examples=examples)

    @property
    def kind(self) -> tuple[str, str, bool]:
        """The key by which counts are added up: the things, the reason, and whether it was asked for."""
        return self.what, self.why, self.wanted

    @property
    def notice(self) -> str:
        """The count as one line: a note if it was asked for, otherwise a warning."""
        return f"{'note' if self.wanted else 'warning'}: {self}"

    def fields(self) -> dict[str, Any]:
        """Fields of the event ``left_out``."""
        return asdict(self)

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> LeftOut:
        """From an event ``left_out``."""
        known = {name: event[name] for name in ("what", "count", "why", "total", "fix")}
        return cls(**known, examples=tuple(event["examples"]), wanted=bool(event.get("wanted", False)))
