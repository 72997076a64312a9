"""Who is who: FedLab's client ids and Flower's node ids, and what clients say of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedlab.engine.grid import SimulationGrid
from fedlab.engine.messages import CONFIG, config_record, required
from fedlab.errors import ClientError, MachineError


@dataclass(frozen=True)
class Profile:
    """A client's facts: sample counts, sample shape, class names, registered clients of its partition."""

    client: int
    name: str
    train: int
    test: int
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    clients: int


class Directory:
    """Clients of a grid, profiled when first needed.

    Args:
        grid: where the clients are.
        expected: clients to wait for where the grid does not know them beforehand (a deployment).
        timeout: seconds to wait for them and for their profiles.

    Raises:
        MachineError: too few clients came, or two claim one id.
    """

    def __init__(self, grid: Grid, expected: int | None, timeout: float) -> None:
        self._grid, self._timeout = grid, timeout
        self._profiles: dict[int, Profile] = {}
        if isinstance(grid, SimulationGrid):
            self._simulated, self.clients = grid, range(grid.num_clients)
            return
        self._simulated = None
        nodes = self._wait(expected or 1)
        self._node: dict[int, int] = {}
        for node, profile in self._ask(nodes):
            if profile.client in self._node:
                raise MachineError(
                    "node-config partition-id",
                    profile.client,
                    "a different number on every node",
                    "two nodes were started with the same partition-id",
                )
            self._node[profile.client], self._profiles[profile.client] = node, profile
        self._client = {node: client for client, node in self._node.items()}
        self.clients: Sequence[int] = sorted(self._node)

    def node(self, client: int) -> int:
        """Flower's node id of a client."""
        return self._simulated.node_of(client) if self._simulated is not None else self._node[client]

    def client(self, node: int) -> int:
        """The client on a node, -1 for a node that is none (the SuperLink answers for lost nodes)."""
        if self._simulated is not None:
            client = self._simulated.client_of(node)
            return client if 0 <= client < len(self.clients) else -1
        return self._client.get(node, -1)

    def profiles(self, clients: Iterable[int]) -> list[Profile]:
        """Profiles in the order asked for."""
        wanted = list(clients)
        missing = [client for client in wanted if client not in self._profiles]
        for _, profile in self._ask([self.node(client) for client in missing]):
            self._profiles[profile.client] = profile
        return [self._profiles[client] for client in wanted]

    def _ask(self, nodes: Sequence[int]) -> list[tuple[int, Profile]]:
        if not nodes:
            return []
        content = RecordDict()
        messages = [Message(content, node, "query.profile") for node in nodes]
        answers: list[tuple[int, Profile]] = []
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout):
            if reply.has_error():
                raise ClientError(-1, 0, "profile", reply.error.reason or f"error {reply.error.code}")
            answers.append((reply.metadata.src_node_id, _profile(required(config_record, reply.content, CONFIG))))
        if len(answers) < len(nodes):
            raise MachineError(
                "federation.timeout", self._timeout, f"profiles of {len(nodes)} clients, {len(answers)} came"
            )
        return answers

    def _wait(self, expected: int) -> list[int]:
        deadline = time.monotonic() + self._timeout
        while len(nodes := sorted(self._grid.get_node_ids())) < expected:
            if time.monotonic() > deadline:
                raise MachineError(
                    "federation.timeout", self._timeout, f"{expected} connected nodes, {len(nodes)} came", "start them"
                )
            time.sleep(0.5)
        return nodes


def _profile(record: ConfigRecord) -> Profile:
    facts: dict[str, object] = dict(record)
    shape, classes = facts["shape"], facts["classes"]
    assert isinstance(shape, list)
    assert isinstance(classes, list)
    return Profile(
        client=int(str(facts["client"])),
        name=str(facts["name"]),
        train=int(str(facts["train"])),
        test=int(str(facts["test"])),
        shape=tuple(int(n) for n in shape),
        classes=tuple(str(name) for name in classes),
        clients=int(str(facts["clients"])),
    )
