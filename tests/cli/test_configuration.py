from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab.methods
from fedlab.cli.describe import describe
from fedlab.config import load_config
from fedlab.experiment.start import configure

Cli = Callable[..., Any]
METHODS = Path(fedlab.methods.__path__[0])


def test_a_valid_configuration_passes_without_a_note(cli: Cli, tiny: Path) -> None:
    done = cli("config", "check", tiny)
    assert done.exit_code == 0
    assert [line.split(" ")[0] for line in done.stdout.splitlines()] == ["the", "not"], done.stdout


def test_warnings_of_the_method_are_told(cli: Cli) -> None:
    done = cli("config", "check", "fedlgd", "--set", "method.init=real", "--set", "engine.name=inline")
    assert done.exit_code == 0
    assert "warning: method.init = real" in done.stdout


@pytest.mark.parametrize(
    "path", sorted([*METHODS.glob("*/paper_*.yaml"), *METHODS.glob("*/finetune_*.yaml")]), ids=lambda path: path.stem
)
def test_the_papers_configurations_are_accepted_and_say_what_data_is_missing(cli: Cli, path: Path) -> None:
    done = cli("config", "check", path)
    assert done.exit_code == 0, done.output
    assert "note: data is missing on this machine" in done.stdout
    assert "data.source" in done.stdout


def test_everything_wrong_is_found_in_one_go(cli: Cli, tiny: Path) -> None:
    wrong = ("model.name=convnett", "data.source.train_per_class=0", "data.partition=[{name: dirichlet, clients: 0}]")
    done = cli("config", "check", tiny, *(word for override in wrong for word in ("--set", override)))
    assert done.exit_code == 2
    for told in ("'convnet'", "data.source.train_per_class = 0", "data.partition.0.clients = 0"):
        assert told in done.stderr


def test_with_data_the_partition_is_tried_too(cli: Cli, tiny: Path) -> None:
    impossible = ("--set", "data.partition=[{name: iid, clients: 1000}]")
    assert cli("config", "check", tiny, *impossible).exit_code == 0
    assert cli("config", "check", tiny, *impossible, "--data").exit_code == 2
    assert "data: 5 clients, 10 classes" in cli("config", "check", tiny, "--data").stdout


def test_what_show_prints_is_the_same_configuration(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(cli("config", "show", tiny, "--set", "training.lr=1e-3").stdout)
    assert configure(tmp_path / "shown.yaml") == configure(tiny, ["training.lr=1e-3"])
    assert load_config(tmp_path / "shown.yaml") == configure(tiny, ["training.lr=1e-3"]), "nothing is left to add"


def test_describe_explains_every_key_and_those_of_the_components() -> None:
    rows = {key: rest for key, *rest in describe(configure("fedlgd", ["method.lambda_reg=2"]))}
    value, kind, default, meaning = rows["method.lambda_reg"]
    assert (value, kind, default) == ("2.0", "number ≥ 0", "10.0")
    assert "λ" in meaning
    assert rows["engine.name"][1] == "ray | inline | flower"
    assert rows["data.partition.0.name"][0] == "domain"
    assert rows["model.width"][0] == "32"
    assert rows["data.source.test_per_domain"][1] == "integer ≥ 1"


@pytest.mark.parametrize("strategy", ["flower.FedYogi", "fedprox"])
def test_describe_knows_the_settings_of_strategies(strategy: str) -> None:
    keys = {key for key, *_ in describe(configure("supervised", [f"federation.strategy={strategy}"]))}
    assert ("federation.strategy.beta_1" if strategy.startswith("flower") else "federation.strategy.mu") in keys


def test_describe_prints_key_value_and_meaning(cli: Cli, tiny: Path) -> None:
    done = cli("config", "show", tiny, "--describe")
    assert done.exit_code == 0
    assert "federation.rounds = 2" in done.stdout
    assert "largest L2 norm of the gradient" in done.stdout
