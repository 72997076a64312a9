"""The token learner and the encoders of queries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedlab.errors import ConfigError
from fedlab.methods.isa.networks import PooledMapper, TokenLearner, make_encoder, make_learner
from fedlab.methods.isa.settings import EncoderSettings, LearnerSettings

D, WIDTH = 8, 6


def learner(tokens: int = 3, norm: str = "batch") -> TokenLearner:
    torch.manual_seed(0)
    made = make_learner(LearnerSettings(tokens=tokens, heads=2, dropout=0.0), D, WIDTH, norm)
    assert isinstance(made, TokenLearner)
    return made.eval()


# 4


@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_attention_is_a_distribution_over_places(tokens: int) -> None:
    found = learner(tokens)(torch.randn(2, D, 4, 5))
    assert found.sentence.shape == (2, tokens, WIDTH)
    assert found.attention.shape == (2, tokens, 20)
    assert torch.allclose(found.attention.sum(dim=2), torch.ones(2, tokens))


@pytest.mark.parametrize("tokens", [1, 4])
def test_tokens_of_a_constant_map_are_that_constant(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """T0, which is what the first self-attention receives."""
    made, constant = learner(tokens), torch.randn(1, D, 1, 1)
    seen: list[torch.Tensor] = []
    attend = made.itself.forward

    def watched(query: torch.Tensor, *args: object, **kwargs: object) -> object:
        seen.append(query)
        return attend(query, *args, **kwargs)  # type: ignore[arg-type]  # handed on as they came

    monkeypatch.setattr(made.itself, "forward", watched)
    made(constant.expand(1, D, 3, 3))
    assert torch.allclose(seen[0], constant.flatten()[None, None].expand(1, tokens, D), atol=1e-6)


# 5


def test_the_order_of_places_does_not_matter() -> None:
    made, features = learner(), torch.randn(2, D, 4, 4)
    order = torch.randperm(16)
    mixed = features.flatten(2)[:, :, order].unflatten(2, (4, 4))
    plain, permuted = made(features), made(mixed)
    assert torch.allclose(plain.sentence, permuted.sentence, atol=1e-6)
    assert torch.allclose(plain.attention[:, :, order], permuted.attention, atol=1e-6)


def test_tokens_of_a_sentence_differ() -> None:
    sentence = learner()(torch.randn(2, D, 4, 4)).sentence
    assert not torch.allclose(sentence[:, 0], sentence[:, 1], atol=1e-3)


def test_the_compared_mapper_sees_nothing_but_the_mean() -> None:
    made, features = PooledMapper(D, WIDTH).eval(), torch.randn(2, D, 4, 4)
    found = made(features)
    assert found.sentence.shape == (2, 1, WIDTH)
    flat = features.mean(dim=(2, 3), keepdim=True).expand(2, D, 4, 4)
    assert torch.allclose(made(flat).sentence, found.sentence, atol=1e-5)
    assert torch.allclose(found.attention, torch.full((2, 1, 16), 1 / 16))


def test_heads_have_to_divide_the_channels() -> None:
    with pytest.raises(ConfigError, match=r"(?s)method\.learner\.heads.*8 channels"):
        make_learner(LearnerSettings(heads=3), D, WIDTH, "batch")


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_small_encoder_halves_images_with_every_layer(norm: str) -> None:
    settings = EncoderSettings.model_validate({"widths": [4, 8, 16], "norm": norm, "size": 24})
    made = make_encoder(settings)
    found = made.eval()(torch.rand(2, 3, 32, 32))
    assert found.shape == (2, 16, 3, 3)
    kinds = {type(part).__name__ for part in made.modules()}
    assert ("BatchNorm2d" in kinds) == (norm == "batch")


def test_light_networks_of_transformers_are_loaded(tmp_path: Path) -> None:
    from transformers import MobileNetV2Config, MobileNetV2Model, ViTConfig, ViTModel

    small = MobileNetV2Config(depth_multiplier=0.25, image_size=64)
    MobileNetV2Model(small).save_pretrained(tmp_path / "light")
    made = make_encoder(EncoderSettings(pretrained=str(tmp_path / "light"), size=64))
    found = made.eval()(torch.rand(2, 3, 32, 32))
    assert found.shape == (2, made.num_features, 2, 2)
    assert all(p.requires_grad for p in made.parameters())
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=16)
    ViTModel(vit).save_pretrained(tmp_path / "vit")
    for place, told in (("vit", "this one is of vit"), ("none", "a checkpoint of one of")):
        with pytest.raises(ConfigError, match=rf"(?s)method\.encoder\.pretrained.*{told}"):
            make_encoder(EncoderSettings(pretrained=str(tmp_path / place)))
