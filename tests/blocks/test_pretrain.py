from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.blocks.pretrain import train_on_server
from fedlab.distill.schedules import cosine
from fedlab.errors import DataError
from fedlab.method import Batch, ServerContext

Server = Callable[..., ServerContext]
SAMPLES = {"x": torch.arange(10.0)[:, None]}


class Watched:
    """A loss whose gradient is 1 for the weight, so that a step moves it by the learning rate; it notes its batches."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.modes: list[bool] = []

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        self.seen.append(batch["x"].flatten().int().tolist())
        self.modes.append(network.training)
        return {"pull": network(torch.ones(1, 1)).sum()}


def line() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def train(ctx: ServerContext, network: nn.Module, loss: Any, **changes: Any) -> None:
    arguments = {"name": "it", "key": {}, "steps": 4, "batch_size": 4, "lr": 0.5, **changes}
    train_on_server(ctx, network, SAMPLES, loss, **arguments)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", [cosine(step, 4) for step in range(4)]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("constant", [1.0] * 4),
    ],
)
def test_the_rate_follows_the_schedule(server: Server, schedule: str, factors: list[float]) -> None:
    network = line()
    train(server(), network, Watched(), schedule=schedule)
    assert float(network.weight) == pytest.approx(-0.5 * sum(factors))


def test_the_rate_is_the_runs_unless_it_is_given(server: Server) -> None:
    network = line()
    train(server(), network, Watched(), lr=None, schedule="constant")
    assert float(network.weight) == pytest.approx(-0.1 * 4)


def test_every_pass_sees_all_samples_in_a_new_order_that_the_seed_decides(server: Server) -> None:
    seen = []
    for seed in (0, 0, 1):
        loss = Watched()
        train(
            server(seed=seed, preflight=False), line(), loss, steps=6, name=f"run {len(seen)}", purposes=("order", "")
        )
        assert [len(batch) for batch in loss.seen] == [4, 4, 2] * 2
        passes = [[x for batch in part for x in batch] for part in (loss.seen[:3], loss.seen[3:])]
        assert all(sorted(one) == list(range(10)) for one in passes)
        assert passes[0] != passes[1]
        assert all(loss.modes)
        seen.append(loss.seen)
    assert seen[0] == seen[1] != seen[2]


def test_an_equal_training_is_not_repeated(server: Server) -> None:
    first, second, loss = line(), line(), Watched()
    train(server(), first, loss)
    train(server(), second, loss)
    assert torch.equal(first.weight, second.weight)
    assert len(loss.seen) == 4


@pytest.mark.parametrize(
    ("changes", "training"),
    [
        ({"key": {"flip": 0.5}}, {}),
        ({"steps": 3}, {}),
        ({"batch_size": 2}, {}),
        ({"lr": 0.25}, {}),
        ({"schedule": "linear"}, {}),
        ({"name": "other"}, {}),
        ({}, {"momentum": 0.5}),
        ({}, {"weight_decay": 0.1}),
        ({}, {"clip_norm": 0.1}),
    ],
)
def test_whatever_changes_the_result_trains_anew(
    server: Server, changes: dict[str, Any], training: dict[str, Any]
) -> None:
    loss = Watched()
    train(server(), line(), loss)
    done = len(loss.seen)
    train(server(training=training), line(), loss, **changes)
    assert len(loss.seen) > done


def test_another_start_or_another_seed_trains_anew(server: Server) -> None:
    loss, moved = Watched(), line()
    nn.init.ones_(moved.weight)
    for network, seed, expected in ((line(), 0, 4), (moved, 0, 8), (line(), 1, 12)):
        train(server(seed=seed), network, loss)
        assert len(loss.seen) == expected


def test_before_a_run_one_step_is_taken_and_nothing_kept(server: Server) -> None:
    loss = Watched()
    train(server(preflight=True), line(), loss)
    assert len(loss.seen) == 1
    train(server(), line(), loss)
    assert len(loss.seen) == 5


def test_the_network_keeps_its_mode_and_gets_no_gradients(server: Server) -> None:
    network = line().eval().requires_grad_(False)
    train(server(), network, Watched())
    assert float(network.weight) < 0
    assert not network.training
    assert not network.weight.requires_grad
    assert network.weight.grad is None


def test_batches_are_augmented_by_one_generator_and_weights_changed_after_steps(server: Server) -> None:
    draws: list[float] = []

    def augment(batch: Batch, generator: torch.Generator) -> Batch:
        draws.append(float(torch.rand((), generator=generator)))
        return {"x": batch["x"] + 100}

    def clamp(network: nn.Module) -> None:
        with torch.no_grad():
            for p in network.parameters():
                p.clamp_(min=-0.7)

    network, loss = line(), Watched()
    train(server(), network, loss, augment=augment, after_step=clamp, schedule="constant")
    assert len(set(draws)) == 4
    assert min(min(batch) for batch in loss.seen) >= 100
    assert float(network.weight) == pytest.approx(-0.7)


def test_parameter_groups_are_those_that_are_asked_for(server: Server) -> None:
    network = line()
    train(
        server(),
        network,
        Watched(),
        schedule="constant",
        params=lambda n: [{"params": n.parameters(), "lr_factor": 0.1}],
    )
    assert float(network.weight) == pytest.approx(-0.05 * 4)


def test_no_samples_are_refused(server: Server) -> None:
    with pytest.raises(DataError, match="no samples"):
        train_on_server(server(), line(), {"x": torch.empty(0, 1)}, Watched(), name="it", key={}, steps=1, batch_size=2)
