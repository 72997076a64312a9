"""A backbone that starts from a pre-trained ViT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fedlab.errors import ConfigError
from fedlab.methods.pat.networks import PartViT
from fedlab.models.vit import resized_positions


def load_pretrained(backbone: PartViT, source: str) -> None:
    """Start from a transformers ViT checkpoint, e.g. ``google/vit-base-patch16-224-in21k``.

    Args:
        backbone: changed in place.
        source: hub name or local folder.

    Raises:
        ConfigError: it is not there, is no ViT, or does not fit.
    """
    from transformers import ViTModel

    expected = "a ViT checkpoint of this width, depth and patch size"
    try:
        model, loaded = ViTModel.from_pretrained(source, add_pooling_layer=False, output_loading_info=True)
        if loaded["missing_keys"]:
            raise ValueError(f"the checkpoint has no {min(loaded['missing_keys'])!r}")
        load_vit(backbone, model.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError("method.pretrained", source, expected, str(error)) from error


@torch.no_grad()
def load_vit(backbone: PartViT, state: Mapping[str, Tensor]) -> None:
    """Take over the weights of a transformers ``ViTModel``.

    The part tokens and their positions start from the cls token's; the positions of the (square) grid are resized
    bilinearly.

    Args:
        backbone: changed in place.
        state: the ViTModel's state, of the same width, depth and patch size.

    Raises:
        ValueError: it does not fit; the message names the first tensor that does not.
    """
    cls, positions = _get(state, "embeddings.cls_token"), _get(state, "embeddings.position_embeddings")
    side = round((positions.shape[1] - 1) ** 0.5)
    if side * side != positions.shape[1] - 1:
        raise ValueError(f"{positions.shape[1] - 1} patch positions are no square grid")
    resized = resized_positions(positions[:, 1:], (side, side), backbone.grid)
    count = 1 + backbone.parts
    translated = {
        "tokens": cls.expand(-1, count, -1),
        "positions": torch.cat([positions[:, :1].expand(-1, count, -1), resized], dim=1),
    }
    for kind in ("weight", "bias"):
        translated[f"patch.{kind}"] = _get(state, f"embeddings.patch_embeddings.projection.{kind}")
        translated[f"norm.{kind}"] = _get(state, f"layernorm.{kind}")
        for layer in range(len(backbone.blocks)):
            old, new = f"layers.{layer}.", f"blocks.{layer}."
            qkv = [_get(state, f"{old}attention.{part}_proj.{kind}") for part in "qkv"]
            translated[f"{new}qkv.{kind}"] = torch.cat(qkv)
            for ours, theirs in _LAYER.items():
                translated[f"{new}{ours}.{kind}"] = _get(state, f"{old}{theirs}.{kind}")
    if f"layers.{len(backbone.blocks)}.layernorm_before.weight" in state:
        raise ValueError(f"the checkpoint has more than {len(backbone.blocks)} layers")
    for name, held in backbone.state_dict().items():
        if held.shape != translated[name].shape:
            raise ValueError(f"{name} would have shape {tuple(translated[name].shape)}, not {tuple(held.shape)}")
        held.copy_(translated[name])


_LAYER = {
    "norm1": "layernorm_before",
    "out": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def _get(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the checkpoint has no {name!r}")
    return state[name]
