"""training.channels_last and training.compile: the same network, laid out or translated in another way."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fedlab
import fedlab.experiment.decisions
from fedlab.assembly import adapt
from fedlab.config import TrainingConfig
from fedlab.experiment.result import Run


def run(tmp_path: Path, *overrides: str) -> Run:
    config: dict[str, Any] = {
        "method": {"name": "supervised"},
        "model": {"name": "convnet", "width": 4, "depth": 1},
        "data": {
            "source": {"name": "digits", "domains": ["handwritten"], "train_per_domain": 60, "test_per_domain": 20},
            "partition": [{"name": "iid", "clients": 2}],
        },
        "federation": {"rounds": 1},
        "engine": {"name": "inline", "device": "cpu"},
        "tracking": {"folder": str(tmp_path), "console": "quiet", "tensorboard": False},
    }
    return fedlab.run(config, overrides=overrides)


def digest(done: Run) -> str:
    return hashlib.sha256((done.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"model": nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2))})


def test_adapting_keeps_names_and_values() -> None:
    plain, x = network(), torch.randn(2, 3, 8, 8)
    other = adapt(network(), TrainingConfig(channels_last=True))
    assert other["model"][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not other["model"][0].weight.is_contiguous()
    for (name, value), (same_name, same) in zip(plain.state_dict().items(), other.state_dict().items(), strict=True):
        assert name == same_name
        assert torch.equal(value, same)
    torch.testing.assert_close(plain["model"](x), other["model"](x))


def test_a_run_with_channels_last_sends_and_keeps_ordinary_tensors(tmp_path: Path) -> None:
    plain, other = run(tmp_path), run(tmp_path, "training.channels_last=true")
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_without_a_compiler_a_run_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, *args: object, **kwargs: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(nn.Module, "compile", broken)
    done = run(tmp_path, "training.compile=true")
    assert done.history.warnings == [
        "training.compile: networks are not compiled, because torch.compile does not work here: "
        "Failed to find C compiler."
    ]
    assert not done.config.training.compile
    monkeypatch.undo()
    assert digest(done) == digest(run(tmp_path))


@pytest.mark.slow
def test_a_compiled_run_is_close_to_a_plain_one(tmp_path: Path) -> None:
    plain, compiled = run(tmp_path), run(tmp_path, "training.compile=true", "engine.vectorize=2")
    (warning,) = compiled.history.warnings
    assert "one after the other, because training.compile is on" in warning
    assert compiled.config.training.compile
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, compiled.model.state_dict()[name], rtol=1e-3, atol=1e-4)
