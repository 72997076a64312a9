from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedlab.models.mask2former import STRIDES, MaskDecoder

SIZES = {"width": 32, "heads": 2, "layers": 3, "pixel_layers": 1, "feedforward": 16, "pixel_feedforward": 16}


def decoder(seed: int = 0) -> MaskDecoder:
    torch.manual_seed(seed)
    return MaskDecoder(6, **SIZES).eval()


def pyramid(count: int = 2, height: int = 64, width: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 6, height // s, width // s, generator=generator) for s in STRIDES]


def queries(count: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_every_layer_gives_a_mask_and_a_normalized_state_of_every_query() -> None:
    made = decoder()(pyramid(), queries(), queries())
    assert made.queries.shape == (4, 2, 5, 32)
    assert made.masks.shape == (4, 2, 5, 16, 8)
    torch.testing.assert_close(made.queries.mean(-1), torch.zeros(4, 2, 5), atol=1e-5, rtol=0)


@torch.no_grad()
def test_images_and_the_order_of_queries_do_not_matter_to_each_other() -> None:
    network, maps = decoder(), pyramid()
    made = network(maps, queries(), queries(seed=2))
    order = torch.tensor([3, 1, 4, 0, 2])
    turned = network([m[1:] for m in maps], queries()[order], queries(seed=2)[order])
    torch.testing.assert_close(turned.masks[:, 0], made.masks[:, 1][:, order], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("stride", range(len(STRIDES)))
def test_masks_depend_on_every_map_and_on_positions(stride: int) -> None:
    network, maps = decoder(), pyramid()
    made = network(maps, queries(), queries())
    maps[stride] = maps[stride] + torch.randn(maps[stride].shape, generator=torch.Generator().manual_seed(5))
    assert not torch.allclose(network(maps, queries(), queries()).masks, made.masks, atol=1e-4)
    moved = network(pyramid(), queries(), queries(seed=3))
    assert torch.equal(moved.masks[0], made.masks[0])
    assert not torch.allclose(moved.masks[-1], made.masks[-1], atol=1e-4)


def test_weights_are_drawn_from_the_seed_and_all_are_finite_and_trained() -> None:
    first, again = decoder(), decoder()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(decoder(1).levels.weight, first.levels.weight)
    first.train()(pyramid(), queries(), queries()).masks.square().mean().backward()
    for name, parameter in first.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None, name


def test_deformable_attention_starts_as_in_mask2former() -> None:
    """Offsets do not depend on the query at first, and point in as many directions as there are heads."""
    offsets = decoder().pixels.encoder.layers[0].self_attn.sampling_offsets
    assert float(offsets.weight.detach().abs().max()) == 0
    assert float(offsets.bias.detach().abs().max()) >= 1
