"""Rules of the code that ruff does not know."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 400


def test_no_file_is_longer_than_400_lines() -> None:
    folders = ("fedlab", "clients", "server", "methods", "tests", "examples", "benchmarks", "docker")
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert lengths
    assert not {name: lines for name, lines in lengths.items() if lines > LONGEST}


def test_every_public_function_and_class_says_what_it_is(sources: list[Any]) -> None:
    silent = [
        f"{source.shown}:{node.lineno}: {node.name}"
        for source in sources
        for node in source.tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert not silent


def test_every_module_with_code_says_what_it_is(sources: list[Any]) -> None:
    assert not [source.shown for source in sources if source.tree.body and not ast.get_docstring(source.tree)]


def test_the_newest_entry_of_the_changelog_is_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert project["version"] in headings[:2], "the newest heading, or the one below [Unreleased]"


def test_every_test_marker_is_declared_and_has_a_make_target() -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"][
        "markers"
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    promised = {target for marker in markers for target in re.findall(r"make ([a-z-]+)", marker)}
    assert promised
    assert not {target for target in promised if not re.search(rf"^{target}:", makefile, re.MULTILINE)}


def test_the_citation_names_the_version_and_the_license_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
