from __future__ import annotations

import pytest

from fedlab.clients.trainer import schedule_factor
from fedlab.config import TrainingConfig


def test_schedule_factors() -> None:
    cosine = TrainingConfig(schedule="cosine", warmup_steps=4)
    assert [schedule_factor(cosine, step, 104) for step in (0, 1, 3)] == [0.25, 0.5, 1.0]
    assert schedule_factor(cosine, 4, 104) == 1.0
    assert schedule_factor(cosine, 54, 104) == pytest.approx(0.5)
    assert schedule_factor(cosine, 104, 104) == pytest.approx(0.0, abs=1e-12)
    linear = TrainingConfig(schedule="linear")
    assert [schedule_factor(linear, step, 100) for step in (0, 25, 100)] == [1.0, 0.75, 0.0]
    assert schedule_factor(TrainingConfig(), 50, 100) == 1.0
