"""Networks that see images: the encoder that is aligned to, the judge, and the reading of captions that trains them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import ConfigError
from fedlab.methods.arra.sequences import Layout
from fedlab.methods.arra.settings import EncoderSettings

_REDUCED = 4  # rows and columns of the feature map that the small encoder flattens


class ImageEncoder(nn.Module):
    """Base of the encoders.

    Args:
        num_features: D, length of a feature.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (n, C, H, W) in [0, 1] → (n, D)."""
        raise NotImplementedError  # no abstract method: `fedlab.method.network` takes concrete types only


class WordReader(ImageEncoder):
    """A small network that says which words the caption of an image contains; its last hidden layer is a feature.

    Args:
        channels: C.
        words: V.
        width: D, length of a feature.
    """

    def __init__(self, channels: int, words: int, width: int) -> None:
        super().__init__(width)
        sizes = (channels, 16, 32, 32)
        layers = [
            part
            for a, b in itertools.pairwise(sizes)
            for part in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.GELU())
        ]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_REDUCED), nn.Flatten())
        self.hidden = nn.Linear(sizes[-1] * _REDUCED**2, width)
        self.words = nn.Linear(width, words)

    def features(self, pixels: Tensor) -> Tensor:
        found: Tensor = F.gelu(self.hidden(self.body(2 * pixels - 1)))
        return found

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, V) of the presence of each word."""
        logits: Tensor = self.words(self.features(pixels))
        return logits


class Pretrained(ImageEncoder):
    """An image encoder of `transformers`, such as CLIP, DINOv2 or ViT.

    Args:
        source: hub name or folder.
        feature: ``global`` is the projected pooled vector of CLIP and the class token of others; ``average`` is the
            mean of the patches.
        key: the setting that named it, for error messages.

    Raises:
        ConfigError: there is no such checkpoint, or it is no encoder of images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, source: str, feature: str, key: str) -> None:
        from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection
        from transformers.image_utils import (
            IMAGENET_DEFAULT_MEAN,
            IMAGENET_DEFAULT_STD,
            OPENAI_CLIP_MEAN,
            OPENAI_CLIP_STD,
        )

        try:
            config: Any = AutoConfig.from_pretrained(source)
            clip = config.model_type in ("clip", "clip_vision_model")
            kind: Any = CLIPVisionModelWithProjection if clip else AutoModel
            model: Any = kind.from_pretrained(source, dtype=torch.float32).eval()
            size, patch = int(model.config.image_size), int(model.config.patch_size)
        except (OSError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(key, source, "an image encoder, such as CLIP, DINOv2 or ViT", reason) from error
        projected = clip and feature == "global"
        super().__init__(int(model.config.projection_dim if projected else model.config.hidden_size))
        self.model, self.size, self.patches, self.feature, self.clip = model, size, (size // patch) ** 2, feature, clip
        statistics = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD) if clip else (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        size = (self.size, self.size)
        resized = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        found = self.model(pixel_values=(resized - self.mean) / self.std)
        if self.feature == "average":
            average: Tensor = found.last_hidden_state[:, -self.patches :].mean(dim=1)
            return average
        chosen: Tensor = found.image_embeds if self.clip else found.last_hidden_state[:, 0]
        return chosen


def make_encoder(s: EncoderSettings, shape: tuple[int, ...], words: int, key: str) -> ImageEncoder:
    """A loaded encoder, or one that the server will train.

    Args:
        s: its settings.
        shape: (C, H, W) of an image.
        words: V.
        key: the section of its settings, for error messages.
    """
    if s.pretrained is not None:
        return Pretrained(s.pretrained, s.feature, f"{key}.pretrained")
    return WordReader(shape[0], words, s.width)


def word_targets(text: Tensor, layout: Layout, words: int) -> Tensor:
    """Which words captions contain, without their end and padding: text (n, L) → (n, V) bool."""
    inside = torch.arange(text.shape[1], device=text.device)[None] < layout.lengths(text)[:, None]
    inside &= ~torch.isin(text, torch.tensor(layout.ends, device=text.device))
    counts = torch.zeros(len(text), words, device=text.device)
    return counts.scatter_add(1, text, inside.float()) > 0
