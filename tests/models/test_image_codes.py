"""Images as codes and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedlab.errors import ConfigError, DataError
from fedlab.models.image_codes import ImageCodes, JanusCodes, PatchCodes

SHAPE = (3, 8, 16)


def images(n: int = 12) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def fitted(count: int = 6, seed: int = 0) -> PatchCodes:
    codes = PatchCodes(count, 4, SHAPE)
    codes.fit(images(), seed)
    return codes


def test_what_is_decoded_has_the_codes_it_was_decoded_from() -> None:
    codes = fitted()
    found = codes.encode(images())
    assert found.shape == (12, 8)
    assert codes.grid == (2, 4)
    decoded = codes.decode(found)
    assert decoded.shape == (12, *SHAPE)
    assert torch.equal(codes.encode(decoded), found)
    assert len(found.unique()) > 1


def test_codes_are_read_row_by_row_and_stand_for_the_nearest_patch() -> None:
    codes = PatchCodes(4, 4, (1, 8, 8))
    codes.codebook.copy_(torch.tensor([0.0, 0.2, 0.6, 1.0])[:, None].expand(-1, 16))
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, :4, 4:], image[0, 0, 4:, :4], image[0, 0, 4:, 4:] = 0.25, 0.55, 0.9
    assert codes.encode(image).tolist() == [[0, 1, 2, 3]]
    corners = codes.decode(torch.tensor([[0, 1, 2, 3]]))[0, 0, ::4, ::4]
    assert torch.allclose(corners, torch.tensor([[0.0, 0.2], [0.6, 1.0]]))


def test_the_codebook_is_that_of_k_means_and_depends_on_its_seed_alone() -> None:
    flat = torch.tensor([0.0, 0.5, 1.0]).repeat(4)[:, None, None, None].expand(12, 3, 8, 16)
    codes = PatchCodes(3, 4, SHAPE)
    codes.fit(flat, 0)
    assert sorted(codes.codebook.mean(1).tolist()) == pytest.approx([0.0, 0.5, 1.0], abs=1e-6)
    assert torch.equal(fitted().codebook, fitted().codebook)
    assert not torch.equal(fitted().codebook, fitted(seed=1).codebook)


def test_more_codes_than_patches_are_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)1 different patches.*at least 2"):
        PatchCodes(2, 4, SHAPE).fit(torch.zeros(3, *SHAPE), 0)


def test_a_checkpoint_of_janus_encodes_and_decodes(tmp_path: Path) -> None:
    from transformers import JanusVQVAE, JanusVQVAEConfig

    config = JanusVQVAEConfig(
        embed_dim=4, num_embeddings=16, latent_channels=8, num_patches=3, base_channels=32, num_res_blocks=1,
        channel_multiplier=[1, 1],
    )  # fmt: skip
    JanusVQVAE(config).save_pretrained(tmp_path)
    codes: ImageCodes = JanusCodes(str(tmp_path), (3, 16, 16), "method.tokenizer.pretrained")
    found = codes.encode(torch.rand(2, 3, 16, 16))
    assert (codes.count, codes.grid, found.shape) == (16, (8, 8), (2, 64))
    decoded = codes.decode(found)
    assert decoded.shape == (2, 3, 16, 16)
    assert 0 <= float(decoded.min()) <= float(decoded.max()) <= 1
    with pytest.raises(ConfigError, match=r"(?s)square images with 3 channels"):
        JanusCodes(str(tmp_path), (3, 16, 18), "method.tokenizer.pretrained")
    with pytest.raises(ConfigError, match=r"(?s)method\.tokenizer\.pretrained.*written by save_pretrained"):
        JanusCodes(str(tmp_path / "none"), (3, 16, 16), "method.tokenizer.pretrained")
