"""Compressed updates in replies. Clients put them in, and the process that sums the replies undoes the compression.

This process may be the server or a worker of the engine. Both obtain the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedlab.errors import FedLabError
from fedlab.protocol.compression import Chain, Side
from fedlab.protocol.messages import ARRAYS, array_record, config_record, metric_record, to_numpy, to_record

ENCODED = "fedlab.encoded"
"""Key of the record of the arrays that a compressed update consists of."""
ENCODING = "fedlab.encoding"
"""Key of the record that says how to undo the compression."""
SENT = "fedlab.sent"
"""Key of the record of a compressed reply that counts the bytes of its arrays as sent, by exchange group."""
_SEPARATOR = ":"


@dataclass(frozen=True)
class Encoded:
    """A client's compressed updates.

    Args:
        chain: `Chain.text` of the chain that encoded them.
        parts: arrays by tensor and part.
        updates: names of tensors that are updates themselves and not network state, so that nothing is added to them.
        sent: bytes of all arrays of the reply, by exchange group.
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
    """Bytes of the arrays of a compressed reply, by exchange group; None if nothing was compressed."""
    record = metric_record(content, SENT)
    return None if record is None else {group: int(str(size)) for group, size in record.items()}


def expand(content: RecordDict, received: ArrayRecord | None, chain: Chain) -> None:
    """Replace the compressed updates in a reply by the arrays that they stand for.

    A reply without compressed updates stays as it is.

    Args:
        content: content of the reply; it is changed.
        received: the arrays that the client was sent, to which its updates are added.
        chain: the run's compression. What the reply says of it is only compared, because the name of a step in it
            would otherwise decide which code is imported here.

    Raises:
        FedLabError: the updates are compressed in another way, do not have the form that the chain gives them, or are
            of a tensor that the client was not sent.
    """
    encoded, how = array_record(content, ENCODED), config_record(content, ENCODING)
    if encoded is None and how is None:
        return
    if encoded is None or how is None or not chain or how.get("chain") != chain.text:
        raise FedLabError("the reply is compressed in another way than exchange.compression says")
    updates = frozenset(json.loads(str(how["updates"])))
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
        chain.check(name, side, reference.size)
        update = chain.decode(side, reference.size).reshape(reference.shape)
        arrays[name] = (update if name in updates else reference + update).astype(reference.dtype, copy=False)
    # Flower's strategies match arrays by their position
    in_order = [*(name for name in start if name in arrays), *(name for name in arrays if name not in start)]
    content[ARRAYS] = to_record({name: arrays[name] for name in in_order})
    del content[ENCODED], content[ENCODING]


def size_of(parts: Side) -> int:
    """Number of bytes of the arrays of one update."""
    return sum(array.nbytes for array in parts.values())


def as_vector(values: np.ndarray) -> np.ndarray:
    """An array of any shape as a contiguous float32 vector."""
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
