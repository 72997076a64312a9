"""A short run's events, and a folder with the picture they speak of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Stream = list[dict[str, Any]]
START = 1_700_000_000.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run folder with one picture of 3 × 2 red pixels."""
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    red = np.zeros((3, 2, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(folder / "figures" / "virtual-0000.png")
    return folder


@pytest.fixture
def event() -> Callable[..., dict[str, Any]]:
    """Makes one event, `at` seconds after the run's start."""

    def make(kind: str, at: float, **fields: Any) -> dict[str, Any]:
        return {"event": kind, "time": START + at, **fields}

    return make


@pytest.fixture
def stream(event: Callable[..., dict[str, Any]]) -> Stream:
    """Two rounds, the second one evaluated, with a loss and a client's metric that were not finite."""

    def phase(round: int, name: str, begin: float, end: float, total: int) -> Stream:
        return [
            event("phase_start", begin, round=round, phase=name, total=total),
            event("phase_end", end, round=round, phase=name, seconds=end - begin),
        ]

    def finished(round: int, at: float, ce: float | None, eta: float) -> dict[str, Any]:
        return event(
            "round",
            at,
            round=round,
            rounds=2,
            clients=[0, 1],
            train={"ce": ce, "seconds": 0.5},
            server={"gm": 12.25, "gm_first": 20.0, "gm_last": 8.0},
            bytes_down=300,
            bytes_up=100,
            bytes={"model": {"down": 200, "up": 100}, "shared": {"down": 100, "up": 0}},
            seconds={"train": 2.0},
            eta_seconds=eta,
        )

    return [
        event(
            "run_start",
            0,
            folder="runs/r",
            method="fedlgd",
            strategy="fedavg",
            model="convnet",
            seed=3,
            rounds=2,
            engine="inline",
            workers=1,
            command=None,
        ),
        *phase(0, "prepare", 1, 2, 2),
        event("prepared", 2, bytes_down=0, bytes_up=40),
        event("figure", 2, name="virtual", round=0, path="figures/virtual-0000.png", title="t", caption="c"),
        *phase(1, "train", 2, 4, 2),
        event("client", 4, round=1, client=0, metrics={"ce": 0.7}),
        finished(1, 4, None, 3.0),
        *phase(2, "train", 4, 6, 2),
        *phase(2, "evaluate", 6, 7, 2),
        finished(2, 7, 0.7071, 0.0),
        event(
            "evaluation",
            7,
            round=2,
            clients={"a, b": {"accuracy": 0.5}, "c": {"accuracy": 0.75, "loss": None}},
            mean={"accuracy": 0.625, "loss": None},
            pooled={"accuracy": 0.6},
            strategy={},
        ),
        event("run_end", 7.5, status="completed", seconds=7.5, error=""),
    ]
