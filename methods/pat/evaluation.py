"""Metrics of PAT: retrieval with the class token, and how similar the images are that a part token finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from fedlab.method import Batch
from fedlab.metrics.retrieval import Retrieval

_NEAREST = 5


@torch.no_grad()
def extract(backbone: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The columns of all batches, images replaced by ``feature`` (n, D), the cls token, and ``parts`` (n, parts, D)."""
    backbone.eval()
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        feature, parts = backbone(batch["image"])
        held = {name: values for name, values in batch.items() if name != "image"}
        for name, values in {**held, "feature": feature.float(), "parts": parts.float()}.items():
            columns.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in columns.items()}


def retrieval(query: Mapping[str, Tensor], gallery: Mapping[str, Tensor]) -> Retrieval:
    """CMC and mAP of a query set against a gallery, both from `extract`.

    If the images have no camera, every image counts as taken by a different camera.
    """
    metric = Retrieval()
    cameras = _cameras(query, 0), _cameras(gallery, len(query["label"]))
    metric.update(query["feature"], query["label"], cameras[0], gallery["feature"], gallery["label"], cameras[1])
    return metric


def leave_one_out(samples: Mapping[str, Tensor]) -> Retrieval:
    """Every image is a query against all others; images of the same camera do not count."""
    metric = Retrieval()
    if samples:
        cameras = _cameras(samples, 0)
        held = samples["feature"], samples["label"], cameras
        metric.update(*held, *held)
    return metric


def band_purity(features: Tensor, identities: Tensor, colors: Tensor) -> tuple[float, float]:
    """How often the nearest images of other identities have the same color in the band that a token sees.

    Args:
        features: one token per band, (n, bands, D); the plain ViT's cls token stands for all, (n, 1, D).
        identities: (n,).
        colors: color of each band, (n, bands).

    Returns:
        Share among the 5 nearest other-identity images, mean over bands, and what chance gives.
    """
    other = identities[:, None] != identities
    shares, chances = [], []
    for band, color in enumerate(colors.T):
        token = features[:, min(band, features.shape[1] - 1)]
        distance = torch.cdist(token, token).masked_fill(~other, torch.inf)
        nearest = distance.topk(min(_NEAREST, int(other.sum(1).min())), largest=False).indices
        shares.append((color[nearest] == color[:, None]).float().mean())
        chances.append(((color[:, None] == color) & other).sum() / other.sum())
    return float(torch.stack(shares).mean()), float(torch.stack(chances).mean())


def _cameras(samples: Mapping[str, Tensor], first: int) -> Tensor:
    if "camera" in samples:
        return samples["camera"]
    return torch.arange(first, first + len(samples["label"]))
