"""What an earlier version wrote, under the words it used then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fedlab
from fedlab.clients.state import StateStore
from fedlab.config import Config, apply_overrides
from fedlab.data.sources.shapecap import ShapeCap, ShapeCapSettings
from fedlab.errors import ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.experiment.configuration import configure
from fedlab.method import ClientState
from fedlab.report.record import RunRecord
from fedlab.storage import renamed
from fedlab.storage.checkpoint import load_checkpoint, save_checkpoint
from fedlab.tracking.jsonl import jsonl_line

# every renamed key or value of a configuration: the method to run, the old key, a value, today's key
SETTINGS = [
    ("supervised", "training.optimiser", "adam", "training.optimizer"),
    ("supervised", "engine.vectorise", 2, "engine.vectorize"),
    ("pat", "method.neighbours", 2, "method.neighbors"),
    ("pat", "method.grey_patch", 0.25, "method.gray_patch"),
    ("cda", "method.post.optimiser", "adamw", "method.post.optimizer"),
    ("degla", "data.source.unseen_colours", ["red"], "data.source.unseen_colors"),
]
VALUES = [
    ("supervised", "exchange.compression", [{"name": "topk"}, {"name": "quantise"}], "quantize"),
    ("degla", "data.source.natural", "colour", "color"),
]


def test_every_renamed_setting_is_tried_here() -> None:
    tried = {key.removeprefix("method.").removeprefix("data.source.") for _, key, _, _ in SETTINGS}
    settings = (renamed.KEYS, *renamed.METHOD_KEYS.values(), *renamed.SOURCE_KEYS.values())
    assert {key for words in settings for key in words} == tried
    values = (renamed.COMPRESSORS, *(w for words in renamed.SOURCE_VALUES.values() for w in words.values()))
    assert {new for words in values for new in words.values()} == {new for *_, new in VALUES}


@pytest.mark.parametrize(("method", "old", "value", "new"), [*SETTINGS, *VALUES])
def test_a_user_s_old_word_is_refused_with_the_new_one(method: str, old: str, value: Any, new: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolve(configure(method, [f"{old}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"]))
    assert f"'{new.rpartition('.')[2]}'" in str(caught.value)


@pytest.mark.parametrize(("method", "old", "value", "new"), SETTINGS)
def test_a_run_s_old_key_is_read(method: str, old: str, value: Any, new: str, tmp_path: Path) -> None:
    config = configure(method)
    source = config.data.source.name
    recorded = apply_overrides(config.model_dump(mode="json"), [])
    *parents, last = old.split(".")
    here = recorded
    for part in parents:
        here = here[part]
    del here[new.rpartition(".")[2]]
    here[last] = value
    assert _read(tmp_path, recorded) == config.with_overrides({new: value})
    assert config.data.source.name == source


def test_values_and_sources_inside_others_are_read_too(tmp_path: Path) -> None:
    old = {"name": "shapecap", "natural": "colour", "unseen_colours": ["red"]}
    union = {"name": "union", "sources": {"one": old, "two": "digits", "three": {"name": "digits"}}}
    raw = {
        "method": "supervised",
        "data": {"source": union},
        "exchange": {"compression": [{"name": "topk", "fraction": 0.5}, {"name": "quantise", "bits": 4}, "fp16"]},
    }
    found = _read(tmp_path, raw)
    inner = found.data.source.settings["sources"]["one"]
    assert inner == {"name": "shapecap", "natural": "color", "unseen_colors": ["red"]}
    ShapeCap(ShapeCapSettings(**{key: value for key, value in inner.items() if key != "name"}))
    assert [stage.name for stage in found.exchange.compression] == ["topk", "quantize", "fp16"]


def test_roles_of_networks_are_renamed_for_their_method_alone(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "method": {"name": "asit"},
        "data": {"source": {"name": "sounds"}},
        "init": {"normaliser": "/runs/a", "teacher": "/runs/b#student"},
        "exchange": {"local": ["normaliser.*", "student.head.*"]},
    }
    found = _read(tmp_path, raw)
    assert found.init == {"normalizer": "/runs/a", "teacher": "/runs/b#student"}
    assert found.exchange.local == ("normalizer.*", "student.head.*")
    raw["method"] = {"name": "my_module:Mine", "neighbours": 3}
    assert _read(tmp_path, raw).model_dump() == Config.model_validate(raw).model_dump()
    assert renamed.configuration({"init": {"model": "/runs/a#normaliser"}}) == {"init": {"model": "/runs/a#normalizer"}}


@pytest.mark.parametrize("torn", [{}, {"training": 3}, {"method": None, "data": []}, {"exchange": {"compression": 1}}])
def test_a_damaged_configuration_is_left_as_it_is(torn: dict[str, Any]) -> None:
    assert renamed.configuration(torn) == torn


def test_events_are_read_and_metrics_renamed_for_their_method_alone(tmp_path: Path) -> None:
    written = [
        {"event": "vectorise", "clients": 16, "alone": 2.0, "together": 1.0},
        {"event": "client", "round": 1, "client": 0, "metrics": {"neighbour_probability": 0.5, "loss": 1.0}},
        {"event": "round", "round": 1, "train": {"neighbour_probability": 0.5, "no_neighbours_single_image": 1.0}},
    ]
    logged = {}
    for method in ("pat", "my_module:Mine"):
        run = tmp_path / method
        run.mkdir()
        (run / "config.yaml").write_text("method: pat")
        start = {"event": "run_start", "method": method, "rounds": 1}
        (run / "events.jsonl").write_text("".join(map(jsonl_line, [start, *written])))
        history = RunRecord.open(run).history
        assert [event["alone"] for event in history.of("vectorize")] == [2.0]
        logged[method] = (history.of("client")[0]["metrics"].keys(), history.rounds[0]["train"].keys())
    today = ({"neighbor_probability", "loss"}, {"neighbor_probability", "no_neighbors_single_image"})
    assert logged == {
        "pat": today,
        "my_module:Mine": (
            {"neighbour_probability", "loss"},
            {"neighbour_probability", "no_neighbours_single_image"},
        ),
    }


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [
        ("asit", "network/normaliser.mean", "network/normalizer.mean"),
        ("asit", "shared/network/normaliser.mean", "shared/network/normalizer.mean"),
        ("asit", "server/optimiser/model/0", "server/optimiser/model/0"),
        ("cda", "server/optimiser/model/0", "server/optimizer/model/0"),
        ("my_module:Mine", "network/normaliser.mean", "network/normaliser.mean"),
    ],
)
def test_tensors_of_checkpoints_and_clients_are_found(method: str, old: str, new: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"method": {"name": method}}))
    bare = old.removeprefix("shared/")
    book = {"count": 1, "versions": {bare: 1}, "held": [[{bare: 1}, [[0, 3]]]]}
    meta = {"round": 1, "shared": book, "class_names": [bare]}
    path = save_checkpoint(
        tmp_path / "checkpoints" / "round_000001", {old: torch.ones(2), "network/x": torch.ones(1)}, meta
    )
    tensors, facts = load_checkpoint(path)
    today = new.removeprefix("shared/")
    assert set(tensors) == {new, "network/x"}
    assert facts["shared"] == {"count": 1, "versions": {today: 1}, "held": [[{today: 1}, [[0, 3]]]]}
    assert facts["class_names"] == [bare]
    store = StateStore(tmp_path / "clients")
    kept = ClientState()
    kept[old] = torch.ones(2)
    store.save(0, 1, kept, None)
    assert set(store.load(0, 1)) == {new}


def _read(folder: Path, raw: dict[str, Any]) -> Config:
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    return fedlab.load(folder).config
