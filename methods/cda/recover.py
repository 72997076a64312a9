"""Recover: images out of a frozen teacher (§3.2 of the specification's numbering; the paper's Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.bn_matching import BatchNormMatching
from fedlab.distill.freezing import frozen
from fedlab.distill.pixels import to_bytes, valid_range
from fedlab.distill.schedules import cosine
from fedlab.distill.views import crop_resize, draw_boxes
from fedlab.method import FitContext, ServerContext
from fedlab.methods.cda.curriculum import crop_bound
from fedlab.methods.cda.settings import Recover
from fedlab.storage.hashing import state_hash

STAGES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the iterations after which the first chunk is kept, to be looked at."""


def recovered(
    ctx: FitContext | ServerContext, teacher: nn.Module, classes: Sequence[int], s: Recover
) -> dict[str, Tensor]:
    """`s.ipc` images of each class; from the cache if they were recovered from this teacher before.

    Returns:
        ``images`` (n, C, H, W) uint8, sorted by class, and ``labels`` (n,) int16; ``stages`` (5, m, C, H, W) uint8, the
        first chunk during its recovery, and ``stage_labels`` (m,).
    """
    key = {
        **s.model_dump(mode="json", exclude={"form", "images", "local_epochs", "local_lr", "local_statistics"}),
        "teacher": state_hash(teacher),
        "classes": list(classes),
        "pixels": [ctx.task.mean, ctx.task.std],
        "round": ctx.round,
        "holder": ctx.client if isinstance(ctx, FitContext) else "server",
    }
    return ctx.cached("cda-recover", key, lambda: _recover_all(ctx, teacher, classes, s))


def _recover_all(
    ctx: FitContext | ServerContext, teacher: nn.Module, classes: Sequence[int], s: Recover
) -> dict[str, Tensor]:
    chunked = chunks(classes, s.ipc, s.chunk)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with frozen(teacher.eval()):
        for index in ctx.steps(len(chunked)):
            images, stages = recover(ctx, teacher, chunked[index], s, ctx.generator("recover", index))
            parts.append((images, stages, chunked[index]))
    labels = torch.cat([labels for _, _, labels in parts])
    order = torch.argsort(labels, stable=True)
    images, stages = torch.cat([images for images, _, _ in parts])[order], parts[0][1]
    mean, std = ctx.task.mean, ctx.task.std
    return {
        "images": to_bytes(images, mean, std),
        "labels": labels[order].to(torch.int16),
        "stages": to_bytes(stages.flatten(0, 1), mean, std).reshape(stages.shape),
        "stage_labels": parts[0][2].to(torch.int16),
    }


def chunks(classes: Sequence[int], ipc: int, size: int) -> list[Tensor]:
    """Labels of the images that are optimized together: at most `size`, of as many different classes as there are.

    With fewer classes than images in a chunk, it has several images of each: statistics over few images, or over one
    class, contradict the running ones.
    """
    labels = torch.tensor(list(classes))
    if len(labels) >= size:
        parts = torch.tensor_split(labels, -(-len(labels) // size))
        return [part for _ in range(ipc) for part in parts]
    together = size // len(labels)
    counts = torch.tensor_split(torch.arange(ipc), -(-ipc // together))
    return [labels.repeat(len(images)) for images in counts]


def recover(
    ctx: FitContext | ServerContext, teacher: nn.Module, labels: Tensor, s: Recover, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One chunk: T steps of Adam on L = CE(f(v), y) + r_bn·R_BN(v) over views v of the images x.

    Args:
        ctx: at work.
        teacher: f, frozen, in evaluation mode.
        labels: y, (n,) integers.
        s: settings.
        generator: draws the first images and every view.

    Returns:
        The last iterate, (n, C, H, W), normalized, within the valid range; and how it was at `STAGES`, (5 or, of
        fewer steps than that, less, n, C, H, W).
    """
    size = (ctx.task.input_shape[1], ctx.task.input_shape[2])
    low, high = (ctx.place(bound) for bound in valid_range(ctx.task.mean, ctx.task.std))
    x = ctx.place(torch.randn(len(labels), *ctx.task.input_shape, generator=generator)).requires_grad_()
    y, looked_at = ctx.place(labels), {round(share * s.iterations) for share in STAGES}
    stages: list[Tensor] = []
    optimizer = ctx.optimizer(
        [x], optimizer="adam", lr=s.lr, betas=(0.5, 0.9), eps=1e-8, weight_decay=0.0, clip_norm=None
    )
    with BatchNormMatching(teacher, s.first_bn) as statistics:
        for t in ctx.steps(s.iterations):
            if t in looked_at:
                stages.append(x.detach().clamp(low, high))
            for group in optimizer.torch.param_groups:
                group["lr"] = s.lr * cosine(t, s.iterations)
            v = draw_view(x, t, s, size, generator)
            with ctx.autocast():
                terms = {"recover_ce": F.cross_entropy(teacher(v), y)}
            if s.r_bn:
                terms["recover_bn"] = s.r_bn * statistics.loss()
            ctx.step(terms, optimizer)
            with torch.no_grad():
                x.clamp_(low, high)
    last = x.detach().clamp(low, high)
    return last, torch.stack([*stages, last])


def draw_view(x: Tensor, t: int, s: Recover, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """v = Roll(Flip(RRC(x))): one box, one coin and one offset for the whole chunk."""
    α = crop_bound(t, s.iterations, s.curriculum, s.milestone, s.smallest)
    v = crop_resize(x, draw_boxes(1, size, (α, 1.0), generator)[0], size)
    if s.flip and torch.rand((), generator=generator) < 0.5:
        v = v.flip(3)
    if s.jitter:
        o = torch.randint(s.jitter + 1, (2,), generator=generator).tolist()
        v = v.roll(o, dims=(2, 3))
    return v
