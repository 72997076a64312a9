"""Generated sounds of eight classes: small, quick, and not solved by a random projection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources.made import MadeSource
from fedlab.seeding import numpy_generator

CLASSES = ("steady", "am", "vibrato", "rising", "falling", "harmonics", "bursts", "plucks")
_LOW, _HIGH = 300.0, 1500.0  # Hz, range of pitches


class SoundsSettings(Section):
    """Settings of the sounds source."""

    train: Positive = Field(default=1200, description="number of training clips, which are divided among the clients")
    test: Positive = Field(
        default=480, description="number of test clips; the server holds labeled copies for the probe"
    )
    probe: Positive = Field(default=160, description="number of labeled clips on which the server trains a probe")
    rate: int = Field(default=8000, ge=4000, description="sampling rate in Hz")
    seconds: float = Field(default=1.6, gt=0.05, le=60, description="length of a clip in seconds")
    devices: int = Field(
        default=1,
        ge=1,
        le=64,
        description="number of microphones; each is a domain with its own spectral tilt, level and noise",
    )
    speakers: int = Field(default=8, ge=1, le=10_000, description="number of owners; each has its own range of pitch")
    data_seed: int = Field(
        default=0, ge=0, description="seed by which the clips are drawn; independent of the run's seed"
    )


class Sounds(MadeSource[SoundsSettings]):
    """Eight classes of generated sounds (tone, AM, vibrato, sweeps, harmonics, bursts, plucks): ASiT's data (offline).

    Pitch is log-uniform from 300 to 1500 Hz; rates, phases, level and noise are random. Columns: ``audio`` (T,),
    ``length``, ``label``, ``domain`` (device), ``group`` (speaker); the server holds ``probe`` and ``test``.
    """

    Settings = SoundsSettings

    def load(self, seed: int) -> Dataset:
        s = self.settings
        train, test, probe = (self._samples(split, count) for split, count in (
            ("train", s.train), ("test", s.test), ("probe", s.probe)
        ))  # fmt: skip
        return Dataset("sounds", train, test, {"probe": probe, "test": test})

    def _samples(self, split: str, count: int) -> Samples:
        s = self.settings
        rng = numpy_generator(s.data_seed, "sounds", split)
        labels = rng.permutation(np.arange(count) % len(CLASSES))
        devices, speakers = rng.integers(s.devices, size=count), rng.integers(s.speakers, size=count)
        length = int(s.rate * s.seconds)
        audio = np.empty((count, length), np.float32)
        for row, (label, device, speaker) in enumerate(zip(labels, devices, speakers, strict=True)):
            # a speaker's part of the range, so that all of them together cover it evenly
            pitch = _LOW * (_HIGH / _LOW) ** ((speaker + rng.random()) / s.speakers)
            audio[row] = record(synthesize(CLASSES[label], length, s.rate, pitch, rng), device, rng)
        columns = {"audio": audio, "length": np.full(count, length), "label": labels}
        columns |= {"domain": devices, "group": speakers}
        width = len(str(s.speakers - 1))
        return Samples(
            columns,
            CLASSES,
            tuple(f"device-{device}" for device in range(s.devices)),
            tuple(f"speaker-{speaker:0{width}d}" for speaker in range(s.speakers)),
        )


def synthesize(name: str, length: int, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """One clip (length,) of peak 1.

    Args:
        name: one of `CLASSES`.
        length: samples.
        rate: samples a second.
        pitch: Hz; where a sweep starts or ends.
        rng: draws rates, depths and phases.
    """
    clip = _MAKERS[name](np.arange(length) / rate, rate, pitch, rng)
    scaled: np.ndarray = clip / max(1e-9, np.abs(clip).max())
    return scaled


def record(clip: np.ndarray, device: int, rng: np.random.Generator) -> np.ndarray:
    """The clip as a device hears it: level and noise at random, colored by the device; device 0 is neutral."""
    heard = rng.uniform(0.2, 0.8) * clip
    if device:
        fixed = numpy_generator(device, "device")
        tilt = fixed.uniform(-0.8, 0.8)
        heard = fixed.uniform(0.4, 1.0) * (heard + tilt * np.concatenate([[0.0], heard[:-1]])) / (1 + abs(tilt))
        heard = heard + fixed.uniform(0.002, 0.02) * rng.standard_normal(len(clip))
    noisy: np.ndarray = heard + 10 ** rng.uniform(-2.5, -1.5) * rng.standard_normal(len(clip))
    return noisy


def _sine(frequency: np.ndarray | float, t: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A sine whose frequency in Hz may change from sample to sample."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, t.shape)) / rate
    tone: np.ndarray = np.sin(phase + rng.uniform(0, 2 * np.pi))
    return tone


def _steady(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    return _sine(pitch, t, rate, rng)


def _am(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    depth = rng.uniform(0.6, 1.0)
    swell = 1 + depth * np.sin(2 * np.pi * rng.uniform(4, 12) * t + rng.uniform(0, 2 * np.pi))
    tone: np.ndarray = swell * _sine(pitch, t, rate, rng)
    return tone


def _vibrato(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    swing = np.sin(2 * np.pi * rng.uniform(4, 9) * t + rng.uniform(0, 2 * np.pi))
    return _sine(pitch * (1 + rng.uniform(0.06, 0.15) * swing), t, rate, rng)


def _rising(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    return _sine(pitch * rng.uniform(1.8, 2.4) ** (t / t[-1]), t, rate, rng)


def _falling(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    return _sine(pitch * rng.uniform(1.8, 2.4) ** (1 - t / t[-1]), t, rate, rng)


def _harmonics(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    base, loss = pitch / 2, rng.uniform(0.6, 0.9)
    parts = [loss**k * _sine(k * base, t, rate, rng) for k in range(1, 9) if k * base < 0.45 * rate]
    stack: np.ndarray = np.sum(parts, axis=0)
    return stack


def _bursts(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    cycle = (rng.uniform(3, 8) * t + rng.random()) % 1
    noise: np.ndarray = (cycle < rng.uniform(0.2, 0.5)) * rng.standard_normal(len(t))
    return noise


def _plucks(t: np.ndarray, rate: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    speed = rng.uniform(2, 6)
    since = ((speed * t + rng.random()) % 1) / speed
    plucked: np.ndarray = np.exp(-since * rng.uniform(8, 25)) * _sine(pitch, t, rate, rng)
    return plucked


_MAKERS: dict[str, Callable[[np.ndarray, int, float, np.random.Generator], np.ndarray]] = {
    "steady": _steady, "am": _am, "vibrato": _vibrato, "rising": _rising, "falling": _falling,
    "harmonics": _harmonics, "bursts": _bursts, "plucks": _plucks,
}  # fmt: skip
