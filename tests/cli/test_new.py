"""`fedlab new`: what it writes runs, its tests pass, and it overwrites nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab
from tests.forks import Forks

ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., Any]

WRITTEN = {
    "method": ["mine.py", "mine.yaml", "test_mine.py"],
    "strategy": ["mine.py", "mine.yaml", "test_mine.py"],
    "project": [
        ".gitignore", "README.md", "config.yaml", "mine_data.py", "mine_method.py", "test_mine_data.py",
        "test_mine_method.py",
    ],
}  # fmt: skip


def made(cli: Cli, tmp_path: Path, kind: str) -> Path:
    """The folder with a skeleton."""
    done = cli("new", kind, "mine")
    assert done.exit_code == 0, done.output
    return tmp_path / "mine" if kind == "project" else tmp_path


@pytest.mark.parametrize("kind", WRITTEN)
def test_all_files_are_written_and_named(cli: Cli, tmp_path: Path, kind: str) -> None:
    folder = made(cli, tmp_path, kind)
    assert sorted(path.name for path in folder.iterdir()) == WRITTEN[kind]
    if kind == "project":
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_output_says_what_to_do_next(cli: Cli) -> None:
    assert cli("new", "method", "mine").output.splitlines() == [
        "written: mine.py",
        "written: mine.yaml",
        "written: test_mine.py",
        "run it:  fedlab run mine.yaml",
        "test it: pytest test_mine.py",
    ]
    assert (
        "run it:  cd study && fedlab run config.yaml\ntest it: cd study && pytest\n"
        in cli("new", "project", "study").output
    )


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_written_is_clean(cli: Cli, tmp_path: Path, kind: str) -> None:
    """By the rules of this repository, in which a user's method may end up."""
    folder = made(cli, tmp_path, kind)
    check = ("check", "--config", ROOT / "pyproject.toml", "--ignore", "D103")  # a test needs no docstring
    for words in (check, ("format", "--check", "--line-length", "120")):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *map(str, words), "--no-cache", "."],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.programs
@pytest.mark.parametrize("kind", WRITTEN)
def test_its_own_tests_pass_and_notice_a_mistake(cli: Cli, tmp_path: Path, kind: str, forks: Forks) -> None:
    folder = made(cli, tmp_path, kind)

    def tests() -> Any:
        command = [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider"]
        return forks.run(command, cwd=folder, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, reports=False)

    done = tests()
    assert done.returncode == 0, done.stdout + done.stderr
    module = next(folder / name for name in ("mine.py", "mine_method.py") if (folder / name).exists())
    text = module.read_text(encoding="utf-8")
    for right, wrong in (("label_smoothing=self.settings.smoothing", ""), ("np.float32(self.settings.server_lr)", "1")):
        text = text.replace(right, wrong)
    module.write_text(text, encoding="utf-8")
    done = tests()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_the_" in done.stdout  # that of the formula, or of the way that the server goes
    assert "1 failed" in done.stdout, done.stdout


@pytest.mark.parametrize("kind", WRITTEN)
def test_its_configuration_runs(cli: Cli, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under names of their own, because this process keeps the modules that it has imported."""
    name = f"skeleton_{kind}"
    assert cli("new", kind, name).exit_code == 0
    config = tmp_path / name / "config.yaml" if kind == "project" else tmp_path / f"{name}.yaml"
    monkeypatch.syspath_prepend(config.parent)
    fewer = ["federation.rounds=1", "tracking.console=quiet", "tracking.tensorboard=false"]
    run = fedlab.run(config, overrides=fewer)
    assert run.metrics["mean"]["accuracy"] > 0.1
    assert run.data["samples"] if "samples" in run.data else run.data["name"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mean-Teacher", "e.g. mean_teacher"),
        ("MeanTeacher", "e.g. mean_teacher"),
        ("2nd", "e.g. nd"),
        ("../up", "e.g. up"),
        ("", "e.g. my_method"),
        ("class", "no word of the Python language"),
        ("none", "no word of the Python language"),
        ("test_me", "does not begin with test_"),
        ("json", "in the standard library"),
        ("torch", "site-packages"),
        ("method", "not called Method"),
    ],
)
def test_a_bad_name_is_refused_and_nothing_written(cli: Cli, tmp_path: Path, name: str, said: str) -> None:
    done = cli("new", "method", name)
    assert done.exit_code == 2
    assert said in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["strategy", "method"])
@pytest.mark.parametrize("there", ["mine.py", "mine.yaml", "test_mine.py"])
def test_no_file_is_overwritten(cli: Cli, tmp_path: Path, kind: str, there: str) -> None:
    (tmp_path / there).write_text("precious")
    done = cli("new", kind, "mine")
    assert done.exit_code == 2
    assert f"there is {there}" in done.output
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"


def test_a_project_needs_a_folder_of_its_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = cli("new", "project", "mine")
    assert done.exit_code == 2
    assert "there is mine" in done.output
    assert list((tmp_path / "mine").iterdir()) == []


def test_an_unwritable_folder_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlab.cli.skeletons.why_unwritable", lambda folder: "it is read-only")
    done = cli("new", "method", "mine")
    assert done.exit_code == 2
    assert "it is read-only" in done.output
