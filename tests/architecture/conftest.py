"""The built wheel as the architecture tests see it."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("clients", "server", "methods")


@dataclass(frozen=True)
class Import:
    """One imported module; ``name`` is what ``from`` asks of it."""

    module: str
    name: str
    line: int
    top_level: bool


@dataclass(frozen=True)
class Source:
    """One Python file of the package."""

    path: Path
    module: str
    root: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), self.path.name)

    @property
    def shown(self) -> str:
        """Its path in the wheel."""
        return self.path.relative_to(self.root).as_posix()

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, self.root, top_level=True))


def _imports(node: ast.AST, root: Path, top_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, "", child.lineno, top_level) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            yield from (Import(_whole(root, module, a.name), a.name, child.lineno, top_level) for a in child.names)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from _imports(child, root, top_level=False)
        else:
            is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, root, top_level and not is_function)


def _whole(root: Path, module: str, name: str) -> str:
    """``from fedlab.data import federated`` imports the module ``fedlab.data.federated``."""
    place = root.joinpath(*module.split("."), name)
    is_module = place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
    return f"{module}.{name}" if is_module else module


@pytest.fixture(scope="session")
def sources(site: Path) -> list[Source]:
    """Every Python file that is installed, as the wheel installs it."""
    found = []
    for path in sorted((site / "fedlab").rglob("*.py")):
        dotted = ".".join(path.relative_to(site).with_suffix("").parts).removesuffix(".__init__")
        found.append(Source(path, dotted, site))
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built offline from a copy: building in place would leave files behind."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    for top in ("fedlab", *MAPPED):
        shutil.copytree(ROOT / top, copy / top, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    _pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(copy))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> set[str]:
    """Every file of the package in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files, as pip lays them, to be put on PYTHONPATH, before the editable install."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
