"""The device that work is done on, and what torch is told for its sake."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fedlab.engine.device import choose_device, use_deterministic_kernels
from fedlab.errors import MachineError


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.parametrize(
    ("asked", "there", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_a_gpu_is_taken_where_there_is_one_and_torch_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, asked: str, there: bool, chosen: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    torch.backends.cudnn.benchmark = True
    assert choose_device(asked) == torch.device(chosen)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match=r"engine\.device = 'cuda'"):
        choose_device("cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_are_deterministic_on_a_gpu(device: str) -> None:
    torch.backends.cudnn.benchmark = True
    use_deterministic_kernels(torch.device(device))
    assert torch.are_deterministic_algorithms_enabled() == (device == "cuda")
    assert torch.is_deterministic_algorithms_warn_only_enabled() == (device == "cuda")
    assert torch.backends.cudnn.benchmark == (device == "cpu")
