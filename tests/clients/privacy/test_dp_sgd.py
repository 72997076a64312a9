"""DP-SGD steps: what is drawn, clipped, added and divided; what a method may not do around them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.clients.corrections import Start, requested
from fedlab.clients.privacy.dp_sgd import PrivateTrainer
from fedlab.config import TrainingConfig
from fedlab.errors import FedLabError
from fedlab.method import Batch, ClientState, FitContext, Method, NotFiniteError, Plan, Step, Task
from fedlab.privacy import DPSGD
from fedlab.privacy.poisson import Calibration
from fedlab.storage.cache import ResultCache

UNREACHED = 1e9
WIDTH = 20_000


class Mean(Method):
    """Minimizes the mean of w·x, whose gradient for an example is x."""

    per_example_loss = True
    width = 1
    dropout = 0.0

    def build(self, task: Task) -> dict[str, nn.Module]:
        network = nn.Sequential(nn.Dropout(self.dropout), nn.Linear(self.width, 1, bias=False))
        nn.init.zeros_(network[1].weight)
        return {"model": network}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"product": networks["model"](batch["x"]).mean()}


class Wide(Mean):
    width = WIDTH


class Forgetful(Wide):
    dropout = 0.5


class Classifier(Mean):
    def build(self, task: Task) -> dict[str, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return {"model": nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 4))}

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](batch["x"]), batch["y"])}


def columns(samples: int, width: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "x": torch.randn(samples, width, generator=generator),
        "y": torch.randint(4, (samples,), generator=generator),
    }


def trainer(
    method: Method, tmp_path: Path, data: Mapping[str, Tensor], *, mu: float = 0.0, **changes: Any
) -> PrivateTrainer:
    settings = {"clip": UNREACHED, "noise_multiplier": 0.0, **changes.pop("privacy", {})}
    training = TrainingConfig(**{"batch_size": 4, "lr": 0.5, **changes.pop("training", {})})
    networks = nn.ModuleDict(method.build(None))  # type: ignore[arg-type]  # it does not look
    parameters = dict(networks.named_parameters())
    start = Start(parameters, {}, ClientState(), {"proximal-mu": mu})
    work = {
        "task": Task(0, (1,), (), 1, "none", {}, lambda *args: nn.Identity()),
        "networks": networks,
        "training": training,
        "device": torch.device("cpu"),
        "seed": 0,
        "round": 1,
        "rounds": 5,
        "plan": {},
    }
    made = PrivateTrainer(
        calibration=Calibration(DPSGD.Settings(**settings), {training: 5}),
        method=method,
        data=dict(data),
        state=start.state,
        shared={},
        client=0,
        client_name="c",
        examples=len(data["x"]),
        fingerprint=lambda: "f",
        cache=ResultCache(tmp_path, lambda: "f", 0, torch.device("cpu")),
        **{**work, **changes},
    )
    made.correction = requested(start)
    return made


def weights(trained: PrivateTrainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trained.networks.parameters()])


@pytest.mark.parametrize("settings", [{"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adamw"}])
def test_without_noise_and_clipping_it_is_plain_training_on_poisson_batches(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Up to rounding, with the sum divided by the expected size instead of the batch's own."""
    data = columns(30, 3)
    training = {**settings, "lr": 0.1, "weight_decay": 0.01, "local_epochs": 2, "batch_size": 10}
    private = trainer(Classifier(), tmp_path, data, training=training, privacy={"physical_batch_size": 4})
    private.train()

    replay = trainer(Classifier(), tmp_path, data, training=training)
    (network,) = replay.networks.values()
    optimizer = replay.optimizer(network.parameters()).torch
    sizes = []
    for batch, _ in replay.batches():
        sizes.append(len(batch["x"]))
        optimizer.zero_grad()
        (F.cross_entropy(network(batch["x"]), batch["y"], reduction="sum") / 10).backward()
        optimizer.step()
    assert len(sizes) == 6
    assert len(set(sizes)) > 1
    torch.testing.assert_close(weights(private), weights(replay), rtol=1e-4, atol=1e-6)
    assert private.spent == {"rate": 1 / 3, "noise_multiplier": 0.0, "steps": 6}


def test_every_example_is_in_every_batch_with_the_stated_probability(tmp_path: Path) -> None:
    drawn = trainer(Mean(), tmp_path, columns(200), training={"batch_size": 30, "local_steps": 500})
    counts, sizes = torch.zeros(200), []
    data = {"x": drawn.data["x"], "index": torch.arange(200)}
    for batch, step in drawn.batches(data):
        assert len(set(batch["index"].tolist())) == len(batch["index"])
        counts[batch["index"]] += 1
        sizes.append(len(batch["index"]))
        assert step.epoch == step.index // 7
    found = torch.tensor(sizes, dtype=torch.float64)
    deviation = math.sqrt(200 * 0.15 * 0.85)
    assert float(found.mean()) == pytest.approx(30, abs=4 * deviation / math.sqrt(500))
    assert float(found.std()) == pytest.approx(deviation, rel=0.15)
    assert float((counts - 75).abs().max()) < 5 * math.sqrt(500 * 0.15 * 0.85)


@pytest.mark.parametrize("examples", [40, 3])
def test_the_noise_has_the_deviation_it_is_accounted_with(examples: int, tmp_path: Path) -> None:
    """On a sum of zero gradients: σ·C over the expected batch size, also where no example was drawn."""
    zeros = {name: torch.zeros_like(values) for name, values in columns(examples, WIDTH).items()}
    private = trainer(
        Wide(),
        tmp_path,
        zeros,
        training={"lr": 1.0, "local_steps": 1},
        privacy={"clip": 3.0, "noise_multiplier": 2.0},
    )
    private.train()
    deviation = 2.0 * 3.0 / min(4, examples)
    assert float(weights(private).std()) == pytest.approx(deviation, rel=0.02)
    assert abs(float(weights(private).mean())) < 4 * deviation / math.sqrt(WIDTH)
    expected = torch.randn(1, WIDTH, generator=private.generator("noise", 0)) * 6.0 / min(4, examples)
    torch.testing.assert_close(weights(private), -expected.flatten(), rtol=1e-6, atol=0)


def test_every_step_round_and_client_draws_noise_of_its_own(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(values) for name, values in columns(8, WIDTH).items()}

    def drawn(**changes: Any) -> Tensor:
        made = trainer(Wide(), tmp_path, zeros, privacy={"noise_multiplier": 1.0, "clip": 1.0}, **changes)
        made.train()
        return weights(made)

    first = drawn(training={"local_steps": 1})
    both = drawn(training={"local_steps": 2})
    draws = [first, both - first, drawn(training={"local_steps": 1}, round=2)]
    assert torch.equal(first, drawn(training={"local_steps": 1}))
    correlated = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert float(correlated.abs().max()) < 5 / math.sqrt(WIDTH)


def test_an_empty_draw_is_a_step_of_noise_alone(tmp_path: Path) -> None:
    rare = {"batch_size": 1, "local_steps": 1, "lr": 1.0}

    def made(seed: int) -> PrivateTrainer:
        privacy = {"noise_multiplier": 1.0, "clip": 1.0}
        return trainer(Wide(), tmp_path, columns(50, WIDTH), training=rare, seed=seed, privacy=privacy)

    empty = next(seed for seed in range(20) if all(not len(batch["x"]) for batch, _ in made(seed).batches()))
    private = made(empty)
    private.train()
    assert private.metrics == {}  # no loss was seen
    expected = torch.randn(1, WIDTH, generator=private.generator("noise", 0))
    torch.testing.assert_close(weights(private), -expected.flatten())
    assert private.spent["steps"] == 1


def test_a_client_without_examples_does_and_spends_nothing(tmp_path: Path) -> None:
    private = trainer(Mean(), tmp_path, columns(0))
    private.train()
    assert private.spent["steps"] == 0


def test_examples_are_clipped_one_by_one_and_what_was_within_is_logged(tmp_path: Path) -> None:
    data = {"x": torch.tensor([[0.5], [-8.0], [2.0], [2.0]]), "y": torch.zeros(4)}
    private = trainer(
        Mean(), tmp_path, data, training={"lr": 1.0, "batch_size": 4, "local_steps": 1}, privacy={"clip": 1.0}
    )
    private.train()
    assert weights(private).tolist() == [pytest.approx(-(0.5 - 1 + 1 + 1) / 4)]
    assert private.metrics == {"product": 0.0, "within_clip": 0.25}


def test_dropout_masks_differ_between_examples_and_follow_the_global_generator(tmp_path: Path) -> None:
    data = {"x": torch.ones(4, WIDTH), "y": torch.zeros(4)}

    def trained(seed: int) -> Tensor:
        private = trainer(Forgetful(), tmp_path, data, training={"lr": 1.0, "local_steps": 1})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            private.train()
        return weights(private)

    # a sum of four independent masks of 0 and 2 has five values
    assert len(set(trained(0).tolist())) == 5
    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_corrections_act_on_the_noisy_gradient(tmp_path: Path) -> None:
    """FedProx after a first step of size g: w ← w − η(g + μ(w − x))."""
    data = {"x": torch.full((4, 1), 1.0), "y": torch.zeros(4)}
    settings = {"lr": 0.1, "batch_size": 4, "local_steps": 2}
    noisy = {"clip": 0.5, "noise_multiplier": 1.0}
    first, both = (
        trainer(Mean(), tmp_path, data, training={**settings, "local_steps": steps}, privacy=noisy) for steps in (1, 2)
    )
    proximal = trainer(Mean(), tmp_path, data, training=settings, privacy=noisy, mu=2.0)
    for each in (first, both, proximal):
        each.train()
    assert float(weights(proximal)) == pytest.approx(float(weights(both)) - 0.1 * 2.0 * float(weights(first)), rel=1e-5)


def test_a_deadline_ends_the_steps_and_the_account_with_them(tmp_path: Path) -> None:
    private = trainer(Mean(), tmp_path, columns(40), max_steps=3)
    private.train()
    assert private.spent["steps"] == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_example_whose_gradient_is_not_finite_stops_the_client_unchanged(bad: float, tmp_path: Path) -> None:
    data = {"x": torch.tensor([[1.0], [bad]]), "y": torch.zeros(2)}
    private = trainer(Mean(), tmp_path, data, training={"batch_size": 2})
    with pytest.raises(NotFiniteError, match="not finite in round 1"):
        private.train()
    assert float(weights(private)) == 0


def own_step(ctx: FitContext) -> None:
    optimizer = ctx.optimizer(ctx.networks.parameters())
    for batch, _ in ctx.batches():
        ctx.step(ctx.networks["model"](batch["x"]).mean(), optimizer)


def twice(ctx: FitContext) -> None:
    ctx.train()
    ctx.train()


@pytest.mark.parametrize(("fit", "problem"), [(own_step, "step of its own"), (twice, "trains twice")])
def test_work_outside_the_mechanism_is_refused(fit: Callable[[FitContext], None], problem: str, tmp_path: Path) -> None:
    private = trainer(Mean(), tmp_path, columns(8))
    with pytest.raises(FedLabError, match=problem):
        fit(private)


def test_parameters_outside_the_networks_are_refused(tmp_path: Path) -> None:
    class Outside(Mean):
        def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
            return [{"params": [*networks.parameters(), nn.Parameter(torch.zeros(1))]}]

    with pytest.raises(FedLabError, match="outside its networks"):
        trainer(Outside(), tmp_path, columns(8)).train()
