"""What the pyproject.toml of an app says, and what is refused before anything of the app is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedlab.errors import ConfigError
from fedlab.flowerapp.project import check_keys, flat, parse_run_config, read_project

Write = Callable[..., Path]


def test_everything_that_the_file_says_is_read(write_app: Write) -> None:
    folder = write_app()
    project = read_project(folder)
    assert (project.folder, project.name, project.clients) == (folder, "numbers-app", 4)
    assert (project.serverapp, project.clientapp) == ("numbers_app.server_app:app", "numbers_app.client_app:app")
    assert project.defaults == {"num-server-rounds": 2, "fraction": 1.0, "misbehave": "", "note.text": "a"}
    assert type(project.defaults["fraction"]) is float
    assert project.unused == ()
    assert read_project(folder / "pyproject.toml") == project


def test_the_federation_is_the_default_one_or_the_only_one(write_app: Write) -> None:
    text = (folder := write_app()).joinpath("pyproject.toml").read_text()

    def clients(federations: str) -> tuple[int | None, tuple[str, ...]]:
        start = text.partition("[tool.flwr.federations]")[0]
        (folder / "pyproject.toml").write_text(start + federations)
        project = read_project(folder)
        return project.clients, project.unused

    assert clients("") == (None, ())
    two = "[tool.flwr.federations.a]\noptions.num-supernodes = 3\n[tool.flwr.federations.b]\naddress = 'x:1'\n"
    assert clients(two) == (None, ())
    assert clients(f"[tool.flwr.federations]\ndefault = 'a'\n{two}") == (3, ())
    only = "[tool.flwr.federations.a]\noptions.num-supernodes = 3\noptions.backend.client-resources.num-cpus = 2\n"
    assert clients(only) == (3, ("options.backend.client-resources.num-cpus",))
    with pytest.raises(ConfigError, match=r"options\.num-supernodes of at least 1(.|\n)*'a' has 0|has 0"):
        clients("[tool.flwr.federations.a]\noptions.num-supernodes = 0\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[tool.flwr.app.components]", "[tool.flwr.app.parts]", r"serverapp = \"module:attribute\"(.|\n)*missing"),
        ("clientapp =", "client =", r"clientapp = \"module:attribute\" in \[tool\.flwr\.app\.components\]"),
        ("server_app:app", "server_app", r"it is 'numbers_app\.server_app'"),
        ("[tool.flwr.app.components]", "[tool.flwr.app.components]\nagentapp = 'a:b'", "this is an agent app"),
        ("[tool.flwr.app", "[tool.other.app", r"section \[tool\.flwr\.app\](.|\n)*this is no Flower app"),
        ("fraction = 1.0", "fraction = [1.0]", r"fraction = \[1\.0\](.|\n)*a number, true, false or text"),
        ("fraction = 1.0", "fraction = ", "valid TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused(old: str, new: str, message: str, write_app: Write) -> None:
    file = write_app() / "pyproject.toml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read_project(file.parent)


def test_a_folder_without_an_app_is_refused(write_app: Write) -> None:
    folder = write_app()
    with pytest.raises(ConfigError, match="there is no such folder"):
        read_project(folder / "nowhere")
    with pytest.raises(ConfigError, match="the folder and not a file in it"):
        read_project(folder / "numbers_app" / "task.py")
    with pytest.raises(ConfigError, match=r"a file .*pyproject\.toml(.|\n)*`flwr new` makes such a folder"):
        read_project(folder / "numbers_app")


def test_keys_are_given_as_for_flower(tmp_path: Path) -> None:
    assert parse_run_config(["a=1 b=0.5", "c='x y' d=\"z\" e=true", "f.g=-2"]) == {
        "a": 1,
        "b": 0.5,
        "c": "x y",
        "d": "z",
        "e": True,
        "f.g": -2,
    }
    file = tmp_path / "keys.toml"
    file.write_text("a = 3\n[f]\ng = 4\n")
    assert parse_run_config([str(file), "a=5"]) == {"a": 5, "f.g": 4}
    assert flat({"a": {"b": {"c": 1}}}, "there") == {"a.b.c": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rounds", "this part is neither: rounds"),
        ("a=1 rounds 3", "this part is neither: rounds 3"),
        ("name=abc", r"text needs quotes of its own: --run-config 'name=\"abc\"'"),
        ("a=[1]", "a number, true, false or text"),
        ("nowhere.toml", "there is none"),
    ],
)
def test_other_ways_to_give_keys_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_run_config([text])


def test_a_key_that_the_app_lacks_is_refused(write_app: Write) -> None:
    project = read_project(write_app())
    with pytest.raises(ConfigError, match=r"--run-config fractoin = 1\n(.|\n)*did you mean 'fraction'\?"):
        check_keys({"fractoin": 1}, project, "--run-config")


def test_the_hash_is_that_of_the_code(write_app: Write) -> None:
    folder = write_app()
    before = read_project(folder).fingerprint()
    (folder / "notes.txt").write_text("not code")
    for inner in (".venv", "build"):
        (folder / inner).mkdir()
        (folder / inner / "other.py").write_text("x = 1")
    assert read_project(folder).fingerprint() == before
    (folder / "numbers_app" / "task.py").write_text("x = 1")
    assert read_project(folder).fingerprint() != before
