from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.metrics import TagPrecision
from fedlab.probes.classifiers import mean_average_precision


def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tags = (torch.rand(200, 5, generator=generator) < 0.2).long()
    tags[:, 4] = 0
    return 3 * torch.randn(200, 5, generator=generator) + 2 * tags - 4, tags


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_binned_value_is_close_to_the_exact_one(scale: float) -> None:
    logits, tags = predictions()
    logits = scale * logits
    metric = TagPrecision(5)
    metric.update(logits, tags)
    assert metric.compute()["map"] == pytest.approx(mean_average_precision(logits.numpy(), tags.numpy()), abs=0.01)


def test_merged_parts_equal_the_whole() -> None:
    logits, tags = predictions()
    whole, merged = TagPrecision(5), TagPrecision(5)
    whole.update(logits, tags)
    for part in (slice(0, 50), slice(50, 200)):
        metric = TagPrecision(5)
        metric.update(logits[part], tags[part])
        assert all(isinstance(value, np.ndarray) for value in metric.state().values())
        merged.merge(metric.state())
    assert merged.compute() == whole.compute()
    assert all(np.array_equal(value, merged.state()[name]) for name, value in whole.state().items())


def test_without_a_tag_there_is_no_value() -> None:
    assert TagPrecision(3).compute() == {}
