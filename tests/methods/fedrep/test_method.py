from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab
from fedlab.assembly import make_method
from fedlab.clients.state import StateStore
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.method import Batch, Step
from fedlab.methods.fedrep.method import FedRep, FedRepSettings
from tests.methods.tiny import Tiny, client, step

Start = Callable[..., fedlab.Run]
SKEWED = "data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]"
BASE = {"method": "fedrep", "data": {"source": "digits"}}


def fedrep(head_passes: int) -> FedRep:
    return FedRep(FedRepSettings(head_passes=head_passes))


def test_the_head_steps_first_and_the_representation_follows_the_new_head() -> None:
    """x = 1, y = 1, z = 2 and head (b, −b): with p = 1 / (1 + e^(−4b)), the head's gradient is (2p, −2p) and the
    body's 2bp. One pass moves b from 1 to 1 − 0.2p; the body then moves by the gradient at the new b."""
    model = Tiny(2.0, (1.0, -1.0))
    ctx = client(fedrep(1), {"model": model}, [1.0], [1])
    ctx.method.fit(ctx)

    def p(b: float) -> float:
        return 1 / (1 + math.exp(-4 * b))

    b = 1 - 0.1 * 2 * p(1.0)
    assert model.head.weight.flatten().tolist() == pytest.approx([b, -b], abs=1e-6)
    assert model.body.weight.item() == pytest.approx(2 - 0.1 * 2 * b * p(b), abs=1e-6)
    assert ctx.metrics["head_ce"] == pytest.approx(math.log1p(math.exp(4)), rel=1e-6)
    assert ctx.metrics["representation_ce"] == pytest.approx(math.log1p(math.exp(4 * b)), rel=1e-6)


def test_the_head_makes_as_many_passes_as_are_asked_for() -> None:
    seen: list[str] = []

    class Noted(FedRep):
        def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
            seen.append(step.scratch["part"])
            return super().loss(networks, batch, step)

    ctx = client(Noted(FedRepSettings(head_passes=3)), {"model": Tiny(2.0, (1.0, -1.0))}, [1.0], [1], local_epochs=2)
    ctx.method.fit(ctx)
    assert seen == ["head"] * 6 + ["representation"] * 2


def test_weight_decay_leaves_alone_what_a_pass_does_not_train() -> None:
    model = Tiny(2.0, (0.0, 0.0))  # the head is 0, so the body has no gradient, and decay alone would move it
    ctx = client(fedrep(1), {"model": model}, [0.0], [1], weight_decay=0.5)
    ctx.method.fit(ctx)
    assert model.head.weight.flatten().tolist() == [0.0, 0.0]
    assert model.body.weight.item() == pytest.approx(2 - 0.1 * 0.5 * 2)  # once, in its own pass


def test_heads_stay_on_the_clients_and_representations_travel(run: Start) -> None:
    done = run("method={name: fedrep, head_passes: 2}", SKEWED)
    sent = {group for r in done.history.rounds for group, sizes in r["bytes"].items() if sizes["up"]}
    assert sent == {"representation"}
    states = [StateStore(done.folder.clients).latest(i) or {} for i in range(4)]
    assert len({state["network/model.head.weight"].abs().sum().item() for state in states}) == 4
    plain = run("method={name: supervised}", SKEWED, "training.local_epochs=3")
    assert done.metrics["mean"]["accuracy"] > plain.metrics["mean"]["accuracy"]


def test_a_model_without_a_head_is_refused(bench: Callable[..., Any]) -> None:
    task = replace(bench().task, make_model=lambda *_: nn.Flatten())
    with pytest.raises(ConfigError, match="it lacks features, feature_dim, head"):
        fedrep(1).build(task)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"method\.head_passes"):
        make_method(parse(Config, {**BASE, "method": {"name": "fedrep", "head_passes": 0}}).method)


def test_no_gradient_reaches_the_part_that_is_fixed() -> None:
    method, networks = fedrep(1), nn.ModuleDict({"model": Tiny(2.0, (1.0, -1.0))})
    batch = {"image": torch.tensor([[1.0]]), "label": torch.tensor([1])}
    for part, moved in (("head", "head"), ("representation", "body")):
        networks.zero_grad(set_to_none=True)
        (loss,) = method.loss(networks, batch, step({"part": part})).values()
        loss.backward()
        assert {name.split(".")[1] for name, p in networks.named_parameters() if p.grad is not None} == {moved}
