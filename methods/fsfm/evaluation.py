"""What is measured: restored regions and equal views while pre-training, real against fake by video after it (§7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.distill.directions import directions
from fedlab.errors import DataError
from fedlab.method import (
    Batch,
    EvaluationContext,
    Features,
    FigureContext,
    Method,
    Picture,
    ServerContext,
    Task,
    network,
)
from fedlab.methods.fsfm.losses import patch_errors, patch_targets
from fedlab.methods.fsfm.masks import GROUPS, draw_masks, patch_groups
from fedlab.methods.fsfm.networks import Normalizer, OperatingPoint, Student, Target
from fedlab.methods.fsfm.pictures import restorations
from fedlab.methods.fsfm.settings import PRETRAIN, FSFMSettings
from fedlab.metrics.verification import Verification, video_means

FACES = "faces"
"""Name of the server's sample set of real faces with region maps."""
REAL = 1
"""The label of real faces; that of fakes is 0."""
_JUDGED = ("eyes", "nose", "mouth")
_LEVELS = ("video", "frame")
_SUMS = "restored"


def real(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The real faces among samples: all where nothing is labeled."""
    return _where(columns, columns["label"] == REAL) if "label" in columns else dict(columns)


def mapped(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The real faces whose region map is known."""
    faces = real(columns)
    return _where(faces, faces["mapped"].bool()) if "mapped" in faces else faces


def pretraining(s: FSFMSettings, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The samples of pre-training: real faces with a region map, never a fake."""
    faces = mapped(columns)
    if s.pretrain_on == "unlabeled" and "labeled" in faces:
        return _where(faces, ~faces["labeled"].bool())
    return faces


def labeled(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The samples whose label may be used."""
    return _where(columns, columns["labeled"].bool()) if "labeled" in columns else dict(columns)


def _where(columns: Mapping[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    places = chosen.nonzero()[:, 0]
    return {name: values[places] for name, values in columns.items()}


def check_videos(*parts: Mapping[str, Tensor]) -> None:
    """Refuse samples among which a video is not complete, because its score would be of some of its frames only.

    Args:
        parts: columns of sets of samples, in each of which all frames of a video have to be together.

    Raises:
        DataError: a client, or a set of validation samples, has only a part of a video.
    """
    for columns in parts:
        if not {"group", "frames"} <= columns.keys() or not len(columns["group"]):
            continue
        _, codes, counts = torch.unique(columns["group"], return_inverse=True, return_counts=True)
        if (counts[codes] != columns["frames"]).any():
            fix = (
                "divide samples by the partition steps domain or natural and hold them back with by: group, and change "
                "no frames by data.drift"
            )
            raise DataError("data.partition", "a video that is divided", "videos that are never divided", fix)


# real against fake


def predicted(networks: nn.ModuleDict, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (n, K) of faces."""
    logits: Tensor = networks["classifier"](networks["normalizer"](batch["image"]))
    return logits


def video_scores(logits: Tensor, columns: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The mean probability of being real and the label of each video; without a column ``group``, of each picture."""
    scores, labels = _frame_scores(logits, columns)
    if "group" not in columns:
        return scores, labels
    return video_means(scores, labels, columns["group"].numpy(force=True))


def _frame_scores(logits: Tensor, columns: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    scores = logits.double().softmax(dim=1)[:, REAL].numpy(force=True)
    return scores, columns["label"].numpy(force=True)


def detect(
    ctx: EvaluationContext | ServerContext, columns: Mapping[str, Tensor], threshold: float | None
) -> dict[str, np.ndarray]:
    """Counts of the scores of videos and of single frames, to be merged by addition."""
    logits: list[Tensor] = []
    for batch in ctx.iterate(columns, ctx.batch_size):
        with ctx.autocast():
            logits.append(predicted(ctx.networks, batch).float())
    seen = torch.cat(logits) if logits else torch.zeros(0, 2)
    part = {name: values[: len(seen)] for name, values in columns.items()}
    sums: dict[str, np.ndarray] = {}
    for level, (scores, labels) in zip(_LEVELS, (video_scores(seen, part), _frame_scores(seen, part)), strict=True):
        metric = Verification(threshold)
        metric.update(scores, labels)
        sums |= {f"{level}.{name}": values for name, values in metric.state().items()}
    return sums


def detected(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Values from the counts of `detect`: by video, and those of single frames with the prefix ``frame_``."""
    values: dict[str, float] = {}
    for level in _LEVELS:
        metric = Verification()
        metric.merge({name[len(level) + 1 :]: part for name, part in sums.items() if name.startswith(f"{level}.")})
        values |= {("" if level == "video" else "frame_") + name: value for name, value in metric.compute().items()}
    return values


# what pre-training asks for


def restored(
    s: FSFMSettings, networks: nn.ModuleDict, batches: Iterable[Batch], generator: torch.Generator
) -> dict[str, np.ndarray]:
    """Sums over faces of which eyes, nose and mouth are covered in turn, and the rest is hidden in proportion.

    Returns:
        ``restored`` (5, 2) float64, sums and numbers: squared errors of the standardized pixels of covered patches, by
        region; of all other hidden patches; and cosines between the representations of the masked and the whole face,
        each less its mean over the batch.
    """
    student, normalizer = network(networks, "student", Student), network(networks, "normalizer", Normalizer)
    sums = np.zeros((len(_JUDGED) + 2, 2))
    for batch in batches:
        x = normalizer(batch["image"])
        groups = patch_groups(batch["regions"], s.patch)
        targets = patch_targets(x, s.patch, s.norm_pix_loss)
        whole = student.representation(student.encoder(x)).float()
        for row, region in enumerate(_JUDGED):
            drawn = draw_masks(groups, s.hidden(groups.shape[2]), generator, covered=GROUPS.index(region))
            visible = drawn.visible
            tokens = student.encoder(x, visible)
            pixels = student.pixel_decoder(tokens, student.mask_token, visible)[:, 1:]
            errors = patch_errors(pixels, targets).double()
            sums[row] += [float(errors[drawn.region].sum()), int(drawn.region.sum())]
            rest = drawn.masked & ~drawn.region
            sums[-2] += [float(errors[rest].sum()), int(rest.sum())]
            masked = student.representation(tokens, student.mask_token, visible).float()
            cosines = directions(masked - masked.mean(0)) * directions(whole - whole.mean(0))
            sums[-1] += [float(cosines.sum().double()), len(cosines)]
    return {_SUMS: sums}


def restored_values(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """``region_mse``, the mean over the regions; each of them, ``rest_mse`` and ``view_cosine``, if they occur."""
    names = [*(f"{region}_mse" for region in _JUDGED), "rest_mse", "view_cosine"]
    named = {name: total / count for name, (total, count) in zip(names, sums[_SUMS].tolist(), strict=True) if count}
    errors = [named[name] for name in names[: len(_JUDGED)] if name in named]
    return {"region_mse": sum(errors) / len(errors), **named} if len(errors) == len(_JUDGED) else named


class Judged(Method[FSFMSettings]):
    """The hooks of evaluation; the other half of the method is `fedlab.methods.fsfm.method.FSFM`."""

    feature_parts = ("student", "target")

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        return predicted(networks, batch)

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Mean patch tokens of an encoder of whole faces as vectors, and its patch tokens."""
        encoder = network(networks, part, Target).encoder
        tokens = encoder(network(networks, "normalizer", Normalizer)(batch["image"]))[:, 1:].float()
        return Features(tokens.mean(1), tokens, encoder.grid)

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        """While pre-training of a client's real test faces, after it of its labeled test videos."""
        check_videos(ctx.data)
        if ctx.plan["stage"] != PRETRAIN:
            return detect(ctx, labeled(ctx.data), network(ctx.networks, "operating_point", OperatingPoint).chosen)
        faces = ctx.iterate(mapped(ctx.data), ctx.batch_size)
        return restored(self.settings, ctx.networks, faces, ctx.generator("covered"))

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return restored_values(sums) if _SUMS in sums else detected(sums)

    @torch.no_grad()
    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        """How the set ``faces`` is restored; after pre-training also how fakes are told apart in labeled sets."""
        ctx.networks.eval()
        measured: dict[str, float] = {}
        if "regions" in ctx.data.get(FACES, {}):
            faces = ctx.iterate(mapped(ctx.data[FACES]), ctx.batch_size)
            measured |= restored_values(restored(self.settings, ctx.networks, faces, ctx.generator("covered")))
        if ctx.plan["stage"] == PRETRAIN:
            return measured
        point = network(ctx.networks, "operating_point", OperatingPoint)
        for name, columns in sorted(ctx.data.items()):
            if name != FACES and "label" in columns:
                check_videos(columns)
                found = detected(detect(ctx, labeled(columns), point.chosen))
                measured |= {f"{name}_{metric}": value for metric, value in found.items()}
        return measured

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return restorations(ctx, self.settings, mapped(ctx.data[FACES]) if "regions" in ctx.data.get(FACES, {}) else {})
