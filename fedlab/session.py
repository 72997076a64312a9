"""Opening and closing a run's records, whatever way the run ends."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

import torch

from fedlab.config import Config
from fedlab.engine.machine import cores
from fedlab.runfolder import RunFolder, write_atomic
from fedlab.tracking import Sink, Tracker
from fedlab.tracking.jsonl import JsonlSink

_PACKAGES = ("fedlab-sim", "flwr", "ray", "torch", "numpy", "flwr-datasets", "datasets", "safetensors", "scikit-learn")
_VARIABLES = ("OMP_", "MKL_", "CUBLAS_", "OPENBLAS_", "FLWR_", "RAY_")


@contextmanager
def open_session(
    config: Config, folder: RunFolder, *, engine: str, workers: int, command: str | None = None
) -> Iterator[Tracker]:
    """Write what is known beforehand, hand out the run's tracker, and record how the run ended.

    Args:
        config: the run's configuration, frozen into the folder.
        folder: the run folder.
        engine: where clients run: the engine's name, or ``deployment``.
        workers: client processes, 0 where that is not ours to say.
        command: how to repeat the run.
    """
    write_atomic(folder.config, config.to_yaml())
    write_atomic(folder.environment, json.dumps(environment(command), indent=1))
    tracker = Tracker([JsonlSink(folder.events)], _displays(config, folder))
    began = time.perf_counter()
    status, error = "completed", ""
    tracker.emit(
        "run_start",
        folder=str(folder.path),
        method=config.method.name,
        strategy=config.federation.strategy.name,
        model=config.model.name,
        seed=config.seed,
        rounds=config.federation.rounds,
        engine=engine,
        workers=workers,
        command=command,
    )
    try:
        yield tracker
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except BaseException as problem:
        status, error = "failed", f"{type(problem).__name__}: {problem}"
        raise
    finally:
        tracker.emit("run_end", status=status, seconds=time.perf_counter() - began, error=error)
        tracker.close()


def environment(command: str | None = None) -> dict[str, object]:
    """Versions and hardware that a result may depend on."""
    return {
        "command": command,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: _version(name) for name in _PACKAGES},
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _displays(config: Config, folder: RunFolder) -> list[Sink]:
    return []
