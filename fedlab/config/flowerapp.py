"""The configuration of a run of a Flower app, which brings its own model, data and rounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from fedlab.config.base import Positive, Section
from fedlab.config.sections import EngineConfig, TrackingConfig
from fedlab.storage.paths import InputPath

FLOWER_APP = "flower_app"
"""Section by which the configuration of a Flower app is told from that of a method."""
_ROUNDS = ("num-server-rounds", "num-rounds", "num_server_rounds", "num_rounds")
"""Names under which apps usually keep their number of rounds; the first one is that of Flower's templates."""


class FlowerAppSection(Section):
    """The app and what it is given."""

    path: InputPath = Field(description="folder of the app, which holds its pyproject.toml")
    name: str = Field(description="the app's name, as its pyproject.toml has it")
    serverapp: str = Field(description="reference of the ServerApp, as the app's pyproject.toml has it")
    clientapp: str = Field(description="reference of the ClientApp, as the app's pyproject.toml has it")
    clients: Positive = Field(description="number of clients, which Flower calls SuperNodes")
    run_config: dict[str, bool | int | float | str] = Field(
        default={}, description="the app's own keys, with the values of this run"
    )


class FlowerAppFederation(Section):
    """What FedLab decides of the app's rounds; all else is the app's own."""

    on_client_error: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: when a client fails, the run ends with the client's traceback; skip: the app's strategy is "
        "given the error, as Flower does",
    )


class FlowerAppConfig(Section):
    """The complete configuration of a run of a Flower app."""

    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="the global generators of Python, NumPy and torch are seeded from it before the ServerApp runs and "
        "before every message that a client handles",
    )
    flower_app: FlowerAppSection
    federation: FlowerAppFederation = FlowerAppFederation()
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def rounds(self) -> int:
        """Number of rounds, if one of the app's own keys is known to hold it; 0 if not."""
        found = (self.flower_app.run_config.get(name) for name in _ROUNDS)
        return next((value for value in found if type(value) is int and value > 0), 0)


def is_flower_app(raw: Mapping[str, Any]) -> bool:
    """Whether a raw configuration is that of a Flower app."""
    return FLOWER_APP in raw
