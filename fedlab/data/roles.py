"""Which clients only evaluate, and which hold test samples."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from fedlab.errors import DataError, did_you_mean
from fedlab.seeding import numpy_generator


def unseen_clients(wanted: float | Sequence[str], names: Sequence[str], seed: int) -> frozenset[int]:
    """Clients held out from training: ⌊share · N⌋ at random, but at least one, or those whose names match a pattern.

    Raises:
        DataError: a pattern without a match, or nobody left to train.
    """
    if isinstance(wanted, float):
        if len(names) < 2:
            raise DataError("data.unseen", wanted, "at least 2 clients, one to train", "divide the data among more")
        count = _share(wanted, len(names))
        chosen = numpy_generator(seed, "unseen").choice(len(names), size=count, replace=False)
        return frozenset(int(client) for client in chosen)
    found: set[int] = set()
    for pattern in wanted:
        matching = {client for client, name in enumerate(names) if fnmatchcase(name, pattern)}
        if not matching:
            raise DataError(
                "data.unseen", pattern, "names of clients, or patterns of them", did_you_mean(pattern, names)
            )
        found |= matching
    if len(found) == len(names):
        raise DataError("data.unseen", list(wanted), "at least one client left to train", "match fewer clients")
    return frozenset(found)


def untested_clients(share: float, unseen: frozenset[int], sizes: np.ndarray, seed: int) -> np.ndarray:
    """Clients whose test samples are left out: all but ⌊share · N⌋ of the N that train, of which one keeps its own.

    Args:
        share: of the training clients keep their test samples.
        unseen: clients held out, which all keep theirs.
        sizes: test samples by client.
        seed: the run's seed.
    """
    training = np.setdiff1d(np.arange(len(sizes)), np.fromiter(unseen, np.int64, len(unseen)))
    if share == 1.0:
        return training[:0]
    holders = numpy_generator(seed, "test clients").permutation(training[sizes[training] > 0])
    return np.setdiff1d(training, holders[: _share(share, len(training))])


def _share(share: float, count: int) -> int:
    # 10 · 0.3 must give 3, so a product just below an integer counts as that integer
    return max(1, int(share * count + 1e-9))
