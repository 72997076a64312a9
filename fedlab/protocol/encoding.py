"""Compressed updates in replies: put in by clients, undone by whoever averages, with the same bits everywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlab.errors import FedLabError
from fedlab.protocol.compression import Side, chain_from
from fedlab.protocol.messages import ARRAYS, array_record, config_record, metric_record, to_numpy, to_record

ENCODED = "fedlab.encoded"
"""Record of the arrays a compressed update consists of."""
ENCODING = "fedlab.encoding"
"""Record that says how to undo the compression."""
SENT = "fedlab.sent"
"""Record of a compressed reply: bytes of the arrays that travel, by exchange group."""
_SEPARATOR = ":"


@dataclass(frozen=True)
class Encoded:
    """A client's compressed updates.

    Args:
        chain: text of the chain that made them.
        parts: arrays by tensor and part.
        updates: tensors that are no network state but updates themselves, so that nothing is added to them.
        sent: bytes of the whole reply's arrays, by exchange group.
    """

    chain: str
    parts: Mapping[str, Side]
    updates: frozenset[str] = frozenset()
    sent: Mapping[str, int] = field(default_factory=dict)


def attach(content: RecordDict, encoded: Encoded) -> None:
    """Put compressed updates into a reply."""
    flat = {f"{part}{_SEPARATOR}{name}": a for name, parts in encoded.parts.items() for part, a in parts.items()}
    content[ENCODED] = to_record(flat)
    content[ENCODING] = ConfigRecord({"chain": encoded.chain, "updates": json.dumps(sorted(encoded.updates))})
    content[SENT] = MetricRecord(dict(encoded.sent))


def sent_bytes(content: RecordDict) -> dict[str, int] | None:
    """Bytes of a compressed reply's arrays, by exchange group; None where nothing was compressed."""
    record = metric_record(content, SENT)
    return None if record is None else {group: int(str(size)) for group, size in record.items()}


def expand(content: RecordDict, received: ArrayRecord | None) -> None:
    """Give a reply the arrays that its compressed updates stand for; replies without any stay as they are.

    Args:
        content: of the reply.
        received: the arrays the client was sent, to which its updates are added.

    Raises:
        FedLabError: there is an update to something the client was not sent.
    """
    encoded, how = array_record(content, ENCODED), config_record(content, ENCODING)
    if encoded is None or how is None:
        return
    chain, updates = chain_from(str(how["chain"])), frozenset(json.loads(str(how["updates"])))
    parts: dict[str, Side] = {}
    for key, array in to_numpy(encoded).items():
        part, _, name = key.partition(_SEPARATOR)
        parts.setdefault(name, {})[part] = array
    start = {} if received is None else to_numpy(received)
    plain = array_record(content, ARRAYS)
    arrays = {} if plain is None else to_numpy(plain)
    for name, side in parts.items():
        if name not in start:
            raise FedLabError(f"a client sends an update of {name!r}, which it was not sent")
        reference = start[name]
        update = chain.decode(side, reference.size).reshape(reference.shape)
        arrays[name] = (update if name in updates else reference + update).astype(reference.dtype, copy=False)
    # Flower's strategies pair arrays by their order
    order = [*(name for name in start if name in arrays), *(name for name in arrays if name not in start)]
    content[ARRAYS] = to_record({name: arrays[name] for name in order})
    del content[ENCODED], content[ENCODING]


def size_of(parts: Side) -> int:
    """Bytes of the arrays of one update."""
    return sum(array.nbytes for array in parts.values())


def as_vector(values: np.ndarray) -> np.ndarray:
    """Any array as a float32 vector."""
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
