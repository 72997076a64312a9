from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab
from fedlab.assembly import make_method
from fedlab.clients.state import StateStore
from fedlab.config import Config, parse
from fedlab.errors import ConfigErrors
from fedlab.methods.ditto.method import Ditto, DittoSettings
from tests.methods.states import weights
from tests.methods.tiny import Tiny, client, step

Start = Callable[..., fedlab.Run]
SKEWED = "data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]"
BASE = {"method": "ditto", "data": {"source": "digits"}}


def ditto(lam: float) -> Ditto:
    return Ditto(DittoSettings(lam=lam))


def test_the_terms_are_those_computed_by_hand() -> None:
    """Logits of the personal model are 0, so its CE is ln 2; w has three parameters that are 1 away from 0."""
    networks = nn.ModuleDict({"model": Tiny(1.0, (1.0, 1.0)), "personal": Tiny(0.0, (0.0, 0.0))})
    received = [p.detach().clone() for p in networks["model"].parameters()]
    batch = {"image": torch.tensor([[1.0]]), "label": torch.tensor([0])}
    terms = ditto(0.5).loss(networks, batch, step({"received": received}))
    assert float(terms["personal_ce"].detach()) == pytest.approx(math.log(2))
    assert float(terms["proximal"].detach()) == pytest.approx(0.5 / 2 * 3)


def test_a_step_moves_each_model_by_its_own_gradient() -> None:
    """x = 1, y = 0. Global: z = 2, logits (2, −2), so dCE/dlogits = (p − 1, 1 − p) with p = 1 / (1 + e⁻⁴). Personal:
    z = 1, logits (0, 0), so dCE/dlogits = (−½, ½); the proximal term adds λ (v − w)."""
    networks = {"model": Tiny(2.0, (1.0, -1.0)), "personal": Tiny(1.0, (0.0, 0.0))}
    ctx = client(ditto(0.5), networks, [1.0], [0])
    ctx.method.fit(ctx)
    model, personal = networks["model"], networks["personal"]
    g = 1 / (1 + math.exp(-4)) - 1
    assert model.head.weight.flatten().tolist() == pytest.approx([1 - 0.1 * 2 * g, -1 + 0.1 * 2 * g], abs=1e-6)
    assert model.body.weight.item() == pytest.approx(2 - 0.1 * (g * 1 - g * -1), abs=1e-6)
    assert personal.head.weight.flatten().tolist() == pytest.approx(
        [0 - 0.1 * (-0.5 + 0.5 * (0 - 1)), 0 - 0.1 * (0.5 + 0.5 * (0 + 1))], abs=1e-6
    )
    assert personal.body.weight.item() == pytest.approx(1 - 0.1 * (0 + 0.5 * (1 - 2)), abs=1e-6)


def test_the_proximal_term_pulls_to_the_received_model_and_not_to_the_trained_one() -> None:
    """After two steps the second pull is still to the received body of 2, whatever the global model has become."""
    networks = {"model": Tiny(2.0, (1.0, -1.0)), "personal": Tiny(1.0, (0.0, 0.0))}
    networks["personal"].head.weight.requires_grad_(False)  # with logits that stay 0, only the pull moves the body
    ctx = client(ditto(1.0), networks, [1.0], [0], local_epochs=2)
    ctx.method.fit(ctx)
    assert networks["personal"].body.weight.item() == pytest.approx(2 - 0.9**2, abs=1e-6)


def test_the_global_model_is_that_of_federated_averaging_bit_for_bit(run: Start) -> None:
    own, plain = run("method={name: ditto}", SKEWED), run("method={name: supervised}", SKEWED)
    global_model = {name: value for name, value in weights(own).items() if name.startswith("network/model.")}
    expected = weights(plain)
    assert global_model.keys() == expected.keys()
    assert all(torch.equal(global_model[name], expected[name]) for name in expected)
    assert [r["bytes"] for r in own.history.rounds] == [r["bytes"] for r in plain.history.rounds]


def test_personal_models_stay_on_the_clients_and_are_evaluated(run: Start) -> None:
    own = run("method={name: ditto, lam: 0.1}", SKEWED)
    plain = run("method={name: supervised}", SKEWED)
    assert own.metrics["mean"]["accuracy"] > plain.metrics["mean"]["accuracy"]
    states: list[Mapping[str, Tensor]] = [StateStore(own.folder.clients).latest(i) or {} for i in range(4)]
    heads = [state["network/personal.head.weight"] for state in states]
    assert len({head.abs().sum().item() for head in heads}) == 4


def test_settings_without_effect_and_shared_clipping_are_pointed_out() -> None:
    def warned(lam: float, **training: Any) -> list[str]:
        return ditto(lam).check(parse(Config, {**BASE, "training": training}))

    assert warned(1.0) == warned(1.0, clip_norm=1.0, clip="tensor") == []
    assert "nothing of the other clients" in warned(0.0)[0]
    assert "both models together" in warned(1.0, clip_norm=1.0)[0]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigErrors, match=r"method\.lam"):
        make_method(parse(Config, {**BASE, "method": {"name": "ditto", "lam": -1}}).method)
