from __future__ import annotations

from pathlib import Path

import pytest

import fedlab
from fedlab.errors import NotEvaluatedError


def test_metrics_before_the_first_evaluation_say_why_there_are_none(tmp_path: Path) -> None:
    base = {
        "method": "supervised",
        "model": "logistic",
        "data": {"source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 20}, "partition": ["domain"]},
        "federation": {"rounds": 4},
        "evaluation": {"every": 4},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "folder": str(tmp_path)},
    }
    run = fedlab.run(base, until=1)
    assert not run.metrics
    assert run.metrics.get("mean") is None
    told = r"(?s)before its first evaluation.*every 4 of 4 rounds.*fedlab resume"
    with pytest.raises(NotEvaluatedError, match=told) as caught:
        _ = run.metrics["mean"]["accuracy"]
    assert isinstance(caught.value, KeyError)
    assert isinstance(caught.value, fedlab.FedLabError)
    assert fedlab.resume(run.path).metrics["mean"]["accuracy"] >= 0
