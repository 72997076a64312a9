"""The app of `benchmarks.contenders.stock`, run by FedLab as ``fedlab run --flower-app`` does it."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.contenders.stock import WORK
from benchmarks.work import Work
from fedlab.flowerapp.start import FlowerAppRun, run_app

FOLDER = Path(__file__).resolve().parents[1] / "flower_app"


def main(work: Work, engine: str) -> FlowerAppRun:
    """The run.

    Args:
        work: what every client does.
        engine: ``inline`` or a number of Ray workers.
    """
    os.environ[WORK] = work.to_json()
    chosen = ["engine.name=inline"] if engine == "inline" else [f"engine.workers={engine}"]
    quiet = ["tracking.console=quiet", "tracking.tensorboard=false", "tracking.report=false"]
    return run_app(FOLDER, clients=work.clients, overrides=[*chosen, *quiet, f"tracking.folder={work.folder}"])
