"""A run folder that an earlier version of FedLab wrote opens, and its run goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedlab
from fedlab.storage.checkpoint import load_checkpoint

Cli = Callable[..., Any]
OLD = {"optimizer: sgd": "optimiser: sgd", "vectorize: 2": "vectorise: 2", "name: quantize": "name: quantise"}


@pytest.fixture
def earlier(tiny: Path) -> tuple[Path, Path]:
    """A run that an earlier version broke off after round 1, and the same one uninterrupted."""
    overrides = ["engine.vectorize=2", "exchange.compression=[quantize]", "tracking.checkpoint_every=1"]
    whole = fedlab.run(tiny, overrides=[*overrides, "federation.rounds=2"]).path
    begun = fedlab.run(tiny, overrides=[*overrides, "federation.rounds=2"], until=1).path
    text = (begun / "config.yaml").read_text(encoding="utf-8")
    for new, old in OLD.items():
        assert text.count(new) == 1
        text = text.replace(new, old)
    (begun / "config.yaml").write_text(text, encoding="utf-8")
    with (begun / "events.jsonl").open("a", encoding="utf-8") as events:
        events.write(json.dumps({"event": "vectorise", "clients": 2, "alone": 2.0, "together": 1.0}) + "\n")
    return begun, whole


def test_an_earlier_run_opens_and_goes_on_to_the_same_weights(earlier: tuple[Path, Path], cli: Cli) -> None:
    begun, whole = earlier
    copy = shutil.copytree(begun, begun.with_name("copy"))
    for command in (("show", copy), ("report", copy), ("compare", copy, whole)):
        result = cli(*command)
        assert result.exit_code == 0, result.output
    assert "the configurations do not differ" in result.output
    result = cli("resume", begun)
    assert result.exit_code == 0, result.output
    (tensors, _), (expected, _) = (load_checkpoint(fedlab.load(path).checkpoint) for path in (begun, whole))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert "optimizer: sgd" in (begun / "config.yaml").read_text(encoding="utf-8")
