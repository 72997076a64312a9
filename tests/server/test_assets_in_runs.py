"""Runs whose clients hold different assets of the method: what is averaged over whom, and what never travels."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import torch
from torch import Tensor, nn

import fedlab
from fedlab.clients.runtime import ClientRuntime
from fedlab.clients.work import Trained, WorkRequest
from fedlab.config import Config
from fedlab.errors import CheckpointError, ClientError, ConfigErrors, FedLabError, RefusedError
from fedlab.experiment.result import Run
from fedlab.method import Asset, Batch, EvaluationContext, FitContext, Group, Method, ServerContext, Step, Task
from fedlab.storage.checkpoint import load_checkpoint
from tests.server.nodes import Deployment

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

Settings = Callable[..., Config]
ASSETS = ("uni", "conch")
HOLDS = {"0": ["uni"], "1": ["conch", "large"], "2": ["uni", "conch"]}
"""By the number in the client's name; client 3 holds nothing."""


class Experts(Method):
    """Every client that holds an expert adds 10 to the power of its number to that expert's head, and 1 to the body."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        networks = {"body": nn.Linear(1, 1), "heads": nn.ModuleDict({name: nn.Linear(1, 1) for name in ASSETS})}
        for network in networks.values():
            for p in network.parameters():
                nn.init.zeros_(p)
        return networks

    def assets(self, task: Task) -> Mapping[str, Asset]:
        return {**dict.fromkeys(ASSETS, lambda: nn.Linear(32, 5)), "large": None}

    def exchange(self, plan: Mapping[str, Any]) -> tuple[Group, ...]:
        heads = (Group(f"heads/{name}", (f"heads.{name}",), weight="uniform", asset=name) for name in ASSETS)
        return (*heads, Group("body", ("body",), weight="uniform"))

    def fit(self, ctx: FitContext) -> None:
        with torch.no_grad():
            for name in ctx.holds:
                if name != "large":
                    assert ctx.asset(name).weight.shape == (5, 32)
                    ctx.networks["heads"][name].bias.add_(10.0**ctx.client)  # type: ignore[index]  # by name
            ctx.networks["body"].bias.add_(1.0 + ("large" in ctx.holds))
        ctx.log("held", len(ctx.holds))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        held = sum(float(ctx.asset(name).weight.sum()) for name in ctx.holds if name != "large")
        return {"held": np.array([held])}

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return {"held": float(sums["held"][0])}


@pytest.fixture
def start(settings: Settings, samples: fedlab.Dataset) -> Callable[..., Run]:
    def run(method: type[Method] = Experts, **changes: Any) -> Run:
        until = changes.pop("until", None)
        holds = {f"*{number}": names for number, names in HOLDS.items()}
        config = settings(**{"data__holds": holds, "federation__rounds": 2, "tracking__checkpoint_every": 1, **changes})
        return fedlab.run(config, method=method, data=samples, until=until)

    return run


def weights(run: Run) -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(run.checkpoint)
    return tensors


def test_heads_are_averaged_over_holders_only(start: Callable[..., Run]) -> None:
    found = weights(start())
    assert float(found["network/heads.uni.bias"]) == 2 * (1 + 100) / 2
    assert float(found["network/heads.conch.bias"]) == 2 * (10 + 100) / 2
    assert float(found["network/body.bias"]) == 2 * (1 + 2 + 1 + 1) / 4


def test_assets_are_in_no_message_and_in_no_file(start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: set[str] = set()
    known: dict[str, bytes] = {}
    train = ClientRuntime.train

    def watched(self: ClientRuntime, client: int, request: WorkRequest, version: int | None) -> Trained:
        answer = train(self, client, request, version)
        sent.update(request.arrays, request.shared, answer.arrays, answer.results)
        known.update({name: self.assets.network(name).weight.numpy().tobytes() for name in ASSETS})  # type: ignore[operator,union-attr]  # a layer's weight is a tensor
        return answer

    monkeypatch.setattr(ClientRuntime, "train", watched)
    run = start()
    assert sent == {
        f"{part}.{kind}" for part in ("body", *(f"heads.{name}" for name in ASSETS)) for kind in ("weight", "bias")
    }
    assert len(known["uni"]) == 4 * 5 * 32
    assert known["uni"] != known["conch"]
    written = [path for path in run.path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in written)
    for path in written:
        content = path.read_bytes()
        assert not any(value in content for value in known.values()), path
    assert all(event["bytes"].keys() == {"body", "heads/uni", "heads/conch"} for event in run.history.rounds)
    for event in run.history.rounds:  # two of four clients hold each expert
        assert {name: (sizes["down"], sizes["up"]) for name, sizes in event["bytes"].items()} == {
            "body": (32, 32), "heads/uni": (32, 16), "heads/conch": (32, 16),
        }  # fmt: skip


def test_a_resumed_run_and_one_on_two_workers_give_the_same(
    start: Callable[..., Run], samples: fedlab.Dataset, ray_workers: None
) -> None:
    whole, stopped = start(), start(until=1)
    resumed = fedlab.resume(stopped.path, method=Experts, data=samples)
    spread = start(engine={"name": "ray", "workers": 2, "chunk": 1})
    for other in (resumed, spread):
        assert weights(other).keys() == weights(whole).keys()
        assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(other).items())
        assert [event["clients"] for event in other.history.evaluations] == [
            event["clients"] for event in whole.history.evaluations
        ]
    _, facts = load_checkpoint(whole.checkpoint)
    assert facts["assets"].keys() == set(ASSETS)


def test_clients_of_one_process_share_one_copy(start: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    class Counted(Experts):
        def assets(self, task: Task) -> Mapping[str, Asset]:
            def build() -> nn.Module:
                built.append("uni")
                return nn.Linear(32, 5)

            return {"uni": build, "conch": lambda: nn.Linear(32, 5), "large": None}

    start(Counted)
    assert built == ["uni"], "the trial before the run, the clients and the server"


def test_an_expert_of_another_client_is_out_of_reach_before_the_run_starts(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    class Greedy(Experts):
        def fit(self, ctx: FitContext) -> None:
            ctx.asset("uni")

    with pytest.raises(FedLabError, match=r"client '[^']*' does not hold the asset 'uni'"):
        start(Greedy)
    assert not (tmp_path / "runs").exists(), "every combination of assets is tried before the run folder is made"


def test_the_server_reaches_what_it_holds(start: Callable[..., Run]) -> None:
    class Served(Experts):
        def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
            return {"weight": float(ctx.asset("conch").weight.sum())}

    with pytest.raises(FedLabError, match=r"the server does not hold the asset 'conch' \(it holds nothing\)"):
        start(Served)
    event = start(Served, data__server_holds=["conch"]).history.evaluations[-1]
    holder = next(values["held"] for name, values in event["clients"].items() if name.endswith("1"))
    assert event["server"]["weight"] == pytest.approx(holder)


def test_the_loss_reaches_assets_through_the_step(start: Callable[..., Run]) -> None:
    class Distilled(Experts):
        def fit(self, ctx: FitContext) -> None:
            ctx.train()

        def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
            output = networks["body"](batch["image"].mean((1, 2, 3), keepdim=True)[:, :, 0, 0])
            target = output.new_zeros(())
            for name in step.holds:
                if name != "large":
                    target = target + step.asset(name).bias.mean()  # type: ignore[operator,union-attr]  # a layer's
            return {"distance": (output - target).square().mean()}

    distances = [event["metrics"]["distance"] for event in start(Distilled).history.of("client")]
    assert len(distances) == 2 * 4
    assert all(value > 0 for value in distances[:3])


def test_clients_without_what_a_method_needs_are_refused_before_work_starts(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    class Needing(Experts):
        def lacks(self, holds: Sequence[str]) -> str:
            return "" if set(holds) & set(ASSETS) else "an expert (uni or conch)"

    with pytest.raises(ConfigErrors, match=r"data\.holds[\s\S]*nothing on '[^']*3'[\s\S]*an expert \(uni or conch\)"):
        start(Needing)
    start(Needing, data__unseen=["*3"])
    with pytest.raises(ConfigErrors, match="did you mean 'uni'"):
        start(data__holds={"*": ["unl"]})


def constant(values: Iterator[float]) -> Callable[[Method, Task], Mapping[str, Asset]]:
    """A hook `assets` whose builders make experts with the next of these values as weights."""

    def build() -> nn.Module:
        made, value = nn.Linear(32, 5), next(values)
        for p in made.parameters():
            nn.init.constant_(p, value)
        return made

    return lambda self, task: {**dict.fromkeys(ASSETS, build), "large": None}


def test_nodes_with_other_weights_under_one_name_are_refused_by_name(
    small: Settings, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedlab.methods.supervised.method.METHOD.assets", constant(itertools.repeat(1.0)))
    run = deployment.serve(deployment.submitted(small(federation__rounds=1), 3))
    assert load_checkpoint(run.checkpoint)[1]["assets"].keys() == set(ASSETS)
    monkeypatch.setattr("fedlab.methods.supervised.method.METHOD.assets", constant(itertools.count()))
    with pytest.raises(RefusedError) as caught:
        deployment.serve(deployment.submitted(small(federation__rounds=1), 3, token="beef"))
    told = str(caught.value)
    assert told.count("asset uni = 'weights with hash") == told.count("asset conch = 'weights with hash") == 2
    assert all(f"'{client}': asset uni" in told for client in "12")
    assert "the weights of this asset on '0'" in told
    assert "give all of them the same file" in told


def test_other_weights_than_the_run_began_with_are_refused(
    start: Callable[..., Run], samples: fedlab.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = start(until=1)
    monkeypatch.setattr(Experts, "assets", constant(itertools.repeat(1.0)))
    with pytest.raises(CheckpointError, match=r"asset (uni|conch)[\s\S]*with which the run began"):
        fedlab.resume(stopped.path, method=Experts, data=samples)


def test_a_builder_that_fails_ends_the_run_before_round_1(start: Callable[..., Run]) -> None:
    class Broken(Experts):
        def assets(self, task: Task) -> Mapping[str, Asset]:
            def build() -> nn.Module:
                raise RuntimeError("no such weights")

            return {"uni": build, "conch": build, "large": None}

    with pytest.raises((ClientError, RuntimeError), match="no such weights"):
        start(Broken)
