"""Models that stay on the clients and may differ from client to client, for methods that exchange no weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fedlab.config import Component
from fedlab.method import Task

ROLE = "model"


def build_models(task: Task, models: Sequence[Component]) -> dict[str, nn.Module]:
    """Build the models that clients have, by role. A client trains the one of its role and never uses the others.

    Args:
        task: the task.
        models: the models, named as in a configuration; none stands for the run's model.

    Raises:
        ConfigError, ConfigErrors: there is no such model or setting, or the model cannot take these samples.
    """
    if not models:
        return {ROLE: task.model()}
    roles = (role_of(place, models) for place in range(len(models)))
    return {role: task.model(model.name, **model.settings) for role, model in zip(roles, models, strict=True)}


def role_of(client: int, models: Sequence[Component]) -> str:
    """The role of a client's model. The models are dealt out in turn: client i has number i modulo their count.

    Args:
        client: id of the client, from 0.
        models: as in `build_models`.
    """
    place = client % len(models) if models else 0
    return f"{ROLE}_{place + 1}" if place else ROLE
