"""Windows of clips of audio, in batches on any device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def lengths(columns: Mapping[str, Tensor]) -> Tensor:
    """Lengths (n,) of the clips in ``audio`` (n, T) without their padding."""
    if "length" in columns:
        return columns["length"]
    return torch.full((len(columns["audio"]),), columns["audio"].shape[1], device=columns["audio"].device)


def random_starts(lengths: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Uniform starts (n,) of windows inside clips; 0 where the clip is no longer than the window."""
    room = (lengths - window).clamp(min=0) + 1
    return (uniform(lengths, generator) * room).long()


def even_starts(lengths: Tensor, window: int, count: int) -> list[Tensor]:
    """Starts (n,) of `count` evenly spaced windows inside clips; of a single one: the middle."""
    room = (lengths - window).clamp(min=0)
    parts = [0.5] if count == 1 else [index / (count - 1) for index in range(count)]
    return [(room * part).long() for part in parts]


def cut(audio: Tensor, lengths: Tensor, starts: Tensor, window: int, shifts: Tensor | None = None) -> Tensor:
    """Windows of clips, zero where a clip is over.

    Args:
        audio: (n, T).
        lengths: (n,) true lengths.
        starts: (n,).
        window: samples W.
        shifts: (n,) by how much clips are rolled circularly before they are cut.

    Returns:
        (n, W).
    """
    at = starts[:, None] + torch.arange(window, device=audio.device)
    inside = at < lengths[:, None]
    if shifts is not None:
        at = (at - shifts[:, None]) % lengths[:, None]
    return audio.gather(1, at.clamp(max=audio.shape[1] - 1)) * inside


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """(n,) float64 from U[0, 1) by a CPU generator, on the device of `like` (n, …)."""
    drawn = torch.rand(len(like), generator=generator, dtype=torch.float64)
    return torch.as_tensor(drawn, device=like.device)
