from __future__ import annotations

import numpy as np
import pytest
import torch

from fedlab.data.sources.sounds import CLASSES, Sounds, SoundsSettings, record, synthesize
from fedlab.models.filterbank import FilterBank

SMALL = {"train": 40, "test": 16, "probe": 24, "seconds": 0.4}


def test_the_acceptance_data_by_default() -> None:
    settings = SoundsSettings()
    assert (settings.train, settings.probe, settings.test) == (1200, 160, 480)
    assert (settings.rate, settings.seconds) == (8000, 1.6)


def test_columns_classes_and_server_sets() -> None:
    data = Sounds(SoundsSettings(**SMALL)).load(0)
    assert data.train["audio"].shape == (40, 3200)
    assert data.train["audio"].dtype == np.float32
    assert np.bincount(data.train["label"]).tolist() == [5] * 8
    assert {name: len(samples) for name, samples in data.server.items()} == {"probe": 24, "test": 16}
    assert data.train.class_names == CLASSES
    assert np.abs(data.train["audio"]).max() < 1.2
    assert not np.array_equal(data.train["audio"][:16], data.test["audio"])


def test_clips_depend_on_the_data_seed_alone() -> None:
    first, second = (Sounds(SoundsSettings(**SMALL)).load(seed).fingerprint for seed in (0, 1))
    other = Sounds(SoundsSettings(**SMALL, data_seed=1)).load(0).fingerprint
    assert first == second != other


def clip(name: str, seed: int = 0, seconds: float = 1.6) -> np.ndarray:
    length = round(8000 * seconds)
    return synthesize(name, length, 8000, 600.0, np.random.default_rng(seed))


def test_the_classes_sound_as_they_are_called() -> None:
    bank = FilterBank(8000, 64)
    mel = {name: bank(torch.from_numpy(clip(name))[None].float())[0].numpy() for name in CLASSES}
    ridge = {name: values.argmax(1) for name, values in mel.items()}
    loud = {name: np.exp(values).sum(1) for name, values in mel.items()}
    assert np.ptp(ridge["steady"]) <= 1
    assert ridge["rising"][0] < ridge["rising"][-1]
    assert ridge["falling"][0] > ridge["falling"][-1]
    assert np.ptp(ridge["vibrato"]) >= 2
    assert np.std(np.log(loud["am"])) > 5 * np.std(np.log(loud["steady"]))
    assert np.std(np.log(loud["bursts"])) > 5 * np.std(np.log(loud["steady"]))
    assert np.ptp(np.log(loud["plucks"])) > 1
    peaks = (mel["harmonics"].mean(0) > mel["harmonics"].mean(0).max() - 4).sum()
    assert peaks > 2 * (mel["steady"].mean(0) > mel["steady"].mean(0).max() - 4).sum()


def test_speakers_keep_to_their_part_of_the_range_which_they_cover_together() -> None:
    data = Sounds(SoundsSettings(**{**SMALL, "train": 400}, speakers=4)).load(0)
    bank, train = FilterBank(8000, 64), data.train
    steady = train["label"] == CLASSES.index("steady")
    pitch = bank(torch.from_numpy(train["audio"][steady])).mean(1).argmax(1).numpy()
    means = [pitch[train["group"][steady] == speaker].mean() for speaker in range(4)]
    assert means == sorted(means)
    assert data.train.group_names == ("speaker-0", "speaker-1", "speaker-2", "speaker-3")


def test_devices_color_what_they_hear_and_the_first_does_not() -> None:
    tone = clip("bursts")
    spectra = []
    for device in range(4):
        heard = record(tone, device, np.random.default_rng(0))
        power = np.abs(np.fft.rfft(heard)) ** 2
        spectra.append(np.log(power[: len(power) // 4].sum() / power[-len(power) // 4 :].sum()))
    neutral = np.abs(np.fft.rfft(tone)) ** 2
    assert spectra[0] == pytest.approx(
        np.log(neutral[: len(neutral) // 4].sum() / neutral[-len(neutral) // 4 :].sum()), abs=0.3
    )
    assert np.ptp(spectra) > 1
