from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from fedlab.data.files.audio import read_audio, resampled
from fedlab.data.sources.audio_folder import AudioFolder, AudioFolderSettings
from fedlab.errors import DataError

TABLE = """file,label,speaker,split
a.wav,dog,ann,train
b.wav,cat,bob,train
c.wav,dog,ann,test
d.wav,cat,bob,probe
"""


def tone(seconds: float, rate: int = 8000, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, name in enumerate("abcd"):
        wavfile.write(tmp_path / f"{name}.wav", 8000, (tone(0.2 + 0.1 * index) * 32767).astype(np.int16))
    (tmp_path / "labels.csv").write_text(TABLE)
    return tmp_path


def load(folder: Path, **settings: Any) -> Any:
    return AudioFolder(AudioFolderSettings(path=str(folder), **{"rate": 8000, "seconds": 0.4, **settings})).load(0)


def table(folder: Path, text: str) -> Path:
    (folder / "labels.csv").write_text(text)
    return folder


def test_a_table_of_labels_speakers_and_splits(folder: Path) -> None:
    data = load(folder)
    assert data.train["audio"].shape == (2, 3200)
    assert data.train["length"].tolist() == [1600, 2400]
    assert not data.train["audio"][0, 1600:].any()
    np.testing.assert_allclose(data.train["audio"][0, :1600], tone(0.2), atol=1e-4)
    assert data.train["label"].tolist() == [1, 0]
    assert data.train.class_names == ("cat", "dog")
    assert data.train["group"].tolist() == [0, 1]
    assert data.train.group_names == ("ann", "bob")
    assert data.server["probe"]["label"].tolist() == [0]
    assert data.server["probe"]["length"].tolist() == [3200]  # 0.5 s, cut
    assert data.server["test"].fingerprint == data.test.fingerprint


def test_several_labels_make_tags(folder: Path) -> None:
    data = load(table(folder, "file,label,split\na.wav,dog;rain,train\nb.wav,rain,train\nc.wav, dog ;dog,test\n"))
    assert data.train.class_names == ("dog", "rain")
    assert data.train["tags"].tolist() == [[1, 1], [0, 1]]
    assert data.test["tags"].tolist() == [[1, 0]]
    assert "label" not in data.train.columns


def test_training_clips_need_no_labels(folder: Path) -> None:
    data = load(table(folder, "file,label,split\na.wav,,train\nb.wav,cat,train\nc.wav,dog,test\nd.wav,cat,probe\n"))
    assert "label" not in data.train.columns
    assert "label" not in data.test.columns
    assert data.server["test"]["label"].tolist() == [1]
    assert "probe" not in load(table(folder, "file,split\na.wav,train\nb.wav,test\n")).server


def test_without_a_split_part_of_each_class_is_for_tests(folder: Path) -> None:
    rows = "".join(f"{i}.wav,{'dog' if i % 2 else 'cat'}\n" for i in range(10))
    for i in range(10):
        wavfile.write(folder / f"{i}.wav", 8000, tone(0.2, frequency=200 + 50 * i))
    data = load(table(folder, "file,label\n" + rows), test_fraction=0.4)
    assert sorted(data.test["label"].tolist()) == [0, 0, 1, 1]
    assert len(data.train) == 6
    assert load(folder, test_fraction=0.4).fingerprint == data.fingerprint
    assert load(folder, test_fraction=0.4, data_seed=1).fingerprint != data.fingerprint


def test_devices_are_domains(folder: Path) -> None:
    data = load(table(folder, "file,label,device,split\na.wav,x,phone,train\nb.wav,x,car,train\nc.wav,x,car,test\n"))
    assert data.train.domain_names == ("car", "phone")
    assert data.train["domain"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label,split\na.wav,x,train\nmissing.wav,x,test\n", r"missing\.wav[\s\S]*there is no such file"),
        ("file,lable\na.wav,x\n", r"line 1 = 'lable'[\s\S]*label"),
        ("label\nx\n", "a column file"),
        ("file,label,speaker,group\na.wav,x,s,g\n", "not both"),
        ("file,label,split\na.wav,x,train\nb.wav,x,training\n", r"line 3 = 'training'[\s\S]*'train'"),
        ("file,label,split\na.wav,x,train\nb.wav,x,\n", r"no split for b\.wav"),
        ("file,label,speaker\na.wav,x,s\nb.wav,x,\n", r"no speaker for b\.wav"),
        ("file,label,split\na.wav,x,train\nb.wav,x,train\n", "no row of split 'test'"),
        ("file,label,split\na.wav,x,train\nb.wav,x,test\nc.wav,,probe\n", r"line 4 = 'no label'"),
        ("file,label\na.wav,x\na.wav,y\n", r"dog;rain"),
        ("file,label\n,x\n", "no file"),
        ("file,label\n", "no rows"),
        ("", "a column file"),
    ],
)
def test_mistakes_in_the_table_are_named_with_their_line(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(table(folder, text))


def test_a_folder_without_a_table(tmp_path: Path) -> None:
    source = AudioFolder(AudioFolderSettings(path=str(tmp_path), seconds=1))
    assert "labels.csv" in (source.missing() or "")
    with pytest.raises(DataError, match=r"labels\.csv"):
        source.load(0)


def test_another_rate_is_refused_or_converted(folder: Path) -> None:
    wavfile.write(folder / "a.wav", 16_000, tone(0.2, 16_000))
    with pytest.raises(DataError, match=r"a\.wav, 16000 Hz[\s\S]*data\.source\.resample"):
        load(folder)
    converted = load(folder, resample=True).train
    assert converted["length"][0] == 1600
    np.testing.assert_allclose(converted["audio"][0, 100:1500], tone(0.2)[100:1500], atol=0.01)


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_empty_and_too_short_clips_are_refused(folder: Path, seconds: float) -> None:
    wavfile.write(folder / "a.wav", 8000, tone(seconds))
    with pytest.raises(DataError, match=r"a\.wav, 0\.0\d0 s[\s\S]*at least 0\.1 s"):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"no sound at all", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_a_broken_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "a.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.wav[\s\S]*readable sound file"):
        load(folder)


def test_nan_is_refused(folder: Path) -> None:
    wavfile.write(folder / "a.wav", 8000, np.full(4000, np.nan, np.float32))
    with pytest.raises(DataError, match=r"finite"):
        load(folder)


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [(np.uint8, 127, 128), (np.int16, 32767, 0), (np.int32, 2**31 - 1, 0), (np.float32, 1, 0)],
)
def test_every_width_of_pcm_is_scaled_to_one_and_channels_are_averaged(
    tmp_path: Path, dtype: Any, scale: float, offset: float
) -> None:
    left = np.stack([tone(0.1), np.zeros(800, np.float32)], axis=1).astype(np.float64)
    wavfile.write(tmp_path / "x.wav", 8000, (left * scale + offset).astype(dtype))
    samples, rate = read_audio(tmp_path / "x.wav")
    assert (rate, samples.dtype) == (8000, np.float32)
    np.testing.assert_allclose(samples, tone(0.1) / 2, atol=0.006)


def test_other_formats_go_through_soundfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.flac").write_bytes(b"fLaC")
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "soundfile", None)
        with pytest.raises(DataError, match=r"fedlab-sim\[audio\]"):
            read_audio(tmp_path / "x.flac")
    soundfile = pytest.importorskip("soundfile")
    with pytest.raises(DataError, match="readable sound file"):
        read_audio(tmp_path / "x.flac")
    soundfile.write(tmp_path / "x.flac", tone(0.1), 8000)
    samples, rate = read_audio(tmp_path / "x.flac")
    assert rate == 8000
    np.testing.assert_allclose(samples, tone(0.1), atol=1e-3)


def test_resampling_keeps_a_tone() -> None:
    assert resampled(tone(0.1), 8000, 8000) is not None
    np.testing.assert_allclose(resampled(tone(0.5, 44_100), 44_100, 8000)[200:-200], tone(0.5)[200:-200], atol=0.01)


# files as recorders and converters leave them


def wav(bits: int = 16, channels: int = 1, size: int | None = None, data: bytes = b"\1\0" * 1600) -> bytes:
    """A WAV file of 8 kHz with a header of one's own; `size` is what RIFF says follows."""
    block = channels * bits // 8
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, channels, 8000, 8000 * block, block, bits)
    body = form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


@pytest.mark.parametrize("size", [0, 2**32 - 1])
def test_a_stream_whose_length_was_not_known_is_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.wav").write_bytes(wav(size=size))
    samples, _ = read_audio(tmp_path / "x.wav")
    assert samples.tolist() == [1 / 32768] * 1600


@pytest.mark.parametrize(
    "content", [wav()[:2000], wav(channels=0), wav(bits=0), wav()[:30], wav(channels=2)[:-1000], b"ID3\3" + b"\0" * 400]
)
def test_a_damaged_file_is_named_and_never_said_to_need_what_it_is(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.wav").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.wav") as caught:
        read_audio(tmp_path / "x.wav")
    assert "16-bit" not in caught.value.fix


def test_floats_in_the_range_of_whole_numbers_are_refused_and_overshoot_is_clipped(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "x.wav", 8000, tone(0.1) * 32768)
    with pytest.raises(DataError, match="divided by the full scale"):
        read_audio(tmp_path / "x.wav")
    wavfile.write(tmp_path / "x.wav", 8000, tone(0.1) * 2.4)
    assert np.abs(read_audio(tmp_path / "x.wav")[0]).max() == 1


def left_out(folder: Path, text: str, **settings: Any) -> dict[str, float]:
    return {left.what: left.count for left in load(table(folder, text), **settings).left_out}


def test_what_is_not_read_is_counted(folder: Path) -> None:
    rows = "file,label,split\na.wav,x,train\nb.wav,y,test\n"
    assert left_out(folder, rows) == {"files": 2}
    every = TABLE  # clips of 0.2, 0.3, 0.4 and 0.5 seconds
    assert left_out(folder, every, seconds=0.25) == {"seconds of sound": pytest.approx(0.05 + 0.15 + 0.25)}
    assert left_out(folder, every) == {"seconds of sound": pytest.approx(0.1)}
    lost = left_out(folder, "file,label,split\na.wav,,train\nb.wav,cat,train\nc.wav,dog,test\nd.wav,cat,probe\n")
    assert lost["labels"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.wav,dog,rain\nb.wav,x\n", r"line 2 = '3 cells'[\s\S]*2, one for each"),
        ("file,label,label\na.wav,dog,rain\n", "every column once"),
        ('file,label\n"a.wav,dog\nb.wav,x\n', "readable table"),
    ],
)
def test_cells_never_fall_away(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(table(folder, text))


def test_few_clips_of_a_class_still_have_one_for_tests(folder: Path) -> None:
    data = load(table(folder, "file,label\na.wav,x\nb.wav,x\nc.wav,y\nd.wav,y\n"), test_fraction=0.1)
    assert sorted(data.test["label"].tolist()) == [0, 1]
