"""What a batch of clients left for each of them to be asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedlab.clients.vectorized.runtime import BatchOutcome
from fedlab.clients.vectorized.training import Fitted
from fedlab.errors import FedLabError
from fedlab.method import ClientState
from fedlab.protocol.instructions import Instructions

ROUND = Instructions(2, 5, {"stage": "body"}, steps={"0": 3})


def test_a_client_s_training_is_handed_out_once() -> None:
    outcome, fitted = BatchOutcome(ROUND), Fitted(ClientState())
    outcome.put(0, fitted)
    assert outcome.take(1, ROUND) is None
    assert outcome.take(0, Instructions.from_json(ROUND.to_json())) is fitted
    assert outcome.take(0, ROUND) is None


def test_what_ended_a_client_s_training_is_raised_for_that_client() -> None:
    outcome = BatchOutcome(ROUND)
    outcome.put(0, ZeroDivisionError("mine"))
    outcome.put(1, fitted := Fitted(ClientState()))
    with pytest.raises(ZeroDivisionError, match="mine"):
        outcome.take(0, ROUND)
    assert outcome.take(1, ROUND) is fitted


@pytest.mark.parametrize("other", [{"round": 3}, {"plan": {"stage": "head"}}, {"steps": {}}])
def test_a_batch_answers_for_no_other_work_than_it_did(other: dict[str, object]) -> None:
    outcome = BatchOutcome(ROUND)
    outcome.put(0, Fitted(ClientState()))
    with pytest.raises(FedLabError, match="client 0 was trained as part of a batch in round 2"):
        outcome.take(0, replace(ROUND, **other))  # type: ignore[arg-type]  # fields of Instructions
