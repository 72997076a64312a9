"""The memory of part features: one row per training image, private to its client."""

from __future__ import annotations

import torch
from torch import Tensor


class MemoryBank:
    """Moving averages of part features, keyed by the image's index among the client's samples.

    Args:
        features: W, (M, parts, D).
        known: (M,), rows that hold something.
        identities: (M,), of the images.
    """

    def __init__(self, features: Tensor, known: Tensor, identities: Tensor) -> None:
        self.features, self.known, self.identities = features, known, identities

    @classmethod
    def empty(cls, identities: Tensor, parts: int, dim: int) -> MemoryBank:
        """Nothing known yet of the images of these `identities` (M,), for `parts` features of width `dim` each."""
        rows = len(identities)
        features = identities.new_zeros(rows, parts, dim, dtype=torch.float32)
        return cls(features, identities.new_zeros(rows, dtype=torch.bool), identities)

    def update(self, rows: Tensor, features: Tensor, momentum: float) -> None:
        """W ← (1 − m)·W + m·f; a row seen for the first time becomes f. An image that occurs twice counts twice.

        Args:
            rows: (n,).
            features: f, (n, parts, D); kept without their graph.
            momentum: m, the weight of the new feature.
        """
        new = features.detach().float()
        for once in _occurrences(rows):
            row = rows[once]
            mixed = (1 - momentum) * self.features[row] + momentum * new[once]
            self.features[row] = torch.where(self.known[row][:, None, None], mixed, new[once])
            self.known[row] = True


def _occurrences(rows: Tensor) -> list[Tensor]:
    """Positions of all first occurrences in `rows`, of all second ones, and so on."""
    seen: dict[int, int] = {}
    groups: list[list[int]] = []
    for position, row in enumerate(rows.tolist()):
        count = seen[row] = seen.get(row, -1) + 1
        if count == len(groups):
            groups.append([])
        groups[count].append(position)
    return [torch.tensor(group, device=rows.device) for group in groups]
