"""One client of a run: its own networks, state and metrics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.clients.local_state import LocalState
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.errors import CheckpointError, DataError, did_you_mean
from fedlab.experiment.prediction import predict
from fedlab.method import Method, Task
from fedlab.method.exchange import Exchanges
from fedlab.report.record import RunRecord
from fedlab.server.snapshot import SHARED, Checkpoint
from fedlab.storage.checkpoint import START


@dataclass(frozen=True)
class ClientOfRun:
    """One client of a run, at the run's last complete checkpoint.

    Args:
        id: id of the client, from 0.
        name: its name; its id as text if the run has recorded only some of very many names.
        state: the client's own tensors by name; empty if it keeps none.
        model: the networks by role as the client uses them, in evaluation mode, on the CPU. They are those of the run,
            with the client's own values of what stays on the clients: layers of ``exchange.local``, and groups that the
            method keeps local. A client that has not trained yet has the values it would begin with. A method without
            such state has the same networks for all clients.
        metrics: the client's values in the run's last evaluation; empty if it was not evaluated.
    """

    id: int
    name: str
    state: Mapping[str, Tensor] = field(repr=False)
    model: nn.ModuleDict = field(repr=False)
    metrics: Mapping[str, Any]
    _predict: Callable[..., Tensor] = field(repr=False)

    def predict(self, samples: Any, *, domain: str | Sequence[str] | None = None, batch_size: int = 256) -> Tensor:
        """What the client's own networks predict; see `fedlab.Run.predict`."""
        return self._predict(samples, domain=domain, batch_size=batch_size)


def client_of(
    client: int | str,
    record: RunRecord,
    config: Config,
    start: Checkpoint,
    method: Method,
    task: Task,
    networks: nn.ModuleDict,
    initial: Callable[[], nn.ModuleDict],
) -> ClientOfRun:
    """The client of a run with an id or a name.

    Args:
        client: the id or the name.
        record: the run.
        config: its configuration.
        start: its last complete checkpoint.
        method: its method.
        task: its task.
        networks: its networks at that checkpoint; they are not changed.
        initial: builds the networks as they were before round 1.

    Raises:
        CheckpointError: the states of the clients are on other machines, or that of this client is damaged.
        DataError: there is no such client.
    """
    if record.folder.deployment.exists():
        expected = "the folder of a simulation; in a deployment, what clients keep stays on their own machines"
        raise CheckpointError("run", str(record.folder.path), expected, "ask the operator of the client's node")
    id, name = _found(client, record, task.num_clients)
    state = StateStore(record.folder.clients).load(id, start.versions().get(id))
    own = copy.deepcopy(networks)
    plan = method.plan(start.round, config.federation.rounds)
    local = Exchanges(own, method, config.exchange.local).of(plan).local
    versions = start.meta["shared"]["versions"]
    starts = {
        name.removeprefix(START): (int(versions[name]), value)
        for name, value in start.part(SHARED).items()
        if name.startswith(START)
    }
    with torch.no_grad():
        LocalState(own.state_dict(), lambda: initial().state_dict(), lambda: local).load(local, state, starts)
    evaluations = record.history.evaluations
    metrics = evaluations[-1]["clients"].get(name, {}) if evaluations else {}
    own.eval()
    return ClientOfRun(id, name, state, own, metrics, partial(predict, method, own, task, config.data))


def _found(client: int | str, record: RunRecord, count: int) -> tuple[int, str]:
    """Id and name of a client."""
    listed = record.partition.get("clients", [])
    # a run with very many clients has recorded only some of them
    names = [str(one["name"]) for one in listed] if record.partition.get("registered") == len(listed) else []
    if isinstance(client, str):
        if client not in names:
            raise DataError("client", client, "the name of a client of the run", did_you_mean(client, names))
        return names.index(client), client
    if not 0 <= client < count:
        raise DataError("client", client, f"a number from 0 to {count - 1}, or a client's name")
    return client, names[client] if client < len(names) else str(client)
