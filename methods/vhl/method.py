"""VHL: besides their own samples, all clients train on one common set of noise-like images and align features to it.

Tang, Zhang, Shi, He, Han and Chu, "Virtual Homogeneity Learning: Defending against Data Heterogeneity in Federated
Learning", arXiv 2206.02465. Symbols: x̃, ỹ virtual images and their classes; K real classes, M virtual ones.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1, the server:  x̃, ỹ ← an untrained generator's images of M classes    server_prepare
                                 every client gets a copy of them, once                  exchange
    every round, every client, for every batch of x, y:                                  fit
        draw as many x̃, ỹ                                                               loss
        z, z̃ ← features; logits over K + M classes                                      loss
        L = CE(x, y) + α CE(x̃, K + ỹ)                                                   loss
        in the first epochs: + w₁ SupCon([z; sg(z̃)], [y; ỹ]) + w₂ SupCon(z̃, ỹ)         loss
    server: average by numbers of samples                                                exchange
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import Section
from fedlab.distill.contrastive import supervised_contrastive
from fedlab.errors import ConfigError
from fedlab.method import (
    Batch,
    FigureContext,
    FitContext,
    Group,
    ImageGrid,
    Method,
    Picture,
    Plan,
    ServerContext,
    Step,
    Task,
    network,
)
from fedlab.methods.vhl.generator import virtual_images
from fedlab.methods.vhl.networks import ExtendedClassifier
from fedlab.models import headless

_SHOWN = 8  # virtual images of a class in the picture


class VHLSettings(Section):
    """Settings; defaults are those of the authors' scripts."""

    virtual_classes: int | None = Field(
        default=None, ge=1, description="number of virtual classes, M; default: as many as real classes"
    )
    images_per_class: int = Field(default=200, ge=1, description="virtual images of each virtual class")
    mean_std: float = Field(default=0.5, gt=0, description="standard deviation of the virtual classes' latent means")
    latent_std: float = Field(
        default=0.3, ge=0, description="standard deviation of the latents around the mean of their class, s"
    )
    alpha: float = Field(default=1.0, ge=0, description="weight of the cross-entropy on virtual images, α")
    w_real: float = Field(
        default=1.0, ge=0, description="weight of the term that aligns real features with virtual ones, w₁"
    )
    w_virtual: float = Field(default=0.1, ge=0, description="weight of the contrastive term on virtual features, w₂")
    temperature: float = Field(default=0.07, gt=0, description="temperature of the contrastive terms")
    align_epochs: int = Field(
        default=5, ge=0, description="number of first local epochs in each round that use the contrastive terms"
    )
    naive: bool = Field(default=False, description="train without the contrastive terms (the paper's naive VHL)")


class VHL(Method[VHLSettings]):
    """Virtual homogeneity learning. The virtual set is made once, by the server, and sent to every client once."""

    title = "VHL"
    paper = "Tang et al. 2022, arXiv 2206.02465"
    learns_from = "images of noise that all clients share"

    Settings = VHLSettings

    def check(self, config: Any) -> list[str]:
        s = self.settings
        aligns = s.align_epochs > 0 and (s.w_real > 0 or s.w_virtual > 0)
        warnings = {
            "method.alpha = 0: the classifier learns nothing of the virtual classes": s.alpha == 0,
            "without contrastive terms (method.align_epochs, w_real, w_virtual) this is method.naive": (
                not s.naive and not aligns
            ),
            "method.images_per_class = 1: a virtual class is a single image": s.images_per_class == 1,
            "method.latent_std = 0: all images of a virtual class are the same": (
                s.latent_std == 0 and s.images_per_class > 1
            ),
        }
        return [text for text, holds in warnings.items() if holds]

    def build(self, task: Task) -> dict[str, nn.Module]:
        if len(task.input_shape) != 3:
            raise ConfigError("method.name", "vhl", "image data: virtual samples are images", "choose an image source")
        encoder, width = headless(task.model(), task.model_name)
        return {"model": ExtendedClassifier(encoder, width, task.num_classes, self._virtual(task))}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """The network with its K + M outputs; the virtual set is a tensor of the server's, sent once."""
        return (Group("model", members=("model",)),)

    def _virtual(self, task: Task) -> int:
        return int(self.settings.virtual_classes or task.num_classes)

    def server_prepare(self, ctx: ServerContext) -> None:
        s, (channels, height, width) = self.settings, ctx.task.input_shape
        ctx.shared["images"] = ctx.place(
            virtual_images(
                (channels, height, width),
                self._virtual(ctx.task),
                s.images_per_class,
                s.mean_std,
                s.latent_std,
                ctx.generator("virtual set"),
            )
        )

    def fit(self, ctx: FitContext) -> None:
        ctx.scratch["virtual"] = _endless_passes(ctx, len(ctx.shared["images"]))
        ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """CE + α·CE(x̃, K+ỹ) + w₁·SupCon([z; sg(z̃)], [y; ỹ]) + w₂·SupCon(z̃, ỹ) on as many virtual as real images."""
        s, model = self.settings, network(networks, "model", ExtendedClassifier)
        x, y, k = batch["image"], batch["label"], model.num_classes
        drawn = torch.tensor(list(itertools.islice(step.scratch["virtual"], len(x))), device=y.device)
        x_v, y_v = step.shared["images"][drawn], drawn // s.images_per_class
        features = model.features(torch.cat([x, x_v]))
        (z, z_v), (logits, logits_v) = (part.split(len(x)) for part in (features, model.head(features)))
        terms = {"ce": F.cross_entropy(logits, y), "virtual_ce": s.alpha * F.cross_entropy(logits_v, k + y_v)}
        if not s.naive and step.epoch < s.align_epochs:
            both, labels = torch.cat([z, z_v.detach()]), torch.cat([y, y_v])
            terms["align"] = s.w_real * supervised_contrastive(both, labels, s.temperature)
            terms["virtual_contrast"] = s.w_virtual * supervised_contrastive(z_v, y_v, s.temperature)
        return terms

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        """Some of the virtual images; shown once, because they never change."""
        if ctx.round or "images" not in ctx.shared:
            return {}
        classes = self._virtual(ctx.task)
        by_class = ctx.shared["images"].reshape(classes, -1, *ctx.task.input_shape)[:, :_SHOWN].transpose(0, 1)
        return {
            "virtual": ImageGrid(
                ctx.denormalize(by_class.reshape(-1, *ctx.task.input_shape)),
                columns=classes,
                title="Virtual images",
                caption="Virtual images, one column per class, made once by an untrained generator for all clients.",
            )
        }


def _endless_passes(ctx: FitContext, count: int) -> Iterator[int]:
    """Indices of the virtual set, shuffled anew for every pass."""
    for number in itertools.count():
        yield from torch.randperm(count, generator=ctx.generator("virtual batches", number)).tolist()


METHOD = VHL
