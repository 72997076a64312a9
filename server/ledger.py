"""The communication ledger: bytes of payload sent and received, by client and exchange group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from fedlab.method.exchange import Exchange
from fedlab.protocol.encoding import sent_bytes
from fedlab.protocol.messages import ALGORITHM
from fedlab.server.messaging.asked import Delivered
from fedlab.server.messaging.directory import ClientDirectory
from fedlab.server.messaging.replies import withheld_groups
from fedlab.server.messaging.shared import SharedTensors, state_in

Key = tuple[int, str]


class Ledger:
    """The bytes of one round.

    What counts is the memory of the arrays in training messages and their replies: values, and of compressed uploads
    indices and scales too. Names, headers, configuration and metrics do not count, nor does evaluation.
    """

    def __init__(self) -> None:
        self._down, self._up, self._raw = Counter[Key](), Counter[Key](), Counter[Key]()

    def sent(self, client: int, sizes: Mapping[str, int], times: int = 1) -> None:
        """A client was sent arrays of these sizes by group."""
        self._down.update({(client, group): size * times for group, size in sizes.items() if size * times})

    def received(self, client: int, sizes: Mapping[str, int], sent: Mapping[str, int] | None = None) -> None:
        """A client sent arrays of these sizes by group.

        Args:
            client: whose.
            sizes: of the arrays themselves.
            sent: what compression has made of them, where it was at work.
        """
        self._raw.update({(client, group): size for group, size in sizes.items() if size})
        now = sizes if sent is None else sent
        self._up.update({(client, group): size for group, size in now.items() if size})

    @property
    def down(self) -> int:
        """Bytes sent to clients."""
        return self._down.total()

    @property
    def up(self) -> int:
        """Bytes sent to the server."""
        return self._up.total()

    def groups(self) -> dict[str, dict[str, int]]:
        """Bytes each way, by group."""
        down, up = _by_group(self._down), _by_group(self._up)
        return {group: {"down": down[group], "up": up[group]} for group in {**down, **up}}

    def raw_up(self) -> dict[str, int]:
        """Bytes the uploads had before compression, by group; empty where nothing was compressed."""
        return dict(_by_group(self._raw)) if self._raw != self._up else {}

    def rows(self) -> list[list[int | str]]:
        """A row of ``client, group, down, up, raw_up`` for each client and group."""
        keys = {**self._down, **self._raw, **self._up}
        order = {key: place for place, key in enumerate(keys)}
        return [
            [*key, self._down[key], self._up[key], self._raw[key]]
            for key in sorted(keys, key=lambda key: (key[0], order[key]))
        ]


def account(
    exchange: Exchange,
    shared: SharedTensors,
    directory: ClientDirectory,
    delivery: Delivered,
    algorithm_bytes: int,
    results: Mapping[int, int],
) -> Ledger:
    """Count the payload bytes of the training in one round.

    Args:
        exchange: of the round.
        shared: tensors the server shares.
        directory: who is who.
        delivery: what was sent and what came back.
        algorithm_bytes: of what the algorithm sends beside the network state, each way and per client.
        results: bytes of the tensors each client sent beside the weights.
    """
    ledger, algorithm = Ledger(), {ALGORITHM: algorithm_bytes}
    down, up = (exchange.bytes_by_group(names) for names in (exchange.down, exchange.up))
    for client, times in delivery.served.items():
        ledger.sent(client, {**down, **algorithm}, times)
    for (client, name), times in delivery.sent.items():
        state = state_in(name)
        group = "shared" if state is None else exchange.group_of[state].name
        ledger.sent(client, {group: shared.bytes_of(name)}, times)
    for reply in delivery.answers:
        client, withheld = directory.client(reply.metadata.src_node_id), withheld_groups(reply.content)
        sizes = {group: size for group, size in up.items() if group not in withheld}
        others = {"results": results.get(client, 0)}
        sent = sent_bytes(reply.content)
        ledger.received(client, {**sizes, **algorithm, **others}, None if sent is None else {**sent, **others})
    return ledger


def _by_group(counted: Mapping[Key, int]) -> Counter[str]:
    groups = Counter[str]()
    for (_, group), size in counted.items():
        groups[group] += size
    return groups


def payload_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes that these tensors take in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
