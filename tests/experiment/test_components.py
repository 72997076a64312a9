"""Every setting of every component is spelled out, and whether it is makes no difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fedlab.cli.describe import describe
from fedlab.config import Component, Config, apply_overrides, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.checks import resolve
from fedlab.experiment.components import REGISTRIES, bare, complete, settings_of
from fedlab.experiment.configuration import configure
from fedlab.registry import Registry
from fedlab.studies.plan import _essence

MINIMAL: dict[str, Any] = {"method": "supervised", "data": {"source": "digits"}}
COMPONENTS = [(key, name) for key, registry in REGISTRIES.items() for name in registry.names()]
MANY = (
    "data.partition",
    "data.drift",
    "data.augment",
    "exchange.compression",
    "probes",
    "callbacks",
    "tracking.trackers",
)
NEEDED: dict[str, Any] = {
    "path": "x", "clients": 2, "images": 4, "rounds": 2, "sources": {"a": "digits"}, "classes": 2, "each": 2,
    "sites": {"a": "digits"}, "corruptions": ["fog"], "fraction": 0.5, "client_learning_rate": 0.1, "seconds": 1.0,
    "metric": "loss", "uri": "x",
}  # fmt: skip


def needed(kind: type[BaseModel], name: str) -> dict[str, Any]:
    """The settings that a component cannot do without."""
    found: dict[str, Any] = {key: NEEDED[key] for key, field in kind.model_fields.items() if field.is_required()}
    if name == "market":
        found["sources"] = {"a": "x"}
    if name == "fixed":
        found["clients"] = [0]
    if name == "dp_sgd":
        found["noise_multiplier"] = 1.0
    return found


def with_component(key: str, component: dict[str, Any]) -> dict[str, Any]:
    many = key in MANY
    raw = apply_overrides(MINIMAL, [])
    *sections, last = key.split(".")
    here = raw
    for section in sections:
        here = here.setdefault(section, {})
    here[last] = [component] if many else component
    return raw


@pytest.mark.parametrize(("key", "name"), COMPONENTS)
def test_every_setting_of_every_component_is_spelled_out_and_taken_away_again(key: str, name: str) -> None:
    registry: Registry = REGISTRIES[key]
    kind = settings_of(registry, name)
    assert kind is not None, f"{name} has no settings class, so a run cannot record what it was set to"
    given = needed(kind, name)
    raw = with_component(key, {"name": name, **given})
    config = complete(parse(Config, raw))
    ((found,),) = [[c for c in components(config) if c.name == name and key_of(config, c) == key]]
    left_open = getattr(kind, "passed_on", frozenset())
    assert set(found.settings) == {*kind.model_fields} - left_open
    assert complete(config) == config
    again = bare(config.model_dump(mode="json"))
    assert complete(parse(Config, again)) == config
    assert set(_at(again, key)) == {"name", *given}


def components(config: Config) -> list[Component]:
    return [component for key in REGISTRIES for component in _listed(config, key)]


def key_of(config: Config, component: Component) -> str:
    return next(key for key in REGISTRIES if any(found is component for found in _listed(config, key)))


def _listed(config: Config, key: str) -> list[Component]:
    here: Any = config
    for part in key.split("."):
        here = getattr(here, part)
    return [c for c in (here if isinstance(here, tuple) else (here,)) if c is not None]


def _at(raw: dict[str, Any], key: str) -> dict[str, Any]:
    here: Any = raw
    for part in key.split("."):
        here = here[part]
    return here[0] if isinstance(here, list) else here


def test_components_inside_components_are_spelled_out_too() -> None:
    union = {"name": "union", "sources": {"a": "digits", "b": {"name": "digits", "size": 16}}}
    config = configure({**MINIMAL, "data": {"source": union}})
    inner = config.data.source.settings["sources"]
    assert (inner["a"]["size"], inner["b"]["size"], inner["b"]["test_per_domain"]) == (28, 16, 500)
    students = {"name": "cda", "post": {"students": {"one": "convnet"}}}
    found = configure({**MINIMAL, "method": students}).method.settings["post"]["students"]["one"]
    assert found["width"] == 128


def test_what_is_wrong_is_left_for_the_check_to_tell() -> None:
    raw = {**MINIMAL, "model": {"name": "convnet", "widht": 3}, "federation": {"sampler": "no.such:Thing"}}
    config = configure(raw)
    assert config.model.settings == {"widht": 3}
    with pytest.raises(ConfigErrors, match="did you mean 'width'"):
        resolve(config)


# overrides


@pytest.mark.parametrize(
    ("override", "key", "seen"),
    [
        ("federation.sampler.fraction=0.1", "federation.sampler", {"name": "uniform", "fraction": 0.1}),
        ("federation.strategy.name=fedprox", "federation.strategy", {"name": "fedprox"}),
        ("data.partition.0.clients=3", "data.partition", {"name": "iid", "clients": 3}),
        ("model.width=8", "model", {"name": "convnet", "width": 8}),
        ("method.nothing=1", "method", {"name": "supervised", "nothing": 1}),
    ],
)
def test_a_dotted_override_changes_what_is_there_by_default(override: str, key: str, seen: dict[str, Any]) -> None:
    assert _at(apply_overrides(MINIMAL, [override]), key) == seen


def test_every_default_component_takes_a_dotted_override() -> None:
    for key in REGISTRIES:
        field_default = _listed(parse(Config, MINIMAL), key)
        for index, component in enumerate(field_default):
            place = f"{key}.{index}" if key in MANY else key
            changed = parse(Config, apply_overrides(MINIMAL, [f"{place}.some_setting=1"]))
            assert _listed(changed, key)[index] == Component(name=component.name, **component.settings, some_setting=1)


def test_a_default_that_is_a_list_of_numbers_is_addressed_by_index() -> None:
    assert parse(Config, apply_overrides(MINIMAL, ["data.mean.0=0.25"])).data.mean == (0.25,)
    with pytest.raises(ConfigErrors, match="this list is empty"):
        apply_overrides(MINIMAL, ["data.drift.0.name=labels"])


def test_a_component_is_exchanged_by_its_name_whether_its_defaults_are_spelled_out_or_not(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(configure(MINIMAL).to_yaml())
    overrides = ["model.name=logistic", "federation.strategy.name=fedprox", "federation.strategy.mu=0.5"]
    assert configure(tmp_path / "whole.yaml", overrides) == configure(MINIMAL, overrides)
    assert configure(configure(MINIMAL), overrides) == configure(MINIMAL, overrides)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (
            {**MINIMAL, "federation": {"sampler": {"fraction": 0.1}}},
            "sampler.name: this key is required; set it",
        ),
        ({"data": {"source": "digits"}}, "method: this key is required; set it"),
    ],
)
def test_a_key_that_is_missing_is_told_as_missing_and_not_as_none(raw: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(Config, raw)
    assert told in str(caught.value)
    assert "None" not in str(caught.value)


# equality


def test_configurations_are_equal_whether_defaults_are_spelled_out_or_not() -> None:
    plain = parse(Config, {**MINIMAL, "data": {"source": "digits", "partition": [{"name": "dirichlet", "clients": 2}]}})
    assert plain != complete(plain)
    assert _essence(plain) == _essence(complete(plain))
    assert _essence(plain) != _essence(complete(plain.with_overrides({"data.partition.0.alpha": 0.25})))


# describe


@pytest.mark.parametrize(
    ("override", "key", "told"),
    [
        ("data.source=folder", "data.source.path", "this key is required"),
        ("data.source={name: folder, path: x, siz: 3}", "data.source.siz", "did you mean 'size'?"),
        ("data.source=foldr", "data.source.name", "did you mean 'folder'?"),
        ("data.partition=[dirichlet]", "data.partition.0.clients", "this key is required"),
        ("model={name: convnet, depth: x}", "model.depth", "a whole number"),
        ("federation.strategy=no.such:Thing", "federation.strategy.name", "No module named 'no'"),
    ],
)
def test_describe_tells_what_is_missing_or_wrong(override: str, key: str, told: str) -> None:
    rows = {row[0]: row for row in describe(configure(MINIMAL, [override]))}
    assert told in rows[key][4]
    assert rows["engine.name"]


def test_a_strategy_class_of_ones_own_keeps_what_it_passes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "passing_strategy.py").write_text(
        "from flwr.serverapp.strategy import FedAvg\n\n"
        "class Half(FedAvg):\n"
        "    def __init__(self, share: float = 0.25, **options):\n"
        "        super().__init__(fraction_train=share, **options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from fedlab.server.strategies import make_strategy

    config = configure({**MINIMAL, "federation": {"strategy": "passing_strategy:Half"}})
    assert config.federation.strategy.settings == {"share": 0.25}
    spelled = {"name": "passing_strategy:Half", "min_train_nodes": 2}
    kept = configure(configure({**MINIMAL, "federation": {"strategy": spelled}}), ["seed=1"])
    assert kept.federation.strategy.settings == {"share": 0.25, "min_train_nodes": 2}
    assert make_strategy(config.federation.strategy).fraction_train == 0.25
    with pytest.raises(ConfigError, match="fraction_train"):
        make_strategy(Component(name="passing_strategy:Half", fraction_train=1.0))
