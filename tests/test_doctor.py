from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer.testing

from fedlab import doctor
from fedlab.cli.main import app
from fedlab.doctor import Finding

GIB = 2**30


def find(findings: Iterator[Finding], status: str) -> Finding:
    (found,) = (finding for finding in findings if finding.status == status)
    return found


def diagnose(*words: str) -> typing.Any:
    return typer.testing.CliRunner().invoke(app, ["doctor", *words])


def test_this_machine_can_run_fedlab_and_each_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = diagnose()
    assert done.exit_code == 0, done.output
    for subject in ("python", "packages", "torch", "ray", "cores", "memory", "shm", "cache", "runs", "data", "fonts"):
        assert any(line.split()[1] == subject for line in done.stdout.splitlines())
    assert not list(tmp_path.iterdir())


def test_a_failure_is_exit_code_1_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def examine(deep: bool) -> Iterator[Finding]:
        yield Finding("ok", "python", "fine")
        yield Finding("fail", "ray", "gone", "install it")

    monkeypatch.setattr(doctor, "examine", examine)
    done = diagnose()
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1:] == ["fail  ray          gone", " " * 19 + "→ install it"]


def test_a_warning_alone_is_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda deep: iter([Finding("warn", "shm", "small", "grow it")]))
    assert diagnose().exit_code == 0


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Iterator[Finding]:
        raise RuntimeError("undefined symbol")
        yield

    monkeypatch.setattr(doctor, "torch_build", broken)
    findings = list(doctor.examine())
    assert next(f for f in findings if f.subject == "torch").text == "RuntimeError: undefined symbol"
    assert findings[-1].subject == "telemetry"


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 2, "final", 0))
    assert find(doctor.python(), "fail").text == "3.10.2"


def with_version(monkeypatch: pytest.MonkeyPatch, name: str, version: str | None) -> None:
    real = importlib.metadata.version

    def fake(asked: str) -> str:
        if asked != name:
            return real(asked)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", fake)


@pytest.mark.parametrize("version", ["1.40.2", "1.43.0"])
def test_another_flower_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    with_version(monkeypatch, "flwr", version)
    found = find(doctor.packages(), "fail")
    assert (found.subject, found.text) == ("flwr", f"version {version}; needed: flwr<1.43,>=1.41")
    assert "flwr[simulation]<1.43,>=1.41" in found.remedy


@pytest.mark.parametrize("version", ["1.41.0", "1.42.1"])
def test_a_flower_version_that_is_supported(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    with_version(monkeypatch, "flwr", version)
    assert list(doctor.packages())[1:] == [Finding("ok", "packages", f"all present, flwr {version}")]


@pytest.mark.parametrize("name", ["mlxtend", "scikit-learn"])
def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with_version(monkeypatch, name, None)
    found = find(doctor.packages(), "fail")
    assert found.subject == name
    assert found.text.startswith("not installed")


def test_the_foreign_distribution_of_the_same_import_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with_version(monkeypatch, "fedlab", "1.3.0")
    found = find(doctor.packages(), "fail")
    assert "'fedlab' 1.3.0" in found.text
    assert "pip uninstall fedlab" in found.remedy


def test_fedlab_itself_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    assert "is not installed" in find(doctor.packages(), "fail").text


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(("cuda", "told"), [(None, "install a CUDA build"), ("12.8", "update the driver")])
def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, cuda: str | None, told: str) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found = find(doctor.torch_build(), "warn")
    assert found.subject == "gpu"
    assert told in found.remedy


def test_a_torchvision_that_does_not_fit_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    found = find(doctor.torchvision(), "fail")
    assert "nms does not exist" in found.text
    assert "pip uninstall torchvision" in found.remedy


def test_ray_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    found = find(doctor.ray(), "fail")
    assert "--engine inline" in found.remedy


def test_a_container_with_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.engine.cgroup.cpu_quota", lambda: 1.5)
    monkeypatch.setattr("fedlab.engine.machine.cpu_quota", lambda: 1.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert find(doctor.cores(), "ok").text == "1 usable (this container may use 1.5), so 1 workers by default"


def test_a_temporary_folder_too_long_for_rays_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("d" * 60)))
    assert "its sockets are in /tmp/ray" in find(doctor.ray(), "ok").text
    monkeypatch.setattr("fedlab.engine.machine._SHORT", (str(tmp_path / ("d" * 60)),))
    assert "TMPDIR=/tmp" in find(doctor.ray(), "fail").remedy


def test_the_memory_a_container_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.engine.cgroup.available_memory", lambda: 64 * GIB)
    monkeypatch.setattr("fedlab.engine.cgroup.memory_left", lambda: GIB)
    assert find(doctor.memory(), "warn").text == "1.0 GiB free"


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.engine.machine.cores", lambda: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert find(doctor.cores(), "warn").text == "OMP_NUM_THREADS=16 on 2 cores"


def disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100 * GIB, used=0, free=free))


def test_the_shared_memory_docker_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SHM", tmp_path)
    disk(monkeypatch, 64 * 2**20)
    assert "--shm-size" in find(doctor.shared_memory(), "warn").remedy


@pytest.mark.parametrize(("free", "status"), [(GIB // 2, "fail"), (3 * GIB, "warn"), (50 * GIB, "ok")])
def test_free_disk(monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    disk(monkeypatch, free)
    assert [finding.status for finding in doctor.folders()] == [status] * 3


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> typing.NoReturn:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setenv("FEDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    found = next(finding for finding in doctor.folders() if finding.subject == "cache")
    assert found == Finding(
        "warn", "cache", f"{tmp_path}: Permission denied", "set FEDLAB_CACHE to a folder you can write to"
    )


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.engine.cgroup.available_memory", lambda: GIB)
    assert find(doctor.memory(), "warn").text == "1.0 GiB free"


def test_telemetry_somebody_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert "RAY_USAGE_STATS_ENABLED=1" in find(doctor.telemetry(), "warn").text


@pytest.mark.usefixtures("ray_running")
def test_the_deep_check_runs_a_round_in_a_ray_worker_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "in a Ray worker took" in find(doctor.federated_round(), "ok").text
    assert not list(tmp_path.iterdir())


def test_the_deep_check_is_asked_for_only_by_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def examine(deep: bool) -> Iterator[Finding]:
        asked.append(deep)
        return iter(())

    look: Callable[..., Iterator[Finding]] = examine
    monkeypatch.setattr(doctor, "examine", look)
    diagnose()
    diagnose("--deep")
    assert asked == [False, True]
