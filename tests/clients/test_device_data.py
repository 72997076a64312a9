"""Data that stays on the device, tried on torch's meta device, which has shapes but no memory."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from fedlab.clients.device_data import ResidentData
from fedlab.data.samples import Samples


def samples(count: int) -> Samples:
    return Samples({"x": np.zeros((count, 10), np.float32), "label": np.zeros(count, np.int64)}, ("a",))


def test_what_is_used_last_stays_up_to_the_budget() -> None:
    held = ResidentData(torch.device("meta"), 48 * 25)
    one, two, large = samples(10), samples(10), samples(30)
    first = held.columns(one)
    assert {name: (value.device.type, tuple(value.shape)) for name, value in first.items()} == {
        "x": ("meta", (10, 10)),
        "label": ("meta", (10,)),
    }
    held.columns(two)
    assert held.bytes == 48 * 20
    assert held.columns(one)["x"] is first["x"]
    assert held.columns(large)["x"].shape == (30, 10)  # larger than the budget: nobody makes room for it
    assert held.bytes == 48 * 20
    third = samples(10)
    held.columns(third)  # in place of `two`, which was used longer ago
    assert held.bytes == 48 * 20
    assert held.columns(one)["x"] is first["x"]
    mapping = held.columns(one)
    mapping["more"] = torch.zeros(1)
    assert "more" not in held.columns(one)


def test_what_leaves_the_host_leaves_the_device() -> None:
    held = ResidentData(torch.device("meta"), 10**6)
    gone = samples(10)
    held.columns(gone)
    del gone
    gc.collect()
    assert held.bytes == 0


@pytest.mark.parametrize(("device", "budget"), [("cpu", 10**6), ("meta", 0)])
def test_nothing_is_kept_on_the_cpu_or_without_a_budget(device: str, budget: int) -> None:
    held, some = ResidentData(torch.device(device), budget), samples(4)
    columns = held.columns(some)
    assert held.bytes == 0
    if device == "cpu":
        some["x"][0, 0] = 7.0
        assert columns["x"][0, 0] == 7.0  # a view
