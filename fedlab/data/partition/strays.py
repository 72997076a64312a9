"""What happens to test samples in parts of the data without training samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from fedlab.data.partition.dividing import apportion
from fedlab.data.partition.ragged import Ragged


def homes(
    train: Ragged, test: Ragged, owners: Sequence[Hashable], rng: np.random.Generator
) -> tuple[Ragged, np.ndarray]:
    """Give test samples of parts that do not train to parts of the same owner that do.

    Args:
        train: train indices by part.
        test: test indices by part.
        owners: owner or domain of each part; parts with equal values may take each other's test samples.
        rng: draws which part gets which samples, in proportion to the parts' numbers of training samples.

    Returns:
        Test indices by part, and the parts to keep: those that train, then those whose test samples no other takes.
    """
    trained = np.flatnonzero(train.sizes)
    by_owner: dict[Hashable, list[int]] = defaultdict(list)
    for part in trained.tolist():
        by_owner[owners[part]].append(part)
    given: dict[int, list[np.ndarray]] = defaultdict(list)
    homeless = []
    for part in np.flatnonzero(train.sizes == 0).tolist():
        takers = by_owner.get(owners[part], [])
        if takers:
            shares = train.sizes[takers] / train.sizes[takers].sum()
            ends = np.cumsum(apportion(shares, test.size(part)))[:-1]
            for taker, samples in zip(takers, np.split(rng.permutation(test[part]), ends), strict=True):
                given[taker].append(samples)
        elif test.size(part):
            homeless.append(part)
    lists = [np.concatenate([test[part], *given[part]]) if part in given else test[part] for part in range(len(test))]
    return Ragged.joined(lists), np.concatenate([trained, np.array(homeless, np.int64)])
