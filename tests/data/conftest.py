"""Small data sets made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from fedlab.data.samples import Dataset, Samples


def make_dataset(
    labels: np.ndarray,
    test_labels: np.ndarray | None = None,
    *,
    domains: int = 1,
    groups: int = 0,
    images: tuple[int, ...] | None = None,
    server: Mapping[str, Samples] | None = None,
) -> Dataset:
    """Samples with the given labels; domains and groups go round in turn, columns ``x`` hold the position."""

    def samples(values: np.ndarray) -> Samples:
        n = len(values)
        columns = {"label": values.astype(np.int64), "domain": np.arange(n) % domains, "x": np.arange(n)}
        if groups:
            columns["group"] = np.arange(n) % groups
        if images:
            columns["image"] = np.random.default_rng(n).integers(0, 256, (n, *images)).astype(np.uint8)
        names = tuple(f"d{i}" for i in range(domains)), tuple(f"g{i}" for i in range(groups))
        return Samples(columns, tuple(str(c) for c in range(classes)), *names)

    test_labels = labels if test_labels is None else test_labels
    classes = int(max(labels.max(initial=0), test_labels.max(initial=0))) + 1
    return Dataset("made", samples(labels), samples(test_labels), server or {})


@pytest.fixture(name="make_dataset", scope="session")
def make_dataset_fixture() -> Callable[..., Dataset]:
    return make_dataset
