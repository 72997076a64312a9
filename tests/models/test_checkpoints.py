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


# other kinds of checkpoints

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24}


def randomized(model: Any) -> Any:
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model.eval()


def test_a_masked_autoencoder_gives_the_tokens_of_all_patches_in_the_images_order(tmp_path: Path) -> None:
    """transformers shuffles tokens even if it masks none; here nothing is masked or shuffled."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    sizes = {"decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(image_size=16, patch_size=4, layer_norm_eps=1e-6, mask_ratio=0.0, **SIZES, **sizes)
    whole = randomized(ViTMAEForPreTraining(config))
    whole.save_pretrained(tmp_path)
    network, images = vit(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    load_pretrained(network, str(tmp_path))
    with torch.no_grad():
        found = network(images)
        for seed in (0, 1):
            noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(seed))
            out = whole.vit(images, noise=noise)
            places = out.ids_restore[..., None].expand(-1, -1, 12)
            restored = torch.cat([out.last_hidden_state[:, :1], out.last_hidden_state[:, 1:].gather(1, places)], dim=1)
            torch.testing.assert_close(found, restored, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
def test_clips_image_encoder_needs_a_normalization_before_its_blocks(tmp_path: Path, whole: bool) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(image_size=16, patch_size=4, layer_norm_eps=1e-5, **SIZES)
    if whole:
        text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
        model = randomized(CLIPModel(CLIPConfig(text_config=text, vision_config=config.to_dict(), projection_dim=4)))
        tower = model.vision_model
    else:
        model = tower = randomized(CLIPVisionModel(config))
    model.save_pretrained(tmp_path)
    network, images = vit(pre_norm=True, activation="quick_gelu"), torch.randn(2, 3, 16, 16)
    load_pretrained(network, str(tmp_path))
    with torch.no_grad():
        before_last = network.hidden(images, [2])[0]
        found = tower(images)
        torch.testing.assert_close(before_last, found.last_hidden_state, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network(images)[:, 0], found.pooler_output, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=r"no place for 'pre_norm\.bias'"):
        load_pretrained(vit(), str(tmp_path))
    with pytest.raises(ConfigError, match="more than 1 layers"):
        load_pretrained(vit(depth=1, pre_norm=True), str(tmp_path))
