"""The records of FedLab's messages, and how arrays get into and out of them.

Records are looked up by key and checked with isinstance. Flower's ``RecordDict.array_records`` and its siblings are not
used, because each call builds a reference cycle that keeps large arrays alive until the garbage collector runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedlab.errors import FedLabError
from fedlab.protocol.sums import ExactSum, Reduction

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
EXTRAS = "extras"
SUMS = "sums"
"""Key of the record of a reply with what a client has counted on its samples."""
VALIDATION, VALIDATED = "fedlab.validation", "fedlab.validated"
"""Keys of the records of a reply with what a client has counted on its validation samples, and with their number."""
PERSONALIZED = "personalized"
"""Key of the record of a reply with what a client has counted after its own local training."""
FITTED = "fitted"
"""Key of the record of a message with what probes have been fitted to on the server."""
NUM_EXAMPLES = "num-examples"
INSTRUCTIONS = "fedlab"
STATE = "fedlab.state"
"""Key of the record that holds the version of a client's lasting tensors.

In a simulation it is in the client's Flower state, in a deployment in the reply.
"""
MISSING = "fedlab.missing"
"""Key of the record by which a client replies that it lacks something and has therefore done no work.

It holds ``shared`` if that is a shared tensor, and ``state`` if it is the client's own state.
"""
WITHHELD = "fedlab.withheld"
"""Key of the record of a reply that leaves out groups which are averaged; ``groups`` holds their names."""

SPENT = "fedlab.spent"
TIMING = "fedlab.timing"
"""Key of the record of a reply under example-level privacy.

It holds ``rate``, ``noise_multiplier`` and ``steps`` of the client's round.
"""

EFFORT = "fedlab.effort"
"""Key of the record of a reply whose client did not take all the steps it was asked for.

It holds the fields of `fedlab.protocol.effort.Effort`.
"""

ALGORITHM = "algorithm"
"""Key of a round's configuration that names the client half of a federated algorithm."""
CONTROL = "control/"
"""Prefix of SCAFFOLD's control variates among a message's arrays."""
STEP_WEIGHT = "step-weight"
"""Metric of a reply: the weight by which FedNova's client divided its update."""

REDUCE = "fedlab.reduce"
"""Key in the config record under which a message asks the engine to sum the replies; a `Reduction` as JSON."""
SUM = "fedlab.sum"
SUM_WEIGHTS = "fedlab.weights"
SUM_DTYPES = "fedlab.dtypes"
ENGINE_ONLY = frozenset({SUM, SUM_WEIGHTS, SUM_DTYPES})
"""Keys of the records by which an engine hands over the sum of a cohort. No client may send them."""

NO_CLIENT = 1002
"""Code of the error by which a node says that it is no client of the run."""
UNUSABLE = 1001
"""Code of the error that an engine puts in place of a reply which cannot be used."""

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


class NdArray(Array):
    """A Flower Array that keeps its ndarray and is serialized only when it is sent over a network.

    Pickle's protocol 5 transfers its memory without copying, so that the processes of a machine share one copy in Ray's
    object store. Shared memory is read-only. For this reason the array is read-only in every engine.

    Args:
        values: the array; it is copied only if it is not contiguous.
    """

    def __init__(self, values: np.ndarray) -> None:
        values = np.asarray(values, order="C").view()
        values.flags.writeable = False
        # Flower's __init__ and __setattr__ expect serialized bytes, so they are bypassed
        self.__dict__.update(dtype=str(values.dtype), shape=values.shape, stype="numpy.ndarray", values=values)

    @property
    def data(self) -> bytes:  # type: ignore[override]  # a field in the base class
        """The array in numpy's file format, which is how Flower sends it."""
        buffer = BytesIO()
        np.save(buffer, self.view(), allow_pickle=False)
        return buffer.getvalue()

    def view(self) -> np.ndarray:
        """The array itself, read-only."""
        values: np.ndarray = self.__dict__["values"]
        return values

    def numpy(self) -> np.ndarray:
        """A writable copy, as Flower's Array returns it."""
        return self.view().copy()

    def deflate(self) -> bytes:
        # the header names the class, and receivers know only Flower's own; the chunks are hashed only once
        own = Array(self.dtype, self.shape, self.stype, b"")
        own.__dict__["_chunks"] = self.slice_array()
        return own.deflate()

    def __reduce__(self) -> tuple[type[NdArray], tuple[np.ndarray]]:
        return NdArray, (self.view(),)


def to_record(arrays: Mapping[str, np.ndarray | torch.Tensor]) -> ArrayRecord:
    """Arrays and tensors as a record. Those that are contiguous and on the CPU are not copied.

    Raises:
        TypeError: a dtype that numpy lacks, such as bfloat16, or an object array.
    """
    record = ArrayRecord()
    for name, values in arrays.items():
        record[name] = NdArray(_as_numpy(name, values))
    return record


def to_numpy(record: ArrayRecord, copy: bool = False) -> dict[str, np.ndarray]:
    """The arrays of a record by name.

    Args:
        record: a record of `NdArray` or of Flower's own Array.
        copy: return writable copies; otherwise the arrays may be read-only and shared.

    Raises:
        ValueError: the bytes of an array are not what they say they are.
    """
    found = {name: array.view() if isinstance(array, NdArray) else decoded(array) for name, array in record.items()}
    return {name: values.copy() for name, values in found.items()} if copy else found


def decoded(array: Array) -> np.ndarray:
    """The values of an array that came as bytes in numpy's file format, read-only; the memory is shared.

    What the header says is compared with the number of bytes before anything is made of it, so that a few bytes cannot
    claim an array that fills the memory.

    Raises:
        ValueError: the bytes are in another format, hold Python objects, or are more or fewer than the header says.
    """
    if array.stype != "numpy.ndarray":
        raise ValueError("an array comes in a format of its own, expected numpy's")
    file = BytesIO(array.data)  # shares the memory
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError("an array comes in an unknown version of numpy's format")
    shape, fortran, dtype = _HEADERS[version](file)
    begin = file.tell()
    if dtype.hasobject or dtype.itemsize * math.prod(shape) != len(array.data) - begin:
        raise ValueError("the bytes of an array are more or fewer than its header says")
    return np.frombuffer(array.data, dtype, offset=begin).reshape(shape, order="F" if fortran else "C")


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def array_record(content: RecordDict, key: str) -> ArrayRecord | None:
    """The array record under `key`, or None.

    Raises:
        TypeError: there is a record of another kind.
    """
    return _record(content, key, ArrayRecord)


def config_record(content: RecordDict, key: str) -> ConfigRecord | None:
    """The config record under `key`, or None.

    Raises:
        TypeError: there is a record of another kind.
    """
    return _record(content, key, ConfigRecord)


def metric_record(content: RecordDict, key: str) -> MetricRecord | None:
    """The metric record under `key`, or None.

    Raises:
        TypeError: there is a record of another kind.
    """
    return _record(content, key, MetricRecord)


def required(look_up: Callable[[RecordDict, str], Record | None], content: RecordDict, key: str) -> Record:
    """The record that `look_up` (`array_record` and its siblings) finds under `key`.

    Raises:
        FedLabError: there is none.
    """
    record = look_up(content, key)
    if record is None:
        raise FedLabError(f"a message lacks the record {key!r}; it holds {', '.join(map(repr, content)) or 'nothing'}")
    return record


def requested_reduction(content: RecordDict) -> Reduction | None:
    """The reduction that a message asks for in its config record.

    Raises:
        FedLabError: the request cannot be read.
    """
    config = content.get(CONFIG)  # a message of somebody else's app may have any record of that name
    asked = config.get(REDUCE) if isinstance(config, ConfigRecord) else None
    return None if asked is None else Reduction.from_json(str(asked))


def client_weight(content: RecordDict, reduction: Reduction) -> float:
    """The weight of a client's reply.

    Raises:
        FedLabError: clients are weighed by examples, but the metric is missing or is not a number.
    """
    if reduction.weight == "uniform":
        return 1.0
    metrics = metric_record(content, METRICS)
    examples = None if metrics is None else metrics.get(NUM_EXAMPLES)
    if not isinstance(examples, int | float):
        raise FedLabError(
            f"a client's reply has {NUM_EXAMPLES} = {examples!r}: expected the number of its samples in the record "
            f"{METRICS!r}, because the clients are weighed by it"
        )
    return float(examples)


class _EngineContent(RecordDict):
    """Content of a reply into which an engine of this process has put the sum of a cohort.

    What comes over a network, or from another process, is never of this class. So nobody can claim to be the engine by
    the records that a reply holds.
    """


def attach_sum(reply: Message, total: ExactSum) -> None:
    """Put the sum over a cohort into one of its replies, where `summed` finds it. Only an engine does that."""
    sums, weights, dtypes = total.state()
    content = _EngineContent(dict(reply.content))
    content[SUM] = to_record(sums)
    content[SUM_WEIGHTS] = MetricRecord(dict(weights))
    content[SUM_DTYPES] = ConfigRecord(dict(dtypes))
    reply.content = content


def summed(replies: Iterable[Message], reduction: Reduction) -> ExactSum | None:
    """The sum that the engine formed of the replies' arrays, or None if it left them in the replies.

    A sum is believed only if an engine of this process has put it there with `attach_sum`.

    Args:
        replies: replies of one or several calls of the grid, each of which may have put a sum into one of them.
        reduction: the reduction that the messages asked for.
    """
    total: ExactSum | None = None
    for reply in replies:
        if reply.has_error() or not isinstance(reply.content, _EngineContent):
            continue
        sums = array_record(reply.content, SUM)
        weights = metric_record(reply.content, SUM_WEIGHTS)
        dtypes = config_record(reply.content, SUM_DTYPES)
        if sums is not None and weights is not None and dtypes is not None:
            part = ExactSum.from_state(
                to_numpy(sums),
                {name: float(weight) for name, weight in weights.items() if not isinstance(weight, list)},
                {name: str(dtype) for name, dtype in dtypes.items()},
                reduction,
            )
            if total is None:
                total = part
            else:
                total.merge(part)
    return total


def exact_sum(replies: Iterable[Message], reduction: Reduction) -> ExactSum:
    """The sum of the replies' arrays. It has the same bits whether the engine or the server formed it.

    Raises:
        FedLabError: the arrays of a reply cannot be summed; the message names the node and the tensor.
    """
    replies = list(replies)
    total = summed(replies, reduction)
    if total is not None:
        return total
    total = reduction.start()
    for reply in replies:
        arrays = None if reply.has_error() else array_record(reply.content, ARRAYS)
        if arrays is None:
            continue
        try:
            total.add(to_numpy(arrays), client_weight(reply.content, reduction))
        except FedLabError as error:
            raise FedLabError(f"reply of node {reply.metadata.src_node_id}: {error}") from error
    return total


def _record(content: RecordDict, key: str, kind: type[Record]) -> Record | None:
    record = content.get(key)
    if record is None or isinstance(record, kind):
        return record
    raise TypeError(f"record {key!r} is a {type(record).__name__}: expected a {kind.__name__}")


def _as_numpy(name: str, values: np.ndarray | torch.Tensor) -> np.ndarray:
    result: Any = values
    if isinstance(values, torch.Tensor):
        try:
            result = values.detach().cpu().numpy()
        except TypeError as error:
            raise TypeError(
                f"tensor {name!r} has dtype {str(values.dtype).removeprefix('torch.')}, which numpy lacks: "
                "convert it first, for example with .float()"
            ) from error
    if isinstance(result, np.generic):  # numpy's arithmetic on 0-d arrays returns scalars
        result = np.asarray(result)
    if not isinstance(result, np.ndarray) or result.dtype.hasobject:
        kind = result.dtype if isinstance(result, np.ndarray) else type(result).__name__
        raise TypeError(f"{name!r} is {kind}: expected a tensor or an array of numbers")
    return result
