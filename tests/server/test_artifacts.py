"""What methods return as artifacts, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fedlab.errors import FedLabError
from fedlab.server.records import _save_pretrained


def test_a_model_of_transformers_is_a_folder_for_from_pretrained(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTModel(ViTConfig(**size, image_size=8, patch_size=4))
    found = ViTModel.from_pretrained(_save_pretrained(model, "vit", tmp_path / "vit"))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())


def test_another_module_is_refused_by_the_name_of_its_artifact(tmp_path: Path) -> None:
    with pytest.raises(
        FedLabError, match=r"artifact 'projector' is a Linear: Method\.artifacts returns tensors by name"
    ):
        _save_pretrained(nn.Linear(2, 2), "projector", tmp_path / "projector")
    assert not list(tmp_path.iterdir())
