"""What all tests share: one thread, a cache of their own, one Ray."""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.forks import Forks
from tests.spare_workers import SpareWorkers

# how fast examples are made says something about the machine and nothing about the code
hypothesis.settings.register_profile("fedlab", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("fedlab")


# Programs that tests start and workers compile FedLab once for all of them, even where Python is not to do so.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-readme", action="store_true", help="write the outputs in README.md and docs/ anew")


SHARED = ("forks", "wheel")  # fixtures that take long to make: tests that want one go to one process; Ray wants forks


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For pytest-xdist: a file stays together, but for tests that want what should be made by one process only."""
    for item in items:
        asked = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        item.add_marker(pytest.mark.xdist_group(asked[0] if asked else str(item.path)))


def pytest_collection_finish() -> None:
    """What the imports and the collected tests hold stays, and looking through it again and again takes a sixth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FEDLAB_CACHE", str(folder))
        environment.setenv("HF_HOME", str(folder / "huggingface"))
        environment.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    from fedlab.engine.machine import pin_threads

    pin_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Only a loss of power shows whether files were synchronized, and a small run would wait for that six times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _reports_left_out() -> Iterator[None]:
    """A small run's report, which is mostly charts, takes four times as long as the run; see `reports`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedlab.report.page.write_report", lambda folder: None)
        yield


@contextmanager
def charts(*, drawn: bool) -> Iterator[None]:
    """A context in which charts are saved as they are, or without lines and texts, which take most of the time."""
    from matplotlib.figure import Figure
    from PIL import Image

    def saved(figure: Figure, file: Any, **how: Any) -> None:
        if how.get("format") == "svg":
            blank = '<svg viewBox="0 0 1 1"></svg>'
            file.write(blank if isinstance(file, io.TextIOBase) else blank.encode())
        else:
            size = (figure.get_size_inches() * how.get("dpi", 100)).astype(int)
            Image.new("RGB", tuple(map(int, size))).save(file, how.get("format"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "whole", vars(Figure).get("whole", Figure.savefig), raising=False)
        patch.setattr(Figure, "savefig", vars(Figure)["whole"] if drawn else saved)
        yield


@pytest.fixture(scope="session", autouse=True)
def _charts_not_drawn() -> Iterator[None]:
    with charts(drawn=False):
        yield


@pytest.fixture
def drawn_charts() -> Iterator[None]:
    """Charts are drawn, for tests that look at what they show."""
    with charts(drawn=True):
        yield


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process write their reports at their end, as a user's do."""
    import fedlab.report

    monkeypatch.setattr("fedlab.report.page.write_report", fedlab.report.write_report)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Programs of their own that need not import everything anew."""
    started = Forks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def ray_running(forks: Forks) -> Iterator[None]:
    """One Ray for all tests, with room for the shared workers and for a test's own; its workers are forks."""
    import ray

    from fedlab.engine.grids.ray import RayGrid

    with pytest.MonkeyPatch.context() as script:
        script.setattr("ray._private.ray_constants.SETUP_WORKER_FILENAME", str(forks.ray_worker))
        _start_ray()
    with pytest.MonkeyPatch.context() as patience:  # a busy machine needs longer for a worker than a user would wait
        patience.setitem(RayGrid.__init__.__kwdefaults__, "start_timeout", 1800.0)
        yield
    ray.shutdown()


def _start_ray() -> None:
    import ray

    for attempt in range(20):
        try:
            ray.init(
                address="local",
                num_cpus=9,  # two shared by the engine's tests, two spare ones, and five for a worker of a test's own
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _system_config={"prestart_worker_first_driver": False},  # one process per CPU, needed or not
            )
            break
        except Exception as error:  # Ray gives its own processes 30 seconds and has no setting for that
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == 19:
                raise


@pytest.fixture(scope="session")
def _spare_workers(ray_running: None) -> Iterator[SpareWorkers]:
    spare = SpareWorkers()
    yield spare
    spare.dismiss()


@pytest.fixture
def ray_workers(_spare_workers: SpareWorkers) -> Iterator[None]:
    """One Ray whose workers go from run to run, see `SpareWorkers`."""
    import ray

    assert ray.is_initialized(), "an earlier test has shut down the Ray that the tests share"
    with _spare_workers.shared():
        yield
