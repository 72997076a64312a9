"""Recorded rehearsals and the tables made of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import fedlab.studies.rehearsed as rehearsed_module
from fedlab.assembly import METHODS
from fedlab.errors import InputError
from fedlab.studies.rehearsed import CARD, FILE, comparison_table, record, recorded, rehearsals_table, stale


def report(**changes: Any) -> dict[str, Any]:
    stage = {"round": 1, "step": 3.0, "idle": 1.0, "own_loop": False, "down": 2_000_000, "up": 1_000_000}
    return {
        "status": "rehearsed", "method": "fedlgd", "workers": 2,
        "replaced": ["data (no /secret/place (x)): 64 samples"],
        "estimated": {"parameters": {"model": 1_500_000, "other": 500_000}, "worker": 10**9, "server": 2 * 10**9},
        "measured": {"worker": {"bytes": 3 * 10**9}, "server": {"bytes": 4 * 10**9}, "stages": [stage]},
        "extrapolated": {"run_seconds": 1_000_000.0, "round_seconds": [10.123456789, None]},
        "private": "not kept", **changes,
    }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the method's, which is the only one."""
    real = rehearsed_module.method_folder("fedlgd", "METHOD")
    for name in ("config.yaml", "paper_digits.yaml", "paper_retina.yaml"):
        shutil.copy(real / name, tmp_path)
    monkeypatch.setattr(rehearsed_module, "method_folder", lambda name, key: tmp_path)
    monkeypatch.setattr(METHODS, "builtin", {"fedlgd": METHODS.builtin["fedlgd"]})
    return tmp_path


def test_a_record_is_kept_by_configuration_and_names_no_place(home: Path) -> None:
    assert record(report(), "fedlgd") == home / FILE
    record(report(status="too large"), str(home / "paper_digits.yaml"))
    text = (home / FILE).read_text()
    assert "secret" not in text
    assert "not kept" not in text
    found = recorded("fedlgd")
    assert list(found) == ["config.yaml", "paper_digits.yaml"]
    assert found["config.yaml"]["replaced"] == ["data: 64 samples"]
    assert found["config.yaml"]["extrapolated"]["round_seconds"] == [10.1235, None]
    assert stale() == []
    (home / "paper_digits.yaml").write_text("changed")
    assert stale() == ["fedlgd/paper_digits.yaml"]


def test_a_configuration_elsewhere_is_not_recorded(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "paper.yaml"
    other.touch()
    with pytest.raises(InputError, match="a configuration in the folder of its method"):
        record(report(), str(other))
    assert not (home / FILE).exists()


def test_a_method_is_compared_by_its_card_and_its_record(home: Path) -> None:
    assert comparison_table()[1][2:] == ["–"] * 5
    (home / CARD).write_text("distils: clients\nstays: images\nlimits: slow\n")
    record(report(), "fedlgd")
    assert comparison_table()[1][1:] == [
        "images", "clients", "images", "2.00 MB, 1.00 MB", "10.1 s, 2 workers", "slow",
    ]  # fmt: skip
    own = report()
    own["measured"]["stages"][0]["own_loop"] = True
    record(own, "fedlgd")
    assert comparison_table()[1][5] == "10.1 s and more, 2 workers"
    record(own, str(home / "paper_digits.yaml"))
    assert rehearsals_table()[1][-1] == "12 days and more"
    (home / CARD).write_text("distills: clients\n")
    with pytest.raises(InputError, match="distills"):
        comparison_table()


def test_every_configuration_of_paper_size_has_a_row(home: Path) -> None:
    record(report(), str(home / "paper_digits.yaml"))
    first, second = rehearsals_table()[1:]
    assert first == [
        "fedlgd/paper_digits.yaml", "built, rehearsed", "2.0 M", "3.00 GB", "4.00 GB", "2.00 s", "2.00 MB, 1.00 MB",
        "12 days",
    ]  # fmt: skip
    assert second == ["fedlgd/paper_retina.yaml", "not yet", *["–"] * 6]
    record(report(), str(home / "paper_digits.yaml"), ["training.batch_size=4"])
    assert rehearsals_table()[1][1] == "built, rehearsed with `training.batch_size=4`"
    for status, word in (("too large", "not built here"), ("stopped", "built, not run here")):
        lacking = {
            key: value for key, value in report(status=status).items() if key not in ("measured", "extrapolated")
        }
        record(lacking, str(home / "paper_digits.yaml"))
        assert rehearsals_table()[1][1:5] == [word, "2.0 M", "at least 1.00 GB", "at least 2.00 GB"]


@pytest.mark.parametrize("name", METHODS.builtin)
def test_what_is_recorded_can_be_read(name: str) -> None:
    for found in recorded(name).values():
        assert found["status"] in ("rehearsed", "too large", "stopped")
        assert not any(" (" in text for text in found["replaced"]), "it names a place on a machine"
        assert found["estimated"]["parameters"]


def test_the_table_of_a_method_without_files_is_not_empty() -> None:
    rows = comparison_table()
    assert [row[0].split("]")[0][1:] for row in rows[1:]] == list(METHODS.builtin)
    assert all(len(row) == len(rows[0]) for row in (*rows, *rehearsals_table()[:0]))
