"""Deployed runs that are interrupted end with the bits of those that are not."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from flwr.app import Message

import fedlab
from fedlab.config import Config
from fedlab.errors import CheckpointError, ClientError, ConfigError, MachineError, RefusedError
from fedlab.storage.checkpoint import load_checkpoint
from tests.server.nodes import CRASHED, LOST, LOST_AFTER, Deployment, KilledError, Nodes

Settings = Callable[..., Config]
CLIENTS, ROUNDS = 3, 4
STATES = [
    # SCAFFOLD keeps a control variate on each client; a codec's residual is kept beside it
    {"federation__strategy": {"name": "scaffold"}},
    # images that stay on the client, and images that the server shares
    {
        "method": {"name": "fedlgd", "ipc_local": 1, "ipc_global": 1, "warmup_steps": 1, "dm_steps": 1, "gm_steps": 1,
                   "spacing": 2, "updates": 2},
    },
]  # fmt: skip


@pytest.fixture
def small(settings: Settings) -> Settings:
    """A run of four rounds on three clients with a few pictures each."""

    def make(**changes: object) -> Config:
        return settings(
            **{
                "data__source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 12},
                "data__partition": [{"name": "iid", "clients": CLIENTS}],
                "federation__rounds": ROUNDS,
                "evaluation__every": 2,
                "tracking__checkpoint_every": 3,
                **changes,
            }
        )

    return make


def weights(run: fedlab.Run) -> dict[str, torch.Tensor]:
    return load_checkpoint(run.checkpoint)[0]


def same(run: fedlab.Run, other: fedlab.Run) -> None:
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert run.metrics["clients"] == other.metrics["clients"]


@pytest.mark.parametrize("state", STATES, ids=["scaffold", "fedlgd"])
def test_it_equals_the_simulation_and_survives_restarts_of_nodes(
    state: dict[str, object], small: Settings, deployment: Deployment
) -> None:
    config = small(**state)
    nodes = deployment.submitted(config, CLIENTS)

    def restart_all(client: int, kind: str, round: int, message: Message) -> str:
        if (client, kind) == (CLIENTS - 1, "train"):  # the first that is reached in a phase
            nodes.restart()
        return ""

    nodes.fate = restart_all
    deployed = deployment.serve(nodes)
    same(deployed, fedlab.run(config))
    assert (deployment.folder / "node1" / "runs" / "f00d").is_dir()
    held = sorted(path.name for path in deployed.folder.checkpoints.glob("round_*"))
    assert held == ["round_000003", "round_000004"], "one is written after each round, and two stay"
    assert [event["round"] for event in deployed.history.of("checkpoint")] == [3, 4]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_run_that_goes_on_does_so_with_the_clients_with_which_it_began(
    policy: str, small: Settings, deployment: Deployment
) -> None:
    config = small(federation__on_client_error=policy, federation__timeout=60.0)
    nodes = deployment.submitted(config, CLIENTS, expected=2)
    nodes.online = {nodes.node(0), nodes.node(2)}

    def kill(client: int, kind: str, round: int, message: Message) -> str:
        if (round, kind) == (3, "train"):
            raise KilledError
        return ""

    nodes.fate = kill
    with pytest.raises(KilledError):
        deployment.serve(nodes)
    name = deployment.run(nodes).path.name
    again = deployment.submitted(config, CLIENTS, expected=2, resume=name)
    again.online = {again.node(0), again.node(1)}
    if policy == "stop":
        with pytest.raises(MachineError, match=r"with which the run began[\s\S]*not connected: 2"):
            deployment.serve(again)
        again.online |= {again.node(2)}
        again = deployment.submitted(config, CLIENTS, expected=2, resume=name)
    resumed = deployment.serve(again)
    clients = [event["clients"] for event in resumed.history.rounds]
    assert clients == ([[0, 2]] * 4 if policy == "stop" else [[0, 2], [0, 2], [0], [0]])
    told = [left for left in resumed.history.left_out if left.what == "clients"]
    assert [left.examples for left in told] == ([] if policy == "stop" else [("2",)])


@pytest.mark.parametrize("state", STATES, ids=["scaffold", "fedlgd"])
@pytest.mark.parametrize("moment", [(1, "train"), (3, "train"), (2, "evaluate"), (4, "train")])
def test_a_run_whose_server_was_killed_goes_on_from_the_last_completed_round(
    state: dict[str, object], moment: tuple[int, str], small: Settings, deployment: Deployment
) -> None:
    config = small(**state)
    whole = fedlab.run(config)
    nodes = deployment.submitted(config, CLIENTS)
    round_of, kind_of = moment

    def kill_after_the_second(client: int, kind: str, round: int, message: Message) -> str:
        # two clients have done this round's work and kept new states, which do not count
        if (round, kind, client) == (round_of, kind_of, 0):
            raise KilledError
        return ""

    nodes.fate = kill_after_the_second
    with pytest.raises(KilledError):
        deployment.serve(nodes)
    begun = deployment.run(nodes)
    again = deployment.submitted(config, CLIENTS, resume=begun.path.name)
    resumed = deployment.serve(again)
    assert resumed.path == begun.path
    completed = round_of - 1
    assert resumed.history.start["resumed"] == completed
    assert next(round for _, kind, round in again.sent if kind == "train") == completed + 1
    same(resumed, whole)
    assert [event["round"] for event in resumed.history.rounds] == [1, 2, 3, 4]


def test_a_run_is_killed_twice_and_asked_for_more_rounds(small: Settings, deployment: Deployment) -> None:
    config, longer = (small(federation__strategy={"name": "scaffold"}, federation__rounds=n) for n in (4, 5))
    nodes = deployment.submitted(config, CLIENTS)

    def kill_in(moment: int) -> Callable[[int, str, int, Message], str]:
        def fate(client: int, kind: str, round: int, message: Message) -> str:
            if (round, kind, client) == (moment, "train", 1):
                raise KilledError
            return ""

        return fate

    nodes.fate = kill_in(3)
    with pytest.raises(KilledError):
        deployment.serve(nodes)
    name = deployment.run(nodes).path.name
    for moment in (4, 3):  # the second one goes back behind rounds that the nodes have done already
        if moment == 3:
            newest = deployment.run(nodes).folder.checkpoints / "round_000003" / "tensors.safetensors"
            newest.write_bytes(b"damaged")
        nodes = deployment.submitted(config, CLIENTS, resume=name)
        nodes.fate = kill_in(moment)
        with pytest.raises(KilledError):
            deployment.serve(nodes)
    resumed = deployment.serve(deployment.submitted(longer, CLIENTS, resume=name))
    same(resumed, fedlab.run(longer))
    assert json.loads(resumed.folder.deployment.read_text())["flower_runs"] == [101, 102, 103, 104]


@pytest.fixture
def half(small: Settings, deployment: Deployment) -> Nodes:
    """A run that was killed in round 3."""
    nodes = deployment.submitted(small(federation__strategy={"name": "scaffold"}), CLIENTS)

    def kill(client: int, kind: str, round: int, message: Message) -> str:
        if round == 3:
            raise KilledError
        return ""

    nodes.fate = kill
    with pytest.raises(KilledError):
        deployment.serve(nodes)
    return nodes


def test_what_does_not_belong_to_the_run_is_refused_and_nothing_is_lost(
    small: Settings, deployment: Deployment, half: Nodes
) -> None:
    begun = deployment.run(half)
    name, before = begun.path.name, begun.folder.events.read_text()

    def refused(error: type[Exception], words: str, **changes: object) -> None:
        options = {key: changes.pop(key) for key in ("token", "resume") if key in changes}
        config = small(**{"federation__strategy": {"name": "scaffold"}, **changes})
        with pytest.raises(error, match=words):
            deployment.serve(deployment.submitted(config, CLIENTS, **{"resume": name, **options}))

    refused(ConfigError, r"run-token = 'bad'", token="bad")
    refused(ConfigError, r"training\.lr = 0\.5\n  expected: 0\.1, with which the run began", training__lr=0.5)
    refused(CheckpointError, r"run = .*elsewhere", resume="elsewhere")
    refused(ConfigError, r"resume = '\.\./", resume=f"../{name}")
    refused(ConfigError, r"run-token = '\.\./a'", token="../a", resume="")
    refused(CheckpointError, r"all 2 are done", federation__rounds=2)
    (begun.path / "deployment.json").unlink()
    refused(CheckpointError, r"folder of a deployed run")
    assert begun.folder.events.read_text() == before


def test_a_deployed_run_is_never_resumed_as_a_simulation(deployment: Deployment, half: Nodes) -> None:
    begun = deployment.run(half)
    before = begun.folder.events.read_text()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=rf"of a deployment[\s\S]*fedlab deploy resume {begun.path.name}"):
            fedlab.resume(begun.path)
        (begun.path / "deployment.json").unlink(missing_ok=True)  # the events say it too
    assert begun.folder.events.read_text() == before


def test_a_node_whose_data_has_changed_is_refused_before_a_round(
    small: Settings, deployment: Deployment, half: Nodes
) -> None:
    path = deployment.folder / "node1" / "runs" / "f00d" / "data"
    path.write_text("another hash")
    again = deployment.submitted(
        small(federation__strategy={"name": "scaffold"}), CLIENTS, resume=deployment.run(half).path.name
    )
    with pytest.raises(RefusedError, match=r"other samples of [\s\S]*bring the data back") as told:
        deployment.serve(again)
    assert "another hash" not in str(told.value)
    assert {kind for _, kind, _ in again.sent} == {"query.profile"}


def test_a_node_that_has_lost_its_state_is_not_served_in_silence(
    small: Settings, deployment: Deployment, half: Nodes
) -> None:
    for state in (deployment.folder / "node1" / "runs" / "f00d").rglob("*.state"):
        state.unlink()
    config = small(federation__strategy={"name": "scaffold"})
    name = deployment.run(half).path.name
    with pytest.raises(ClientError, match=r"client 1 failed in round 3, phase train .*:\nthe node has lost the state"):
        deployment.serve(deployment.submitted(config, CLIENTS, resume=name))


@pytest.mark.parametrize("fate", [LOST, LOST_AFTER, CRASHED])
def test_work_whose_reply_was_lost_does_not_count_on_the_node_either(
    fate: str, small: Settings, deployment: Deployment
) -> None:
    """With SCAFFOLD the sum of the clients' control variates is the server's, whoever was lost on the way."""
    config = small(federation__strategy={"name": "scaffold"}, federation__on_client_error="skip")
    nodes = deployment.submitted(config, CLIENTS)
    nodes.fate = lambda client, kind, round, message: fate if (client, kind, round) == (1, "train", 2) else ""
    run = deployment.serve(nodes)
    assert [event["clients"] for event in run.history.rounds] == [[0, 1, 2], [0, 2], [0, 1, 2], [0, 1, 2]]
    (left,) = [left for left in run.history.left_out if left.what == "local trainings"]
    assert (left.count, left.total) == (1, 3)
    assert ("lost" if fate in (LOST, LOST_AFTER) else "failed") in left.why
    again = deployment.submitted(config, CLIENTS, token="beef")
    again.fate = lambda client, kind, round, message: LOST if (client, kind, round) == (1, "train", 2) else ""
    same(run, deployment.serve(again))
