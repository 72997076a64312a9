"""The reference of keys: all of them, each once, with what they mean."""

from __future__ import annotations

from pydantic import Field

from fedlab.cli.describe import reference
from fedlab.config import Component, ComponentField, Config, Section


class Inner(Section):
    """An inner section."""

    deep: float = Field(default=0.5, gt=0, le=1, description="how deep")


class Outer(Section):
    """A section with all kinds of keys."""

    needed: int = Field(description="must be given")
    mode: str = Field(default="a", alias="as", description="an alias")
    always: Inner = Inner()
    maybe: Inner | None = Field(default=None, description="need not be there")
    many: dict[str, Inner] = Field(default={}, description="by name")
    part: ComponentField = Field(default=Component(name="x"), description="a component")


def test_every_kind_of_key_is_listed_with_what_is_below_it() -> None:
    number = "number > 0, ≤ 1"
    assert list(reference(Outer, "o.")) == [
        ("o.needed", "integer", "", "must be given"),
        ("o.as", "string", "a", "an alias"),
        ("o.always.deep", number, "0.5", "how deep"),
        ("o.maybe", "inner or null", "null", "need not be there"),
        ("o.maybe.deep", number, "0.5", "how deep"),
        ("o.many", "mapping to inner", "{}", "by name"),
        ("o.many.NAME.deep", number, "0.5", "how deep"),
        ("o.part", "component", '{"name": "x"}', "a component"),
    ]


def test_the_keys_of_a_configuration_are_all_there_once_and_explained() -> None:
    rows = list(reference(Config))
    keys = [row[0] for row in rows]
    assert len(keys) == len(set(keys))
    asked = {"seed", "training.lr", "federation.devices.speed", "data.held.NAME.share", "data.validation.share"}
    assert asked <= set(keys)
    assert [row[0] for row in rows if not row[3]] == []
