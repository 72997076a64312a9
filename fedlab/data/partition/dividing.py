"""The arithmetic of dividing samples among clients: sizes, proportions, places."""

from __future__ import annotations

import bisect

import numpy as np

from fedlab.data.partition.ragged import Ragged


def equal_parts(samples: int, clients: int, rng: np.random.Generator) -> Ragged:
    """Random positions, divided into equal parts."""
    sizes = equal_sizes(samples, clients)
    return Ragged(rng.permutation(samples), np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def equal_sizes(samples: int, parts: int) -> np.ndarray:
    """Sizes that differ by at most one, the larger ones first."""
    return np.full(parts, samples // parts) + (np.arange(parts) < samples % parts)


def apportion(shares: np.ndarray, total: int) -> np.ndarray:
    """Integers near ``shares * total`` that sum to `total`; ties go to the lower index."""
    exact = shares * total
    whole = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.argsort(-(exact - whole), kind="stable")[: total - whole.sum()]
    whole[rest] += 1
    return whole


def dirichlet_shares(rng: np.random.Generator, alpha: float, clients: int) -> np.ndarray:
    """A Dirichlet draw that does not underflow to 0/0 for small α: normalized gamma draws, in logarithms.

    Gamma(α) = Gamma(α + 1) · U^(1/α) (Marsaglia & Tsang 2000).
    """
    logs = np.log(rng.standard_gamma(alpha + 1, clients)) + np.log1p(-rng.random(clients)) / alpha
    weights = np.exp(logs - logs.max())
    shares: np.ndarray = weights / weights.sum()
    return shares


def top_up(owner: np.ndarray, clients: int, least: int, rng: np.random.Generator) -> None:
    """Give every client at least `least` samples, one at a time from the client that then has the most; in place."""
    sizes = np.bincount(owner, minlength=clients)
    short = np.flatnonzero(sizes < least)
    if not len(short):
        return
    needed = int((least - sizes[short]).sum())
    # what the richest can spare, richest first, is the same as taking one sample at a time from the then richest
    level = _spare_level(sizes, needed, least)
    spare = np.maximum(sizes - level, 0)
    excess = int(spare.sum()) - needed
    for client in np.flatnonzero(spare)[::-1][:excess]:
        spare[client] -= 1
    order = np.argsort(owner, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    moved = np.concatenate(
        [rng.permutation(order[starts[c] : starts[c + 1]])[: spare[c]] for c in np.flatnonzero(spare)]
    )
    owner[rng.permutation(moved)] = np.repeat(short, least - sizes[short])


def _spare_level(sizes: np.ndarray, needed: int, least: int) -> int:
    """The highest size to which larger clients can be reduced so that at least `needed` samples become free."""
    low, high = least, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.maximum(sizes - middle, 0).sum() >= needed:
            low = middle
        else:
            high = middle - 1
    return low


def deal_classes(sizes: np.ndarray, clients: int, each: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Clients of every class: `each` distinct classes per client, no class with more clients than samples.

    The places of a class are as equal as sizes allow; taking the classes with most places left always works out
    (Ryser 1957).
    """
    left = _places(np.minimum(sizes, clients), clients * each, rng)
    chosen = np.empty((clients, each), np.int64)
    for client in range(clients):
        chosen[client] = np.argsort(-left - rng.random(len(left)))[:each]
        left[chosen[client]] -= 1
    who = np.repeat(rng.permutation(clients), each)
    return [np.sort(who[chosen.ravel() == c]) for c in range(len(sizes))]


def _places(caps: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Integers up to `caps` that sum to `total`, as equal as possible."""
    level = bisect.bisect_right(range(int(caps.max()) + 1), total, key=lambda n: np.minimum(caps, n).sum()) - 1
    places: np.ndarray = np.minimum(caps, level)
    more = rng.permutation(np.flatnonzero(caps > level))[: total - places.sum()]
    places[more] += 1
    return places


def fill(weights: np.ndarray, total: int, caps: np.ndarray) -> np.ndarray:
    """Integers near ``weights * total``, at most `caps`, that sum to `total`.

    What exceeds a cap is given to the others in proportion to their weights or, if these are all 0, in proportion to
    their remaining room. Every pass of the loop fills one of them or is the last.
    """
    filled: np.ndarray = np.zeros_like(caps)
    while (missing := total - int(filled.sum())) > 0:
        room = caps - filled
        wanted = np.where(room > 0, weights, 0.0)
        wanted = wanted if wanted.any() else room.astype(np.float64)
        filled += np.minimum(apportion(wanted / wanted.sum(), missing), room)
    return filled
