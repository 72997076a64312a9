"""Callbacks are made from a configuration or taken as objects, and what is wrong with them is told before a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from fedlab.callbacks import Callback, ConfiguredCallback, make_callbacks
from fedlab.callbacks.configured import described
from fedlab.config import Config, Section, parse
from fedlab.errors import ConfigErrors, FedLabError
from fedlab.experiment.given import given_callbacks, record_callbacks

HERE = __name__
BASE: dict[str, Any] = {"method": "supervised", "data": {"source": "digits", "validation": 0.2}}


class Counting(Callback):
    class Settings(Section):
        start: int = 3

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.count = settings.start

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "seen": (1, 2), "mean": torch.ones(2)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


class Telling(Callback):
    """Its constructor takes something that no file can hold."""

    def __init__(self, tell: Any) -> None:
        super().__init__()
        self.tell = tell


class Forgetful(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"count": 1}


class Odd(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"when": object()}


class Endless(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"best": float("inf")}


def config(*callbacks: Any, **federation: Any) -> Config:
    return parse(Config, {**BASE, "callbacks": list(callbacks), "federation": federation})


def test_callbacks_are_made_in_order_with_their_settings() -> None:
    named = ({"name": f"{HERE}:Counting", "start": 7}, {"name": "early_stopping", "metric": "loss"})
    made = make_callbacks(config(*named, stop={"metric": "accuracy"}))
    assert [(one.key, type(one.callback).__name__) for one in made] == [
        ("federation.stop", "EarlyStopping"),
        ("callbacks.0", "Counting"),
        ("callbacks.1", "EarlyStopping"),
    ]
    assert made[0].callback.settings.metric == "accuracy"
    assert made[1].callback.settings.start == 7
    assert made[1].name == "Counting (callbacks.0)"


def test_objects_take_the_last_places() -> None:
    objects = given_callbacks([Counting, Telling(print)])
    recorded = record_callbacks(config({"name": "early_stopping", "metric": "loss"}), objects, resumed=False)
    assert [(one.name, one.settings) for one in recorded.callbacks[1:]] == [
        (f"{HERE}:Counting", {"start": 3}),
        ("given", {"of": f"{HERE}:Telling"}),
    ]
    made = make_callbacks(recorded, objects)
    assert [one.key for one in made] == ["callbacks.0", "callbacks.1", "callbacks.2"]
    assert [one.callback for one in made[1:]] == objects


def test_a_resumed_run_is_given_the_same_objects() -> None:
    recorded = record_callbacks(config(), [Counting(Counting.Settings(start=5)), Telling(print)], resumed=False)
    again = [Counting(Counting.Settings(start=5)), Telling(len)]
    assert record_callbacks(recorded, again, resumed=True) is recorded
    assert record_callbacks(recorded, again[1:], resumed=True) is recorded
    for others, told in (
        ([Counting(Counting.Settings(start=6)), Telling(print)], "callbacks.0.start = 6"),
        ([Telling(print), Telling(print)], "callbacks.0 = "),
        ([*again, Telling(print)], "at most 2, with which the run began"),
    ):
        with pytest.raises(FedLabError, match=told):
            record_callbacks(recorded, others, resumed=True)


@pytest.mark.parametrize(
    ("component", "told"),
    [
        ({"name": "early_stoping"}, "did you mean 'early_stopping'"),
        ({"name": "early_stopping", "metric": "loss", "patiense": 3}, "did you mean 'patience'"),
        ({"name": "early_stopping"}, "callbacks.0.metric: this key is required"),
        ({"name": f"{HERE}:HERE"}, "a callback class with a nested class Settings"),
        ({"name": f"{HERE}:Telling"}, "whose constructor takes its settings only"),
        (
            {"name": "given", "of": "x:Telling"},
            "In a deployment callbacks run on the server, which has no such objects",
        ),
        ({"name": f"{HERE}:Forgetful"}, "both state_dict\\(\\) and load_state_dict\\(\\)"),
        ({"name": f"{HERE}:Odd"}, "holds 'when' = .*which JSON cannot hold"),
        ({"name": f"{HERE}:Endless"}, "holds 'best' = inf, which JSON cannot hold"),
        ({"name": "fedlab.probes.knn:NearestNeighbors"}, "a subclass of fedlab.Callback"),
    ],
)
def test_what_is_wrong_is_told(component: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigErrors, match=f"(?s){told}"):
        make_callbacks(config(component))


@pytest.mark.parametrize(
    ("given", "told"),
    [(print, "a fedlab.Callback, object or class"), (Telling, "an object of this class, which needs arguments")],
)
def test_what_is_no_callback_is_refused(given: Any, told: str) -> None:
    with pytest.raises(FedLabError, match=told):
        given_callbacks([given])


def test_a_state_is_parted_into_tensors_and_values() -> None:
    tensors, values = ConfiguredCallback("callbacks.0", Counting(Counting.Settings())).state()
    assert list(tensors) == ["mean"]
    assert values == {"count": 3, "seen": (1, 2)}


def test_a_state_that_nobody_reads_is_not_lost_in_silence() -> None:
    with pytest.raises(FedLabError, match=r"Forgetful defines state_dict\(\) without load_state_dict\(\).*count"):
        Forgetful().load_state_dict({"count": 1})


def test_a_callback_with_settings_is_described_by_its_class() -> None:
    assert described(Counting(Counting.Settings(start=9)), "x:Counting").model_dump() == {
        "name": "x:Counting",
        "start": 9,
    }
