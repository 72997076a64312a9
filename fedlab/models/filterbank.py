"""Log-mel filter banks of waveforms, batched, as Kaldi computes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_LOWEST = 20.0  # Hz
_PREEMPHASIS = 0.97
_FLOOR = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class FilterBank:
    """Mono waveforms → log-mel frames: 25 ms Hann frames every 10 ms, dither 0, no energy term.

    Kaldi's defaults otherwise: per-frame mean removal, then pre-emphasis 0.97, power spectrum over the next power of
    two, triangles on Kaldi's mel scale from 20 Hz to half the rate, natural logarithm with a floor, incomplete last
    frame dropped.

    Args:
        rate: samples a second.
        bins: mel bins M.

    Source: Kaldi's ``compute-fbank-feats`` as configured by AST (Gong et al. 2021, arXiv 2104.01778).
    """

    rate: int
    bins: int

    @property
    def frame(self) -> int:
        """Samples in a frame."""
        return int(self.rate * 0.025)

    @property
    def shift(self) -> int:
        """Samples from frame to frame."""
        return int(self.rate * 0.010)

    @property
    def fft(self) -> int:
        """Length of the Fourier transform."""
        return 1 << (self.frame - 1).bit_length()

    def frames(self, samples: int) -> int:
        """Whole frames in so many samples."""
        return max(0, 1 + (samples - self.frame) // self.shift)

    def __call__(self, waveforms: Tensor) -> Tensor:
        """Waveforms (n, T) in [−1, 1] → (n, frames, M) float32."""
        window, triangles = (part.to(waveforms.device) for part in _parts(self))
        frames = waveforms.float().unfold(1, self.frame, self.shift)
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((frames - _PREEMPHASIS * before) * window, n=self.fft)
        power = spectrum.real.square() + spectrum.imag.square()
        log_mel: Tensor = (power @ triangles).clamp(min=_FLOOR).log()
        return log_mel


@lru_cache
def _parts(bank: FilterBank) -> tuple[Tensor, Tensor]:
    """Window (frame,) and triangles (fft / 2 + 1, M)."""
    lowest, highest = _mel(torch.tensor([_LOWEST, bank.rate / 2], dtype=torch.float64)).tolist()
    edges = torch.linspace(lowest, highest, bank.bins + 2, dtype=torch.float64)
    mel = _mel(torch.arange(bank.fft // 2 + 1, dtype=torch.float64) * bank.rate / bank.fft)[:, None]
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = torch.minimum((mel - left) / (middle - left), (right - mel) / (right - middle)).clamp(min=0)
    return torch.hann_window(bank.frame, periodic=False), triangles.float()


def _mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)
