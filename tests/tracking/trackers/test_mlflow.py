from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from fedlab.config import Config, parse
from fedlab.errors import ConfigError
from fedlab.storage.runfolder import RunFolder
from fedlab.tracking.trackers import TrackedRun
from fedlab.tracking.trackers.mlflow import MLflow, check_mlflow, flatten

Stream = list[dict[str, Any]]


def opened(uri: str, config: Config, root: Path) -> MLflow:
    tracker = MLflow(MLflow.Settings(uri=uri), "tracking.mlflow")
    tracker.open(TrackedRun(RunFolder(root), config))
    return tracker


@pytest.fixture
def config() -> Config:
    partition = [{"name": "domain"}, {"name": "dirichlet", "alpha": 0.5}]
    data = {"source": "digits", "partition": partition}
    return parse(Config, {"method": {"name": "fedlgd", "lambda_reg": 5}, "data": data})


def test_parameters_are_flat_with_dotted_keys(config: Config) -> None:
    flat = dict(flatten(config.model_dump(mode="json")))
    assert flat["method.lambda_reg"] == "5"
    assert flat["data.partition.1.alpha"] == "0.5"
    assert flat["data.mean"] == "[0.5]"
    assert flat["exchange.local"] == "[]"


def test_a_missing_package_is_an_error_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracking\.mlflow = 'sqlite://'(.|\n)*pip install 'fedlab-sim\[mlflow\]'"):
        check_mlflow("sqlite://")


def test_a_folder_called_mlflow_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow").mkdir()
    for module in [name for name in sys.modules if name.partition(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match="pip install"):
        check_mlflow("sqlite://")


def test_a_run_arrives_whole(
    tmp_path: Path, root: Path, stream: Stream, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts of a database's runs into ./mlruns
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sink = opened(uri, config, root)
    for event in stream:
        sink.write(event)
    sink.close()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("fedlab")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["data.partition.1.name"] == "dirichlet"
    assert run.data.metrics["accuracy/mean"] == 0.625
    assert run.data.metrics["accuracy/a_ b"] == 0.5
    steps = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "train/ce")]
    assert steps[0][0] == 1
    assert math.isnan(steps[0][1])
    assert steps[1] == (2, 0.7071)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.yaml", "figures"}
    (figure,) = client.list_artifacts(run.info.run_id, "figures")
    assert figure.path == "figures/virtual-0000.png"


@pytest.mark.parametrize(("status", "recorded"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_how_a_run_ended_is_recorded(
    tmp_path: Path,
    root: Path,
    stream: Stream,
    config: Config,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    recorded: str,
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    sink = opened(uri, config, root)
    sink.write({**stream[-1], "status": status, "error": "ValueError: x"})
    (run,) = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name("fedlab").experiment_id])
    assert (run.info.status, run.data.tags["error"]) == (recorded, "ValueError: x")


def test_a_uri_mlflow_cannot_use_is_refused(root: Path, config: Config) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(ConfigError, match=r"tracking\.mlflow = 'nonsense://x'"):
        opened("nonsense://x", config, root)
