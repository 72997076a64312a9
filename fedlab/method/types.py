"""What a method's hooks are given and give back: tasks, plans, steps, groups of state, batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Batch = dict[str, Any]


Plan = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class Task:
    """What a method may know of the job before it sees a sample.

    Args:
        num_classes: number of classes, 0 where there are none.
        input_shape: shape of one sample's main column, (C, H, W) for images.
        class_names: one per class.
        vocabulary: the words a text column's numbers stand for, empty where there is none.
        num_clients: registered clients.
        model_name: the run's ``model.name``.
        columns: every column's dtype and shape per sample, ``{"image": ("float32", (3, 28, 28))}``.
        make_model: builds a model by component name with the configured (default) settings, initialized from a seed.
        mean: subtracted per channel from images in [0, 1]; averaged where the statistics differ by domain.
        std: divisor per channel after that, likewise.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    num_clients: int
    model_name: str
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    make_model: Callable[..., nn.Module] = field(repr=False)
    vocabulary: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def model(self, name: str | None = None, *, seed: int | None = None, **settings: Any) -> nn.Module:
        """The configured model, or the one called `name`.

        Args:
            name: a model of the registry; None is the run's ``model`` section.
            seed: initialization seed; None draws from the generator in force, which inside `Method.build` is the run's.
            settings: the named model's settings.
        """
        return self.make_model(name, seed, settings)


@dataclass(frozen=True)
class Step:
    """Where training stands when a batch is used.

    Args:
        round: federated round, from 1.
        epoch: local epoch, from 0.
        index: step within this round, from 0.
        per_round: steps of this client in one round.
        global_step: step over the whole run, ``(round - 1) * per_round + index``, so that schedules go on across
            rounds.
        total_steps: ``rounds * per_round``.
        plan: what the server asked of this round.
        shared: tensors the server holds and every client has a copy of.
        scratch: whatever `fit` left in ``ctx.scratch`` for this round: a memory bank, a teacher's last outputs.
        log: records a value, as ``ctx.log`` does.
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
    """

    name: str
    members: tuple[str, ...] = ("*",)
    mode: Literal["average", "server", "once", "local", "frozen", "rest"] = "average"
    weight: Literal["examples", "uniform"] = "examples"
    buffers: Literal["average", "local"] = "average"


@dataclass(frozen=True)
class BatchSpec:
    """How a method wants its batches.

    Args:
        sampler: (columns, batch size, generator) → index arrays, one per batch, for one epoch; default: shuffled.
        collate: (batch, generator) → batch, e.g. several crops of each sample or hard negatives of each caption.
    """

    sampler: Callable[[Mapping[str, Tensor], int, torch.Generator], Iterable[Tensor]] | None = None
    collate: Callable[[Batch, torch.Generator], Batch] | None = None
