"""The map of the code names what there is, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOPS = ("fedlab", "clients", "server", "methods")


def packages() -> list[str]:
    """Every folder of the package that holds Python files, but for those of single methods."""
    found = {path.parent.relative_to(ROOT).as_posix() for top in TOPS for path in (ROOT / top).rglob("*.py")}
    return sorted(name for name in found if not re.match(r"methods/.|fedlab$", name))


@pytest.mark.parametrize("package", packages())
def test_every_package_is_on_the_map(package: str) -> None:
    assert f"`{package}/`" in PAGE


def test_every_path_on_the_map_exists() -> None:
    named = set(re.findall(r"`((?:fedlab|clients|server|methods|tests)/[\w/.]*)`", PAGE))
    assert len(named) > 50
    assert [name for name in sorted(named) if "<" not in name and not (ROOT / name).exists()] == []


def test_every_identifier_of_a_class_on_the_map_is_in_the_code() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for top in TOPS for path in (ROOT / top).rglob("*.py"))
    for name in re.findall(r"`([A-Z]\w+)(?:\.\w+)?`", PAGE):
        assert re.search(rf"^class {name}\b|^    class {name}\b", source, re.M), name


def test_every_layer_of_the_architecture_test_is_drawn() -> None:
    layers = (ROOT / "tests" / "architecture" / "test_imports.py").read_text(encoding="utf-8")
    table = re.search(r"^LAYERS = \((.*?)^\)", layers, re.S | re.M)
    assert table is not None
    drawing = PAGE.split("```")[1]
    for part in re.findall(r'"(\w+)"', table[1]):
        assert part == "_environment" or re.search(rf"\b{part}\b", drawing), part
