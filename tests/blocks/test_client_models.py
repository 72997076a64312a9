from __future__ import annotations

from fedlab.blocks.client_models import role_of
from fedlab.config import Component

MODELS = [Component(name="convnet"), Component(name="logistic"), Component(name="simple_cnn")]


def test_models_are_dealt_out_in_turn() -> None:
    assert [role_of(client, MODELS) for client in range(5)] == ["model", "model_2", "model_3", "model", "model_2"]
    assert {role_of(client, []) for client in range(5)} == {"model"}
