"""The setup of a client in a deployment, made from Flower's run configuration and node configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fedlab.assembly import Assembly
from fedlab.clients.kept_runs import forget_old_runs
from fedlab.clients.same_data import check_same_data
from fedlab.clients.setup import ClientSetup
from fedlab.config import Config
from fedlab.config.modules import only, search
from fedlab.config.node import KEPT_RUNS, NODE_FILE, PARTITION_ID, allowed_references, state_folder
from fedlab.data.federated import FederatedData
from fedlab.data.own import located_node
from fedlab.data.sources import load_source
from fedlab.data.sources.sites import OneSite, own_data_settings
from fedlab.errors import UNSET, ConfigError, ConfigErrors, InputError, NoClientError
from fedlab.protocol.runconfig import unpack


def setup_from_context(run_config: Mapping[str, object], node_config: Mapping[str, object], run_id: int) -> ClientSetup:
    """The setup of the client on this node.

    A node brings its own data: its file says which site it is, where its samples are and where it keeps its files. Only
    a run that was submitted with ``--simulate-partition`` has every node load the configured data and take a part.

    Args:
        run_config: Flower's run configuration; see `fedlab.protocol.runconfig`.
        node_config: Flower's node configuration. ``node-file`` is the path of the node's file, see
            `fedlab.config.node.NodeConfig`. For a simulated partition, ``partition-id`` is the client's id, and
            ``state-dir`` the folder for all files that the client keeps; by default ``fedlab/client-ID`` in Flower's
            folder.
        run_id: Flower's id of the run. Client states are kept in a folder for each run, which is named by the run's
            token, or by this id if it was submitted without one.

    Only what the node allows is imported, if this is called within `fedlab.config.modules.only`.

    Raises:
        ConfigError, ConfigErrors: the configuration is wrong, or this node is no client of the run.
        DataError: the data cannot be loaded on this node, or contradicts what the sites have agreed on, or a
            run that goes on began with other data.
    """
    submitted = unpack(run_config)
    config = submitted.config
    if allowed := allowed_references(node_config):  # a folder that a run names must not decide what a node imports
        search([*(config.modules if "*" in allowed else ()), Path.cwd()])
    components = Assembly(config).components()
    own = (_part_of_all if submitted.simulate_partition else _own_data)(config, node_config)
    states = own.root / "runs" / (submitted.token or str(run_id))
    check_same_data(states, own.data.client(own.client))
    forget_old_runs(states.parent, states.name, own.kept_runs)
    return ClientSetup(
        components=components,
        federated=own.data,
        state_root=states,
        cache_root=own.root / "cache",  # not tracking.cache as submitted: private results must stay in this folder
        client=own.client,
        asset_paths=own.assets,
    )


class _Own(NamedTuple):
    """What a node works with in a run: its data, its client's id, its folder, how many runs it keeps there, and the
    paths of the assets that it holds.
    """

    data: FederatedData
    client: int
    root: Path
    kept_runs: int
    assets: Mapping[str, str]


def _own_data(config: Config, node_config: Mapping[str, object]) -> _Own:
    """What a node works with that brings its own data."""
    given = node_config.get(NODE_FILE)
    if not isinstance(given, str) or not given:
        expected = "the path of this node's file, because every node of this run brings its own data"
        fix = f"start the node with --node-config '{NODE_FILE}=\"/path/of/node.yaml\"'"
        raise ConfigError(f"node-config {NODE_FILE}", UNSET if given is None else given, expected, fix)
    with only(None):  # its source is the node's own choice
        node = located_node(given)
    try:
        with only(None):
            site = OneSite(own_data_settings(config.data), node.site, node.data)
            dataset = site.load(config.seed)
        federated = FederatedData(dataset, config.data, config.seed, present=site.client)
    except ConfigErrors as several:
        raise ConfigErrors([_at_site(error, node.site) for error in several.errors]) from several
    except InputError as error:
        raise _at_site(error, node.site) from error
    return _Own(federated, site.client, Path(node.state), node.kept_runs, node.assets)


def _part_of_all(config: Config, node_config: Mapping[str, object]) -> _Own:
    """The same for a node that takes its part of the configured data."""
    data = FederatedData(load_source(config.data.source, config.seed), config.data, config.seed)
    client = _partition_id(node_config, data.num_clients)
    return _Own(data, client, state_folder(node_config), KEPT_RUNS, config.data.assets)


def _at_site(error: InputError, site: str) -> InputError:
    return type(error)(f"site {site!r}: {error.key}", error.value, error.expected, error.fix)


def _partition_id(node_config: Mapping[str, object], clients: int) -> int:
    given = node_config.get(PARTITION_ID)
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < clients:
        return given
    raise NoClientError(
        f"node-config {PARTITION_ID}",
        given,
        f"0 to {clients - 1}: the run's partition has {clients} clients",
        f'start the node with --node-config "{PARTITION_ID}=I"',
    )
