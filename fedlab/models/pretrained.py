"""Pre-trained vision transformers of the library transformers as they are, for their tokens."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError


class VisionTokens(nn.Module):
    """Maps images (n, C, H, W) to tokens (n, 1 + N, D), the class token first; register tokens are left out.

    Positions are interpolated for images of another size than that of the model's own training.

    Args:
        model: for example a ``ViTModel``, a ``Dinov2Model`` or a ``CLIPVisionModel``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        facts: Any = model.config
        self.width: int = getattr(facts, "hidden_size", 0)
        self.patch = int(getattr(facts, "patch_size", 0))
        self._registers = int(getattr(facts, "num_register_tokens", 0))
        # Dinov2 interpolates anyway, and has no such argument
        asked = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._further = {"interpolate_pos_encoding": True} if asked else {}

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.model(pixel_values=images, **self._further).last_hidden_state
        return torch.cat([tokens[:, :1], tokens[:, 1 + self._registers :]], dim=1)


def load_vision_tokens(source: str, key: str) -> VisionTokens:
    """A vision transformer as transformers saves it; of a model of images and texts, the part that sees images.

    Args:
        source: hub name or local folder.
        key: the setting that named it, for the message.

    Raises:
        ConfigError: it is not there, lacks weights, or is no vision transformer.
    """
    from transformers import AutoModel

    found: Any
    try:
        found, loaded = AutoModel.from_pretrained(source, output_loading_info=True)
        if lacking := [part for part in loaded["missing_keys"] if "pooler." not in part]:
            raise ValueError(f"it has nothing for {len(lacking)} tensors, such as {lacking[0]!r}")
        model: Any = getattr(found, "vision_model", found)
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # nothing uses it, and checkpoints without one would get random weights
        tokens = VisionTokens(model)
        if not (tokens.width and tokens.patch):
            raise ValueError(f"{type(model).__name__} states no width of tokens, or no size of patches")
    except (OSError, ValueError, RuntimeError) as error:
        expected = "the folder of a vision transformer as transformers saves it, or a name on its hub"
        raise ConfigError(key, source, expected, str(error).splitlines()[0]) from error
    return tokens
