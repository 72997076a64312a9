"""Figures that say how much the clients' data differ."""

from __future__ import annotations

from typing import Any

import numpy as np


def skew_figures(counts: np.ndarray) -> dict[str, Any]:
    """Skew of a partition.

    Args:
        counts: training samples by client and class, (clients, classes).

    Returns:
        ``clients``, ``samples``; ``size_min``, ``size_median``, ``size_max``, ``size_gini`` (0 equal, towards 1 one
        client holds all); ``label_entropy_mean`` and ``label_entropy_min`` in bits, with ``label_entropy_global``;
        ``label_emd_mean`` and ``label_emd_max``, the earth mover's distance Σ_c |p_i(c) − p(c)| to the global label
        distribution (Zhao et al. 2018, arXiv 1806.00582), between 0 and 2.
    """
    from scipy.stats import entropy

    sizes = counts.sum(axis=1)
    held = counts[sizes > 0]
    shares = held / held.sum(axis=1, keepdims=True)
    overall = counts.sum(axis=0) / max(1, counts.sum())
    entropies = entropy(shares, base=2, axis=1)
    distances = np.abs(shares - overall).sum(axis=1)
    ordered = np.sort(sizes)
    ranks = np.arange(1, len(ordered) + 1)
    gini = float((2 * ranks - len(ordered) - 1) @ ordered / (len(ordered) * max(1, ordered.sum())))
    return {
        "clients": len(counts),
        "samples": int(counts.sum()),
        "size_min": int(sizes.min()),
        "size_median": float(np.median(sizes)),
        "size_max": int(sizes.max()),
        "size_gini": gini,
        "label_entropy_mean": float(entropies.mean()),
        "label_entropy_min": float(entropies.min()),
        "label_entropy_global": float(entropy(overall, base=2)),
        "label_emd_mean": float(distances.mean()),
        "label_emd_max": float(distances.max()),
    }
