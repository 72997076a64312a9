"""Changes to a configuration as strings and as mappings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlab.config import Component, Config, apply_overrides
from fedlab.config.overrides import changes
from fedlab.errors import ConfigErrors
from fedlab.experiment.configuration import configure


def made(overrides: Any) -> list[tuple[str, Any]]:
    return changes(overrides, Config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.lr=0.125", "federation.rounds=3", "model={name: mlp, hidden: [8]}"],
        {"training.lr": 0.125, "federation.rounds": 3, "model": {"name": "mlp", "hidden": [8]}},
        {"training": {"lr": 0.125}, "federation": {"rounds": 3}, "model": {"name": "mlp", "hidden": (8,)}},
        {
            "training": {"lr": np.float64(0.125)},
            "federation.rounds": np.int64(3),
            "model": Component(name="mlp", hidden=[8]),
        },
    ],
)
def test_all_forms_say_the_same(overrides: Any) -> None:
    assert made(overrides) == [
        ("training.lr", 0.125),
        ("federation.rounds", 3),
        ("model", {"name": "mlp", "hidden": [8]}),
    ]
    config = configure("supervised", overrides)
    assert (config.training.lr, config.federation.rounds, config.model.settings["hidden"]) == (0.125, 3, [8])
    assert config.training.batch_size == 32, "the keys beside it stay"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model": {"width": 8}}, [("model.width", 8)]),
        ({"federation": {"sampler": {"fraction": 0.5}}}, [("federation.sampler.fraction", 0.5)]),
        ({"data": {"mean": {"mnist": [0.1]}}}, [("data.mean", {"mnist": [0.1]})]),
        ({"data.held": {"probe": {"share": 0.1}}}, [("data.held", {"probe": {"share": 0.1}})]),
        ({"federation.devices": {}}, [("federation.devices", {})]),
        ({"federation": {"devices": {"spread": 2}}}, [("federation.devices.spread", 2)]),
        (
            {"data": {"partition": [{"name": "iid", "clients": 2}]}},
            [("data.partition", [{"name": "iid", "clients": 2}])],
        ),
        ({"tracking.folder": Path("/x/y")}, [("tracking.folder", "/x/y")]),
        ({"tracking.name": "1e3"}, [("tracking.name", "1e3")]),
        ({"privacy": None}, [("privacy", None)]),
        (["tracking.name=1e3"], [("tracking.name", 1000.0)]),
        (["training={lr: 0.5}"], [("training", {"lr": 0.5})]),
    ],
)
def test_a_mapping_changes_the_keys_of_sections_and_replaces_all_other_values(
    overrides: Any, expected: list[tuple[str, Any]]
) -> None:
    assert made(overrides) == expected
    assert made(made(overrides)) == expected, "what was read once is not read again"


def test_a_section_in_a_string_replaces_the_whole_section_as_ever() -> None:
    assert apply_overrides({"training": {"lr": 1, "batch_size": 4}}, ["training={lr: 0.5}"])["training"] == {"lr": 0.5}
    changed = apply_overrides({"training": {"lr": 1, "batch_size": 4}}, {"training": {"lr": 0.5}})
    assert changed["training"] == {"lr": 0.5, "batch_size": 4}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("training.lr=0.1", "a list of strings"),
        (7, "a list of strings"),
        ([3], "dotted.key=value"),
        (["training.lr"], "dotted.key=value"),
        ({3: 4}, "as text"),
        ({"training": {3: 4}}, "as text"),
        ({"model": object()}, "model=…"),
        ({"data": {"partition": [{"name": object()}]}}, "data.partition.0.name"),
    ],
)
def test_what_is_no_change_is_refused(overrides: Any, words: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        made(overrides)
    assert words in str(caught.value)


def test_an_unknown_key_in_a_mapping_is_named_as_one_on_the_command_line_is() -> None:
    with pytest.raises(ConfigErrors, match=r"training\.lrr"):
        configure("supervised", {"training": {"lrr": 0.1}})
