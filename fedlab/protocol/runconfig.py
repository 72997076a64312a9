"""How a run's configuration reaches the participants of a deployment: as one text in Flower's run configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping

from fedlab.config import Config, parse
from fedlab.errors import ConfigError

CONFIG_KEY = "config-json"
EXPECTED_KEY = "expected-clients"


def pack(config: Config, expected: int = 0) -> dict[str, str | int]:
    """Flower's run configuration for a run. Because it can hold only scalars, the configuration is stored as JSON.

    Args:
        config: the run's configuration.
        expected: number of clients to wait for; 0 waits for every client of the partition.
    """
    return {CONFIG_KEY: json.dumps(config.model_dump(mode="json")), EXPECTED_KEY: expected}


def unpack(run_config: Mapping[str, object]) -> tuple[Config, int]:
    """The reverse of `pack`: the configuration, and the number of clients to wait for.

    Raises:
        ConfigError, ConfigErrors: a value is missing or wrong.
    """
    text, expected = run_config.get(CONFIG_KEY, "{}"), run_config.get(EXPECTED_KEY, 0)
    try:
        raw = json.loads(str(text))
    except json.JSONDecodeError as error:
        raise ConfigError(CONFIG_KEY, text, "a run configuration as JSON", str(error)) from error
    if not isinstance(expected, int) or expected < 0:
        raise ConfigError(EXPECTED_KEY, expected, "a number of clients, 0 for every client of the partition")
    return parse(Config, raw), expected
