"""Files of others: pipes, devices and files without end are refused and not waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedlab.config import AvailabilityConfig, Component, DevicesConfig
from fedlab.data.sources import load_source
from fedlab.errors import ConfigError, DataError
from fedlab.server.participation.availability import make_availability
from fedlab.server.participation.devices import Devices
from fedlab.storage.plain import UnreadableFileError, check_plain, read_plain
from fedlab.storage.weights import check_weights


def test_a_file_is_read_and_a_link_to_one_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to("a")
    assert read_plain(tmp_path / "b") == b"12345"
    assert read_plain(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UnreadableFileError, match="5 bytes; a file of this kind has at most 4"):
        read_plain(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "c")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    place = Path("x")
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("x")
    for read in (read_plain, check_plain):
        with pytest.raises(UnreadableFileError, match=f"x is a .*{kind}, not a file"):
            read(place)


def test_endless_devices_of_a_federation_are_refused() -> None:
    with pytest.raises(ConfigError, match="/dev/zero is a device"):
        Devices(DevicesConfig(csv="/dev/zero"), 0)
    with pytest.raises(ConfigError, match="/dev/zero is a device"):
        make_availability(AvailabilityConfig(csv="/dev/zero"), 0)


def test_weights_are_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.safetensors")
    with pytest.raises(Exception, match="is a named pipe, not a file"):
        check_weights({"model": str(tmp_path / "weights.safetensors")})


def pictures(root: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((4, 4), 60 * number, np.uint8)).save(root / split / name / f"{number}.png")
    return root


def test_pipes_among_pictures_are_counted_and_links_that_lead_away_are_told(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    for name in ("pipe.png", "pipe"):  # one without an ending is opened to see whether it is a picture
        os.mkfifo(root / "train" / "cat" / name)
    elsewhere = tmp_path / "elsewhere.png"
    (root / "train" / "dog" / "1.png").rename(elsewhere)
    (root / "train" / "dog" / "1.png").symlink_to(elsewhere)
    (root / "test" / "dog" / "2.png").symlink_to("1.png")  # it stays inside
    dataset = load_source(Component(name="folder", path=str(root), size=4, channels=1), 0)
    assert (len(dataset.train), len(dataset.test)) == (4, 5)
    (left,) = dataset.left_out
    assert (left.count, left.examples) == (2, ("train/cat/pipe", "train/cat/pipe.png"))
    assert "named pipes, sockets or devices" in left.why
    (warning,) = dataset.warnings
    assert warning == (
        f"1 symbolic link leads out of {root}, and what is there is read: train/dog/1.png → {elsewhere.resolve()}"
    )


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data")
    (root / "train" / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match="loop"):
        load_source(Component(name="folder", path=str(root), size=4, channels=1), 0)


def captions(root: Path) -> Component:
    root.mkdir()
    os.mkfifo(root / "captions.jsonl")
    return Component(name="captions", path=str(root / "captions.jsonl"))


def archive(root: Path) -> Component:
    root.mkdir()
    os.mkfifo(root / "x.npz")
    return Component(name="npz", path=str(root / "x.npz"))


def listed(root: Path) -> Component:
    root.mkdir()
    os.mkfifo(root / "x.wav")
    (root / "labels.csv").write_text("file,label,split\nx.wav,a,train\nx.wav,b,test\n")
    return Component(name="audio_folder", path=str(root), seconds=1)


def cloud(root: Path) -> Component:
    root.mkdir()
    os.mkfifo(root / "x.npz")
    return Component(name="points", path=str(root / "x.npz"))


def hub(root: Path) -> Component:
    pictures(root)
    os.mkfifo(root / "train" / "cat" / "x.png")
    return Component(name="hub", path=str(root))


@pytest.mark.parametrize("make", [captions, archive, listed, cloud, hub])
def test_no_source_waits_for_a_pipe(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    with pytest.raises(DataError):
        load_source(make(tmp_path / "data"), 0)
