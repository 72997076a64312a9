"""CLIP: two transformers that embed images and captions in a common space, of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import Positive, Section, UnfitValue
from fedlab.errors import ConfigError
from fedlab.method import Task


class TowerSettings(Section):
    """Size of one encoder."""

    width: Positive = 64
    layers: Positive = 2
    heads: Positive = 4

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise UnfitValue("width", self.width, f"a multiple of heads = {self.heads}")
        return self


class CLIPSettings(Section):
    """A CLIP model; the text encoder's vocabulary and length are the data's."""

    vision: TowerSettings = TowerSettings()
    text: TowerSettings = TowerSettings()
    patch: Positive = Field(default=8, description="height and width of an image patch")
    projection: Positive = Field(default=64, description="dimension d of the common embedding space")
    max_length: Positive | None = Field(
        default=None, description="number of positions of the text encoder; default: the length of the data's captions"
    )


def make_clip(
    task: Task, end_tokens: Sequence[str], *, pretrained: str | None = None, size: CLIPSettings | None = None
) -> nn.Module:
    """A `transformers.CLIPModel` from a checkpoint or of a given size.

    Args:
        task: the task, which has images, a column ``text`` of token ids and a vocabulary.
        end_tokens: words of the vocabulary that may stand for the end of a caption, the most preferred first.
        pretrained: hub name or folder of a checkpoint; the setting ``method.pretrained`` in errors.
        size: size of the model; default: a tiny one, or that of the checkpoint. ``method.network`` in errors.

    Raises:
        ConfigError: no such checkpoint, or one that does not fit the data or the given size.
    """
    model = _load(pretrained) if pretrained else _build(size or CLIPSettings(), task, end_tokens)
    if pretrained and size is not None:
        _check_size(model.config, size)
    _check_fits(model.config, task, "method.pretrained" if pretrained else "method.network")
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


def class_embeddings(model: CLIP, prompts: Mapping[str, Tensor]) -> Tensor:
    """Unit vectors (K, d) of classes: the mean of the unit embeddings of a class's prompts, scaled to length 1 again.

    Args:
        model: the model.
        prompts: columns ``text`` (n, L) and ``label`` (n,), one or more prompts for each of K classes.

    Source: Radford et al. 2021, arXiv 2103.00020, section 3.1.4.
    """
    embedded = embed_texts(model, prompts["text"])
    sums = embedded.new_zeros(int(prompts["label"].max()) + 1, embedded.shape[1])
    return F.normalize(sums.index_add_(0, prompts["label"], embedded), dim=1)


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


def _build(size: CLIPSettings, task: Task, end_tokens: Sequence[str]) -> Any:
    from transformers import CLIPConfig, CLIPModel

    words = {word: token for token, word in enumerate(task.vocabulary)}
    end = next((words[token] for token in end_tokens if token in words), None)
    if end is None:
        raise ConfigError(
            "data.source",
            f"a vocabulary of {len(words)} words",
            "captions that end with " + " or ".join(end_tokens),
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
    """Patches and their positions start as in open_clip: positions as large as width^-½.

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


def _check_size(config: Any, wanted: CLIPSettings) -> None:
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
