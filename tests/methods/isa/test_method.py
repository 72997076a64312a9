"""One client's step, the server's retrieval, and what settings and data are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fedlab.assembly import make_method, make_task
from fedlab.config import load_config
from fedlab.errors import ConfigError
from fedlab.experiment.stand_ins import random_weights
from fedlab.experiment.start import method_folder
from fedlab.method import ClientState, FigureContext
from fedlab.method.exchange import Exchange
from fedlab.methods.isa import pictures, retrieval
from fedlab.methods.isa.losses import contrastive_distillation, hard_negatives, local_alignment
from fedlab.methods.isa.settings import ISASettings, check
from fedlab.models.blip import match_probability
from fedlab.storage.hashing import state_hash
from tests.methods.isa.conftest import SMALL, Lab

Made = Callable[..., Lab]


def test_the_loss_is_the_sum_of_contrast_and_alignment(lab: Made) -> None:
    one = lab(lambda_lar=0.25)
    one.networks.eval()
    batch = one.batch()
    found = one.loss(batch)
    seen = retrieval.look(one.networks, batch["image"])
    assert torch.allclose(seen.vectors, batch["v"], atol=1e-6)
    sentence = one.vl.sentence(retrieval.learn(one.method.settings, one.networks, batch["image"]).sentence)
    gcd = contrastive_distillation(one.vl.read(sentence), batch["v"], 0.07)
    assert float(found["gcd"]) == pytest.approx(float(gcd), rel=1e-5)
    own = one.vl.match(sentence, seen.tokens)
    other = one.vl.match(sentence, seen.tokens[batch["negative"]])
    expected = 0.25 * local_alignment(own, other, batch["negative_counts"])
    assert float(found["lar"]) == pytest.approx(float(expected), rel=1e-4)
    assert bool((batch["negative"] != torch.arange(8)).all())


# 7: what learns


@pytest.mark.parametrize("settings", [{}, {"lambda_lar": 0.0}, {"query": "large"}, {"lar": "positive"}])
def test_only_the_query_side_learns(lab: Made, settings: dict[str, Any]) -> None:
    one = lab(**settings)
    one.networks.train()
    before = state_hash(one.networks["vl"])
    torch.stack(list(one.loss().values())).sum().backward()
    trained = [role for role in ("encoder", "learner") if role in one.networks]
    for role in trained:
        gradients = {name: p.grad for name, p in one.networks[role].named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())
        assert sum(float(gradient.abs().sum()) for gradient in gradients.values() if gradient is not None) > 0
    assert all(p.grad is None for p in one.networks["vl"].parameters())
    assert state_hash(one.networks["vl"]) == before


def test_steps_lower_both_losses(lab: Made) -> None:
    one = lab()
    parameters = [p for p in one.networks.parameters() if p.requires_grad]
    optimizer, first = torch.optim.AdamW(parameters, lr=3e-3), dict[str, float]()
    for step in range(25):
        terms = one.loss(one.batch())
        first = first or {name: float(value) for name, value in terms.items()}
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        if step == 24:
            assert float(terms["gcd"]) < 0.5 * first["gcd"]
            assert float(terms["lar"]) < 0.8 * first["lar"]


def test_nothing_but_the_query_side_travels(lab: Made) -> None:
    one = lab()
    exchange = Exchange(one.networks, one.method.exchange({}))
    roles = {name.partition(".")[0] for name in exchange.down}
    assert roles == {name.partition(".")[0] for name in exchange.up} == {"encoder", "learner"}
    assert any(name.endswith("running_mean") for name in exchange.up)
    assert {name.partition(".")[0] for name in exchange.frozen} == {"vl"}
    assert not exchange.once
    assert "vl" in exchange.fixed_roles
    sent, whole = sum(exchange.bytes_by_group(exchange.up).values()), sum(exchange.sizes.values())
    assert sent < 0.1 * whole


def test_a_client_computes_what_the_frozen_encoder_sees_once(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one, state = lab(), ClientState()
    client = one.client(one.photos(12), state)
    calls: list[int] = []
    look = one.vl.look
    monkeypatch.setattr(one.vl, "look", lambda pixels: calls.append(len(pixels)) or look(pixels))
    one.method.fit(client)
    first = len(calls)
    assert first > 0
    assert set(state) == {"once/v", "once/tokens", "once/samples"}
    one.method.fit(one.client(one.photos(12), state))
    assert len(calls) == first
    one.method.fit(one.client(one.photos(12, seed=1), state, fingerprint="b"))
    assert len(calls) == 2 * first


def test_tokens_that_are_not_kept_are_computed_in_every_step(lab: Made) -> None:
    kept, again = lab(), lab(keep_tokens=False)
    for one in (kept, again):
        one.networks.eval()
    batch = again.batch()
    assert "tokens" not in batch
    found, expected = again.loss(batch), kept.loss(kept.batch())
    for name, value in found.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-4)


# the server


def test_the_gallery_is_the_frozen_encoders_and_no_round_changes_it(lab: Made) -> None:
    one = lab()
    held = one.sets()
    one.method.server_prepare(one.server(**held))
    index = one.private["index"].clone()
    assert torch.allclose(index, one.vl.look((held["gallery"]["image"] + 1) / 2).vectors, atol=1e-6)
    optimizer = torch.optim.SGD([p for p in one.networks.parameters() if p.requires_grad], lr=0.1)
    torch.stack(list(one.loss().values())).sum().backward()
    optimizer.step()
    one.method.server_prepare(one.server(**held))
    assert torch.equal(one.private["index"], index)


def test_simpler_queries_are_measured_beside_those_of_isa(lab: Made) -> None:
    one = lab()
    ctx = one.server(**one.sets())
    one.method.server_prepare(ctx)
    values = one.method.server_evaluate(ctx)
    assert values["recall@1_oracle"] >= 0.95
    assert values["recall@1_image_only"] < 0.5
    assert values["recall@1_text_only"] < 0.5
    assert values["recall@1_image_only"] < values["recall@1_mean_of_both"] < 1
    assert values["gain_over_mean"] == pytest.approx(values["recall@1"] - values["recall@1_mean_of_both"])
    assert values["gain_over_image"] == pytest.approx(values["recall@1"] - values["recall@1_image_only"])
    assert values["gain_over_text"] == pytest.approx(values["recall@1"] - values["recall@1_text_only"])
    assert values["recall@1_chance"] == pytest.approx(2 / 95, abs=1e-6)
    assert {"queries, light encoder", "gallery, large encoder"} == ctx.timings.keys()


def test_a_query_is_the_sentence_followed_by_the_text(lab: Made) -> None:
    """The true words of the reference in place of the learned tokens give the oracle's recall."""
    one = lab()
    held = one.sets()
    ctx = one.server(**held)
    one.method.server_prepare(ctx)
    queries = held["queries"]
    words = one.vl.word_embeddings[queries["oracle"][:, 1:5]]  # a red square left
    with torch.no_grad():
        found = retrieval.compose(one.vl, words, queries["text"])
        expected = one.vl.read(one.vl.sentence(words[:, :0], queries["oracle"]))
    assert torch.allclose(found, expected, atol=1e-5)


def test_wordings_are_averaged_and_their_order_does_not_matter(lab: Made) -> None:
    one = lab()
    queries = one.sets()["queries"]
    texts = torch.cat([queries["text"][:4], queries["text"][4:8]], dim=1)
    tokens = torch.randn(4, 2, one.vl.word_width)
    with torch.no_grad():
        both = retrieval.compose(one.vl, tokens, texts)
        parts = [one.vl.read(one.vl.sentence(tokens, texts[:, place])) for place in range(2)]
        assert torch.allclose(both, nn.functional.normalize((parts[0] + parts[1]) / 2, dim=1), atol=1e-6)
        assert torch.allclose(retrieval.compose(one.vl, tokens, texts.flip(1)), both, atol=1e-6)


def test_anchors_are_gallery_vectors_that_every_client_gets(lab: Made) -> None:
    one = lab(anchors=5, lambda_lar=0.0)
    one.networks.eval()
    one.method.server_prepare(one.server(**one.sets()))
    assert one.shared["anchors"].shape == (5, 64)
    batch = one.batch()
    with_anchors = float(one.loss(batch)["gcd"])
    one.shared.clear()
    assert with_anchors > float(one.loss(batch)["gcd"])


def test_a_server_without_queries_measures_nothing(lab: Made) -> None:
    one = lab()
    one.method.server_prepare(one.server())
    assert one.method.server_evaluate(one.server()) == {}
    with pytest.raises(ConfigError, match=r"(?s)method\.anchors.*'gallery'"):
        lab(anchors=2).method.server_prepare(one.server())


def test_texts_that_the_model_has_no_places_for_are_refused(lab: Made) -> None:
    one = lab(learner={"tokens": 21, "heads": 2})
    with pytest.raises(ConfigError, match=r"(?s)method\.learner\.tokens.*at most 16"):
        one.method.server_prepare(one.server(**one.sets()))


# a client's evaluation


def test_clients_measure_both_losses_on_their_test_photos(lab: Made) -> None:
    one = lab()
    data = one.photos(16)
    ctx = one.evaluation(data)
    values = one.method.evaluation_values(one.method.evaluate(ctx), one.task)
    seen, generator = retrieval.look(one.networks, data["image"]), ctx.generator("negatives")
    gcd, own, other = 0.0, list[torch.Tensor](), list[torch.Tensor]()
    for part in (slice(0, 8), slice(8, 16)):
        sentence = one.vl.sentence(retrieval.learn(one.method.settings, one.networks, data["image"][part]).sentence)
        gcd += contrastive_distillation(one.vl.read(sentence), seen.vectors[part], 0.07).item() / 2
        numbers, there = hard_negatives(seen.vectors[part], 0.07, one.method.settings.duplicates, generator)
        assert bool(there.all())
        own.append(one.vl.match(sentence, seen.tokens[part]).detach())
        other.append(one.vl.match(sentence, seen.tokens[part][numbers]).detach())
    assert values["gcd_loss"] == pytest.approx(gcd, rel=1e-4)
    assert values["lar_loss"] == pytest.approx(local_alignment(torch.cat(own), torch.cat(other)).item(), rel=1e-4)
    assert values["match_own"] == pytest.approx(match_probability(torch.cat(own)).mean().item(), rel=1e-4)
    assert values["match_other"] == pytest.approx(match_probability(torch.cat(other)).mean().item(), rel=1e-3)
    assert values["match_margin"] == pytest.approx(values["match_own"] - values["match_other"])
    alone = one.method.evaluation_values(one.method.evaluate(one.evaluation(one.photos(1))), one.task)
    assert set(alone) == {"gcd_loss", "match_own"}


def test_queries_do_not_depend_on_their_batch(lab: Made) -> None:
    """Statistics of normalization are those of training, not those of the queries."""
    one = lab()
    one.networks.train()
    with torch.no_grad():
        retrieval.learn(one.method.settings, one.networks, one.photos()["image"])  # moves the running statistics
    ctx = one.server(**one.sets())
    one.method.server_prepare(ctx)
    one.networks.train()
    one.method.server_evaluate(ctx)
    assert not one.networks["encoder"].training
    assert not one.networks["learner"].training


# pictures


def test_pictures_show_what_was_found_and_the_sentence(lab: Made) -> None:
    one = lab()
    ctx = one.server(**one.sets())
    one.method.server_prepare(ctx)
    one.networks.eval()
    drawn = FigureContext(
        task=one.task, round=2, shared={}, networks=one.networks, data=ctx.data, client_names=("a",),
        client_state=lambda _: None, client_test=lambda _: None, denormalize=lambda x: (x + 1) / 2, seed=0,
        batch_size=8, private=one.private,
    )  # fmt: skip
    found = pictures.figures(drawn, one.method.settings)
    assert found.keys() == {"retrieved", "attention"}
    grid: Any = found["retrieved"]
    assert all(label.startswith("but ") for label in grid.row_labels)
    assert grid.columns == 6
    assert f"then “{grid.row_labels[0]}”" in grid.caption
    assert "·" in grid.caption


# settings and data


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"symmetric": True, "anchors": 2}, r"(?s)method\.anchors.*symmetric"),
        ({"symmetric": True, "contrast": "soft"}, r"(?s)method\.symmetric.*soft"),
        ({"query": "large", "encoder": {"pretrained": "x"}}, r"(?s)method\.encoder\.pretrained.*light"),
        ({"encoder": {"norm": "group", "widths": [8, 10]}}, r"(?s)method\.encoder\.widths.*multiples of 4"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(ISASettings.model_validate(settings), None)


def test_settings_that_are_probably_not_meant_are_told(lab: Made) -> None:
    config = lab().config
    assert check(ISASettings(), config) == []
    assert len(check(ISASettings(lambda_lar=0.0), config)) == 1
    small = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": 4})})
    assert len(check(ISASettings(), small)) == 1


@pytest.mark.parametrize(
    ("columns", "words", "told"),
    [
        ({"image": ("float32", (1, 32, 32))}, (), "3 channels"),
        ({"audio": ("float32", (100,))}, (), "a column 'image'"),
        ({"image": ("float32", (3, 32, 32))}, ("<pad>", "<end>", "red"), "set method.vl.pretrained"),
        ({"image": ("float32", (3, 32, 32))}, ("[PAD]", "red", "[CLS]"), "set method.vl.pretrained"),
    ],
)
def test_data_that_does_not_fit_is_refused(lab: Made, columns: Any, words: tuple[str, ...], told: str) -> None:
    one = lab()
    with pytest.raises(ConfigError, match=told):
        one.method.build(make_task(one.config, columns, (), 2, words))


def test_clients_need_no_texts(lab: Made) -> None:
    one = lab()
    columns: Any = {"image": ("float32", (3, 40, 48))}
    networks = one.method.build(make_task(one.config, columns, (), 2, ()))
    assert {"vl", "encoder", "learner", "pixels"} == networks.keys()


def test_both_query_sides_give_sentences_of_the_same_form(lab: Made) -> None:
    for settings in ({}, {"query": "large"}, {"learner": {"kind": "pooled"}}):
        one = lab(**settings)
        one.networks.eval()
        found = retrieval.learn(one.method.settings, one.networks, one.photos()["image"])
        assert found.sentence.shape == (8, 1 if "learner" in settings else 3, one.vl.word_width)
        assert ("encoder" in one.networks) == (settings.get("query") != "large")


def test_the_papers_networks_are_those_of_blip_and_efficientnet() -> None:
    config = load_config(method_folder("isa", "method") / "paper.yaml")
    method = make_method(config.method)
    columns: Any = {"image": ("float32", (3, 224, 224)), "label": ("int64", ())}
    words = tuple({0: "[PAD]", 101: "[CLS]", 102: "[SEP]"}.get(number, f"w{number}") for number in range(30522))
    with random_weights(config) as replaced, torch.device("meta"):
        networks = method.build(make_task(config, columns, ["dress", "shirt", "toptee"], 3, words))
    sizes = {role: sum(p.numel() for p in network.parameters()) for role, network in networks.items()}
    assert len(replaced) == 2
    assert sizes["encoder"] == 4_007_548  # EfficientNet-B0 without its classifier
    assert 220e6 < sizes["vl"] < 227e6
    learner: Any = networks["learner"]
    assert learner.out.weight.shape == (768, 1280)
    assert SMALL
