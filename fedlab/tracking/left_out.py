"""What was there and is not used, counted: no result may stand on less than it seems to without saying so."""

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
        wanted: the configuration asks for it, so that it is a fact to be told and no cause for alarm.
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
        """The same things, left out again: of other rounds or other parts."""
        total = None if self.total is None or other.total is None else self.total + other.total
        examples = tuple(dict.fromkeys(self.examples + other.examples))
        return replace(self, count=self.count + other.count, total=total, examples=examples)

    @property
    def kind(self) -> tuple[str, str, bool]:
        """What is added up: things that were left out for one reason, asked for or not."""
        return self.what, self.why, self.wanted

    @property
    def notice(self) -> str:
        """The record as a line: a note where it was asked for, or else a warning."""
        return f"{'note' if self.wanted else 'warning'}: {self}"

    def fields(self) -> dict[str, Any]:
        """Fields of the event ``left_out``."""
        return asdict(self)

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> LeftOut:
        """From an event ``left_out``."""
        known = {name: event[name] for name in ("what", "count", "why", "total", "fix")}
        return cls(**known, examples=tuple(event["examples"]), wanted=bool(event.get("wanted", False)))
