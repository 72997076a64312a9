from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.distill.heads import PatchDecoder, ProjectionHead, layers
from fedlab.distill.multiview import cross_view_loss
from fedlab.distill.prototypes import sharpened


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


def test_logits_are_the_gain_times_cosines_of_the_bottleneck_with_the_prototypes() -> None:
    head = ProjectionHead(6, (10, 10, 4), 7, gain=3.0)
    tokens = torch.randn(2, 5, 6)
    z, logits = head(tokens)
    assert (z.shape, logits.shape) == ((2, 5, 4), (2, 5, 7))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(2, 5))
    assert head.prototypes is not None
    cosines = F.cosine_similarity(head.mlp(tokens)[:, :, None], head.prototypes.weight, dim=-1)
    torch.testing.assert_close(logits, 3 * cosines)
    assert (ProjectionHead(6, (4,), 7)(100 * tokens).logits.abs() <= 1 + 1e-6).all()


def test_layers_of_the_heads_in_use() -> None:
    dino = ProjectionHead(6, (8, 8, 4), 5)
    assert kinds(dino.mlp) == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert [name for name, _ in dino.named_parameters()][-1] == "prototypes.weight"
    sit = ProjectionHead(6, (8, 8, 4), norm="batch", activation=("relu", "gelu"), last_norm=True, normalize=False)
    assert kinds(sit.mlp) == [
        "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d",
    ]  # fmt: skip
    last: Any = sit.mlp[-1]
    assert not last.affine
    predictor = ProjectionHead(4, (8, 4), norm="layer", activation="relu", normalize=False)
    assert kinds(predictor.mlp) == ["Linear", "LayerNorm", "ReLU", "Linear"]
    assert kinds(ProjectionHead(6, (4,), 5).mlp) == ["Linear"]
    assert predictor(torch.ones(3, 4)).logits.shape == (3, 0)


def test_the_paper_sized_patch_head_of_masked_contrast_has_known_parameters() -> None:
    """384 → 2048 → 2048 → 256 → 8192: 788,480 + 4,196,352 + 524,544 + 2,097,152."""
    with torch.device("meta"):
        head = ProjectionHead(384, (2048, 2048, 256), 8192)
    assert sum(p.numel() for p in head.parameters()) == 7_606_528


def test_batch_statistics_are_those_of_all_tokens_together_and_the_last_layer_has_no_scale() -> None:
    head = ProjectionHead(6, (8, 4), norm="batch", last_norm=True, normalize=False)
    z = head(torch.randn(40, 3, 6)).bottleneck
    torch.testing.assert_close(z.mean((0, 1)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 1), correction=0), torch.ones(4), atol=5e-2, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("given", "expected"), [({}, 0.02), ({"init_std": 0.08}, 0.08)])
def test_initial_weights(given: dict[str, float], expected: float) -> None:
    for made in (ProjectionHead(200, (200, 100), 50, **given).mlp, PatchDecoder(200, 4, 1, (200, 100), **given).mlp):
        for linear in (made[0], made[2]):
            assert float(linear.weight.std()) == pytest.approx(expected, rel=0.05)
            assert not linear.bias.any()


def test_frozen_prototypes_get_no_gradient_but_the_layers_do() -> None:
    head = ProjectionHead(6, (8, 4), 5)
    head(torch.randn(3, 6), frozen=True).logits.square().sum().backward()
    assert head.prototypes is not None
    assert head.prototypes.weight.grad is None
    assert all(p.grad is not None for p in head.mlp.parameters())


def test_distillation_reaches_the_prototypes_and_a_loss_of_the_bottleneck_does_not() -> None:
    head = ProjectionHead(6, (8, 4), 5)
    assert head.prototypes is not None
    z, _ = head(torch.randn(3, 6))
    z.square().sum().backward()
    assert head.prototypes.weight.grad is None
    targets = [sharpened(torch.randn(3, 5), torch.zeros(5), 0.04) for _ in range(2)]
    cross_view_loss(targets, [head(torch.randn(3, 6)).logits for _ in range(2)], 0.1).backward()
    assert head.prototypes.weight.grad is not None


@pytest.mark.parametrize(
    ("widths", "settings"),
    [((), {}), ((8, 4), {"activation": ("relu", "gelu")}), ((8, 4), {"prototypes": 3, "normalize": False})],
)
def test_heads_that_make_no_sense_are_refused(widths: tuple[int, ...], settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"activations|cosine"):
        ProjectionHead(6, widths, **settings)


def test_the_decoder_turns_each_token_into_its_patch() -> None:
    decoder = PatchDecoder(6, 4, 3)
    assert kinds(decoder.mlp) == ["Linear", "GELU"] * 3
    tokens = torch.randn(2, 6, 6)

    def image(changed: Tensor) -> Tensor:
        return decoder(changed, (2, 3))

    assert image(tokens).shape == (2, 3, 8, 12)
    other = tokens.clone()
    other[1, 4] += 1  # second row, second column
    differs = (image(tokens) != image(other)).any(1)
    assert not differs[0].any()
    assert differs[1].nonzero().unique(dim=0)[:, 0].unique().tolist() == [4, 5, 6, 7]
    assert differs[1].nonzero()[:, 1].unique().tolist() == [4, 5, 6, 7]


def test_the_decoder_of_small_images_has_known_parameters() -> None:
    """Three layers of 384 and 384 · 3 · 16² + 3."""
    with torch.device("meta"):
        decoder = PatchDecoder(384, 16, 3)
    assert sum(p.numel() for p in decoder.parameters()) == 3 * 147_840 + 294_915
    assert kinds(layers(4, (4, 2))) == ["Linear", "GELU", "Linear"]
