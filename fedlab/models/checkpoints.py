"""Pre-trained vision transformers: weights of transformers' ViT, DeiT, ViTMAE and CLIP by the names of `ViT`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab.errors import ConfigError
from fedlab.models.vit import resized_positions

State = dict[str, Tensor]
Translation = Callable[[Mapping[str, Tensor], int, tuple[int, int]], State]
_LAYER = {
    "norm1": "layernorm_before",
    "out": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_CLIP_LAYER = {
    "norm1": "layer_norm1",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_OPTIONAL = "mask_token"  # may be missing in a checkpoint: it then starts as it was made


def load_pretrained(
    network: nn.Module, source: str, key: str = "method.pretrained", convert: Callable[[State], State] | None = None
) -> None:
    """Start from a checkpoint of transformers: ViT, the encoder of ViTMAE, or the image encoder of CLIP.

    An example is ``google/vit-base-patch16-224-in21k``. The positions of the (square) grid are resized bilinearly. The
    image encoder of CLIP needs a `ViT` with ``pre_norm`` and ``activation="quick_gelu"``. A network with parameters
    ``distillation_token`` and ``distillation_position`` starts from a DeiT checkpoint, e.g.
    ``facebook/deit-base-distilled-patch16-224``.

    Args:
        network: a `ViT`, or another network with its ``blocks`` and ``grid``; changed in place.
        source: hub name or local folder.
        key: the setting that named it, for the message.
        convert: turns a state with the names of `ViT` into that of the network, if it has others.

    Raises:
        ConfigError: it is not there, is no ViT, or does not fit.
    """
    shaped: Any = network
    distilled = hasattr(network, "distillation_token")
    expected = f"a {'DeiT' if distilled else 'ViT'} checkpoint of this width, depth and patch size"
    try:
        translate, found = _load(source, distilled)
        state = translate(found, len(shaped.blocks), shaped.grid)
        _fill(network, convert(state) if convert else state)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(key, source, expected, str(error)) from error


def _load(source: str, distilled: bool) -> tuple[Translation, Mapping[str, Tensor]]:
    """The state of a checkpoint's image encoder, and what translates it.

    Args:
        source: hub name or local folder.
        distilled: whether the network has a distillation token, as those of DeiT.

    Raises:
        OSError, ValueError: there is no such checkpoint, or something is missing in it.
    """
    from transformers import AutoConfig, CLIPModel, CLIPVisionModel, DeiTModel, ViTMAEModel, ViTModel

    kind: str = AutoConfig.from_pretrained(source).model_type
    if kind == "clip":
        model, loaded = CLIPModel.from_pretrained(source, output_loading_info=True)
    elif kind == "clip_vision_model":
        model, loaded = CLIPVisionModel.from_pretrained(source, output_loading_info=True)
    elif kind == "vit_mae":
        model, loaded = ViTMAEModel.from_pretrained(source, output_loading_info=True)
    else:
        plain: Any = DeiTModel if distilled else ViTModel
        model, loaded = plain.from_pretrained(source, add_pooling_layer=False, output_loading_info=True)
    if loaded["missing_keys"]:
        raise ValueError(f"the checkpoint has no {min(loaded['missing_keys'])!r}")
    if kind.startswith("clip"):
        return clip_state, (model.vision_model if kind == "clip" else model).state_dict()
    return vit_state, model.state_dict()


def clip_state(state: Mapping[str, Tensor], depth: int, grid: tuple[int, int]) -> State:
    """The state of a transformers ``CLIPVisionModel`` by the names of `ViT`; see `vit_state`."""
    found = {
        "class_token": _get(state, "embeddings.class_embedding")[None, None],
        "positions": _positions(_get(state, "embeddings.position_embedding.weight")[None], grid),
        "patches.weight": _get(state, "embeddings.patch_embedding.weight"),
    }
    found["patches.bias"] = torch.zeros(len(found["patches.weight"]))  # CLIP's patches have none
    for kind in ("weight", "bias"):
        found[f"pre_norm.{kind}"] = _get(state, f"pre_layrnorm.{kind}")
        found[f"norm.{kind}"] = _get(state, f"post_layernorm.{kind}")
        for layer in range(depth):
            old, new = f"encoder.layers.{layer}.", f"blocks.{layer}."
            found[f"{new}qkv.{kind}"] = torch.cat([_get(state, f"{old}self_attn.{part}_proj.{kind}") for part in "qkv"])
            for ours, theirs in _CLIP_LAYER.items():
                found[f"{new}{ours}.{kind}"] = _get(state, f"{old}{theirs}.{kind}")
    if f"encoder.layers.{depth}.layer_norm1.weight" in state:
        raise ValueError(f"the checkpoint has more than {depth} layers")
    return found


def vit_state(state: Mapping[str, Tensor], depth: int, grid: tuple[int, int]) -> State:
    """The state of a transformers ``ViTModel``, ``DeiTModel`` or ``ViTMAEModel`` by the names of `ViT`.

    Args:
        state: of the model, for a square grid of patches.
        depth: number of its blocks.
        grid: rows and columns of patches to which its positions are resized.

    Raises:
        ValueError: something is missing, there are more blocks, or the grid is not square.
    """
    positions, second = _get(state, "embeddings.position_embeddings"), state.get("embeddings.distillation_token")
    own: State = {}
    if second is not None:
        own = {"distillation_token": second, "distillation_position": positions[:, 1:2]}
        positions = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    found = {"positions": _positions(positions, grid), "class_token": _get(state, "embeddings.cls_token"), **own}
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


def _positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions (1, 1 + side², D) of a square grid, the class token's first, resized to another grid."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if side * side != positions.shape[1] - 1:
        raise ValueError(f"{positions.shape[1] - 1} patch positions are no square grid")
    return torch.cat([positions[:, :1], resized_positions(positions[:, 1:], (side, side), grid)], dim=1)


@torch.no_grad()
def _fill(network: nn.Module, state: State) -> None:
    """Copy a state into a network, which must have a place for all of it but a mask token.

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
    if left := sorted(state.keys() - network.state_dict().keys() - {_OPTIONAL}):
        raise ValueError(f"the network has no place for {left[0]!r} of the checkpoint")


def _get(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"the checkpoint has no {name!r}")
    return state[name]
