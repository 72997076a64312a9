"""The partition step of sites."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedlab.config import Component
from fedlab.data.partition.partition import make_steps, partition
from fedlab.data.samples import Dataset
from fedlab.errors import ConfigError, DataError

Make = Callable[..., Dataset]


def test_it_is_refused_for_other_data(make_dataset: Make) -> None:
    with pytest.raises(DataError, match=r"data\.partition\.0\.name = 'site'[\s\S]*source sites[\s\S]*step domain"):
        partition(make_dataset(np.arange(6) % 2), make_steps([Component(name="site")]), 0)


@pytest.mark.parametrize("names", [("site", "iid"), ("domain", "site")])
def test_it_is_the_only_step(names: tuple[str, str]) -> None:
    steps = [Component(name=name, **({"clients": 2} if name == "iid" else {})) for name in names]
    with pytest.raises(ConfigError, match="site as the only step"):
        make_steps(steps)


def test_sites_whose_samples_are_elsewhere_stay_clients(make_dataset: Make) -> None:
    whole = make_dataset(np.arange(9) % 2, domains=3)
    here = replace(
        whole,
        train=whole.train.select(np.array([1, 4, 7])),
        test=whole.test.select(np.array([1, 4])),
        sites=("a", "b", "c"),
    )
    parts = partition(here, make_steps([Component(name="site")]), 0)
    assert list(parts.names) == ["a", "b", "c"]
    assert parts.train.sizes.tolist() == [0, 3, 0]
    assert parts.test.sizes.tolist() == [0, 2, 0]
