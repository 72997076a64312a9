"""Settings of FSFM and checks of a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedlab.blocks.stages import Stage, Stages
from fedlab.config import Positive, Section, TrainingConfig, parse
from fedlab.errors import ConfigError, DataError
from fedlab.method import Task
from fedlab.methods.fsfm.losses import Similarity
from fedlab.methods.fsfm.masks import Masking

Share = Annotated[float, Field(ge=0, le=1)]
PRETRAIN, FINETUNE, CHOOSE = "pretrain", "finetune", "choose"
"""Names of the stages."""


class FineTuning(Section):
    """Rounds in which the encoder learns to tell real faces from fakes (§3.6)."""

    rounds: int = Field(default=0, ge=0, description="number of rounds of fine-tuning, after those of pre-training")
    training: dict[str, Any] = Field(
        default={"lr": 6.25e-5},
        description="keys of the section training that are changed in these rounds; lr is the peak of a cosine",
    )
    train: Literal["all", "head"] = Field(
        default="all", description="all: encoder and head are trained; head: only the head, a linear probe"
    )
    head: Literal["linear", "bottleneck"] = Field(
        default="linear",
        description="linear: a linear layer, for deepfakes; bottleneck: a layer of `bottleneck` units with dropout and "
        "scaled features, and weights of length 1, for face anti-spoofing",
    )
    bottleneck: Positive = 512
    dropout: float = Field(default=0.5, ge=0, lt=1, description="dropout of the bottleneck")
    drop_path: float = Field(default=0.1, ge=0, lt=1, description="stochastic depth of the last block")
    layer_decay: float = Field(
        default=0.65, gt=0, le=1, description="factor of the learning rate from one block to the one below it"
    )
    warmup: Share = Field(default=0.5, description="share of the steps in which the learning rate rises linearly")
    final_lr: float = Field(default=1e-6, ge=0, description="learning rate at the end of the cosine")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="label smoothing")
    mix: bool = Field(
        default=True, description="each batch is mixed with itself, by Mixup (0.8) or CutMix (1.0) with equal chance"
    )
    flip: bool = Field(default=True, description="mirror faces left and right with probability 1/2")
    jitter: Share = Field(
        default=0.5, description="share of the faces whose brightness, contrast and saturation change by up to 0.4"
    )
    erase: Share = Field(default=0.25, description="share of the faces of which a rectangle is erased")
    balance: bool = Field(
        default=False, description="draw real faces and fakes equally often, however many there are of each"
    )
    choose: Literal["last", "validation"] = Field(
        default="last",
        description="last: the model of the last round counts. validation: a last round without training chooses the "
        "model with the lowest loss on the clients' validation samples (data.validation), and with it the threshold "
        "at which both error rates are equal there; hter is measured at that threshold",
    )


class FSFMSettings(Section):
    """Settings of FSFM; defaults are the paper's ViT-B/16 (§3.3, §3.5)."""

    # networks (§3.3)
    patch: Positive = 16
    width: Positive = Field(default=768, description="width of the encoder and of the representation decoder, D")
    depth: Positive = 12
    heads: Positive = 12
    rep_depth: Positive = Field(default=2, description="number of blocks of the representation decoder")
    rep_heads: Positive = 16
    pixel_width: Positive = 512
    pixel_depth: Positive = Field(default=8, description="number of blocks of the pixel decoder")
    pixel_heads: Positive = 16
    projector: tuple[Positive, ...] = Field(
        default=(4096, 256), min_length=1, description="widths of the projector's layers"
    )
    predictor: tuple[Positive, ...] = Field(
        default=(4096, 256), min_length=1, description="widths of the predictor's layers; the last is the projector's"
    )
    # masks (§3.2)
    masking: Masking = Field(
        default="crfr_p",
        description="crfr_p: one region is covered, all others are hidden in proportion; ablations: crfr_r, one region "
        "and random patches; frp, all regions in proportion; random, as a masked autoencoder",
    )
    mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="share of the patches that are hidden, r")
    region_draw: Literal["image", "batch"] = Field(
        default="image", description="whether each face has a region of its own covered, or all of a batch the same"
    )
    # losses (§3.4)
    norm_pix_loss: bool = Field(default=True, description="the pixels of each patch are standardized for the loss")
    region_weight: float = Field(default=0.007, ge=0, description="weight of L_fr")
    similarity_weight: float = Field(default=0.1, ge=0, description="weight of L_sim; 0: no target network is used")
    similarity: Similarity = Field(
        default="simsiam", description="form of L_sim; the paper's is simsiam, half the negative cosine"
    )
    temperature: float = Field(default=0.2, gt=0, description="temperature of the forms info_nce, moco and simclr")
    momentum: Share = Field(default=0.996, description="momentum m of the target at the start; it rises to 1")
    # pre-training (§3.1, §3.5); training.lr is the peak of the learning rate
    pretrain_on: Literal["real", "unlabeled"] = Field(
        default="real", description="real: all real faces with a region map; unlabeled: only those without a label"
    )
    flip: bool = Field(default=False, description="mirror faces together with their maps; the paper changes nothing")
    crop: Share = Field(
        default=1.0, gt=0, description="smallest share of the area in a random crop of face and map; 1: no crop"
    )
    warmup: Share = Field(default=0.1, description="share of the steps in which the learning rate rises linearly")
    statistics: Literal["global", "fixed"] = Field(
        default="global",
        description="by which mean and deviation pictures are normalized. global: of all clients' real faces, from one "
        "query before round 1; fixed: `mean` and `std`, or those of the network that init.normalizer names",
    )
    mean: tuple[float, ...] = Field(default=(0.5,), description="of each channel, where statistics are fixed")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.5,), description="likewise")
    # federation (§6)
    teacher_sync: Literal["average", "local", "reset"] = Field(
        default="average",
        description="what becomes of the target between rounds. average: it is averaged like the online network; "
        "local: each client keeps its own; reset: it starts from the online network",
    )
    finetune: FineTuning = FineTuning()

    @property
    def stages(self) -> Stages:
        """Pre-training, fine-tuning and, if asked for, the round in which a model is chosen."""
        tuning = self.finetune
        return Stages(
            Stage(PRETRAIN),
            Stage(FINETUNE, tuning.rounds, tuning.training, "method.finetune.rounds"),
            Stage(CHOOSE, self.choosing, key="the round that method.finetune.choose: validation needs"),
        )

    @property
    def tail(self) -> int:
        """Number of rounds after those of pre-training."""
        return self.finetune.rounds + self.choosing

    @property
    def choosing(self) -> int:
        """Number of rounds in which the best model is chosen, 0 or 1."""
        return int(self.finetune.rounds > 0 and self.finetune.choose == "validation")

    def hidden(self, patches: int) -> int:
        """T, the number of hidden patches of N."""
        return round(self.mask_ratio * patches)


def check_faces(s: FSFMSettings, task: Task) -> tuple[int, tuple[int, int]]:
    """Number of channels, and height and width of the pictures.

    Raises:
        DataError: no pictures.
        ConfigError: sizes that do not divide into patches, or a share of hidden patches that is no whole number.
    """
    shape = task.columns["image"][1] if "image" in task.columns else ()
    if len(shape) != 3:
        raise DataError("data.source", list(task.columns), "pictures in a column 'image'", "use faces or faces_folder")
    channels, height, width = shape
    if height % s.patch or width % s.patch:
        fix = "change data.source.size or method.patch"
        raise ConfigError("method.patch", s.patch, f"a divisor of the pictures' sides, {height} and {width}", fix)
    patches = (height // s.patch) * (width // s.patch)
    if abs(s.mask_ratio * patches - s.hidden(patches)) > 1e-6 or not 0 < s.hidden(patches) < patches:
        expected = f"a share of the {patches} patches that is a whole number of them"
        raise ConfigError("method.mask_ratio", s.mask_ratio, expected, "such as 0.75 where 4 divides the patches")
    for key, values in (("mean", s.mean), ("std", s.std)):
        if len(values) not in (1, channels):
            raise ConfigError(f"method.{key}", values, f"1 or {channels} numbers, one for each channel")
    return channels, (height, width)


def check_columns(s: FSFMSettings, columns: Any, pretrains: bool) -> None:
    """Refuse data that lacks what a stage needs.

    Args:
        s: settings.
        columns: names of the clients' columns.
        pretrains: whether there are rounds of pre-training.

    Raises:
        DataError: no region maps, or no labels.
    """
    if pretrains and "regions" not in columns:
        fix = "set data.source.regions of the source faces_folder, or leave out pre-training (see the README)"
        raise DataError("data.source", sorted(columns), "region maps in a column 'regions'", fix)
    if s.finetune.rounds and "label" not in columns:
        fix = "add real faces and fakes, or set method.finetune.rounds to 0"
        raise DataError("data.source", sorted(columns), "labels to fine-tune on", fix)


def check(s: FSFMSettings, config: Any) -> list[str]:
    """Refuse settings that cannot work, and warn about those that probably should not be used.

    Raises:
        ConfigError: as said.
    """
    s.stages.check(config.federation.rounds)
    for key, width, heads in (
        ("heads", s.width, s.heads),
        ("rep_heads", s.width, s.rep_heads),
        ("pixel_heads", s.pixel_width, s.pixel_heads),
    ):
        if width % heads or width % 4:
            raise ConfigError(f"method.{key}", heads, f"a divisor of the width {width}, which 4 divides")
    if s.predictor[-1] != s.projector[-1]:
        expected = f"a last width of {s.projector[-1]}, that of method.projector"
        raise ConfigError("method.predictor", s.predictor, expected)
    if (config.data.mean, config.data.std) != ((0.0,), (1.0,)):
        fix = "set data.mean: [0.0] and data.std: [1.0]; FSFM normalizes pictures itself, by method.statistics"
        raise ConfigError("data.mean and data.std", (config.data.mean, config.data.std), "pictures in [0, 1]", fix)
    if s.choosing and config.data.validation is None:
        fix = "set data.validation: {share: 0.2, by: group}, or method.finetune.choose: last"
        raise ConfigError("method.finetune.choose", "validation", "validation samples on the clients", fix)
    parse(TrainingConfig, {**config.training.model_dump(), **s.finetune.training}, "method.finetune.training")
    training, pretrains = config.training, config.federation.rounds > s.tail
    by_sample = config.data.validation is not None and config.data.validation.by == "sample"
    warnings = {
        f"training.optimizer = {training.optimizer!r}: the paper's is adamw": training.optimizer != "adamw",
        "training.clip_norm is not set: the paper clips the gradient to 1.0": pretrains and training.clip_norm is None,
        "data.validation.by = sample puts pictures of one video on both sides; set it to group": by_sample,
    }
    return [text for text, holds in warnings.items() if holds]
