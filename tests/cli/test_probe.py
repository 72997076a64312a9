from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedlab

Cli = Callable[..., Any]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A user's own folder: bright and dark pictures of another size than the run's."""
    rng = np.random.default_rng(0)
    for label, level in (("bright", 200), ("dark", 40)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for number in range(10):
            values = rng.integers(level - 30, level + 30, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(values).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def finished(cli: Cli, tiny: Path, tmp_path: Path) -> Path:
    done = cli("run", tiny, "--name", "run")
    assert done.exit_code == 0, done.output
    return tmp_path / "runs" / "run"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_users_own_pictures_are_probed_and_the_run_stays_as_it_is(cli: Cli, finished: Path, pictures: Path) -> None:
    before = files(finished)
    done = cli("probe", finished, "--kind", "knn", "--data", pictures, "--set", "k=3")
    assert done.exit_code == 0, done.output
    assert "fitted to train (16 samples), scored on test (4 samples)" in done.stdout
    again = cli("probe", finished, "--kind", "linear", "--data", pictures)
    assert again.exit_code == 0, again.output
    after = files(finished)
    lines = [json.loads(line) for line in after.pop("probes.jsonl").decode().splitlines()]
    assert after == before
    assert [(line["kind"], line["round"], line["test"]) for line in lines] == [
        ("knn", 2, ["test", 4]),
        ("linear", 2, ["test", 4]),
    ]
    assert lines[0]["values"] == {"probe_knn": 1.0}
    assert lines[0]["settings"]["k"] == 3
    shown = cli("show", finished)
    assert "probe knn 1.000: features of model after round 2, on pictures" in shown.stdout
    assert fedlab.load(finished).metrics["clients"]


def test_a_line_that_was_cut_short_is_said_and_spoils_no_other(cli: Cli, finished: Path, pictures: Path) -> None:
    assert cli("probe", finished, "--kind", "knn", "--data", pictures, "--set", "k=3").exit_code == 0
    file = finished / "probes.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:40])
    assert cli("probe", finished, "--kind", "knn", "--data", pictures, "--set", "k=4").exit_code == 0
    shown = cli("show", finished).stdout
    number = whole.count(b"\n") + 1
    assert f"1 line of probes.jsonl cannot be read (line {number})" in shown
    assert json.loads(file.read_bytes().splitlines()[-1])["settings"]["k"] == 4


def test_the_runs_own_data_are_the_default(cli: Cli, finished: Path) -> None:
    done = cli("probe", finished, "--kind", "ridge")
    assert done.exit_code == 0, done.output
    assert "fitted to train (100 samples), scored on test (100 samples)" in done.stdout


def test_a_file_describes_other_data(cli: Cli, finished: Path, pictures: Path) -> None:
    other = pictures.parent / "other.yaml"
    other.write_text("data:\n  source: {name: folder, path: pictures, size: 16}\n  held: {probe: {share: 0.5}}\n")
    done = cli("probe", finished, "--kind", "svm", "--data", other, "--fit", "probe")
    assert done.exit_code == 0, done.output
    assert "fitted to probe (8 samples)" in done.stdout


def test_an_archive_is_probed(cli: Cli, finished: Path, tmp_path: Path) -> None:
    images, labels = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) % 2
    images[labels == 1] = 255
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    done = cli("probe", finished, "--kind", "linear", "--data", tmp_path / "mine.npz")
    assert done.exit_code == 0, done.output
    assert "1.000" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--kind", "lin"), "--kind = 'lin'"),
        (("--kind", "knn", "--part", "teacher"), "--part = 'teacher'"),
        (("--kind", "knn", "--fit", "test"), "--fit = 'test'"),
        (("--kind", "knn", "--fit", "probe"), "--fit = 'probe'"),
        (("--kind", "knn", "--set", "kk=3"), "--set kk"),
        (("--kind", "knn", "--label", "species"), "--label = 'species'"),
        (("--kind", "knn", "--data", "nowhere"), "--data = 'nowhere'"),
    ],
)
def test_mistakes_are_told_as_options(cli: Cli, finished: Path, words: tuple[str, ...], expected: str) -> None:
    done = cli("probe", finished, *words)
    assert done.exit_code == 2
    assert expected in done.output
    assert not (finished / "probes.jsonl").exists()


def test_pictures_of_another_shape_are_refused(cli: Cli, finished: Path, pictures: Path) -> None:
    other = pictures.parent / "other.yaml"
    other.write_text("source: {name: folder, path: pictures, size: 28}\n")
    done = cli("probe", finished, "--kind", "svm", "--data", other)
    assert done.exit_code == 2
    assert "as in the run" in done.output
