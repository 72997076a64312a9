"""Of many clients quantiles are sent, of few the values of each."""

from __future__ import annotations

from typing import Any

import pytest

from fedlab.tracking.quantiles import readable_rows
from fedlab.tracking.table import rows


def evaluation(clients: dict[str, Any], unseen: tuple[str, ...] = ()) -> dict[str, Any]:
    mean = {"accuracy": 0.5}
    return {"event": "evaluation", "round": 3, "clients": clients, "mean": mean, "pooled": {}, "unseen_clients": unseen}


def test_few_clients_have_rows_of_their_own() -> None:
    event = evaluation({f"c{i}": {"accuracy": i / 40} for i in range(40)})
    assert list(readable_rows(event, 40)) == list(rows(event))


def test_many_clients_have_quantiles_by_linear_interpolation() -> None:
    event = evaluation({f"c{i}": {"accuracy": float(i)} for i in range(41)})
    found = {row.scope: row.value for row in readable_rows(event, 40)}
    assert found == {
        "mean": 0.5, "clients_min": 0, "clients_p10": 4, "clients_p25": 10, "clients_p50": 20, "clients_p75": 30,
        "clients_p90": 36, "clients_max": 40,
    }  # fmt: skip
    assert {row.tag for row in readable_rows(event, 40)} >= {"accuracy/clients_p50", "accuracy/mean"}
    assert {row.round for row in readable_rows(event, 40)} == {3}


def test_clients_that_never_train_are_apart_and_values_that_are_missing_do_not_count() -> None:
    clients = {"a": {"accuracy": 1.0, "auroc": 0.25}, "b": {"accuracy": None}, "c": {"accuracy": 3.0}}
    event = evaluation({**clients, "u": {"accuracy": 9.0}}, ("u",))
    found = {(row.scope, row.metric): row.value for row in readable_rows(event, 3)}
    assert found["clients_p50", "accuracy"] == 2
    assert found["clients_max", "auroc"] == found["clients_min", "auroc"] == 0.25
    assert found["unseen_clients_p50", "accuracy"] == 9
    assert not [scope for scope, _ in found if scope in ("a", "b", "c", "u")]


@pytest.mark.parametrize("kind", ["round", "client", "phase_start"])
def test_other_events_are_left_alone(kind: str, stream: list[dict[str, Any]]) -> None:
    for event in stream:
        if event["event"] == kind:
            assert list(readable_rows(event, 0)) == list(rows(event))
