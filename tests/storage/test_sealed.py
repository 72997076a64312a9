"""Tensors that are read back are those that were written, or they are not used."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from fedlab.clients.server_tensors import ReceivedTensors
from fedlab.storage.cache import ResultCache
from fedlab.storage.sealed import DamagedFileError, sealed, unsealed

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}


def test_they_come_back_and_other_programs_read_them() -> None:
    raw = sealed(TENSORS)
    for found in (unsealed(raw), safetensors.torch.load(raw)):
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    assert sealed(dict(reversed(TENSORS.items()))) == raw


def test_every_changed_bit_and_every_cut_is_noticed() -> None:
    raw = sealed(TENSORS)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 4
        try:
            found = unsealed(bytes(changed))
        except DamagedFileError:
            continue
        assert all(torch.equal(found[name], value) for name, value in TENSORS.items()), "only unused bits may change"
    for length in range(0, len(raw), 7):
        with pytest.raises(DamagedFileError):
            unsealed(raw[:length])
    with pytest.raises(DamagedFileError):
        unsealed(safetensors.torch.save(TENSORS))


def flip(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def test_a_damaged_result_is_computed_again_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache, computed = ResultCache(tmp_path, lambda: "data", 0, torch.device("cpu")), []

    def compute() -> dict[str, torch.Tensor]:
        computed.append(1)
        return {"x": torch.ones(3)}

    for _ in range(2):
        assert cache.get("../warm up", {}, compute)["x"].tolist() == [1, 1, 1]
    assert len(computed) == 1
    (path,) = tmp_path.rglob("*.safetensors")
    assert path.parent.parent == tmp_path
    flip(path)
    assert cache.get("../warm up", {}, compute)["x"].tolist() == [1, 1, 1]
    assert len(computed) == 2
    assert "a kept result of ../warm up is computed again" in caplog.text
    assert cache.get("../warm up", {}, compute)["x"].tolist() == [1, 1, 1]
    assert len(computed) == 2


def test_a_damaged_tensor_of_the_server_is_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ReceivedTensors(tmp_path).put("images", 1, np.arange(4, dtype=np.float32))
    (path,) = tmp_path.rglob("*.safetensors")
    flip(path)
    assert ReceivedTensors(tmp_path).get("images", 1) is None
    assert "images, version 1, is asked for again" in caplog.text
    assert not path.exists()
