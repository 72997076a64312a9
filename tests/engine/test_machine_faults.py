"""Machines with something wrong: refused before a run folder exists, or survived with a warning."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.config import Config, parse
from fedlab.engine import cluster, machine
from fedlab.errors import ConfigErrors, DiskFullError, MachineError
from fedlab.experiment.checks import resolve
from fedlab.storage.runfolder import telling_full_disk, why_unwritable, write_atomic
from fedlab.tracking.trackers import mlflow
from tests.forks import Forks

MakeConfig = Callable[..., Config]


@pytest.fixture
def config(tmp_path: Path) -> MakeConfig:
    """A run of a second, changed by dotted keys."""

    def make(**changes: Any) -> Config:
        raw = {
            "method": "supervised",
            "model": {"name": "logistic"},
            "data": {
                "source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 20},
                "partition": [{"name": "iid", "clients": 2}],
            },
            "federation": {"rounds": 2},
            "engine": {"name": "inline"},
            "tracking": {"folder": str(tmp_path / "runs"), "console": "quiet", "tensorboard": False},
        }
        return parse(Config, raw).with_overrides({key.replace("__", "."): value for key, value in changes.items()})

    return make


def digest(run: fedlab.Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


# folders


def test_a_folder_that_can_be_written_to_need_not_exist(tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "a" / "b") is None
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").touch()
    assert why_unwritable(tmp_path / "file" / "b") == f"{tmp_path / 'file'} is no folder"
    (tmp_path / "dead").symlink_to(tmp_path / "gone")
    assert why_unwritable(tmp_path / "dead") == f"{tmp_path / 'dead'} is no folder"


def test_a_cache_that_cannot_be_written_to_costs_a_warning(config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    whole = fedlab.run(config())
    run = fedlab.run(config(tracking__cache=str(tmp_path / "file" / "cache")))
    assert digest(run) == digest(whole)
    (warning,) = [text for text in run.history.warnings if "tracking.cache" in text]
    assert f"{tmp_path / 'file'} is no folder" in warning


def test_a_method_that_keeps_results_does_without_a_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    from fedlab.storage.cache import ResultCache

    (tmp_path / "file").touch()
    cache = ResultCache(tmp_path / "file", lambda: "data", 0, torch.device("cpu"))
    for _ in range(2):
        assert cache.get("x", {}, lambda: {"one": torch.ones(1)})["one"] == 1
    assert "the cache keeps nothing of x" in caplog.text


def test_runs_that_cannot_be_written_are_refused_before_the_data_are_read(config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigErrors, match=r"tracking\.folder = [\s\S]*a folder that can be written to[\s\S]*no folder"
    ):
        resolve(config(tracking__folder=str(tmp_path / "file" / "runs")))


# a full disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_error_whatever_the_system_calls_it(number: int, tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="the disk is full: nothing more can be written to"), \
            telling_full_disk(tmp_path):  # fmt: skip
        raise OSError(number, os.strerror(number))
    with pytest.raises(PermissionError), telling_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "x", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError):
        write_atomic(tmp_path / "x", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


FULL_DISK = """
import resource
from fedlab.cli.main import app
resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))
app()
"""


def test_a_disk_that_fills_up_is_told_in_a_sentence_and_the_run_goes_on_later(
    config: MakeConfig, tmp_path: Path, forks: Forks
) -> None:
    """The limit on a file's size stands in for the disk: the first checkpoint is too large."""
    source, runs, program = tmp_path / "config.yaml", tmp_path / "runs", tmp_path / "program.py"
    source.write_text(config(tracking__checkpoint_every=1).to_yaml())
    program.write_text(FULL_DISK)
    done = forks.run([program, "run", source, "--quiet"], cwd=tmp_path)
    (folder,) = runs.iterdir()
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"the disk is full: nothing more can be written to {folder}" in done.stderr
    assert f"fedlab resume {folder}" in done.stderr
    resumed = fedlab.resume(folder)
    assert digest(resumed) == digest(fedlab.run(config(tracking__checkpoint_every=1, tracking__name="whole")))


def test_a_disk_that_is_full_in_a_worker_is_told_the_same_way(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedlab.clients.runtime import ClientRuntime

    train = ClientRuntime.train

    def full(self: ClientRuntime, client: int, request: Any, *rest: Any) -> Any:
        if request.instructions.round == 2 and not self.setup.preflight:
            raise DiskFullError("clients/0000001")
        return train(self, client, request, *rest)

    monkeypatch.setattr(ClientRuntime, "train", full)
    with pytest.raises(DiskFullError, match="fedlab resume"):
        fedlab.run(config())


def test_a_disk_that_is_full_for_others_code_is_told_the_same_way(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the driver nor a client's traceback need say it in FedLab's words."""
    from fedlab.clients.runtime import ClientRuntime
    from fedlab.server.loop import FederatedLoop

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    train = ClientRuntime.train

    def full_later(self: ClientRuntime, *rest: Any) -> Any:
        return train(self, *rest) if self.setup.preflight else full()

    with monkeypatch.context() as patch:
        patch.setattr(FederatedLoop, "_aggregate", full)
        with pytest.raises(DiskFullError, match="free some room, then go on with: fedlab resume"):
            fedlab.run(config())
    monkeypatch.setattr(ClientRuntime, "train", full_later)
    with pytest.raises(DiskFullError, match="free some room, then go on with: fedlab resume"):
        fedlab.run(config())


def test_a_disk_that_is_full_before_anything_is_written_leaves_a_run_to_start_again(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedlab.experiment import start

    def full(path: Path, *_: Any) -> None:
        raise DiskFullError(path.parent)

    monkeypatch.setattr(start, "write_atomic", full)
    with pytest.raises(DiskFullError, match="in which nothing was written yet, and start the run again"):
        fedlab.run(config())


# Ray


def test_a_long_temporary_folder_does_not_reach_rays_sockets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert machine.ray_folder() is None
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    chosen = machine.ray_folder()
    assert chosen is not None
    assert len(chosen) < 40
    assert cluster.local(1)["_temp_dir"] == chosen
    monkeypatch.setattr(machine, "_SHORT", (str(deep),))
    with pytest.raises(MachineError, match=r"TMPDIR = [\s\S]*at most 3\d bytes[\s\S]*--engine inline"):
        machine.ray_folder()


def test_a_ray_that_does_not_start_is_told_before_a_run_folder_exists(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def broken(**settings: Any) -> None:
        raise RuntimeError("\nThe current node timed out during startup.\nand 103 lines more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", broken)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # this process may have a Ray that other tests want
    for engine in ("ray", "flower"):
        with pytest.raises(MachineError, match=r"it said: The current node timed out[\s\S]*--engine inline") as caught:
            fedlab.run(config(engine__name=engine, engine__workers=1))
        assert "103 lines" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


# a tracker's server


@pytest.fixture
def _with_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name: what is looked at here is what happens before it is used."""
    package = tmp_path / "packages" / "mlflow"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.usefixtures("_with_mlflow")
def test_a_server_that_is_away_costs_a_warning(config: MakeConfig, closed_port: str) -> None:
    run = fedlab.run(config(tracking__mlflow=closed_port))
    assert run.history.end["status"] == "completed"
    told = [text for text in run.history.warnings if "nothing is sent to MLflow" in text]
    assert told
    assert closed_port in told[0]
    assert "refused" in told[0]


@pytest.mark.usefixtures("_with_mlflow")
def test_a_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts the connection and says nothing."""
    monkeypatch.setattr(mlflow, "_PATIENCE", 0.05)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (warning,) = mlflow.check_mlflow(f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert "timed out" in warning


@pytest.mark.usefixtures("_with_mlflow")
def test_any_answer_will_do_and_a_password_is_not_part_of_the_host() -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert mlflow.check_mlflow(f"http://me:secret@127.0.0.1:{server.server_port}") == []


@pytest.mark.usefixtures("_with_mlflow")
@pytest.mark.parametrize("uri", ["nonsense://x", "htp://host:5000"])
def test_an_address_that_no_store_has_is_refused_before_the_run(config: MakeConfig, uri: str) -> None:
    with pytest.raises(ConfigErrors, match=r"tracking\.mlflow = [\s\S]*begins with one of"):
        resolve(config(tracking__mlflow=uri))


@pytest.mark.usefixtures("_with_mlflow")
@pytest.mark.parametrize(
    "uri", ["sqlite:///x.db", "./mlruns", "/data/mlruns", "mysql+pymysql://u:p@h/db", "databricks"]
)
def test_addresses_of_stores_without_a_server_are_not_tried(uri: str) -> None:
    assert mlflow.check_mlflow(uri) == []
