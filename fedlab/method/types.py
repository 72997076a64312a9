"""Arguments and results of a method's hooks: tasks, plans, steps, exchange groups and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedlab.method.assets import Holding

Batch = dict[str, Any]
"""The columns of a batch by name; usually tensors with one row for each sample."""

Plan = Mapping[str, bool | int | float | str]
"""What the server asks of the clients in a round, as names with scalar values."""


@dataclass(frozen=True)
class Task:
    """What a method knows about the data and the federation before it sees a sample.

    Args:
        num_classes: number of classes; 0 if the data has none.
        input_shape: shape of one sample in the main column, (C, H, W) for images.
        class_names: the name of each class, in the order of the labels.
        vocabulary: the words that the numbers in a text column stand for; empty if there is no such column.
        num_clients: number of registered clients.
        model_name: the run's ``model.name``.
        columns: dtype and shape per sample of each column, as in ``{"image": ("float32", (3, 28, 28))}``.
        make_model: builds a model from a name, a seed and settings, as `model` does.
        asset_paths: file, folder or name on a hub from which this participant loads an asset, by the asset's name: the
            run's ``data.assets``, or what the file of a node says.
        bench: returns a `WorkContext` for the work of building an asset, such as training it on generated data, given
            the asset's name. Its random draws and its cache depend on the run's seed and on no client's data. None
            outside of `Method.assets`.
        mean: what was subtracted from each channel of images in [0, 1]: one number for each channel, or one for all. If
            the domains have different statistics, it is the mean of theirs.
        std: what each channel was divided by after that, in the same form.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    num_clients: int
    model_name: str
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    make_model: Callable[..., nn.Module] = field(repr=False)
    vocabulary: tuple[str, ...] = ()
    asset_paths: Mapping[str, str] = field(default_factory=dict)
    bench: Callable[[str], Any] | None = field(default=None, repr=False)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def model(self, name: str | None = None, *, seed: int | None = None, **settings: Any) -> nn.Module:
        """Build the configured model, or the one called `name`.

        Args:
            name: name of a model in the registry; None builds the model of the run's section ``model``.
            seed: seed of the initialization. With None, weights are drawn from torch's global CPU generator, which is
                seeded from the run's seed inside `Method.build`.
            settings: settings of the model called `name`; the others have their defaults. Ignored without `name`.

        Raises:
            ConfigError, ConfigErrors: there is no such model or setting, or the model cannot take these samples.
        """
        return self.make_model(name, seed, settings)


@dataclass(frozen=True)
class Step:
    """One local step, and what is known about the round that it belongs to.

    Args:
        round: the round, from 1.
        epoch: the local epoch, from 0.
        index: number of the step within this round, from 0.
        per_round: number of steps that this client is to take in one round.
        global_step: number of the step within the whole run, ``(round - 1) * per_round + index``, so that schedules
            continue from round to round.
        total_steps: number of steps in the whole run, ``rounds * per_round``.
        plan: the plan of this round.
        shared: the server's shared tensors, of which every client gets a copy.
        scratch: objects that `Method.fit` has left in ``ctx.scratch`` for this round, such as a memory bank.
        log: records a value of a metric, as ``ctx.log`` does.
        holds: names of the assets that the client holds, as ``ctx.holds``.
        asset: returns the network of an asset that the client holds, as ``ctx.asset`` does.
    """

    round: int
    epoch: int
    index: int
    per_round: int
    global_step: int
    total_steps: int
    plan: Plan
    shared: Mapping[str, Tensor]
    scratch: dict[str, Any]
    log: Callable[[str, float], None]
    holds: tuple[str, ...] = ()
    asset: Callable[[str], nn.Module] = field(default=Holding().network, repr=False)


@dataclass(frozen=True)
class Group:
    """State that is exchanged in one way.

    Args:
        name: shown in the communication table.
        members: shell patterns over state names, which are ``<role>.<name in the network's state_dict>``. The first
            group that matches a name owns it.
        mode: ``average`` is sent down and up and averaged. ``server`` is sent down every round, only the server
            changes it (in `Method.server_update`). ``once`` is sent down when a client first needs it, kept there and
            not trained: teachers, codebooks, a backbone after its stage. ``local`` stays in the client's state,
            starting from the weights `Method.build` made; state that has been averaged, or changed by the server, in an
            earlier stage starts from the server's value, which is then sent once. ``frozen`` never travels: every
            participant builds it from the same checkpoint, which is checked by hash. ``rest`` stays on the server and
            is not trained: a teacher that waits for its stage. On clients it is as `Method.build` made it.
        weight: how clients count in the average.
        buffers: ``average`` treats floating-point buffers as parameters, ``local`` keeps them on the client. Integer
            buffers never travel.
        asset: name of an asset; clients that do not hold it do not send this state, so it is averaged over those that
            do. Empty if all clients send it.
    """

    name: str
    members: tuple[str, ...] = ("*",)
    mode: Literal["average", "server", "once", "local", "frozen", "rest"] = "average"
    weight: Literal["examples", "uniform"] = "examples"
    buffers: Literal["average", "local"] = "average"
    asset: str = ""


@dataclass(frozen=True)
class BatchSpec:
    """How the batches of local training are made.

    Args:
        sampler: called once for each epoch with the columns, the batch size and a generator; returns one tensor of
            sample indices for each batch. By default, batches of shuffled samples are drawn.
        collate: called with each batch and a generator; returns the batch to train on, for example with several crops
            of each sample. By default, the batch stays as it is.
    """

    sampler: Callable[[Mapping[str, Tensor], int, torch.Generator], Iterable[Tensor]] | None = None
    collate: Callable[[Batch, torch.Generator], Batch] | None = None
