"""The table of hashes: it covers all there is, is the same twice, and notices a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedlab.assembly import METHODS
from fedlab.server.strategies import STRATEGIES

FAST = "strategy/fedavg"


@pytest.mark.parametrize("name", METHODS.builtin)
def test_every_method_has_an_entry(name: str) -> None:
    from benchmarks.hashes import entries

    assert entries()[f"method/{name}"]["method"]["name"] == name


@pytest.mark.parametrize("name", STRATEGIES.builtin)
def test_every_strategy_has_an_entry(name: str) -> None:
    from benchmarks.hashes import entries

    assert entries()[f"strategy/{name}"]["federation"]["strategy"]["name"] == name


def test_every_entry_is_a_configuration() -> None:
    """All keys are known, so a renamed one is noticed here and not after minutes of training."""
    from benchmarks.hashes import configuration, entries

    for sections in entries().values():
        configuration(sections, Path("nowhere"), 0)


def test_a_run_is_the_same_twice_and_another_with_another_seed(tmp_path: Path) -> None:
    from benchmarks.hashes import entries, measure

    first, again, other = (
        measure(entries()[FAST], tmp_path / str(number), seed) for number, seed in enumerate((0, 0, 1))
    )
    assert first == again
    assert first["weights"] != other["weights"]
    assert "accuracy" in first["metrics"]


def test_a_table_is_checked_against_what_is_found_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.hashes import main

    file = tmp_path / "table.json"
    assert main(["--write", str(file), "--only", FAST]) == 0
    assert main(["--check", str(file), "--only", FAST]) == 0
    table = json.loads(file.read_text(encoding="utf-8"))
    table["runs"][FAST]["weights"] = "another"
    file.write_text(json.dumps(table), encoding="utf-8")
    capsys.readouterr()
    assert main(["--check", str(file), "--only", FAST]) == 1
    assert f"{FAST}: weights differ" in capsys.readouterr().err


def test_runs_that_are_missing_on_either_side_are_differences() -> None:
    from benchmarks.hashes import differences

    one, two = {"weights": "1", "metrics": "{}"}, {"weights": "1", "metrics": "{'loss': 2.0}"}
    assert differences({"a": one}, {"a": one}) == {}
    assert differences({"a": one, "b": one}, {"a": two, "c": one}) == {"a": "metrics differ", "c": "not in the table"}


def test_the_hash_sees_names_types_shapes_and_values_and_nothing_but_the_network() -> None:
    import torch

    from benchmarks.hashes import digest

    def hashed(**tensors: torch.Tensor) -> str:
        return digest({name.replace("__", "/"): value for name, value in tensors.items()})

    zeros = torch.zeros(2, 2)
    plain = hashed(network__a=zeros)
    assert hashed(network__a=zeros, strategy__b=zeros.clone()) == plain
    others = {
        hashed(network__b=zeros),
        hashed(network__a=zeros.int()),
        hashed(network__a=zeros.reshape(4)),
        hashed(network__a=zeros + 1),
        hashed(network__a=zeros.to(torch.bfloat16)),
    }
    assert len(others) == 5
    assert plain not in others
    with pytest.raises(ValueError, match="no network state"):
        hashed(strategy__b=zeros)
