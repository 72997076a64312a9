"""Pictures that several methods draw: segmentations, ranked lists and attention maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.method import Batch, FigureContext, ImageGrid, label_overlay, shown_of

_NAMED = 12
_ASKED, _RIGHT, _WRONG = (0.25, 0.25, 0.25), (0.1, 0.65, 0.2), (0.85, 0.15, 0.1)
_HOT = (1.0, 0.75, 0.0)


def spread_out(columns: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    """At most so many samples, evenly spread over all."""
    count = len(next(iter(columns.values())))
    chosen = torch.linspace(0, count - 1, min(most, count)).long().tolist()
    return {name: values[chosen] for name, values in columns.items()}


def in_batches(columns: Mapping[str, Tensor], size: int) -> Iterator[Batch]:
    """The samples in batches of a size, in order."""
    for start in range(0, len(next(iter(columns.values()))), size):
        yield {name: values[start : start + size] for name, values in columns.items()}


@torch.no_grad()
def segmentations(
    ctx: FigureContext, samples: Mapping[str, Tensor], roles: Sequence[str], most: int = 6
) -> ImageGrid | None:
    """Images, their true masks, and the prediction of each network, with each class in a color of its own.

    Args:
        ctx: the networks and the names of the classes.
        samples: columns ``image`` (n, C, H, W) and ``mask`` (n, h, w), of which the first are shown.
        roles: the networks that are asked, in the order of the rows; those that do not exist are left out. They map
            images to logits (n, K, h, w).
        most: largest number of samples that are shown.

    Returns:
        One column for each sample; None without samples.
    """
    if not samples:
        return None
    images, masks, classes = samples["image"][:most], samples["mask"][:most], ctx.task.num_classes
    shown = ctx.denormalize(images)
    rows = {"image": shown, "truth": label_overlay(shown, masks, classes)}
    for role in roles:
        if role in ctx.networks:
            rows[role] = label_overlay(shown, ctx.networks[role](images).argmax(dim=1), classes)
    names = ctx.task.class_names[:_NAMED]
    return ImageGrid(
        torch.cat(list(rows.values())),
        columns=len(shown),
        title=f"Segmentation {ctx.when}",
        caption=f"Classes in color: {', '.join(names)}; unlabeled pixels show the image."
        + shown_of(len(names), len(ctx.task.class_names), "classes by name")
        + shown_of(len(shown), len(samples["image"]), "images"),
        row_labels=tuple(rows),
    )


def ranked_images(
    queries: Tensor, found: Sequence[Tensor], right: Sequence[Sequence[bool]], most: int, title: str, caption: str
) -> ImageGrid:
    """Each query with what was found for it, nearest first, in frames: gray the query, green right and red wrong ones.

    Args:
        queries: (n, C, H, W) in [0, 1].
        found: for each query the images that were found, (m, C, H, W) with m of at most `most`.
        right: for each query whether each of these images is right.
        most: number of images in a row beside the query; missing ones stay white.
        title: title of the picture.
        caption: caption of the picture.
    """
    tiles: list[Tensor] = []
    for query, images, correct in zip(queries, found, right, strict=True):
        row = [_framed(query, _ASKED)]
        row += [_framed(one, _RIGHT if fits else _WRONG) for one, fits in zip(images, correct, strict=True)]
        tiles += [*row, *[torch.ones_like(row[0])] * (1 + most - len(row))]
    labels = ("query", *(str(rank) for rank in range(1, most + 1)))
    return ImageGrid(torch.stack(tiles), columns=1 + most, title=title, caption=caption, column_labels=labels)


def attention_maps(images: Tensor, maps: Tensor, names: Sequence[str], title: str, caption: str) -> ImageGrid:
    """Each image beside its attention maps, which are drawn over it and scaled to their largest value.

    Args:
        images: (n, C, H, W) in [0, 1], on the CPU.
        maps: (n, m, h, w), the attention to each patch, not negative.
        names: what the m maps belong to.
        title: title of the picture.
        caption: caption of the picture.
    """
    strength = maps / maps.amax(dim=(2, 3), keepdim=True)
    shown = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    heat = torch.as_tensor(F.interpolate(strength.float(), size=images.shape[2:], mode="nearest"), device=shown.device)
    overlays = 0.3 * shown[:, None] + 0.7 * heat[:, :, None] * torch.tensor(_HOT)[:, None, None]
    tiles = torch.cat([shown[:, None], overlays], dim=1)
    labels = ("image", *names)
    return ImageGrid(tiles.flatten(0, 1), columns=len(labels), title=title, caption=caption, column_labels=labels)


def _framed(image: Tensor, color: tuple[float, float, float]) -> Tensor:
    """An image (C, H, W) inside a colored frame, (3, H', W')."""
    edge = max(2, image.shape[1] // 16)
    canvas = torch.tensor(color)[:, None, None].expand(3, image.shape[1] + 2 * edge, image.shape[2] + 2 * edge).clone()
    canvas[:, edge:-edge, edge:-edge] = image
    return canvas
