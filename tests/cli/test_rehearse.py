"""`fedlab rehearse`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab.experiment.rehearse as rehearsing
from fedlab.config import Config
from fedlab.experiment.rehearse import Reality, trial

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of `rehearse` itself start its process; these are about what is said of its result."""

    def here(config: Config, reality: Reality, limit: int | None, tell: Callable[[str], None]) -> Any:
        return trial(
            config, reality, limit, 8 * 10**9, lambda message: tell(message[1]) if message[0] == "phase" else None
        )

    monkeypatch.setattr(rehearsing, "rehearse", here)


def test_measured_and_extrapolated_stand_apart(cli: Cli, tiny: Path) -> None:
    result = cli("rehearse", tiny)
    assert result.exit_code == 0, result.output
    heads = [line.split(" on ")[0] for line in result.stdout.splitlines() if line and line[0] in "em"]
    assert heads == ["estimated before anything was built", "measured", "extrapolated for 1 worker"]
    told = ("parameters            7,690 model", "30.8 kB down, 30.8 kB up")
    for part in (*told, "memory of a worker", "memory of the server", "a step", "the whole run", "seconds of"):
        assert part in result.stdout
    assert "… worker: train, round 1" in result.stderr
    assert not (tiny.parent / "runs").exists()


def test_json_can_be_read(cli: Cli, tiny: Path) -> None:
    result = cli("rehearse", tiny, "--json", "--set", "model.name=convnet", "--set", "model.width=4")
    report = json.loads(result.stdout)
    assert report["status"] == "rehearsed"
    assert report["estimated"]["parameters"]["model"] < 7000


def test_data_that_is_not_here_is_described_by_options(cli: Cli, tiny: Path) -> None:
    away = "data.source={name: hub, path: nobody/nothing, size: 8, channels: 3}"
    words = ("--set", away, "--set", "data.partition=[{name: iid, clients: 2}]", "--samples", 640, "--test-samples", 64)
    result = cli("rehearse", tiny, *words, "--classes", 5)
    assert "replaced: data (hub data set 'nobody/nothing'" in result.stdout
    assert "965 model" in result.stdout
    assert "10 steps of each client" in result.stdout
    assert "not counted" not in result.stdout


def test_what_does_not_fit_is_said_before_it_is_built(cli: Cli, tiny: Path) -> None:
    result = cli("rehearse", tiny, "--set", "model={name: convnet, width: 20000}", "--memory", 4)
    assert result.exit_code == 2
    assert "not rehearsed: that is more than the 4.00 GB it may take, so nothing was built" in result.stdout
    assert "the run does not fit: 1 worker" in result.stdout
    assert "memory = '4.00 GB for the rehearsal'" in result.stderr
    assert "measured" not in result.stdout


def test_a_rehearsal_that_was_ended_says_where(cli: Cli, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = rehearsing.rehearse

    def ended(*arguments: Any) -> Any:
        report = inner(*arguments)
        more = {"status": "stopped", "taken": 5 * 10**9, "limit": 4 * 10**9, "phase": "worker: train, round 1"}
        return {**report, **more}

    monkeypatch.setattr(rehearsing, "rehearse", ended)
    result = cli("rehearse", tiny)
    assert result.exit_code == 2
    assert (
        "ended in the phase 'worker: train, round 1', when it took 5.00 GB of the 4.00 GB it may take" in result.stdout
    )
    assert "at least 5.00 GB, in the phase 'worker: train, round 1'" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--memory", "0"), "--memory = 0.0"),
        (("--set", "model.nmae=x"), "nmae"),
        (("--samples", "0"), "--samples"),
        (("--record",), "--record"),
    ],
)
def test_wrong_input_is_refused(cli: Cli, tiny: Path, words: tuple[str, ...], told: str) -> None:
    result = cli("rehearse", tiny, *words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_users_own_method_is_rehearsed(cli: Cli, tiny: Path, user_method: Callable[[str], str]) -> None:
    reference = user_method("assert len(batch['image'])")
    result = cli("rehearse", tiny, "--set", f"method={{name: '{reference}'}}")
    assert result.exit_code == 0, result.output
    assert "memory of a worker" in result.stdout
