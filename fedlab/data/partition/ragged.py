"""Lists of many clients, stored in two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Index lists of many clients in two arrays: client i holds ``order[offsets[i]:offsets[i + 1]]``."""

    order: np.ndarray
    offsets: np.ndarray

    @classmethod
    def by_owner(cls, owner: np.ndarray, count: int) -> Ragged:
        """Built from the client of every sample; samples with a negative number belong to no client."""
        order = np.argsort(owner, kind="stable")
        offsets = np.searchsorted(owner[order], np.arange(count + 1))
        return cls(order, offsets)

    @classmethod
    def joined(cls, lists: Sequence[np.ndarray]) -> Ragged:
        """Built from one list per client."""
        order = np.concatenate(lists) if lists else np.empty(0, np.int64)
        return cls(order, np.concatenate([[0], np.cumsum([len(part) for part in lists])]).astype(np.int64))

    def emptied(self, clients: np.ndarray) -> Ragged:
        """A copy in which the lists of `clients` are empty."""
        sizes = self.sizes
        sizes[clients] = 0
        kept = np.ones(len(self), bool)
        kept[clients] = False
        return Ragged(self.order[np.repeat(kept, self.sizes)], np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))

    def of(self, clients: np.ndarray) -> Ragged:
        """The lists of `clients`, in that order."""
        if np.array_equal(clients, np.arange(len(self))):
            return self
        return Ragged.joined([self[client] for client in clients])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.order[self.offsets[index] : self.offsets[index + 1]]

    def size(self, index: int) -> int:
        """The length of one client's list."""
        return int(self.offsets[index + 1] - self.offsets[index])

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)
