"""Training of a network before the first round: on the server's samples, such as a teacher, or for an asset."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedlab.distill.schedules import cosine
from fedlab.errors import DataError
from fedlab.method import Batch, WorkContext
from fedlab.storage.hashing import state_hash

Augment = Callable[[Batch, torch.Generator], Batch]
"""Returns the batch to train on, as `BatchSpec.collate` does."""

_TRAINING = {"optimizer", "momentum", "weight_decay", "betas", "eps", "clip", "clip_norm", "precision"}


def train_on_server(
    ctx: WorkContext,
    network: nn.Module,
    columns: Mapping[str, Tensor],
    loss: Callable[[nn.Module, Batch], Mapping[str, Tensor]],
    *,
    name: str,
    key: Mapping[str, Any],
    steps: int,
    batch_size: int,
    lr: float | None = None,
    augment: Augment | None = None,
    schedule: Literal["cosine", "linear", "constant"] = "cosine",
    params: Callable[[nn.Module], Iterable[Any]] = nn.Module.parameters,
    after_step: Callable[[nn.Module], None] | None = None,
    purposes: tuple[str, str] | None = None,
) -> None:
    """Train a network on samples that the server holds, or load the result of an earlier run that did just the same.

    All parameters are trained with the run's optimizer, whatever the exchange of the network is. The result depends on
    the samples, the run's seed, the weights that the network starts from, the arguments and the section ``training``;
    an earlier result is used only if all of them are the same. Before a run, in preflight, one step is taken.

    Args:
        ctx: the server's context, usually that of `Method.server_prepare`, or the bench of an asset.
        network: the network; the trained weights are loaded into it. Its modes and gradients stay as they are.
        columns: the samples to train on.
        loss: maps the network that is trained and a batch to the terms of the loss by name, whose sum is minimized.
        name: name of the result in the cache.
        key: whatever else the result depends on, such as settings that `loss` and `augment` use; serializable as JSON.
        steps: number of steps, each with one batch; the samples are shuffled anew for every pass over them.
        batch_size: samples in a batch.
        lr: learning rate at the first step; default: ``training.lr``.
        augment: makes the batch to train on; its generator is the same for all batches.
        schedule: how the learning rate falls to 0 over the steps.
        params: returns the parameters of a network, or parameter groups, for the optimizer.
        after_step: called with the network after each step.
        purposes: purposes of the random order and of the draws of `augment`; by default they are made of `name`.

    Raises:
        DataError: there are no samples.
        NotFiniteError: the loss is NaN or infinite.
    """
    count = len(next(iter(columns.values()), ()))
    if not count:
        raise DataError(f"server data for {name}", "no samples", "samples to train on")
    full_key = {
        **key,
        **ctx.training.model_dump(mode="json", include=_TRAINING),
        "lr": ctx.training.lr if lr is None else lr,
        "steps": steps,
        "batch_size": batch_size,
        "schedule": schedule,
        "start": state_hash(network),
    }
    order, draws = purposes or (f"{name} batches", f"{name} augmentation")

    def train() -> dict[str, Tensor]:
        trained, generator = copy.deepcopy(network).requires_grad_().train(), ctx.generator(draws)
        optimizer = ctx.optimizer(params(trained), **({} if lr is None else {"lr": lr}))
        passes = -(-steps // -(-count // batch_size))
        batches = ctx.iterate(columns, batch_size, passes, shuffle=order)
        for step, batch in zip(ctx.steps(steps), batches, strict=False):
            optimizer.set(partial(_scaled, _factor(schedule, step, steps)))
            seen = batch if augment is None else augment(batch, generator)
            with ctx.autocast():
                terms = loss(trained, seen)
            ctx.step(terms, optimizer)
            if after_step is not None:
                after_step(trained)
        return trained.state_dict()

    found = ctx.cached(name, full_key, train)
    network.load_state_dict({part: ctx.place(value) for part, value in found.items()})


def _factor(schedule: Literal["cosine", "linear", "constant"], step: int, steps: int) -> float:
    if schedule == "constant":
        return 1.0
    return cosine(step, steps) if schedule == "cosine" else 1 - step / steps


def _scaled(factor: float, group: Mapping[str, Any]) -> Mapping[str, float]:
    return {"lr": group["lr"] * factor}
