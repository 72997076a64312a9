"""A hook that hangs in the preflight is named, and the preflight ends after its limit."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

import fedlab
from fedlab.errors import FedLabError
from fedlab.experiment.overdue import named_after
from fedlab.method import FitContext
from fedlab.methods.supervised.method import Supervised


class Hanging(Supervised):
    """Its fit waits for something that never comes, and goes on after every error."""

    def fit(self, ctx: FitContext) -> None:
        while True:
            try:
                time.sleep(60)
            except Exception:  # as careless code does it
                continue


def test_the_hook_and_the_line_are_named_and_no_run_folder_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlab.experiment.overdue._LEAST", 0.0)
    config = {
        "method": "supervised",
        "model": {"name": "logistic"},
        "data": {
            "source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 20},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "federation": {"rounds": 1, "timeout": 0.5},
        "engine": {"name": "inline"},
        "tracking": {"folder": str(tmp_path / "runs"), "console": "quiet", "tensorboard": False},
    }
    with pytest.raises(FedLabError) as caught:
        fedlab.run(config, method=Hanging)
    said = str(caught.value)
    assert "the preflight was ended after 0.5 s (federation.timeout)" in said
    assert "in Hanging.fit(), at " in said
    assert "test_overdue.py:" in said
    assert not (tmp_path / "runs").exists()


def test_it_is_said_before_the_limit_where_the_work_is(caplog: pytest.LogCaptureFixture) -> None:
    class Method(Supervised):
        def server_prepare(self, ctx: object) -> None:
            while not any("server_prepare" in record.message for record in caplog.records):
                time.sleep(0.01)

    method = Method.__new__(Method)
    with caplog.at_level(logging.WARNING), named_after(1800, method, first=0.05):
        method.server_prepare(None)
    assert "and is in Method.server_prepare(), at " in caplog.text
