"""Average ranks: which of several models is the better one over many tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def average_ranks(scores: Sequence[Sequence[float]], lower_is_better: Sequence[bool] | None = None) -> np.ndarray:
    """The rank of each model among all of them, averaged over the tasks. The best rank is 1; equal scores share theirs.

    Args:
        scores: (models, tasks).
        lower_is_better: whether lower scores are better, for each task; default: higher scores are better in all.

    Returns:
        (models,).

    Source: Ma et al. 2024 (GPFM, arXiv 2407.18449), who rank pathology models by it.
    """
    from scipy.stats import rankdata

    values = np.asarray(scores, dtype=np.float64)
    signs = np.where(np.zeros(values.shape[1], bool) if lower_is_better is None else lower_is_better, 1.0, -1.0)
    ranks: np.ndarray = rankdata(values * signs, method="average", axis=0).mean(axis=1)
    return ranks
