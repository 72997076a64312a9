"""``data.holds``: which client holds which assets, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fedlab.config import DataConfig, parse
from fedlab.data.holdings import Holdings
from fedlab.errors import ConfigErrors

CLIENTS = ("site-10", "site-11", "site-2", "lab")
ASSETS = ("uni", "phikon", "conch")


def holdings(holds: dict[str, list[str]], names: Sequence[str] = ASSETS, **data: Any) -> Holdings:
    return Holdings(parse(DataConfig, {"source": "digits", "holds": holds, **data}), CLIENTS, names)


def enough(holds: Sequence[str]) -> str:
    return ""


def test_the_first_pattern_that_matches_decides_and_names_come_in_the_methods_order() -> None:
    held = holdings({"site-1*": ["phikon", "uni"], "site-*": ["conch"]})
    assert [held.of(client) for client in range(4)] == [("uni", "phikon"), ("uni", "phikon"), ("conch",), ()]
    assert held.different(range(4)) == {("uni", "phikon"): [0, 1], ("conch",): [2], (): [3]}
    held.check(range(4), enough)


def test_without_the_key_every_client_holds_everything_and_the_server_nothing() -> None:
    held = holdings({})
    assert {held.of(client) for client in range(4)} == {ASSETS}
    assert held.server == ()
    assert holdings({}, server_holds=["conch", "uni"]).server == ("uni", "conch")


@pytest.mark.parametrize(
    ("holds", "more", "key", "hint"),
    [
        ({"site-1*": ["uno"]}, {}, "data.holds.site-1*", "did you mean 'uni'"),
        ({"site-3*": ["uni"], "*": ["uni"]}, {}, "data.holds", "names of clients, or patterns"),
        ({"*": ["uni"], "lab": ["conch"]}, {}, "data.holds", "write it before them"),
        ({}, {"server_holds": ["unii"]}, "data.server_holds", "did you mean 'uni'"),
        ({}, {"assets": {"conc": "/weights"}}, "data.assets", "did you mean 'conch'"),
    ],
)
def test_what_decides_nothing_is_refused(
    holds: dict[str, list[str]], more: dict[str, Any], key: str, hint: str
) -> None:
    with pytest.raises(ConfigErrors, match=hint) as caught:
        holdings(holds, **more).check(range(4), enough)
    assert [error.key for error in caught.value.errors] == [key]


def test_a_method_without_assets_takes_none_of_the_keys() -> None:
    holdings({}, ()).check(range(4), enough)
    with pytest.raises(ConfigErrors, match="a method that has assets"):
        holdings({"*": ["uni"]}, ()).check(range(4), enough)


def test_a_name_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigErrors, match="different names, each once"):
        holdings({"*": ["uni", "uni"]})


def test_a_training_client_that_lacks_what_it_needs_is_refused_by_name() -> None:
    def lacks(holds: Sequence[str]) -> str:
        return "" if holds else "an expert (uni, phikon or conch)"

    held = holdings({"site-1*": ["uni"], "site-*": ["conch"]})
    held.check([0, 1, 2], lacks)  # the client that holds nothing never trains
    with pytest.raises(ConfigErrors, match=r"nothing on 'lab'[\s\S]*an expert \(uni, phikon or conch\), which every"):
        held.check(range(4), lacks)


def test_what_nobody_holds_is_told() -> None:
    (warning,) = holdings({"site-1*": ["uni"], "*": ["phikon"]}).unused(range(4))
    assert "'conch'" in warning
    assert holdings({"*": ["uni", "phikon"]}, server_holds=["conch"]).unused(range(4)) == []
    assert [text.split("'")[1] for text in holdings({"site-1*": ["uni"], "*": ["phikon"]}).unused([0])] == [
        "phikon",
        "conch",
    ]
