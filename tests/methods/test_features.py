"""The features of every registered method, as probes see them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.hashes import configuration, entries
from fedlab.assembly import METHODS, build_networks, make_task
from fedlab.data.samples import on_device
from fedlab.experiment.checks import check_data, resolve
from fedlab.method import Features, Method
from fedlab.probes.service import frozen

N = 5


@lru_cache(maxsize=1)
def built(name: str) -> tuple[Method, nn.ModuleDict, dict[str, Tensor]]:
    """A method, its networks as they are before training, and a few samples of a client."""
    resolved = resolve(configuration(entries()[f"method/{name}"], Path("unused"), 0))
    data, method = check_data(resolved), resolved.components.method
    task = make_task(resolved.config, data.columns, data.class_names, data.num_clients, data.vocabulary)
    networks = build_networks(method, task, 0, resolved.device)
    columns = on_device(data.client(0).train, resolved.device)
    return method, networks, {column: values[:N] for column, values in columns.items()}


@torch.no_grad()
def features(name: str, part: str) -> Features:
    method, networks, batch = built(name)
    with frozen(networks):
        return method.features(networks, batch, part)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_part_has_features_that_depend_on_the_sample_alone(name: str) -> None:
    method, networks, batch = built(name)
    for part in method.feature_parts:
        found = features(name, part)
        assert found.vectors.shape[0] == N
        assert found.vectors.ndim == 2
        assert found.vectors.isfinite().all()
        with torch.no_grad(), frozen(networks):
            alone = method.features(networks, {column: values[1:2] for column, values in batch.items()}, part)
        assert torch.allclose(alone.vectors, found.vectors[1:2], atol=1e-5)
        if found.tokens is not None:
            assert found.tokens.shape[0] == N
            assert found.tokens.shape[2] == found.vectors.shape[1]
        if found.grid is not None:
            assert found.tokens is not None
            assert found.grid[0] * found.grid[1] == found.tokens.shape[1]


@pytest.mark.parametrize("name", ["supervised", "moon", "fedlgd", "cda"])
def test_the_head_of_an_ordinary_model_makes_its_predictions_of_them(name: str) -> None:
    _, networks, batch = built(name)
    model: Any = networks["model"]
    with torch.no_grad(), frozen(networks):
        assert torch.allclose(model.head(features(name, "model").vectors), model(batch["image"]), atol=1e-6)


def test_asit_gives_the_mean_patch_token_that_its_own_probe_sees() -> None:
    method, networks, batch = built("asit")
    with torch.no_grad(), frozen(networks):
        predicted = method.predict(networks, batch)
    found = features("asit", "teacher")
    assert torch.equal(found.vectors, predicted[:, found.vectors.shape[1] :])
    assert found.tokens is not None
    assert torch.equal(found.tokens.mean(1), found.vectors)


def test_degla_gives_unit_embeddings_of_images() -> None:
    assert torch.allclose(features("degla", "student").vectors.norm(dim=1), torch.ones(N), atol=1e-5)


def test_transkd_gives_the_positions_of_the_last_stage() -> None:
    found = features("transkd", "student")
    assert found.tokens is not None
    assert torch.allclose(found.tokens.mean(1), found.vectors, atol=1e-6)
