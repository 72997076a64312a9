"""Settings of Hybrid Distillation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedlab.blocks.stages import Stage, Stages
from fedlab.config import Positive, Section, TrainingConfig, UnfitValue, parse
from fedlab.config.sections import HubPath
from fedlab.errors import ConfigError, DataError
from fedlab.method import Task
from fedlab.methods.hybrid_distill.losses import Distance, Kind
from fedlab.methods.hybrid_distill.masks import Schedule, surviving

Share = Annotated[float, Field(ge=0, le=1)]
Statistics = tuple[float, ...] | None
Changes = dict[str, Any]
_CHANGED = "keys of the section training that have other values in these rounds"


class Tower(Section):
    """Size of a vision transformer."""

    width: Positive = Field(default=768, description="length of a token")
    depth: Positive = Field(default=12, description="number of blocks, L")
    heads: Positive = Field(default=12, description="number of attention heads, a divisor of width")
    mlp_ratio: Positive = Field(default=4, description="hidden width of a block's MLP, in units of width")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise UnfitValue("width", self.width, f"a multiple of heads = {self.heads}")
        return self


class TeacherSettings(Tower):
    """A teacher: its size, and where its weights come from."""

    pretrained: HubPath | None = Field(
        default=None,
        description="checkpoint to start from: hub name or folder of a ViT, a ViTMAE or a CLIP of transformers",
    )
    architecture: Literal["vit", "clip"] = Field(
        default="vit", description="clip: normalization before the first block and x · sigmoid(1.702 x), as CLIP has"
    )
    steps: int = Field(
        default=0, ge=0, description="steps in which the server trains it before round 1, on its set 'teacher'"
    )
    batch_size: Positive = Field(default=64, description="samples in a batch of these steps")
    lr: float = Field(default=1e-3, gt=0, description="learning rate at the first of these steps; it falls to 0")
    rounds: int = Field(
        default=0, ge=0, description="number of rounds in which the clients train it before the student"
    )
    training: Changes = Field(default={}, description=_CHANGED)
    mean: Statistics = Field(
        default=None, description="mean of each channel of its own images in [0, 1]; default: data.mean"
    )
    std: Statistics = Field(default=None, description="divisor of each channel of its own images; default: data.std")

    @property
    def trained(self) -> bool:
        """Whether the platform trains it."""
        return self.steps > 0 or self.rounds > 0


class FeatureTeacher(TeacherSettings):
    """The teacher of features, T_c. If the platform trains it, it learns the labels."""


class RelationTeacher(TeacherSettings):
    """The teacher of relations, T_m. If the platform trains it, it is a masked autoencoder."""

    mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="share of patches that are hidden from it")
    decoder_width: Positive = Field(default=512, description="width of the decoder, a multiple of 4")
    decoder_depth: Positive = Field(default=8, description="number of blocks of the decoder")
    decoder_heads: Positive = Field(default=16, description="number of attention heads of the decoder")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise UnfitValue(
                "decoder_width", self.decoder_width, f"a multiple of 4 and of decoder_heads = {self.decoder_heads}"
            )
        return self


class RelationWeight(Section):
    """Weight of L_m, beta, for each distance; their scales differ."""

    smooth_l1: float = Field(default=1.0, ge=0, description="weight with smooth_l1; 0: features only, an ablation")
    kl: float = Field(default=1.0, ge=0, description="weight with kl; a value of the paper is not known")


class HybridSettings(Section):
    """Settings of Hybrid Distillation. The README says which defaults are the paper's; most are not known."""

    # networks (§3.2)
    patch: Positive = Field(default=16, description="height and width of a patch, the same for all networks")
    student: Tower = Tower()
    feature_teacher: FeatureTeacher = FeatureTeacher()
    relation_teacher: RelationTeacher = RelationTeacher()
    projector: Literal["linear", "identity"] = Field(
        default="linear", description="layer from the student's features to those of the teacher"
    )
    init_std: float = Field(
        default=0.02, gt=0, description="standard deviation of the initial weights of linear layers; narrow networks "
        "need about 0.02 · √(768 / width)",
    )  # fmt: skip
    # losses (§3.3)
    feature_weight: float = Field(default=1.0, ge=0, description="weight of L_c, alpha; 0: relations only, an ablation")
    relation_weight: RelationWeight = RelationWeight()
    whiten: bool = Field(default=True, description="normalize the teacher's features over their channels, LN0")
    class_token: bool = Field(default=True, description="whether the class token takes part in both losses")
    relation_distance: Distance = Field(
        default="smooth_l1", description="smooth_l1 of relations, or kl of their softmax, as in MiniLM"
    )
    relations: tuple[Kind, ...] = Field(
        default=("qk",), min_length=1, description="which relations: qk, of queries to keys; vv, of values to values"
    )
    relation_layers: tuple[Positive, ...] | None = Field(
        default=None,
        description="blocks of the relation teacher whose relations are compared, J, from 1; default: the last but "
        "one. In a student of another depth, the blocks of the same relative depth are meant",
    )
    relation_heads: Positive | None = Field(
        default=None, description="number of relation heads, A_r, a divisor of both widths; default: that of the "
        "relation teacher",
    )  # fmt: skip
    relation_scale: bool = Field(default=True, description="divide relations by the root of their number of channels")
    # tokens that are dropped (§3.4)
    mask: Literal["redundant", "random", "none"] = Field(
        default="redundant",
        description="which patches the student does not see: those most like the others, random ones, or none",
    )
    keep: float = Field(default=0.7, gt=0, le=1, description="share of the patches that survive each stage, ρ")
    drop_blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None, description="the student's blocks, from 0, before which patches are dropped; default: at 0, 1/3 "
        "and 2/3 of its depth",
    )  # fmt: skip
    drop_schedule: Schedule = Field(
        default="progressive",
        description="upfront: all patches that would be dropped are dropped before the first block",
    )
    score_from: Literal["feature_teacher", "relation_teacher"] = Field(
        default="feature_teacher", description="the teacher by whose tokens redundancy is judged"
    )
    # training (§3.5)
    crop: tuple[Share, Share] = Field(
        default=(0.2, 1.0), description="share of the picture's area in a random resized crop; [1, 1]: no crop"
    )
    flip: bool = Field(default=True, description="mirror half of the pictures left and right")
    epochs: Positive = Field(default=300, description="number of parts into which schedules divide every stage")
    warmup_epochs: int = Field(default=10, ge=0, description="parts in which the learning rate rises linearly")
    final_lr: float = Field(default=0.0, ge=0, description="learning rate at the end of its cosine schedule")
    finetune_rounds: int = Field(
        default=0, ge=0, description="last rounds, in which the student is trained with labels and a linear classifier"
    )
    finetune_training: Changes = Field(default={}, description=_CHANGED)
    pooling: Literal["patches", "class"] = Field(
        default="patches", description="the student's features: the mean of its patch tokens, or its class token"
    )

    @property
    def layers(self) -> tuple[int, ...]:
        """J, blocks of the relation teacher, from 1."""
        return self.relation_layers or (max(1, self.relation_teacher.depth - 1),)

    @property
    def compared(self) -> tuple[tuple[int, int], ...]:
        """Pairs of blocks whose relations are compared, of the student and of the relation teacher, from 0."""
        ours, theirs = self.student.depth, self.relation_teacher.depth
        return tuple((max(1, round(layer * ours / theirs)) - 1, layer - 1) for layer in self.layers)

    @property
    def heads(self) -> int:
        """A_r."""
        return self.relation_heads or self.relation_teacher.heads

    @property
    def beta(self) -> float:
        """Weight of L_m."""
        return float(getattr(self.relation_weight, self.relation_distance))

    @property
    def drops_before(self) -> tuple[int, ...]:
        """The student's blocks before which patches are dropped, from 0."""
        if self.mask == "none":
            return ()
        if self.drop_blocks is not None:
            return self.drop_blocks
        depth = self.student.depth
        return tuple(dict.fromkeys((0, depth // 3, 2 * depth // 3)))

    def counts(self, patches: int) -> list[int]:
        """The number of patches that survive each stage."""
        return surviving(patches, self.keep, len(self.drops_before))

    def scored(self, block: int) -> int:
        """The block of the judging teacher, from 0, whose entering tokens are judged before a block of the student."""
        depth: int = getattr(self, self.score_from).depth
        return round(block * depth / self.student.depth)

    @property
    def stages(self) -> Stages:
        """The rounds of the teachers, of the distillation and of fine-tuning."""
        mim, features = self.relation_teacher, self.feature_teacher
        return Stages(
            Stage("relations", mim.rounds, mim.training, "method.relation_teacher.rounds"),
            Stage("features", features.rounds, features.training, "method.feature_teacher.rounds"),
            Stage("distill"),
            Stage("finetune", self.finetune_rounds, self.finetune_training, "method.finetune_rounds"),
        )


def check(s: HybridSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used."""
    s.stages.check(config.federation.rounds)
    for error in (*_wrong_layers(s), *_missing_teachers(s, config)):
        raise error
    for key, changes in (
        ("relation_teacher.training", s.relation_teacher.training),
        ("feature_teacher.training", s.feature_teacher.training),
        ("finetune_training", s.finetune_training),
    ):
        parse(TrainingConfig, {**config.training.model_dump(), **changes}, f"method.{key}")
    if not s.feature_weight and not s.beta:
        key = f"method.relation_weight.{s.relation_distance}"
        raise ConfigError(key, 0, "a loss: method.feature_weight is 0 as well")
    warnings = {
        f"training.optimizer = {config.training.optimizer!r}: the paper's is adamw": config.training.optimizer
        != "adamw",
        "method.mask = random: patches are dropped whatever they show, an ablation": s.mask == "random",
    }
    return [text for text, holds in warnings.items() if holds]


def _wrong_layers(s: HybridSettings) -> Iterator[ConfigError]:
    depth, blocks = s.relation_teacher.depth, s.drops_before
    if max(s.layers) > depth:
        yield ConfigError(
            "method.relation_layers", s.layers, f"blocks from 1 to {depth}, those of the relation teacher"
        )
    if blocks and (max(blocks) >= s.student.depth or list(blocks) != sorted(set(blocks))):
        expected = f"different blocks from 0 to {s.student.depth - 1} in rising order"
        yield ConfigError("method.drop_blocks", blocks, expected)
    for role, width in (("student", s.student.width), ("relation_teacher", s.relation_teacher.width)):
        if width % s.heads:
            expected = f"a divisor of both widths; method.{role}.width is {width}"
            yield ConfigError("method.relation_heads", s.heads, expected)
    if s.projector == "identity" and s.student.width != s.feature_teacher.width:
        expected = f"linear: the widths are {s.student.width} and {s.feature_teacher.width}"
        yield ConfigError("method.projector", s.projector, expected)
    if not 0 < s.crop[0] <= s.crop[1]:
        yield ConfigError("method.crop", s.crop, "two shares above 0, the smaller first")


def _missing_teachers(s: HybridSettings, config: Any) -> Iterator[ConfigError]:
    for role, teacher in (("feature_teacher", s.feature_teacher), ("relation_teacher", s.relation_teacher)):
        if not (teacher.trained or teacher.pretrained or role in config.init):
            fix = f"set method.{role}.steps, method.{role}.rounds, method.{role}.pretrained or init.{role}"
            yield ConfigError(f"method.{role}", "untrained", "a teacher that is trained or loaded", fix)


def check_images(s: HybridSettings, task: Task) -> tuple[int, int, int]:
    """The shape (C, H, W) of the images.

    Raises:
        DataError: no images, or no classes where a network learns them.
        ConfigError: their size is no multiple of a patch, or statistics of another number of channels.
    """
    if "image" not in task.columns or len(task.columns["image"][1]) != 3:
        raise DataError("data.source", list(task.columns), "images in a column 'image'", "use another source")
    channels, height, width = task.columns["image"][1]
    if height % s.patch or width % s.patch:
        fix = "change it, or the size of the images (for most sources data.source.size)"
        raise ConfigError("method.patch", s.patch, f"a divisor of the images' {height} × {width} pixels", fix)
    for role in ("feature_teacher", "relation_teacher"):
        for key in ("mean", "std"):
            given = getattr(getattr(s, role), key)
            if given is not None and len(given) not in (1, channels):
                raise ConfigError(f"method.{role}.{key}", given, f"1 or {channels} numbers, one for each channel")
    for key, learns in (
        ("feature_teacher.steps", s.feature_teacher.steps),
        ("feature_teacher.rounds", s.feature_teacher.rounds),
        ("finetune_rounds", s.finetune_rounds),
    ):
        if learns and task.num_classes < 2:
            raise DataError("data.source", "no labels", f"classes to learn, for method.{key}", f"set method.{key} to 0")
    return int(channels), int(height), int(width)
