"""DP-SGD apart from any run: clipped sums of gradients, sampling, calibration, and the account against published ε."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln, logsumexp
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import TrainingConfig
from fedlab.errors import ConfigError
from fedlab.privacy import DPSGD
from fedlab.privacy.accountant import GaussianStep, composed_epsilon, noise_multiplier_for
from fedlab.privacy.gradients import ClippedSum, Terms, clipped_sum
from fedlab.privacy.poisson import Calibration, local_steps, sampling_rate

pytest.importorskip("dp_accounting", reason="the extra fedlab-sim[dp] is not installed")
Tensors = dict[str, Tensor]
DELTA = 1e-5


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(3 * 16, 4),
        )  # fmt: skip


def batch(count: int, seed: int = 0, scale: float = 1.0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": scale * torch.randn(count, 1, 4, 4, generator=generator),
        "label": torch.randint(4, (count,), generator=generator),
    }


def summed(model: nn.Module, data: Tensors, clip: float, at_a_time: int = 4) -> ClippedSum:
    def loss(parameters: Terms, one: Terms) -> Terms:
        logits = torch.func.functional_call(model, dict(parameters), (one["image"],))
        return {"ce": F.cross_entropy(logits, one["label"]), "decay": 0.01 * logits.square().mean()}

    return clipped_sum(loss, dict(model.named_parameters()), data, clip, at_a_time)


def by_loop(model: nn.Module, data: Tensors, clip: float) -> tuple[Tensors, list[float]]:
    """One backward pass for every example."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    norms = []
    for i in range(len(data["label"])):
        model.zero_grad()
        logits = model(data["image"][i : i + 1])
        (F.cross_entropy(logits, data["label"][i : i + 1]) + 0.01 * logits.square().mean()).backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        norms.append(norm)
        for name, g in gradients.items():
            total[name] += g * min(1.0, clip / norm)
    return total, norms


def distance(a: ClippedSum, b: ClippedSum) -> float:
    return math.sqrt(
        sum(float((a.gradients[n].double() - b.gradients[n].double()).square().sum()) for n in a.gradients)
    )


# the sum of clipped gradients


@pytest.mark.parametrize("at_a_time", [1, 3, 7, 100])
@pytest.mark.parametrize("clip", [0.1, 1.5, 1e9])
def test_the_sum_is_that_of_a_loop_over_examples(clip: float, at_a_time: int) -> None:
    model, data = network(), batch(7)
    found = summed(model, data, clip, at_a_time)
    expected, norms = by_loop(model, data, clip)
    torch.testing.assert_close(found.norms, torch.tensor(norms, dtype=torch.float64), rtol=1e-5, atol=0)
    for name, value in expected.items():
        torch.testing.assert_close(found.gradients[name], value, rtol=1e-4, atol=1e-6)
    assert min(norms) > 0.1  # so that the smallest clip norm clips them all
    assert all(p.requires_grad and not found.gradients[n].requires_grad for n, p in model.named_parameters())


def test_the_sum_over_no_examples_is_zero() -> None:
    found = summed(network(), batch(0), 1.0)
    assert all(not value.any() for value in found.gradients.values())
    assert (len(found.norms), dict(found.terms)) == (0, {})


@given(
    count=st.integers(1, 6),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 1e3]),
    clip=st.sampled_from([1e-3, 0.3, 10.0]),
)
def test_no_example_moves_the_sum_by_more_than_the_clip_norm(count: int, seed: int, scale: float, clip: float) -> None:
    model, data = network(seed), batch(count, seed, scale)
    whole = summed(model, data, clip)
    for out in range(count):
        rest = {name: torch.cat([values[:out], values[out + 1 :]]) for name, values in data.items()}
        assert distance(whole, summed(model, rest, clip)) <= clip * (1 + 1e-5)


def test_dropout_differs_between_examples_and_repeats_with_the_seed() -> None:
    model = network(dropout=0.5).train()
    twin = {name: values.expand(8, *values.shape[1:]) for name, values in batch(1).items()}

    def drawn(seed: int) -> ClippedSum:
        torch.manual_seed(seed)
        return summed(model, twin, 1e9)

    with torch.random.fork_rng(devices=[]):
        first, again, other = drawn(0), drawn(0), drawn(1)
    assert len(set(first.norms.tolist())) == 8
    assert distance(first, again) == 0
    assert distance(first, other) > 0


# sampling and steps


@pytest.mark.parametrize(
    ("examples", "changes", "rate", "steps"),
    [
        (1000, {}, 0.05, 20),
        (1019, {"local_epochs": 3}, 50 / 1019, 60),
        (50, {}, 1.0, 1),
        (7, {"local_epochs": 2}, 1.0, 2),
        (1000, {"local_steps": 4, "local_epochs": 3}, 0.05, 4),
    ],
)
def test_an_epoch_uses_every_example_once_on_average(
    examples: int, changes: dict[str, int], rate: float, steps: int
) -> None:
    training = TrainingConfig(batch_size=50, **changes)
    assert sampling_rate(training, examples) == pytest.approx(rate)
    assert local_steps(training, examples) == steps
    assert local_steps(training, 0) == 0


# the account


def rdp(rate: float, noise: float, order: int) -> float:
    """Mironov, Talwar and Zhang 2019 (arXiv 1908.10530), section 3.3: the Rényi divergence of a whole order."""
    k = np.arange(order + 1)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    terms = choose + k * math.log(rate) + (order - k) * math.log1p(-rate) + k * (k - 1) / (2 * noise**2)
    return float(logsumexp(terms) / (order - 1))


def by_hand(rate: float, noise: float, steps: int, *, classical: bool) -> float:
    """Least ε over whole orders, converted as in Mironov 2017 or as Canonne, Kamath and Steinke 2020 do better."""

    def at(order: int) -> float:
        gain = 0.0 if classical else math.log1p(-1 / order) - math.log(order) / (order - 1)
        return steps * rdp(rate, noise, order) - math.log(DELTA) / (order - 1) + gain

    return min(at(order) for order in range(2, 256))


@pytest.mark.parametrize(
    ("noise", "epochs", "published"), [(1.12, 60, 2.92), (0.6, 30, 9.74), (1.2, 10, 1.20)], ids=["2.92", "9.74", "1.20"]
)
def test_the_mnist_examples_of_tensorflow_privacy(noise: float, epochs: int, published: float) -> None:
    """Its tutorial's table (n = 60000, batches of 256) uses the classical conversion; today's is tighter."""
    rate, steps = 256 / 60000, round(epochs * 60000 / 256)
    assert by_hand(rate, noise, steps, classical=True) == pytest.approx(published, rel=0.01)
    counted = composed_epsilon({GaussianStep(rate, noise): steps}, DELTA)
    assert counted == pytest.approx(by_hand(rate, noise, steps, classical=False), rel=0.01)
    assert 0.75 * published < counted < published


def test_steps_of_several_kinds_add_up_in_any_order() -> None:
    a, b = GaussianStep(0.1, 1.5), GaussianStep(0.02, 1.0)
    together = composed_epsilon({a: 10, b: 50}, DELTA)
    assert together == composed_epsilon({b: 50, a: 10}, DELTA)
    single = [composed_epsilon(steps, DELTA) for steps in ({a: 10}, {b: 50})]
    assert max(single) < together < sum(single)
    assert composed_epsilon({a: 0}, DELTA) == composed_epsilon({}, DELTA) == 0
    assert composed_epsilon({GaussianStep(0.1, 0.0): 1}, DELTA) == math.inf


def test_the_account_says_nothing_of_orders_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        composed_epsilon({GaussianStep(0.1, 1.1): 17}, DELTA)
    assert not caplog.records


@pytest.mark.parametrize(("target", "slack"), [(0.5, 0.002), (3.0, 0.01), (20.0, 0.04)])
def test_the_calibrated_noise_is_just_what_keeps_within_the_target(target: float, slack: float) -> None:
    steps = {0.1: 30, 1.0: 2}

    def cost(noise: float) -> float:
        return composed_epsilon({GaussianStep(rate, noise): count for rate, count in steps.items()}, DELTA)

    noise = noise_multiplier_for(target, DELTA, steps)
    assert cost(noise) <= target < cost(noise * (1 - slack))


def test_a_target_no_noise_reaches_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise multiplier below"):
        noise_multiplier_for(1e-3, DELTA, {0.1: 100})


def test_each_client_has_the_noise_of_its_own_size_and_of_all_stages() -> None:
    short, long = TrainingConfig(batch_size=10), TrainingConfig(batch_size=20, local_epochs=2)
    found = Calibration(DPSGD.Settings(target_epsilon=2.0), {short: 3, long: 1})
    assert found.noise_multiplier(100) == noise_multiplier_for(2.0, DELTA, {0.1: 30, 0.2: 10})
    assert found.noise_multiplier(400) < found.noise_multiplier(100)
    assert Calibration(DPSGD.Settings(noise_multiplier=0.7), {short: 3}).noise_multiplier(100) == 0.7


@pytest.mark.parametrize("settings", [{}, {"noise_multiplier": 1.0, "target_epsilon": 1.0}])
def test_the_noise_is_stated_in_one_way(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="either noise_multiplier or target_epsilon"):
        DPSGD.Settings(**settings)
