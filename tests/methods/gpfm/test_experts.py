"""Experts: from files of transformers, and trained on generated tiles; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedlab.assembly import make_assets, make_task
from fedlab.config import Config, parse
from fedlab.errors import ConfigError
from fedlab.experiment.checks import resolve
from fedlab.method.assets import Assets
from fedlab.methods.gpfm.experts import Tokens, builders
from fedlab.storage.hashing import state_hash
from tests.methods.gpfm.conftest import SMALL

COLUMNS = {"image": ("float32", (3, 24, 24)), "label": ("int64", ())}


def assets(folder: Path, paths: dict[str, str] | None = None, **settings: Any) -> Assets:
    """The experts of the small run, with other settings."""
    config = parse(Config, {**SMALL, "method": {**SMALL["method"], **settings}})
    components = resolve(config).components
    task = make_task(config, COLUMNS, ("a", "b"), 2, asset_paths=paths or {})
    return make_assets(components, task, torch.device("cpu"), folder)


def saved(folder: Path, kind: str) -> str:
    """A small vision transformer as transformers saves it."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ViTConfig,
        ViTModel,
    )

    common = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    made: nn.Module
    if kind == "vit":
        made = ViTModel(ViTConfig(**common, image_size=24, patch_size=8), add_pooling_layer=False)
    elif kind == "clip":
        made = CLIPVisionModel(CLIPVisionConfig(**common, image_size=24, patch_size=8))
    else:
        made = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**common, image_size=24, patch_size=6, num_register_tokens=3)
        )
    made.save_pretrained(folder / kind)  # type: ignore[operator]  # a method of all models of transformers
    return str(folder / kind)


@pytest.mark.parametrize(("kind", "grid"), [("vit", (3, 3)), ("clip", (3, 3)), ("registers", (4, 4))])
def test_an_expert_from_a_file_returns_class_and_patch_tokens(tmp_path: Path, kind: str, grid: tuple[int, int]) -> None:
    experts = {"uni": {"dim": 8}, "conch": {"dim": 8, "normalized": True}}
    path = saved(tmp_path, kind)
    held = assets(tmp_path, {"uni": path, "conch": path}, experts=experts)
    crops = torch.rand(2, 3, 24, 24)
    found: Tokens = held.network("uni")(crops)
    assert found.classes.shape == (2, 8)
    assert found.patches.shape == (2, grid[0] * grid[1], 8)
    assert found.grid == grid
    unit = held.network("conch")(crops)
    assert torch.allclose(unit.patches.norm(dim=-1), torch.ones(2, grid[0] * grid[1]), atol=1e-5)
    assert torch.allclose(unit.classes, nn.functional.normalize(found.classes, dim=-1), atol=1e-5)
    assert len(set(held.hashes(["uni", "conch"]).values())) == 1, "no weight is drawn at random"


def test_what_cannot_be_an_expert_is_refused(tmp_path: Path) -> None:
    experts = {"uni": {"dim": 9}}
    with pytest.raises(ConfigError, match=r"data.assets.uni[\s\S]*add uni: PATH to data.assets"):
        assets(tmp_path, experts=experts).network("uni")
    with pytest.raises(ConfigError, match=r"tokens of width 8[\s\S]*method.experts.uni.dim = 9"):
        assets(tmp_path, {"uni": saved(tmp_path, "vit")}, experts=experts).network("uni")
    views = {"size": 4, "local": 0, "mean": [0.6], "std": [0.2]}
    with pytest.raises(ConfigError, match=r"patches of 8 pixels[\s\S]*at most method.views.size = 4"):
        assets(tmp_path, {"uni": saved(tmp_path, "vit")}, experts={"uni": {"dim": 8}}, views=views).network("uni")
    with pytest.raises(ConfigError, match="as transformers saves it"):
        assets(tmp_path, {"uni": str(tmp_path / "nothing")}, experts=experts).network("uni")


@pytest.mark.parametrize(("kind", "grid"), [("vit", (6, 6)), ("clip", (6, 6)), ("registers", (8, 8))])
def test_experts_interpolate_their_positions_for_crops_of_another_size(
    tmp_path: Path, kind: str, grid: tuple[int, int]
) -> None:
    held = assets(tmp_path, {"uni": saved(tmp_path, kind)}, experts={"uni": {"dim": 8}})
    found: Tokens = held.network("uni")(torch.rand(2, 3, 48, 48))
    assert found.grid == grid
    assert found.patches.shape == (2, grid[0] * grid[1], 8)


def test_a_file_that_fills_nothing_is_refused(tmp_path: Path) -> None:
    """The official code loads such a file without a word."""
    import safetensors.torch

    file = Path(saved(tmp_path, "vit")) / "model.safetensors"
    state = {f"teacher.{name}": value for name, value in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(state, file, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"it has nothing for \d+ tensors"):
        assets(tmp_path, {"uni": str(file.parent)}, experts={"uni": {"dim": 8}}).network("uni")


def test_a_generated_expert_is_trained_once_and_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = assets(tmp_path)
    first = state_hash(held.network("nuclei"))
    assert first != state_hash(held.network("stroma"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    other = {**SMALL["method"]["views"], "mean": [0.5]}
    assert state_hash(assets(tmp_path, views=other).network("nuclei")) != first, "its tiles are normalized otherwise"
    monkeypatch.setattr("fedlab.blocks.pretrain._factor", lambda *arguments: pytest.fail("it was trained again"))
    assert state_hash(assets(tmp_path).network("nuclei")) == first
    classes, patches, grid = held.network("stroma")(torch.rand(2, 3, 24, 24))
    assert (classes.shape, patches.shape, grid) == ((2, 12), (2, 36, 12), (6, 6))


@pytest.mark.parametrize(("size", "channels"), [(26, 3), (24, 1)])
def test_a_generated_expert_is_for_pictures_like_its_tiles(tmp_path: Path, size: int, channels: int) -> None:
    views = {"size": size, "local": 0, "mean": [0.6], "std": [0.2]}
    config = parse(Config, {**SMALL, "method": {**SMALL["method"], "patch": 2, "views": views}})
    task = make_task(config, {**COLUMNS, "image": ("float32", (channels, 24, 24))}, ("a", "b"), 2)
    held = make_assets(resolve(config).components, task, torch.device("cpu"), tmp_path)
    with pytest.raises(ConfigError, match=r"method.experts.nuclei.kind[\s\S]*kind: pretrained"):
        held.network("nuclei")


def test_an_expert_whose_loss_is_off_is_not_built(tmp_path: Path, lab: Callable[..., Any]) -> None:
    settings = lab(
        experts={"nuclei": {"dim": 8}, "stroma": {"dim": 8, "cls_weight": 0, "patch_weight": 0}}
    ).method.settings
    config = parse(Config, SMALL)
    task = replace(make_task(config, COLUMNS, ("a", "b"), 2), bench=None)
    assert set(builders(settings, task)) == {"nuclei"}
