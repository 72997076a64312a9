"""The frozen experts: pretrained transformers from files, and small ones that are trained on generated tiles (§3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.pretrain import train_on_server
from fedlab.data.generated.tiles import LEVELS, draw_tiles
from fedlab.errors import ConfigError
from fedlab.method import Asset, Batch, Task
from fedlab.methods.gpfm.settings import ExpertSettings, GPFMSettings, used
from fedlab.methods.gpfm.views import check_tiles, whole_tiles
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


class Pretrained(nn.Module):
    """A vision model of transformers as the body of an `Expert`; register tokens are left out.

    Positions are interpolated for crops of another size than that of the model's own training.

    Args:
        model: for example a ``ViTModel``, a ``Dinov2Model`` or a ``CLIPVisionModel``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Dinov2 interpolates anyway, and has no such argument
        asked = "interpolate_pos_encoding" in signature(model.forward).parameters
        self._further = {"interpolate_pos_encoding": True} if asked else {}

    def forward(self, crops: Tensor) -> Tensor:
        shaped: Any = self.model
        tokens: Tensor = self.model(pixel_values=crops, **self._further).last_hidden_state
        registers = getattr(shaped.config, "num_register_tokens", 0)
        return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1)


def builders(s: GPFMSettings, task: Task) -> Mapping[str, Asset]:
    """For each expert that is used, the function that builds it."""
    return {
        name: partial(_generated if expert.kind == "generated" else _pretrained, s, task, name, expert)
        for name, expert in used(s).items()
    }


def _pretrained(s: GPFMSettings, task: Task, name: str, expert: ExpertSettings) -> nn.Module:
    from transformers import AutoModel

    key, path = f"data.assets.{name}", task.asset_paths.get(name)
    if path is None:
        fix = f"add {name}: PATH to data.assets, or on a node of a deployment to assets in its file"
        raise ConfigError(key, None, "the folder of a vision transformer as transformers saves it", fix)
    found: Any
    try:
        found, loaded = AutoModel.from_pretrained(path, output_loading_info=True)
        if lacking := [part for part in loaded["missing_keys"] if "pooler." not in part]:
            raise ValueError(f"it has nothing for {len(lacking)} tensors, such as {lacking[0]!r}")
    except (OSError, ValueError, RuntimeError) as error:
        expected = "the folder of a vision transformer as transformers saves it, or a name on its hub"
        raise ConfigError(key, path, expected, str(error).splitlines()[0]) from error
    model: Any = getattr(found, "vision_model", found)
    config = model.config
    if getattr(config, "hidden_size", None) != expert.dim:
        told = f"{path}: tokens of width {getattr(config, 'hidden_size', 'unknown')}"
        raise ConfigError(key, told, f"method.experts.{name}.dim = {expert.dim}", "correct one of the two")
    if int(config.patch_size) > s.views.size:
        told = f"{path}: patches of {config.patch_size} pixels"
        raise ConfigError(key, told, f"at most method.views.size = {s.views.size}", "use larger crops")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # nothing uses it, and checkpoints without one would get random weights
    return Expert(Pretrained(model), int(config.patch_size), expert.normalized)


def _generated(s: GPFMSettings, task: Task, name: str, expert: ExpertSettings) -> nn.Module:
    """A small ViT that has learned to tell the values of one factor apart, and has therefore no use for the other."""
    assert task.bench is not None
    if check_tiles(s, task) != 3 or s.views.size % _PATCH:
        told = f"crops of {s.views.size} pixels, and pictures of shape {task.columns['image'][1]}"
        expected = f"generated, for pictures of 3 channels and a method.views.size that is a multiple of {_PATCH}"
        raise ConfigError(f"method.experts.{name}.kind", told, expected, "use experts of kind: pretrained")
    ctx, size = task.bench(name), (s.views.size, s.views.size)
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
