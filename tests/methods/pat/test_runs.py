"""Whole runs of PAT: what travels and what stays, who trains, resume, engines, other algorithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedlab
from fedlab.clients.runtime import ClientRuntime
from fedlab.config import Config, parse
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.method import Batch, FitContext, Step
from fedlab.methods.pat.method import PAT
from fedlab.metrics.chance import chance_precision
from tests.methods.states import same, weights

Start = Callable[..., fedlab.Run]
WIDTH, DEPTH, IDENTITIES = 12, 2, 3 * 6 + 3 * 2
PATCHES = 4 * (WIDTH * 3 * 36 + WIDTH)
LAYER = 4 * (WIDTH * WIDTH + WIDTH) + 2 * 2 * WIDTH * WIDTH + 3 * WIDTH + 4 * WIDTH
BACKBONE = 4 * (4 * WIDTH + (4 + 32) * WIDTH + DEPTH * LAYER + 2 * WIDTH)
SMALL: dict[str, Any] = {
    "method": {
        "name": "pat", "patch": 6, "width": WIDTH, "depth": DEPTH, "heads": 3, "mlp_ratio": 2, "neighbors": 2,
        "pad": 1, "warmup_rounds": 1,
    },
    "data": {
        "source": {
            "name": "pedestrians", "sites": 3, "identities": 6, "test_identities": 2, "target_identities": 4,
            "images": 4,
        },
        "partition": ["domain"],
    },
    "training": {"optimizer": "adamw", "lr": 0.002, "batch_size": 16},
    "federation": {"rounds": 4},
    "evaluation": {"every": 4},
    "engine": {"name": "inline", "device": "cpu"},
}  # fmt: skip


@pytest.fixture(scope="module")
def start(runner: Callable[..., Start]) -> Start:
    return runner("pat", SMALL, checkpoint_every=2)


@pytest.fixture(scope="module")
def reference(start: Start) -> fedlab.Run:
    return start()


# what travels


def test_patches_travel_once_and_the_classifier_never(reference: fedlab.Run) -> None:
    rounds = reference.history.rounds
    neck = 4 * 4 * WIDTH
    for number, round in enumerate(rounds):
        exchanged = {"backbone": {"down": 3 * BACKBONE, "up": 3 * BACKBONE}, "neck": {"down": 3 * neck, "up": 3 * neck}}
        sent_once = {name: size for name, size in round["bytes"].items() if name not in exchanged}
        assert {name: size for name, size in round["bytes"].items() if name in exchanged} == exchanged
        assert sum(size["down"] for size in sent_once.values()) == (0 if number else 3 * PATCHES)
        assert not any(size.get("up") for size in sent_once.values())
        assert round["bytes_up"] == 3 * (BACKBONE + neck)


def test_statistics_of_the_neck_stay_on_request(start: Start) -> None:
    local = start("method.neck_statistics=local", "federation.rounds=1")
    assert local.history.rounds[0]["bytes"]["neck"]["up"] == 3 * 4 * 2 * WIDTH


def test_an_upload_holds_neither_classifier_nor_memory(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    train, sent = ClientRuntime.train, []

    def watched(self: ClientRuntime, client: int, *arguments: Any) -> Any:
        answer = train(self, client, *arguments)
        sent.append((set(answer.arrays), set(answer.results)))
        return answer

    monkeypatch.setattr(ClientRuntime, "train", watched)
    start("federation.rounds=1", "method.bank=keep")
    assert sent
    for arrays, results in sent:
        assert not results
        assert {name.split(".")[0] for name in arrays} == {"backbone", "neck"}
        assert not any("patch" in name for name in arrays)


def test_every_client_keeps_its_own_classifier(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's rows move, those of identities it does not hold stay as built, and round 2 goes on from round 1."""
    fit, seen = PAT.fit, dict[tuple[int, int], tuple[Tensor, Tensor]]()

    def watched(self: PAT, ctx: FitContext) -> None:
        before = ctx.networks["classifier"].weight.detach().clone()
        fit(self, ctx)
        if not ctx.preflight:
            seen[ctx.round, ctx.client] = before, ctx.networks["classifier"].weight.detach().clone()

    monkeypatch.setattr(PAT, "fit", watched)
    start("federation.rounds=2", "training.weight_decay=0")
    built = seen[1, 0][0]
    for client in range(3):
        own = torch.arange(6 * client, 6 * client + 6)
        others = torch.tensor([i for i in range(IDENTITIES) if i not in own.tolist()])
        before, after = seen[1, client]
        assert torch.equal(before, built)
        assert (after[own] != before[own]).any(1).all()
        assert torch.equal(after[others], before[others])
        assert torch.equal(seen[2, client][0], after)


# local training


class Seen:
    """What `PAT.loss` is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[tuple[Batch, Step, float]] = []
        loss = PAT.loss

        def watched(method: PAT, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
            terms = loss(method, networks, batch, step)
            known = step.scratch["bank"].known if "bank" in step.scratch else torch.empty(0)
            self.batches.append((batch, step, float(known.float().mean())))
            return terms

        monkeypatch.setattr(PAT, "loss", watched)


def test_batches_are_p_by_k_and_the_memory_is_filled_before_the_first(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    run = start("federation.rounds=1", "training.local_steps=2")
    batches = seen.batches
    assert len(batches) == 6
    for batch, _, known in batches:
        labels, counts = torch.unique(batch["label"], return_counts=True)
        assert len(labels) == 4
        assert counts.tolist() == [4] * 4
        assert known == 1.0
        assert len(batch["rectangles"]) == 3
    drawn = {batch["rectangles"] for batch, _, _ in batches}
    assert len(drawn) == 6  # redrawn for every forward pass
    assert run.history.rounds[0]["train"]["bank_images"] == 24


def test_the_memory_is_filled_anew_or_kept(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    refilled, kept = start("federation.rounds=2"), start("federation.rounds=2", "method.bank=keep")
    assert ["bank_images" in r["train"] for r in refilled.history.rounds] == [True, True]
    assert ["bank_images" in r["train"] for r in kept.history.rounds] == [True, False]
    assert not same(weights(refilled), weights(kept))
    # the first round is the same either way
    assert refilled.history.rounds[0]["train"]["csl"] == kept.history.rounds[0]["train"]["csl"]


def test_the_plain_vit_has_neither_parts_nor_memory(start: Start) -> None:
    plain = start("method.parts=false", "federation.rounds=1")
    assert plain.history.rounds[0]["train"].keys() == {"identity", "triplet", "seconds"}
    assert weights(plain)["network/backbone.positions"].shape == (1, 33, WIDTH)


def test_a_client_of_one_identity_says_why_it_skips_the_triplet(start: Start) -> None:
    alone = start("data.source.identities=1", "federation.rounds=1")
    train = alone.history.rounds[0]["train"]
    assert train["no_triplet_single_identity"] == 1.0
    assert "triplet" not in train
    assert train["csl"] > 0


def test_a_client_of_few_identities_trains_on_them_all(start: Start) -> None:
    few = start("data.source.identities=2", "training.batch_size=64", "federation.rounds=1")
    train = few.history.rounds[0]["train"]
    assert train["triplet"] > 0
    assert train["bank_images"] == 8


def test_cameras_of_a_site_are_clients_too(start: Start) -> None:
    """Their identities are the same people, their classifiers still their own; a single camera has no own test."""
    cameras = start("data.partition=[natural]", "federation.rounds=1")
    assert set(cameras.history.rounds[0]["bytes"]) >= {"backbone", "neck"}
    assert "classifier" not in cameras.history.rounds[0]["bytes"]
    assert cameras.metrics["mean"] == {}
    assert cameras.metrics["server"]["mAP"] > 0


def test_the_learning_rate_follows_the_round(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: dict[int, set[tuple[float, ...]]] = {}
    schedule = PAT.schedule

    def watched(self: PAT, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        found = schedule(self, step, group)
        own = group.get("lr_factor", 1.0)
        rates.setdefault(step.round, set()).add((own, round(own * found["lr"] / group["lr"], 6)))
        return found

    monkeypatch.setattr(PAT, "schedule", watched)
    start("method.warmup_rounds=2", "method.cosine_rounds=8")
    floor = 0.002
    cosines = {r: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * r / 8)) for r in (2, 3, 4)}
    for number, factor in {1: 0.01 + 0.99 / 2, **cosines}.items():
        assert rates[number] == {(1.0, round(factor, 6)), (2.0, round(2 * factor, 6))}


# evaluation


def test_retrieval_in_the_unseen_domain_and_purity_are_the_servers(reference: fedlab.Run) -> None:
    server = reference.metrics["server"]
    assert server.keys() == {"mAP", "mAP_chance", "rank1", "rank5", "rank10", "purity", "purity_over_chance"}
    assert all(0 <= server[name] <= 1 for name in ("mAP", "rank1", "rank5", "rank10", "purity"))
    assert server["rank1"] <= server["rank5"] <= server["rank10"]
    # two identities of four images each: two right and four wrong ones for every query
    assert reference.metrics["mean"].keys() == {"mAP", "mAP_chance", "rank1"}
    assert reference.metrics["mean"]["mAP_chance"] == pytest.approx(chance_precision(2, 6), abs=1e-6)
    assert (set(reference.metrics["samples"].values()), reference.metrics["unit"]) == ({8}, "queries")
    assert reference.metrics["server_samples"] == {"query": 8, "gallery": 16, "probe": 36}


def test_it_draws_what_it_found(reference: fedlab.Run) -> None:
    drawn = {path.name for path in reference.folder.figures.glob("*.png")}
    assert drawn >= {f"{kind}-000{n}.png" for kind in ("ranked-lists", "attention") for n in (0, 1, 4)}


# engines, resume, algorithms


def test_another_seed_gives_another_run(start: Start) -> None:
    first, other = (start("federation.rounds=1", f"seed={seed}") for seed in (0, 1))
    assert not same(weights(first), weights(other))


@pytest.mark.parametrize("bank", [pytest.param("refill", marks=pytest.mark.slow), "keep"])
def test_resuming_gives_the_run_that_was_not_interrupted(start: Start, bank: str) -> None:
    whole, stopped = start(f"method.bank={bank}"), start(f"method.bank={bank}", until=2)
    resumed = fedlab.resume(stopped.path)
    assert same(weights(resumed), weights(whole))
    assert resumed.metrics["server"] == whole.metrics["server"]


@pytest.mark.usefixtures("ray_workers")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_ray_gives_the_same_bits(start: Start, workers: int) -> None:
    short = ("federation.rounds=2", "method.drop_path=0.3")
    spread = start(*short, "engine.name=ray", f"engine.workers={workers}")
    assert same(weights(spread), weights(start(*short)))


@pytest.mark.parametrize("strategy", ["{name: fedprox, mu: 0.5}", pytest.param("scaffold", marks=pytest.mark.slow)])
def test_it_composes_with_other_algorithms(start: Start, strategy: str) -> None:
    short = ("training.optimizer=sgd", "training.local_steps=3", "federation.rounds=2")
    plain, composed = start(*short), start(*short, f"federation.strategy={strategy}")
    assert all(torch.isfinite(value).all() for value in weights(composed).values())
    assert not same(weights(composed), weights(plain))


def test_a_pretrained_checkpoint_trains_with_its_patches_frozen(start: Start, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "intermediate_size": 2 * WIDTH}
    model = ViTModel(ViTConfig(image_size=24, patch_size=6, **sizes))
    model.save_pretrained(tmp_path / "vit")
    run = start(f"method.pretrained={tmp_path / 'vit'}", "federation.rounds=1")
    held = weights(run)
    assert torch.equal(
        held["network/backbone.patch.weight"], model.state_dict()["embeddings.patch_embeddings.projection.weight"]
    )
    assert not torch.equal(held["network/backbone.norm.weight"], model.state_dict()["layernorm.weight"])


# configurations


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["training.batch_size=18"], "training.batch_size"),
        (["method.bank=keep", "data.drift=[{name: labels, rounds: 2}]"], "method.bank"),
        (["method.pretrained=/nowhere/at/all"], "method.pretrained"),
        (["method.patch=7"], "method.patch"),
    ],
)
def test_what_cannot_work_is_refused(start: Start, overrides: list[str], key: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=key.replace(".", r"\.")):
        start(*overrides)


def test_odd_choices_are_warned_of() -> None:
    def warnings(*changes: tuple[str, Any]) -> str:
        config = parse(Config, SMALL).with_overrides(dict(changes))
        return "\n".join(PAT(parse(PAT.Settings, config.method.settings, "method")).check(config))

    assert warnings() == ""
    assert "no effect" in warnings(("training.schedule", "cosine"))
    assert "black" in warnings(("data.mean", [0.4]))
    assert "negative" in warnings(("training.batch_size", 4))
    assert "plain ViT" in warnings(("method.parts", False))
