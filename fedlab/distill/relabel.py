"""Relabeling: a teacher's outputs for augmented views, computed when needed or stored for later use (FKD).

As in the code of SRe²L, what is drawn per batch is stored per batch. The label of a mixed image is the teacher's output
for that image, so that labels are not mixed.

Source: Shen and Xing 2022, arXiv 2112.01528 (FKD); Yin et al. 2023, arXiv 2306.13092 (SRe²L).
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
        indices: (n,) int64, indices of the images.
        views: crop and flip of each image.
        mix: how the views are mixed.
    """

    indices: Tensor
    views: Views
    mix: Mix

    def view(self, images: Tensor) -> Tensor:
        """The batch that teacher and student are given, (n, C, H, W), made from all images (N, C, H, W)."""
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
    """Draw one pass over the images in random order, in batches of nearly equal size.

    Args:
        count: N, the number of images.
        size: height and width of the images in pixels.
        batch_size: largest number of images in a batch.
        generator: a CPU generator.
        smallest: smallest share of the area that a crop keeps.
        flip: whether to mirror each image with probability 1/2.
        shift: every view is moved by up to this number of pixels in both directions. Beyond the picture, its edge is
            repeated.
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
    """A data set of whole batches with their stored logits. Batch b of epoch e is the item ``e * batches + b``.

    Args:
        images: (N, C, H, W), normalized.
        tensors: the tensors that `store` returned.
    """

    def __init__(self, images: Tensor, tensors: Mapping[str, Tensor]) -> None:
        self._images, self._tensors = images, tensors
        self.batches = tensors["share"].shape[1]

    def __len__(self) -> int:
        return len(self._tensors["share"]) * self.batches

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """The mixed views (n, C, H, W) and the teacher's logits for them (n, K), float32."""
        epoch, batch = divmod(item, self.batches)
        logits = torch.tensor_split(self._tensors["logits"][epoch], self.batches)[batch]
        return self.configuration(epoch, batch).view(self._images), logits.to(self._images.device).float()

    def configuration(self, epoch: int, batch: int) -> Configuration:
        """The random draws of a batch."""
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
    """Compute the teacher's logits for every batch of every epoch.

    Args:
        images: (N, C, H, W), normalized.
        teacher: maps images (n, C, H, W) to logits (n, K).
        epochs: the batches of each epoch.

    Returns:
        For E epochs, N images and B batches: ``indices`` (E, N) int32, ``boxes`` (E, N, 4) float32, ``flips`` (E, N)
        bool, ``partners`` (E, N) int32, ``logits`` (E, N, K) float16, ``share`` (E, B) float32, and ``cuts`` (E, B, 4)
        int16, which is negative for batches whose whole images are blended.
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
