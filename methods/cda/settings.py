"""Settings of CDA."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fedlab.config import ComponentField, Fraction, Positive, Section, UnfitValue
from fedlab.config.sections import HubPath
from fedlab.distill.mixing import Mixing
from fedlab.errors import ConfigError, ConfigErrors, InputError
from fedlab.methods.cda.curriculum import Curriculum
from fedlab.models import check_model


class Squeeze(Section):
    """The federated training of the teacher."""

    rounds: int = Field(
        default=10, ge=0, description="number of rounds in which the teacher is trained; 0 needs `pretrained`"
    )
    variance: Literal["mixture", "average"] = Field(
        default="mixture",
        description="how running variances are averaged: mixture: the variance of the clients' mixed data; "
        "average: the mean of the clients' variances, which is too small",
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="learning rate schedule over these rounds, which starts at training.lr"
    )
    warmup_rounds: int = Field(
        default=0, ge=0, description="rounds in which the learning rate rises linearly from 1 % of training.lr"
    )
    crop: Fraction = Field(
        default=1.0, description="smallest share of the area that a random resized crop keeps; 1: no crop"
    )
    flip: bool = Field(default=True, description="mirror half of the images; not suitable for digits")
    shift: int = Field(default=0, ge=0, description="largest random shift in pixels; edge pixels are repeated")

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Squeeze:
        if self.warmup_rounds > self.rounds:
            raise UnfitValue("warmup_rounds", self.warmup_rounds, f"at most rounds = {self.rounds}")
        return self


class Recover(Section):
    """The synthesis of images from a frozen teacher."""

    form: Literal["client", "server"] = Field(
        default="client",
        description="client: each client recovers images of its classes from its own teacher; server: the server "
        "recovers all images",
    )
    images: Literal["synthetic", "real"] = Field(
        default="synthetic",
        description="real: clients send random images of their own instead, for comparison (this leaks data)",
    )
    ipc: Positive = Field(default=10, description="images per class")
    iterations: int = Field(
        default=1000, ge=0, description="number of iterations, T; 0 leaves the images Gaussian noise"
    )
    lr: float = Field(
        default=0.1, gt=0, description="learning rate η of Adam on the pixels, decaying to 0 along a cosine"
    )
    r_bn: float = Field(default=0.05, ge=0, description="weight of the loss on the BatchNorm statistics")
    first_bn: float = Field(
        default=10.0, ge=0, description="weight of the first BatchNorm layer relative to the others"
    )
    curriculum: Curriculum = Field(
        default="cosine", description="schedule by which the crops become smaller; constant is SRe²L"
    )
    milestone: float = Field(
        default=1.0, ge=0, le=1, description="share of the iterations in which the curriculum runs; 0 is SRe²L"
    )
    smallest: Fraction = Field(default=0.08, description="smallest share of the area that a crop keeps")
    jitter: int = Field(default=0, ge=0, description="largest circular shift of the images in pixels, J")
    flip: bool = Field(default=True, description="mirror every second view; not suitable for digits")
    chunk: Positive = Field(
        default=100, description="number of images that are optimized together, of as many classes as possible"
    )
    local_epochs: int = Field(
        default=1, ge=0, description="with form client: epochs in which a client fine-tunes the received teacher"
    )
    local_lr: float = Field(default=0.005, gt=0, description="with form client: learning rate of these epochs")
    local_statistics: bool = Field(
        default=True, description="with form client: use the BatchNorm statistics of the client's own samples"
    )


class Post(Section):
    """The training of students on the synthetic images."""

    labels: Literal["global", "ensemble", "hard"] = Field(
        default="global",
        description="global: soft labels of the global teacher; ensemble: soft labels of the clients' teachers, "
        "weighted by their class counts; hard: the classes",
    )
    relabel: Literal["online", "stored"] = Field(
        default="online",
        description="online: compute the teacher's outputs for every view; stored: store views and fp16 logits "
        "first and replay them (FKD)",
    )
    students: dict[str, ComponentField] = Field(
        default_factory=dict,
        description="name → model of a student; the metrics of the first student have no prefix; default: one "
        "student, the run's model",
    )
    repeats: Positive = Field(
        default=1, description="number of students of each architecture; metrics are means over them"
    )
    epochs: Positive = Field(default=300, description="epochs over the synthetic images")
    batch_size: Positive = 128
    accumulation: Positive = Field(
        default=1,
        description="number of parts into which a batch is split for batch normalization and mixing; gradients "
        "are accumulated over them",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(
        default=0.001, gt=0, description="learning rate, which decays to 0 along a cosine and changes every epoch"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd")
    weight_decay: float = Field(default=0.01, ge=0)
    decay: Literal["weights", "all"] = Field(
        default="weights",
        description="which parameters have weight decay: weights: those of more than one dimension; all: all of them",
    )
    warmup_epochs: int = Field(
        default=0, ge=0, description="epochs in which the learning rate rises linearly from 1 % of lr"
    )
    temperature: float = Field(default=20.0, gt=0, description="temperature of the soft labels, τ")
    squared: bool = Field(default=False, description="multiply the loss by τ²")
    mixing: Mixing = "cutmix"
    crop: Fraction = Field(
        default=0.08, description="smallest share of the area that a random resized crop keeps; 1: no crop"
    )
    flip: bool = Field(default=True, description="mirror half of the images; not suitable for digits")
    shift: int = Field(default=0, ge=0, description="largest random shift in pixels; edge pixels are repeated")

    @model_validator(mode="after")
    def _consistent(self) -> Post:
        if self.warmup_epochs > self.epochs:
            raise UnfitValue("warmup_epochs", self.warmup_epochs, f"at most epochs = {self.epochs}")
        if self.labels == "hard" and self.relabel == "stored":
            raise UnfitValue("labels", self.labels, "soft where relabel is stored: there are no logits to store")
        return self


class CDASettings(Section):
    """Settings of CDA, by stage."""

    pretrained: HubPath | None = Field(
        default=None, description="weights of the teacher: a hub name or a folder; they must fit `model`"
    )
    squeeze: Squeeze = Squeeze()
    recover: Recover = Recover()
    post: Post = Post()


def check(s: CDASettings, config: Any) -> list[str]:
    """Warnings about a configuration.

    Raises:
        ConfigError: there are too few rounds for the stages, or a setting is incompatible with them.
    """
    _check_stages(s, config)
    _check_exchange(s, config)
    _check_students(s)
    recover, fraction = s.recover, config.federation.sampler.settings.get("fraction", 1.0)
    warnings = {
        "method.recover.images = real sends private images": recover.images == "real",
        "method.recover.milestone = 0 crops as SRe²L does, for every curriculum": (
            recover.milestone == 0 and recover.curriculum != "constant"
        ),
        "method.recover.r_bn = 0 leaves only the cross-entropy, which is small for any image with the right logits": (
            recover.r_bn == 0
        ),
        "method.post.labels = hard loses most of what the images carry": s.post.labels == "hard",
        "method.post.temperature = 1 hardly softens the labels; the paper's is 20": s.post.temperature == 1,
        f"federation.sampler.fraction = {fraction}: only clients drawn in the recovery round send images": (
            fraction < 1 and recover.form == "client"
        ),
        "training.schedule is not followed in the squeeze: see method.squeeze.schedule": (
            config.training.schedule != "constant" or config.training.warmup_steps > 0
        ),
        "method.squeeze.variance = average understates the variance of clients that differ": (
            s.squeeze.variance == "average" and s.squeeze.rounds > 0
        ),
    }
    return [text for text, holds in warnings.items() if holds]


def _check_stages(s: CDASettings, config: Any) -> None:
    rounds, needed = config.federation.rounds, s.squeeze.rounds + 2
    if rounds < needed:
        raise ConfigError(
            "federation.rounds",
            rounds,
            f"at least {needed}: {s.squeeze.rounds} to squeeze, one to recover, the rest to train students",
            "raise it, or lower method.squeeze.rounds",
        )
    if not s.squeeze.rounds and s.pretrained is None and "model" not in config.init:
        raise ConfigError(
            "method.squeeze.rounds", 0, "a trained teacher", "squeeze for some rounds, or set method.pretrained"
        )
    if config.federation.mode == "asynchronous":
        raise ConfigError(
            "federation.mode", "asynchronous", "synchronous: stages follow one another", "leave the mode out"
        )


def _check_exchange(s: CDASettings, config: Any) -> None:
    if config.exchange.local:
        raise ConfigError(
            "exchange.local",
            config.exchange.local,
            "nothing: images are recovered from a teacher whose every state was aggregated",
            "for statistics of a client's own, see method.recover.local_statistics",
        )
    for key in ("mean", "std"):
        if isinstance(getattr(config.data, key), dict):
            raise ConfigError(
                f"data.{key}",
                sorted(getattr(config.data, key)),
                "one tuple for all domains: images travel as pixels, and students see them all alike",
                "give one number per channel",
            )
    if s.recover.form == "server" and (s.recover.images == "real" or s.post.labels == "ensemble"):
        key = "recover.images" if s.recover.images == "real" else "post.labels"
        raise ConfigError(
            f"method.{key}",
            s.recover.images if key == "recover.images" else s.post.labels,
            "something the server has: with method.recover.form = server clients send nothing after the squeeze",
            "set method.recover.form: client",
        )


def _check_students(s: CDASettings) -> None:
    for name, component in s.post.students.items():
        try:
            check_model(component)
        except (ConfigError, ConfigErrors) as error:
            wrong = error.errors if isinstance(error, ConfigErrors) else [error]
            key = f"method.post.students.{name}"
            renamed: list[InputError] = [
                ConfigError(key + e.key.removeprefix("model"), e.value, e.expected, e.fix) for e in wrong
            ]
            raise ConfigErrors(renamed) from error
