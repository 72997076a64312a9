"""Reading sound files: WAV with scipy, other formats with soundfile where it is installed."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np

from fedlab.data.files.reading import reading
from fedlab.errors import DataError
from fedlab.storage.plain import check_plain

WAV_SUFFIXES = frozenset({".wav", ".wave"})
SUFFIXES = WAV_SUFFIXES | {
    ".aif", ".aiff", ".au", ".caf", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wma",
}  # fmt: skip
"""Endings of sound files, in small letters, whether they can be read here or not."""
_OVERSHOOT = 2.0  # how far floats may pass full scale, as converted and mixed recordings do


def read_audio(path: Path, key: str = "data.source.path") -> tuple[np.ndarray, int]:
    """A sound file as mono float32 in [−1, 1], (samples,), and its rate; channels are averaged.

    Floats that pass full scale, by twice at most, are clipped there, as a loudspeaker would.

    Args:
        path: WAV, or anything soundfile reads where that is installed (FLAC, OGG, MP3, AIFF …).
        key: configuration key to name in errors.

    Raises:
        DataError: no such file, an unreadable one, NaN, floats in the range of whole numbers, or a format that needs
            soundfile.
    """
    fix = "the file is damaged or of another kind: take a whole copy, or write it as PCM WAV"
    with reading(key, str(path), "a readable sound file", fix):
        check_plain(path)
        samples, rate = _read_wav(path) if path.suffix.lower() in WAV_SUFFIXES else _read_other(path, key)
        mono = samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
        if rate < 1:
            raise ValueError(f"its header says {rate} samples a second")
    if not np.isfinite(mono).all():
        raise DataError(key, str(path), "finite samples", "the file holds NaN or infinite values: convert it again")
    highest = float(np.abs(samples).max(initial=0))
    if highest > _OVERSHOOT:
        raise DataError(
            key, f"{path}: floats up to {highest:g}", "floats in [-1, 1]",
            "write the samples divided by the full scale of the whole numbers they come from, 32768 for 16 bits",
        )  # fmt: skip
    return np.clip(mono, -1, 1) if highest > 1 else mono, rate


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """`samples` (n,) at another rate, by polyphase filtering."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, wanted)
    converted: np.ndarray = resample_poly(samples, wanted // common, rate // common).astype(np.float32)
    return converted


def _read_wav(path: Path) -> tuple[np.ndarray, int]:
    from scipy.io import wavfile

    content = path.read_bytes()
    size = int.from_bytes(content[4:8], "little")
    if content[:4] == b"RIFF" and size in (0, 2**32 - 1):
        # written as a stream, whose length was not known at the beginning; what follows is whole
        content = content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:]
    elif content[:4] == b"RIFF" and size > len(content):
        raise ValueError(f"it ends after {len(content):,} of the {size + 8:,} bytes its header promises")
    with warnings.catch_warnings():
        # chunks of text after the samples are of no interest
        warnings.simplefilter("ignore", wavfile.WavFileWarning)
        rate, samples = wavfile.read(io.BytesIO(content))
    if samples.dtype.kind == "f":
        return samples.astype(np.float32), int(rate)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128, int(rate)
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32), int(rate)


def _read_other(path: Path, key: str) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package is there, libsndfile is not
        raise DataError(
            key,
            str(path),
            "a WAV file",
            "pip install 'fedlab-sim[audio]' for other formats, or write it as PCM WAV",
        ) from None
    samples, rate = soundfile.read(path, dtype="float32")
    return samples, int(rate)
