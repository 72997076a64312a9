"""FedLab's client ids, Flower's node ids, and the profiles that clients give of themselves."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, KeysView, Mapping, Sequence
from typing import overload

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedlab.engine.grids.base import SimulationGrid
from fedlab.errors import ClientError, FedLabError, InputError, MachineError, RefusedError
from fedlab.method.assets import Holding
from fedlab.protocol.messages import CONFIG, NO_CLIENT, config_record, required
from fedlab.server.messaging.inspection import printable, reason_of
from fedlab.server.messaging.profiles import Described, Profile, check_alike, same_assets, stated_profile, unlike
from fedlab.server.messaging.transport import node_ids, send_and_receive

log = logging.getLogger(__name__)
_PAUSE = 0.5  # seconds between two queries for the connected nodes
_GRACE = 5.0  # seconds in which clients may still come whose places other nodes seem to have taken
_NAMED = 10  # clients in one message


class ClientDirectory:
    """The clients of a grid. Profiles are fetched when they are first needed. `open` must be called before use.

    Args:
        grid: the grid that reaches the clients.
        expected: number of clients to wait for in a deployment, where the grid does not know them beforehand; None
            waits for every client of the partition.
        timeout: seconds to wait for the clients, and for their profiles.
        known: returns the profile that a simulated client would give of itself, so that no client has to be asked. It
            is not used in a deployment.
        skip: whether nodes of a deployment that cannot take part are left out, as long as one can.
        names: of all clients of a deployment, in the order of their ids, where the server knows them. A node that
            gives itself another name than its number has is no client of the run.
        members: names by id of the clients with which a run that goes on began. All of them are waited for instead of
            `expected`, and no others are taken in. With `skip`, those that do not come in time are left out.
    """

    def __init__(
        self,
        grid: Grid,
        expected: int | None,
        timeout: float,
        known: Callable[[int], Profile] | None = None,
        *,
        skip: bool = False,
        names: Sequence[str] = (),
        members: Mapping[int, str] | None = None,
    ) -> None:
        self._grid, self._expected, self._timeout, self._skip = grid, expected, timeout, skip
        self._names, self._members = tuple(names), members or {}
        self._known: Callable[[int], Profile] | None = None
        self._profiles: dict[int, Profile] = {}
        self._node: dict[int, int] = {}
        self._client: dict[int, int] = {}
        self._strangers: set[int] = set()
        self._simulated: SimulationGrid | None = None
        self.refused: dict[int, str] = {}
        """Nodes of a deployment that cannot take part, each with what it says."""
        self.missing = 0
        """Number of clients of a deployment that the run begins without, because their nodes cannot take part."""
        self.strays: dict[int, InputError | str] = {}
        """Nodes that are no clients of the run, because they have the number of another one or none of the run's."""
        self.clients: Sequence[int] = ()
        if isinstance(grid, SimulationGrid):
            self._simulated, self.clients, self._known = grid, range(grid.num_clients), known

    def open(self) -> None:
        """Wait for the nodes of a deployment and ask each which client it is. In a simulation the clients are known.

        A node that is no client of the run, or that has the number of another one, is left out with a warning, and no
        place is kept for it.

        Raises:
            MachineError: too few nodes connected or answered within the timeout, or a client is missing in whose place
                another node has a number for the second time.
            RefusedError: nodes could not give their profile, or their data is of different kinds.
        """
        if self._simulated is None:
            self.clients = self._gather(self._expected)

    def node(self, client: int) -> int:
        """Flower's node id of a client."""
        return self._simulated.node_of(client) if self._simulated is not None else self._node[client]

    def client(self, node: int) -> int:
        """The client on a node; -1 for a node without a client, such as the SuperLink, which answers for lost nodes."""
        if self._simulated is not None:
            client = self._simulated.client_of(node)
            return client if 0 <= client < len(self.clients) else -1
        return self._client.get(node, -1)

    @property
    def deployed(self) -> bool:
        """Whether the clients are nodes of a deployment, which may go away and come back."""
        return self._simulated is None

    @property
    def nodes(self) -> KeysView[int]:
        """The present node ids of the clients of a deployment; later changes are seen."""
        return self._client.keys()

    def connected(self, clients: Iterable[int]) -> list[int]:
        """Those of the clients that can be reached now. Simulated clients always can.

        A node that has come back may have another id, if the SuperLink does not know nodes by their keys. It is then
        asked who it is. A client that was not there when the run began is not taken in.
        """
        if self._simulated is not None:
            return list(clients)
        online = set(node_ids(self._grid))
        unknown = sorted(online - self._client.keys() - self._strangers - self.strays.keys())
        if unknown and not online >= set(self._node.values()):
            self._recognize(unknown, online)
        return [client for client in clients if self._node[client] in online]

    def _recognize(self, nodes: Iterable[int], online: set[int]) -> None:
        for node in nodes:
            try:
                answers, failed = self._ask([node])
            except FedLabError as error:
                answers, failed = [], {node: str(error)}
            if not answers:  # it is asked again when nodes are next looked for
                log.warning("a node has connected and cannot say who it is: %s", failed.get(node, "it is gone"))
                continue
            ((_, profile),) = answers
            before = self._node.get(profile.client)
            if before is None:
                self._keep_out(node, profile)
                continue
            if before in online or profile != self._profiles[profile.client]:
                self._strangers.add(node)
                log.warning("%s", self._twice(profile, before, node) if before in online else _other(profile, node))
                continue
            del self._client[before]
            self._node[profile.client], self._client[node] = node, profile.client

    @property
    def absent(self) -> list[str]:
        """Names of the clients with which a run began that are not there as it goes on."""
        return [name for client, name in self._members.items() if client not in self._node]

    def profile(self, client: int) -> Profile:
        """The profile of one client."""
        (found,) = self.profiles([client])
        return found

    @property
    def described(self) -> Described:
        """What the first client says of all clients' data."""
        return self.profile(self.clients[0]).described

    def tested(self, client: int) -> bool:
        """Whether a client holds test samples."""
        return self.profile(client).test > 0

    def profiles(self, clients: Iterable[int]) -> list[Profile]:
        """The profiles of the clients, in the given order."""
        if self._known is not None:  # not kept, as there may be too many for the memory
            return [self._known(client) for client in clients]
        wanted = list(clients)
        missing = [client for client in wanted if client not in self._profiles]
        answers, failed = self._ask([self.node(client) for client in missing])
        for node, reason in failed.items():
            raise ClientError(self.client(node), 0, "profile", reason)
        for _, profile in answers:
            self._profiles[profile.client] = profile
        return [self._profiles[client] for client in wanted]

    def same_assets(self, server: Holding) -> dict[str, str]:
        """The hash of each asset of the method that a participant holds, by name. No client is asked if there are none.

        Args:
            server: what the server holds.

        Raises:
            RefusedError: participants have different weights under one name.
        """
        return same_assets(self.profiles(self.clients), server.hashes()) if server.assets.names else {}

    def may_train(self, hold_out: bool) -> Sequence[int]:
        """The clients that may train.

        Args:
            hold_out: whether some clients are held out from training. If none are, no client is asked.
        """
        if not hold_out:
            return self.clients
        return [profile.client for profile in self.profiles(self.clients) if not profile.unseen]

    def _gather(self, expected: int | None) -> list[int]:
        deadline = time.monotonic() + self._timeout
        wanted, since = len(self._members) or expected or 1, math.inf
        while len(self._client) + len(self.refused) < wanted:
            known = self._client.keys() | self.refused.keys() | self.strays.keys() | self._strangers
            nodes = self._wait(wanted, known, deadline)
            answers, failed = self._ask([node for node in nodes if node not in known])
            self.refused |= dict(sorted(failed.items()))
            for node, profile in answers:
                if self._admit(node, profile):
                    wanted = len(self._members) or expected or profile.clients
            since = min(since, time.monotonic()) if self.strays else math.inf
            if self.refused and not self._skip:
                break
            if answers or failed:
                continue
            # all were lost just now, or are others' than this run's; those who could take their places may yet come
            if time.monotonic() > min(deadline, since + _GRACE):
                if (self.strays or self._members) and self._skip and self._client:
                    break
                self._refuse_strays()
                raise self._late(
                    f"{wanted} clients within so many seconds, {len(self._client)} could say who they are",
                    "see the logs of the SuperNodes",
                )
            time.sleep(_PAUSE)
        if self._skip:
            profiles = [self._profiles[client] for client in sorted(self._node)]
            for profile in unlike(profiles) if profiles else ():
                node = self._node.pop(profile.client)
                del self._client[node]
                self.refused[node] = f"node {node}: {profile.name!r} has data of another kind than most clients"
        self.missing = max(0, wanted - len(self._client))
        if self.refused and self.missing and not (self._skip and self._node):
            fix = "mend them and submit the run again, or set federation.on_client_error: skip, which leaves them out"
            every = {**self.refused, **{node: str(problem) for node, problem in self.strays.items()}}
            raise RefusedError([every[node] for node in sorted(every)], fix)
        clients = sorted(self._node)
        check_alike([self._profiles[client] for client in clients])
        return clients

    def _admit(self, node: int, profile: Profile) -> bool:
        """Take in a node as the client that it says it is, or leave it out with a warning if it cannot be that one."""
        client, names = profile.client, self._names
        problem: InputError | str = ""
        if client >= profile.clients or (names and (profile.clients != len(names) or profile.name != names[client])):
            problem = (
                f"node {node} says that it is client {client} of {profile.clients}, {profile.name!r}, and this run"
            )
            problem += f" has {len(names)} clients: {', '.join(names[:_NAMED])}" if names else " has no such client"
        elif not profile.name.isprintable():
            problem = f"node {node} has the name {profile.name!r}, which cannot be printed"
        elif (other := self._node.get(client)) is not None:
            problem = self._twice(profile, other, node)
        elif any(profile.name == self._profiles[of].name for of in self._node):
            problem = f"node {node} has the name {profile.name!r}, which another client has"
        if problem:
            self._leave_out(node, problem)
            return False
        if self._members and client not in self._members:
            self._keep_out(node, profile)
            return False
        self._node[client], self._client[node], self._profiles[client] = node, client, profile
        return True

    def _leave_out(self, node: int, problem: InputError | str) -> None:
        self.strays[node] = problem
        log.warning("a node is left out: %s", problem)

    def _refuse_strays(self) -> None:
        """Say which nodes are connected in vain, where clients are missing.

        Raises:
            MachineError: a number was given twice.
            RefusedError: nodes have none of the run's numbers.
        """
        for problem in self.strays.values():
            if isinstance(problem, InputError):
                raise problem
        if self.strays:
            fix = "start the nodes of the missing clients, or correct the numbers or sites of these"
            raise RefusedError([str(problem) for problem in self.strays.values()], fix)

    @staticmethod
    def _twice(profile: Profile, first: int, second: int) -> MachineError:
        return MachineError(
            "client",
            f"{profile.client} ({profile.name})",
            "a different client on every node",
            f"nodes {first} and {second} have the same: start one of them with another partition-id, or name "
            "another site in its file",
        )

    @property
    def _may_lack(self) -> bool:
        """Whether a run that goes on does so without the clients that have not come."""
        return bool(self._members and self._skip and self._node)

    def _late(self, expected: str, fix: str) -> MachineError:
        """The error of a wait that was too long; of a run that goes on, it names the clients that have not come."""
        if self._members:
            absent = ", ".join(self.absent)
            expected = f"all clients with which the run began, within so many seconds; not connected: {absent}"
            fix = "start their SuperNodes and resume the run again"
        return MachineError("federation.timeout", self._timeout, expected, fix)

    def _keep_out(self, node: int, profile: Profile) -> None:
        log.warning("client %r has connected; the run began without it and goes on so", profile.name)
        self._strangers.add(node)

    def _wait(self, expected: int, known: Collection[int], deadline: float) -> list[int]:
        """Wait until `expected` nodes are connected, and return the ids of all that are.

        If a run goes on, any node that is not known yet may be the one that is missing, so each is returned at once.
        """
        told = -1
        while len(nodes := node_ids(self._grid)) < expected:
            if self._members and set(nodes).difference(known):
                return nodes
            if time.monotonic() > deadline:
                if self._may_lack:
                    return nodes
                raise self._late(
                    f"{expected} connected nodes within so many seconds, {len(nodes)} came",
                    "start the missing SuperNodes, or submit the run with a smaller expected-clients",
                )
            if told != len(nodes):
                told = len(nodes)
                log.warning("%d of %d nodes are connected: waiting for the others", told, expected)
            time.sleep(_PAUSE)
        return nodes

    def _ask(self, nodes: Sequence[int]) -> tuple[list[tuple[int, Profile]], dict[int, str]]:
        """The profiles that nodes give of themselves, and by node the reasons of those that cannot give any.

        Nodes that are lost meanwhile are in neither.
        """
        if not nodes:
            return [], {}
        content = RecordDict()
        messages = [Message(content, node, "query.profile") for node in nodes]
        replies = send_and_receive(self._grid, messages, self._timeout)
        sent_to = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        answers: list[tuple[int, Profile]] = []
        failed: dict[int, str] = {}
        gone: set[int] = set()
        for reply in replies:
            node = sent_to.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                gone.add(node)  # not refused: it was connected a moment ago, and another one may take its place
            elif reply.has_error():
                failed[node] = f"node {node}: {printable(reply.error.reason or '') or f'error {reply.error.code}'}"
                if reply.error.code == NO_CLIENT:
                    self._leave_out(node, failed.pop(node))
                    gone.add(node)
            else:
                try:
                    answers.append((node, stated_profile(required(config_record, reply.content, CONFIG))))
                except Exception as problem:  # whatever a node may say of itself
                    failed[node] = f"node {node}: {reason_of(problem)}"
        if len(answers) + len(failed) + len(gone) < len(nodes):
            silent = sorted(set(nodes) - {node for node, _ in answers} - failed.keys() - gone)
            raise MachineError(
                "federation.timeout",
                self._timeout,
                f"profiles of {len(nodes)} clients within so many seconds, {len(answers) + len(failed)} came",
                f"see the logs of node {', '.join(map(str, silent))}",
            )
        return answers, failed


def _other(profile: Profile, node: int) -> str:
    return (
        f"node {node} says that it is client {profile.name!r} with other data than the run began with: it is left out"
    )


class ClientNames(Sequence[str]):
    """The names of all clients as a sequence. A name is looked up when it is accessed.

    Args:
        directory: the directory that has the profiles.
    """

    def __init__(self, directory: ClientDirectory) -> None:
        self._directory = directory

    def __len__(self) -> int:
        return len(self._directory.clients)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(profile.name for profile in self._directory.profiles(self._directory.clients[place]))
        return self._directory.profile(self._directory.clients[place]).name
