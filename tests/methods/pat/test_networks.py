"""PAT's mask, ViT, pre-trained weights and size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.config import load_config
from fedlab.errors import ConfigError
from fedlab.experiment.start import method_folder
from fedlab.methods.pat.masks import attention_mask, draw_rectangles, full_bands
from fedlab.methods.pat.networks import PartViT, classifier, neck, start_from

PAPER_GRID = (16, 8)


def vit(depth: int = 2, parts: int = 3, drop_path: float = 0.0, image: tuple[int, int, int] = (3, 32, 16)) -> PartViT:
    torch.manual_seed(0)
    return PartViT(image, patch=4, dim=12, depth=depth, heads=3, mlp_ratio=2, parts=parts, drop_path=drop_path).eval()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# the mask (check 1)


def test_the_mask_of_full_bands_has_17034_true_entries() -> None:
    mask = attention_mask(full_bands(PAPER_GRID), PAPER_GRID)
    assert mask.shape == (132, 132)
    assert mask[0].all()
    assert mask[1:4].sum(1).tolist() == [66, 66, 66]
    assert torch.equal(mask[1:4, 1:4], torch.eye(3, dtype=torch.bool))
    assert torch.equal(mask, mask.T)
    assert int(mask.sum()) == 17_034
    assert mask[4:, 4:].all()


def test_full_bands_are_halves_of_the_grid() -> None:
    mask = attention_mask(full_bands(PAPER_GRID), PAPER_GRID)
    for part, top in enumerate((0, 4, 8), start=1):
        seen = mask[part, 4:].reshape(PAPER_GRID)
        assert seen[top : top + 8].all()
        assert int(seen.sum()) == 64


def test_drawn_rectangles_stay_within_their_bounds() -> None:
    source = generator()
    counts: list[int] = []
    for _ in range(400):
        drawn = draw_rectangles(PAPER_GRID, source)
        mask = attention_mask(drawn, PAPER_GRID)
        counts += mask[1:4].sum(1).tolist()
        assert torch.equal(mask, mask.T)
        for band, (top, bottom, left, right) in zip((0, 4, 8), drawn, strict=True):
            assert band <= top <= bottom <= min(band + 8, 15)
            assert 0 <= left <= right <= 7
    assert min(counts) >= 3
    assert max(counts) <= 74
    assert max(counts) > 66  # one row past the band does happen


def test_draws_depend_on_the_generator_alone() -> None:
    first = draw_rectangles(PAPER_GRID, generator(3))
    torch.manual_seed(99)
    assert draw_rectangles(PAPER_GRID, generator(3)) == first
    assert draw_rectangles(PAPER_GRID, generator(4)) != first


def test_every_pair_of_columns_is_drawn_alike() -> None:
    source = generator()
    pairs = [draw_rectangles((8, 4), source)[0][2:] for _ in range(3000)]
    counts = {pair: pairs.count(pair) for pair in set(pairs)}
    # {0…4} has ten pairs; (3, 4) is clipped to (3, 3), the others with 4 fall together with those with 3
    assert counts[0, 3] == pytest.approx(600, abs=90)
    assert counts[0, 1] == pytest.approx(300, abs=65)
    assert counts[3, 3] == pytest.approx(300, abs=65)


# the network (checks 2 and 9)


def moved_outside(images: Tensor, rows: slice) -> Tensor:
    changed = images.clone()
    changed[:, :, rows] += 1.0
    return changed


def test_a_part_of_one_layer_sees_its_band_only() -> None:
    network, images = vit(depth=1), torch.randn(2, 3, 32, 16, generator=generator())
    g, parts = network(images)
    # rows 4–7 of 8 belong to bands 2 and 3, not to band 1
    other_g, other_parts = network(moved_outside(images, slice(16, 32)))
    assert torch.equal(parts[:, 0], other_parts[:, 0])
    assert not torch.equal(parts[:, 1], other_parts[:, 1])
    assert not torch.equal(parts[:, 2], other_parts[:, 2])
    assert not torch.equal(g, other_g)


def test_what_patches_receive_from_a_part_is_limited_too() -> None:
    """The mask holds in both directions: a part token moves the patches of its rectangle and no others."""
    network = vit(depth=1)
    rectangles = ((0, 1, 0, 1), (3, 4, 0, 3), (6, 7, 2, 3))
    images = torch.randn(1, 3, 32, 16, generator=generator())
    x, mask = network._start(images, rectangles)
    block = network.blocks[0]
    changed = x.clone()
    changed[:, 1] += torch.randn(12, generator=generator())
    difference = (block(x, mask) - block(changed, mask)).abs().sum(2)[0]
    moved = difference[4:].reshape(network.grid) > 0
    assert moved[:2, :2].all()
    assert int(moved.sum()) == 4
    assert difference[0] > 0
    assert difference[2:4].tolist() == [0.0, 0.0]


def test_evaluation_is_the_same_every_time_and_uses_the_full_bands() -> None:
    network, images = vit(drop_path=0.5), torch.randn(2, 3, 32, 16, generator=generator())
    first, second = network(images), network(images)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    explicit = network(images, full_bands(network.grid))
    assert torch.equal(first[1], explicit[1])
    small = network(images, ((0, 0, 0, 0), (3, 3, 1, 1), (7, 7, 3, 3)))
    assert not torch.equal(first[1], small[1])


def test_masked_attention_is_an_ordinary_masked_softmax() -> None:
    block: Any = vit().blocks[0]
    x, mask = torch.randn(2, 36, 12, generator=generator()), attention_mask(full_bands((8, 4)), (8, 4))[:36, :36]
    mask = mask[: x.shape[1], : x.shape[1]]
    mask[2, :] = True
    with torch.no_grad():
        q, k, v = block.queries_keys_values(x)
        logits = q @ k.transpose(2, 3) / 2.0  # heads of width 4
        weights = torch.where(mask, logits, -1e3).softmax(-1) * mask
        attended = (weights @ v).transpose(1, 2).flatten(2)
        halfway = x + block.out(attended)
        expected = halfway + block.mlp[2](nn.functional.gelu(block.mlp[0](block.norm2(halfway))))
        assert torch.allclose(block(x, mask), expected, atol=1e-5)
        assert torch.allclose(block.attention_weights(x, mask), weights.mean(1), atol=1e-6)


def test_attention_maps_show_what_parts_see() -> None:
    maps = vit().attention_maps(torch.randn(2, 3, 32, 16, generator=generator())).detach()
    assert maps.shape == (2, 4, 8, 4)
    assert float(maps[:, 1, 4:].abs().max()) == 0
    assert float(maps[:, 1, :4].min()) > 0
    assert float(maps[:, 0].min()) > 0


def test_without_parts_it_is_a_plain_vit() -> None:
    network = vit(parts=0)
    g, parts = network(torch.randn(2, 3, 32, 16))
    assert g.shape == (2, 12)
    assert parts.shape == (2, 0, 12)
    assert network.positions.shape == (1, 33, 12)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    block: Any = vit(drop_path=0.5).blocks[1].train()
    torch.manual_seed(0)
    kept = block._kept(torch.ones(4000, 2, 3))
    assert sorted(set(kept[:, 0, 0].tolist())) == [0.0, 2.0]
    assert torch.equal(kept[:, :1, :1].expand_as(kept), kept)
    assert float(kept.mean()) == pytest.approx(1.0, abs=0.06)
    assert [layer.drop_path for layer in vit(depth=3, drop_path=0.1).blocks] == pytest.approx([0.0, 0.05, 0.1])


def test_the_neck_has_a_frozen_bias_and_the_classifier_none() -> None:
    layer = neck(6)
    assert not layer.bias.requires_grad
    assert float(layer.bias.abs().sum()) == 0
    head = classifier(64, 400)
    assert head.bias is None
    assert float(head.weight.detach().std()) == pytest.approx(0.001, rel=0.05)


# pre-trained weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny saved ViTModel with a square grid of 4 × 4."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(5)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24}
    model = ViTModel(ViTConfig(image_size=16, patch_size=4, layer_norm_eps=1e-6, **sizes), add_pooling_layer=False)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("vit")
    model.save_pretrained(folder)
    return folder, model.eval()


def test_a_plain_vit_from_a_checkpoint_computes_what_transformers_does(checkpoint: tuple[Path, Any]) -> None:
    folder, model = checkpoint
    network = vit(parts=0, image=(3, 16, 16))
    start_from(network, str(folder))
    images = torch.randn(2, 3, 16, 16, generator=generator())
    with torch.no_grad():
        assert torch.allclose(network(images)[0], model(images).last_hidden_state[:, 0], atol=1e-5)


def test_parts_start_from_the_cls_token_and_the_grid_is_resized(checkpoint: tuple[Path, Any]) -> None:
    folder, model = checkpoint
    network, held = vit(), model.state_dict()
    start_from(network, str(folder))
    cls, positions = held["embeddings.cls_token"][0, 0], held["embeddings.position_embeddings"]
    assert torch.equal(network.tokens[0], cls.expand(4, -1))
    assert torch.equal(network.positions[0, :4], positions[0, :1].expand(4, -1))
    grid = positions[:, 1:].reshape(1, 4, 4, 12).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(grid, size=(8, 4), mode="bilinear")
    assert torch.allclose(network.positions[0, 4:], resized.flatten(2)[0].T)


@pytest.mark.parametrize("change", [{"depth": 1}, {"depth": 3}, {"image": (1, 32, 16)}])
def test_a_checkpoint_of_another_shape_is_refused(checkpoint: tuple[Path, Any], change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="width, depth and patch size"):
        start_from(vit(**change), str(checkpoint[0]))


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.pretrained"):
        start_from(vit(), str(tmp_path / "nowhere"))


def test_the_papers_network_has_86_million_parameters(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    columns = {"image": ("float32", (3, 256, 128)), "label": ("int64", ())}
    networks = paper_networks("pat", columns, [str(i) for i in range(751)], pretrained=None)
    counts = {role: sum(p.numel() for p in network.parameters()) for role, network in networks.items()}
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    backbone = (3 * 256 * 768 + 768) + 4 * 768 + 132 * 768 + 12 * layer + 2 * 768
    assert counts == {"backbone": backbone, "neck": 2 * 768, "classifier": 751 * 768}
    assert backbone == 85_751_040


def test_the_plain_vit_it_is_compared_with_has_no_part_tokens_and_its_own_rate(
    paper_networks: Callable[..., nn.ModuleDict],
) -> None:
    columns = {"image": ("float32", (3, 256, 128)), "label": ("int64", ())}
    networks = paper_networks("pat", columns, [str(i) for i in range(751)], file="paper_vit.yaml", pretrained=None)
    three = 3 * 768 + 3 * 768  # tokens and their positions
    assert sum(p.numel() for p in networks["backbone"].parameters()) == 85_751_040 - three
    ours, plain = (load_config(method_folder("pat", "method") / f"paper{kind}.yaml") for kind in ("", "_vit"))
    changed = {"lr": 0.008}
    assert plain.training.model_dump() == {**ours.training.model_dump(), **changed}
    assert plain.data == ours.data
