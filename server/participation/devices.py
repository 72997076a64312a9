"""The virtual clock: computes, and does not measure, how long a client's round takes on its device."""

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
    """The work of a client in one round.

    Args:
        down: bytes sent to the client.
        up: bytes that the client sends.
        steps: number of local steps.
        samples: number of samples that these steps process.
        batch: number of samples in a full step.
    """

    down: int
    up: int
    steps: int
    samples: int
    batch: int


def planned(training: TrainingConfig, examples: int, down: int, up: int, *, poisson: bool = False) -> ClientWork:
    """The work of a client in one round, as the configuration plans it.

    Args:
        training: the training section.
        examples: number of training samples of the client.
        down: bytes sent to the client.
        up: bytes that the client sends.
        poisson: whether batches are drawn by Poisson sampling (DP-SGD), so that only their mean size is known.
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
    """Bytes of each tensor of the network state in an upload. Only floating-point parameters are compressed.

    Args:
        networks: the networks.
        chain: the compression of uploads.

    Returns:
        Bytes by name.
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
    """A client's device.

    Args:
        speed: training speed in samples per second.
        down: bandwidth to the client in bytes per second.
        up: bandwidth from the client in bytes per second.
    """

    speed: float
    down: float
    up: float

    def seconds(self, work: ClientWork, steps: int | None = None) -> float:
        """Seconds of download, training and upload. If `steps` is given, the training is that many full steps."""
        samples = work.samples if steps is None else steps * work.batch
        return work.down / self.down + samples / self.speed + work.up / self.up

    def steps_until(self, deadline: float, work: ClientWork) -> int:
        """The largest number of full steps after which the upload still ends by the deadline, in seconds; 0 if none."""
        left = deadline - self.seconds(work, 0)
        return max(0, min(work.steps, math.floor(left * self.speed / work.batch)))


class Devices:
    """The devices of all clients, read from a file or drawn from distributions.

    Looking up a client that the file does not contain raises FedLabError.

    Args:
        config: the configuration's section.
        seed: the run's seed, on which the drawn devices depend.

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
