"""A method or strategy in a module of one's own is found without PYTHONPATH, everywhere and again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedlab
from fedlab.config.modules import home, load_reference, search
from fedlab.errors import ConfigErrors
from fedlab.experiment.configuration import configure
from fedlab.report.record import RunRecord
from fedlab.report.sections import repeat
from fedlab.storage.hashing import hash_tensors
from tests.forks import Forks

Command = Callable[[list[str], Path], subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.programs

MODULE = """
from fedlab.methods.supervised.method import Supervised

class Mine(Supervised):
    def loss(self, networks, batch, step):
        return {name: 2 * value for name, value in super().loss(networks, batch, step).items()}
"""
TINY: dict[str, Any] = {
    "method": "own_module_of_a_user:Mine",
    "model": "logistic",
    "data": {"source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 20}},
    "federation": {"rounds": 2},
    "engine": {"name": "inline"},
    "tracking": {"console": "quiet", "tensorboard": False},
}


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What one test imports, the next finds anew."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_module_of_a_user", None)
    search([])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and a module beside it; the current folder is another one."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "own_module_of_a_user.py").write_text(MODULE)
    (tmp_path / "project" / "c.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def weights(run: fedlab.Run) -> str:
    return hash_tensors(run.model.state_dict())


def without_pythonpath() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture
def fedlab_command(forks: Forks) -> Command:
    """``fedlab_command(words, folder)`` runs the installed command in a folder, without PYTHONPATH."""
    installed = Path(sys.executable).parent / "fedlab"
    return lambda words, folder: forks.run([installed, *words], cwd=folder, env=without_pythonpath(), reports=False)


def test_the_command_finds_the_module_beside_the_file_and_its_report_s_command_repeats_the_run(
    project: Path, fedlab_command: Command
) -> None:
    done = fedlab_command(["run", "../project/c.yaml", "--name", "first"], Path.cwd())
    assert done.returncode == 0, done.stderr
    first = fedlab.load(Path("runs/first"))
    assert first.config.method.name == "own_module_of_a_user:Mine"
    assert first.config.modules == (str(project),)
    told = repeat(RunRecord.open(first.path))
    assert told["directory"] == str(Path.cwd())
    again = fedlab_command(shlex.split(told["from_folder"])[1:], first.path)
    assert again.returncode == 0, again.stderr
    (second,) = (path for path in Path("runs").iterdir() if path.name != "first")
    assert weights(fedlab.load(second)) == weights(first)


def test_it_is_found_in_the_current_folder_too_and_named_on_the_command_line(
    project: Path, fedlab_command: Command
) -> None:
    words = [
        "config",
        "check",
        "supervised",
        "--set",
        "method=own_module_of_a_user:Mine",
        "--set",
        "engine.name=inline",
    ]
    assert "No module named" not in fedlab_command(words, project).stdout
    with pytest.raises(ConfigErrors) as caught:
        fedlab.run({**TINY})
    assert f"looked among the installed modules, on PYTHONPATH and in {Path.cwd()}" in caught.value.errors[0].fix


def test_workers_find_it(ray_running: None, project: Path) -> None:
    ray = ["engine.name=ray", "engine.workers=1", "tracking.folder=runs"]
    with_workers = fedlab.run(project / "c.yaml", overrides=ray)
    assert weights(with_workers) == weights(fedlab.run(project / "c.yaml"))


def test_a_run_goes_on_in_a_process_that_knows_nothing_of_the_module(project: Path, fedlab_command: Command) -> None:
    half = fedlab.run(project / "c.yaml", until=1)
    whole = fedlab.run(project / "c.yaml")
    done = fedlab_command(["resume", str(half.path)], project.parent)
    assert done.returncode == 0, done.stderr
    assert weights(fedlab.load(half.path)) == weights(whole)


def test_without_its_module_a_run_is_refused_with_the_places_that_were_looked_at(project: Path) -> None:
    run = fedlab.run(project / "c.yaml", until=1)
    (project / "own_module_of_a_user.py").unlink()
    del sys.modules["own_module_of_a_user"]
    with pytest.raises(ConfigErrors, match="own_module_of_a_user:Mine") as caught:
        fedlab.resume(run.path)
    assert str(project) in caught.value.errors[0].fix


def test_a_class_given_as_an_object_is_found_again_where_it_came_from(
    project: Path, fedlab_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project)
    run = fedlab.run({**TINY, "method": "supervised"}, method=load_reference("own_module_of_a_user:Mine", "method"))
    assert run.config.modules == (str(project),)
    again = fedlab_command(["run", "config.yaml", "--folder", "again"], run.path)
    assert again.returncode == 0, again.stderr
    (second,) = (run.path / "again").iterdir()
    assert weights(fedlab.load(second)) == weights(run)


# names that are taken


def test_a_module_does_not_take_the_place_of_one_of_the_standard_library(project: Path) -> None:
    (project / "statistics.py").write_text(MODULE)
    with pytest.raises(ConfigErrors) as caught:
        fedlab.run(project / "c.yaml", overrides=["method=statistics:Mine"])
    assert f"{project / 'statistics.py'} is not used: the name 'statistics' is taken by" in caught.value.errors[0].fix
    import statistics

    assert "Mine" not in vars(statistics)


def test_a_module_does_not_take_the_place_of_fedlab(project: Path) -> None:
    (project / "fedlab").mkdir()
    (project / "fedlab" / "__init__.py").write_text("raise RuntimeError('not this one')")
    # afresh: a fork has imported FedLab
    command = [Path(sys.executable).parent / "fedlab", "config", "check", "c.yaml", "--set", "engine.name=inline"]
    done = subprocess.run(command, cwd=project, env=without_pythonpath(), capture_output=True, text=True, check=False)
    assert "not this one" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_module_of_the_same_name_in_two_projects_is_not_mixed_up(project: Path) -> None:
    configure(project / "c.yaml")
    other = project.parent / "other"
    other.mkdir()
    (other / "own_module_of_a_user.py").write_text(MODULE.replace("2 *", "3 *"))
    (other / "c.yaml").write_text(yaml.safe_dump(TINY))
    with pytest.raises(ConfigErrors, match="one module of that name") as caught:
        fedlab.run(other / "c.yaml")
    assert str(other / "own_module_of_a_user.py") in caught.value.errors[0].fix
    assert str(project / "own_module_of_a_user.py") in caught.value.errors[0].fix


def test_only_folders_that_are_needed_are_recorded(project: Path) -> None:
    assert configure(project / "c.yaml", ["method=supervised"]).modules == ()
    assert home("os:path") is None
