"""Settings of ISA."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedlab.config import Positive, Section
from fedlab.config.sections import HubPath
from fedlab.errors import ConfigError
from fedlab.method import Task
from fedlab.models.blip import Blip

GROUPS = 4  # of group normalization in the small encoder
GALLERY, QUERIES = "gallery", "queries"
"""The server's sets on which it measures retrieval."""


class VLSettings(Section):
    """The frozen vision-language model."""

    pretrained: HubPath | None = Field(
        default=None,
        description="BLIP for image-text retrieval of transformers, a hub name or a folder; default: the small one "
        "that comes with FedLab, which knows the pictures and words of the source edited_scenes",
    )


class EncoderSettings(Section):
    """The light encoder φ of the query images, which is trained."""

    pretrained: HubPath | None = Field(
        default=None,
        description="EfficientNet, MobileNetV2, MobileViT or MobileViTV2 of transformers, a hub name or a folder; "
        "default: a small convolutional network",
    )
    widths: tuple[Positive, ...] = Field(
        default=(32, 64, 64), min_length=1, description="channels of the small network; every layer halves the image"
    )
    norm: Literal["batch", "group"] = Field(
        default="batch",
        description="normalization of the small network and of the token learner; running statistics of batch are "
        "averaged like weights",
    )
    size: Positive | None = Field(
        default=None, description="height and width at which φ sees images; default: as they are"
    )
    mean: tuple[float, ...] = Field(default=(0.485, 0.456, 0.406), description="subtracted from the pixels φ sees")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.229, 0.224, 0.225), description="by which these pixels are then divided"
    )


class LearnerSettings(Section):
    """What turns a feature map into a sentence."""

    kind: Literal["tokens", "pooled"] = Field(
        default="tokens",
        description="tokens: the adaptive token learner; pooled: one token from the mean over the image by an MLP, the "
        "variant that it is compared with",
    )
    tokens: Positive = Field(default=6, description="number L of tokens of a sentence; that of pooled is always 1")
    heads: Positive = Field(default=4, description="attention heads, a divisor of the number of channels of the map")
    dropout: float = Field(default=0.1, ge=0, lt=1)


class ISASettings(Section):
    """Settings of ISA. The paper's own values are not known; see the README."""

    vl: VLSettings = VLSettings()
    query: Literal["light", "large"] = Field(
        default="light",
        description="light: sentences are made of the feature map of φ; large: of the patches of the frozen image "
        "encoder, the symmetric variant, which needs the large model for queries, too",
    )
    encoder: EncoderSettings = EncoderSettings()
    learner: LearnerSettings = LearnerSettings()
    temperature: float = Field(default=0.07, gt=0, description="temperature τ of the contrast")
    contrast: Literal["hard", "soft"] = Field(
        default="hard",
        description="hard: a sentence finds its own image among those of the batch; soft: its distribution over them "
        "is that of the image itself",
    )
    symmetric: bool = Field(default=False, description="images also have to find their sentences")
    anchors: int = Field(
        default=0, ge=0, description="number of gallery vectors that the server sends once, as further negatives"
    )
    lambda_lar: float = Field(default=0.5, ge=0, description="weight λ of the local alignment; 0: none")
    lar: Literal["both", "positive"] = Field(
        default="both", description="both: own image against a hard negative; positive: own image only"
    )
    duplicates: float = Field(
        default=0.97, description="images whose vectors have at least this cosine are no negatives of each other"
    )
    keep_tokens: bool = Field(
        default=True,
        description="clients keep the tokens of the frozen image encoder, (1 + N) d_v numbers for each image, which "
        "the local alignment needs; false: they are computed again in every step",
    )

    @property
    def contrasts(self) -> bool:
        """Whether the local alignment has negatives."""
        return self.lambda_lar > 0 and self.lar == "both"

    @property
    def needs_tokens(self) -> bool:
        """Whether training needs the tokens of the frozen image encoder."""
        return self.lambda_lar > 0 or self.query == "large"


def check(s: ISASettings, config: Any) -> list[str]:
    """Warnings about a configuration.

    Raises:
        ConfigError: settings exclude each other.
    """
    if s.symmetric and s.anchors:
        fix = "set one of them only"
        raise ConfigError("method.anchors", s.anchors, "0, because no sentence belongs to an anchor (symmetric)", fix)
    if s.symmetric and s.contrast == "soft":
        raise ConfigError("method.symmetric", True, "false with method.contrast = soft, which has one direction")
    if s.query == "large" and s.encoder.pretrained:
        fix = "leave it out, or set method.query: light"
        raise ConfigError("method.encoder.pretrained", s.encoder.pretrained, "nothing: there is no light encoder", fix)
    if s.encoder.norm == "group" and (uneven := [width for width in s.encoder.widths if width % GROUPS]):
        raise ConfigError("method.encoder.widths", uneven[0], f"multiples of {GROUPS} with method.encoder.norm = group")
    warnings = {
        f"training.batch_size = {config.training.batch_size}: sentences are contrasted with the images of a batch": (
            config.training.batch_size < 8
        ),
        "method.lambda_lar = 0: sentences are not aligned with the parts of their images": s.lambda_lar == 0,
    }
    return [text for text, holds in warnings.items() if holds]


def check_task(s: ISASettings, task: Task, vl: Blip) -> None:
    """Refuse data without images in color, and texts in other words than those of the vision-language model.

    Raises:
        ConfigError: what does not fit.
    """
    if "image" not in task.columns or task.input_shape[0] != 3:
        raise ConfigError("data.source", sorted(task.columns), "pictures with 3 channels in a column 'image'")
    words = task.vocabulary
    if not words:  # no texts here: a client needs none
        return
    if "[CLS]" not in words or words.index("[CLS]") != vl.cls or len(words) > vl.num_words:
        fix = (
            "set method.vl.pretrained to the checkpoint whose tokenizer data.source.tokenizer is"
            if s.vl.pretrained is None
            else "set data.source.tokenizer to the tokenizer of method.vl.pretrained"
        )
        found = f"texts out of {len(words):,} words"
        raise ConfigError("data.source", found, f"the {vl.num_words:,} words of the vision-language model", fix)
