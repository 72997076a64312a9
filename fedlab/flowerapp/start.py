"""Runs a Flower app on FedLab's engines and writes its run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.numpy
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedlab.config.flowerapp import FlowerAppConfig
from fedlab.engine import Listeners, Placement, Simulation, check_engine, launch, started
from fedlab.errors import FedLabError
from fedlab.experiment.ending import accounted, stuck_recorder
from fedlab.flowerapp.book import RoundBook
from fedlab.flowerapp.configure import configure_app
from fedlab.flowerapp.grid import RecordingGrid
from fedlab.flowerapp.loading import ClientAppLoader, FlowerAppError, importable, load_components, seeded
from fedlab.flowerapp.project import Project, Value
from fedlab.flowerapp.strategies import listening
from fedlab.protocol.messages import to_numpy
from fedlab.storage.cache import code_fingerprint
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.tracking import History, Tracker
from fedlab.tracking.recording import check_tracking, open_session
from fedlab.tracking.signals import ending_signals
from fedlab.tracking.trackers import RunTracker, check_trackers, make_trackers

ARRAYS = "arrays"
"""Name of the artifact with the arrays that the app's strategy has aggregated last."""
LOG = "flower.log"
"""File in the run folder with what Flower has logged."""


@dataclass(frozen=True)
class FlowerAppRun:
    """A run of a Flower app on disk.

    Args:
        folder: the run folder.
        config: its configuration.
    """

    folder: RunFolder
    config: FlowerAppConfig

    @property
    def path(self) -> Path:
        return self.folder.path

    @cached_property
    def history(self) -> History:
        """The events of the run, such as its rounds and evaluations."""
        return History.from_jsonl(self.folder.events)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the app's strategy has aggregated last, by name; empty if there is nothing of it."""
        path = self.folder.artifacts / f"{ARRAYS}.safetensors"
        return dict(safetensors.numpy.load_file(path)) if path.is_file() else {}


def run_app(
    source: str | Path,
    *,
    clients: int | None = None,
    run_config: Sequence[str] | Mapping[str, Value] = (),
    overrides: Sequence[str] = (),
    command: str | None = None,
) -> FlowerAppRun:
    """Run a Flower app, with its own ServerApp and ClientApp, and write a run folder.

    Args:
        source: the app's folder, or the ``config.yaml`` of an earlier run of such an app.
        clients: number of clients; None takes the one that the app's federation names.
        run_config: values of the app's own keys: a mapping, or texts as for ``flwr run --run-config``.
        overrides: ``dotted.key=value`` strings.
        command: how to repeat this run, shown in the report.

    Raises:
        InputError, ConfigErrors: something is wrong with the input or the app; no worker was started.
        FlowerAppError: the app's own code raises an exception.
        ClientError: a client failed.
    """
    config, project = configure_app(source, clients=clients, run_config=run_config, overrides=overrides)
    tracking = config.tracking
    trackers = make_trackers(tracking)
    warnings = [*check_tracking(tracking), *check_trackers(trackers)]
    placement = check_engine(config.engine)
    RunFolder.check(Path(tracking.folder), tracking.name, project.name, config.seed)
    if project.unused:
        keys = ", ".join(project.unused)
        warnings.append(f"{keys}: not used; engine.workers and engine.gpus_per_worker say where clients run")
    with importable(project.folder), seeded(config.seed, "server"):
        server, _ = load_components(project)
        with ending_signals(), started(config.engine, placement, None, [project.folder]) as placement:
            # from here on a run exists; all that can be refused has been
            folder = RunFolder.create(Path(tracking.folder), tracking.name, project.name, config.seed)
            with folder.writing():
                _execute(config, project, server, folder, placement, trackers, warnings, command)
    return FlowerAppRun(folder, config)


def _execute(
    config: FlowerAppConfig,
    project: Project,
    server: ServerApp,
    folder: RunFolder,
    placement: Placement,
    trackers: Sequence[RunTracker],
    warnings: Sequence[str],
    command: str | None,
) -> None:
    app = config.flower_app
    code = {"fedlab": code_fingerprint(), project.name: project.fingerprint()}
    with (
        accounted(config, folder),
        _logged(folder.path / LOG),
        open_session(
            config,
            folder,
            engine=config.engine.name,
            workers=placement.workers,
            command=command,
            code=code,
            trackers=trackers,
        ) as tracker,
    ):
        for warning in warnings:
            tracker.emit("warning", message=warning)
        facts = {"title": f"Flower app {app.name}", "paper": "", "clients": app.clients}
        skip = config.federation.on_client_error == "skip"
        book = RoundBook(tracker, config.rounds, skip, {**facts, "device": placement.device})
        try:
            launch(
                config.engine,
                placement,
                _Main(server, project, book),
                Simulation(
                    ClientAppLoader(str(project.folder), app.clientapp, config.seed),
                    app.clients,
                    dict(app.run_config),
                    fail_fast=not skip,
                ),
                Listeners(
                    on_progress=book.progress,
                    on_work=book.work,
                    on_stuck=stuck_recorder(folder, config.tracking.report, tracker),
                ),
            )
        finally:
            book.close()
            _save(book.arrays, folder, tracker)


class _Main:
    """The server's part of a run: the app's ServerApp, whose errors are told with its own traceback.

    Args:
        server: the ServerApp.
        project: the app.
        book: the record of the run.
    """

    def __init__(self, server: ServerApp, project: Project, book: RoundBook) -> None:
        self._server, self._project, self._book = server, project, book

    def __call__(self, grid: Grid, context: Context) -> None:
        what = f"in its ServerApp {self._project.serverapp}"
        try:
            with listening(self._book):
                self._server(RecordingGrid(grid, self._book), context)
        except FedLabError:
            raise
        except SystemExit as end:
            self._book.check()
            if end.code not in (None, 0):
                raise FlowerAppError.of(f"{what}, which ended the program", end, self._project.folder) from end
        except Exception as error:
            self._book.check()  # the client's error is the cause
            raise FlowerAppError.of(what, error, self._project.folder) from error
        self._book.check()  # the app may have caught the error of a client


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what Flower logs into a file; only its warnings reach the console, beside FedLab's own progress."""
    logger = logging.getLogger("flwr")
    levels = [(handler, handler.level) for handler in logger.handlers]
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    for handler, level in levels:
        handler.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in levels:
            handler.setLevel(level)
        logger.removeHandler(file)
        file.close()


def _save(arrays: ArrayRecord | None, folder: RunFolder, tracker: Tracker) -> None:
    """Write what the strategy has aggregated last; what cannot be written costs a warning, not the run."""
    if arrays is None or not len(arrays):
        return
    path = folder.artifacts / f"{ARRAYS}.safetensors"
    try:
        found = {name: np.asarray(values, order="C") for name, values in to_numpy(arrays).items()}
        write_atomic(path, safetensors.numpy.save(found))
    except Exception as error:  # arrays in a format of the app's own, or of a type that safetensors lacks
        reason = " ".join(str(error).split())
        tracker.emit("warning", message=f"the app's arrays could not be saved: {type(error).__name__}: {reason}")
        return
    tracker.emit("artifact", name=ARRAYS, path=path.relative_to(folder.path).as_posix())
