"""The server's work before round 1: it loads a teacher, trains it, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedlab.errors import ConfigError
from fedlab.method import Batch, ServerContext, network
from fedlab.methods.transkd.segformer import SegFormer
from fedlab.methods.transkd.settings import TransKDSettings

SAMPLES = "teacher"
"""The server's sample set it is trained on."""

Augment = Callable[[Batch, torch.Generator], Batch]
Criterion = Callable[[Tensor, Tensor], Tensor]


def make_ready(ctx: ServerContext, s: TransKDSettings, augment: Augment, criterion: Criterion) -> None:
    """Load the checkpoint and train for the configured number of steps; weights from ``init`` are already loaded.

    Args:
        ctx: holds the network ``teacher`` and the server's samples.
        s: what to load and how long to train.
        augment: (batch, generator) → batch.
        criterion: (logits, masks) → loss.

    Raises:
        ConfigError: an unusable checkpoint, or no samples to train on.
    """
    teacher = network(ctx.networks, "teacher", SegFormer)
    whole = teacher.load_pretrained(s.pretrained, "method.pretrained") if s.pretrained else True
    if not s.teacher_steps:
        if not whole:
            expected, fix = "a whole segmentation network with these classes", "or set method.teacher_steps to train it"
            raise ConfigError("method.pretrained", s.pretrained, expected, fix)
        return
    if SAMPLES not in ctx.data:
        held = f"this source holds {', '.join(ctx.data) or 'none'}; see methods/transkd/README.md"
        raise ConfigError("method.teacher_steps", s.teacher_steps, f"a server sample set {SAMPLES!r}", held)
    learn = partial(_learn, ctx, s, teacher, augment, criterion)
    teacher.load_state_dict(ctx.cached("transkd-teacher", _key(ctx, s, teacher), learn))


def _key(ctx: ServerContext, s: TransKDSettings, teacher: SegFormer) -> dict[str, Any]:
    """Everything that the result depends on besides samples and seed, including a checkpoint it starts from."""
    names = {"teacher", "class_weights", "void_logit", "flip", "translate", "teacher_steps", "teacher_batch"}
    training = {"optimizer", "lr", "momentum", "weight_decay", "betas", "eps", "clip", "clip_norm", "precision"}
    start = torch.stack([value.double().square().sum() for value in teacher.state_dict().values()]).sum()
    return {
        **s.model_dump(mode="json", include=names),
        **ctx.training.model_dump(mode="json", include=training),
        "start": float(start),
    }


def _learn(
    ctx: ServerContext, s: TransKDSettings, teacher: SegFormer, augment: Augment, criterion: Criterion
) -> dict[str, Tensor]:
    """Train with cross-entropy and the run's optimizer; the learning rate falls linearly to 0."""
    samples, generator = ctx.data[SAMPLES], ctx.generator("teacher augmentation")
    teacher.train().requires_grad_()
    optimizer = ctx.optimizer(teacher.parameters())
    per_epoch = -(-len(samples["image"]) // s.teacher_batch)
    epochs = -(-s.teacher_steps // per_epoch)
    batches = ctx.iterate(samples, s.teacher_batch, epochs, shuffle="teacher batches")
    for step, batch in zip(ctx.steps(s.teacher_steps), batches, strict=False):
        optimizer.set(partial(_rate, 1 - step / s.teacher_steps))
        batch = augment(batch, generator)
        with ctx.autocast():
            logits = teacher(batch["image"])
        ctx.step({"teacher_ce": criterion(logits, batch["mask"])}, optimizer)
    teacher.eval().requires_grad_(False)
    return teacher.state_dict()


def _rate(factor: float, group: Mapping[str, Any]) -> Mapping[str, float]:
    return {"lr": group["lr"] * factor}
