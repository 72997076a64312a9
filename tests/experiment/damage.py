"""Ways in which the folder of a run can be damaged, each a function of the folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = "[" * 100_000 + "]" * 100_000


def write(name: str, content: str | bytes) -> Damage:
    """The file has another content."""
    raw = content.encode() if isinstance(content, str) else content

    def damage(run: Path) -> None:
        only(run, name).write_bytes(raw)

    return damage


def change(name: str, old: str, new: str) -> Damage:
    """A text in the file is replaced."""

    def damage(run: Path) -> None:
        text = only(run, name).read_text()
        assert re.search(old, text), f"{name} says nothing of {old}"
        only(run, name).write_text(re.sub(old, new, text, count=1))

    return damage


def flip(name: str) -> Damage:
    """The last byte of each file is another one, as a failing disk leaves it."""

    def damage(run: Path) -> None:
        for path in found(run, name):
            raw = path.read_bytes()
            path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))

    return damage


def cut(name: str) -> Damage:
    """The file ends early."""

    def damage(run: Path) -> None:
        for path in found(run, name):
            path.write_bytes(path.read_bytes()[:-7])

    return damage


def gone(name: str) -> Damage:
    """Files or folders are missing."""

    def damage(run: Path) -> None:
        for path in found(run, name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def pipe(name: str) -> Damage:
    """A named pipe lies there, which nobody writes to."""

    def damage(run: Path) -> None:
        gone(name)(run)
        os.mkfifo(run / name)

    return damage


def folder(name: str) -> Damage:
    """A folder lies in the place of the file."""

    def damage(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def file(name: str) -> Damage:
    """A file lies in the place of the folder."""

    def damage(run: Path) -> None:
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).write_text("no folder")

    return damage


def first(name: str, line: str) -> Damage:
    """A line precedes the first one."""

    def damage(run: Path) -> None:
        (run / name).write_text(f"{line}\n{(run / name).read_text()}")

    return damage


def both(one: Damage, other: Damage) -> Damage:
    """Two things happen."""

    def damage(run: Path) -> None:
        one(run)
        other(run)

    return damage


def found(run: Path, name: str) -> list[Path]:
    """All that a pattern finds; there is something."""
    places = sorted(run.glob(name))
    assert places, f"there is no {name} to damage"
    return places


def only(run: Path, name: str) -> Path:
    (place,) = found(run, name) if any(sign in name for sign in "*?") else [run / name]
    return place


def newer_versions(run: Path) -> None:
    """The newest checkpoint has other versions of the server's tensors."""
    path = run / NEWEST / "checkpoint.json"
    meta = json.loads(path.read_text())
    meta["shared"]["versions"] = {name: version + 7 for name, version in meta["shared"]["versions"].items()}
    path.write_text(json.dumps(meta, indent=1, sort_keys=True))


NEWEST = "checkpoints/round_000003"
# name → the damage, and whether the run goes on all the same
QUICK: dict[str, tuple[Damage, bool]] = {
    "a learning rate was edited": (change("config.yaml", r"  lr: .*", "  lr: 0.7"), False),
    "shared versions were edited": (newer_versions, True),
    "a bit of the tensors flipped": (flip(f"{NEWEST}/tensors.safetensors"), True),
    "a bit of a client's state flipped": (flip("clients/0000/0000001/000003.state"), True),
    "the configuration is an alias bomb": (write("config.yaml", BOMB), False),
    "the last event is torn": (cut("events.jsonl"), True),
    "an event lacks its fields": (first("events.jsonl", '{"event": "evaluation"}\n{"event": "round"}'), True),
    "the events are a pipe": (pipe("events.jsonl"), True),
}
MORE: dict[str, tuple[Damage, bool]] = {
    "the configuration is empty": (write("config.yaml", ""), False),
    "the configuration is torn": (cut("config.yaml"), False),
    "the configuration is no text": (write("config.yaml", b"\xff\xfe\x00\x01"), False),
    "the configuration is larger than 1 MB": (write("config.yaml", "#" * 1_000_001), False),
    "the configuration is gone": (gone("config.yaml"), False),
    "the configuration is a pipe": (pipe("config.yaml"), False),
    "the configuration is a folder": (folder("config.yaml"), False),
    "the seed was edited": (change("config.yaml", r"seed: .*", "seed: 5"), False),
    "the copy of the configuration is gone": (gone(".config.yaml"), True),
    "the copy of the configuration is torn": (cut(".config.yaml"), True),
    "the configuration was edited and its copy removed": (
        both(change("config.yaml", r"  lr: .*", "  lr: 0.7"), gone(".config.yaml")),
        False,
    ),
    "the events are gone": (gone("events.jsonl"), True),
    "there is garbage among the events": (first("events.jsonl", f"\x00garbage\n[]\n{DEEP}"), True),
    "the events are a folder": (folder("events.jsonl"), True),
    "the metrics are gone": (gone("metrics.csv"), True),
    "the metrics are a pipe": (pipe("metrics.csv"), True),
    "the ledger is garbage": (write("ledger.csv", b"\xff\x00,,\n1,2"), True),
    "the ledger is a pipe": (pipe("ledger.csv"), True),
    "the environment is gone": (gone("environment.json"), True),
    "the environment is a pipe": (pipe("environment.json"), True),
    "the partition is nested too deeply": (write("partition.json", DEEP), True),
    "the partition is a pipe": (pipe("partition.json"), True),
    "the newest facts are torn": (cut(f"{NEWEST}/checkpoint.json"), True),
    "the newest facts are gone": (gone(f"{NEWEST}/checkpoint.json"), True),
    "the newest facts are a list": (write(f"{NEWEST}/checkpoint.json", "[]"), True),
    "the newest facts are a pipe": (pipe(f"{NEWEST}/checkpoint.json"), True),
    "the hash of the newest facts is gone": (gone(f"{NEWEST}/checkpoint.sha256"), True),
    "the newest tensors are gone": (gone(f"{NEWEST}/tensors.safetensors"), True),
    "the newest checkpoint is a file": (file(NEWEST), True),
    "all checkpoints are damaged": (flip("checkpoints/round_*/tensors.safetensors"), True),
    "there are no checkpoints": (gone("checkpoints"), True),
    "the checkpoints are a file": (file("checkpoints"), True),
    "a client's state is gone": (gone("clients/0000/0000000/000003.state"), True),
    "a client's state is a folder": (folder("clients/0000/0000000/000003.state"), True),
    "all states are gone": (gone("clients"), True),
    "the states are a file": (file("clients"), True),
    "bits of received tensors flipped": (flip("clients/received/*/*.safetensors"), True),
    "the pictures are a file": (file("figures"), True),
    "the lock is a folder": (folder(".lock"), True),
    "the report is a folder": (folder("report.html"), True),
    "the timeline is garbage": (write("timeline.json", b"\xff{"), True),
    "the probes are a pipe": (lambda run: os.mkfifo(run / "probes.jsonl"), True),
    "a file was being written": (write(".events.jsonl.0123abcd", "half"), True),
}
