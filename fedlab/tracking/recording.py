"""Opens the records of a run and closes them, however the run ends."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from fedlab.config import Config, TrackingConfig
from fedlab.engine.machine import cores, installed_version
from fedlab.errors import ClientError, ConfigError, DiskFullError, FedLabError, MachineError
from fedlab.storage.cache import code_fingerprint
from fedlab.storage.paths import cache_folder
from fedlab.storage.runfolder import RunFolder, why_unwritable, write_atomic
from fedlab.tracking import History, Sink, Tracker
from fedlab.tracking.console import make_console
from fedlab.tracking.jsonl import JsonlSink, jsonl_line
from fedlab.tracking.ledger import LedgerSink, rewind_ledger
from fedlab.tracking.mlflow import MlflowSink, check_mlflow
from fedlab.tracking.signals import ending_signals
from fedlab.tracking.table import CsvSink
from fedlab.tracking.tensorboard import TensorBoardSink, check_tensorboard
from fedlab.tracking.timeline import TimelineSink

log = logging.getLogger(__name__)

_PACKAGES = ("fedlab-sim", "flwr", "ray", "torch", "numpy", "flwr-datasets", "datasets", "safetensors", "scikit-learn")
_VARIABLES = ("OMP_", "MKL_", "CUBLAS_", "OPENBLAS_", "FLWR_", "RAY_")


@contextmanager
def open_session(
    config: Config,
    folder: RunFolder,
    *,
    engine: str,
    workers: int,
    model: str | None = None,
    command: str | None = None,
    resumed: int | None = None,
    code: Mapping[str, str] | None = None,
    display: Sink | None = None,
) -> Iterator[Tracker]:
    """A context that writes what is known before the run, gives the run's tracker, and records how the run ended.

    Args:
        config: the run's configuration, which is recorded in the folder.
        folder: the run folder.
        engine: where clients run: the engine's name, or ``deployment``.
        workers: number of client processes; 0 if FedLab does not start them.
        model: name of what is trained; default: that of the configured model.
        command: how to repeat the run.
        resumed: the round after which a run continues; records of later rounds are removed.
        code: hash of the code that makes it, by module; default: FedLab's own.
        display: what shows the progress; default: the console that ``tracking.console`` asks for.
    """
    write_atomic(folder.config, config.to_yaml())
    if resumed is None:
        write_atomic(folder.environment, json.dumps(environment(command, code), indent=1))
    else:
        _rewind(folder, resumed)
    displays, missing = _displays(config, folder, resumed, display)
    tracker = Tracker([JsonlSink(folder.events), CsvSink(folder.metrics), LedgerSink(folder.ledger)], displays)
    began = time.perf_counter()
    with closing(tracker), ending_signals() as ending:
        tracker.emit(
            "run_start",
            folder=str(folder.path),
            method=config.method.name,
            strategy=config.federation.strategy.name,
            model=model or config.model.name,
            seed=config.seed,
            rounds=config.federation.rounds,
            engine=engine,
            workers=workers,
            command=command,
            resumed=resumed,
        )
        try:
            for warning in missing:
                tracker.emit("warning", message=warning)
            yield tracker
        except BaseException as problem:
            # SystemExit is how Flower, and Ray where the program has started it, pass a SIGTERM on
            ending.begin()
            stopped = isinstance(problem, KeyboardInterrupt | SystemExit)
            if isinstance(problem, FedLabError):
                problem.in_run = True
            error = "" if stopped else f"{type(problem).__name__}: {problem}"
            try:
                _end(tracker, "interrupted" if stopped else "failed", began, error)
            except (OSError, DiskFullError) as second:  # the run's own error is the one to show
                log.warning("the end of the run could not be recorded: %s", str(second).splitlines()[0])
            except Exception:
                log.exception("the end of the run could not be recorded")
            raise
        _end(tracker, "completed", began)


def check_tracking(tracking: TrackingConfig) -> list[str]:
    """Check that the packages for tracking are installed and that all folders can be written to.

    Returns:
        Warnings if the cache cannot be used or a tracking server does not answer; the run continues without them.

    Raises:
        ConfigError: a package is missing, MLflow cannot use its address, or the runs' folder cannot be written to.
        MachineError: no temporary folder can be written to.
    """
    if tracking.tensorboard:
        check_tensorboard()
    warnings = check_mlflow(tracking.mlflow) if tracking.mlflow is not None else []
    if reason := why_unwritable(Path(tracking.folder)):
        raise ConfigError("tracking.folder", tracking.folder, "a folder that can be written to", reason)
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        fix = "free some room, or set TMPDIR to a folder that can be written to"
        raise MachineError("TMPDIR", os.environ.get("TMPDIR"), "a temporary folder", fix) from error
    cache = cache_folder(tracking.cache)
    if reason := why_unwritable(cache):
        warnings.append(f"tracking.cache = {cache}: nothing is kept there for later runs, as {reason}")
    return warnings


def refuse_full_disk(problem: BaseException, folder: RunFolder) -> None:
    """Raise an error with advice if a disk was full, here or, according to a client's traceback, in a worker.

    Raises:
        DiskFullError: a disk was full.
    """
    there = isinstance(problem, ClientError) and f"{DiskFullError.__name__}: " in problem.reason
    if there or isinstance(problem, DiskFullError):
        then = f"free some room, then go on with: fedlab resume {shlex.quote(str(folder.path))}"
        raise DiskFullError(folder.path, then) from problem


def environment(command: str | None = None, code: Mapping[str, str] | None = None) -> dict[str, object]:
    """Versions and hardware that a result may depend on."""
    return {
        "command": command,
        "directory": os.getcwd(),
        "code": dict(code or {"fedlab": code_fingerprint()}),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES)},
    }


def _displays(
    config: Config, folder: RunFolder, resumed: int | None, display: Sink | None
) -> tuple[list[Sink], list[str]]:
    """The displays, and warnings about those that cannot be used; a broken display must not end a run.

    The console comes first, so that the terminal is released before MLflow may keep the user waiting.
    """
    tracking, console = config.tracking, display or make_console(config.tracking.console)
    displays = [console] if console is not None else []
    displays.append(TimelineSink(folder.timeline))
    if tracking.tensorboard:
        displays.append(TensorBoardSink(folder.tensorboard, folder.path, resumed))
    if tracking.mlflow is not None:
        try:
            displays.append(MlflowSink(tracking.mlflow, config, folder.path))
        except ConfigError as error:
            return displays, [f"nothing is sent to MLflow: {error}"]
    return displays, []


def _rewind(folder: RunFolder, round: int) -> None:
    """Remove everything after the end of a round from the event file and the tables."""
    kept = History.from_jsonl(folder.events).until(round)
    write_atomic(folder.events, "".join(jsonl_line(event) for event in kept.events))
    rewind_ledger(folder.ledger, round)
    folder.metrics.unlink(missing_ok=True)
    with closing(CsvSink(folder.metrics)) as table:
        for event in kept.events:
            table.write(event)


def _end(tracker: Tracker, status: str, began: float, error: str = "") -> None:
    tracker.emit("run_end", status=status, seconds=time.perf_counter() - began, error=error)
