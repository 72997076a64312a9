"""Writes the file by which a node knows its site and its data, for this machine and for containers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlab.config.yamltree import dump_yaml
from fedlab.experiment.components import located
from fedlab.storage.paths import PathKind
from fedlab.storage.runfolder import write_atomic

_READ = ("input", "hub", "weights")


def write_node_file(path: Path, site: str, data: Mapping[str, Any], state: Path | str) -> None:
    """Write a node's file.

    Args:
        path: the file.
        site: name of the site.
        data: the source of its data, with absolute paths.
        state: folder for all that never leaves the node.
    """
    told = "# written by `fedlab deploy`; change it with its commands\n"
    write_atomic(path, told + dump_yaml({"site": site, "data": dict(data), "state": str(state)}))


def mounted(data: Mapping[str, Any], inside: Path) -> tuple[Path | None, dict[str, Any]]:
    """A source of data as a container sees it.

    Args:
        data: the source, with absolute paths.
        inside: where the container has the data.

    Returns:
        The folder of this machine that the container needs, None if the source reads no files; and the source with
        paths below `inside`.
    """
    found: list[Path] = []

    def note(kind: PathKind, text: str, key: str) -> str:
        if kind.kind in _READ and Path(text).is_absolute():
            found.append(Path(text))
        return text

    _visited(data, note)
    if not found:
        return None, dict(data)
    common = Path(os.path.commonpath(found))
    common = common if common.is_dir() else common.parent

    def moved(kind: PathKind, text: str, key: str) -> str:
        path = Path(text)
        if kind.kind not in _READ or not path.is_absolute():
            return text
        return str(inside if path == common else inside / path.relative_to(common))

    return common, _visited(data, moved)


def _visited(data: Mapping[str, Any], visit: Any) -> dict[str, Any]:
    raw = located({"data": {"source": dict(data)}}, visit)
    return dict(raw["data"]["source"])
