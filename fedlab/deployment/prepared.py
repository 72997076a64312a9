"""What of a configuration is sent to a deployment, and which configurations are refused."""

from __future__ import annotations

import tempfile

from fedlab.config import Component, Config, EngineConfig
from fedlab.data.sources.sites import NAME, own_data_settings
from fedlab.experiment.checks import resolve
from fedlab.probes import check_set_names
from fedlab.tracking.trackers import make_trackers


def prepared(config: Config, *, simulate_partition: bool = False) -> Config:
    """Check a configuration before it is submitted, and take away what other machines have of their own.

    The sources of the sites and of the server's sets are replaced by their names, and the paths of assets are left out,
    because every node and the server have files of their own.

    Args:
        config: the run's configuration; the engine section says how each machine computes, not where.
        simulate_partition: whether every node is to load the configured data and take its part of it.

    Raises:
        ConfigErrors: the configuration is wrong.
        ConfigError: the partition divides a source, and `simulate_partition` is not set.
    """
    # this machine only submits: its own devices, folders and packages of trackers do not matter
    make_trackers(config.tracking)
    elsewhere = {"folder": tempfile.gettempdir(), "trackers": (), "mlflow": None, "tensorboard": False}
    tracking = config.tracking.model_copy(update=elsewhere)
    resolved = resolve(config.model_copy(update={"engine": EngineConfig(name="inline"), "tracking": tracking}))
    if simulate_partition:
        return config  # the server, which loads the data, checks what is asked of its sets
    settings = own_data_settings(config.data)
    check_set_names(resolved.components.probes, settings.server)
    sent = {**config.data.source.settings, "sites": list(settings.names), "server": list(settings.server)}
    source = Component(name=NAME, **sent)
    return config.model_copy(update={"data": config.data.model_copy(update={"source": source, "assets": {}})})
