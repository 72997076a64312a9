"""Pre-trained vision transformers: weights of transformers' ``ViTModel`` by the names that `ViT` has for them.

``DeiTModel`` has the same names and a distillation token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError
from fedlab.models.vit import resized_positions

State = dict[str, Tensor]
_LAYER = {
    "norm1": "layernorm_before",
    "out": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_OPTIONAL = "mask_token"  # may be missing in a checkpoint: it then starts as it was made


def load_pretrained(
    network: nn.Module, source: str, key: str = "method.pretrained", convert: Callable[[State], State] | None = None
) -> None:
    """Start from a transformers ViT checkpoint, e.g. ``google/vit-base-patch16-224-in21k``.

    The positions of the (square) grid are resized bilinearly. A network with parameters ``distillation_token`` and
    ``distillation_position`` starts from a DeiT checkpoint, e.g. ``facebook/deit-base-distilled-patch16-224``.

    Args:
        network: a `ViT`, or another network with its ``blocks`` and ``grid``; changed in place.
        source: hub name or local folder.
        key: the setting that named it, for the message.
        convert: turns a state with the names of `ViT` into that of the network, if it has others.

    Raises:
        ConfigError: it is not there, is no ViT, or does not fit.
    """
    from transformers import DeiTModel, ViTModel

    shaped: Any = network
    distilled = hasattr(network, "distillation_token")
    kind: Any = DeiTModel if distilled else ViTModel
    expected = f"a {'DeiT' if distilled else 'ViT'} checkpoint of this width, depth and patch size"
    try:
        model, loaded = kind.from_pretrained(source, add_pooling_layer=False, output_loading_info=True)
        if loaded["missing_keys"]:
            raise ValueError(f"the checkpoint has no {min(loaded['missing_keys'])!r}")
        state = vit_state(model.state_dict(), len(shaped.blocks), shaped.grid)
        _fill(network, convert(state) if convert else state)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(key, source, expected, str(error)) from error


def vit_state(state: Mapping[str, Tensor], depth: int, grid: tuple[int, int]) -> State:
    """The state of a transformers ``ViTModel`` or ``DeiTModel`` by the names of `ViT`.

    Args:
        state: of the model, for a square grid of patches.
        depth: number of its blocks.
        grid: rows and columns of patches to which its positions are resized.

    Raises:
        ValueError: something is missing, there are more blocks, or the grid is not square.
    """
    positions = _get(state, "embeddings.position_embeddings")
    second = state.get("embeddings.distillation_token")
    specials = 1 if second is None else 2
    side = round((positions.shape[1] - specials) ** 0.5)
    if side * side != positions.shape[1] - specials:
        raise ValueError(f"{positions.shape[1] - specials} patch positions are no square grid")
    resized = resized_positions(positions[:, specials:], (side, side), grid)
    found = {
        "class_token": _get(state, "embeddings.cls_token"),
        "positions": torch.cat([positions[:, :1], resized], dim=1),
    }
    if second is not None:
        found |= {"distillation_token": second, "distillation_position": positions[:, 1:2]}
    if "embeddings.mask_token" in state:
        found["mask_token"] = state["embeddings.mask_token"]
    for kind in ("weight", "bias"):
        found[f"patches.{kind}"] = _get(state, f"embeddings.patch_embeddings.projection.{kind}")
        found[f"norm.{kind}"] = _get(state, f"layernorm.{kind}")
        for layer in range(depth):
            old, new = f"layers.{layer}.", f"blocks.{layer}."
            qkv = [_get(state, f"{old}attention.{part}_proj.{kind}") for part in "qkv"]
            found[f"{new}qkv.{kind}"] = torch.cat(qkv)
            for ours, theirs in _LAYER.items():
                found[f"{new}{ours}.{kind}"] = _get(state, f"{old}{theirs}.{kind}")
    if f"layers.{depth}.layernorm_before.weight" in state:
        raise ValueError(f"the checkpoint has more than {depth} layers")
    return found


@torch.no_grad()
def _fill(network: nn.Module, state: State) -> None:
    """Copy a state into a network.

    Raises:
        ValueError: it does not fit; the message names the first tensor that does not.
    """
    for name, held in network.state_dict().items():
        if name not in state:
            if name == _OPTIONAL:
                continue
            raise ValueError(f"the checkpoint has nothing for {name!r}")
        if held.shape != state[name].shape:
            raise ValueError(f"{name} would have shape {tuple(state[name].shape)}, not {tuple(held.shape)}")
        held.copy_(state[name])


def _get(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the checkpoint has no {name!r}")
    return state[name]
