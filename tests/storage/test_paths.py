"""Where a relative path starts, for every setting that names a place."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import fedlab
from fedlab.config import Component, Config
from fedlab.errors import ConfigErrors
from fedlab.experiment.components import REGISTRIES, settings_of
from fedlab.experiment.configuration import configure, load_config
from fedlab.storage.paths import PathKind
from fedlab.studies.acceptance import load_acceptance
from fedlab.studies.spec import load_spec

MINIMAL: dict[str, Any] = {"method": "supervised", "data": {"source": "digits"}}
SPEAKS_OF_A_PLACE = re.compile(r"\b(path|file|folder|csv|hub name|run folder)s?\b")
NO_PLACES = {
    "table": "the name of a file in the folder that `path` names",
    "pattern": "found in the names of files",
    "image_suffix": "an ending",
    "mask_suffix": "an ending",
    "train_split": "the name of a part of the data",
    "test_split": "the name of a part of the data",
    "prompts": "text about a class",
    "real": "names of folders below `path`",
    "fake": "names of folders below `path`",
    "unlabeled": "names of folders below `path`",
    "name": "the run folder's own name",
    "group": "the name of a group of runs",
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for configurations; the current folder is another one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "conf"


def write(folder: Path, **more: Any) -> Path:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **more}))
    return path


# every setting that names a place is marked


def texts(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every text setting of a class and of the classes inside it: its key, its field, and whether it is marked."""
    for name, field in kind.model_fields.items():
        hints = list(leaves(typing.Annotated[field.annotation, *field.metadata, None]))
        if any(hint is str for hint, _ in hints):
            yield f"{prefix}{name}", field, any(marked for _, marked in hints)
        for hint, _ in hints:
            if isinstance(hint, type) and issubclass(hint, BaseModel) and hint is not Component:
                yield from texts(hint, f"{prefix}{name}.")


def leaves(hint: Any, marked: bool = False) -> Iterator[tuple[Any, bool]]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        yield from leaves(arguments[0], marked or any(isinstance(mark, PathKind) for mark in arguments[1:]))
    elif arguments and typing.get_origin(hint) is not typing.Literal:
        for inner in arguments:
            yield from leaves(inner, marked)
    else:
        yield hint, marked


def classes() -> list[tuple[str, type[BaseModel]]]:
    found = [
        (f"{key} {name}", settings_of(registry, name))
        for key, registry in REGISTRIES.items()
        for name in registry.names()
    ]
    return [("configuration", Config), *((what, kind) for what, kind in found if kind is not None)]


@pytest.mark.parametrize(("what", "kind"), classes(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_text_setting_that_speaks_of_a_place_is_marked_as_one(what: str, kind: type[BaseModel]) -> None:
    unmarked = [
        key
        for key, field, marked in texts(kind)
        if not marked
        and key.rpartition(".")[2] not in NO_PLACES
        and SPEAKS_OF_A_PLACE.search(f"{key.rpartition('.')[2].replace('_', ' ')} {field.description or ''}".lower())
    ]
    assert not unmarked, f"{what}: annotate these as fedlab.storage.paths says, or name them in NO_PLACES"


def test_the_search_for_unmarked_settings_finds_them() -> None:
    marked = {key for key, _, found in texts(Config) if found}
    assert {"init", "federation.availability.csv", "federation.devices.csv", "tracking.cache", "modules"} <= marked
    assert SPEAKS_OF_A_PLACE.search("root folder of it")


# where they start


def test_a_file_s_paths_start_from_its_folder_and_typed_ones_from_the_current_one(places: Path) -> None:
    sources = {"a": {"name": "folder", "path": "pics"}, "b": {"name": "npz", "path": "~/x.npz"}, "c": "digits"}
    more: dict[str, Any] = {
        "data": {"source": {"name": "union", "sources": sources}},
        "init": {"model": "runs/one#teacher", "head": "weights.safetensors"},
        "federation": {"availability": {"csv": "../days.csv"}, "devices": {"csv": "/abs/devices.csv"}},
        "tracking": {"folder": "runs", "cache": "kept", "mlflow": "sqlite:///m.db"},
        "method": {"name": "pat", "pretrained": "./vit"},
    }
    config = configure(write(places, **more), ["data.source.sources.c={name: folder, path: typed}"])
    found = config.data.source.settings["sources"]
    assert found["a"]["path"] == str(places / "pics")
    assert found["b"]["path"] == str(Path("~/x.npz").expanduser())
    assert found["c"]["path"] == str(Path.cwd() / "typed")
    assert config.init == {"model": f"{places / 'runs/one'}#teacher", "head": str(places / "weights.safetensors")}
    availability, devices = config.federation.availability, config.federation.devices
    assert availability is not None
    assert availability.csv == str(places.parent / "days.csv")
    assert devices is not None
    assert devices.csv == "/abs/devices.csv"
    assert config.method.settings["pretrained"] == str(places / "vit")
    assert config.tracking.folder == str(Path.cwd() / "runs"), "an output starts from the current folder"
    assert config.tracking.cache == str(places / "kept")
    assert config.tracking.mlflow == f"sqlite:///{places / 'm.db'}"
    assert configure(config) == config


@pytest.mark.parametrize("kind", ["mapping", "Config", "method"])
def test_all_else_starts_from_the_current_folder(places: Path, kind: str) -> None:
    raw = {"method": "supervised", "data": {"source": {"name": "folder", "path": "pics"}}}
    source: Any = {"mapping": raw, "Config": fedlab.Config(**raw), "method": "supervised"}[kind]
    overrides = ["data.source={name: folder, path: pics}"] if kind == "method" else []
    assert configure(source, overrides).data.source.settings["path"] == str(Path.cwd() / "pics")


def test_the_current_folder_is_where_the_output_goes_whatever_names_it(places: Path) -> None:
    assert load_config(write(places)).tracking.folder == str(Path.cwd() / "runs")


@pytest.mark.parametrize(
    ("text", "there", "local"),
    [
        ("ylecun/mnist", False, False),
        ("ylecun/mnist", True, True),
        ("mnist", False, False),
        ("./mnist", False, True),
        ("../mnist", False, True),
        ("a/b/c", False, True),
        ("/mnt/mnist", False, True),
    ],
)
def test_a_name_on_a_hub_stays_one_unless_it_is_a_folder_or_can_be_nothing_else(
    places: Path, text: str, there: bool, local: bool
) -> None:
    if there:
        (places / text).mkdir(parents=True)
    path = write(places, data={"source": {"name": "hub", "path": text}})
    assert configure(path).data.source.settings["path"] == (str((places / text).resolve()) if local else text)


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////abs/m.db", "sqlite:////abs/m.db"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("mlruns", "{}/mlruns"),
        ("file:mlruns", "file://{}/mlruns"),
        ("file:///abs/mlruns", "file:///abs/mlruns"),
    ],
)
def test_an_address_is_no_path(places: Path, uri: str, absolute: str) -> None:
    assert configure(write(places, tracking={"mlflow": uri})).tracking.mlflow == absolute.format(places)


def test_a_role_is_told_from_a_folder_with_the_sign_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "c#"
    (folder / "run#1").mkdir(parents=True)
    path = write(folder, init={"a": "run#1", "b": "run#1#teacher", "c": "run"})
    assert configure(path).init == {
        "a": str(folder / "run#1"),
        "b": f"{folder / 'run#1'}#teacher",
        "c": str(folder / "run"),
    }


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_what_lies_in_the_current_folder_only_is_not_taken_in_silence(places: Path, source: str) -> None:
    (Path.cwd() / "pics" / "train").mkdir(parents=True)
    path = write(places, data={"source": {"name": source, "path": "pics/train"}})
    with pytest.raises(ConfigErrors) as caught:
        configure(path)
    for told in ("data.source.path = 'pics/train'", str(places / "pics/train"), str(Path.cwd() / "pics/train")):
        assert told in str(caught.value)
    assert configure(path, ["data.source.path=pics/train"]).data.source.settings["path"] == str(
        Path("pics/train").absolute()
    )


def test_a_file_that_is_missing_is_named_with_the_whole_place(places: Path) -> None:
    with pytest.raises(ConfigErrors, match=re.escape(str(Path.cwd() / "no.yaml"))):
        configure("no.yaml")
    config = configure(write(places, data={"source": {"name": "npz", "path": "no.npz"}}))
    with pytest.raises(fedlab.FedLabError, match=re.escape(str(places / "no.npz"))):
        fedlab.run(config)


def test_paths_of_a_run_on_other_machines_are_left_to_them(places: Path) -> None:
    path = write(places, data={"source": {"name": "folder", "path": "pics"}})
    config = configure(path, here=False)
    assert (config.data.source.settings["path"], config.tracking.folder) == ("pics", "runs")


# files that hold many configurations


def test_the_paths_of_a_sweep_file_start_from_its_folder_and_typed_values_from_the_current_one(places: Path) -> None:
    source = {"name": "npz", "path": "base.npz"}
    file = places / "sweep.yaml"
    grid = {"data.source.path": ["one.npz"], "init.model": ["w.safetensors"]}
    listed = {"other": {"data.source": {"name": "folder", "path": "pics"}}}
    file.write_text(yaml.safe_dump({"base": {**MINIMAL, "data": {"source": source}}, "grid": grid, "list": listed}))
    spec = load_spec(str(file), ["init.model=typed.safetensors"])
    assert isinstance(spec.base, dict)
    base = spec.placed(spec.base)
    assert base["data"]["source"]["path"] == str(places / "base.npz")
    changed = spec.placed(base, {"data.source.path": "one.npz", "init.model": "typed.safetensors"})
    assert changed["data"]["source"]["path"] == str(places / "one.npz")
    assert changed["init"]["model"] == str(Path.cwd() / "typed.safetensors")
    assert spec.placed(base, listed["other"])["data"]["source"]["path"] == str(places / "pics")


def test_the_paths_of_an_experiment_start_from_its_folder(places: Path) -> None:
    gate = {"kind": "threshold", "name": "g", "metric": "accuracy", "arm": "a", "at_least": 0.5}
    arms = {"a": {"data.source": {"name": "npz", "path": "x.npz"}}}
    file = places / "experiment.yaml"
    file.write_text(yaml.safe_dump({"source": "s", "base": MINIMAL, "seeds": [0], "arms": arms, "gates": [gate]}))
    spec = load_acceptance(str(file))
    assert spec.config("a", 0).data.source.settings["path"] == str(places / "x.npz")
