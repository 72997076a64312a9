"""Reading sound files: WAV with scipy, other formats with soundfile where it is installed."""

from __future__ import annotations

import math
import struct
import warnings
from pathlib import Path

import numpy as np

from fedlab.errors import DataError

WAV_SUFFIXES = frozenset({".wav", ".wave"})


def read_audio(path: Path, key: str = "data.source.path") -> tuple[np.ndarray, int]:
    """A sound file as mono float32 in [−1, 1], (samples,), and its rate; channels are averaged.

    Args:
        path: WAV, or anything soundfile reads where that is installed (FLAC, OGG, MP3, AIFF …).
        key: configuration key to name in errors.

    Raises:
        DataError: no such file, an unreadable one, NaN, or a format that needs soundfile.
    """
    if not path.is_file():
        raise DataError(key, str(path), "a sound file: there is none", "mend the name in labels.csv, or add the file")
    try:
        samples, rate = _read_wav(path) if path.suffix.lower() in WAV_SUFFIXES else _read_other(path, key)
    except (OSError, ValueError, RuntimeError, EOFError, struct.error) as error:
        raise DataError(key, str(path), "a readable sound file", f"convert it to 16-bit WAV ({error})") from error
    mono = samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
    if not np.isfinite(mono).all():
        raise DataError(key, str(path), "finite samples", "the file holds NaN or infinite values: convert it again")
    return mono, rate


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

    with warnings.catch_warnings():
        # chunks of text after the samples are of no interest
        warnings.simplefilter("ignore", wavfile.WavFileWarning)
        rate, samples = wavfile.read(path)
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
            key, str(path), "a WAV file", "pip install 'fedlab-sim[audio]' for other formats, or convert it to WAV"
        ) from None
    samples, rate = soundfile.read(path, dtype="float32")
    return samples, int(rate)
