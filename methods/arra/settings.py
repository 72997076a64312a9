"""Settings of ARRA."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedlab.config import Positive, Section, UnfitValue
from fedlab.config.sections import HubPath
from fedlab.errors import ConfigError
from fedlab.method import Task
from fedlab.methods.arra.sequences import Positions


class LLMSettings(Section):
    """The language model: a Llama of a given size, or a checkpoint."""

    pretrained: HubPath | None = Field(
        default=None,
        description="causal language model, a hub name or a folder; it sets the size, and the image codes become "
        "further tokens",
    )
    width: Positive = Field(default=96, description="length d of a hidden state")
    hidden: Positive = Field(default=256, description="width of the hidden layer of a block")
    blocks: Positive = 4
    heads: Positive = 4
    dropout: float = Field(default=0.05, ge=0, lt=1, description="dropout of the attention weights")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % (2 * self.heads):
            raise UnfitValue("width", self.width, f"an even multiple of heads = {self.heads}")
        return self


class TokenizerSettings(Section):
    """The tokenizer of images: a codebook of patches that the server fits, or a checkpoint."""

    pretrained: HubPath | None = Field(
        default=None, description="VQ-VAE of transformers (JanusVQVAE), a folder; default: a codebook of patches"
    )
    codes: Positive = Field(default=64, description="number of codes of the codebook")
    patch: Positive = Field(default=4, description="height and width in pixels of the patch that one code stands for")
    images: Positive = Field(default=400, description="number of images to which the server fits the codebook")


class EncoderSettings(Section):
    """A frozen encoder of images: a small network that the server trains to read captions, or a checkpoint."""

    pretrained: HubPath | None = Field(
        default=None, description="image encoder of transformers (CLIP, DINOv2, ViT), a hub name or a folder"
    )
    feature: Literal["global", "average"] = Field(
        default="global",
        description="vector of a checkpoint: global: the pooled one (of CLIP, the projected); average: the mean of "
        "the patches",
    )
    width: Positive = Field(default=64, description="length D of the vector of the small network")
    steps: Positive = Field(default=400, description="number of steps in which the server trains the small network")
    batch_size: Positive = 64
    lr: float = Field(default=2e-3, gt=0, description="learning rate, which decays to 0 along a cosine")


class GenerationSettings(Section):
    """How images are drawn."""

    temperature: float = Field(default=1.0, gt=0)
    top_k: Positive = Field(default=2000, description="number of the most likely codes that are drawn from")
    guidance: float = Field(default=4.0, ge=1, description="strength of classifier-free guidance; 1: none")
    samples: int = Field(
        default=300, ge=0, description="number of images that the server generates at each evaluation; 0: none"
    )
    gallery: int = Field(
        default=6, ge=0, description="number of images that the server generates after each round for the report"
    )


class ARRASettings(Section):
    """Settings of ARRA; weights are the paper's."""

    lambda_gva: float = Field(default=1.0, ge=0, description="weight λ of the alignment; 0: none, and no projector")
    layer: Positive = Field(default=1, description="block of the language model whose output is aligned, from 1")
    positions: Positions = Field(
        default="hybnext",
        description="what is aligned: hybnext: every position whose next token is an image code; rep: a token <REP> "
        "before the image; last: the last such position",
    )
    z_weight: float = Field(default=1e-5, ge=0, description="weight of the z-loss, whatever λ is")
    drop_prompt: float = Field(
        default=0.1, ge=0, lt=1, description="share of the samples whose caption is left out, as guidance needs"
    )
    zero_codes: bool = Field(default=False, description="the output weights of image codes start at 0, as released")
    projector: Literal["average", "local"] = Field(
        default="average", description="the projector is averaged; or each client keeps its own"
    )
    llm: LLMSettings = LLMSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    encoder: EncoderSettings = EncoderSettings()
    judge: EncoderSettings = EncoderSettings(steps=800)
    generation: GenerationSettings = GenerationSettings()
    public: str = Field(
        default="pretrain",
        description="the server's set of captioned images on which it fits the codebook and trains encoder and judge",
    )
    probed_layer: Positive | None = Field(
        default=None, description="block whose states the server probes for the encoder's vector; default: layer"
    )
    held: str = Field(default="composition", description="the server's set of captioned images on which it evaluates")

    @property
    def probed(self) -> int:
        """The block whose states are probed."""
        return self.probed_layer or self.layer

    @property
    def frozen(self) -> dict[str, TokenizerSettings | EncoderSettings]:
        """What is not trained in rounds, by role."""
        return {"tokenizer": self.tokenizer, "encoder": self.encoder, "judge": self.judge}

    @property
    def aligns(self) -> bool:
        """Whether there is an alignment at all."""
        return self.lambda_gva > 0


def check(s: ARRASettings, config: Any) -> list[str]:
    """Warnings about a configuration.

    Raises:
        ConfigError: the block does not exist, or the judge is the encoder that is aligned to.
    """
    for key, layer in {"layer": s.layer, "probed_layer": s.probed}.items():
        if s.llm.pretrained is None and layer > s.llm.blocks:
            raise ConfigError(f"method.{key}", layer, f"a block from 1 to {s.llm.blocks} (method.llm.blocks)")
    if s.judge.pretrained is not None and s.judge.pretrained == s.encoder.pretrained:
        fix = "choose another checkpoint, or leave it out to have the server train one"
        expected = "another encoder than method.encoder.pretrained: a model aligned to its judge is judged too well"
        raise ConfigError("method.judge.pretrained", s.judge.pretrained, expected, fix)
    if s.positions == "rep" and not s.aligns:
        raise ConfigError("method.positions", "rep", "method.lambda_gva above 0, because <REP> is only aligned")
    warnings = {
        f"method.generation.guidance = {s.generation.guidance} with method.drop_prompt = 0: the model never learns "
        "images without captions, which guidance needs": s.generation.guidance != 1 and not s.drop_prompt,
        "method.projector = local: the average of the models is aligned to no projector": (
            s.aligns and s.projector == "local"
        ),
        f"method.generation.samples = {s.generation.samples}: distances between distributions of so few images are "
        "mostly noise": 0 < s.generation.samples < 100,
    }
    return [text for text, holds in warnings.items() if holds]


def check_task(s: ARRASettings, task: Task) -> None:
    """Refuse data without captioned images, and images that do not consist of whole patches.

    Raises:
        ConfigError: what is missing.
    """
    for name in ("image", "text"):
        if name not in task.columns:
            expected, fix = f"a column {name!r}", "choose a source of captioned images: captions or shapecap"
            raise ConfigError("data.source", sorted(task.columns), expected, fix)
    height, width = task.input_shape[1:]
    patch = s.tokenizer.patch
    if s.tokenizer.pretrained is None and (height % patch or width % patch):
        fix = "change it, or data.source.size"
        raise ConfigError("method.tokenizer.patch", patch, f"a divisor of the images' {height}×{width} pixels", fix)
