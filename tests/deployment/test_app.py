"""The thin app: what is sent to a SuperLink, checked without starting one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.cli.config_utils import load_and_validate

from fedlab.clients.app import _deployed_runtime
from fedlab.clients.deployed import setup_from_context
from fedlab.clients.runtime import ClientRuntime
from fedlab.config import Config, parse
from fedlab.deployment.submit import THIN_APP, submit
from fedlab.errors import ConfigError, FedLabError
from fedlab.protocol.runconfig import (
    CONFIG_KEY,
    EXPECTED_KEY,
    RESUME_KEY,
    SIMULATE_KEY,
    TOKEN_KEY,
    Submission,
    pack,
    unpack,
)

TINY = (
    '{"method": {"name": "supervised"}, "data": {"source": {"name": "digits", "domains": ["synth"], '
    '"train_per_domain": 20, "test_per_domain": 10}, "partition": [{"name": "iid", "clients": 2}]}}'
)

SIMULATED = {CONFIG_KEY: TINY, SIMULATE_KEY: True}


def test_submit_sends_the_folder_and_what_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def called(*arguments: str, home: Path | None) -> dict[str, object]:
        app = Path(arguments[1])
        seen.update({path.name: path.read_text() for path in (*app.iterdir(), Path(arguments[-1]))})
        return {"run-id": 7}

    monkeypatch.setattr("fedlab.deployment.submit.call", called)
    config = parse(Config, json.loads(TINY))
    assert submit(config, "lab", clients=2, simulate_partition=True) == 7
    assert set(seen) == {"pyproject.toml", "run.toml"}
    assert seen["pyproject.toml"] == (THIN_APP / "pyproject.toml").read_text()
    sent = unpack(tomllib.loads(seen["run.toml"]))
    assert sent == Submission(config, 2, simulate_partition=True, token=sent.token)
    assert len(sent.token) == 32


def test_flower_accepts_it_and_finds_both_components() -> None:
    config, warnings = load_and_validate(THIN_APP / "pyproject.toml")
    assert warnings == []
    assert config["project"]["dependencies"] == []
    assert set(config["tool"]["flwr"]["app"]["config"]) == {
        CONFIG_KEY,
        EXPECTED_KEY,
        SIMULATE_KEY,
        TOKEN_KEY,
        RESUME_KEY,
    }


@pytest.mark.parametrize(
    ("given", "shown"),
    [({}, "None"), ({"partition-id": 2}, "2"), ({"partition-id": -1}, "-1"), ({"partition-id": "a"}, "'a'")],
)
def test_a_node_that_is_no_client_of_the_partition_is_told_so(given: dict[str, object], shown: str) -> None:
    with pytest.raises(ConfigError, match=rf"node-config partition-id = {shown}\n  expected: 0 to 1: .* 2 clients"):
        setup_from_context(SIMULATED, given, 1)


def test_all_that_a_node_keeps_lies_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = TINY.replace('"data"', '"tracking": {"cache": "/elsewhere"}, "data"')
    setup = setup_from_context(
        {**SIMULATED, CONFIG_KEY: text}, {"partition-id": 1, "state-dir": str(tmp_path / "mine")}, 7
    )
    assert setup.state_root == tmp_path / "mine" / "runs" / "7"
    assert setup.cache_root == tmp_path / "mine" / "cache"
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    setups = [setup_from_context(SIMULATED, {"partition-id": client}, 7) for client in (0, 1)]
    assert len({setup.state_root for setup in setups} | {setup.cache_root for setup in setups}) == 4
    assert all(setup.state_root.is_relative_to(tmp_path / "home") for setup in setups)


def test_a_process_keeps_nodes_and_runs_apart(tmp_path: Path) -> None:
    def runtime(run: int, node: int) -> ClientRuntime:
        folder = str(tmp_path / f"node{node}")
        return _deployed_runtime(
            Context(run, node, {"partition-id": node, "state-dir": folder}, RecordDict(), SIMULATED)
        )

    runtimes = {(run, node): runtime(run, node) for run in (1, 2) for node in (0, 1)}
    assert [one.setup.state_root for one in runtimes.values()] == [
        tmp_path / f"node{node}" / "runs" / str(run) for run, node in runtimes
    ]
    assert all(runtime(*key) is made for key, made in runtimes.items())


def test_a_configuration_survives_the_way_through_the_run_configuration() -> None:
    config = parse(Config, json.loads(TINY)).with_overrides({"tracking.folder": 'ünï "quoted" 😀 \\ path'})
    submission = Submission(config, 3, simulate_partition=True, token="abc", resume="fedlgd-seed0")
    packed = pack(submission)
    assert unpack(packed) == submission
    assert str(packed[CONFIG_KEY]).isascii()
    written = tomllib.loads("".join(f"{key} = {json.dumps(value)}\n" for key, value in packed.items()))
    assert written == packed


@pytest.mark.parametrize("text", ["{", "", "[1]", "5"])
def test_a_run_configuration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FedLabError, match=r"config-json|configuration"):
        unpack({CONFIG_KEY: text})
    with pytest.raises(ConfigError, match="expected-clients = -1"):
        unpack({CONFIG_KEY: TINY, EXPECTED_KEY: -1})
