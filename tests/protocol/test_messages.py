"""Records: arrays in and out, on the wire and through pickle; typed getters; sums in replies."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlab.errors import FedLabError
from fedlab.protocol.messages import (
    NdArray,
    array_record,
    client_weight,
    config_record,
    metric_record,
    requested_reduction,
    to_numpy,
    to_record,
)
from fedlab.protocol.sums import Reduction

VALUES = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.array(3, dtype=np.int64),
    "strided": np.arange(6, dtype=np.float16).reshape(2, 3).T,
    "empty": np.zeros((0, 4), dtype=np.float64),
    "flags": np.array([True, False]),
}


def test_arrays_go_in_and_come_out_unchanged_whatever_flower_does_with_them() -> None:
    record = to_record(VALUES)
    stock = ArrayRecord({name: Array(values) for name, values in VALUES.items()})
    for result in (record, stock, pickle.loads(pickle.dumps(record)), record.copy()):
        for copy in (False, True):
            found = to_numpy(result, copy=copy)
            for name, values in VALUES.items():
                assert found[name].dtype == values.dtype
                assert found[name].shape == values.shape
                np.testing.assert_array_equal(found[name], values)
    assert to_numpy(record, copy=True)["float"].flags.writeable


def test_the_wire_format_is_flowers() -> None:
    values = VALUES["float"]
    ours, theirs = NdArray(values), Array(values)
    assert (ours.data, ours.dtype, ours.shape, ours.stype) == (theirs.data, theirs.dtype, theirs.shape, theirs.stype)
    assert ours.object_id == theirs.object_id
    assert ours.deflate() == theirs.deflate()
    received = Array.inflate(ours.deflate(), ours.children)
    np.testing.assert_array_equal(received.numpy(), values)
    # a stock Array cannot be pickled any more once its id was computed
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ours)).view(), values)


def test_arrays_are_shared_and_read_only() -> None:
    values = np.zeros(3, np.float32)
    view = to_numpy(to_record({"x": values}))["x"]
    assert np.shares_memory(view, values)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    values[0] = 2  # the owner may
    buffers: list[pickle.PickleBuffer] = []
    assert len(pickle.dumps(to_record({"x": np.zeros(10**6)}), protocol=5, buffer_callback=buffers.append)) < 2000
    assert len(buffers) == 1


def test_tensors_are_detached_and_shared() -> None:
    parameter = torch.nn.Parameter(torch.arange(4.0))
    view = to_numpy(to_record({"p": parameter}))["p"]
    assert np.shares_memory(view, parameter.detach().numpy())


@pytest.mark.parametrize("values", [torch.zeros(2, dtype=torch.bfloat16), np.array([None]), [1.0]])
def test_what_numpy_cannot_hold_is_refused_by_name(values: object) -> None:
    with pytest.raises(TypeError, match=r"'head\.weight'"):
        to_record({"head.weight": values})  # type: ignore[dict-item]  # the point of the test


def test_bfloat16_is_named_with_the_way_out() -> None:
    with pytest.raises(TypeError, match=r"bfloat16, which numpy lacks.*\.float\(\)"):
        to_record({"w": torch.zeros(2, dtype=torch.bfloat16)})


def test_getters_check_the_kind() -> None:
    content = RecordDict({"arrays": ArrayRecord(), "config": ConfigRecord({"a": 1}), "metrics": MetricRecord()})
    assert array_record(content, "arrays") is content["arrays"]
    assert config_record(content, "config") is content["config"]
    assert metric_record(content, "metrics") is content["metrics"]
    assert array_record(content, "extras") is None
    with pytest.raises(TypeError, match="'config' is a ConfigRecord: expected a ArrayRecord"):
        array_record(content, "config")


def test_requests_and_weights_are_read_or_refused() -> None:
    assert requested_reduction(RecordDict()) is None
    assert requested_reduction(RecordDict({"config": ConfigRecord({"lr": 0.1})})) is None
    asked = RecordDict({"config": ConfigRecord({"fedlab.reduce": Reduction("uniform", 3).to_json()})})
    assert requested_reduction(asked) == Reduction("uniform", 3)
    assert client_weight(RecordDict(), Reduction("uniform", 3)) == 1
    reply = RecordDict({"metrics": MetricRecord({"num-examples": 12})})
    assert client_weight(reply, Reduction("examples", 3)) == 12
    with pytest.raises(FedLabError, match="num-examples = None"):
        client_weight(RecordDict(), Reduction("examples", 3))
