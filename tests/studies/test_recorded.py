"""Outcomes beside acceptance.yaml, and the tables made of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import fedlab.studies.recorded as recorded_module
from fedlab.assembly import METHODS
from fedlab.errors import InputError
from fedlab.studies.acceptance import load_acceptance
from fedlab.studies.gates import Gate
from fedlab.studies.outcome import Outcome, Verdict
from fedlab.studies.recorded import FILE, method_code, outcomes_table, record, recorded, stale

RECORDED = [name for name in METHODS.builtin if recorded(name) is not None]


def outcome(seeds: tuple[int, ...], met: bool | None = True) -> Outcome:
    """An outcome of FedLGD's experiment whose runs are made up."""
    spec = load_acceptance("fedlgd")
    runs: Any = {arm: {seed: _Run() for seed in seeds} for arm in spec.arms}
    verdicts = tuple(Verdict(gate, {0: 1 / 3, 1: 2 / 3}, 0.5, met) for gate in spec.gates)
    return Outcome(spec, seeds, runs, {}, verdicts)


class _Run:
    """A run without events."""

    from fedlab.tracking import History

    history = History()
    path = folder = Path("nowhere")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the method's."""
    real = recorded_module._folder("fedlgd")
    shutil.copy(real / "acceptance.yaml", tmp_path)
    monkeypatch.setattr(recorded_module, "_folder", lambda method: tmp_path)
    return tmp_path


def test_an_outcome_is_recorded_and_knows_what_it_is_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record(outcome((0, 1, 2, 3, 4)), "fedlgd")
    assert path == home / FILE
    found = recorded("fedlgd")
    assert found is not None
    assert found.is_of_this_experiment
    assert found.is_of_this_code
    gate = found.values["gates"][0]
    assert (gate["seeds"], gate["std"], gate["met"]) == ({"0": 0.333333, "1": 0.666667}, 0.235702, True)
    assert len(found.gates(met=True)) == len(found.values["gates"])
    monkeypatch.setattr(METHODS, "builtin", {"fedlgd": METHODS.builtin["fedlgd"]})
    assert outcomes_table()[1][:4] == ["fedlgd", "4 of 4", "", "0 to 4"]
    assert stale() == []
    path.write_text(json.dumps({**found.values, "code": "another", "experiment": "another"}))
    found = recorded("fedlgd")
    assert found is not None
    assert not found.is_of_this_experiment
    assert stale() == ["fedlgd"]


def test_missed_gates_are_named_in_the_table(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(outcome((0, 1, 2, 3, 4), met=False), "fedlgd")
    monkeypatch.setattr(METHODS, "builtin", {"fedlgd": METHODS.builtin["fedlgd"]})
    _, met, missed, *_ = outcomes_table()[1]
    assert met == "0 of 4"
    assert missed.split("; ") == [gate.name for gate in load_acceptance("fedlgd").gates]


def test_half_an_experiment_is_not_recorded(home: Path) -> None:
    with pytest.raises(InputError, match="missing are"):
        record(outcome((0, 1)), "fedlgd")
    assert not (home / FILE).exists()


def test_the_hash_of_the_code_sees_statements_and_not_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = method_code("fedlgd")
    real = recorded_module._file

    def changed(old: str, new: str) -> str:
        def file(name: str) -> Path | None:
            path = real(name)
            if path is None or not name.endswith("distill.matching"):
                return path
            text = path.read_text(encoding="utf-8")
            assert old in text
            copy = tmp_path / "matching.py"
            copy.write_text(text.replace(old, new, 1))
            return copy

        monkeypatch.setattr(recorded_module, "_file", file)
        return method_code("fedlgd")

    assert changed('"""', '"""Another first word: ') == before
    assert changed("import torch", "import torch\n\nEXTRA = 1") != before


def test_the_hash_covers_what_is_imported() -> None:
    found = recorded_module._Modules(METHODS.find("asit").__module__).found
    assert {"fedlab.methods.asit.views", "fedlab.distill.gmml", "fedlab.distill.ema", "fedlab.method"} <= set(found)
    assert "fedlab.server.loop" not in found


@pytest.mark.parametrize("method", RECORDED)
def test_recorded_outcomes_are_of_the_present_experiments(method: str) -> None:
    found = recorded(method)
    assert found is not None
    assert found.is_of_this_experiment, "acceptance.yaml has changed: fedlab reproduce METHOD --record"


def test_gates_of_recorded_outcomes_say_what_they_exclude() -> None:
    for method in RECORDED:
        gates: tuple[Gate, ...] = load_acceptance(method).gates
        assert [gate.name for gate in gates if not gate.excludes] == []
