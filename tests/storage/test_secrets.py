"""What a run tells of its surroundings: no passwords, and no environment variable that is not needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.clients.state import StateStore
from fedlab.method import ClientState
from fedlab.report import write_report
from fedlab.storage.runfolder import write_atomic
from fedlab.storage.secrets import HIDDEN, is_secret, known_variables, redacted, tree_redacted, tree_without_login
from fedlab.tracking.trackers import mlflow

TINY: dict[str, Any] = {
    "method": "supervised",
    "model": {"name": "logistic"},
    "data": {
        "source": {"name": "shifted_digits", "train_per_class": 1, "test_size": 12},
        "partition": [{"name": "iid", "clients": 2}],
    },
    "federation": {"rounds": 1},
    "engine": {"name": "inline"},
}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://me:pa@ss@host:5000/x", f"http://{HIDDEN}@host:5000/x"),
        ("fedlab run c.yaml --set 'tracking.mlflow=https://me:x@h'", f"fedlab run c.yaml --set 'tracking.mlflow=https://{HIDDEN}@h'"),
        ("--set method.api_key=abc --seed 1", f"--set method.api_key={HIDDEN} --seed 1"),
        ("--set 'data.source.hf_token=a b' x", f"--set 'data.source.hf_token={HIDDEN}' x"),
        ("'method.password=a b' 'seed=1'", f"'method.password={HIDDEN}' 'seed=1'"),
        ("https://h/x?token=abc&a=1", f"https://h/x?token={HIDDEN}&a=1"),
        ("DB_PASSWORD: 'x y' z", f"DB_PASSWORD: {HIDDEN} z"),
        ("--set method.cls_token=mean", "--set method.cls_token=mean"),
        ("data.source.tokenizer=openai/clip", "data.source.tokenizer=openai/clip"),
        ("https://host/a@b", "https://host/a@b"),
        ("user@host", "user@host"),
    ],
)  # fmt: skip
def test_passwords_are_hidden_and_the_rest_stays(text: str, told: str) -> None:
    assert redacted(text) == told


def test_addresses_in_a_tree_lose_their_login_alone() -> None:
    tree = {"a": ["ftp://u:p@h/x", 3], "token": "cls", "b": None}
    assert tree_without_login(tree) == {"a": [f"ftp://{HIDDEN}@h/x", 3], "token": "cls", "b": None}


def test_a_tree_loses_the_values_of_keys_that_are_called_as_passwords_are() -> None:
    tree = {
        "api_key": "x",
        "a": [{"db_password": 3, "cls_token": "mean"}, "ftp://u:p@h"],
        "secret": None,
        "token": True,
    }
    hidden = {"db_password": HIDDEN, "cls_token": "mean"}
    assert tree_redacted(tree) == {"api_key": HIDDEN, "a": [hidden, f"ftp://{HIDDEN}@h"], "secret": None, "token": True}
    assert is_secret("method.api_key")
    assert not is_secret("method.api_keys.number")


def test_only_variables_that_matter_are_recorded() -> None:
    environment = {"OMP_NUM_THREADS": "1", "RAY_AUTH_TOKEN": "x", "MKL_LICENSE_FILE": "y", "FLWR_TOKEN": "z"}
    assert known_variables(environment) == {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def _with_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "packages" / "mlflow"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(mlflow, "_unreachable", lambda uri: f"{uri} is away")


@pytest.mark.usefixtures("_with_mlflow")
def test_no_file_of_a_run_holds_a_password_or_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLWR_API_TOKEN", "RAY_AUTH_TOKEN", "MKL_LICENSE_KEY", "OMP_SECRET"):
        monkeypatch.setenv(name, "geheim")
    uri = "http://me:geheim@host:5000"
    tracking = {"folder": str(tmp_path / "runs"), "console": "quiet", "mlflow": uri}
    command = f"fedlab run x.yaml --set tracking.mlflow={uri} --set method.api_key=geheim"
    run = fedlab.run({**TINY, "federation": {"rounds": 2}, "tracking": tracking}, command=command, until=1)
    write_report(run.path)
    leaks = [str(path) for path in run.path.rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]
    assert leaks == []
    assert any("nothing is sent to MLflow" in text for text in run.history.warnings)
    assert f"http://{HIDDEN}@host:5000" in (run.path / "config.yaml").read_text()
    resumed = fedlab.resume(run.path)
    assert any("give them again by --set tracking.mlflow=…" in text for text in resumed.history.warnings)
    # keys of a method are needed to go on and stay in the file, but are not shown
    text = run.folder.config.read_text()
    run.folder.config.write_text(text.replace("name: supervised", "name: supervised\n  api_key: geheim"))
    page = write_report(run.path).read_text()
    assert f"api_key: &#39;{HIDDEN}&#39;" in page
    assert "geheim" not in page
    # what an earlier version recorded is not shown either
    old = {**json.loads((run.path / "environment.json").read_text()), "command": command}
    (run.path / "environment.json").write_text(json.dumps({**old, "variables": {"RAY_AUTH_TOKEN": "geheim"}}))
    assert "geheim" not in write_report(run.path).read_text()


@pytest.fixture
def umask() -> Any:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_files_are_as_private_as_the_user_wishes(tmp_path: Path, umask: Callable[[int], int]) -> None:
    for mask, expected in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        umask(mask)
        write_atomic(tmp_path / f"{mask}", "x")
        assert mode(tmp_path / f"{mask}") == expected
        write_atomic(tmp_path / f"{mask} private", "x", private=True)
        assert mode(tmp_path / f"{mask} private") == 0o600


def test_what_clients_keep_is_their_user_s_alone(tmp_path: Path, umask: Callable[[int], int]) -> None:
    umask(0o000)
    method = {"name": "fedlgd", "ipc_local": 1, "ipc_global": 1, "warmup_steps": 1, "dm_steps": 1, "gm_steps": 1}
    tracking = {"folder": str(tmp_path / "runs"), "console": "quiet", "tensorboard": False}
    cache = tmp_path / "cache"
    run = fedlab.run({**TINY, "method": method, "tracking": {**tracking, "cache": str(cache)}})
    states, kept = list(run.path.rglob("*.state")), list(cache.rglob("*.safetensors"))
    assert states
    assert kept
    assert {mode(path) for path in (*states, *kept)} == {0o600}
    assert mode(run.path / "config.yaml") == 0o666
    StateStore(tmp_path).save(0, 1, ClientState(), None)
    assert mode(next(tmp_path.glob("0000/*/*.state"))) == 0o600
