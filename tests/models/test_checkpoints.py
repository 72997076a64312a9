from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedlab.errors import ConfigError
from fedlab.models.checkpoints import load_pretrained, vit_state
from fedlab.models.vit import ViT


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


def vit(size: int = 16, **changes: Any) -> ViT:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"patch": 4, "channels": 3, "width": 12, "depth": 2, "heads": 3, "mlp_ratio": 2}
    return ViT((size, size), **{**settings, **changes}).eval()


def test_all_tokens_are_those_of_transformers(checkpoint: tuple[Path, Any]) -> None:
    folder, model = checkpoint
    network = vit()
    load_pretrained(network, str(folder))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(network(images), model(images).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_positions_are_resized_to_the_networks_grid(checkpoint: tuple[Path, Any]) -> None:
    folder, _ = checkpoint
    network, same = vit(24), vit()
    load_pretrained(network, str(folder))
    load_pretrained(same, str(folder))
    assert torch.equal(network.positions, same.positions_for((6, 6)))


def test_a_mask_token_may_be_missing_and_other_things_may_not(checkpoint: tuple[Path, Any]) -> None:
    folder, _ = checkpoint
    network = vit(mask_token=True)
    assert network.mask_token is not None
    before = network.mask_token.detach().clone()
    load_pretrained(network, str(folder))
    assert torch.equal(network.mask_token, before)
    with pytest.raises(ConfigError, match=r"nothing for 'blocks\.0\.scale1'"):
        load_pretrained(vit(layer_scale=0.1), str(folder))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"depth": 3}, "no 'layers.2"),
        ({"depth": 1}, "more than 1 layers"),
        ({"width": 24}, "class_token would have shape"),
        ({"patch": 8}, "patches.weight would have shape"),
    ],
)
def test_checkpoints_of_another_size_are_refused(
    checkpoint: tuple[Path, Any], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason) as refused:
        load_pretrained(vit(**changes), str(checkpoint[0]), "method.backbone")
    assert "method.backbone" in str(refused.value)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method\.pretrained"):
        load_pretrained(vit(), str(tmp_path / "nothing"))


def test_grids_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match="no square grid"):
        vit_state({"embeddings.position_embeddings": torch.zeros(1, 13, 8)}, 1, (3, 4))
