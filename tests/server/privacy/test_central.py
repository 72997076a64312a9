"""Central differential privacy: the account, the noise, the clipping, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import ray.cloudpickle
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn import functional as F

import fedlab
from fedlab.clients.privacy.clipping import clipped
from fedlab.config import Config
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.result import Run
from fedlab.method import Batch, FitContext, Group, Method, Plan, Step, Task
from fedlab.privacy import CLIP, WITHIN, Central
from fedlab.privacy.accountant import Sampling, epsilon
from fedlab.server.participation.samplers import Known, Poisson
from fedlab.server.privacy import CentralMechanism

pytest.importorskip("dp_accounting", reason="the extra fedlab-sim[dp] is not installed")
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
Settings = Callable[..., Config]
UNREACHED = 1e30
EVERYONE = Sampling("all", 10, 10)


class Equal(Method):
    """Supervised training in which clients count equally, and without any state that is not averaged."""

    def build(self, task: Task) -> dict[str, nn.Module]:
        return {"model": task.model()}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        return (Group("model", weight="uniform"),)

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(networks["model"](batch["image"]), batch["label"])}


class Talkative(Equal):
    """Sends more than its update."""

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        return {"count": torch.tensor([float(ctx.examples)])}

    def contributes(self, ctx: FitContext, group: str) -> bool:
        return True


KNOWN = Known(lambda clients: [1] * len(clients), {})


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def central(**changes: Any) -> dict[str, Any]:
    return {"name": "central", "clip": 0.5, "noise_multiplier": 1.0, **changes}


def mechanism(sampling: Sampling = EVERYONE, **settings: Any) -> CentralMechanism:
    return CentralMechanism(Central.Settings(**settings), sampling, 0, {})


def gaussian_by_hand(noise: float, releases: int, delta: float) -> float:
    """Mironov 2017: RDP α·T/(2z²); the conversion of Canonne, Kamath and Steinke 2020, proposition 12, over all α."""

    def at(order: float) -> float:
        rdp = order * releases / (2 * noise**2)
        return rdp + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)

    return float(minimize_scalar(at, bounds=(1.01, 500), method="bounded").fun)


# the account


def test_poisson_sampling_costs_what_the_library_says() -> None:
    assert epsilon(Sampling("poisson", 1000, 10), 1.0, 1000, 1e-5) == pytest.approx(2.101366525, rel=1e-6)


@pytest.mark.parametrize(("noise", "releases"), [(4.0, 1), (10.0, 10), (2.0, 5)])
def test_a_plain_gaussian_costs_the_closed_form_of_half_the_noise(noise: float, releases: int) -> None:
    counted = epsilon(EVERYONE, noise, releases, 1e-5)
    assert counted == pytest.approx(gaussian_by_hand(noise / 2, releases, 1e-5), rel=0.01)
    assert counted >= gaussian_by_hand(noise / 2, releases, 1e-5) * (1 - 1e-9)


def test_a_poisson_rate_of_one_is_a_plain_gaussian_of_the_whole_noise() -> None:
    counted = epsilon(Sampling("poisson", 10, 10), 2.0, 5, 1e-5)
    assert counted == pytest.approx(gaussian_by_hand(2.0, 5, 1e-5), rel=0.01)


def test_fixed_size_samples_are_amplified_under_replacement_and_cost_more_than_poisson() -> None:
    everyone, some = Sampling("all", 1000, 1000), Sampling("fixed-size", 1000, 10)
    assert epsilon(some, 4.0, 10, 1e-5) < epsilon(everyone, 4.0, 10, 1e-5)
    assert epsilon(some, 4.0, 10, 1e-5) > epsilon(Sampling("poisson", 1000, 10), 4.0, 10, 1e-5)
    assert (some.adjacency, Sampling("poisson", 10, 1).adjacency) == ("replace-one", "add-or-remove-one")


def test_nothing_is_guaranteed_without_noise_and_nothing_spent_without_a_release() -> None:
    assert epsilon(EVERYONE, 0.0, 1, 1e-5) == math.inf
    assert epsilon(EVERYONE, 1.0, 0, 1e-5) == 0.0


# the mechanism


def test_the_noise_has_the_standard_deviation_it_is_accounted_with() -> None:
    current = {"w": np.zeros(200_000, np.float32)}
    noisy = [
        mechanism(Sampling("poisson", 100, 20), clip=3.0, noise_multiplier=2.0).release(r, ["w"], current, {}, [])["w"]
        for r in (1, 2)
    ]
    assert noisy[0].std() == pytest.approx(2.0 * 3.0 / 20, rel=0.01)
    assert abs(float(noisy[0].mean())) < 4 * 0.3 / math.sqrt(200_000)
    assert abs(float(np.corrcoef(noisy[0], noisy[1])[0, 1])) < 0.01  # rounds draw independently


def test_the_count_of_the_quantile_and_the_update_cost_the_noise_asked_for_together() -> None:
    adaptive = mechanism(clip=1.0, noise_multiplier=1.0, adaptive={"count_noise": 2.0})
    together = adaptive.update_noise**-2 + (2 * 2.0) ** -2
    assert together == pytest.approx(1.0)
    with pytest.raises(ValueError, match="count_noise"):
        Central.Settings(noise_multiplier=1.0, adaptive={"count_noise": 0.5})


def client_updates(rng: np.random.Generator, clients: int) -> list[dict[str, Tensor]]:
    shapes = {"a": (4, 3), "b": (5,)}
    return [
        {n: torch.from_numpy(rng.normal(0, 2, shape).astype(np.float32)) for n, shape in shapes.items()}
        for _ in range(clients)
    ]


def distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    return math.sqrt(
        sum(float(np.square(np.asarray(a[n], np.float64) - np.asarray(b[n], np.float64)).sum()) for n in a)
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_one_client_moves_the_clipped_sum_by_at_most_the_clip_norm(scale: float) -> None:
    """Exactly, also where the weights are so large that rounding to float32 is coarser than the clip norm."""
    rng, limit = np.random.default_rng(0), 0.25
    received = {n: (v.numpy() * scale).astype(np.float32) for n, v in client_updates(rng, 1)[0].items()}
    sent = []
    for update in client_updates(rng, 6):
        state = {n: torch.from_numpy(received[n]) + update[n] for n in received}
        arrays, metrics = clipped(state, received, {CLIP: limit})
        assert metrics == {WITHIN: 0.0}
        assert distance(arrays, received) <= limit
        sent.append(arrays)
    total = {n: np.sum([np.asarray(s[n], np.float64) - received[n] for s in sent], axis=0) for n in received}
    removed = {n: total[n] - (np.asarray(sent[0][n], np.float64) - received[n]) for n in received}
    replaced = {n: removed[n] + np.asarray(sent[1][n], np.float64) - received[n] for n in received}
    assert distance(total, removed) <= limit * (1 + 1e-12)
    assert distance(total, replaced) <= 2 * limit * (1 + 1e-12)


def test_updates_within_the_norm_and_updates_of_nothing_are_sent_as_they_are() -> None:
    received = {"w": np.ones(3, np.float32)}
    for moved in (0.0, 0.1):
        arrays, metrics = clipped({"w": torch.ones(3) + moved}, received, {CLIP: 1.0})
        assert torch.equal(arrays["w"], torch.ones(3) + moved)
        assert metrics == {WITHIN: 1.0}
    assert clipped({"w": torch.zeros(3)}, received, {})[1] == {}


def test_poisson_sampling_draws_each_client_alone() -> None:
    sampler = Poisson(Poisson.Settings(probability=0.3), 0)
    cohorts = [sampler.sample(range(50), round, 50, KNOWN) for round in range(400)]
    assert cohorts[7] == sampler.sample(range(50), 7, 50, KNOWN)
    sizes = np.array([len(cohort) for cohort in cohorts])
    assert sizes.mean() == pytest.approx(15, abs=0.7)
    assert sizes.var() == pytest.approx(50 * 0.3 * 0.7, rel=0.25)
    assert len(set(sampler.sample(range(50), 1, 50, KNOWN)) & set(sampler.sample(range(50), 2, 50, KNOWN))) < 15


# whole runs


def test_no_noise_and_a_clip_norm_nobody_reaches_is_uniform_averaging(
    settings: Settings, samples: fedlab.Dataset
) -> None:
    config = settings(privacy=central(clip=UNREACHED, noise_multiplier=0.0))
    private = fedlab.run(config, method=Equal, data=samples)
    plain = fedlab.run(settings(), method=Equal, data=samples)
    assert digest(private) == digest(plain)
    assert [event["privacy"]["epsilon"] for event in private.history.rounds] == [None] * 3
    assert any("nothing is guaranteed" in text for text in private.history.warnings)
    assert "privacy" not in plain.history.rounds[0]


PRIVATE = {
    "privacy": central(adaptive={}, noise_multiplier=0.6),
    "federation__sampler": {"name": "poisson", "probability": 0.5},
    "federation__strategy": {"name": "fedavgm"},
    "federation__rounds": 4,
}


def test_private_runs_are_equal_on_every_engine_and_after_a_stop(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset
) -> None:
    inline = fedlab.run(settings(**PRIVATE), method=Equal, data=samples)
    other = fedlab.run(settings(**PRIVATE, engine__name="ray", engine__workers=2), method=Equal, data=samples)
    assert digest(inline) == digest(other)
    stopped = fedlab.run(settings(**PRIVATE), method=Equal, data=samples, until=2)
    resumed = fedlab.resume(stopped.path, method=Equal, data=samples)
    assert digest(inline) == digest(resumed)
    spent = [[event["privacy"] for event in run.history.rounds] for run in (inline, resumed)]
    assert spent[0] == spent[1]
    assert len({event["clip"] for event in spent[0]}) == 4
    epsilons = [event["epsilon"] for event in spent[0]]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == pytest.approx(epsilon(Sampling("poisson", 4, 2.0), 0.6, 4, 1e-5))
    assert spent[0][0] | {"epsilon": 0, "clip": 0} == {
        "epsilon": 0,
        "delta": 1e-5,
        "adjacency": "add-or-remove-one client",
        "sampling": "poisson, rate 0.5",
        "noise_multiplier": 0.6,
        "clip": 0,
    }
    assert "4,privacy,epsilon," in inline.folder.path.joinpath("metrics.csv").read_text(encoding="utf-8")


def test_a_round_without_clients_releases_noise_alone(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(
        privacy=central(), federation__sampler={"name": "poisson", "probability": 1e-9}, federation__rounds=2
    )
    run = fedlab.run(config, method=Equal, data=samples)
    assert [event["clients"] for event in run.history.rounds] == [[], []]
    unmoved = config.with_overrides({"privacy": None})
    assert digest(fedlab.run(unmoved, method=Equal, data=samples)) != digest(run)


# refusals


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"federation__strategy": {"name": "scaffold"}}, "federation.strategy.name"),
        ({"federation__availability": {"period": 10, "share": 0.5}}, "federation.availability"),
        ({"federation__dropout": 0.1}, "federation.dropout"),
        ({"federation__devices": {}, "federation__over_selection": 2.0}, "federation.over_selection"),
        ({"federation__devices": {}, "federation__deadline": 5.0}, "federation.deadline"),
        ({"exchange__compression": [{"name": "fp16"}]}, "exchange.compression"),
        ({"federation__strategy": {"name": "fednova"}}, "federation.strategy.name"),
        ({"federation__strategy": {"name": "feddyn"}}, "federation.strategy.name"),
        ({"federation__strategy": {"name": "flower.FedMedian"}}, "federation.strategy.name"),
        ({"federation__on_client_error": "skip"}, "federation.on_client_error"),
        ({"method": {"name": "fedlgd"}}, "method.name"),
        ({"privacy": {"name": "centrall"}}, "privacy.name"),
        ({"privacy": central(noise=1)}, "privacy.noise"),
        ({"privacy": central(delta=1)}, "privacy.delta"),
        ({"privacy": central(clip=0)}, "privacy.clip"),
    ],
)
def test_what_cannot_be_accounted_for_is_refused_with_its_key(
    changes: dict[str, Any], key: str, settings: Settings, samples: fedlab.Dataset
) -> None:
    config = settings(**{"privacy": central(), **changes})
    with pytest.raises(ConfigErrors) as refused:
        fedlab.run(config, data=samples)
    assert key in [error.key for error in refused.value.errors]


def test_payloads_outside_the_mechanism_run_only_when_they_are_accepted(
    settings: Settings, samples: fedlab.Dataset
) -> None:
    class Prepares(Talkative):
        contributes = Method.contributes

    with pytest.raises(ConfigErrors, match="statistics before round 1"):
        fedlab.run(settings(privacy=central()), method=Prepares, data=samples)
    with pytest.raises(ConfigErrors, match="contributes"):
        fedlab.run(settings(privacy=central(allow_unaccounted=True)), method=Talkative, data=samples)
    accepted = settings(privacy=central(allow_unaccounted=True), federation__rounds=1)
    run = fedlab.run(accepted, method=Prepares, data=samples)
    assert any("ε does not cover" in text for text in run.history.warnings)


def test_averaged_batch_statistics_are_refused(settings: Settings, samples: fedlab.Dataset) -> None:
    model = {"name": "convnet", "width": 4, "depth": 2, "norm": "batch"}
    with pytest.raises(ConfigError, match="running"):
        fedlab.run(settings(privacy=central(), model=model), method=Equal, data=samples)


def test_a_missing_accountant_names_the_command(
    settings: Settings, samples: fedlab.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "dp_accounting" else real(name, *rest)
    )
    with pytest.raises(ConfigErrors, match=r"pip install 'fedlab-sim\[dp\]'"):
        fedlab.run(settings(privacy=central()), data=samples)
