"""Configurations with random mistakes: each is carried out or refused with FedLab's own error, and none hangs."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import fedlab.methods
from fedlab.errors import FedLabError
from fedlab.experiment.checks import resolve
from fedlab.experiment.configuration import configure

BASES = sorted(Path(fedlab.methods.__path__[0]).glob("*/config.yaml"))
ODD = [
    *("", "~", "yes", "-1", "0", "1", "-0.0", "1e308", "1e999", ".nan", "-.inf", "0x10", "0o7", "1_000", "9" * 400),
    *("[]", "{}", "[[]]", "[1, [2, {a: 3}]]", "{name: x}", "{name: {name: iid}}", "{1: 2}", "null", "!!set {a, b}"),
    *('"\\0"', '"\\uD83D"', "2001-01-01", "&a [*a]", "*nowhere", "!!python/object:os.system x", "!!binary aGk=", "| x"),
    *(
        "'../../../etc/passwd'",
        "/dev/zero",
        "a:b",
        "os:system",
        "no.such:Thing",
        "x" * 5000,
        "été 東京",
        "<<",
        "{<<: 1}",
    ),
]
PATIENCE = 120  # seconds: no machine is so busy


def mutated(text: str, draw: random.Random) -> str:
    """The text with one to three mistakes."""
    for _ in range(draw.randint(1, 3)):
        lines = text.splitlines()
        place = draw.randrange(len(lines))
        match draw.randrange(9):
            case 0:
                del lines[place]
            case 1:
                lines.insert(place, lines[draw.randrange(len(lines))])
            case 2:
                lines[place] = " " * draw.randint(1, 9) + lines[place]
            case 3 | 4 | 5:
                key, colon, _ = lines[place].partition(":")
                lines[place] = f"{key}{colon or ':'} {draw.choice(ODD)}"
            case 6:
                lines[place] = lines[place].replace(" ", draw.choice(["\t", "", "  ", "\u00a0"]), 1)
            case 7:
                at = draw.randrange(len(lines[place]) + 1)
                lines[place] = (
                    lines[place][:at] + chr(draw.choice([*range(1, 128), 0xFEFF, 0x2028])) + lines[place][at:]
                )
            case 8:
                lines = lines[:place]
        text = "\n".join(lines) or "x"
    return text


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(count: int, seed: int, folder: Path) -> int:
    """Try so many mutated configurations and return how many were refused."""
    draw, wrong, longest = random.Random(seed), 0, 0
    path = folder / "mutated.yaml"
    texts = [base.read_text() for base in BASES]
    for number in range(count):
        text = mutated(draw.choice(texts), draw)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            with within(PATIENCE):
                resolve(configure(path))
        except FedLabError as error:
            wrong += 1
            longest = max(longest, len(str(error)))
        except Exception as error:
            raise AssertionError(f"number {number} of seed {seed}: {type(error).__name__}: {error}\n{text}") from error
    assert longest < 20_000, "an error that nobody reads"
    return wrong


def test_a_hundred_mutated_configurations_are_refused_in_words(tmp_path: Path) -> None:
    assert refused(100, 0, tmp_path) > 30


@pytest.mark.drill
def test_two_thousand_mutated_configurations_are_refused_in_words(tmp_path: Path) -> None:
    assert refused(2000, 1, tmp_path) > 600


def test_the_mutations_are_those_of_files_that_are_fine() -> None:
    for base in BASES:
        assert isinstance(yaml.safe_load(base.read_text()), dict)


def test_a_configuration_that_is_too_large_is_refused_before_it_is_read_as_yaml(tmp_path: Path) -> None:
    from fedlab.config import read_yaml

    path = tmp_path / "large.yaml"
    path.write_text("a: [" + "x," * 600_000 + "]")
    with pytest.raises(FedLabError, match="1,200,005 bytes; a file of this kind has at most 1,000,000"):
        read_yaml(path)


def test_pipes_and_devices_are_refused_where_a_configuration_is_expected(tmp_path: Path) -> None:
    import os

    from fedlab.config import read_yaml

    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    for name, kind in (("pipe.yaml", "a named pipe"), ("endless.yaml", "a device")):
        with pytest.raises(FedLabError, match=f"{name} is {kind}, not a file"):
            read_yaml(tmp_path / name)
