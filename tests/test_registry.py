from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from fedlab.config import Component, Config
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.registry import KINDS, Registry


@pytest.fixture
def registry() -> Registry:
    return Registry("widget", {"path": "pathlib:Path", "broken": "fedlab.nowhere:X"}, "fedlab.test_widgets")


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_widget.py").write_text(
        "from fedlab.config import Section\n"
        "class Outer:\n"
        "    class Widget:\n"
        "        class Settings(Section):\n"
        "            size: int = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_widget", raising=False)
    return "own_widget"


def test_a_built_in_name_is_imported(registry: Registry) -> None:
    assert registry.find("path") is Path


def test_listing_imports_nothing(registry: Registry) -> None:
    assert registry.names() == ["broken", "path"]
    assert "fedlab.nowhere" not in sys.modules


def test_a_reference_to_ones_own_module_is_imported(registry: Registry, module: str) -> None:
    found, settings = registry.configured(Component(name=f"{module}:Outer.Widget", size=5), "widget")
    assert found.__name__ == "Widget"
    assert settings.size == 5


def test_components_of_other_packages_are_found(
    registry: Registry, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [
        importlib.metadata.EntryPoint("theirs", f"{module}:Outer", "fedlab.test_widgets"),
        importlib.metadata.EntryPoint("gone", "no_such_package:X", "fedlab.test_widgets"),
    ]
    monkeypatch.syspath_prepend("/no/packages/here")  # what is installed is looked up once for a path
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [p for p in points if p.group == group])
    assert registry.names() == ["broken", "path", "gone", "theirs"]
    assert registry.find("theirs").__name__ == "Outer"
    with pytest.raises(ConfigError, match="no_such_package"):
        registry.find("gone")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pathh", "did you mean 'path'"),
        ("zzz", "known: broken, path"),
        ("broken", "importable module:Class"),
        ("no_such_module_at_all:X", "PYTHONPATH"),
        ("pathlib:Nothing", "Nothing"),
        ("pathlib:", "dotted names"),
        (":Path", "dotted names"),
        (".relative:X", "dotted names"),
        ("a:b:c", "dotted names"),
        ("..:..", "dotted names"),
    ],
)
def test_a_wrong_name_says_what_is_wrong(registry: Registry, name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        registry.find(name, "some.key")
    assert caught.value.key == "some.key"


@pytest.mark.parametrize("name", ["pathlib:Path", "os:sep", "os:getcwd"])
def test_what_has_no_settings_is_no_component(registry: Registry, name: str) -> None:
    with pytest.raises(ConfigError, match="nested class Settings"):
        registry.configured(Component(name=name), "widget")


def test_wrong_settings_are_named(registry: Registry, module: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        registry.configured(Component(name=f"{module}:Outer.Widget", sise=5), "some.widget")
    assert caught.value.errors[0].key == "some.widget.sise"
    assert "did you mean 'size'" in str(caught.value)


def test_an_error_in_the_users_own_module_is_not_hidden(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_widget.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        registry.find("faulty_widget:X")


def test_every_component_of_a_configuration_is_of_a_declared_kind() -> None:
    """A section's fields that take components, and the table from which lists, defaults and references are made."""

    def keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in section.model_fields.items():
            if "Component" in repr(field.annotation):
                yield f"{prefix}{name}"
            elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from keys(field.annotation, f"{prefix}{name}.")

    assert {kind.key for kind in KINDS} == set(keys(Config))
    assert len({word for kind in KINDS for word in (kind.plural, *kind.aliases)}) == sum(
        1 + len(kind.aliases) for kind in KINDS
    )
