"""Writes the files by which a node and the server know their data, for this machine and for containers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.config.node import read_node
from fedlab.config.walk import Visit
from fedlab.config.yamltree import dump_yaml
from fedlab.deployment.project import TOLD
from fedlab.experiment.components import located
from fedlab.storage.paths import PathKind
from fedlab.storage.runfolder import write_atomic

_READ = ("input", "hub", "weights")


@dataclass(frozen=True)
class Mounted:
    """What a container sees of a machine's files.

    Args:
        folder: the folder of this machine that the container needs; None if no files are read.
        sources: sources of data by name, with paths as the container has them.
        assets: files of the method's assets by name, likewise.
    """

    folder: Path | None
    sources: dict[str, dict[str, Any]]
    assets: dict[str, str]


def operators_own(path: Path) -> dict[str, Any]:
    """What only the operator of a node writes into its file, so that a new file of the same node keeps it.

    Raises:
        ConfigErrors: the file cannot be read, or has unknown keys or wrong values.
    """
    return read_node(path).model_dump(include={"allow", "kept_runs"}, exclude_defaults=True)


def write_node_file(
    path: Path,
    site: str,
    data: Mapping[str, Any],
    state: Path | str,
    assets: Mapping[str, str],
    decided: Mapping[str, Any] | None = None,
) -> None:
    """Write a node's file.

    Args:
        path: the file.
        site: name of the site.
        data: the source of its data, with absolute paths.
        state: folder for all that never leaves the node.
        assets: files of the method's assets, by name, with absolute paths.
        decided: what `operators_own` found in the file that this one takes the place of.
    """
    given = {"assets": dict(assets)} if assets else {}
    described = {"site": site, "data": dict(data), **given, "state": str(state), **(decided or {})}
    write_atomic(path, TOLD + dump_yaml(described))


def write_server_file(path: Path, sets: Mapping[str, Mapping[str, Any]], assets: Mapping[str, str]) -> None:
    """Write the file by which the server knows its own sets of samples and assets.

    Args:
        path: the file.
        sets: the source of each set by its name, with absolute paths.
        assets: files of the method's assets, by name, with absolute paths.
    """
    given = {"assets": dict(assets)} if assets else {}
    write_atomic(path, TOLD + dump_yaml({"data": {name: dict(source) for name, source in sets.items()}, **given}))


def mounted(sources: Mapping[str, Mapping[str, Any]], assets: Mapping[str, str], inside: Path) -> Mounted:
    """Sources of data and files of assets as a container sees them.

    Args:
        sources: by any name, with absolute paths.
        assets: files of the method's assets, by name, with absolute paths.
        inside: where the container has the folder in which all of them lie.
    """
    found: list[Path] = []

    def note(kind: PathKind, text: str, key: str) -> str:
        if kind.kind in _READ and Path(text).is_absolute():
            found.append(Path(text))
        return text

    for source in sources.values():
        _visited(source, note)
    _visited_assets(assets, note)
    if not found:
        return Mounted(None, {name: dict(source) for name, source in sources.items()}, dict(assets))
    common = Path(os.path.commonpath(found))
    common = common if common.is_dir() else common.parent

    def moved(kind: PathKind, text: str, key: str) -> str:
        path = Path(text)
        if kind.kind not in _READ or not path.is_absolute():
            return text
        return str(inside / path.relative_to(common))

    placed = {name: _visited(source, moved) for name, source in sources.items()}
    return Mounted(common, placed, _visited_assets(assets, moved))


def _visited(data: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    raw = located({"data": {"source": dict(data)}}, visit)
    return dict(raw["data"]["source"])


def _visited_assets(assets: Mapping[str, str], visit: Visit) -> dict[str, str]:
    return dict(located({"data": {"assets": dict(assets)}}, visit)["data"]["assets"])
