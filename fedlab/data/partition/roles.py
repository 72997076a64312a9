"""Which clients are only evaluated, which keep their test samples, and which samples are left out because of that."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np

from fedlab.data.partition.partition import Partition
from fedlab.data.partition.ragged import Ragged
from fedlab.data.samples import Dataset
from fedlab.errors import DataError, did_you_mean
from fedlab.seeding import numpy_generator
from fedlab.tracking.left_out import LeftOut

_NAMED = 3


def unseen_clients(
    wanted: float | Sequence[str], names: Sequence[str], seed: int, untrained: Collection[int] = ()
) -> frozenset[int]:
    """Unseen clients, which never train: ⌊share · N⌋ at random, but at least one, or those that match a pattern.

    Args:
        wanted: a share, or patterns.
        names: of all clients.
        seed: the run's seed.
        untrained: clients without training samples, the last ones; a share is of the others.

    Raises:
        DataError: a pattern without a match, or nobody left to train.
    """
    if isinstance(wanted, float):
        clients = len(names) - len(untrained)
        if clients < 2:
            raise DataError(
                "data.unseen", wanted, "at least 2 clients, one of which trains", "divide the data among more clients"
            )
        count = _share(wanted, clients)
        chosen = numpy_generator(seed, "unseen").choice(clients, size=count, replace=False)
        return frozenset(int(client) for client in chosen)
    found: set[int] = set()
    for pattern in wanted:
        matching = {client for client, name in enumerate(names) if fnmatchcase(name, pattern)}
        if not matching:
            raise DataError(
                "data.unseen", pattern, "names of clients, or patterns of their names", did_you_mean(pattern, names)
            )
        found |= matching
    if len(found.union(untrained)) == len(names):
        raise DataError(
            "data.unseen", list(wanted), "patterns that leave at least one client to train", "match fewer clients"
        )
    return frozenset(found)


def untested_clients(share: float, unseen: frozenset[int], sizes: np.ndarray, seed: int) -> np.ndarray:
    """Clients whose test samples are left out: all but ⌊share · N⌋ of the N training clients, but never all of them.

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


def unused_samples(
    dataset: Dataset,
    divided: Partition,
    parts: Partition,
    unseen: Collection[int],
    seen: Mapping[str, int] | None = None,
) -> tuple[LeftOut, ...]:
    """Samples that no client tests or trains on, counted by reason.

    Args:
        dataset: the samples.
        divided: who holds what as the partition steps say.
        parts: who holds what after ``data.test_clients``.
        unseen: clients that never train.
        seen: ``training`` and ``test`` samples that clients see in a round, where drift shows them a part only.
    """
    training = np.setdiff1d(np.arange(len(parts)), np.fromiter(unseen, np.int64, len(unseen)))
    totals = {"training": len(dataset.train), "test": len(dataset.test)}
    held = {"training": _distinct(divided.train), "test": _distinct(divided.test)}
    trained = _distinct(parts.train.of(training)) if len(unseen) else held["training"]
    nobody = "the partition gives them to no client"
    found = [LeftOut(f"{kind} samples", totals[kind] - held[kind], nobody, totals[kind]) for kind in totals]
    why = "they belong to unseen clients, which never train"
    found.append(LeftOut("training samples", held["training"] - trained, why, totals["training"], wanted=True))
    kept = held["test"] if parts is divided else _distinct(parts.test)
    why = "data.test_clients lets their clients keep no test samples"
    found.append(LeftOut("test samples", held["test"] - kept, why, totals["test"], wanted=True))
    copies = {"training": int(parts.train.sizes[training].sum()), "test": int(parts.test.sizes.sum())}
    why = "data.drift lets the clients see only a part of them in a round"
    for kind, count in (seen or {}).items():
        found.append(LeftOut(f"{kind} samples", copies[kind] - count, why, copies[kind], wanted=True))
    return tuple(left for left in found if left.count)


def role_warnings(parts: Partition, untrained: Collection[int], unseen: Collection[int]) -> tuple[str, ...]:
    """Warnings about clients that are evaluated without training, and about clients that train without test samples.

    Args:
        parts: who holds what after all choices.
        untrained: clients without training samples.
        unseen: all clients that never train.
    """
    tested, found = set(np.flatnonzero(parts.test.sizes).tolist()), []
    if untrained:
        named = ", ".join(repr(parts.names[client]) for client in sorted(untrained)[:_NAMED])
        more = ", …" if len(untrained) > _NAMED else ""
        who = "1 client has" if len(untrained) == 1 else f"{len(untrained):,} clients have"
        found.append(
            f"{who} test samples but no training samples ({named}{more}) and will be evaluated as unseen clients; if "
            "this is not intended, look for misspelled names in the data"
        )
    if not tested:
        found.append(
            "no client has test samples, so no metric is measured on clients: add test samples, or use the metrics "
            "that the method measures on the server's data"
        )
    elif tested <= set(unseen):
        found.append(
            "no client that trains has test samples: the results are those of the unseen clients only, and there is "
            "neither a mean over the training clients nor a pooled value"
        )
    return tuple(found)


def _distinct(parts: Ragged) -> int:
    """Samples that somebody holds; some steps give one to several clients."""
    return len(np.unique(parts.order))


def _share(share: float, count: int) -> int:
    # 10 · 0.3 must give 3, so a product just below an integer counts as that integer
    return max(1, int(share * count + 1e-9))
