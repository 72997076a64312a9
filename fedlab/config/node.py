"""What one machine of a deployment has of its own: the file of a node, and the file of the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedlab.config.base import ComponentField, Section
from fedlab.config.sections import parse, read_yaml
from fedlab.storage.paths import HubPath, MadePath, PathKind, flower_home

NODE_FILE, PARTITION_ID, STATE_DIR = "node-file", "partition-id", "state-dir"
"""Keys of Flower's node configuration: a node with data of its own has the first, one of a demonstration the others."""
ALLOW = "FEDLAB_ALLOW"
"""Environment variable of a node: adds to `NodeConfig.allow`, separated by commas."""

KEPT_RUNS = 20
"""Number of runs whose client states a node keeps if its file does not say otherwise."""

SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Name of a site. It is the client's name in every result, and part of the names of files and containers."""


class NodeConfig(Section):
    """The file of one node; relative paths in it start from the file's folder."""

    site: SiteName = Field(description="name of the site, as the run's configuration lists it in data.source.sites")
    data: ComponentField = Field(description="where this node's own samples come from; see `fedlab list sources`")
    assets: dict[str, HubPath] = Field(
        default={}, description="file or folder of each asset of the method that this node holds, by the asset's name"
    )
    state: MadePath = Field(
        default="state", description="folder for all that never leaves the node: client states and cached results"
    )
    allow: tuple[str, ...] = Field(
        default=(),
        description="what runs may name as module:Class beside FedLab's own components and installed entry points, "
        "because importing it runs its code on this node: module:Class, module, package.* or *",
    )
    kept_runs: int = Field(
        default=KEPT_RUNS, ge=1, description="number of runs whose client states are kept, those that were used last"
    )


class ServerConfig(Section):
    """The file of the server; relative paths in it start from the file's folder."""

    data: dict[str, ComponentField] = Field(
        default={}, description="sets of samples that the server holds, by name; see `fedlab list sources`"
    )
    assets: dict[str, HubPath] = Field(
        default={}, description="file or folder of each asset of the method that the server holds, by the asset's name"
    )


def read_node(path: str | Path) -> NodeConfig:
    """The file of a node, with `NodeConfig.state` as an absolute path.

    Paths in the settings of the node's source stay as they are written; `fedlab.data.own.located_node` makes them
    absolute too. This function imports neither torch nor any source, because it runs before every message.

    Raises:
        ConfigErrors: the file cannot be read, or keys are unknown or have wrong values.
    """
    place = Path(path).expanduser().absolute()
    node = parse(NodeConfig, read_yaml(place))
    return node.model_copy(update={"state": PathKind("made").absolute(node.state, place.parent)})


def allowed_references(node_config: Mapping[str, object]) -> tuple[str, ...]:
    """What a node allows the runs that it is sent to import, by its file and its environment.

    Args:
        node_config: Flower's configuration of the node.

    Raises:
        ConfigErrors: the node's file cannot be read.
    """
    file, listed = node_config.get(NODE_FILE), os.environ.get(ALLOW, "")
    own = read_node(str(file)).allow if file else ()
    return (*own, *filter(None, (part.strip() for part in listed.split(","))))


def state_folder(node_config: Mapping[str, object]) -> Path:
    """The folder for all that never leaves a node, from Flower's configuration of the node.

    Raises:
        ConfigErrors: the node's file cannot be read.
    """
    if file := node_config.get(NODE_FILE):
        return Path(read_node(str(file)).state)
    # one folder for each client by default, because the nodes of one machine share Flower's folder
    default = flower_home() / "fedlab" / f"client-{node_config.get(PARTITION_ID)}"
    return Path(str(node_config.get(STATE_DIR, default))).expanduser().resolve()


def read_server(path: str | Path) -> ServerConfig:
    """The file of the server. Paths in it stay as they are written; see `fedlab.data.own.located_server`.

    Raises:
        ConfigErrors: the file cannot be read, or keys are unknown or have wrong values.
    """
    return parse(ServerConfig, read_yaml(Path(path).expanduser().absolute()))
