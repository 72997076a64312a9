from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

import fedlab

Cli = Callable[..., Any]
UserMethod = Callable[[str], str]


def only_run(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "runs").iterdir()
    return found


@pytest.mark.usefixtures("reports")
def test_a_run_ends_with_its_table_and_the_address_of_its_report(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    done = cli("run", tiny)
    assert done.exit_code == 0, done.output
    assert "unweighted mean" in done.stdout
    (address,) = re.findall(r"^report: (file://\S+)$", done.stdout, re.MULTILINE)
    report = Path(unquote(urlparse(address).path))
    assert report == only_run(tmp_path) / "report.html"
    assert report.is_file()


@pytest.mark.usefixtures("reports")
def test_a_run_without_a_report_says_how_to_write_one(
    cli: Cli, tiny: Path, tmp_path: Path, user_method: UserMethod
) -> None:
    done = cli("run", tiny, "--set", "tracking.report=false")
    assert done.exit_code == 0, done.output
    run = only_run(tmp_path)
    assert not (run / "report.html").exists()
    assert done.stdout.endswith(f"run folder: {run}; `fedlab report {run}` writes a report\n")
    assert cli("report", run).exit_code == 0
    assert (run / "report.html").is_file()
    failing = f"method={{name: '{user_method('assert step.round < 2')}'}}"
    failed = cli("run", tiny, "--set", failing, "--set", "tracking.report=false", "--name", "failed")
    assert failed.exit_code == 1
    assert f"run folder: {run.parent / 'failed'}\n" in failed.stderr


def test_the_command_is_recorded_as_it_was_typed(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    words = ["run", str(tiny), "--set", "data.partition=[{name: iid, clients: 3}]", "--seed", "4"]
    assert cli(*words).exit_code == 0
    recorded = json.loads((only_run(tmp_path) / "environment.json").read_text())["command"]
    assert shlex.split(recorded) == ["fedlab", *words]


def test_shorthand_options_set_their_keys_and_win_over_set(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    options = ["--seed", 7, "--engine", "inline", "--rounds", 1, "--name", "2024", "--folder", tmp_path / "else"]
    done = cli("run", tiny, "--set", "seed=1", "--set", "training.lr=1e-3", "--workers", 1, "--plain", *options)
    assert done.exit_code == 0, done.output
    config = fedlab.load(tmp_path / "else" / "2024").config
    assert (config.seed, config.federation.rounds, config.training.lr) == (7, 1, 0.001)
    assert (config.engine.name, config.engine.workers) == ("inline", 1)
    assert (config.tracking.name, config.tracking.console) == ("2024", "plain")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "fedlgdd"], "did you mean 'fedlgd'"),
        (["run", "nowhere.yaml"], "a readable YAML file"),
        (["run", "broken.yaml"], "a valid YAML file"),
        (["run", "list.yaml"], "a YAML mapping at the top"),
        (["run", "supervised", "--set", "training.lrr=1"], "did you mean 'lr'"),
        (["run", "fedlgd", "--set", "method.lambda_rg=1"], "did you mean 'lambda_reg'?"),
        (["run", "supervised", "--set", "training"], "dotted.key=value"),
        (["run", "supervised", "--set", "data.partition.9.name=iid"], "a number below 1"),
        (["run", "supervised", "--set", "method.name=no.such:Thing"], "PYTHONPATH"),
        (["run", "supervised", "--rouns", "3"], "--rounds"),
        (["run", "supervised", "--engine", "rey"], "'rey' is not one of"),
        (["rum"], "No such command 'rum'"),
    ],
)
def test_wrong_words_are_explained_without_a_traceback(cli: Cli, tmp_path: Path, words: list[str], told: str) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    (tmp_path / "list.yaml").write_text("- 1")
    done = cli(*words)
    assert done.exit_code == 2
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "runs").exists()


def test_all_errors_of_a_configuration_are_told_at_once(cli: Cli, tiny: Path) -> None:
    done = cli("run", tiny, "--set", "model.name=convnett", "--set", "federation.strategy=fedavgg")
    assert done.exit_code == 2
    assert "'convnet'" in done.stderr
    assert "'fedavg'" in done.stderr


@pytest.mark.usefixtures("reports")
def test_a_client_that_fails_shows_its_own_traceback_and_where_the_run_is(
    cli: Cli, tiny: Path, tmp_path: Path, user_method: UserMethod
) -> None:
    method = user_method("assert step.round < 2, 'the second round is too much'")
    done = cli("run", tiny, "--set", f"method={{name: '{method}'}}")
    run = only_run(tmp_path)
    assert done.exit_code == 1
    assert "client 0 failed in round 2, phase train" in done.stderr
    assert "AssertionError: the second round is too much" in done.stderr
    assert f"{run}, report: {run / 'report.html'}" in done.stderr
    assert (run / "report.html").is_file()
    assert fedlab.load(run).history.end["status"] == "failed"


def test_ctrl_c_is_one_line_that_names_the_run_folder(
    cli: Cli, tiny: Path, tmp_path: Path, user_method: UserMethod
) -> None:
    method = user_method("if step.round == 2: raise KeyboardInterrupt")
    done = cli("run", tiny, "--set", f"method={{name: '{method}'}}")
    (line,) = done.stderr.strip().splitlines()
    assert done.exit_code == 130
    assert line.startswith("interrupted")
    assert str(only_run(tmp_path)) in line
    assert fedlab.load(only_run(tmp_path)).history.end["status"] == "interrupted"


def test_a_bug_in_a_users_method_is_a_plain_traceback_before_any_run_exists(
    cli: Cli, tiny: Path, tmp_path: Path, user_method: UserMethod
) -> None:
    method = user_method("undefined_name")
    done = cli("run", tiny, "--set", f"method={{name: '{method}'}}")
    assert isinstance(done.exception, NameError)
    assert not (tmp_path / "runs").exists()


def test_fedlab_debug_keeps_the_traceback_of_an_input_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLAB_DEBUG", "1")
    assert isinstance(cli("run", "fedlgdd").exception, fedlab.FedLabError)


def test_a_name_that_is_taken_is_refused_and_the_first_run_stays(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    assert cli("run", tiny, "--name", "one").exit_code == 0
    before = (tmp_path / "runs" / "one" / "events.jsonl").read_bytes()
    done = cli("run", tiny, "--name", "one")
    assert done.exit_code == 2
    assert "tracking.name = 'one'" in done.stderr
    assert (tmp_path / "runs" / "one" / "events.jsonl").read_bytes() == before
