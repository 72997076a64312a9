"""Early stopping decides by known values: when it improves, when patience is over, what it remembers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.callbacks import CallbackContext
from fedlab.callbacks.early_stopping import EarlyStopping
from fedlab.config import Config, StopConfig, parse
from fedlab.errors import ConfigError

KEY = "federation.stop"


def config(**changes: Any) -> Config:
    raw = {"method": "supervised", "data": {"source": "digits", "validation": 0.2}}
    return parse(Config, raw).with_overrides({key.replace("__", "."): value for key, value in changes.items()})


def stopping(**settings: Any) -> EarlyStopping:
    return EarlyStopping(StopConfig(**{"metric": "accuracy", "patience": 2, **settings}))


def watched(
    callback: EarlyStopping, values: Sequence[float | None], scope: str = "validation", begin: int = 1
) -> tuple[list[tuple[int, str]], list[str]]:
    """What the callback asks for and what it warns of when it is shown these values, one a round."""
    asked, warned = list[tuple[int, str]](), list[str]()
    for round, value in enumerate(values, start=begin):

        def weights(round: int = round) -> dict[str, Tensor]:
            return {"model.w": torch.tensor([float(round)])}

        other = "validation_pooled" if scope == "validation" else "validation"
        evaluation = {scope: {callback.settings.metric: value}, other: {callback.settings.metric: 0.99 + round}}
        callback.on_evaluation(
            CallbackContext(
                config=config(),
                folder=Path(),
                round=round,
                rounds=100,
                evaluation={"mean": {"accuracy": 0.5 + round}, **evaluation},
                read_weights=weights,
                ask=lambda reason, round=round: asked.append((round, reason)),
                tell=warned.append,
            )
        )
        if asked:
            break
    return asked, warned


def test_it_stops_after_patience_evaluations_without_a_better_one() -> None:
    asked, warned = watched(stopping(), [0.1, 0.5, 0.4, 0.6, 0.6, 0.55, 0.9])
    assert asked == [(6, "validation accuracy did not improve in 2 evaluations, best 0.6 in round 4")]
    assert warned == []


def test_patience_begins_anew_with_every_improvement() -> None:
    assert watched(stopping(patience=3), [0.1, 0.0, 0.0, 0.2, 0.0, 0.0, 0.3, 0.0, 0.0])[0] == []


@pytest.mark.parametrize(
    ("settings", "values", "last"),
    [
        ({"metric": "loss"}, [3.0, 2.0, 2.5, 2.1], 4),
        ({"metric": "loss"}, [3.0, 2.0, 1.9, 1.8], None),
        ({"metric": "agreement", "better": "higher"}, [1.0, 0.5, 0.6], 3),
        ({"metric": "agreement", "better": "lower"}, [1.0, 0.5, 0.4], None),
        ({"metric": "accuracy", "better": "lower"}, [0.1, 0.2, 0.3], 3),
        ({"minimum": 0.1}, [0.5, 0.55, 0.6], 3),
        ({"minimum": 0.1}, [0.5, 0.55, 0.61], None),
        ({"metric": "loss", "minimum": 0.5}, [3.0, 2.6, 2.5, 2.4], 3),
        ({"metric": "loss", "minimum": 0.5}, [3.0, 2.6, 2.4, 2.4], None),
    ],
)
def test_which_values_are_improvements(settings: dict[str, Any], values: list[float], last: int | None) -> None:
    asked, _ = watched(stopping(**settings), values)
    assert [round for round, _ in asked] == ([] if last is None else [last])


@pytest.mark.parametrize(("over", "scope"), [("mean", "validation"), ("pooled", "validation_pooled")])
def test_it_watches_the_value_it_was_told_to_watch(over: str, scope: str) -> None:
    asked, _ = watched(stopping(over=over), [0.3, 0.2, 0.1], scope)
    assert [round for round, _ in asked] == [3]


def test_a_value_that_is_not_finite_is_no_improvement() -> None:
    assert [round for round, _ in watched(stopping(), [0.3, None, None])[0]] == [3]
    ((round, reason),), _ = watched(stopping(), [None, None])
    assert (round, reason) == (2, "validation accuracy did not improve in 2 evaluations, it never had a finite value")


def test_an_evaluation_without_the_metric_counts_for_nothing_and_is_told_once() -> None:
    callback, warned = stopping(metric="acuracy", better="higher"), list[str]()
    for round in range(1, 6):
        context = CallbackContext(
            config(), Path(), round, 9, evaluation={"validation": {"accuracy": 0.5, "loss": 1.0}}, tell=warned.append
        )
        callback.on_evaluation(context)
    (text,) = warned
    assert "watches 'acuracy'" in text
    assert "after round 1 does not have: it has accuracy, loss" in text


def test_the_best_weights_are_kept_by_network() -> None:
    callback = stopping()
    watched(callback, [0.1, 0.5, 0.4])
    found = callback.artifacts()
    assert list(found) == ["best_accuracy_model"]
    assert found["best_accuracy_model"]["w"].tolist() == [2.0]
    without = stopping(keep_best=False)
    watched(without, [0.1, 0.5])
    assert without.artifacts() == {}
    assert [name for name in without.state_dict() if name.startswith("weights/")] == []


def test_it_goes_on_from_its_state_as_if_nothing_had_happened() -> None:
    values = [0.1, 0.5, 0.4, 0.45, 0.3]
    whole = stopping(patience=3)
    expected = watched(whole, values)
    first, second = stopping(patience=3), stopping(patience=3)
    watched(first, values[:3])
    state = first.state_dict()
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    facts = json.loads(json.dumps({name: value for name, value in state.items() if name not in tensors}))
    second.load_state_dict({**facts, **tensors})
    assert watched(second, values[3:], begin=4) == expected
    assert expected[0][0][0] == 5
    assert second.artifacts()["best_accuracy_model"]["w"].tolist() == [2.0]


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({"data__validation": None}, {}, "federation.stop = 'accuracy'\n.*must not be stopped by its test samples"),
        ({"data__validation": None}, {}, "set data.validation, for example data.validation: 0.1"),
        ({"evaluation__validation": False}, {}, "set evaluation.validation: true"),
        ({}, {"metric": "agreement"}, "federation.stop.better: higher or lower, .* name of the metric"),
    ],
)
def test_what_it_cannot_work_with_is_refused(changes: dict[str, Any], settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        stopping(**settings).check(config(**changes), KEY)


def test_a_patience_that_never_ends_the_run_is_told() -> None:
    made = config(federation__rounds=10, evaluation__every=3)  # rounds 3, 6, 9 and 10 are evaluated
    assert stopping(patience=3).check(made, KEY) == ()
    (warning,) = stopping(patience=4).check(made, KEY)
    assert warning == "federation.stop.patience = 4 never ends this run early, which has 4 evaluations"
