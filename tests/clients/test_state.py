"""Lasting client tensors and received server tensors on disk: versions, damage, what is dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedlab.clients.server_tensors import ReceivedTensors
from fedlab.clients.state import StateStore
from fedlab.errors import CheckpointError
from fedlab.method import ClientState


def written(store: StateStore, value: float, version: int, loaded: int | None, keep_for: tuple[int, ...] = ()) -> None:
    state = ClientState()
    state["x"] = torch.full((3,), value)
    store.save(7, version, state, loaded, keep_for)


def test_a_state_comes_back_at_the_version_asked_for(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    assert len(store.load(7, None)) == 0
    assert store.latest(7) is None
    written(store, 1, version=1, loaded=None)
    written(store, 2, version=2, loaded=1)
    assert float(store.load(7, 1)["x"][0]) == 1, "the version before must survive until the reply has been accepted"
    assert float(store.load(7, 2)["x"][0]) == 2
    latest = store.latest(7)
    assert latest is not None
    assert float(latest["x"][0]) == 2


def test_only_versions_that_can_be_asked_for_stay(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for version in range(1, 8):
        written(store, version, version, version - 1 or None, keep_for=(3,))
    kept = sorted(int(path.stem) for path in tmp_path.rglob("*.state"))
    assert kept == [3, 6, 7]


def test_versions_of_attempts_that_did_not_count_are_dropped(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    written(store, 1, version=1, loaded=None)
    for version in (2, 3, 4):  # no reply to these was used, because the run was interrupted or the node cut off
        written(store, version, version, 1)
    written(store, 7, version=7, loaded=1)  # left behind by a run that went further before it was interrupted
    written(store, 5, version=5, loaded=1, keep_for=(3,))
    kept = sorted(int(path.stem) for path in tmp_path.rglob("*.state"))
    assert kept == [1, 5], "as of round 3 the state is version 1, because version 3 did not count"


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    written(store, 1, version=1, loaded=None)
    (path,) = tmp_path.rglob("*.state")
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"state of client 7[\s\S]*hash does not match"):
        store.load(7, 1)
    with pytest.raises(CheckpointError, match="state of client 7"):
        store.load(7, 5)


def test_states_hold_copies_and_know_whether_they_changed() -> None:
    state = ClientState({"x": torch.zeros(2)})
    assert not state.changed
    value = torch.ones(2)
    state["y"] = state["z"] = value
    value.add_(5)
    assert state.changed
    assert state["y"].tolist() == [1, 1]
    assert state["y"].data_ptr() != state["z"].data_ptr()
    del state["y"]
    assert sorted(state) == ["x", "z"]


def test_a_tensor_that_a_run_left_behind_is_replaced(tmp_path: Path) -> None:
    """A run that goes on from a checkpoint counts versions again, so a number may stand for another tensor."""
    ReceivedTensors(tmp_path).put("images", 1, np.zeros(3, np.float32))
    store = ReceivedTensors(tmp_path)
    store.put("images", 1, np.ones(3, np.float32))
    got = store.get("images", 1)
    assert got is not None
    assert got.tolist() == [0, 0, 0], "clients of one machine are sent the same, which need not be written again"
    store.put("images", 1, np.ones(3, np.float32), replace=True)
    got = store.get("images", 1)
    assert got is not None
    assert got.tolist() == [1, 1, 1]


def test_received_tensors_are_held_once_by_version(tmp_path: Path) -> None:
    store = ReceivedTensors(tmp_path)
    assert store.get("images", 1) is None
    values = np.arange(3, dtype=np.float32)
    store.put("images", 1, values)
    values += 10
    got = store.get("images", 1)
    assert got is not None
    assert got.tolist() == [0, 1, 2]
    assert store.get("images", 2) is None, "an old version is no substitute"
    assert store.get("other/name.weight", 1) is None
    for version in (2, 3, 4):
        store.put("images", version, np.full(2, version, np.float32))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    fresh = ReceivedTensors(tmp_path).get("images", 4)
    assert fresh is not None
    assert fresh.tolist() == [4, 4]


def test_a_torn_received_tensor_is_asked_for_again(tmp_path: Path) -> None:
    ReceivedTensors(tmp_path).put("images", 1, np.zeros(3, np.float32))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-2])
    store = ReceivedTensors(tmp_path)
    assert store.get("images", 1) is None
    store.put("images", 1, np.ones(3, np.float32))
    got = store.get("images", 1)
    assert got is not None
    assert got.tolist() == [1, 1, 1]
