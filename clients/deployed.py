"""A client's setup on a real node: from Flower's run and node configuration instead of an experiment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from fedlab.clients.runtime import ClientSetup
from fedlab.config import Config, parse
from fedlab.data.federated import FederatedData
from fedlab.data.sources import load_source
from fedlab.errors import ConfigError
from fedlab.job import make_method
from fedlab.paths import cache_folder, flower_home

CONFIG_KEY = "config-json"


def config_from_run(run_config: Mapping[str, object]) -> Config:
    """The configuration a run was submitted with.

    Raises:
        ConfigError, ConfigErrors: it is missing or wrong.
    """
    text = str(run_config.get(CONFIG_KEY, "{}"))
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(CONFIG_KEY, text, "a run configuration as JSON", str(error)) from error
    return parse(Config, raw)


def setup_from_context(run_config: Mapping[str, object], node_config: Mapping[str, object], run_id: int) -> ClientSetup:
    """The setup of the client on this node.

    Args:
        run_config: holds the run's configuration under ``config-json``.
        node_config: ``partition-id``, and optionally ``state-dir``, where the node keeps its own state.
        run_id: Flower's id of the run, which keeps runs apart.
    """
    config = config_from_run(run_config)
    data = FederatedData(load_source(config.data.source, config.seed), config.data, config.seed)
    client = int(str(node_config.get("partition-id", -1)))
    if not 0 <= client < data.num_clients:
        raise ConfigError(
            "node-config partition-id",
            client,
            f"0 to {data.num_clients - 1}: the run's partition has {data.num_clients} clients",
            'start the node with --node-config "partition-id=I"',
        )
    root = Path(str(node_config.get("state-dir", flower_home() / "fedlab-state")))
    return ClientSetup(
        config=config,
        method=make_method(config.method),
        federated=data,
        state_root=root / f"run-{run_id}",
        cache_root=cache_folder(config.tracking.cache),
    )
