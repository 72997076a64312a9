"""The local loop: batches, schedules, groups, corrections, cache, NaN guard."""

from __future__ import annotations

import math
import runpy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.clients.corrections import Start, requested
from fedlab.clients.trainer import LocalTrainer
from fedlab.config import TrainingConfig
from fedlab.errors import FedLabError
from fedlab.method import Batch, BatchSpec, ClientState, Method, NotFiniteError, Plan, Step, Task
from fedlab.storage import cache as reuse
from fedlab.storage.cache import ResultCache


class Linear(Method):
    """Minimizes mean(w·x): the gradient is mean(x), so every step is known."""

    sampler: Any = None
    groups: Callable[[nn.ModuleDict], list[dict[str, Any]]] | None = None
    terms: Callable[[Tensor], dict[str, Tensor]] = staticmethod(lambda value: {"loss": value})

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.seen: list[list[int]] = []
        self.values: list[Mapping[str, float]] = []

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": nn.Linear(1, 1, bias=False)}

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(sampler=self.sampler)

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        chosen = type(self).groups  # through the class: a function, not a bound method
        return super().param_groups(networks, plan) if chosen is None else chosen(networks)

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        self.steps.append(step)
        self.seen.append(batch["x"].flatten().int().tolist())
        return type(self).terms(networks["model"](batch["x"]).mean())


def trainer(method: Method, tmp_path: Path, samples: int = 10, **changes: Any) -> LocalTrainer:
    mu = changes.pop("mu", 0.0)
    work = {
        "task": Task(0, (1,), (), 1, "none", {}, lambda *args: nn.Identity()),
        "networks": nn.ModuleDict(method.build(None)),  # type: ignore[arg-type]  # it does not look
        "training": TrainingConfig(batch_size=4, lr=0.5, **changes.pop("training", {})),
        "device": torch.device("cpu"),
        "seed": 0,
        "round": 1,
        "rounds": 5,
        "plan": {},
        **changes,
    }
    work["cache"] = ResultCache(
        tmp_path,
        lambda: "data",
        work["seed"],
        work["device"],
        keep=not work.get("preflight"),  # as ClientRuntime makes it
    )
    nn.init.zeros_(work["networks"]["model"].weight)
    made = LocalTrainer(
        method=method,
        data={"x": torch.arange(samples, dtype=torch.float32)[:, None]},
        state=ClientState(),
        shared={},
        client=0,
        client_name="one",
        examples=samples,
        fingerprint=lambda: "data",
        **work,
    )
    if mu:
        parameters = {f"model.{name}": p for name, p in work["networks"]["model"].named_parameters()}
        made.correction = requested(Start(parameters, {}, made.state, {"proximal-mu": mu}))
    return made


def test_an_epoch_sees_every_sample_once_in_an_order_that_depends_on_the_round(tmp_path: Path) -> None:
    orders = []
    for round in (1, 1, 2):
        method = Linear()
        trainer(method, tmp_path, round=round).train()
        assert [len(batch) for batch in method.seen] == [4, 4, 2]
        orders.append([x for batch in method.seen for x in batch])
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] == orders[1] != orders[2]


def test_the_order_does_not_depend_on_global_generators(tmp_path: Path) -> None:
    seen = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        method = Linear()
        trainer(method, tmp_path).train()
        seen.append(method.seen)
    assert seen[0] == seen[1]


def test_steps_count_over_the_whole_run(tmp_path: Path) -> None:
    method = Linear()
    trainer(method, tmp_path, round=3, training={"local_epochs": 2}).train()
    assert [step.index for step in method.steps] == list(range(6))
    assert [step.epoch for step in method.steps] == [0, 0, 0, 1, 1, 1]
    assert [step.global_step for step in method.steps] == list(range(12, 18))
    assert {(step.per_round, step.total_steps) for step in method.steps} == {(6, 30)}


def test_a_samplers_own_number_of_batches_counts(tmp_path: Path) -> None:
    method = Linear()
    method.sampler = lambda columns, size, generator: [torch.tensor([0, 1]), torch.tensor([2, 3])]
    trainer(method, tmp_path, round=2).train()
    assert method.seen == [[0, 1], [2, 3]]
    assert [(step.global_step, step.total_steps) for step in method.steps] == [(2, 10), (3, 10)]


def test_local_steps_end_a_round_and_begin_new_epochs(tmp_path: Path) -> None:
    method = Linear()
    work = trainer(method, tmp_path, training={"local_steps": 5})
    work.train()
    assert len(method.steps) == 5
    assert [step.epoch for step in method.steps] == [0, 0, 0, 1, 1]
    first = method.seen
    method.seen = []
    work.train()
    assert len(method.seen) == 5, "a second call trains as long as the first"
    assert method.seen != first, "and sees other batches"


def test_a_sampler_without_batches_ends_instead_of_looping(tmp_path: Path) -> None:
    method = Linear()
    method.sampler = lambda columns, size, generator: []
    trainer(method, tmp_path, training={"local_steps": 5}).train()
    assert method.steps == []


@pytest.mark.parametrize(("drop", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])])
def test_the_last_batch_can_be_dropped(tmp_path: Path, drop: bool, sizes: list[int]) -> None:
    method = Linear()
    trainer(method, tmp_path, training={"drop_last": drop}).train()
    assert [len(batch) for batch in method.seen] == sizes


def test_a_client_without_samples_does_nothing(tmp_path: Path) -> None:
    method = Linear()
    work = trainer(method, tmp_path, samples=0)
    work.train()
    assert method.steps == []
    assert work.metrics == {}


def test_the_cosine_ends_with_what_is_trained_on(tmp_path: Path) -> None:
    """Training on other samples than the client's own must not stretch the schedule."""
    method = Linear()
    work = trainer(method, tmp_path, samples=100, rounds=1, training={"schedule": "cosine"})
    rates = []
    method.after_step = lambda networks, step: rates.append(step.total_steps)  # type: ignore[method-assign]  # a spy
    work.train({"x": torch.zeros(8, 1)})
    assert rates == [2, 2]


def test_groups_follow_their_own_schedule(tmp_path: Path) -> None:
    class Two(Linear):
        def build(self, task: Task) -> dict[str, nn.Module]:
            return {"model": nn.Linear(1, 1, bias=False), "other": nn.Linear(1, 1, bias=False)}

        def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
            return [
                {"name": "slow", "params": list(networks["model"].parameters()), "lr": 0.25},
                {"name": "own", "params": list(networks["other"].parameters())},
            ]

        def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
            return {"lr": 1.0 + step.index} if group["name"] == "own" else {}

        def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
            ones = torch.ones(1, 1)
            return {"loss": (networks["model"](ones) + networks["other"](ones)).sum()}

    work = trainer(Two(), tmp_path, training={"warmup_steps": 2})
    before = float(work.networks["other"].weight)
    work.train()
    # warm-up halves the first of three steps; the second group takes 1, 2 and 3
    assert float(work.networks["model"].weight) == pytest.approx(-0.25 * (0.5 + 1 + 1))
    assert float(work.networks["other"].weight) == pytest.approx(before - 6)


def test_no_terms_skip_the_batch(tmp_path: Path) -> None:
    method = Linear()
    type(method).terms = staticmethod(lambda value: {})
    try:
        work = trainer(method, tmp_path)
        work.train()
    finally:
        type(method).terms = staticmethod(lambda value: {"loss": value})
    assert float(work.networks["model"].weight) == 0
    assert len(method.steps) == 3


def test_nothing_to_train_is_said(tmp_path: Path) -> None:
    work = trainer(Linear(), tmp_path)
    work.networks.requires_grad_(False)
    with pytest.raises(FedLabError, match="Linear has nothing to train in round 1"):
        work.train()


def test_a_loss_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    work = trainer(Linear(), tmp_path)
    optimizer = work.optimizer(work.networks.parameters())
    bad = work.networks["model"](torch.full((1, 1), math.inf)).sum()
    with pytest.raises(NotFiniteError, match=r"round 1: loss = (nan|inf|-inf)"):
        work.step(bad, optimizer)
    assert float(work.networks["model"].weight) == 0


def test_a_step_moves_only_what_its_optimizer_holds(tmp_path: Path) -> None:
    work = trainer(Linear(), tmp_path)
    pixels = torch.ones(1, 1, requires_grad=True)
    nn.init.ones_(work.networks["model"].weight)
    work.step(work.networks["model"](pixels).sum(), work.optimizer([pixels], lr=0.5))
    assert float(pixels) == 0.5
    assert work.networks["model"].weight.grad is None


def test_clipping_limits_the_global_norm(tmp_path: Path) -> None:
    work = trainer(Linear(), tmp_path, training={"clip_norm": 1.0})
    optimizer = work.optimizer(work.networks.parameters())
    work.step(work.networks["model"](torch.full((1, 1), 100.0)).sum(), optimizer)
    assert float(work.networks["model"].weight) == pytest.approx(-0.5, rel=1e-4)


def test_clipping_can_limit_each_tensor_by_itself(tmp_path: Path) -> None:
    made = trainer(Linear(), tmp_path, training={"clip_norm": 1.0, "clip": "tensor"})
    large, small = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = made.optimizer([large, small], optimizer="sgd", lr=1.0)
    made.step((large * torch.tensor([3.0, 4.0])).sum() + (small * torch.tensor([0.3, 0.4])).sum(), optimizer)
    torch.testing.assert_close(large.data, torch.tensor([-0.6, -0.8]), atol=1e-5, rtol=0)
    torch.testing.assert_close(small.data, torch.tensor([-0.3, -0.4]))


def test_adam_takes_betas_and_eps_from_the_configuration_or_the_call(tmp_path: Path) -> None:
    made = trainer(Linear(), tmp_path, training={"optimizer": "adamw", "betas": (0.8, 0.95), "eps": 1e-6})
    parameter = nn.Parameter(torch.zeros(1))
    assert made.optimizer([parameter]).torch.defaults["betas"] == (0.8, 0.95)
    changed = made.optimizer([parameter], optimizer="adam", betas=(0.5, 0.9), eps=1e-3).torch
    assert (changed.defaults["betas"], changed.defaults["eps"]) == ((0.5, 0.9), 1e-3)
    with pytest.raises(TypeError, match="nesterov"):
        made.optimizer([parameter], nesterov=True)


def test_the_proximal_term_pulls_towards_the_received_weights_in_every_loop(tmp_path: Path) -> None:
    """w ← w − η(g + μ(w − w₀)): nothing at the first step, and methods with loops of their own get it too."""
    work = trainer(Linear(), tmp_path, mu=1.0)
    optimizer = work.optimizer(work.networks.parameters())
    ones = torch.ones(1, 1)
    work.step(work.networks["model"](ones).sum(), optimizer)
    assert float(work.networks["model"].weight) == -0.5
    work.step(work.networks["model"](ones).sum(), optimizer)
    assert float(work.networks["model"].weight) == -0.5 - 0.5 * (1 - 0.5)
    pixels = torch.ones(1, 1, requires_grad=True)
    work.step((3 * pixels).sum(), work.optimizer([pixels]))
    assert float(pixels) == 1 - 0.5 * 3, "pixels have no received value to be pulled to"


def test_results_are_cached_by_data_seed_and_key_and_torn_files_are_made_again(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, Tensor]:
        calls.append(1)
        return {"x": torch.full((2,), float(len(calls)))}

    def get(key: int = 1, **changes: Any) -> float:
        return float(trainer(Linear(), tmp_path, **changes).cached("thing", {"key": key}, compute)["x"][0])

    assert (get(), get()) == (1, 1)
    assert get(key=2) == 2
    assert get(seed=1) == 3
    unseeded = [trainer(Linear(), tmp_path, seed=seed).cached("other", {}, compute, seeded=False) for seed in (0, 1)]
    assert [float(found["x"][0]) for found in unseeded] == [4, 4]
    (path, *_) = sorted((tmp_path / "thing").iterdir(), key=lambda p: p.stat().st_mtime)
    path.write_bytes(path.read_bytes()[:20])
    assert get() == 5
    assert get() == 5


def test_a_cached_result_is_made_again_once_the_code_beside_it_changes(tmp_path: Path) -> None:
    source = tmp_path / "method" / "own.py"
    source.parent.mkdir()

    def get(value: float, wrap: Callable[[Any], Any] = lambda function: function) -> float:
        source.write_text(f"import torch\n\ndef compute():\n    return {{'x': torch.tensor([{value}])}}\n")
        reuse._sources.cache_clear()  # a new process
        compute = runpy.run_path(str(source))["compute"]
        return float(trainer(Linear(), tmp_path).cached("thing", {}, wrap(compute))["x"][0])

    assert get(1.0) == 1
    assert get(2.0) == 2
    assert get(2.0, partial) == 2
    (source.parent / "losses.py").write_text("weight = 1\n")
    assert get(2.0) == 2
    assert len(list((tmp_path / "thing").iterdir())) == 3


def test_preflight_takes_one_step_and_keeps_nothing(tmp_path: Path) -> None:
    method = Linear()
    work = trainer(method, tmp_path, preflight=True)
    work.train()
    assert len(method.steps) == 1
    assert list(work.steps(100)) == [0]
    work.cached("thing", {}, lambda: {"x": torch.zeros(1)})
    assert not (tmp_path / "thing").exists()


def test_what_is_computed_of_every_sample_has_a_row_for_each_also_in_preflight(tmp_path: Path) -> None:
    columns, seen = {"x": torch.arange(10.0)}, list[int]()

    def doubled(batch: Batch) -> torch.Tensor:
        seen.append(len(batch["x"]))
        return torch.stack([batch["x"], 2 * batch["x"]], dim=1)

    assert trainer(Linear(), tmp_path).computed(columns, doubled, 4).tolist() == [[x, 2 * x] for x in range(10)]
    assert seen == [4, 4, 2]
    found = trainer(Linear(), tmp_path, preflight=True).computed(columns, doubled, 4)
    assert seen == [4, 4, 2, 4]
    assert found.tolist() == [[x, 2 * x] for x in range(4)] + [[0, 0]] * 6


def test_plain_iteration_keeps_or_shuffles_the_order(tmp_path: Path) -> None:
    work = trainer(Linear(), tmp_path)
    columns = {"x": torch.arange(6)}

    def flat(batches: Iterable[Batch]) -> list[int]:
        return [int(x) for batch in batches for x in batch["x"]]

    assert flat(work.iterate(columns, 4)) == list(range(6))
    shuffled = flat(work.iterate(columns, 4, epochs=2, shuffle="bank"))
    assert sorted(shuffled) == sorted([*range(6), *range(6)])
    assert shuffled[:6] != shuffled[6:]
    assert flat(work.iterate({}, 4)) == []


def test_a_group_is_clipped_to_a_norm_of_its_own(tmp_path: Path) -> None:
    """Two tensors form a group that is clipped to 1 as a whole; the others keep the run's 2, or none."""
    made = trainer(Linear(), tmp_path, training={"clip_norm": 2.0})
    one, two, other, free = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    groups = [{"params": [one, two], "clip_norm": 1.0}, {"params": [other]}, {"params": [free], "clip_norm": None}]
    slope = torch.tensor([3.0, 4.0])
    made.step(((one + two + other + free) * slope).sum(), made.optimizer(groups, optimizer="sgd", lr=1.0))
    whole = 50**0.5
    torch.testing.assert_close(-one.detach(), slope / whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(-two.detach(), slope / whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(-other.detach(), slope * 2 / 5, atol=1e-5, rtol=0)
    torch.testing.assert_close(-free.detach(), slope)


def test_a_group_with_its_own_norm_is_clipped_tensor_by_tensor_where_the_run_says_so(tmp_path: Path) -> None:
    made = trainer(Linear(), tmp_path, training={"clip": "tensor"})
    one, two = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = made.optimizer([{"params": [one, two], "clip_norm": 1.0}], optimizer="sgd", lr=1.0)
    made.step(((one + two) * torch.tensor([3.0, 4.0])).sum(), optimizer)
    for p in (one, two):
        torch.testing.assert_close(-p.detach(), torch.tensor([0.6, 0.8]), atol=1e-5, rtol=0)


def test_a_group_learns_at_its_own_multiple_of_the_rate(tmp_path: Path) -> None:
    """The factor holds under the run's schedule, too: the warm-up halves both rates."""

    class Slow(Linear):
        def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
            return [{"params": list(networks.parameters()), "lr_factor": 0.2}]

        def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
            return {"loss": networks["model"](torch.ones(1, 1)).sum()}

    work = trainer(Slow(), tmp_path, training={"warmup_steps": 2})
    work.train()
    assert float(work.networks["model"].weight) == pytest.approx(-0.2 * 0.5 * (0.5 + 1 + 1))
