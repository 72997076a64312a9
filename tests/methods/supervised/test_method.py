from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fedlab
from fedlab.experiment.start import configure
from fedlab.storage.checkpoint import load_checkpoint


@pytest.fixture
def lab(bench: Callable[..., Any], tmp_path: Path) -> Any:
    made = type(bench())(tmp_path, {"name": "supervised"}, training={"lr": 0.1, "batch_size": 512})
    return made


def test_one_full_batch_is_one_gradient_step(lab: Any) -> None:
    data, before = lab.data(), lab.weights()
    model = lab.networks["model"]
    loss = F.cross_entropy(model(data["image"]), data["label"])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    ctx = lab.client(data)
    lab.method.fit(ctx)
    for (name, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(p.detach(), before[f"model.{name}"] - 0.1 * gradient, rtol=1e-4, atol=1e-6)
    assert ctx.metrics["ce"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert ctx.examples == 24


def test_it_shares_nothing_but_weights_and_counts_by_samples(lab: Any) -> None:
    (group,) = lab.method.exchange({})
    assert (group.mode, group.weight) == ("average", "examples")
    assert lab.method.client_result(lab.client()) == {}
    assert lab.method.plan(1, 10) == {}
    assert not lab.method.overrides("prepare")


def test_it_learns_the_digits(run: Callable[..., fedlab.Run]) -> None:
    done = run(
        "method={name: supervised}", "federation.rounds=3", "training.lr=0.1", "training.batch_size=16",
        "data.source={name: shifted_digits}", "training.local_epochs=2", "evaluation.every=3",
    )  # fmt: skip
    assert done.metrics["clients"]["grey"]["accuracy"] > 0.6
    tensors, _ = load_checkpoint(done.checkpoint)
    assert not any(name.startswith("shared/") for name in tensors)
    losses = [r["train"]["ce"] for r in done.history.rounds]
    assert losses[-1] < 0.7 * losses[0]


def test_the_packaged_configuration_is_the_ceiling_of_fedlgds(run: Callable[..., fedlab.Run]) -> None:
    real, distilled = configure("supervised"), configure("fedlgd")
    assert (real.model, real.data, real.training) == (distilled.model, distilled.data, distilled.training)


def test_validation_samples_are_left_out_of_training(run: Callable[..., fedlab.Run]) -> None:
    """A fifth of the 50 samples of each client is held back."""
    done = run("method={name: supervised}", "data.validation=0.2", "federation.rounds=1", "evaluation.every=1")
    whole = run("method={name: supervised}", "federation.rounds=1", "evaluation.every=1")
    held, everything = (
        {client["name"]: sum(client["train"]) for client in json.loads(one.folder.partition.read_text())["clients"]}
        for one in (done, whole)
    )
    assert set(everything.values()) == {50}
    assert set(held.values()) == {40}
    assert done.metrics["samples"] == whole.metrics["samples"]
    assert done.metrics["clients"] != whole.metrics["clients"]
