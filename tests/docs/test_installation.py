"""The page on installing agrees with what is installed: versions, extras, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_the_version_of_pytorch_is_that_of_the_constraints() -> None:
    (pinned,) = re.findall(r"^torch==(.+)$", CONSTRAINTS, re.MULTILINE)
    assert f'"torch=={pinned}"' in PAGE
    assert set(re.findall(r"PyTorch (\d+\.\d+)", PAGE)) == {pinned.rpartition(".")[0]}
    (least,) = re.findall(r"torch>=(\S+)", " ".join(PROJECT["dependencies"]))
    assert f"({least} or newer)" in PAGE


def test_what_the_constraints_leave_out_is_named() -> None:
    assert all(name in PAGE for name in re.findall(r"^(\w+)<0$", CONSTRAINTS, re.MULTILINE))


def test_every_extra_of_the_page_exists_and_those_of_users_are_named() -> None:
    named = set(re.findall(r"'\.\[(\w+)\]'", PAGE))
    assert named <= set(PROJECT["optional-dependencies"])
    assert {"mlflow", "audio", "points", "dp", "dev"} <= named


def test_the_least_version_of_python_is_that_of_the_package() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert "Python 3.11 or newer" in PAGE


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"\bmake ([a-z-]+)", PAGE)) - {"demo"} | {"demo"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), targets
