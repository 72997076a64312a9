"""Arms of FedLGD's acceptance experiment do equal work where they are compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fedlab
from fedlab.methods.fedlgd.method import FedLGD
from fedlab.studies.acceptance import load_acceptance

SHORT = {
    "data.source.test_size": 60,
    "method.warmup_steps": 1,
    "method.dm_steps": 1,
    "method.gm_steps": 1,
    "method.spacing": 1,
    "federation.rounds": 2,
    "evaluation.every": 2,
    "tracking.console": "quiet",
    "engine.name": "inline",
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[int, list[int]]]:
    """``work(arm)``: round → the sizes of a client's batches, which are the same for all clients."""
    plain = FedLGD.loss

    def done(arm: str) -> dict[int, list[int]]:
        sizes: dict[int, dict[int, int]] = {1: {}, 2: {}}

        def recorded(self: Any, networks: Any, batch: Any, step: Any) -> Any:
            size = len(batch["label"])
            assert sizes[step.round].setdefault(step.index, size) == size
            return plain(self, networks, batch, step)

        monkeypatch.setattr(FedLGD, "loss", recorded)
        places = {"tracking.folder": str(tmp_path / "runs"), "tracking.cache": str(tmp_path / "cache")}
        fedlab.run(load_acceptance("fedlgd").config(arm, 0).with_overrides({**SHORT, **places}))
        return {round: [of[index] for index in sorted(of)] for round, of in sizes.items()}

    return done


def test_arms_that_are_compared_make_as_many_steps_over_as_many_images(work: Callable[..., Any]) -> None:
    assert work("fedlgd") == {1: [32, 32, 32, 4], 2: [32, 32, 32, 4]}
    assert work("fedavg_virtual_matched") == {1: [32, 18] * 2, 2: [32, 18] * 2}
    # these train on the global images as FedLGD does, whatever the images are
    for arm in ("frozen_anchors", "refreshed_noise_anchors"):
        changed = load_acceptance("fedlgd").arms[arm].keys()
        assert changed <= {"method.updates", "method.gm_enabled"}


def test_fedavg_with_one_epoch_makes_half_the_steps(work: Callable[..., Any]) -> None:
    assert work("fedavg_virtual") == {1: [32, 18], 2: [32, 18]}


def test_every_gate_compares_arms_of_equal_work() -> None:
    unequal = "fedavg_virtual"
    assert not [gate.name for gate in load_acceptance("fedlgd").gates if unequal in gate.arms]
