"""Writes the files by which a node and the server know their data, for this machine and for containers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlab.config.walk import Visit
from fedlab.config.yamltree import dump_yaml
from fedlab.deployment.project import TOLD
from fedlab.experiment.components import located
from fedlab.storage.paths import PathKind
from fedlab.storage.runfolder import write_atomic

_READ = ("input", "hub", "weights")


def write_node_file(
    path: Path, site: str, data: Mapping[str, Any], state: Path | str, allow: Sequence[str] = ()
) -> None:
    """Write a node's file.

    Args:
        path: the file.
        site: name of the site.
        data: the source of its data, with absolute paths.
        state: folder for all that never leaves the node.
        allow: see `fedlab.config.node.NodeConfig`.
    """
    allowed = {"allow": list(allow)} if allow else {}
    write_atomic(path, TOLD + dump_yaml({"site": site, "data": dict(data), "state": str(state), **allowed}))


def write_server_file(path: Path, sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the file by which the server knows its own sets of samples.

    Args:
        path: the file.
        sets: the source of each set by its name, with absolute paths.
    """
    write_atomic(path, TOLD + dump_yaml({"data": {name: dict(source) for name, source in sets.items()}}))


def mounted(sources: Mapping[str, Mapping[str, Any]], inside: Path) -> tuple[Path | None, dict[str, dict[str, Any]]]:
    """Sources of data as a container sees them.

    Args:
        sources: by any name, with absolute paths.
        inside: where the container has the data.

    Returns:
        The folder of this machine that the container needs, None if the sources read no files; and the sources with
        paths below `inside`.
    """
    found: list[Path] = []

    def note(kind: PathKind, text: str, key: str) -> str:
        if kind.kind in _READ and Path(text).is_absolute():
            found.append(Path(text))
        return text

    for source in sources.values():
        _visited(source, note)
    if not found:
        return None, {name: dict(source) for name, source in sources.items()}
    common = Path(os.path.commonpath(found))
    common = common if common.is_dir() else common.parent

    def moved(kind: PathKind, text: str, key: str) -> str:
        path = Path(text)
        if kind.kind not in _READ or not path.is_absolute():
            return text
        return str(inside / path.relative_to(common))

    return common, {name: _visited(source, moved) for name, source in sources.items()}


def _visited(data: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
    raw = located({"data": {"source": dict(data)}}, visit)
    return dict(raw["data"]["source"])
