"""Windows of waveforms of different lengths that are padded to one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def clip_lengths(columns: Mapping[str, Tensor]) -> Tensor:
    """Lengths (n,) of the clips in ``audio`` (n, T) without their padding: the column ``length``, or else T for all."""
    if "length" in columns:
        return columns["length"]
    return torch.full((len(columns["audio"]),), columns["audio"].shape[1], device=columns["audio"].device)


def uniform(count: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Numbers (n,) from U[0, 1) in float64, drawn on the CPU and moved to the device of `like`."""
    return torch.as_tensor(torch.rand(count, generator=generator, dtype=torch.float64), device=like.device)


def random_starts(lengths: Tensor, window: int, generator: torch.Generator) -> Tensor:
    """Uniform starts (n,) of windows inside clips; 0 where the clip is no longer than the window."""
    room = (lengths - window).clamp(min=0) + 1
    return (uniform(len(lengths), generator, lengths) * room).long()


def spaced_starts(lengths: Tensor, window: int, count: int) -> Tensor:
    """Starts (count, n) of evenly spaced windows from the start of each clip to its end; of one window: the middle."""
    room = (lengths - window).clamp(min=0)
    parts = [0.5] if count == 1 else [index / (count - 1) for index in range(count)]
    return torch.stack([(room * part).long() for part in parts])


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
