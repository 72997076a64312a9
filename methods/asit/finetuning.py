"""The last stage: backbone and a linear classifier trained with labels (§3.6, after AST's recipe)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.labels import targets_of
from fedlab.errors import ConfigError, DataError
from fedlab.method import Batch, Step, Task, network
from fedlab.methods.asit import views
from fedlab.methods.asit.networks import Tagger, Teacher
from fedlab.methods.asit.settings import ASiTSettings


def check_labels(s: ASiTSettings, task: Task) -> None:
    """Refuse data whose labels the classifier cannot learn.

    Raises:
        DataError: the clients' clips have no labels.
        ConfigError: a loss for one label where clips have several.
    """
    if not {"label", "tags"} & task.columns.keys():
        fix = "label every clip of train and test, or set method.finetune_rounds to 0"
        raise DataError("data.source", "no labels", "labeled clips to fine-tune on", fix)
    if s.finetune_loss == "ce" and "tags" in task.columns:
        raise ConfigError("method.finetune_loss", "ce", "bce or auto where clips may have several labels")


def take_over(networks: nn.ModuleDict, s: ASiTSettings) -> None:
    """Copy the pre-trained backbone into the tagger."""
    pretrained = network(networks, s.finetune_from, Teacher)
    network(networks, "tagger", Tagger).backbone.load_state_dict(pretrained.backbone.state_dict())


def schedule(s: ASiTSettings, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
    """The learning rate, lowered by a factor every few rounds; a round counts as an epoch."""
    done = int(step.plan["stage_round"]) - 1
    steps = 0 if done < s.finetune_decay_from else 1 + (done - s.finetune_decay_from) // s.finetune_decay_every
    return {"lr": group["lr"] * s.finetune_decay**steps}


def loss(s: ASiTSettings, networks: nn.ModuleDict, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy if clips have one label, binary cross-entropy if they have several, on mixed and masked clips."""
    x = networks["normalizer"](batch["fbank"]) * batch["keep"]
    logits = networks["tagger"](x).float()
    y = targets_of(batch, logits.shape[1])
    mixed = batch["share"] * y + (1 - batch["share"]) * y[batch["partner"]]
    if s.finetune_loss == "ce" or (s.finetune_loss == "auto" and "tags" not in batch):
        return {"ce": F.cross_entropy(logits, mixed)}
    return {"bce": F.binary_cross_entropy_with_logits(logits, mixed)}


def predict(s: ASiTSettings, networks: nn.ModuleDict, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits (n, K), the mean over `windows` evenly spaced parts of a clip."""
    parts = views.fixed_windows(s, batch, s.finetune_window, s.windows)
    return torch.stack([networks["tagger"](networks["normalizer"](part)).float() for part in parts]).mean(0)
