"""Names and other properties of very many clients, which are computed only when they are looked up."""

from __future__ import annotations

import bisect
from abc import abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar, overload

Value = TypeVar("Value")


class Lookup(Sequence[Value], Generic[Value]):
    """A sequence whose items are computed by `_at`."""

    def __init__(self, length: int) -> None:
        self._length = length

    @abstractmethod
    def _at(self, place: int) -> Value:
        """The member at a place from 0."""

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, place: int) -> Value: ...
    @overload
    def __getitem__(self, place: slice) -> list[Value]: ...
    def __getitem__(self, place: int | slice) -> Value | list[Value]:
        if isinstance(place, slice):
            return [self._at(i) for i in range(*place.indices(self._length))]
        if not -self._length <= place < self._length:
            raise IndexError(place)
        return self._at(place % self._length)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(other) == len(self)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]  # as for lists


class Numbered(Lookup[str]):
    """``00`` to ``41`` for 42 clients."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self._width = len(str(length - 1))

    def _at(self, place: int) -> str:
        return f"{place:0{self._width}d}"


class Prefixed(Lookup[str]):
    """``fog-00`` to ``fog-41`` for the prefix ``fog``."""

    def __init__(self, prefix: str, names: Sequence[str]) -> None:
        super().__init__(len(names))
        self._prefix, self._names = prefix, names

    def _at(self, place: int) -> str:
        return f"{self._prefix}-{self._names[place]}"


class Repeated(Lookup[Value]):
    """A sequence that repeats one value."""

    def __init__(self, value: Value, length: int) -> None:
        super().__init__(length)
        self._value = value

    def _at(self, place: int) -> Value:
        return self._value


class Joined(Lookup[Value]):
    """One sequence after the other."""

    def __init__(self, parts: Sequence[Sequence[Value]]) -> None:
        self._parts, self._ends = parts, list(accumulate(len(part) for part in parts))
        super().__init__(self._ends[-1] if self._ends else 0)

    @classmethod
    def of(cls, parts: Sequence[Sequence[Value]]) -> Sequence[Value]:
        """The sequence itself where there is but one."""
        return parts[0] if len(parts) == 1 else cls(parts)

    def _at(self, place: int) -> Value:
        part = bisect.bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]
