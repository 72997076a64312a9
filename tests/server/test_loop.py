"""The round loop on real engines: equal bits, faults, what travels and what stays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fedlab
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.errors import ClientError, FedLabError
from fedlab.experiment.result import Run
from fedlab.method import Method
from fedlab.storage.checkpoint import load_checkpoint

Settings = Callable[..., Config]


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def test_every_engine_writes_the_same_weights(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    runs = [
        fedlab.run(settings(**engine), method=plain, data=samples)
        for engine in (
            {"engine__name": "inline"},
            {"engine__name": "ray", "engine__workers": 1},
            {"engine__name": "ray", "engine__workers": 2, "engine__chunk": 1},
        )
    ]
    assert len({digest(run) for run in runs}) == 1
    assert runs[0].metrics["mean"] == runs[2].metrics["mean"]
    other = fedlab.run(settings(seed=1), method=plain, data=samples)
    assert digest(other) != digest(runs[0])


@pytest.mark.parametrize(("victim", "chunk"), [(1, 2), (3, 1)])
def test_a_worker_killed_in_mid_round_changes_nothing(
    ray_workers: None,
    settings: Settings,
    samples: fedlab.Dataset,
    plain: type[Method],
    tmp_path: Path,
    victim: int,
    chunk: int,
) -> None:
    """With the sum it has kept of clients that had written their new states already, where the victim is the last."""
    marker = tmp_path / "killed"
    whole = fedlab.run(settings(), method=plain, data=samples)
    killed = fedlab.run(
        settings(
            engine__name="ray",
            engine__workers=2,
            engine__chunk=chunk,
            method__kill=victim,
            method__once=str(marker),
        ),
        method=plain,
        data=samples,
    )
    assert marker.exists()
    assert digest(killed) == digest(whole)
    counts = [StateStore(killed.folder.clients).latest(client) for client in range(4)]
    assert [float(state["rounds"]) for state in counts if state is not None] == [3, 3, 3, 3]


@pytest.mark.parametrize("engine", ["inline", "ray"])
@pytest.mark.usefixtures("reports")
def test_a_clients_error_ends_the_run_with_its_traceback(
    engine: str, ray_workers: None, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(engine__name=engine, engine__workers=1, method__fail=2)
    with pytest.raises(ClientError, match=r"client 2 failed in round 2, phase train:[\s\S]*this client is broken"):
        fedlab.run(config, method=plain, data=samples)
    (folder,) = Path(config.tracking.folder).iterdir()
    run = fedlab.load(folder)
    assert run.history.end["status"] == "failed"
    assert len(run.history.rounds) == 1
    assert run.paths["report"].exists()


def test_a_broken_client_can_be_skipped(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    config = settings(method__fail=2, federation__on_client_error="skip")
    run = fedlab.run(config, method=plain, data=samples)
    assert [round["clients"] for round in run.history.rounds] == [[0, 1, 2, 3], [0, 1, 3], [0, 1, 2, 3]]
    assert any("client 2 failed in round 2" in text for text in run.history.warnings)


def test_nan_weights_name_the_client_and_the_tensor(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    with pytest.raises(ClientError, match=r"client 3 failed in round 2[\s\S]*model\.body\.0\.weight[\s\S]*diverged"):
        fedlab.run(settings(method__nan=3), method=plain, data=samples)


def test_partial_participation_is_a_function_of_seed_and_round(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(federation__sampler={"name": "uniform", "fraction": 0.5}, federation__rounds=4)
    runs = [fedlab.run(config, method=plain, data=samples) for _ in range(2)]
    chosen = [[round["clients"] for round in run.history.rounds] for run in runs]
    assert chosen[0] == chosen[1]
    assert all(len(clients) == 2 for clients in chosen[0])
    assert len({tuple(clients) for clients in chosen[0]}) > 1
    assert digest(runs[0]) == digest(runs[1])


def test_one_client_is_local_training(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    """With one client and one round the average is that client's model, bit for bit."""
    run = fedlab.run(
        settings(data__partition=[{"name": "iid", "clients": 1}], federation__rounds=1), method=plain, data=samples
    )
    from fedlab.assembly import build_networks, make_task
    from fedlab.data.federated import FederatedData
    from fedlab.seeding import torch_generator

    data = FederatedData(samples, run.config.data, 0)
    method = plain()
    task = make_task(run.config, data.columns, data.class_names, 1)
    model = build_networks(method, task, 0, torch.device("cpu"))["model"]
    train = data.client(0).train
    images, labels = torch.from_numpy(train["image"]), torch.from_numpy(train["label"])
    order = torch.randperm(len(labels), generator=torch_generator(0, "client", 0, 1, "batches", 0, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for part in order.split(16):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[part]), labels[part]).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(run.model["model"].state_dict()[name], value)


def test_stages_teachers_local_heads_and_experts(
    settings: Settings, samples: fedlab.Dataset, staged: type[Method]
) -> None:
    run = fedlab.run(settings(federation__rounds=4, tracking__checkpoint_every=1), method=staged, data=samples)
    sizes = {
        name: sum(p.numel() * p.element_size() for p in net.state_dict().values()) for name, net in run.model.items()
    }
    down = [{group: size["down"] for group, size in event["bytes"].items()} for event in run.history.rounds]
    up = [{group: size["up"] for group, size in event["bytes"].items()} for event in run.history.rounds]
    # the teacher travels once, the body every round of its stage and once more when it is fixed, the head never
    assert [round.get("teacher", 0) for round in down] == [4 * sizes["teacher"], 0, 0, 0]
    assert [round.get("body", 0) for round in down] == [4 * sizes["body"]] * 3 + [0]
    assert [round.get("body", 0) for round in up] == [4 * sizes["body"]] * 2 + [0, 0]
    assert not any("head" in round for round in down + up)
    # one client of four sends the expert, and its value is the average
    assert [round["expert"] for round in up] == [sizes["expert"]] * 4
    assert float(run.model["expert"].bias) == 1 + 4
    checkpoints = [load_checkpoint(run.folder.checkpoints / f"round_{r:06d}")[0] for r in (2, 3, 4)]
    for name in checkpoints[0]:
        if name.startswith(("network/body", "network/teacher")):
            assert torch.equal(checkpoints[0][name], checkpoints[2][name]), name
    assert torch.equal(checkpoints[2]["server/secret"], torch.ones(3))
    assert run.metrics["server"] == {"teacher_mean": 0.5}
    heads = [StateStore(run.folder.clients).latest(client) for client in range(4)]
    weights = [state["network/head.weight"] for state in heads if state is not None]
    assert len(weights) == 4
    assert not torch.equal(weights[0], weights[1])
    assert run.metrics["mean"]["accuracy"] > 0.5


def test_stages_are_equal_on_ray(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset, staged: type[Method]
) -> None:
    config = settings(federation__rounds=4)
    inline = fedlab.run(config, method=staged, data=samples)
    ray = fedlab.run(
        config.with_overrides({"engine.name": "ray", "engine.workers": 2, "engine.chunk": 1}),
        method=staged,
        data=samples,
    )
    assert digest(inline) == digest(ray)
    assert inline.metrics["clients"] == ray.metrics["clients"]


def test_norm_layers_and_heads_can_stay_local(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    config = settings(exchange__local=["norm", "model.head.*"])
    run = fedlab.run(config, method=plain, data=samples)
    kept = StateStore(run.folder.clients).latest(0)
    assert kept is not None
    names = {name.removeprefix("network/model.") for name in kept if name.startswith("network/")}
    assert names == {"body.1.weight", "body.1.bias", "body.5.weight", "body.5.bias", "head.weight", "head.bias"}
    convolutions = sum(
        run.model["model"].body[i].weight.nbytes + run.model["model"].body[i].bias.nbytes for i in (0, 4)
    )
    assert run.history.rounds[0]["bytes_up"] == 4 * convolutions


def test_a_client_that_moves_its_teacher_is_caught_before_the_run(
    settings: Settings, samples: fedlab.Dataset, staged: type[Method]
) -> None:
    class Drifting(staged):  # type: ignore[valid-type, misc]  # a class made by a fixture
        def fit(self, ctx: object) -> None:
            super().fit(ctx)
            with torch.no_grad():
                ctx.networks["teacher"][0].weight.add_(1)  # type: ignore[attr-defined]  # as above

    with pytest.raises(FedLabError, match=r"local work changes 'teacher\.0\.weight' in round 1"):
        fedlab.run(settings(), method=Drifting, data=samples)


def test_evaluation_merges_sums_not_averages(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    config = settings(data__partition=[{"name": "dirichlet", "clients": 5, "alpha": 0.1}], federation__rounds=1)
    run = fedlab.run(config, method=plain, data=samples)
    clients = run.metrics["clients"]
    tested = {
        client["name"]: sum(client["test"])
        for client in json.loads(run.folder.partition.read_text())["clients"]
        if sum(client["test"])
    }
    assert set(clients) == set(tested)
    pooled = sum(clients[name]["accuracy"] * count for name, count in tested.items()) / sum(tested.values())
    assert run.metrics["pooled"]["accuracy"] == pytest.approx(pooled)
    mean = sum(values["accuracy"] for values in clients.values()) / len(clients)
    assert run.metrics["mean"]["accuracy"] == pytest.approx(mean)
