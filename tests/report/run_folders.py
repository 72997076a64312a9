"""Run folders without a run: written through the real tracker, picture and skew code, with known values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedlab.data.partition.skew import skew_figures
from fedlab.method import ImageGrid, save_picture
from fedlab.tracking import Tracker
from fedlab.tracking.jsonl import JsonlSink

CONFIG = """\
seed: 7
method: {name: fedlgd, ipc_local: 10}
model: {name: convnet}
data:
  source: {name: digits}
  partition: [{name: dirichlet, clients: 3, alpha: 0.5}]
federation: {rounds: 4}
tracking: {folder: runs, name: null}
"""


def make_run(
    path: Path,
    *,
    clients: Sequence[str] = ("mnist", "svhn", "synth"),
    domains: Sequence[str] | None = None,
    classes: Sequence[str] = tuple("0123456789"),
    rounds: int = 4,
    planned: int = 4,
    end: str | None = "completed",
    error: str = "",
    metrics: Sequence[str] = ("accuracy", "balanced_accuracy", "f1_macro", "loss"),
    held: Mapping[str, float] | None = None,
    pictures: bool = True,
    logs: bool = True,
    warnings: Sequence[str] = (),
    command: str | None = "fedlab run fedlgd --set federation.rounds=4",
    title: str = "FedLGD",
    caption: str = "One column per class.",
) -> Path:
    """Client i's accuracy in round r is (10 (i mod 7) + 3 r) %, its loss 2 − 0.1 r; each round sends 1 MB down and
    0.5 MB up of the group ``model``. `held` is what the server measures on its own data in every round.
    """
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (path / "environment.json").write_text(
        json.dumps(
            {
                "command": command,
                "python": "3.11.7",
                "platform": "Linux",
                "cores": 2,
                "cpu_capability": "AVX2",
                "gpus": [],
                "packages": {"torch": "2.13.0", "flwr": "1.41.0", "mlflow": None},
                "variables": {"OMP_NUM_THREADS": "1"},
            }
        )
    )
    counts = np.random.default_rng(0).integers(0, 40, (len(clients), len(classes)))
    parts = [
        {
            "name": name,
            "domain": (domains or clients)[i],
            "corruption": "",
            "train": counts[i].tolist(),
            "test": [5] * len(classes),
        }
        for i, name in enumerate(clients)
    ]
    described = {"classes": list(classes), "clients": parts, "skew": skew_figures(counts)}
    (path / "partition.json").write_text(json.dumps(described))

    tracker = Tracker([JsonlSink(path / "events.jsonl")])
    tracker.emit(
        "run_start",
        folder=str(path),
        method="fedlgd",
        strategy="fedavg",
        model="convnet",
        seed=7,
        rounds=planned,
        engine="inline",
        workers=1,
        command=command,
    )
    for warning in warnings:
        tracker.emit("warning", message=warning)
    tracker.emit(
        "federation",
        title=title,
        paper="Huang et al. 2023",
        clients=len(clients),
        parameters=22474,
        device="cpu",
        input_shape=(3, 28, 28),
        classes=list(classes),
    )
    tracker.emit("phase_end", round=0, phase="prepare", seconds=0.5)
    tracker.emit("prepared", bytes_down=0, bytes_up=1250)
    if pictures:
        _draw(path, tracker, 0, caption)
    for round in range(1, rounds + 1):
        _round(tracker, round, planned, clients, metrics, logs, held or {})
        if pictures and round in (1, planned):
            _draw(path, tracker, round, caption)
    if end is not None:
        tracker.emit("run_end", status=end, seconds=75.0, error=error)
    tracker.close()
    return path


def _round(
    tracker: Tracker,
    round: int,
    planned: int,
    clients: Sequence[str],
    metrics: Sequence[str],
    logs: bool,
    held: Mapping[str, float],
) -> None:
    ce_dm = {"ce": 2.0 / round, "dm": 90.0 / round, "dm_first": 200.0 / round, "dm_last": 60.0, "seconds": 0.1}
    for phase, seconds in (("train", 2.0), ("server", 0.25), ("evaluate", 0.5)):
        tracker.emit("phase_end", round=round, phase=phase, seconds=seconds)
    tracker.emit(
        "round",
        round=round,
        rounds=planned,
        clients=list(range(len(clients))),
        train=ce_dm if logs else {},
        server={"gm_first": 30.0, "gm_last": 4.0} if logs and round % 2 else {},
        bytes_down=1_000_000,
        bytes_up=500_000,
        bytes={"model": {"down": 1_000_000, "up": 500_000}},
        seconds={"train": 2.0, "server": 0.25, "evaluate": 0.5},
        eta_seconds=1.0,
    )
    values = {
        name: {m: 2 - 0.1 * round if m == "loss" else (10 * (i % 7) + 3 * round) / 100 for m in metrics}
        for i, name in enumerate(clients)
    }
    mean = {m: sum(v[m] for v in values.values()) / len(values) for m in metrics}
    pooled = {m: v if m == "loss" else v + 0.001 for m, v in mean.items()}
    tracker.emit("evaluation", round=round, clients=values, mean=mean, pooled=pooled, server=held, strategy={})


def _draw(path: Path, tracker: Tracker, round: int, caption: str) -> None:
    for name, label in (("virtual-global", "Global virtual images"), ("virtual-local", "Local virtual images")):
        images = torch.rand(20, 3, 28, 28, generator=torch.Generator().manual_seed(round))
        grid = ImageGrid(images, 10, f"{label}, round {round}", caption, column_labels=tuple("0123456789"))
        where = save_picture(grid, path / "figures" / f"{name}-{round:04d}.png").relative_to(path)
        tracker.emit("figure", name=name, round=round, path=where.as_posix(), title=grid.title, caption=grid.caption)
