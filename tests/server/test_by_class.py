"""The confusion matrix and the counts of each class in evaluations, and how they are reached from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedlab
from fedlab.assembly import make_task
from fedlab.config import Config, parse
from fedlab.errors import NotEvaluatedError
from fedlab.method import Task
from fedlab.methods.supervised.method import Supervised
from fedlab.metrics import Segmentation
from fedlab.server.evaluation import merge_evaluations

SMALL: dict[str, Any] = {
    "method": "supervised",
    "model": "logistic",
    "data": {
        "source": {"name": "digits", "domains": ["handwritten"], "train_per_domain": 160, "test_per_domain": 80},
        "partition": [{"name": "iid", "clients": 4}],
    },
    "training": {"batch_size": 16, "lr": 0.1},
    "federation": {"rounds": 2},
    "engine": {"name": "inline", "device": "cpu"},
}


def task(classes: int) -> Task:
    config = parse(Config, {"method": "supervised", "data": {"source": "digits"}})
    return make_task(config, {"image": ("float32", (1, 8, 8))}, [str(i) for i in range(classes)], 2)


def sums(matrix: np.ndarray) -> dict[str, np.ndarray]:
    return {"confusion": matrix, "loss_sum": np.asarray(1.0), "examples": np.asarray(matrix.sum())}


def test_matrices_add_up_over_the_clients_that_may_train() -> None:
    held = {
        "a": sums(np.array([[3, 1], [0, 2]])),
        "b": sums(np.array([[1, 0], [4, 5]])),
        "stranger": sums(np.array([[9, 9], [9, 9]])),
    }
    found = merge_evaluations(Supervised(), task(2), held, unseen=["stranger"])
    assert found.confusion == [[4, 1], [4, 7]]
    assert found.per_class == {"samples": [5, 11], "correct": [4, 7]}
    assert found.as_event()["confusion"] == found.confusion


@pytest.mark.parametrize(("classes", "recorded"), [(100, True), (101, False)])
def test_large_matrices_are_not_recorded_but_their_classes_are(classes: int, recorded: bool) -> None:
    found = merge_evaluations(Supervised(), task(classes), {"a": sums(np.eye(classes, dtype=np.int64) * 2)})
    assert len(found.confusion) == (classes if recorded else 0)
    assert found.per_class == {"samples": [2] * classes, "correct": [2] * classes}


def test_other_statistics_have_no_classes() -> None:
    class Pixels(Supervised):
        def evaluation_values(self, sums: Any, task: Task) -> dict[str, float]:
            return {}

    found = merge_evaluations(Pixels(), task(2), {"a": Segmentation(2).state()})
    assert found.confusion == ()
    assert found.per_class == {}


def test_a_run_gives_them_by_name(tmp_path: Path) -> None:
    tracking = {"folder": str(tmp_path), "console": "quiet", "tensorboard": False}
    run = fedlab.run({**SMALL, "tracking": tracking})
    assert run.confusion.shape == (10, 10)
    assert run.confusion.dtype == np.int64
    assert run.confusion.sum() == sum(run.metrics["samples"].values()) == 80
    assert np.trace(run.confusion) / 80 == pytest.approx(run.metrics["pooled"]["accuracy"])
    assert list(run.per_class) == [str(digit) for digit in range(10)]
    known = [value for value in run.per_class.values() if value is not None]
    assert np.mean(known) == pytest.approx(run.metrics["pooled"]["balanced_accuracy"])
    again = fedlab.load(run.path)
    assert again.per_class == run.per_class
    assert np.array_equal(again.confusion, run.confusion)
    assert len(run.history.evaluations[0]["confusion"]) == 10


def test_before_an_evaluation_there_are_none(tmp_path: Path) -> None:
    tracking = {"folder": str(tmp_path), "console": "quiet", "tensorboard": False}
    run = fedlab.run({**SMALL, "evaluation": {"every": 2}, "tracking": tracking}, until=1)
    for name in ("confusion", "per_class"):
        with pytest.raises(NotEvaluatedError):
            getattr(run, name)
