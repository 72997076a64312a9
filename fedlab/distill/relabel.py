"""Relabel: a teacher's outputs for augmented views, computed when needed or stored and replayed (FKD).

Shen and Xing 2022, arXiv 2112.01528 (FKD); Yin et al. 2023, arXiv 2306.13092 (SRe²L), whose code stores per batch what
is drawn per batch. The label of a mixed image is the teacher's output on it: labels are not mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedlab.distill.mixing import Mix, Mixing, draw_mix, mix
from fedlab.distill.views import Views, draw_views, take_views

Teacher = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Configuration:
    """All random draws of one batch.

    Args:
        indices: (n,) int64, which images.
        views: a crop and a flip of each.
        mix: how they are mixed.
    """

    indices: Tensor
    views: Views
    mix: Mix

    def view(self, images: Tensor) -> Tensor:
        """The batch as teacher and student see it, (n, C, H, W), of all images (N, C, H, W)."""
        return mix(take_views(images[self.indices.to(images.device)], self.views), self.mix)


def draw_epoch(
    count: int,
    size: tuple[int, int],
    batch_size: int,
    generator: torch.Generator,
    *,
    smallest: float = 0.08,
    flip: bool = True,
    shift: int = 0,
    mixing: Mixing = "cutmix",
) -> list[Configuration]:
    """One pass in random order, in batches of nearly equal size.

    Args:
        count: N images.
        size: their height and width in pixels.
        batch_size: images in a batch at most.
        generator: a CPU generator.
        smallest: share of the area a crop keeps at least.
        flip: whether to mirror half of the images.
        shift: every view moves up to so many pixels in both directions, the edge of the picture repeated.
        mixing: how the images of a batch are mixed.
    """
    drawn = []
    for indices in torch.tensor_split(torch.randperm(count, generator=generator), -(-count // batch_size)):
        views = draw_views(len(indices), size, generator, scale=(smallest, 1.0), flip=flip, shift=shift)
        drawn.append(Configuration(indices, views, draw_mix(mixing, len(indices), size, generator)))
    return drawn


def storage_bytes(epochs: int, images: int, classes: int) -> int:
    """Bytes that the logits of stored soft labels take in fp16."""
    return 2 * epochs * images * classes


class StoredLabels(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches with the logits stored for them; epoch e's batch b is item ``e * batches + b``.

    Args:
        images: (N, C, H, W), normalized.
        tensors: what `store` made.
    """

    def __init__(self, images: Tensor, tensors: Mapping[str, Tensor]) -> None:
        self._images, self._tensors = images, tensors
        self.batches = tensors["share"].shape[1]

    def __len__(self) -> int:
        return len(self._tensors["share"]) * self.batches

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """The mixed views (n, C, H, W) and the teacher's logits on them (n, K), float32."""
        epoch, batch = divmod(item, self.batches)
        logits = torch.tensor_split(self._tensors["logits"][epoch], self.batches)[batch]
        return self.configuration(epoch, batch).view(self._images), logits.to(self._images.device).float()

    def configuration(self, epoch: int, batch: int) -> Configuration:
        """What was drawn for a batch."""
        indices, boxes, flips, partners = (
            torch.tensor_split(self._tensors[name][epoch], self.batches)[batch]
            for name in ("indices", "boxes", "flips", "partners")
        )
        box = self._tensors["cuts"][epoch, batch].tolist()
        cut = (box[0], box[1], box[2], box[3]) if box[0] >= 0 else None
        share = float(self._tensors["share"][epoch, batch])
        return Configuration(indices.long(), Views(boxes, flips), Mix(partners.long(), share, cut))


@torch.no_grad()
def store(images: Tensor, teacher: Teacher, epochs: Iterable[Sequence[Configuration]]) -> dict[str, Tensor]:
    """Ask the teacher once about every batch of every epoch.

    Args:
        images: (N, C, H, W), normalized.
        teacher: images → logits.
        epochs: the batches of each.

    Returns:
        By epoch E, image N and batch B: ``indices`` (E, N) int32, ``boxes`` (E, N, 4) float32, ``flips`` (E, N) bool,
        ``partners`` (E, N) int32, ``logits`` (E, N, K) float16; ``share`` (E, B) float32, ``cuts`` (E, B, 4) int16,
        negative where whole images are blended.
    """
    told: list[dict[str, Tensor]] = []
    for batches in epochs:
        told.append(
            {
                "indices": torch.cat([c.indices for c in batches]).int(),
                "boxes": torch.cat([c.views.boxes for c in batches]),
                "flips": torch.cat([c.views.flips for c in batches]),
                "partners": torch.cat([c.mix.permutation for c in batches]).int(),
                "logits": torch.cat([teacher(c.view(images)).half().cpu() for c in batches]),
                "share": torch.tensor([c.mix.share for c in batches]),
                "cuts": torch.tensor([c.mix.box or (-1,) * 4 for c in batches], dtype=torch.int16),
            }
        )
    return {name: torch.stack([epoch[name] for epoch in told]) for name in told[0]}
