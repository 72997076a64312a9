"""The frozen experts: pretrained transformers from files, and small ones that are trained on generated tiles (§3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.pretrain import train_on_server
from fedlab.data.generated.tiles import LEVELS, draw_tiles
from fedlab.errors import ConfigError
from fedlab.method import Asset, Batch, Task, WorkContext
from fedlab.methods.gpfm.settings import ExpertSettings, GPFMSettings, used
from fedlab.methods.gpfm.views import check_tiles, whole_tiles
from fedlab.models.pretrained import load_vision_tokens
from fedlab.models.vit import ViT

_TILES, _PATCH, _BATCH, _LR, _NOISE = 2000, 4, 64, 2e-3, 0.05  # of a generated expert


class Tokens(NamedTuple):
    """What an expert makes of n crops.

    Args:
        classes: class tokens (n, d).
        patches: patch tokens (n, N, d), row by row.
        grid: rows and columns of patches.
    """

    classes: Tensor
    patches: Tensor
    grid: tuple[int, int]


class Expert(nn.Module):
    """A transformer that returns class and patch tokens.

    Args:
        body: maps crops (n, C, H, W) to tokens (n, 1 + N, d), the class token first.
        patch: height and width of its patches.
        normalize: whether tokens are L2-normalized.
    """

    def __init__(self, body: nn.Module, patch: int, normalize: bool = False) -> None:
        super().__init__()
        self.body, self._patch, self._normalize = body, patch, normalize

    def forward(self, crops: Tensor) -> Tokens:
        """Crops (n, C, H, W), normalized as the student's → tokens."""
        tokens = self.body(crops)
        if self._normalize:
            tokens = F.normalize(tokens, dim=-1)
        return Tokens(tokens[:, 0], tokens[:, 1:], (crops.shape[2] // self._patch, crops.shape[3] // self._patch))


def builders(s: GPFMSettings, task: Task) -> Mapping[str, Asset]:
    """For each expert that is used, the function that builds it."""
    return {
        name: partial(_generated if expert.kind == "generated" else _pretrained, s, task, name, expert)
        for name, expert in used(s).items()
    }


def _pretrained(s: GPFMSettings, task: Task, name: str, expert: ExpertSettings) -> nn.Module:
    key, path = f"data.assets.{name}", task.asset_paths.get(name)
    if path is None:
        fix = f"add {name}: PATH to data.assets, or on a node of a deployment to assets in its file"
        raise ConfigError(key, None, "the folder of a vision transformer as transformers saves it", fix)
    body = load_vision_tokens(path, key)
    if body.width != expert.dim:
        told = f"{path}: tokens of width {body.width}"
        raise ConfigError(key, told, f"method.experts.{name}.dim = {expert.dim}", "correct one of the two")
    if body.patch > s.views.size:
        told = f"{path}: patches of {body.patch} pixels"
        raise ConfigError(key, told, f"at most method.views.size = {s.views.size}", "use larger crops")
    return Expert(body, body.patch, expert.normalized)


def _generated(s: GPFMSettings, task: Task, name: str, expert: ExpertSettings) -> nn.Module:
    """A small ViT that has learned to tell the values of one factor apart, and has therefore no use for the other."""
    assert task.bench is not None
    if check_tiles(s, task) != 3 or s.views.size % _PATCH:
        told = f"crops of {s.views.size} pixels, and pictures of shape {task.columns['image'][1]}"
        expected = f"generated, for pictures of 3 channels and a method.views.size that is a multiple of {_PATCH}"
        raise ConfigError(f"method.experts.{name}.kind", told, expected, "use experts of kind: pretrained")
    ctx: WorkContext = task.bench(name)
    size = (s.views.size, s.views.size)
    body = ViT(size, patch=_PATCH, channels=3, width=expert.dim, depth=3, heads=4, init_std=0.08)
    network = ctx.place(nn.ModuleDict({"body": body, "head": nn.Linear(expert.dim, LEVELS)}))
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=ctx.generator("tiles"))))
    tiles = draw_tiles(np.arange(_TILES) % LEVELS, 1 + rng.normal(0, 0.2, (_TILES, 2)), _NOISE, rng)
    images = whole_tiles(s, torch.from_numpy(tiles.pixels))
    labels = torch.from_numpy(tiles.nuclei if expert.knows == "nuclei" else tiles.stroma)

    def loss(trained: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        tokens = trained.get_submodule("body")(batch["image"])
        return {"ce": F.cross_entropy(trained.get_submodule("head")(tokens[:, 0]), batch["label"])}

    train_on_server(
        ctx,
        network,
        {"image": ctx.place(images), "label": ctx.place(labels)},
        loss,
        name="gpfm expert",
        key={"knows": expert.knows, "size": s.views.size, "mean": s.views.mean, "std": s.views.std},
        steps=expert.steps,
        batch_size=_BATCH,
        lr=_LR,
    )
    return Expert(body, _PATCH, expert.normalized)
