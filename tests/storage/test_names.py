"""Names from data as names of files: safe, short, unique."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab.storage.names import file_name
from fedlab.studies.plan import folder_name


@pytest.mark.parametrize("name", ["virtual-global", "site_1", "lr=0.1", "a, b", "a+b(c)", "x.y"])
def test_plain_names_stay(name: str) -> None:
    assert file_name(name) == name.replace(", ", ",")


@pytest.mark.parametrize(
    "name", ["site/A", "x" * 400, "nul\0", "../../etc", "..", ".", "", "-rf", ".hidden", "東京", "a\nb", "\ud83d", "~"]
)
def test_any_other_name_becomes_a_safe_one(name: str) -> None:
    found = file_name(name)
    assert found.isascii()
    assert not set(found) & set("/\0\n\\: ~")
    assert not found.startswith((".", "-"))
    assert 0 < len(found) <= 80 + 1 + 16


@given(st.lists(st.text(alphabet=st.characters(codec=None), max_size=100), unique=True, max_size=20))
def test_different_names_stay_different(names: list[str]) -> None:
    assert len({file_name(name) for name in names}) == len(names)


def test_a_name_like_what_another_one_becomes_is_hashed_too() -> None:
    made = file_name("site/A")
    assert file_name(made) != made


def test_names_of_the_points_of_a_sweep_are_those_of_earlier_versions() -> None:
    assert folder_name("training.lr=0.1, seed=3") == "training.lr=0.1,seed=3"
    assert folder_name("strategy={name: x}") == "strategy=-name-x--596c4b2c"
