"""A user's own method: passed to `fedlab.run`, named in a configuration, and published by another package."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import fedlab
from fedlab.assembly import METHODS
from fedlab.clients.state import StateStore
from fedlab.errors import ConfigError, ConfigErrors
from tests.forks import Forks

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SMALL = (
    "engine.name=inline",
    "model.width=8",
    "data.source.train_per_domain=60",
    "data.source.test_per_domain=20",
    "federation.rounds=2",
    "tracking.tensorboard=false",
    "tracking.console=quiet",
)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """examples/custom_method.py, as a user beside it would import it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module("custom_method")
    sys.modules.pop("custom_method", None)


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    return [*SMALL, f"tracking.folder={tmp_path / 'runs'}", f"tracking.cache={tmp_path / 'cache'}"]


def checkpoint(run: fedlab.Run) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run.checkpoint / "tensors.safetensors")


def test_a_method_class_is_run_with_the_settings_of_the_configuration(example: ModuleType, small: list[str]) -> None:
    run = fedlab.run(
        "supervised", method=example.MeanTeacher, overrides=[*small, "method.decay=0.5", "method.agreement=0.25"]
    )
    assert run.config.method.name == "custom_method:MeanTeacher"
    assert (run.config.method.settings["decay"], run.config.method.settings["agreement"]) == (0.5, 0.25)
    assert 0 <= run.metrics["mean"]["accuracy"] <= 1
    assert set(run.model) == {"student", "teacher"}


def test_only_the_student_travels_and_every_client_keeps_a_teacher(example: ModuleType, small: list[str]) -> None:
    run = fedlab.run("supervised", method=example.MeanTeacher(), overrides=small)
    size = sum(value.numel() * value.element_size() for value in run.model["student"].state_dict().values())
    assert [done["bytes_up"] for done in run.history.rounds] == [5 * size, 5 * size]
    store = StateStore(run.path / "clients")
    teachers = [store.load(client, 2)["network/teacher.head.weight"] for client in range(5)]
    assert len({tuple(teacher.flatten().tolist()) for teacher in teachers}) == 5, "each follows its own student"


def test_agreement_changes_what_is_learnt(example: ModuleType, small: list[str]) -> None:
    def weights(agreement: float) -> dict[str, torch.Tensor]:
        chosen = example.MeanTeacher(example.MeanTeacher.Settings(agreement=agreement, decay=0.5))
        return checkpoint(fedlab.run("supervised", method=chosen, overrides=[*small, "federation.rounds=1"]))

    with_teacher, without = weights(1.0), weights(0.0)
    assert any(not torch.equal(with_teacher[name], without[name]) for name in without)


def test_the_teacher_is_the_moving_average_of_the_student(example: ModuleType) -> None:
    method = example.MeanTeacher(example.MeanTeacher.Settings(decay=0.75))
    networks = nn.ModuleDict({"student": nn.Linear(1, 1, bias=False), "teacher": nn.Linear(1, 1, bias=False)})
    with torch.no_grad():
        networks["student"].weight.fill_(4.0)
        networks["teacher"].weight.fill_(0.0)
    step: Any = None
    seen = []
    for _ in range(3):
        method.after_step(networks, step)
        seen.append(networks["teacher"].weight.item())
    assert seen == [1.0, 1.75, 2.3125]


def test_a_setting_the_method_does_not_have_is_refused_before_anything_is_written(
    example: ModuleType, small: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigErrors, match=r"method\.decai.*\n.*no such key\n.*'decay'"):
        fedlab.run("supervised", method=example.MeanTeacher, overrides=[*small, "method.decai=0.5"])
    assert not (tmp_path / "runs").exists()


def test_a_method_of_another_package_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: list[str]
) -> None:
    site = publish(tmp_path, "mean_teacher = their_package:MeanTeacher")
    (site / "their_package.py").write_text((EXAMPLES / "custom_method.py").read_text(encoding="utf-8"))
    monkeypatch.syspath_prepend(site)
    assert "mean_teacher" in METHODS.names()
    assert "mean_teacher" not in METHODS.builtin
    run = fedlab.run("supervised", overrides=[*small, "federation.rounds=1", "method=mean_teacher", "method.decay=0.5"])
    sys.modules.pop("their_package", None)
    assert run.config.method.name == "mean_teacher"
    assert any(name.startswith("network/student.") for name in checkpoint(run))


def test_an_entry_point_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(publish(tmp_path, "broken = no_such_package:Method"))
    with pytest.raises(ConfigError, match="no_such_package"):
        METHODS.find("broken")


@pytest.mark.programs
def test_the_example_runs_as_a_script(tmp_path: Path, forks: Forks) -> None:
    cache = {**os.environ, "FEDLAB_CACHE": str(tmp_path / "cache")}
    done = forks.run([EXAMPLES / "custom_method.py", *SMALL], cwd=tmp_path, env=cache)
    assert done.returncode == 0, done.stderr
    assert "mean accuracy" in done.stdout
    assert len(list((tmp_path / "runs").glob("*/report.html"))) == 1


def publish(folder: Path, entry_point: str) -> Path:
    """A folder with an installed distribution that offers one method."""
    site = folder / "site"
    information = site / "their_package-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[fedlab.methods]\n{entry_point}\n")
    return site
