"""What a user installs: the folders, under their import names, with all that is read at run time."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("clients", "server", "methods")


def run(*command: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command that sees the installed wheel only, in a folder of its own."""
    environment = {**os.environ, "PYTHONPATH": str(site), "FEDLAB_CACHE": str(cwd / "cache")}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_holds_exactly_the_files_of_the_folders(wheel_names: set[str]) -> None:
    expected = set()
    for top in ("fedlab", *MAPPED):
        for path in (ROOT / top).rglob("*"):
            inner = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in inner:
                expected.add(inner if top == "fedlab" else f"fedlab/{inner}")
    assert wheel_names == expected


def test_every_folder_with_python_files_is_a_package() -> None:
    """setuptools would leave out a folder without ``__init__.py``."""
    folders = {path.parent for top in ("fedlab", *MAPPED) for path in (ROOT / top).rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_data_files_and_the_typing_marker_are_in_the_wheel(wheel_names: set[str]) -> None:
    assert {
        "fedlab/py.typed",
        "fedlab/methods/fedlgd/config.yaml",
        "fedlab/methods/fedlgd/acceptance.yaml",
        "fedlab/methods/dcglr/outcome.json",
    } <= wheel_names
    assert {suffix for suffix in (".j2", ".css") if any(name.endswith(suffix) for name in wheel_names)} == {
        ".j2",
        ".css",
    }


def test_no_dependency_brings_what_needs_cuda_torch(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        requirements = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])
    assert any(requirement.startswith("torch>=") for requirement in requirements)
    banned = ("torchvision", "torchaudio", "timm")
    assert not [requirement for requirement in requirements if requirement.startswith(banned)]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {f"{name}<0" for name in banned} <= set(constraints), "pip refuses whatever asks for them"


@pytest.mark.programs
def test_the_installed_packages_import_by_their_own_names(site: Path, tmp_path: Path) -> None:
    program = """
import fedlab, fedlab.clients.app, fedlab.server.app, fedlab.experiment.start
from fedlab.assembly import METHODS
print(fedlab.__file__, *(METHODS.find(name).__module__ for name in METHODS.names()))
"""
    done = run(sys.executable, "-c", program, site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    place, *methods = done.stdout.split()
    assert Path(place).is_relative_to(site)
    assert "fedlab.methods.fedlgd.method" in methods
    assert len(methods) == len(list((ROOT / "methods").glob("*/method.py")))


@pytest.mark.programs
@pytest.mark.parametrize("arguments", [("--help",), ("config", "show", "fedlgd")])
def test_the_command_works_from_the_wheel(site: Path, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (file,) = site.glob("*.dist-info/entry_points.txt")
    entries = configparser.ConfigParser()
    entries.read(file)
    module, _, function = entries["console_scripts"]["fedlab"].partition(":")
    script = f"import sys; from {module} import {function}; sys.exit({function}())"  # as pip writes it
    done = run(sys.executable, "-c", script, *arguments, site=site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fedl" in done.stdout.lower()
    assert not list(tmp_path.iterdir())
