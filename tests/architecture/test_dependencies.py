"""What the wheel imports is declared, and what is declared is used."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# needed by another dependency, which does not ask for them itself
UNSEEN = {"tensorboard": "torch.utils.tensorboard writes with it"}
# extras with tools of development, which the package does not import
TOOLS = {"dev", "docs", "mutation"}


def names(requirements: list[str]) -> set[str]:
    """Names of distributions as pip compares them."""
    return {canonical(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]) for requirement in requirements}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# programs that an extra brings along, which nothing imports
PROGRAMS = {"jupyterlab"}
NEEDED = names(PROJECT["dependencies"])
EXTRAS = {name: names(found) for name, found in PROJECT["optional-dependencies"].items() if name not in TOOLS}
# modules of extras that need not be installed here
MODULES = {"mlflow": "mlflow-skinny", "wandb": "wandb", "optuna": "optuna", "soundfile": "soundfile"}


@pytest.fixture(scope="module")
def imported(sources: list[Any]) -> dict[str, list[str]]:
    """The files that import each distribution beside the standard library and FedLab."""
    known = importlib.metadata.packages_distributions()
    found: dict[str, list[str]] = {}
    for source in sources:
        for one in source.imports:
            top = one.module.split(".")[0]
            if top != "fedlab" and top not in sys.stdlib_module_names:
                places = known.get(top, [])
                name = MODULES.get(top) or (places[0] if places else top)
                found.setdefault(canonical(name), []).append(f"{source.shown}:{one.line}")
    return found


def test_what_is_imported_is_declared(imported: dict[str, list[str]]) -> None:
    declared = NEEDED.union(*EXTRAS.values())
    assert not {name: places[:3] for name, places in imported.items() if name not in declared}


def test_what_is_declared_is_imported(imported: dict[str, list[str]]) -> None:
    assert not NEEDED - imported.keys() - UNSEEN.keys()
    assert not {name: unused for name, found in EXTRAS.items() if (unused := found - imported.keys() - PROGRAMS)}
    assert not UNSEEN.keys() - NEEDED
    assert not UNSEEN.keys() & imported.keys(), "these are seen, and need no reason"
