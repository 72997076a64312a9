"""Whole runs of FedLGD: what travels and what stays, switches that make it another method, the diagnostic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import fedlab
from fedlab.assembly import build_networks, make_method, make_task
from fedlab.clients.runtime import ClientRuntime
from fedlab.engine.grids.base import SimulationGrid
from fedlab.method import FitContext, Group, Plan, ServerContext
from fedlab.methods.fedlgd.method import FedLGD
from fedlab.methods.supervised.method import Supervised
from fedlab.protocol.messages import to_numpy
from fedlab.seeding import torch_generator
from fedlab.storage.checkpoint import load_checkpoint

Start = Callable[..., fedlab.Run]
MODEL_BYTES = 4 * (8 * 3 * 9 + 3 * 8 + 8 * 8 * 9 + 3 * 8 + 10 * 8 * 16 + 10)


def weights(run: fedlab.Run) -> dict[str, Tensor]:
    tensors, _ = load_checkpoint(run.checkpoint)
    return {name: value for name, value in tensors.items() if name.startswith("network/model.")}


def shared_images(run: fedlab.Run) -> Tensor | None:
    tensors, _ = load_checkpoint(run.checkpoint)
    return next((value for name, value in tensors.items() if name == "shared/images"), None)


def local_sets(run: fedlab.Run) -> dict[str, dict[str, Tensor]]:
    files = sorted(run.folder.artifacts.glob("virtual-local-*.safetensors"))
    return {file.stem.removeprefix("virtual-local-"): safetensors.torch.load_file(file) for file in files}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def reference(run: Start) -> fedlab.Run:
    """Selected rounds 1 and 3 (t = 0, 2) of five."""
    return run()


# §6: what travels


def test_the_global_images_are_sent_only_after_they_changed(reference: fedlab.Run) -> None:
    images = 10 * 2 * 3 * 16 * 16 * 4
    rounds = reference.history.rounds
    assert [r["bytes"].get("shared", {}).get("down", 0) for r in rounds] == [5 * images, 5 * images, 0, 5 * images, 0]
    assert [r["bytes"]["model"] for r in rounds] == [{"down": 5 * MODEL_BYTES, "up": 5 * MODEL_BYTES}] * 5
    assert all(r["bytes_up"] == 5 * MODEL_BYTES for r in rounds)


def test_the_papers_global_set_has_940800_bytes(run: Start) -> None:
    done = run(
        "data.source.size=28", "method.ipc_global=10", "method.gm_steps=0", "method.dm_steps=0",
        "method.warmup_steps=0", "federation.rounds=1",
    )  # fmt: skip
    (round,) = done.history.rounds
    assert round["bytes"]["shared"]["down"] == 5 * 940_800


def test_the_schedule_is_that_of_the_settings(reference: fedlab.Run) -> None:
    rounds = reference.history.rounds
    assert [("gm_last" in r["server"]) for r in rounds] == [True, False, True, False, False]
    assert [("contrastive" in r["train"]) for r in rounds] == [False, True, False, True, True]
    assert [("dm_last" in r["train"]) for r in rounds] == [True, False, True, False, False]


def arrays_of(messages: Any) -> Iterator[np.ndarray]:
    for message in messages:
        for record in () if message.has_error() else message.content.array_records.values():
            yield from to_numpy(record, copy=True).values()


def test_virtual_and_private_images_never_leave(run: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    answers: list[Any] = []
    held: list[np.ndarray] = []
    send = SimulationGrid.send_and_receive

    def recorded(self: SimulationGrid, messages: Any, **options: Any) -> Any:
        messages = list(messages)
        seen.extend(arrays_of(messages))
        replies = send(self, messages, **options)
        seen.extend(arrays_of(replies))
        return replies

    def watched(name: str) -> None:
        work = getattr(ClientRuntime, name)

        def wrapper(self: ClientRuntime, client: int, *arguments: Any) -> Any:
            answer = work(self, client, *arguments)
            if not self.setup.preflight:
                copy = {k: v.clone() for k, v in {**answer.arrays, **answer.results}.items()}
                answers.append((name, set(answer.arrays), set(answer.results), answer.metrics))
                seen.extend(v.numpy() for v in copy.values())
                state = self.store.load(client, answer.version)
                held.append(state["images"].numpy())
                held.append(self.setup.federated.client(client).train["image"])
            return answer

        monkeypatch.setattr(ClientRuntime, name, wrapper)

    monkeypatch.setattr(SimulationGrid, "send_and_receive", recorded)
    watched("prepare")
    watched("train")
    # its own numbers, so that shapes of local, global and private sets all differ
    done = run("method.ipc_local=7")

    keys = {name.removeprefix("network/") for name in weights(done)}
    assert [a for a in answers if a[0] == "train"] != []
    for name, arrays, results, metrics in answers:
        assert arrays == (keys if name == "train" else set())
        assert results == ({"mean", "std", "present"} if name == "prepare" else set())
        assert all(isinstance(value, float) for value in metrics.values())
    known = {array.shape for array in seen}
    assert (20, 3, 16, 16) in known  # the global set did travel
    for images in held:
        assert len(images) in (50, 70)
        assert images.shape not in known
        rows = {image.tobytes() for image in np.ascontiguousarray(images)}
        for array in seen:
            if array.shape[1:] == images.shape[1:]:
                assert not rows & {image.tobytes() for image in np.ascontiguousarray(array)}
            else:
                assert array.size < images[0].size or array.ndim != images.ndim


def test_clients_keep_their_images_and_the_run_ends_with_both_sets(reference: fedlab.Run) -> None:
    locals_ = local_sets(reference)
    assert len(locals_) == 5
    for found in locals_.values():
        assert found["images"].shape == (30, 3, 16, 16)
        assert torch.equal(found["labels"], torch.arange(10).repeat_interleave(3))
    path = reference.folder.artifacts / "virtual-global.safetensors"
    images = shared_images(reference)
    assert images is not None
    assert torch.equal(safetensors.torch.load_file(path)["images"], images)
    sheets = {p.name for p in reference.folder.artifacts.glob("*.png")}
    assert len(sheets) == 6
    assert {p.name for p in reference.folder.figures.glob("*.png")} >= {
        "virtual-global-0000.png",
        "virtual-local-0000.png",
        "virtual-local-0005.png",
    }


def test_the_server_does_the_second_order_work_where_clients_cannot_see_it(
    run: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """θ_t, θ_{t+1} and labels are as before; only the images move."""
    update = FedLGD.server_update
    moved: list[bool] = []

    def checked(self: FedLGD, ctx: ServerContext) -> None:
        before, after = ({k: v.clone() for k, v in side.items()} for side in (ctx.before, ctx.after))
        images = ctx.shared["images"].clone()
        update(self, ctx)
        assert same(dict(ctx.before), before)
        assert same(dict(ctx.after), after)
        assert ctx.preflight or not same(before, after)
        if not ctx.preflight:
            moved.append(not torch.equal(ctx.shared["images"], images))

    monkeypatch.setattr(FedLGD, "server_update", checked)
    run()
    assert moved == [True, False, True, False, False]


# Appendix D: switches


BARE = ("method.lambda_reg=0", "method.updates=0", "method.ipc_global=0")


def test_without_its_ideas_it_is_federated_averaging_on_the_virtual_data(run: Start) -> None:
    bare = run(*BARE)
    sets = local_sets(bare)

    class Averaging(Supervised):
        """FedAvg in which clients count alike, on the images FedLGD made."""

        def exchange(self, plan: Plan) -> tuple[Group, ...]:
            return (Group("model", weight="uniform"),)

        def fit(self, ctx: FitContext) -> None:
            found = sets[ctx.client_name]
            ctx.train({"image": found["images"], "label": found["labels"]})

    averaged = run("method={name: supervised}", method=Averaging)
    assert same(weights(averaged), weights(bare))
    assert averaged.metrics["clients"] == bare.metrics["clients"]


def test_no_updates_is_averaging_on_warm_up_data_plus_frozen_noise(run: Start) -> None:
    bare = run(*BARE)
    alone = run("method.lambda_reg=0", "method.updates=0", "method.train_on_global=false")
    assert same(weights(alone), weights(bare))
    assert same(local_sets(alone)["grey"], local_sets(bare)["grey"])
    union = run("method.lambda_reg=0", "method.updates=0")
    assert not same(weights(union), weights(bare))
    first, second = shared_images(alone), shared_images(union)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_no_regularizer_and_a_weight_of_zero_are_the_same(run: Start, reference: fedlab.Run) -> None:
    zero, none = run("method.lambda_reg=0"), run("method.reg=none")
    assert same(weights(zero), weights(none))
    assert not same(weights(zero), weights(reference))


def test_without_gradient_matching_anchors_stay_as_initialized(run: Start, reference: fedlab.Run) -> None:
    frozen, untouched = run("method.gm_enabled=false"), run("method.updates=0")
    first, second, third = (shared_images(r) for r in (frozen, untouched, reference))
    assert first is not None
    assert second is not None
    assert third is not None
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert [r["bytes"].get("shared", {}).get("down", 0) > 0 for r in frozen.history.rounds] == [True] + [False] * 4
    assert not any("gm_first" in r["server"] for r in frozen.history.rounds)


def test_every_arm_starts_from_the_same_warm_up_images(run: Start) -> None:
    arms = [run("federation.rounds=1", *BARE), run("federation.rounds=1", "method.gm_enabled=false")]
    first, second = (local_sets(arm) for arm in arms)
    assert all(same(first[name], second[name]) for name in first)


# participation, absent classes, reproducibility


def test_a_client_drawn_late_gets_current_weights_and_images(run: Start) -> None:
    done = run("federation.sampler.fraction=0.5", "federation.rounds=6", "evaluation.every=6")
    versions: dict[int, int] = {}
    version, image_bytes = 1, 10 * 2 * 3 * 16 * 16 * 4
    for r in done.history.rounds:
        assert len(r["clients"]) == 2  # ⌊0.5 · 5⌋
        lacking = [c for c in r["clients"] if versions.get(c) != version]
        assert r["bytes"].get("shared", {}).get("down", 0) == len(lacking) * image_bytes
        versions |= dict.fromkeys(r["clients"], version)
        version += "gm_last" in r["server"]


def test_dirichlet_clients_hold_only_the_classes_they_have(run: Start) -> None:
    done = run("data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]", "federation.rounds=3")
    held = local_sets(done)
    assert min(len(found["labels"].unique()) for found in held.values()) < 10
    for found in held.values():
        assert set(torch.unique(found["labels"], return_counts=True)[1].tolist()) == {3}  # flat histogram
        assert torch.isfinite(found["images"]).all()
    assert all(torch.isfinite(value).all() for value in weights(done).values())
    images = shared_images(done)
    assert images is not None
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("model", ["{name: simple_cnn}", "{name: convnet, width: 8, depth: 2, norm: batch}"])
def test_runs_repeat_with_dropout_and_batch_normalization(run: Start, model: str) -> None:
    first, second = (run(f"model={model}", "federation.rounds=2") for _ in range(2))
    assert same(weights(first), weights(second))
    assert all(torch.isfinite(value).all() for value in weights(first).values())


# §3.10


def test_the_diagnostic_tests_a_model_of_the_global_images_alone(run: Start, reference: fedlab.Run) -> None:
    done = run("method.diagnose=true", "evaluation.every=2")
    assert same(weights(done), weights(reference))
    assert done.metrics["mean"].keys() - reference.metrics["mean"].keys() == {
        f"virtual_only_{name}" for name in ("accuracy", "balanced_accuracy", "f1_macro", "loss")
    }
    assert done.metrics["clients"]["grey"]["accuracy"] == reference.metrics["clients"]["grey"]["accuracy"]
    assert not any("virtual_only_accuracy" in e["mean"] for e in done.history.evaluations[:-1])
    assert [r["bytes"].get("virtual_only", {}).get("down", 0) for r in done.history.rounds] == (
        [0] * 4 + [5 * MODEL_BYTES]
    )
    # five epochs over twenty images in batches of two, with the run's optimizer: repeated here
    tensors, _ = load_checkpoint(done.checkpoint)
    trained = {k: v for k, v in tensors.items() if k.startswith("network/virtual_only.")}
    method = make_method(done.config.method)
    columns = {"image": ("float32", (3, 16, 16)), "label": ("int64", ())}
    task = make_task(done.config, columns, [str(digit) for digit in range(10)], 5)
    model: Any = build_networks(method, task, done.config.seed, torch.device("cpu"))["virtual_only"].train()
    images, labels = tensors["shared/images"], torch.arange(10).repeat_interleave(2)
    settings = done.config.training
    optimizer = torch.optim.SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    losses = []
    for epoch in range(5 * settings.local_epochs):
        order = torch.randperm(20, generator=torch_generator(0, "server", 5, "iterate", "virtual_only", epoch))
        for part in order.split(2):
            loss = nn.functional.cross_entropy(model(images[part]), labels[part])
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert done.history.rounds[-1]["server"]["virtual_only_ce"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert trained.keys() == {f"network/virtual_only.{name}" for name in model.state_dict()}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[f"network/virtual_only.{name}"], value)


def test_the_last_round_ends_with_the_model_it_tests(run: Start) -> None:
    done = run("method.diagnose=true", "federation.rounds=1")
    tensors, _ = load_checkpoint(done.checkpoint)
    fresh = done.model["virtual_only"]
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, tensors[f"network/virtual_only.{name}"])
    assert not same(done.model["model"].state_dict(), fresh.state_dict())


@pytest.mark.parametrize("strategy", ["scaffold", pytest.param("fednova", marks=pytest.mark.slow)])
def test_it_composes_with_other_algorithms(run: Start, reference: fedlab.Run, strategy: str) -> None:
    composed = run(f"federation.strategy={strategy}")
    assert all(torch.isfinite(value).all() for value in weights(composed).values())
    assert not same(weights(composed), weights(reference))
    assert shared_images(composed) is not None
    falls = [
        r["server"]["gm_last"] < r["server"]["gm_first"] for r in composed.history.rounds if "gm_last" in r["server"]
    ]
    assert falls == [True] * len(falls) != []
