"""The files that say which data a node or the server of a deployment has of its own, with absolute paths."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from fedlab.config import Section, parse
from fedlab.config.node import NodeConfig, ServerConfig, read_node, read_server
from fedlab.config.walk import Walk, place_of
from fedlab.data.sources import SOURCES
from fedlab.errors import ConfigError
from fedlab.registry import Registry

S = TypeVar("S", bound=Section)


def located_node(path: str | Path) -> NodeConfig:
    """The file of a node. Relative paths in it start from the file's folder.

    Raises:
        ConfigErrors: the file cannot be read, or keys are unknown or have wrong values.
    """
    return _located(read_node(path), path)


def located_server(path: str | Path) -> ServerConfig:
    """The file of the server. Relative paths in it start from the file's folder.

    Raises:
        ConfigErrors: the file cannot be read, or keys are unknown or have wrong values.
    """
    return _located(read_server(path), path)


def _located(found: S, path: str | Path) -> S:
    folder = Path(path).expanduser().absolute().parent
    walk = Walk[Registry]({"data": SOURCES}, _settings, visit=lambda kind, text, key: place_of(kind, text, folder))
    return parse(type(found), walk.of(type(found), found.model_dump(mode="json")))


def _settings(registry: Registry, name: str) -> type[BaseModel] | None:
    """The class of a source's settings; None if there is no such source, which `build_source` refuses."""
    try:
        found: type[BaseModel] | None = getattr(registry.find(name), "Settings", None)
    except ConfigError:
        return None
    return found
