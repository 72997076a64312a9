"""Post-train: students from scratch on the synthetic images (§3.4)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.param_groups import decayed
from fedlab.distill.pixels import from_bytes
from fedlab.distill.relabel import Configuration, StoredLabels, Teacher, draw_epoch, store
from fedlab.distill.soft_labels import soft_label_kl
from fedlab.errors import FedLabError
from fedlab.method import Optimizer, ServerContext
from fedlab.methods.cda.curriculum import warm_cosine
from fedlab.methods.cda.settings import Post

WeightedBatches = Iterator[tuple[Tensor, Tensor, Tensor, float]]
"""Views (n, C, H, W), teacher's logits (n, K), classes of each image and of its partner (2, n), share λ."""


class PostTraining:
    """Some epochs of one round.

    Args:
        ctx: the server's context; its private tensors hold the synthetic set and what is kept from round to round.
        s: settings.

    Raises:
        FedLabError: there is no synthetic set.
    """

    def __init__(self, ctx: ServerContext, s: Post) -> None:
        if "images" not in ctx.private:
            raise FedLabError("nobody took part in the round of recovery: there are no images to train students on")
        self.ctx, self.s = ctx, s
        self.images = from_bytes(ctx.private["images"], ctx.task.mean, ctx.task.std)
        self.labels = ctx.private["labels"].long()
        self.teacher: Teacher = ensemble(ctx) if s.labels == "ensemble" else ctx.networks["model"].eval()
        if s.relabel == "stored" and "fkd/logits" not in ctx.private:
            self._store()

    def _store(self) -> None:
        epochs = (self._draw(epoch, "relabel") for epoch in self.ctx.steps(self.s.epochs))
        for name, values in store(self.images, self.teacher, epochs).items():
            self.ctx.private[f"fkd/{name}"] = values

    def _draw(self, epoch: int, *purpose: str) -> list[Configuration]:
        s, size = self.s, (self.ctx.task.input_shape[1], self.ctx.task.input_shape[2])
        batch_size, generator = max(1, s.batch_size // s.accumulation), self.ctx.generator(*purpose, epoch)
        looks: dict[str, Any] = {"smallest": s.crop, "flip": s.flip, "shift": s.shift, "mixing": s.mixing}
        return draw_epoch(len(self.images), size, batch_size, generator, **looks)

    def train(self, role: str, first: int, last: int) -> None:
        """Epochs `first` to `last` − 1 of one student."""
        s, ctx = self.s, self.ctx
        student = ctx.networks[role].train().requires_grad_()
        optimizer = ctx.optimizer(
            student.parameters() if s.decay == "all" else decayed(student, tokens=False),
            optimizer=s.optimizer,
            lr=s.lr,
            momentum=s.momentum,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=s.weight_decay,
            clip_norm=None,
        )
        unpack(optimizer, ctx.private, f"optimizer/{role}/")
        for epoch in (first + done for done in ctx.steps(last - first)):
            for group in optimizer.torch.param_groups:
                group["lr"] = s.lr * warm_cosine(epoch, s.epochs, s.warmup_epochs)
            parts: list[Tensor] = []
            for batch in self._batches(epoch, role):
                parts.append(self._loss(student, *batch))
                if len(parts) == s.accumulation:
                    ctx.step({f"{role}_loss": torch.stack(parts).mean()}, optimizer)
                    parts = []
            if parts:
                ctx.step({f"{role}_loss": torch.stack(parts).mean()}, optimizer)
        student.eval().requires_grad_(False)
        pack(optimizer, ctx.private, f"optimizer/{role}/", keep=last < s.epochs)

    def _loss(self, student: nn.Module, x: Tensor, logits: Tensor, classes: Tensor, share: float) -> Tensor:
        with self.ctx.autocast():
            ours: Tensor = student(x)
        if self.s.labels == "hard":
            own, partner = (F.cross_entropy(ours.float(), y) for y in classes)
            return share * own + (1 - share) * partner
        return soft_label_kl(ours, logits, self.s.temperature, self.s.squared)

    def _batches(self, epoch: int, role: str) -> WeightedBatches:
        if self.s.relabel == "stored":
            held = {n.removeprefix("fkd/"): v for n, v in self.ctx.private.items() if n.startswith("fkd/")}
            stored = StoredLabels(self.images, held)
            for batch in range(stored.batches):
                x, logits = stored[epoch * stored.batches + batch]
                yield x, logits, *self._classes(stored.configuration(epoch, batch))
            return
        for drawn in self._draw(epoch, "post", role):
            x = drawn.view(self.images)
            with torch.no_grad(), self.ctx.autocast():
                logits = x.new_empty(0) if self.s.labels == "hard" else self.teacher(x)
            yield x, logits, *self._classes(drawn)

    def _classes(self, drawn: Configuration) -> tuple[Tensor, float]:
        own = self.labels[drawn.indices]
        return torch.stack([own, own[drawn.mix.permutation]]), drawn.mix.share


def ensemble(ctx: ServerContext) -> Teacher:
    """The clients' teachers as one: z_c = Σ_i w_ic·log p_i(c | x), w_ic client i's share of class c's samples.

    A class nobody counts is averaged plainly.
    """
    counts = torch.stack([v for n, v in sorted(ctx.private.items()) if n.startswith("counts/")]).double()
    shares = torch.where(counts.sum(0) > 0, counts / counts.sum(0).clamp(min=1), 1 / len(counts)).float()
    models = []
    for name in sorted(n for n in ctx.private if n.startswith("counts/")):
        prefix = f"teacher/{name.removeprefix('counts/')}/"
        model = copy.deepcopy(ctx.networks["model"])
        model.load_state_dict({n.removeprefix(prefix): v for n, v in ctx.private.items() if n.startswith(prefix)})
        models.append(model.eval())

    def ask(x: Tensor) -> Tensor:
        return torch.stack(
            [w * F.log_softmax(model(x).float(), 1) for w, model in zip(shares, models, strict=True)]
        ).sum(0)

    return ask


def pack(optimizer: Optimizer, state: MutableMapping[str, Tensor], prefix: str, keep: bool) -> None:
    """Replace the optimizer's moments in `state` by the present ones, or only remove them."""
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    moments: Mapping[int, Mapping[str, Any]] = optimizer.torch.state_dict()["state"] if keep else {}
    for index, values in moments.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                state[f"{prefix}{index}/{name}"] = value


def unpack(optimizer: Optimizer, state: Mapping[str, Tensor], prefix: str) -> None:
    """Give a fresh optimizer the moments that `pack` kept, if any."""
    moments: dict[int, dict[str, Tensor]] = {}
    for path in sorted(name for name in state if name.startswith(prefix)):
        index, name = path.removeprefix(prefix).split("/")
        moments.setdefault(int(index), {})[name] = state[path]
    if moments:
        whole = optimizer.torch.state_dict()
        optimizer.torch.load_state_dict({**whole, "state": moments})
