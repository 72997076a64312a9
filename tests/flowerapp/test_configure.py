"""The configuration of a run of an app: where every value comes from, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedlab.errors import ConfigError, ConfigErrors
from fedlab.flowerapp.configure import configure_app

Write = Callable[..., Path]


def test_options_win_over_the_app(write_app: Write) -> None:
    folder = write_app()
    plain, _ = configure_app(folder)
    assert (plain.flower_app.clients, plain.rounds, plain.engine.name) == (4, 2, "ray")
    assert plain.flower_app.path == str(folder)
    assert plain.tracking.folder == str(Path("runs").absolute())
    more = ["flower_app.run_config.fraction=0.5", "flower_app.run_config.note.text=c", "engine.workers=2"]
    config, _ = configure_app(folder, clients=7, run_config=["num-server-rounds=3"], overrides=more)
    assert (config.flower_app.clients, config.rounds, config.engine.workers) == (7, 3, 2)
    keys = config.flower_app.run_config
    assert (keys["num-server-rounds"], keys["fraction"], keys["note.text"]) == (3, 0.5, "c")
    assert set(keys) == set(plain.flower_app.run_config)


def test_a_recorded_configuration_is_read_again(write_app: Write, tmp_path: Path) -> None:
    folder = write_app()
    config, _ = configure_app(folder, clients=5, overrides=["seed=3"])
    file = tmp_path / "config.yaml"
    file.write_text(f"seed: 3\nflower_app: {{path: {folder.relative_to(tmp_path)}, clients: 5}}\n")
    assert configure_app(file)[0] == config
    assert configure_app(str(file), clients=6)[0].flower_app.clients == 6
    file.write_text("flower_app: {clients: 5}\n")
    with pytest.raises(ConfigError, match=r"flower_app\.path: the folder of a Flower app"):
        configure_app(file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("flower_app.run_config.fractoin=1", r"flower_app\.run_config fractoin = 1(.|\n)*did you mean 'fraction'"),
        ("flower_app.run_config.fraction=[1]", "a number, true, false or text"),
        ("flower_app.clients=0", r"flower_app\.clients = 0"),
        ("flower_app.path=elsewhere", r"give the folder by --flower-app"),
        ("flower_app.serverapp=other:app", r"all else stands in its pyproject\.toml"),
        ("federation.rounds=3", r"federation\.rounds = 3\n  expected: no such key"),
        ("data.source=digits", "no such key"),
        ("engine.vectorize=4", r"engine\.vectorize = 4\n  expected: not set"),
        ("engine.resident=4", r"engine\.resident = 4\n  expected: not set"),
    ],
)
def test_what_an_app_does_not_have_is_refused(override: str, message: str, write_app: Write) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=message):
        configure_app(write_app(), overrides=[override])


def test_the_number_of_clients_must_come_from_somewhere(write_app: Write) -> None:
    folder = write_app()
    file = folder / "pyproject.toml"
    file.write_text(file.read_text().replace("options.num-supernodes = 4", ""))
    with pytest.raises(ConfigErrors, match=r"--clients: the number of clients(.|\n)*--clients 10"):
        configure_app(folder)
    assert configure_app(folder, clients=2)[0].flower_app.clients == 2
