"""The setup of a client in a deployment, made from Flower's run configuration and node configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedlab.assembly import Assembly
from fedlab.clients.runtime import ClientSetup
from fedlab.config.modules import search
from fedlab.data.federated import FederatedData
from fedlab.data.sources import load_source
from fedlab.errors import ConfigError
from fedlab.protocol.runconfig import unpack
from fedlab.storage.paths import flower_home

PARTITION_ID = "partition-id"


def setup_from_context(run_config: Mapping[str, object], node_config: Mapping[str, object], run_id: int) -> ClientSetup:
    """The setup of the client on this node. All files that the client keeps are below the node's ``state-dir``.

    Args:
        run_config: Flower's run configuration; see `fedlab.protocol.runconfig`.
        node_config: Flower's node configuration. ``partition-id`` is the client's id. ``state-dir`` is optional and by
            default ``fedlab/client-ID`` in Flower's folder.
        run_id: Flower's id of the run; client states are kept in a folder for each run.

    Raises:
        ConfigError, ConfigErrors: the configuration is wrong, or ``partition-id`` is no client of the partition.
        DataError: the data cannot be loaded on this node.
    """
    config = unpack(run_config).config
    search([*config.modules, Path.cwd()])
    components = Assembly(config).components()
    data = FederatedData(load_source(config.data.source, config.seed), config.data, config.seed)
    client = _partition_id(node_config, data.num_clients)
    # one folder for each client by default, because the nodes of one machine share Flower's folder
    default = flower_home() / "fedlab" / f"client-{client}"
    root = Path(str(node_config.get("state-dir", default))).expanduser().resolve()
    return ClientSetup(
        components=components,
        federated=data,
        state_root=root / f"run-{run_id}",
        cache_root=root / "cache",  # not tracking.cache as submitted: private results must stay in this folder
    )


def _partition_id(node_config: Mapping[str, object], clients: int) -> int:
    given = node_config.get(PARTITION_ID)
    if isinstance(given, int) and 0 <= given < clients:
        return given
    raise ConfigError(
        f"node-config {PARTITION_ID}",
        given,
        f"0 to {clients - 1}: the run's partition has {clients} clients",
        f'start the node with --node-config "{PARTITION_ID}=I"',
    )
