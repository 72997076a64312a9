"""How a run ends: its folder has an end and a report, and an error says where both are and what to do next."""

from __future__ import annotations

import errno
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fedlab.config import Config
from fedlab.config.flowerapp import FlowerAppConfig
from fedlab.errors import ClientError, DiskFullError
from fedlab.experiment.last_words import witnessed
from fedlab.report.page import report_quietly
from fedlab.storage.runfolder import RunFolder, is_full_disk
from fedlab.tracking import Tracker

_FULL_THERE = (f"{DiskFullError.__name__}: ", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


@contextmanager
def accounted(config: Config | FlowerAppConfig, folder: RunFolder) -> Iterator[None]:
    """A context for a run, after which its report is written and an error names the run folder.

    Unless clients run in this process, the end of the run is recorded even if this process is gone all at once.

    Args:
        config: the run's configuration.
        folder: the run folder.

    Raises:
        DiskFullError: a disk was full, here or in a worker.
    """
    then = _next_step(config, folder)
    # with the inline engine nobody but the system ends this process, and the run then stays open
    watched = nullcontext() if config.engine.name == "inline" else witnessed(folder, config.tracking.report, then)
    try:
        with watched:
            yield
    except BaseException as problem:
        _refuse_full_disk(problem, folder, then)
        report = f", report: {folder.report}" if config.tracking.report else ""
        problem.add_note(f"run folder: {folder.path}{report}")
        raise
    finally:
        if config.tracking.report:
            report_quietly(folder)


def stuck_recorder(folder: RunFolder, report: bool, tracker: Tracker) -> Callable[[str], None]:
    """What an engine calls with the reason before it ends this process: it records the end of the run.

    Args:
        folder: the run folder.
        report: whether the report is written then.
        tracker: that of the run, which has just begun.
    """
    began = time.perf_counter()

    def record(reason: str) -> None:
        tracker.emit("run_end", status="failed", seconds=time.perf_counter() - began, error=reason)
        if report:
            report_quietly(folder)

    return record


def _next_step(config: Config | FlowerAppConfig, folder: RunFolder) -> str:
    """What a user can do when whatever stopped the run has been mended."""
    if isinstance(config, FlowerAppConfig):
        return "start the run again"  # the rounds are a loop of the app, which nobody can enter in the middle
    return f"go on with: fedlab resume {shlex.quote(str(folder.path))}"


def _refuse_full_disk(problem: BaseException, folder: RunFolder, then: str) -> None:
    """Raise an error with advice if a disk was full, here or, according to a client's traceback, in a worker.

    Raises:
        DiskFullError: a disk was full.
    """
    there = isinstance(problem, ClientError) and any(sign in problem.reason for sign in _FULL_THERE)
    here = [error for error in _chain(problem) if isinstance(error, DiskFullError) or is_full_disk(error)]
    if not (there or here):
        return
    named = Path(str(next((error.folder for error in here if isinstance(error, DiskFullError)), folder.path)))
    if not folder.config.is_file():
        then = f"remove {folder.path}, in which nothing was written yet, and start the run again"
    raise DiskFullError(
        folder.path if named.is_relative_to(folder.path) else named, f"free some room, then {then}"
    ) from problem


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    """An error and those that caused it."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        yield problem
        seen.add(id(problem))
        problem = problem.__cause__ or problem.__context__
