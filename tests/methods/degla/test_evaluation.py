"""The distance between student and teacher on held-out captions."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedlab.assembly import make_method, make_task
from fedlab.config import Config, parse
from fedlab.data.files.captions import word_tokens
from fedlab.methods.degla.evaluation import teacher_distance
from fedlab.models.clip import as_clip, embed_images, embed_texts

TOWER = {"width": 16, "layers": 1, "heads": 2}
TOKENS = word_tokens(["a red blue green square circle left right of"])


@pytest.fixture
def networks() -> nn.ModuleDict:
    """A tiny student, and its copy as teacher."""
    method = {"name": "degla", "network": {"vision": TOWER, "text": TOWER, "projection": 8}}
    config = parse(Config, {"method": method, "data": {"source": "shapecap"}})
    columns = {"image": ("float32", (3, 16, 16)), "text": ("int64", (6,)), "negative/reshuffle": ("int64", (1, 6))}
    built = make_method(config.method).build(make_task(config, columns, (), 2, TOKENS.vocabulary))
    return nn.ModuleDict(built).eval()


def held_out(count: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def captions(*shape: int) -> Tensor:
        ids = torch.randint(2, 9, (*shape, 6), generator=draw)
        ids[..., -1] = 1
        return ids

    columns = {"image": torch.randn(count, 3, 16, 16, generator=draw), "text": captions(count)}
    return columns | {"negative/reshuffle": captions(count, 1), "negative/replace_noun": captions(count, 2)}


def test_it_is_the_loss_by_sample_whatever_the_batches(networks: nn.ModuleDict) -> None:
    ctx: Any = SimpleNamespace(networks=networks, autocast=contextlib.nullcontext)
    data = held_out(6)
    data["negative/replace_noun"][:2, 1] = 0  # only padding: no caption
    halves = [{name: values[part] for name, values in data.items()} for part in (slice(4), slice(4, 6))]
    assert teacher_distance(ctx, halves) == 0
    with torch.no_grad():
        for p in networks["student"].parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    student, teacher = (as_clip(networks[role]) for role in ("student", "teacher"))
    expected = 0.0
    with torch.no_grad():
        for row in range(6):
            false = torch.cat([data["negative/reshuffle"][row], data["negative/replace_noun"][row]])
            ids = torch.cat([data["text"][row : row + 1], false[false.any(1)]])
            image = data["image"][row : row + 1]
            expected += float((embed_texts(student, ids) - embed_texts(teacher, ids)).square().sum())
            expected += float((embed_images(student, image) - embed_images(teacher, image)).square().sum())
    assert expected > 0.1
    assert teacher_distance(ctx, halves) == pytest.approx(expected / 6, rel=1e-4)
    assert teacher_distance(ctx, [data]) == pytest.approx(expected / 6, rel=1e-4)
