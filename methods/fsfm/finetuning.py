"""The stage of fine-tuning: augmented and mixed faces, layer-wise learning rates, and the choice of a model (§3.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.stages import position
from fedlab.distill.erasing import random_flip, random_rectangles
from fedlab.distill.mixing import Mix, Mixing, draw_mix, mix
from fedlab.distill.param_groups import decayed, layerwise
from fedlab.distill.photometric import color_jitter
from fedlab.distill.schedules import warmup_cosine
from fedlab.method import Batch, FitContext, Group, Plan, ServerContext, Step, network
from fedlab.methods.fsfm.evaluation import labeled, predicted, video_scores
from fedlab.methods.fsfm.networks import Classifier, Normalizer, OperatingPoint, Student
from fedlab.methods.fsfm.settings import CHOOSE, FINETUNE, PRETRAIN, FSFMSettings
from fedlab.metrics.verification import Verification

_JITTER = (0.4, 0.4, 0.4, 0.0)
_BEST = "best/"
_LOSS, _ROUND = "best loss", "best round"


def groups(s: FSFMSettings, plan: Plan) -> tuple[Group, ...]:
    """What travels of the classifier. While a model is chosen nobody trains, and the server alone changes it."""
    stage = plan["stage"]
    if stage == PRETRAIN:
        return (Group("classifier", ("classifier", "operating_point"), "rest"),)
    chosen = Group("threshold", ("operating_point",), "server")
    classifier = Group("classifier", ("classifier",), "average" if stage == FINETUNE else "server")
    if s.finetune.train == "head":
        return (Group("probed encoder", ("classifier.encoder",), "once"), classifier, chosen)
    return (classifier, chosen)


def augmented(s: FSFMSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """Faces to train on: mirrored, with other colors, and what is to be erased and mixed.

    Returns:
        ``image`` (n, C, H, W) in [0, 1], ``label`` (n,), ``erased`` (n, 1, H, W) truth values, ``mix``.
    """
    tuning, images = s.finetune, batch["image"]
    if tuning.flip:
        images = random_flip(images, generator, probability=0.5)
    if tuning.jitter:
        images = color_jitter(images, _JITTER, generator, probability=tuning.jitter)
    erased = random_rectangles(images, tuning.erase, generator)
    kind: Mixing = "none"
    if tuning.mix:
        kind = "mixup" if torch.rand((), generator=generator) < 0.5 else "cutmix"
    size = (images.shape[2], images.shape[3])
    return {
        "image": images,
        "label": batch["label"],
        "erased": erased,
        "mix": draw_mix(kind, len(images), size, generator),
    }


def loss(s: FSFMSettings, networks: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy with mixed and smoothed labels; erased pixels have the mean color."""
    normalizer, classifier = network(networks, "normalizer", Normalizer), network(networks, "classifier", Classifier)
    drawn: Mix = batch["mix"]
    x = torch.where(batch["erased"], 0.0, normalizer(batch["image"]))
    logits = classifier(mix(x, drawn)).float()
    y = F.one_hot(batch["label"], logits.shape[1]).float()
    y = (1 - s.finetune.smoothing) * y + s.finetune.smoothing / logits.shape[1]
    return {"ce": F.cross_entropy(logits, drawn.share * y + (1 - drawn.share) * y[drawn.permutation])}


def param_groups(s: FSFMSettings, classifier: Classifier) -> list[dict[str, Any]]:
    """Each block learns slower than the one above it; the new normalization and the head learn at the run's rate."""
    top = [*decayed(classifier.fc_norm), *decayed(classifier.head)]
    below = layerwise(classifier.encoder, s.finetune.layer_decay) if s.finetune.train == "all" else []
    return [*below, *top]


def schedule(s: FSFMSettings, step: Step, group: Mapping[str, Any]) -> dict[str, float]:
    """A linear rise, then a cosine, over the steps of the stage."""
    at, total = position(step)
    floor = s.finetune.final_lr * group.get("lr_factor", 1.0)
    return {"lr": warmup_cosine(at, total, group["lr"], floor, int(s.finetune.warmup * total))}


# the choice of a model and its threshold, on the validation samples of the clients that train


@torch.no_grad()
def validated(ctx: FitContext) -> dict[str, Tensor]:
    """What a client's validation samples say of the model that it received, before it trains.

    Returns:
        ``validation``, counts of scores of videos in bins (see `Verification`), and ``validation_loss``: sum of the
        cross-entropy of the pictures, and their number.
    """
    ctx.networks.eval()
    frames, losses = [], []
    held = labeled(ctx.validation)
    if not len(held.get("label", ())):
        return {}
    for batch in ctx.iterate(held):
        with ctx.autocast():
            logits = predicted(ctx.networks, batch)
        frames.append(logits.double())
        losses.append(F.cross_entropy(logits.double(), batch["label"], reduction="sum"))
    seen = torch.cat(frames)
    held = {name: values[: len(seen)] for name, values in held.items()}
    metric = Verification()
    metric.update(*video_scores(seen, held))
    total = torch.tensor([float(torch.stack(losses).sum()), float(len(seen))], dtype=torch.float64)
    return {"validation": torch.from_numpy(metric.state()["bins"]), "validation_loss": total}


def choose(ctx: ServerContext) -> None:
    """Remember the model that was sent to the clients if it has the lowest validation loss so far, with its threshold.

    In the last round, the best model takes the place of the network.
    """
    answers = [answer for _, answer in sorted(ctx.results.items()) if "validation" in answer]
    if answers:
        total, count = torch.stack([answer["validation_loss"] for answer in answers]).sum(0).tolist()
        metric = Verification()
        bins = torch.stack([answer["validation"] for answer in answers]).sum(0).numpy(force=True)
        metric.merge({"bins": bins, "decided": np.zeros((2, 2), np.int64), "right": np.zeros(2, np.int64)})
        threshold = metric.equal_error_threshold()
        ctx.log("validation_loss", total / count)
        for name in ("auroc", "eer"):
            if name in (measured := metric.compute()):
                ctx.log(f"validation_{name}", measured[name])
        if threshold is not None and total / count < float(ctx.private.get(_LOSS, torch.tensor(torch.inf))):
            ctx.private[_LOSS] = torch.tensor(total / count, dtype=torch.float64)
            ctx.private[_ROUND] = torch.tensor(ctx.round - 1)
            ctx.private["best threshold"] = torch.tensor(threshold, dtype=torch.float64)
            for name, value in ctx.networks["classifier"].state_dict().items():
                sent = ctx.before.get(f"classifier.{name}", value)
                ctx.private[_BEST + name] = sent.clone()
    if ctx.plan["stage"] == CHOOSE and _LOSS in ctx.private:
        network(ctx.networks, "operating_point", OperatingPoint).threshold.copy_(ctx.private["best threshold"])
        ctx.log("chosen_round", float(ctx.private[_ROUND]))
        for name, value in ctx.networks["classifier"].state_dict().items():
            value.copy_(ctx.private[_BEST + name])


def take_over(networks: nn.ModuleDict) -> None:
    """Let the classifier start from the pre-trained online encoder."""
    network(networks, "classifier", Classifier).take_over(network(networks, "student", Student).encoder)
