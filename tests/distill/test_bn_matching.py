from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedlab.distill.bn_matching import (
    BatchNormMatching,
    batch_norms,
    from_second_moments,
    recalibrate,
    statistics_distance,
    to_second_moments,
)
from fedlab.storage.hashing import state_hash


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    )


def fit_exactly(layer: Any, x: torch.Tensor) -> None:
    """Running statistics of this very batch, with the biased variance."""
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    layer.running_mean.copy_(mean)
    layer.running_var.copy_(variance)


def test_the_term_is_zero_where_batch_and_running_statistics_agree() -> None:
    model, x = network(), torch.randn(6, 2, 9, 9)
    fit_exactly(model[1], model[0](x).detach())
    model.eval()
    fit_exactly(model[4], model[:4](x).detach())
    with BatchNormMatching(model) as matching:
        model(x)
        assert matching.loss().item() == pytest.approx(0, abs=1e-5)
        model(x + 1)
        assert matching.loss().item() > 1


@pytest.mark.parametrize(("first", "expected"), [(True, 50.0), (False, 5.0)])
def test_a_mean_off_by_3_and_4_costs_5_and_the_first_layer_counts_ten_times(first: bool, expected: float) -> None:
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64).float()
    off, exact = nn.BatchNorm2d(2, affine=False), nn.BatchNorm2d(2, affine=False)
    for layer in (off, exact):
        fit_exactly(layer, x)
    off.running_mean.add_(torch.tensor([3.0, 4.0]))  # type: ignore[union-attr]  # torch types it as optional

    class Both(nn.Module):
        """Two layers that see the same input, in either order."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([off, exact] if first else [exact, off])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([layer(x) for layer in self.layers])

    model = Both().eval()
    with BatchNormMatching(model) as matching:
        model(x)
        assert matching.loss().item() == pytest.approx(expected, rel=1e-5)


def test_it_is_inputs_that_are_compared_with_biased_variance_and_plain_norms() -> None:
    layer = nn.BatchNorm2d(1)
    x = torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1)  # mean 1, biased variance 1, unbiased 2
    layer.running_mean.fill_(1.0)  # type: ignore[union-attr]  # torch types it as optional
    layer.running_var.fill_(4.0)  # type: ignore[union-attr]  # torch types it as optional
    assert statistics_distance(x, layer).item() == pytest.approx(3.0)
    with BatchNormMatching(layer.eval(), first_weight=1.0) as matching:
        layer(x)
        assert matching.loss().item() == pytest.approx(3.0)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 4, 2), (6, 3, 4, 2, 2)])
def test_every_kind_of_batch_norm_is_matched_per_channel(shape: tuple[int, ...]) -> None:
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    layer, x = kinds[len(shape)](3), torch.randn(*shape)
    flat = x.movedim(1, 0).flatten(1)
    layer.running_mean.copy_(flat.mean(1) + torch.tensor([2.0, 0.0, 0.0]))
    layer.running_var.copy_(flat.var(1, correction=0) + torch.tensor([0.0, 0.0, 1.0]))
    assert batch_norms(layer) == [layer]
    assert statistics_distance(x, layer).item() == pytest.approx(3.0, rel=1e-5)


def test_matching_leaves_the_model_as_it_was_and_reaches_the_images() -> None:
    model = network().eval()
    before = state_hash(model)
    x = torch.randn(3, 2, 9, 9, requires_grad=True)
    with BatchNormMatching(model) as matching:
        model(x)
        (gradient,) = torch.autograd.grad(matching.loss(), x)
    assert gradient.abs().sum() > 0
    assert state_hash(model) == before
    assert not any(layer._forward_pre_hooks for layer in batch_norms(model))


def test_layers_without_statistics_are_none() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2))
    assert batch_norms(model) == []


def test_the_mixtures_variance_comes_out_of_averaged_second_moments() -> None:
    parts = [torch.randn(50, 2, 3, 3, dtype=torch.float64) * s + m for s, m in ((1.0, 0.0), (2.0, 5.0), (0.5, -3.0))]
    clients = []
    for part in parts:
        layer = nn.BatchNorm2d(2).double()
        fit_exactly(layer, part)
        to_second_moments(layer)
        clients.append(layer.state_dict())
    server = nn.BatchNorm2d(2).double()
    for name in ("running_mean", "running_var"):
        getattr(server, name).copy_(torch.stack([c[name] for c in clients]).mean(0))
    from_second_moments(server)
    variance, mean = torch.var_mean(torch.cat(parts), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(server.running_mean, mean)
    torch.testing.assert_close(server.running_var, variance)
    assert (server.running_var > 4).all()  # type: ignore[operator]  # torch types it as optional


def test_second_moments_and_back_is_nothing() -> None:
    model = network()
    model(torch.randn(8, 2, 9, 9))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    to_second_moments(model)
    assert not torch.equal(model.state_dict()["1.running_var"], before["1.running_var"])
    from_second_moments(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_recalibration_makes_the_statistics_those_of_the_samples() -> None:
    model = network().eval()
    x = torch.randn(64, 2, 9, 9) * 3 + 1
    weights = {name: p.clone() for name, p in model.named_parameters()}
    model[3].train()
    recalibrate(model, [x])
    assert [module.training for module in model] == [False, False, False, True, False, False]
    model[3].eval()
    variance, mean = torch.var_mean(model[0](x), dim=(0, 2, 3))
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    assert not any(layer.training or layer.momentum != 0.1 for layer in batch_norms(model))
    assert not model.training
