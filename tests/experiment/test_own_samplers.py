"""Runs with a sampler of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.config import Component, Positive
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.server.participation.samplers import FractionSampler, FractionSettings, Known


class TakesTurns(FractionSampler):
    """Client 0 in round 1, client 1 in round 2, …, or later ones for other seeds."""

    class Settings(FractionSettings):
        step: Positive = 1

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        return [clients[((round - 1) * self.settings.step + self.seed) % len(clients)]]


class Plain:
    """A sampler that derives from nothing."""

    loss = None

    def size(self, population: int) -> int:
        return 1

    def sample(self, clients: Sequence[int], round: int, count: int, known: Known) -> list[int]:
        return [clients[-1]]


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "supervised",
        "model": "logistic",
        "data": {
            "source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 20},
            "partition": [{"name": "iid", "clients": 4}],
        },
        "federation": {"rounds": 3},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "report": False, "folder": str(tmp_path / "runs")},
    }


def cohorts(run: fedlab.Run) -> list[list[int]]:
    return [event["clients"] for event in run.history.rounds]


def test_a_class_gets_settings_and_seed_and_can_be_made_again(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, sampler=TakesTurns, overrides={"federation.sampler": {"step": 2}}, until=2)
    assert cohorts(run) == [[0], [2]]
    assert run.config.federation.sampler == Component(name=f"{__name__}:TakesTurns", fraction=1.0, step=2)
    assert cohorts(fedlab.resume(run.path)) == [[0], [2], [0]], "its class can be imported"
    assert cohorts(fedlab.run(run.config, sampler=TakesTurns)) == [[0], [2], [0]], "its settings stay"
    assert cohorts(fedlab.run({**raw, "seed": 1}, sampler=TakesTurns, until=2)) == [[1], [2]]


def test_an_object_is_asked_for_again(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, sampler=Plain(), until=2)
    assert cohorts(run) == [[3], [3]]
    assert run.config.federation.sampler == Component(name="given", of=f"{__name__}:Plain")
    with pytest.raises(ConfigErrors, match="sampler object that this was run with") as told:
        fedlab.resume(run.path)
    assert "sampler=…" in str(told.value)
    with pytest.raises(ConfigError, match="the class that the run began with"):
        fedlab.resume(run.path, sampler=TakesTurns(TakesTurns.Settings(), 0))
    assert cohorts(fedlab.resume(run.path, sampler=Plain())) == [[3], [3], [3]]


@pytest.mark.parametrize("sampler", [3, "uniform", object(), dict, Plain])
def test_what_is_no_sampler_is_refused(raw: dict[str, Any], sampler: Any) -> None:
    with pytest.raises(ConfigError, match="FractionSampler") as told:
        fedlab.run(raw, sampler=sampler)
    assert told.value.key == "federation.sampler"
