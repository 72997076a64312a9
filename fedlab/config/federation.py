"""The sections `training` and `federation`: local training, and which clients take part in a round and when."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedlab.config.base import Component, ComponentField, Positive, ProperFraction, Section
from fedlab.storage.paths import InputPath


class TrainingConfig(Section):
    """Local training of a client in one round."""

    optimizer: Literal["sgd", "adam", "adamw"] = Field(default="sgd", description="optimizer of local training")
    lr: float = Field(default=0.01, gt=0, description="learning rate")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of sgd")
    betas: tuple[ProperFraction, ProperFraction] = Field(
        default=(0.9, 0.999), description="coefficients of adam and adamw for the running averages"
    )
    eps: float = Field(default=1e-8, gt=0, description="constant of adam and adamw that is added to the denominator")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay of the optimizer")
    batch_size: Positive = Field(default=32, description="samples in a batch of local training")
    local_epochs: Positive = Field(default=1, description="passes of a client over its samples in one round")
    local_steps: Positive | None = Field(
        default=None, description="local steps of a client in one round; if set, local_epochs does not count"
    )
    drop_last: bool = Field(default=False, description="leave out the last batch of an epoch if it is not full")
    clip_norm: float | None = Field(
        default=None, gt=0, description="largest L2 norm of the gradient; a larger gradient is scaled down to it"
    )
    clip: Literal["global", "tensor"] = Field(
        default="global",
        description="global: clip_norm applies to the whole gradient; tensor: to the gradient of each parameter tensor",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="bfloat16 trains in mixed precision (torch.autocast)"
    )
    channels_last: bool = Field(
        default=False, description="use the channels-last memory layout for convolutions, which is faster on most GPUs"
    )
    compile: bool = Field(
        default=False, description="compile the networks with torch.compile; on the CPU this needs a C++ compiler"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="learning rate schedule over the steps of the whole run: constant, or decaying to 0 at the run's "
        "end",
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="steps of the run in which the schedule raises the learning rate linearly from 0"
    )


class AvailabilityConfig(Section):
    """When clients can take part: intervals from a file, or generated days and nights."""

    csv: InputPath | None = Field(
        default=None,
        description="file with the columns client, from, to; the client is available while from ≤ time < to",
    )
    period: float | None = Field(
        default=None, gt=0, description="length of a generated day; every client's day begins at a time of its own"
    )
    share: ProperFraction = Field(default=0.5, description="part of a generated day in which a client is available")
    unit: Literal["rounds", "seconds"] = Field(
        default="rounds", description="unit of time: rounds, or seconds of the virtual clock"
    )


class DevicesConfig(Section):
    """Speeds and links of the clients' devices, from which the virtual clock computes times.

    They come from a file, or are drawn from log-normal distributions.
    """

    csv: InputPath | None = Field(default=None, description="file with the columns client, speed, down, up")
    speed: float = Field(default=100.0, gt=0, description="median training speed, samples a second")
    speed_spread: float = Field(default=1.0, ge=0, description="standard deviation of the speed's logarithm")
    down: float = Field(default=1e6, gt=0, description="median bandwidth to the client, bytes a second")
    up: float = Field(default=2.5e5, gt=0, description="median bandwidth from the client, bytes a second")
    link_spread: float = Field(default=1.0, ge=0, description="standard deviation of the bandwidths' logarithm")


class AsynchronousConfig(Section):
    """Buffered asynchronous training (FedBuff, Nguyen et al. 2022); a round is one update of the server."""

    concurrency: Positive = Field(default=4, description="number of clients that train at any time")
    buffer: Positive = Field(default=2, description="number of client updates that make one server update, K")
    server_lr: float = Field(default=1.0, gt=0, description="learning rate of the server, η_g")


class StopConfig(Section):
    """When a run ends before its last round: when a metric of the clients' validation samples no longer improves."""

    metric: str = Field(
        min_length=1, description="metric that is watched, as the evaluation on the clients' validation samples has it"
    )
    patience: Positive = Field(
        default=5, description="number of evaluations in a row without an improvement after which the run ends"
    )
    minimum: float = Field(default=0.0, ge=0, description="smallest change of the metric that counts as an improvement")
    over: Literal["mean", "pooled"] = Field(
        default="mean",
        description="mean: the mean over the clients; pooled: the value of all their validation samples together",
    )
    better: Literal["higher", "lower"] | None = Field(
        default=None, description="which values of the metric are better; default: as its name tells"
    )
    keep_best: bool = Field(
        default=True,
        description="keep the weights of the best evaluation and write them as artifacts when the run ends",
    )


class FederationConfig(Section):
    """Rounds, participation and aggregation."""

    rounds: Positive = Field(default=10, description="number of rounds")
    strategy: ComponentField = Field(
        default=Component(name="fedavg"),
        description="how the server aggregates the clients' updates; see `fedlab list strategies`",
    )
    sampler: ComponentField = Field(
        default=Component(name="uniform"),
        description="how the clients of each round are chosen; see `fedlab list samplers`",
    )
    mode: Literal["synchronous", "asynchronous"] = Field(
        default="synchronous",
        description="asynchronous: FedBuff, which uses the virtual clock and therefore needs `devices`",
    )
    asynchronous: AsynchronousConfig = AsynchronousConfig()
    availability: AvailabilityConfig | None = Field(
        default=None,
        description="when each client can be chosen by the sampler; default: every client in every round",
    )
    stop: StopConfig | None = Field(
        default=None,
        description="end the run when a metric of the clients' validation samples (data.validation) no longer "
        "improves; default: the run does all its rounds",
    )
    devices: DevicesConfig | None = Field(
        default=None, description="the clients' devices, for the virtual clock; default: there is no virtual clock"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that a chosen client does not answer")
    over_selection: float = Field(
        default=1.0,
        ge=1,
        description="factor by which more clients are chosen than are wanted; those that finish first on the virtual "
        "clock count",
    )
    deadline: float | None = Field(
        default=None, gt=0, description="longest time that a round may take, in seconds of the virtual clock"
    )
    late: Literal["partial", "drop"] = Field(
        default="partial",
        description="partial: a client that is too slow for the deadline does only the steps that fit; drop: its work "
        "does not count",
    )
    on_client_error: Literal["stop", "skip"] = Field(
        default="stop",
        description="stop: when a client fails, the run ends with the client's traceback; skip: the round goes on with "
        "the other clients",
    )
    min_clients: Positive = Field(
        default=1,
        description="with on_client_error: skip, the smallest number of clients whose training makes a round; in a "
        "deployment the server waits for so many nodes",
    )
    timeout: float = Field(
        default=3600.0,
        gt=0,
        description="seconds that the server waits for the replies in each phase of a round, and in a deployment for "
        "nodes to connect",
    )
    reply_limit: Positive = Field(
        default=128,
        description="MiB that a client may send at once beside the network state, such as a method's own results; a "
        "larger reply is an error of that client",
    )
