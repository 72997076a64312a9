"""The virtual clock: how long a client's round takes on its device. Times are computed, not measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from fedlab.config import DevicesConfig, TrainingConfig
from fedlab.errors import ConfigError, FedLabError
from fedlab.privacy.poisson import local_steps
from fedlab.protocol.compression import Chain
from fedlab.seeding import numpy_generator
from fedlab.server.participation.availability import read_numbers


@dataclass(frozen=True)
class ClientWork:
    """A client's round.

    Args:
        down: bytes to it.
        up: bytes from it.
        steps: of local training.
        samples: processed in them.
        batch: samples in a full step.
    """

    down: int
    up: int
    steps: int
    samples: int
    batch: int


def planned(training: TrainingConfig, examples: int, down: int, up: int, *, poisson: bool = False) -> ClientWork:
    """The work of a client in one round, as the configuration plans it.

    Args:
        training: the configuration.
        examples: of the client.
        down: bytes to it.
        up: bytes from it.
        poisson: its batches are drawn anew for every step, of that size on average (DP-SGD).
    """
    batch = max(1, min(training.batch_size, examples))
    if poisson:
        steps = local_steps(training, examples)
        return ClientWork(down, up, steps, steps * batch, batch)
    if training.local_steps is not None:
        steps = training.local_steps if examples else 0
        return ClientWork(down, up, steps, steps * batch, batch)
    full = examples // training.batch_size
    each = full if training.drop_last else math.ceil(examples / training.batch_size)
    seen = full * training.batch_size if training.drop_last else examples
    return ClientWork(down, up, each * training.local_epochs, seen * training.local_epochs, batch)


def upload_bytes(networks: nn.Module, chain: Chain) -> dict[str, int]:
    """Bytes of every network state on its way to the server; parameters alone are compressed.

    Args:
        networks: whose state.
        chain: compression of uploads.
    """
    parameters = {name for name, _ in networks.named_parameters()}
    return {
        name: chain.nbytes(value.numel())
        if chain and name in parameters and value.is_floating_point() and value.numel()
        else value.numel() * value.element_size()
        for name, value in networks.state_dict().items()
    }


@dataclass(frozen=True)
class Device:
    """A client's machine: samples a second, bytes a second down and up."""

    speed: float
    down: float
    up: float

    def seconds(self, work: ClientWork, steps: int | None = None) -> float:
        """Download, training and upload; `steps` full steps instead of all of the work."""
        samples = work.samples if steps is None else steps * work.batch
        return work.down / self.down + samples / self.speed + work.up / self.up

    def steps_until(self, deadline: float, work: ClientWork) -> int:
        """Full steps that leave time for the upload; 0 where none does."""
        left = deadline - self.seconds(work, 0)
        return max(0, min(work.steps, math.floor(left * self.speed / work.batch)))


class Devices:
    """Every client's device.

    Args:
        config: how they are made.
        seed: the run's seed.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, config: DevicesConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._made: dict[int, Device] = {}
        if config.csv is not None:
            key = "federation.devices.csv"
            for client, *figures in read_numbers(config.csv, ("client", "speed", "down", "up"), key):
                if min(figures) <= 0:
                    raise ConfigError(key, f"{config.csv}: client {client:g}", "speed, down and up above 0")
                self._made[int(client)] = Device(*figures)

    def __getitem__(self, client: int) -> Device:
        if client not in self._made:
            if self._config.csv is not None:
                raise FedLabError(f"federation.devices.csv = {self._config.csv} has no line for client {client}")
            self._made[client] = self._draw(client)
        return self._made[client]

    def _draw(self, client: int) -> Device:
        config = self._config
        speed, down, up = numpy_generator(self._seed, "device", client).standard_normal(3)
        return Device(
            config.speed * math.exp(config.speed_spread * speed),
            config.down * math.exp(config.link_spread * down),
            config.up * math.exp(config.link_spread * up),
        )
