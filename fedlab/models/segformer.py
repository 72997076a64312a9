"""SegFormer, a transformer for segmentation, with its patch embeddings in view (Xie et al. 2021, arXiv 2105.15203)."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field, model_validator
from torch import Tensor, nn

from fedlab.config import Positive, Section, UnfitValue
from fedlab.errors import ConfigError
from fedlab.method import Task

STRIDE = 4
"""Image pixels per position of the logits and of the masks."""

Four = tuple[Positive, Positive, Positive, Positive]

# the release's own; transformers leaves every norm at 1e-5, which only its patch embeddings have there
_BLOCK_EPS = 1e-6


class SegFormerSettings(Section):
    """A SegFormer by its four stages; defaults are B0."""

    widths: Four = Field(default=(32, 64, 160, 256), description="channels of each stage")
    depths: Four = Field(default=(2, 2, 2, 2), description="blocks of each stage")
    heads: Four = Field(default=(1, 2, 5, 8), description="attention heads of each stage")
    reductions: Four = Field(default=(8, 4, 2, 1), description="stride at which keys and values are reduced")
    mlp_ratio: Positive = Field(default=4, description="hidden width of a block's MLP over the stage's")
    decoder: Positive = Field(default=256, description="width of the decoder")
    drop_path: float = Field(default=0.1, ge=0, lt=1, description="of the last block; rises linearly from 0")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="of whole channels before the classifier")

    @model_validator(mode="after")
    def _heads_divide(self) -> SegFormerSettings:
        if any(width % heads for width, heads in zip(self.widths, self.heads, strict=True)):
            raise UnfitValue("widths", self.widths, f"multiples of the heads {self.heads}")
        return self


B2 = SegFormerSettings(widths=(64, 128, 320, 512), depths=(3, 4, 6, 3), decoder=768)


def check_masks(task: Task) -> None:
    """Refuse data that the network cannot be trained on.

    Raises:
        ConfigError: no masks, or masks of another size than the logits.
    """
    if "mask" not in task.columns:
        fix = "see the sources scenes and masks"
        raise ConfigError("data.source", f"columns {sorted(task.columns)}", "images with masks", fix)
    height, width = task.input_shape[1:]
    mask = task.columns["mask"][1]
    if height % STRIDE or width % STRIDE or mask != (height // STRIDE, width // STRIDE):
        found = f"images {height}×{width}, masks {'×'.join(map(str, mask))}"
        expected = f"images with sides that {STRIDE} divides, and masks of 1/{STRIDE} of them"
        fix = f"set data.source.size to multiples of {STRIDE} and data.source.stride to {STRIDE}"
        raise ConfigError("data.source", found, expected, fix)


class Stages(NamedTuple):
    """The outputs of the encoder for stages i = 1 … 4.

    Args:
        embeddings: E_i (B, N_i, C_i), after their LayerNorm and before any block.
        features: F_i (B, C_i, H / 2^(i+1), W / 2^(i+1)), after the stage's final LayerNorm.
    """

    embeddings: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


class SegFormer(nn.Module):
    """The networks of the paper: SegFormer of `transformers` with the normalization and dropout of the authors' code.

    Args:
        settings: its size.
        channels: of the images.
        outputs: logits per position.
    """

    def __init__(self, settings: SegFormerSettings, channels: int, outputs: int) -> None:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation

        super().__init__()
        s = settings
        self.settings = s
        self.model: Any = SegformerForSemanticSegmentation(
            SegformerConfig(
                num_channels=channels,
                num_labels=outputs,
                hidden_sizes=s.widths,
                depths=s.depths,
                num_attention_heads=s.heads,
                sr_ratios=s.reductions,
                mlp_ratios=(s.mlp_ratio,) * 4,
                decoder_hidden_size=s.decoder,
                drop_path_rate=s.drop_path,
                classifier_dropout_prob=s.dropout,
            )
        )
        self.model.decode_head.dropout = nn.Dropout2d(s.dropout)
        for stage in self.model.segformer.stages:
            stage.layer_norm.eps = _BLOCK_EPS
            for block in stage.blocks:
                block.layernorm_before.eps = block.layernorm_after.eps = _BLOCK_EPS

    def encode(self, images: Tensor) -> Stages:
        """Embeddings and features of images (B, C, H, W)."""
        embeddings: list[Tensor] = []
        features: list[Tensor] = []
        x = images
        for stage in self.model.segformer.stages:
            tokens, height, width = stage.patch_embeddings(x)
            embeddings.append(tokens)
            for block in stage.blocks:
                tokens = block(tokens, height, width)
            x = stage.layer_norm(tokens).transpose(1, 2).reshape(len(images), -1, height, width)
            features.append(x)
        return Stages(tuple(embeddings), tuple(features))

    def decode(self, features: tuple[Tensor, ...]) -> Tensor:
        """Logits (B, K, H/4, W/4) of the stages' features."""
        logits: Tensor = self.model.decode_head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images).features)

    def load_pretrained(self, source: str, key: str) -> bool:
        """Take over a checkpoint that `from_pretrained` reads.

        Args:
            source: hub name or local folder, of a segmentation network or of its encoder alone.
            key: the setting that named it, for error messages.

        Returns:
            Whether the checkpoint has all weights; False: the decoder or its classifier is not trained.

        Raises:
            ConfigError: unreadable, or an encoder of another size.
        """
        try:
            found, loading = type(self.model).from_pretrained(
                source, config=self.model.config, ignore_mismatched_sizes=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                key, source, "a hub name or a folder that save_pretrained wrote", str(error).split("\n")[0]
            ) from error
        lacking = sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])])
        if encoder := [name for name in lacking if name.startswith("segformer.")]:
            widths = f"an encoder with widths {self.settings.widths} and depths {self.settings.depths}"
            raise ConfigError(key, source, widths, f"it lacks {encoder[0]} in this shape; see method.teacher")
        self.model.load_state_dict(found.state_dict())
        return not lacking
