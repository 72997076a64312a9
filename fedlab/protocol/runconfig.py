"""What a run in a deployment is, as Flower's run configuration carries it to the server and to every node."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedlab.config import Config, parse
from fedlab.errors import ConfigError

CONFIG_KEY = "config-json"
EXPECTED_KEY = "expected-clients"
SIMULATE_KEY = "simulate-partition"
TOKEN_KEY = "run-token"
RESUME_KEY = "resume"


@dataclass(frozen=True)
class Submission:
    """A run that is submitted to a deployment.

    Args:
        config: the run's configuration.
        expected: number of clients to wait for; 0 waits for every client of the partition.
        simulate_partition: whether every node loads the configured data source and takes its own part of it. This is
            meant for demonstrations: nodes with data of their own have none to divide.
        token: what tells this run from all others. Nodes keep their states under it, so a run that is resumed has the
            token that it began with. Empty if only Flower's id of the run tells it apart.
        resume: name of the run folder on the server whose run goes on; empty for a new run.
    """

    config: Config
    expected: int = 0
    simulate_partition: bool = False
    token: str = ""
    resume: str = ""


def pack(submission: Submission) -> dict[str, str | int | bool]:
    """Flower's run configuration for a run. Because it can hold only scalars, the configuration is stored as JSON."""
    return {
        CONFIG_KEY: json.dumps(submission.config.model_dump(mode="json")),
        EXPECTED_KEY: submission.expected,
        SIMULATE_KEY: submission.simulate_partition,
        TOKEN_KEY: submission.token,
        RESUME_KEY: submission.resume,
    }


def unpack(run_config: Mapping[str, object]) -> Submission:
    """The reverse of `pack`.

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
    token, resume = str(run_config.get(TOKEN_KEY, "")), str(run_config.get(RESUME_KEY, ""))
    if token and not token.isalnum():  # nodes name a folder by it, which must not lie elsewhere
        raise ConfigError(TOKEN_KEY, token, "letters and digits", "submit the run with fedlab")
    if resume and (Path(resume).name != resume or resume.startswith(".")):
        raise ConfigError(
            RESUME_KEY, resume, "the name of a run folder on the server", "leave out the folders above it"
        )
    return Submission(
        config=parse(Config, raw),
        expected=expected,
        simulate_partition=bool(run_config.get(SIMULATE_KEY, False)),
        token=token,
        resume=resume,
    )
