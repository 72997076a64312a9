"""Figures that say how much the clients' data differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def skew_figures(counts: np.ndarray) -> dict[str, Any]:
    """Skew of a partition.

    Args:
        counts: training samples by client and class, (clients, classes).

    Returns:
        The figures of `size_figures`; ``label_entropy_mean`` and ``label_entropy_min`` in bits, with
        ``label_entropy_global``; ``label_emd_mean`` and ``label_emd_max``, the earth mover's distance
        Σ_c |p_i(c) − p(c)| to the global label distribution (Zhao et al. 2018, arXiv 1806.00582), between 0 and 2.
    """
    from scipy.stats import entropy

    sizes = counts.sum(axis=1)
    held = counts[sizes > 0]
    shares = held / held.sum(axis=1, keepdims=True)
    overall = counts.sum(axis=0) / max(1, counts.sum())
    entropies = entropy(shares, base=2, axis=1)
    distances = np.abs(shares - overall).sum(axis=1)
    return {
        **size_figures(sizes),
        "label_entropy_mean": float(entropies.mean()),
        "label_entropy_min": float(entropies.min()),
        "label_entropy_global": float(entropy(overall, base=2)),
        "label_emd_mean": float(distances.mean()),
        "label_emd_max": float(distances.max()),
    }


def size_figures(sizes: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """How far the numbers of samples of the clients differ.

    Args:
        sizes: training samples by client, of at least one client.

    Returns:
        ``clients``, ``samples``; ``size_min``, ``size_median``, ``size_max``, ``size_gini`` (0 equal, towards 1 one
        client holds all).
    """
    ordered = np.sort(np.asarray(sizes, np.int64))
    ranks = np.arange(1, len(ordered) + 1)
    gini = float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * max(1, ordered.sum())))
    return {
        "clients": len(ordered),
        "samples": int(ordered.sum()),
        "size_min": int(ordered[0]),
        "size_median": float(np.median(ordered)),
        "size_max": int(ordered[-1]),
        "size_gini": gini,
    }
