"""The machine of a site is prepared from the organizer's file, after its data was looked at."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedlab.config import Config, parse
from fedlab.data.own import located_node
from fedlab.deployment.create import Asked, init
from fedlab.deployment.processes import programs
from fedlab.deployment.project import Folder
from fedlab.deployment.site import Prepared, prepare
from fedlab.errors import FedLabError
from tests.data.site_folders import source, write_sites

Prepare = Callable[..., Prepared]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_sites(tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module")
def federation(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The organizer's folder; the configuration lists names only, and the organizer knows nobody's folders."""
    data = {"source": {**source(folders), "sites": list(folders)}, "partition": ["site"]}
    config = parse(Config, {"method": "supervised", "data": data})
    asked = Asked(hosts=("fl.lab.org",), form="processes")
    return init(config, tmp_path_factory.mktemp("organizer") / "made", asked)[0]


@pytest.fixture
def at_lyon(federation: Folder, folders: dict[str, Path], tmp_path: Path) -> Prepare:
    """`fedlab deploy node lyon.fedlab` with the given options."""

    def run(data: object = folders["lyon"], *sets: str, **more: Any) -> Prepared:
        options = {"form": "processes", "image": None, **more}
        return prepare(federation.hand_over("lyon"), tmp_path / "lyon", str(data), sets or ("data.size=16",), **options)

    return run


def test_what_is_in_the_folder(at_lyon: Prepare, federation: Folder, folders: dict[str, Path]) -> None:
    made = at_lyon()
    path = made.folder.path
    key = path / "key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.read_bytes() == federation.key("lyon").read_bytes()
    assert (path / "ca.crt").read_bytes() == federation.authority.read_bytes()
    node = located_node(path / "node.yaml")
    assert (node.site, node.state) == ("lyon", str(path / "state"))
    assert node.data.settings == {"path": str(folders["lyon"]), "size": 16}
    (program,) = programs(made.folder)
    assert program.name == "node-lyon"
    assert program.command[program.command.index("--superlink") + 1] == "fl.lab.org:8443"
    assert program.command[-1] == f'node-file="{path / "node.yaml"}"'
    assert "--insecure" not in program.command


def test_it_says_what_was_found(at_lyon: Prepare) -> None:
    found = at_lyon().found
    assert found[0].startswith("data: ")
    assert "training samples by class: bars " in found[1]
    assert "ring 0" in found[1]
    assert "note: this site has no training samples of ring; it keeps the class" in found
    assert found[-1] == "fits what the sites have agreed on: classes, columns"


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        (("data.size=8",), r"image of shape \[3, 8, 8\]"),
        (("data.sise=16",), "did you mean 'size'"),
        (("data.name=foldr",), "did you mean 'folder'"),
        (("site=berlin",), "a key below data"),
    ],
)
def test_data_that_does_not_fit_is_refused_and_nothing_is_written(
    at_lyon: Prepare, folders: dict[str, Path], tmp_path: Path, sets: tuple[str, ...], told: str
) -> None:
    with pytest.raises(FedLabError, match=told):
        at_lyon(folders["lyon"], *sets)
    assert not (tmp_path / "lyon").exists()


def test_another_class_is_refused_by_name(at_lyon: Prepare, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["lyon"], tmp_path / "data")
    (tmp_path / "data" / "disk").rename(tmp_path / "data" / "cross")
    with pytest.raises(FedLabError, match="'cross'"):
        at_lyon(tmp_path / "data")
    with pytest.raises(FedLabError, match="none"):
        at_lyon(tmp_path / "none")


def test_the_command_can_be_given_again(at_lyon: Prepare, folders: dict[str, Path], tmp_path: Path) -> None:
    made = at_lyon()
    key = (made.folder.path / "key").stat().st_mtime_ns
    at_lyon(folders["oslo"])
    assert (made.folder.path / "key").stat().st_mtime_ns == key
    node = yaml.safe_load((made.folder.path / "node.yaml").read_text())
    assert node["data"]["path"] == str(folders["oslo"])


def test_a_folder_of_another_site_or_of_something_else_is_left_alone(
    at_lyon: Prepare, federation: Folder, folders: dict[str, Path], tmp_path: Path
) -> None:
    other = prepare(
        federation.hand_over("oslo"), tmp_path / "lyon", str(folders["oslo"]), ("data.size=16",), "processes", None
    )
    with pytest.raises(FedLabError, match="a folder of site lyon"):
        at_lyon()
    assert other.settings.site == "oslo"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("a year of work")
    with pytest.raises(FedLabError, match="an empty folder"):
        prepare(federation.hand_over("oslo"), tmp_path / "mine", str(folders["oslo"]), (), "processes", None)


def test_containers_see_the_data_and_the_state_where_they_are_mounted(
    at_lyon: Prepare, folders: dict[str, Path]
) -> None:
    made = at_lyon(form="containers")
    assert made.settings.data == str(folders["lyon"])
    node = yaml.safe_load((made.folder.path / "node.yaml").read_text())
    assert node == {"site": "lyon", "data": {"name": "folder", "path": "/data", "size": 16}, "state": "/state"}
    services = yaml.safe_load(made.folder.compose.read_text())["services"]
    (mount,) = [one for one in services["lyon-client"]["volumes"] if isinstance(one, dict) and one["target"] == "/data"]
    assert (mount["source"], mount["read_only"]) == (str(folders["lyon"]), True)
    assert "PRIVATE KEY" not in made.folder.compose.read_text() + (made.folder.path / ".env").read_text()


def test_files_of_assets_are_named_in_the_nodes_file_and_mounted_with_the_data(
    at_lyon: Prepare, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["lyon"])
    Path("bars/uni.safetensors").touch()
    sets = ("data.size=16", "assets.uni=bars/uni.safetensors", "assets.conch=hub/conch")
    node = located_node(at_lyon(folders["lyon"], *sets).folder.path / "node.yaml")
    assert node.assets == {"uni": str(folders["lyon"] / "bars/uni.safetensors"), "conch": "hub/conch"}
    made = at_lyon(folders["lyon"], *sets, form="containers")
    assert made.settings.data == str(folders["lyon"])
    written = yaml.safe_load((made.folder.path / "node.yaml").read_text())
    assert written["assets"] == {"uni": "/data/bars/uni.safetensors", "conch": "hub/conch"}
    with pytest.raises(FedLabError, match="assets"):
        at_lyon(folders["lyon"], "assets.uni=3")
