"""The features of images, with which PAT is evaluated."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedlab.method import Batch


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
