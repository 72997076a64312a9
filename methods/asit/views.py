"""From waveforms to spectrograms: views for pre-training, augmented clips for fine-tuning, fixed windows for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlab.distill import gmml
from fedlab.distill.windows import clip_lengths, cut, random_starts, spaced_starts, uniform
from fedlab.method import Batch
from fedlab.methods.asit.settings import ASiTSettings
from fedlab.models.filterbank import FilterBank


def input_size(s: ASiTSettings, samples: int) -> tuple[int, int]:
    """(frames, M) of so many samples: whole patches only."""
    return FilterBank(s.rate, s.bins).frames(samples) // s.patch * s.patch, s.bins


def spectrogram(s: ASiTSettings, waveforms: Tensor) -> Tensor:
    """Waveforms (n, W) → filter bank (n, frames, M) of whole patches, each waveform's own mean removed, not normalized
    (§3.1)."""
    waveforms = waveforms - waveforms.mean(1, keepdim=True)
    return FilterBank(s.rate, s.bins)(waveforms)[:, : input_size(s, waveforms.shape[1])[0]]


def pretraining_views(s: ASiTSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """Two windows of each clip and what is to be done to them: 2B rows of ``fbank``, ``mask``, ``replaced``,
    ``partner``, view 0 first. The spectrograms are clean; the student corrupts them once they are normalized.
    """
    audio, length = batch["audio"], clip_lengths(batch)
    rolled = uniform(len(audio), generator, length) < 0.5
    shifts = (uniform(len(audio), generator, length) * length).long() * rolled
    starts = [random_starts(length, s.window, generator) for _ in range(2)]
    waveforms = torch.cat([cut(audio, length, start, s.window, shifts) for start in starts])
    return {"fbank": spectrogram(s, waveforms)} | corruption(s, waveforms, len(audio), generator)


def corruption(s: ASiTSettings, placed: Tensor, batch: int, generator: torch.Generator) -> Batch:
    """``mask``, ``replaced`` and ``partner`` for the views in `placed`, whose device they share.

    Args:
        s: settings.
        placed: (views · B, …).
        batch: B; a view's replacements come from the same view of other clips.
        generator: on the CPU.
    """
    size = input_size(s, s.window)
    drawn = gmml.untouched(len(placed), size)
    if s.corrupt:
        shares: dict[str, Any] = {"drop": s.drop, "replace": s.replace, "block": s.block, "align": s.align}
        drawn = gmml.joined([gmml.draw(batch, size, generator, **shares) for _ in range(len(placed) // batch)])
    return {name: _beside(value, placed) for name, value in drawn._asdict().items()}


def corrupted(clean: Tensor, batch: Batch) -> Tensor:
    """The corrupted spectrograms that the student sees, from normalized ones (n, frames, M) (§3.2)."""
    return gmml.apply(clean, gmml.Corruption(batch["mask"], batch["replaced"], batch["partner"]))


def finetuning_clips(s: ASiTSettings, batch: Batch, generator: torch.Generator) -> Batch:
    """A random window of each clip with mixup and SpecAugment's masks (§3.6): ``fbank``; ``keep`` (n, frames, M), what
    is not masked; ``partner`` and ``share``, targets being share · y + (1 − share) · y[partner]; labels as they are.
    """
    audio, length = batch["audio"], clip_lengths(batch)
    window = s.finetune_window
    waveforms = cut(audio, length, random_starts(length, window, generator), window)
    rng, count = np.random.default_rng(int(torch.randint(2**62, (), generator=generator))), len(audio)
    shares = np.where(rng.random(count) < s.finetune_mixup, rng.beta(10, 10, count), 1.0)
    partner = _beside(torch.from_numpy(rng.permutation(count)), audio)
    share = _beside(torch.from_numpy(shares).float(), audio)[:, None]
    if s.finetune_mixup:
        waveforms = waveforms - waveforms.mean(1, keepdim=True)
        waveforms = share * waveforms + (1 - share) * waveforms[partner]
    fbank = spectrogram(s, waveforms)
    (bins, frames), (height, width) = s.finetune_masks, fbank.shape[1:]
    keep = _stripes(count, height, frames, rng)[:, :, None] & _stripes(count, width, bins, rng)[:, None]
    labels: Batch = {name: batch[name] for name in ("label", "tags") if name in batch}
    drawn = {"keep": _beside(torch.from_numpy(keep), audio), "partner": partner, "share": share}
    return {"fbank": fbank, **drawn, **labels}


def _beside(value: Tensor, other: Tensor) -> Tensor:
    """A tensor that was drawn on the CPU, copied to the device of `other`."""
    return torch.as_tensor(value, device=other.device)


def _stripes(count: int, size: int, widest: int, rng: np.random.Generator) -> np.ndarray:
    """Truth values (n, size), false on one stripe of each row: width and start uniform."""
    wide = rng.uniform(0, min(widest, size), count).astype(int)
    start = (rng.random(count) * (size - wide + 1)).astype(int)
    at = np.arange(size)
    kept: np.ndarray = (at < start[:, None]) | (at >= (start + wide)[:, None])
    return kept


def fixed_windows(s: ASiTSettings, batch: Mapping[str, Tensor], window: int, count: int) -> Tensor:
    """Filter bank of `count` evenly spaced windows of each clip, one: the middle; (count, n, frames, M)."""
    audio, length = batch["audio"], clip_lengths(batch)
    starts = spaced_starts(length, window, count)
    return torch.stack([spectrogram(s, cut(audio, length, start, window)) for start in starts])
