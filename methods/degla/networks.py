"""CLIP models of any size, and their embeddings."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.data.files.captions import END_TOKENS
from fedlab.errors import ConfigError
from fedlab.method import Task
from fedlab.methods.degla.settings import DeGLASettings, NetworkSettings

TRAINED = {
    "all": (),
    "text": ("text_model", "text_projection", "logit_scale"),
    "projections": ("text_projection", "visual_projection", "logit_scale"),
}
"""What is trained, as prefixes of state names; none stands for everything."""


def make_clip(s: DeGLASettings, task: Task) -> nn.Module:
    """The student: a `transformers.CLIPModel` from a checkpoint or of the configured size.

    Raises:
        ConfigError: no such checkpoint, or one that does not fit the data or the configured size.
    """
    model = _load(s.pretrained) if s.pretrained else _build(s.network or NetworkSettings(), task)
    if s.pretrained and s.network is not None:
        _check_size(model.config, s.network)
    _check_fits(model.config, task, "method.pretrained" if s.pretrained else "method.network")
    checked: nn.Module = model
    return checked


class CLIP(Protocol):
    """The part of `transformers.CLIPModel` that is used here."""

    config: Any
    logit_scale: nn.Parameter

    def get_image_features(self, *, pixel_values: Tensor) -> Any: ...

    def get_text_features(self, *, input_ids: Tensor) -> Any: ...


def as_clip(model: nn.Module) -> CLIP:
    """A network made by `make_clip`, with the type `CLIP`, because transformers has no types."""
    return cast(CLIP, model)


def embed_images(model: CLIP, images: Tensor) -> Tensor:
    """Images (n, 3, H, W) → unit vectors (n, d)."""
    return F.normalize(model.get_image_features(pixel_values=images).pooler_output.float(), dim=-1)


def embed_texts(model: CLIP, ids: Tensor) -> Tensor:
    """Token ids (…, L) → unit vectors (…, d)."""
    flat = ids.reshape(-1, ids.shape[-1])
    if not len(flat):
        nothing: Tensor = model.logit_scale.new_zeros(*ids.shape[:-1], model.config.projection_dim)
        return nothing
    features = model.get_text_features(input_ids=flat).pooler_output
    return F.normalize(features.float(), dim=-1).reshape(*ids.shape[:-1], -1)


def _load(checkpoint: str) -> Any:
    from transformers import CLIPModel

    try:
        return CLIPModel.from_pretrained(checkpoint, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "method.pretrained",
            checkpoint,
            "a CLIP checkpoint on the hub, in its cache, or a folder written by save_pretrained",
            " ".join(str(error).split())[:300],
        ) from error


def _build(size: NetworkSettings, task: Task) -> Any:
    from transformers import CLIPConfig, CLIPModel

    words = {word: token for token, word in enumerate(task.vocabulary)}
    end = next((words[token] for token in END_TOKENS if token in words), None)
    if end is None:
        raise ConfigError(
            "data.source",
            f"a vocabulary of {len(words)} words",
            "captions that end with " + " or ".join(END_TOKENS),
            "the text encoder is read at a caption's end: use such a tokenizer, or the words of the captions",
        )
    length = size.max_length or task.columns["text"][1][-1]
    text = {"vocab_size": len(words), "max_position_embeddings": length, "eos_token_id": end, "bos_token_id": None}
    vision = {"image_size": task.input_shape[-1], "patch_size": size.patch, "num_channels": task.input_shape[0]}
    model = CLIPModel(
        CLIPConfig(
            text_config={**text, "pad_token_id": None, **_tower(size.text.model_dump(), size.projection)},
            vision_config={**vision, **_tower(size.vision.model_dump(), size.projection)},
            projection_dim=size.projection,
        )
    )
    _start_patches(model.vision_model.embeddings)
    return model


def _start_patches(embeddings: Any) -> None:
    """Patches and their positions start as in open_clip, on which the authors build: positions as large as width^-½.

    transformers draws both with deviation 0.02 for every width. In a narrow model the content of a patch then outweighs
    its position, and "left of" is learned late or never.
    """
    embeddings.patch_embedding.reset_parameters()
    nn.init.normal_(embeddings.position_embedding.weight, std=embeddings.embed_dim**-0.5)


def _tower(size: dict[str, int], projection: int) -> dict[str, int]:
    return {
        "hidden_size": size["width"],
        "intermediate_size": 4 * size["width"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "projection_dim": projection,
    }


def _check_size(config: Any, wanted: NetworkSettings) -> None:
    for name, tower, size in (
        ("vision", config.vision_config, wanted.vision),
        ("text", config.text_config, wanted.text),
    ):
        found = (tower.hidden_size, tower.num_hidden_layers, tower.num_attention_heads)
        if found != (size.width, size.layers, size.heads):
            raise ConfigError(
                f"method.network.{name}",
                size.model_dump(),
                "the checkpoint's: width {}, layers {}, heads {}".format(*found),
                "change it, or leave method.network out",
            )
    if (config.vision_config.patch_size, config.projection_dim) != (wanted.patch, wanted.projection):
        raise ConfigError(
            "method.network",
            {"patch": wanted.patch, "projection": wanted.projection},
            f"the checkpoint's: patch {config.vision_config.patch_size}, projection {config.projection_dim}",
            "change it, or leave method.network out",
        )


def _check_fits(config: Any, task: Task, key: str) -> None:
    """Refuse images or captions that the encoders cannot take."""
    channels, height, width = task.input_shape
    vision, length = config.vision_config, task.columns["text"][1][-1]
    if (channels, height, width) != (vision.num_channels, vision.image_size, vision.image_size):
        raise ConfigError(
            "data.source",
            f"images of {channels}×{height}×{width}",
            f"{vision.num_channels}×{vision.image_size}×{vision.image_size}, which the model takes",
            f"set data.source.size: {vision.image_size}, or change {key}",
        )
    if height % vision.patch_size:
        raise ConfigError("method.network.patch", vision.patch_size, f"a divisor of the images' {height} pixels")
    text = config.text_config
    if length > text.max_position_embeddings or len(task.vocabulary) > text.vocab_size:
        raise ConfigError(
            "data.source",
            f"captions of {length} tokens out of {len(task.vocabulary)}",
            f"at most {text.max_position_embeddings} tokens out of {text.vocab_size}",
            f"set data.source.length and data.source.tokenizer to what {key} takes",
        )
