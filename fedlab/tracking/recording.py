"""Opens the records of a run and closes them, however the run ends."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch

from fedlab.config import Config, TrackingConfig
from fedlab.config.flowerapp import FlowerAppConfig
from fedlab.config.recorded import record_config
from fedlab.engine.machine import cores, installed_version
from fedlab.errors import ConfigError, DiskFullError, FedLabError, MachineError
from fedlab.storage.cache import code_fingerprint
from fedlab.storage.paths import cache_folder
from fedlab.storage.runfolder import RunFolder, why_unwritable, write_atomic
from fedlab.storage.secrets import known_variables, redacted
from fedlab.tracking import Event, History, Sink, Tracker
from fedlab.tracking.console import make_console
from fedlab.tracking.jsonl import JsonlSink, jsonl_line
from fedlab.tracking.ledger import LedgerSink, rewind_ledger
from fedlab.tracking.signals import ending_signals
from fedlab.tracking.table import CsvSink
from fedlab.tracking.timeline import TimelineSink
from fedlab.tracking.trackers import RunTracker, TrackedRun, make_trackers
from fedlab.tracking.trackers.configured import unrecorded

log = logging.getLogger(__name__)

_PACKAGES = ("fedlab-sim", "flwr", "ray", "torch", "numpy", "flwr-datasets", "datasets", "safetensors", "scikit-learn")
_NAMED = 5  # rounds in a warning
_TRACED = 60  # lines of a traceback
_AGAIN = ("run_start", "vectorize")  # events that stay of a run which begins again; all others come again


@contextmanager
def open_session(
    config: Config | FlowerAppConfig,
    folder: RunFolder,
    *,
    engine: str,
    workers: int,
    model: str | None = None,
    command: str | None = None,
    resumed: int | None = None,
    code: Mapping[str, str] | None = None,
    display: Sink | None = None,
    trackers: Sequence[RunTracker] | None = None,
) -> Iterator[Tracker]:
    """A context that writes what is known before the run, gives the run's tracker, and records how the run ended.

    Args:
        config: the run's configuration, which is recorded in the folder.
        folder: the run folder.
        engine: where clients run: the engine's name, or ``deployment``.
        workers: number of client processes; 0 if FedLab does not start them.
        model: name of what is trained; default: that of the configured model.
        command: how to repeat the run.
        resumed: the round after which a run continues; records of later rounds are removed. 0 begins again, with the
            preparation before round 1.
        code: hash of the code that makes it, by module; default: FedLab's own.
        display: what shows the progress; default: the console that ``tracking.console`` asks for.
        trackers: where numbers and pictures are sent; default: those of the configuration, which are made here.
    """
    record_config(folder, config)
    told: list[str] = []
    if resumed is None or not folder.environment.is_file():
        write_atomic(folder.environment, json.dumps(environment(command, code), indent=1))
    if resumed is not None:
        told = _rewind(folder, resumed)
    used = make_trackers(config.tracking) if trackers is None else trackers
    displays, missing = _displays(TrackedRun(folder, config, resumed), display, used)
    tracker = Tracker([JsonlSink(folder.events), CsvSink(folder.metrics), LedgerSink(folder.ledger)], displays)
    command = None if command is None else redacted(command)
    began = time.perf_counter()
    with closing(tracker), ending_signals() as ending:
        tracker.emit(
            "run_start",
            folder=str(folder.path),
            **_described(config, model),
            seed=config.seed,
            engine=engine,
            workers=workers,
            command=command,
            resumed=resumed,
        )
        try:
            for warning in (*told, *missing):
                tracker.emit("warning", message=warning)
            yield tracker
        except BaseException as problem:
            # SystemExit is how Flower, and Ray where the program has started it, pass a SIGTERM on
            ending.begin()
            stopped = isinstance(problem, KeyboardInterrupt | SystemExit)
            if isinstance(problem, FedLabError):
                problem.in_run = True
            error = "" if stopped else f"{type(problem).__name__}: {problem}"
            trace = "" if stopped or isinstance(problem, FedLabError) else _trace(problem)
            try:
                _end(tracker, "interrupted" if stopped else "failed", began, error, trace)
            except (OSError, DiskFullError) as second:  # the run's own error is the one to show
                log.warning("the end of the run could not be recorded: %s", str(second).splitlines()[0])
            except Exception:
                log.exception("the end of the run could not be recorded")
            raise
        _end(tracker, "completed", began)


def check_tracking(tracking: TrackingConfig) -> list[str]:
    """Check that the folders for tracking can be written to.

    Returns:
        A warning if the cache cannot be used; the run continues without it.

    Raises:
        ConfigError: the runs' folder cannot be written to.
        MachineError: no temporary folder can be written to.
    """
    if reason := why_unwritable(Path(tracking.folder)):
        raise ConfigError("tracking.folder", tracking.folder, "a folder that can be written to", reason)
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        fix = "free some room, or set TMPDIR to a folder that can be written to"
        raise MachineError("TMPDIR", os.environ.get("TMPDIR"), "a temporary folder", fix) from error
    cache = cache_folder(tracking.cache)
    reason = why_unwritable(cache)
    return [f"tracking.cache = {cache}: nothing is kept there for later runs, as {reason}"] if reason else []


def environment(command: str | None = None, code: Mapping[str, str] | None = None) -> dict[str, object]:
    """Versions and hardware that a result may depend on."""
    return {
        "command": None if command is None else redacted(command),
        "directory": os.getcwd(),
        "code": dict(code or {"fedlab": code_fingerprint()}),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "packages": {name: installed_version(name) for name in _PACKAGES},
        "variables": known_variables(os.environ),
    }


def _described(config: Config | FlowerAppConfig, model: str | None) -> dict[str, object]:
    """Fields of ``run_start``: what is run."""
    if isinstance(config, FlowerAppConfig):
        app = config.flower_app
        return {"method": app.name, "strategy": app.serverapp, "model": app.clientapp, "rounds": config.rounds}
    return {
        "method": config.method.name,
        "strategy": config.federation.strategy.name,
        "model": model or config.model.name,
        "rounds": config.federation.rounds,
    }


def _displays(run: TrackedRun, display: Sink | None, trackers: Sequence[RunTracker]) -> tuple[list[Sink], list[str]]:
    """The displays, and warnings about those that cannot be used; a broken display must not end a run.

    The console comes first, so that the terminal is released before a tracker may keep the user waiting.
    """
    displays, missing = list[Sink](), list[str]()

    def add(make: Callable[[], Sink | None], without: str) -> None:
        try:
            made = make()
        except Exception as error:  # of any library that shows a run's progress
            missing.append(f"{without}: {redacted(' '.join(str(error).split()))}")
        else:
            displays.extend([] if made is None else [made])

    add(lambda: display or make_console(run.config.tracking.console), "the progress is not shown")
    add(lambda: TimelineSink(run.folder.timeline), "no timeline is written")
    for tracker in trackers:
        if hidden := unrecorded(tracker):
            missing.append(hidden)
        else:
            add(partial(_opened, tracker, run), tracker.without)
    return displays, missing


def _opened(tracker: RunTracker, run: TrackedRun) -> RunTracker:
    tracker.open(run)
    return tracker


def _rewind(folder: RunFolder, round: int) -> list[str]:
    """Remove everything after the end of a round from the event file and the tables; 0 removes the preparation too.

    Returns:
        Warnings about what is damaged in them.
    """
    history = History.from_jsonl(folder.events)
    kept = [event for event in history.events if event["event"] in _AGAIN]
    if round > 0:
        kept = list(history.until(round).events)
    write_atomic(folder.events, "".join(jsonl_line(event) for event in kept))
    told = _lacking(folder, kept, rewind_ledger(folder.ledger, round or -1))
    folder.metrics.unlink(missing_ok=True)
    damaged = 0
    with closing(CsvSink(folder.metrics)) as table:
        for event in kept:
            try:
                table.write(event)
            except (LookupError, TypeError, ValueError, AttributeError):  # fields are missing or of another kind
                damaged += 1
    lost = f"the numbers of {damaged} events are missing in {folder.metrics.name}: {folder.events.name} is damaged"
    return [*told, *([lost] if damaged else [])]


def _lacking(folder: RunFolder, events: Sequence[Event], booked: Mapping[int, tuple[int, int]]) -> list[str]:
    """A warning about rounds whose bytes in the ledger, by round, are not those that the events tell of."""
    sent: dict[int, tuple[int, int]] = {}
    for event in events:
        number = 0 if event["event"] == "prepared" else event.get("round") if event["event"] == "round" else None
        down, up = event.get("bytes_down"), event.get("bytes_up")
        if isinstance(number, int) and isinstance(down, int) and isinstance(up, int):
            before = sent.get(number, (0, 0))
            sent[number] = before[0] + down, before[1] + up
    wrong = sorted(number for number, total in sent.items() if booked.get(number, (0, 0)) != total)
    if not wrong:
        return []
    rounds = ", ".join(map(str, wrong[:_NAMED])) + (", …" if len(wrong) > _NAMED else "")
    return [f"{folder.ledger.name} is damaged: its rows of round {rounds} do not add up to the bytes of the round"]


def _trace(problem: BaseException) -> str:
    """The traceback of an error that is none of FedLab's own, whose message would not say where it happened.

    Of a long one, the first and the last lines are kept.
    """
    lines = "".join(traceback.format_exception(problem)).rstrip().splitlines()
    left = len(lines) - _TRACED
    if left > 0:
        lines[_TRACED // 2 : -_TRACED // 2] = [f"  … {left} more lines …"]
    return "\n".join(lines)


def _end(tracker: Tracker, status: str, began: float, error: str = "", trace: str = "") -> None:
    early = {} if tracker.stopped is None else {"stopped": tracker.stopped}
    more = {"traceback": trace} if trace else {}
    tracker.emit("run_end", status=status, seconds=time.perf_counter() - began, error=error, **early, **more)
