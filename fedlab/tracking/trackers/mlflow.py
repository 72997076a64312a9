"""Parameters, metrics and pictures for an MLflow tracking server or database."""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field

from fedlab.config import Config
from fedlab.config.flowerapp import FlowerAppConfig
from fedlab.config.yamltree import dump_yaml
from fedlab.engine.machine import is_installed
from fedlab.errors import ConfigError
from fedlab.storage.paths import UriOrPath
from fedlab.storage.secrets import redacted, tree_redacted, without_login
from fedlab.tracking.quantiles import readable_rows
from fedlab.tracking.table import Row
from fedlab.tracking.tracker import Event
from fedlab.tracking.trackers.base import NumberSettings, RunTracker, TrackedRun

EXPERIMENT = "fedlab"
_STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_METRICS_A_CALL, _PARAMETERS_A_CALL, _LONGEST_PARAMETER = 1000, 100, 500  # what every MLflow server takes
_NOT_IN_A_NAME = re.compile(r"[^\w\-. :/]")
_PATIENCE = 3.0  # seconds for a server to say anything
_SCHEMES = {"", "file", "http", "https", "sqlite", "mysql", "postgresql", "mssql", "databricks", "databricks-uc", "uc"}
_DEFAULTS = {
    # MLflow's own 7 retries of 120 seconds keep a run waiting for several minutes whenever the server is down
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def check_mlflow(uri: str, key: str = "tracking.mlflow") -> list[str]:
    """Check that MLflow is there and can use an address.

    Args:
        uri: tracking URI of MLflow.
        key: configuration key of the address, for errors.

    Returns:
        A warning if the server does not answer; the run then continues without MLflow.

    Raises:
        ConfigError: MLflow is missing, or has no store of this kind.
    """
    if not is_installed("mlflow"):
        raise ConfigError(
            key,
            without_login(uri),
            "the package mlflow, which is not installed",
            f"pip install 'fedlab-sim[mlflow]', or leave {key.removesuffix('.uri')} out",
        )
    shown = without_login(uri)
    scheme = uri.partition(":")[0].partition("+")[0] if ":" in uri else ""  # mysql+pymysql://…
    known = _SCHEMES | {plugin.name for plugin in importlib.metadata.entry_points(group="mlflow.tracking_store")}
    if scheme not in known and not Path(uri).is_absolute():
        raise ConfigError(key, shown, "a tracking URI that MLflow can use", f"it begins with one of {sorted(known)}")
    reason = _unreachable(uri) if scheme in ("http", "https") else ""
    return [f"nothing is sent to MLflow: {key} = {shown} does not answer: {reason}"] if reason else []


def _unreachable(uri: str) -> str:
    """Why a server does not answer within a few seconds; "" if it answers, whatever the answer is."""
    parts = urlsplit(uri)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))  # a name and password are not its host's
    try:
        with urllib.request.urlopen(bare, timeout=_PATIENCE):
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        # whether to trust a server is MLflow's to decide, which has settings for it
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__


class MLflowSettings(NumberSettings):
    """Settings of the tracker for MLflow."""

    uri: UriOrPath = Field(
        description="tracking URI of MLflow, such as http://host:5000 or sqlite:///mlflow.db; needs the extra "
        "fedlab-sim[mlflow]"
    )


class MLflow(RunTracker):
    """Sends the metrics, pictures and configuration of a run to an MLflow tracking server or database.

    They make one MLflow run in the experiment ``fedlab``, or in the one that ``MLFLOW_EXPERIMENT_NAME`` names. A run
    that is resumed makes a second one.
    """

    Settings = MLflowSettings
    settings: MLflowSettings

    variables = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")

    @property
    def without(self) -> str:
        return "nothing is sent to MLflow"

    @property
    def _place(self) -> str:
        return self.key if self.key == "tracking.mlflow" else f"{self.key}.uri"

    def check(self) -> list[str]:
        return check_mlflow(self.settings.uri, self._place)

    def open(self, run: TrackedRun) -> None:
        """Make the MLflow run.

        Raises:
            ConfigError: MLflow is missing, does not answer, or cannot use the address.
        """
        uri, key = self.settings.uri, self._place
        for warning in self.check():
            raise ConfigError(key, without_login(uri), "a server that answers", warning)
        for variable, value in _DEFAULTS.items():
            os.environ.setdefault(variable, value)
        from mlflow.tracking import MlflowClient

        self._root = run.folder.path
        try:
            self._client = MlflowClient(tracking_uri=uri)
            self._run = self._client.create_run(self._experiment(), run_name=self._root.name).info.run_id
            self._describe(run.config)
        except Exception as error:  # each of MLflow's stores raises exceptions of its own
            reason = redacted(" ".join(str(error).split()))
            raise ConfigError(key, without_login(uri), "a tracking URI that MLflow can use", reason) from error

    def write(self, event: Event) -> None:
        self._log(list(readable_rows(event, self.settings.most_clients)), int(event["time"] * 1000))
        if event["event"] == "figure":
            self._client.log_artifact(self._run, str(self._root / event["path"]), "figures")
        elif event["event"] == "run_end":
            if event["error"]:
                self._client.set_tag(self._run, "error", event["error"])
            if early := event.get("stopped"):
                self._client.set_tag(self._run, "stopped", f"after round {early['round']}: {early['reason']}")
            self._client.set_terminated(self._run, _STATUS[event["status"]])

    def _describe(self, config: Config | FlowerAppConfig) -> None:
        from mlflow.entities import Param

        told = tree_redacted(config.model_dump(mode="json"))
        parameters = [Param(key, value[:_LONGEST_PARAMETER]) for key, value in flatten(told)]
        for part in _parts(parameters, _PARAMETERS_A_CALL):
            self._client.log_batch(self._run, params=part)
        self._client.log_text(self._run, dump_yaml(told), "config.yaml")

    def _log(self, found: Sequence[Row], milliseconds: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(_NOT_IN_A_NAME.sub("_", row.tag), row.value, milliseconds, row.round) for row in found]
        for part in _parts(metrics, _METRICS_A_CALL):
            self._client.log_batch(self._run, metrics=part)

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        return str(known.experiment_id if known else self._client.create_experiment(name))


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of all values in nested mappings and lists; ``data.partition.0.name`` for instance."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from flatten(part, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for index, part in enumerate(value):
            yield from flatten(part, f"{prefix}.{index}")
    else:
        yield prefix, str(value)


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
