from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab
from fedlab.assembly import make_method
from fedlab.clients.state import StateStore
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.method import Batch, ClientState, Step
from fedlab.methods.fedmd.method import FedMD, FedMDSettings
from tests.methods.tiny import Tiny, client, step

Start = Callable[..., fedlab.Run]
SKEWED = "data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]"
HELD = "data.held={public: {share: 0.2}}"
BASE: dict[str, Any] = {"method": "fedmd", "data": {"source": "digits"}}
PUBLIC = {
    "public": torch.tensor([[1.0], [2.0], [3.0]]),
    "public_labels": torch.tensor([0, 1, 0]),
    "asked": torch.tensor([0, 2]),
}


def fedmd(**settings: Any) -> FedMD:
    return FedMD(parse(FedMDSettings, settings))


def lab_of(bench: Callable[..., Any], folder: Any, **settings: Any) -> Any:
    lab = type(bench())(folder, {"name": "fedmd", **settings})
    lab.held["public"] = lab.data(seed=3)
    return lab


def test_a_digest_moves_scores_towards_the_consensus() -> None:
    """Logits (2, −2) and a consensus of (5, −1): the mean absolute difference is 2; its gradient is −½ for each."""
    model = Tiny(2.0, (1.0, -1.0))
    networks = nn.ModuleDict({"model": model})
    batch = {"image": torch.tensor([[1.0]]), "consensus": torch.tensor([[5.0, -1.0]])}
    (loss,) = fedmd().loss(networks, batch, step({"role": "model"})).values()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2.0)
    assert model.head.weight.grad.flatten().tolist() == [-1.0, -1.0]
    assert model.body.weight.grad.item() == pytest.approx(0.0)


def test_own_samples_are_learned_by_cross_entropy() -> None:
    batch = {"image": torch.tensor([[1.0]]), "label": torch.tensor([1])}
    terms = fedmd().loss(nn.ModuleDict({"model": Tiny(2.0, (1.0, -1.0))}), batch, step({"role": "model"}))
    assert float(terms["ce"].detach()) == pytest.approx(math.log1p(math.exp(4)))


class Noted(FedMD):
    """Notes what each batch was."""

    seen: list[tuple[str, list[float]]]

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        self.seen.append(("digest" if "consensus" in batch else "ce", sorted(batch["image"].flatten().tolist())))
        return super().loss(networks, batch, step)


def test_a_first_round_is_transfer_learning_and_later_ones_digest_and_revisit() -> None:
    method, state = Noted(parse(FedMDSettings, {"public_passes": 1, "private_passes": 2, "digest_passes": 2})), None
    method.seen, state = [], ClientState()
    first = client(method, {"model": Tiny(2.0, (1.0, -1.0))}, [7.0], [0], shared=PUBLIC, state=state)
    method.fit(first)
    assert method.seen == [("ce", [1.0, 2.0, 3.0]), ("ce", [7.0]), ("ce", [7.0])]
    assert method.client_result(first)["scores"].shape == (2, 2)

    agreed = {**PUBLIC, "digested": torch.tensor([0, 2]), "consensus": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}
    method.seen = []
    method.fit(client(method, {"model": Tiny(2.0, (1.0, -1.0))}, [7.0], [0], shared=agreed, state=state))
    assert method.seen == [("digest", [1.0, 3.0])] * 2 + [("ce", [7.0])]

    method.seen = []  # who comes later begins with transfer learning and then joins in
    method.fit(client(method, {"model": Tiny(2.0, (1.0, -1.0))}, [7.0], [0], shared=agreed, state=ClientState()))
    assert [kind for kind, _ in method.seen] == ["ce"] * 3 + ["digest"] * 2 + ["ce"]


def test_scores_are_the_logits_of_the_samples_that_were_asked_for() -> None:
    ctx = client(fedmd(), {"model": Tiny(2.0, (1.0, -1.0))}, [7.0], [0], shared=PUBLIC)
    ctx.scratch["role"] = "model"
    assert ctx.method.client_result(ctx)["scores"].tolist() == [[2.0, -2.0], [6.0, -6.0]]


def test_the_consensus_is_the_mean_with_equal_weights(bench: Callable[..., Any], tmp_path: Any) -> None:
    lab = lab_of(bench, tmp_path)
    lab.method.server_prepare(lab.server())
    results = {0: {"scores": torch.tensor([[1.0, 2.0]])}, 1: {"scores": torch.tensor([[3.0, 7.0]])}}
    lab.method.server_update(lab.server(1, results=results))
    assert lab.shared["consensus"].tolist() == [[2.0, 4.5]]
    assert torch.equal(lab.shared["digested"], lab.shared["asked"])


def test_a_subset_is_drawn_anew_and_the_consensus_is_on_the_one_that_was_scored(
    bench: Callable[..., Any], tmp_path: Any
) -> None:
    lab = lab_of(bench, tmp_path, subset=5)
    lab.method.server_prepare(lab.server())
    asked = lab.shared["asked"].clone()
    assert len(asked.unique()) == 5
    lab.method.server_update(lab.server(1, results={0: {"scores": torch.zeros(5, 4)}}))
    assert torch.equal(lab.shared["digested"], asked)
    assert not torch.equal(lab.shared["asked"], asked)


def test_a_federation_without_public_samples_is_refused(run: Start) -> None:
    with pytest.raises(ConfigError, match=r"the server holds none[\s\S]*data\.held: \{public:"):
        run("method={name: fedmd}", SKEWED)


def test_scores_travel_every_round_and_public_samples_once(run: Start) -> None:
    done = run("method={name: fedmd, private_passes: 1}", SKEWED, HELD, "federation.rounds=3")
    rounds = done.history.rounds
    public, scores = 50 * 3 * 16 * 16 * 4 + 50 * 8 + 50 * 8, 50 * 10 * 4
    assert [r["bytes"]["results"]["up"] for r in rounds] == [4 * scores] * 3
    assert [r["bytes"]["shared"]["down"] for r in rounds] == [4 * public, 4 * (scores + 50 * 8), 4 * scores]
    assert all(set(r["bytes"]) == {"results", "shared"} for r in rounds)
    assert ["digest" in r["train"] for r in rounds] == [False, True, True]


def test_clients_may_have_models_that_share_nothing_but_their_classes(run: Start) -> None:
    models = "[{name: convnet, width: 4, depth: 2}, logistic]"
    done = run(f"method={{name: fedmd, models: {models}, private_passes: 1}}", SKEWED, HELD, "federation.rounds=2")
    states = [StateStore(done.folder.clients).latest(i) or {} for i in range(4)]
    trained = [{name.split(".")[0] for name in state if name.startswith("network/")} for state in states]
    assert trained == [{"network/model"}, {"network/model_2"}] * 2


def test_a_single_round_is_pointed_out() -> None:
    (text,) = fedmd().check(parse(Config, {**BASE, "federation": {"rounds": 1}}))
    assert "before the second round" in text
    assert fedmd().check(parse(Config, BASE)) == []


@pytest.mark.parametrize("settings", [{"private_passes": 0}, {"subset": 0}, {"digest_passes": 0}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=f"method.{next(iter(settings))}"):
        make_method(parse(Config, {**BASE, "method": {"name": "fedmd", **settings}}).method)
