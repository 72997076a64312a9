"""Settings of FedLGD."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from fedlab.config import Section
from fedlab.distill import dsa
from fedlab.distill.matching import GradientDistance
from fedlab.errors import ConfigError


class FedLGDSettings(Section):
    """Settings of FedLGD; defaults are the paper's for its DIGITS benchmark."""

    ipc_local: int = Field(default=50, ge=1, description="number of virtual images of a client per class")
    ipc_global: int = Field(default=10, ge=0, description="number of global virtual images per class; 0: none")
    warmup_steps: int = Field(default=10_000, ge=0, description="matching steps of a client before its first round")
    dm_steps: int = Field(
        default=100, ge=0, description="distribution-matching steps in each refresh of the virtual images"
    )
    gm_steps: int = Field(default=500, ge=0, description="gradient-matching steps in each server update")
    lr_img: float = Field(default=1.0, gt=0, description="learning rate of the pixels")
    img_momentum: float = Field(default=0.5, ge=0, lt=1, description="momentum of the pixels")
    real_batch: int = Field(
        default=256, ge=1, description="largest number of real images of a class in a matching step"
    )
    spacing: int = Field(default=5, ge=1, description="number of rounds from one selected round to the next, d")
    updates: int = Field(
        default=10,
        ge=0,
        description="number of updates; the selected rounds are 0, d, …, updates·d, and 0 selects none",
    )
    lambda_reg: float = Field(default=10.0, ge=0, description="weight λ of the regularizer")
    reg: Literal["contrastive", "mmd", "none"] = Field(default="contrastive", description="the regularizer")
    temperature: float = Field(default=0.07, gt=0, description="temperature of the contrastive loss")
    gm_distance: GradientDistance = Field(default="rowcos", description="distance between gradients")
    init: Literal["normal", "noise", "real"] = Field(
        default="normal",
        description="initial virtual images: normal: drawn from the class statistics; noise: N(0, 1); real: real "
        "images (this leaks data)",
    )
    legacy_init_stats: bool = Field(
        default=False, description="use the class statistics of the authors' code, which divides them wrongly"
    )
    missing_class: Literal["drop", "keep"] = Field(
        default="drop",
        description="classes of which a client has no image: drop: they are left out of D̃_i; keep: they are N(0, "
        "1) noise",
    )
    dsa_ops: tuple[dsa.Op, ...] = Field(
        default=("color", "crop", "cutout", "scale", "rotate"),
        description="augmentations of distribution matching; flip is not suitable for digits",
    )
    warmup_extractor: Literal["random", "server"] = Field(
        default="random", description="feature extractor ψ of the warm-up"
    )
    refresh_extractor: Literal["server", "random"] = Field(
        default="server", description="feature extractor ψ of a refresh"
    )
    train_on_global: bool = Field(
        default=True, description="true: train on D̃_i ∪ D̃_g, as in the authors' code; false: train on D̃_i alone"
    )
    gm_enabled: bool = Field(default=True, description="false: the global images D̃_g stay as they were initialized")
    diagnose: bool = Field(default=False, description="after the last round, train a model on D̃_g alone and test it")


def check(s: FedLGDSettings, config: Any) -> list[str]:
    """Warnings about a configuration.

    Raises:
        ConfigError: the update that the server matches would not be the average of the clients' gradients.
    """
    training, strategy = config.training, config.federation.strategy.name
    matches, last = s.gm_enabled and s.updates and s.ipc_global, s.updates * s.spacing
    if matches and strategy == "scaffold" and config.federation.sampler.settings.get("fraction", 1.0) < 1:
        raise ConfigError(
            "federation.strategy.name",
            strategy,
            "every client in every round: only then do control variates cancel in the update that the server matches",
            "set federation.sampler.fraction: 1, choose another strategy, or set method.gm_enabled: false",
        )
    server_optimizers = ("fedavgm", "fedadagrad", "fedadam", "fedyogi", "feddyn")
    warnings = {
        f"method.updates · spacing = {last} exceeds {config.federation.rounds} rounds": last > config.federation.rounds,
        "method.init = real starts from private images: virtual images then leak them": s.init == "real",
        "training.weight_decay adds θ to the gradient that the server matches": matches and training.weight_decay,
        f"training.optimizer = {training.optimizer}: the update the server matches is then no sum of gradients": (
            matches and training.optimizer != "sgd"
        ),
        f"federation.strategy = {strategy} changes the update after averaging; the server matches that change too": (
            matches and strategy in server_optimizers
        ),
        "method.diagnose needs global images: method.ipc_global is 0": s.diagnose and not s.ipc_global,
        "model.norm = batch does nothing in random extractors, which have no statistics; the paper's is instance": (
            config.model.settings.get("norm") == "batch"
        ),
    }
    return [text for text, holds in warnings.items() if holds]
