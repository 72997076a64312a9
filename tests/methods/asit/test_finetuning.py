"""The configurations for fine-tuning ASiT: AST's recipes, built at full size without memory."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fedlab.assembly import make_method
from fedlab.config import load_config
from fedlab.experiment.start import method_folder
from fedlab.methods.asit import finetuning, views
from fedlab.methods.asit.settings import ASiTSettings

FOLDER = method_folder("asit", "method")


RECIPES: dict[str, tuple[int, dict[int, float]]] = {
    "finetune_esc50.yaml": (48, {0: 1e-4, 4: 1e-4, 5: 0.85e-4, 24: 0.85**20 * 1e-4}),
    "finetune_audioset20k.yaml": (12, {0: 5e-5, 9: 5e-5, 10: 2.5e-5, 15: 1.25e-5, 24: 0.625e-5}),
    "finetune_audioset2m.yaml": (12, {0: 1e-5, 1: 1e-5, 2: 0.5e-5, 3: 0.25e-5, 4: 0.125e-5}),
    "finetune_speechcommands2.yaml": (128, {0: 2.5e-4, 4: 2.5e-4, 5: 2.125e-4, 29: 0.85**25 * 2.5e-4}),
}
"""Batch size, and epoch (from 0) → rate as AST's MultiStepLR gives it."""


@pytest.mark.parametrize(
    ("file", "seconds", "classes", "label", "tokens"),
    [
        ("finetune_esc50.yaml", 5.0, 50, "label", 31 * 8),
        ("finetune_audioset20k.yaml", 10.0, 527, "tags", 62 * 8),
        ("finetune_audioset2m.yaml", 10.0, 527, "tags", 62 * 8),
        ("finetune_speechcommands2.yaml", 1.0, 35, "label", 6 * 8),
    ],
)
def test_taggers_of_the_fine_tuning_configurations_are_built_for_their_clips(
    paper_networks: Callable[..., nn.ModuleDict], file: str, seconds: float, classes: int, label: str, tokens: int
) -> None:
    samples = round(32_000 * seconds)
    columns = {"audio": ("float32", (samples,)), label: ("int64", (classes,) if label == "tags" else ())}
    nets: Any = paper_networks("asit", columns, [str(c) for c in range(classes)], file=file)
    s = ASiTSettings(**load_config(FOLDER / file).method.settings)
    assert s.finetune_window == samples
    frames, bins = views.input_size(s, samples)
    assert (frames // 16) * (bins // 16) == tokens
    tagger = nets["tagger"]
    assert tagger.backbone(torch.empty(2, 1, frames, bins, device="meta")).shape == (2, 1 + tokens, 768)
    assert tagger(torch.empty(2, frames, bins, device="meta")).shape == (2, classes)


@pytest.mark.parametrize("file", sorted(RECIPES))
def test_fine_tuning_configurations_follow_asts_rates(file: str) -> None:
    batch, rates = RECIPES[file]
    config = load_config(FOLDER / file)
    method: Any = make_method(config.method)
    assert config.training.batch_size == batch
    assert config.federation.rounds == method.settings.finetune_rounds == max(rates) + 1
    for epoch, rate in rates.items():
        plan = method.plan(epoch + 1, config.federation.rounds)
        assert plan["stage"] == "finetune"
        step: Any = SimpleNamespace(round=epoch + 1, plan=plan)
        start = float(method.training(plan)["lr"])
        assert finetuning.schedule(method.settings, step, {"lr": start})["lr"] == pytest.approx(rate)


def test_every_fine_tuning_configuration_is_tested_here_and_warns_of_nothing() -> None:
    found = sorted(path.name for path in FOLDER.glob("finetune_*.yaml"))
    assert found == sorted(RECIPES)
    for name in found:
        config = load_config(FOLDER / name)
        assert make_method(config.method).check(config) == []


def test_only_pretraining_is_warned_of_small_batches() -> None:
    config = load_config(FOLDER / "finetune_audioset20k.yaml").with_overrides({"federation.rounds": 26})
    (warning,) = make_method(config.method).check(config)
    assert "training.batch_size = 12" in warning
