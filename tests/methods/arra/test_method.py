"""What ARRA's clients and server do with its networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import ConfigError
from fedlab.method import ClientState
from fedlab.method.exchange import Exchange
from fedlab.methods.arra import preparation
from fedlab.methods.arra.llm import TokenLLM
from fedlab.methods.arra.pictures import GALLERY, GALLERY_ROUNDS, extend_gallery
from fedlab.storage.hashing import state_hash
from tests.methods.arra.conftest import SMALL, VOCABULARY, Lab

Made = Callable[..., Lab]
ROLES = ("llm", "tokenizer", "encoder", "judge")


def gradients(one: Lab, loss: Tensor) -> dict[str, float]:
    one.networks.zero_grad()
    loss.backward()
    return {n: float(p.grad.norm()) for n, p in one.networks.named_parameters() if p.grad is not None}


def test_without_alignment_all_other_networks_start_as_with_it(lab: Made) -> None:
    with_it, without, rep = lab(), lab(lambda_gva=0), lab(positions="rep")
    assert "projector" not in without.networks
    for role in ROLES:
        assert (
            state_hash(with_it.networks[role]) == state_hash(without.networks[role]) == state_hash(rep.networks[role])
        )


def test_without_alignment_training_is_that_of_the_plain_language_model_to_the_bit(lab: Made) -> None:
    """Trained by a loop that knows nothing of ARRA but the tokens."""
    from transformers import LlamaForCausalLM

    one = lab(lambda_gva=0, z_weight=0)
    plain = LlamaForCausalLM(one.llm.model.config)
    plain.load_state_dict(one.llm.model.state_dict())
    one.trained(3)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    for seed in range(3):
        batch = one.batch(seed=seed)
        ids = one.layout.sequences(batch["text"], batch["codes"])
        logits, after = plain(input_ids=ids).logits[:, :-1], ids[:, 1:]
        image = (after >= 8) | (after == 6)  # codes and the end of an image
        optimizer.zero_grad()
        F.cross_entropy(logits[image], after[image]).backward()
        optimizer.step()
    assert all(torch.equal(value, one.llm.model.state_dict()[name]) for name, value in plain.state_dict().items())


def test_alignment_teaches_embeddings_the_first_block_and_the_projector_only(lab: Made) -> None:
    """Block 1 is the first: one index less would be the embeddings, one more a block that need not be trained."""
    one = lab()
    found = {name for name, norm in gradients(one, one.loss()["gva"]).items() if norm > 0}
    assert found
    allowed = ("llm.model.model.embed_tokens", "llm.model.model.layers.0.", "projector.")
    assert all(name.startswith(allowed) for name in found), found
    assert all(any(name.startswith(part) for name in found) for part in allowed)
    deeper = lab(layer=2)
    found = {name for name, norm in gradients(deeper, deeper.loss()["gva"]).items() if norm > 0}
    assert any(name.startswith("llm.model.model.layers.1.") for name in found)
    assert not any(name.startswith("llm.model.model.layers.2.") for name in found)


def test_later_codes_change_no_earlier_state(lab: Made) -> None:
    one = lab()
    batch = one.batch()
    ids = one.layout.sequences(batch["text"], batch["codes"])
    changed = batch["codes"].clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 8
    other = one.layout.sequences(batch["text"], changed)
    image = one.layout.image_positions(ids)
    states, others = (one.llm(x, 1).hidden[image].reshape(5, 16, -1) for x in (ids, other))
    assert torch.equal(states[:, :10], others[:, :10])  # position 9 predicts code 9 and has seen those before it
    assert not torch.allclose(states[:, 10], others[:, 10])


def test_the_length_of_other_captions_changes_no_samples_loss(lab: Made) -> None:
    one = lab()
    batch = one.batch(2)
    both, alone = one.loss(batch), [one.loss({k: v[i : i + 1] for k, v in batch.items()}) for i in range(2)]
    assert one.layout.lengths(batch["text"]).tolist() == [2, 3]
    for name, value in both.items():
        assert float(value.detach()) == pytest.approx(float(sum(o[name].detach() for o in alone)) / 2, rel=1e-5), name


def test_weights_scale_their_terms_and_none_switches_off_another(lab: Made) -> None:
    plain = {name: float(value.detach()) for name, value in lab().loss().items()}
    assert set(plain) == {"ar", "z", "gva"}
    doubled = lab(lambda_gva=2.0, z_weight=2e-5).loss()
    assert float(doubled["gva"].detach()) == pytest.approx(2 * plain["gva"], rel=1e-5)
    assert float(doubled["z"].detach()) == pytest.approx(2 * plain["z"], rel=1e-5)
    assert set(lab(z_weight=0).loss()) == {"ar", "gva"}
    assert set(lab(lambda_gva=0).loss()) == {"ar", "z"}


def test_where_the_alignment_is_asked_for(lab: Made) -> None:
    losses = {which: float(lab(positions=which).loss()["gva"].detach()) for which in ("hybnext", "rep", "last")}
    assert len(set(losses.values())) == 3
    one = lab()
    batch = one.batch()
    ids = one.layout.sequences(batch["text"], batch["codes"])
    projected = one.networks["projector"](one.llm(ids, 1).hidden)[one.layout.image_positions(ids)].reshape(5, 16, -1)
    expected = (1 - F.cosine_similarity(projected, batch["target"][:, None], dim=2)).mean()
    assert losses["hybnext"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_captions_are_left_out_as_often_as_asked(lab: Made) -> None:
    collate = lab(drop_prompt=0.25).method.batch_spec({}).collate
    assert collate is not None
    dropped = collate({"text": torch.ones(4000, 3)}, torch.Generator().manual_seed(0))["dropped"]
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert lab().method.batch_spec({}).collate is None
    one = lab()
    batch = one.batch()
    every = one.loss({**batch, "dropped": torch.ones(5, dtype=torch.bool)})
    assert float(every["ar"].detach()) != float(one.loss(batch)["ar"].detach())


# what is made once


def test_codes_and_targets_are_computed_once_and_kept_by_the_client(lab: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one, state, calls = lab(), ClientState(), [0]
    features = one.networks["encoder"].features

    def counted(pixels: Tensor) -> Tensor:
        calls[0] += 1
        found: Tensor = features(pixels)
        return found

    monkeypatch.setattr(one.networks["encoder"], "features", counted)
    data = one.samples()
    first = preparation.precomputed(one.client(data, state), aligns=True)
    again = preparation.precomputed(one.client(data, state), aligns=True)
    assert calls == [1]
    assert set(first) == {"text", "codes", "target"}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not first["target"].requires_grad
    other = preparation.precomputed(one.client(one.samples(seed=1), state, "b"), aligns=True)
    assert calls == [2], "other samples have other vectors"
    assert not torch.equal(other["target"], first["target"])
    preparation.precomputed(one.client(data, ClientState()), aligns=False)
    assert calls == [2]
    expected = one.batch()
    assert all(torch.equal(first[name], expected[name]) for name in first)


def test_the_server_fits_the_codebook_and_trains_encoder_and_judge_apart(lab: Made) -> None:
    one, alone = lab(), lab(lambda_gva=0)
    before = {role: state_hash(one.networks[role]) for role in ROLES}
    public = one.samples(16)
    for each in (one, alone):
        each.method.server_prepare(each.server(pretrain=public, composition=one.samples(6, 1)))
    after = {role: state_hash(one.networks[role]) for role in ROLES}
    assert {role for role in ROLES if before[role] != after[role]} == {"tokenizer", "encoder", "judge"}
    assert after["encoder"] != after["judge"]
    assert after == {role: state_hash(alone.networks[role]) for role in ROLES}, "all arms have the same frozen networks"
    assert one.private[GALLERY].shape == (1, 2, 16)


def test_a_server_without_public_images_is_told_what_to_do(lab: Made) -> None:
    one = lab()
    told = r"(?s)method\.public.*pretrain.*tokenizer, encoder, judge.*holds composition"
    with pytest.raises(ConfigError, match=told):
        one.method.server_prepare(one.server(composition=one.samples()))


def test_a_set_to_evaluate_on_that_is_not_there_is_refused_if_it_was_asked_for(lab: Made) -> None:
    one = lab(held="drawm")
    with pytest.raises(ConfigError, match=r"(?s)method\.held.*holds pretrain, drawn"):
        one.method.server_prepare(one.server(pretrain=one.samples(16), drawn=one.samples()))
    optional = lab()
    optional.method.server_prepare(optional.server(pretrain=one.samples(16)))
    assert optional.method.server_evaluate(optional.server(pretrain=one.samples(16))) == {}


def test_the_gallery_grows_by_the_same_captions_every_round(lab: Made) -> None:
    one = lab()
    for round in (0, 1, 2):
        extend_gallery(one.server(round, composition=one.samples(6)), one.method.settings)
    assert one.private[GALLERY].shape == (3, 2, 16)
    assert one.private[GALLERY_ROUNDS].tolist() == [0, 1, 2]
    nothing = lab(generation={"gallery": 0})
    extend_gallery(nothing.server(composition=one.samples(6)), nothing.method.settings)
    assert not nothing.private


# what travels


@pytest.mark.parametrize(
    ("settings", "averaged", "once", "resting"),
    [
        ({}, {"llm", "projector"}, {"tokenizer", "encoder"}, {"judge"}),
        ({"projector": "local"}, {"llm"}, {"tokenizer", "encoder"}, {"judge"}),
        ({"lambda_gva": 0}, {"llm"}, {"tokenizer"}, {"encoder", "judge"}),
    ],
)
def test_language_model_and_projector_are_averaged_and_the_judge_never_leaves_the_server(
    lab: Made, settings: dict[str, Any], averaged: set[str], once: set[str], resting: set[str]
) -> None:
    one = lab(**settings)
    exchange = Exchange(one.networks, one.method.exchange({}))

    def roles(names: tuple[str, ...]) -> set[str]:
        return {name.partition(".")[0] for name in names}

    assert (roles(exchange.up), roles(exchange.once), roles(exchange.rest)) == (averaged, once, resting)
    assert not exchange.frozen


def test_the_exported_model_is_the_plain_language_model(lab: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    one = lab()
    one.trained(1)
    exported = one.method.artifacts(one)["llm"]  # type: ignore[arg-type]  # only the networks are looked at
    assert isinstance(exported, LlamaForCausalLM)
    exported.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    plain = LlamaForCausalLM(exported.config)
    assert {n: v.shape for n, v in loaded.state_dict().items()} == {n: v.shape for n, v in plain.state_dict().items()}
    batch = one.batch()
    ids = one.layout.sequences(batch["text"], batch["codes"])
    assert torch.equal(loaded(input_ids=ids).logits, one.llm.eval()(ids, 1).logits)
    assert loaded.config.image_tokens == {"boi": 5, "eoi": 6, "first_code": 8}


# images


def test_images_consist_of_codes_and_depend_on_the_generator_alone(lab: Made) -> None:
    one = lab()
    one.networks.eval()
    text = one.samples(4)["text"]

    def drawn(seed: int, **changes: Any) -> Tensor:
        how = {"temperature": 1.0, "top_k": 2000, "guidance": 2.0, **changes}
        return one.llm.generate(text, torch.Generator().manual_seed(seed), **how)

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = drawn(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(1), first)
    assert first.shape == (4, 16)
    assert 0 <= int(first.min()) <= int(first.max()) < 8
    assert not torch.equal(drawn(0, guidance=300.0), first)


def test_the_most_likely_image_is_that_of_the_logits_with_guidance(lab: Made) -> None:
    one = lab()
    one.networks.eval()
    text, g = one.samples(2)["text"], 3.0
    found = one.llm.generate(text, torch.Generator().manual_seed(0), temperature=1.0, top_k=1, guidance=g)
    for row in range(2):
        caption = text[row, : int(one.layout.lengths(text)[row])]
        codes: list[int] = []
        for _ in range(16):
            image = torch.tensor([5, *codes])
            with torch.no_grad():
                c, u = (
                    one.llm(ids[None], 1).logits[0, -1].log_softmax(0) for ids in (torch.cat([caption, image]), image)
                )
            codes.append(8 + int((u + g * (c - u))[8:].argmax()))
        assert found[row].tolist() == [code - 8 for code in codes]


# settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"layer": 4}, r"(?s)method\.layer.*1 to 3"),
        ({"probed_layer": 4}, r"(?s)method\.probed_layer.*1 to 3"),
        ({"judge": {"pretrained": "x"}, "encoder": {"pretrained": "x"}}, r"(?s)method\.judge\.pretrained.*another"),
        ({"positions": "rep", "lambda_gva": 0}, r"(?s)method\.positions.*lambda_gva"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], told: str) -> None:
    from fedlab.methods.arra.settings import ARRASettings, check

    with pytest.raises(ConfigError, match=told):
        check(ARRASettings.model_validate({**SMALL, **settings}), None)


def test_settings_that_are_probably_not_meant_are_told() -> None:
    from fedlab.methods.arra.settings import ARRASettings, check

    told = check(ARRASettings.model_validate({**SMALL, "projector": "local"}), None)
    assert len(told) == 3  # guidance without dropped captions, a local projector, few samples
    assert check(ARRASettings(), None) == []


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": ("float32", (3, 16, 16))}, "column 'text'"),
        ({"image": ("float32", (3, 18, 16)), "text": ("int64", (3,))}, r"divisor of the images' 18×16"),
    ],
)
def test_data_that_does_not_fit_is_refused(lab: Made, columns: Any, told: str) -> None:
    from fedlab.assembly import make_task

    one = lab()
    with pytest.raises(ConfigError, match=told):
        one.method.build(make_task(one.config, columns, (), 2, VOCABULARY))


def test_output_weights_of_codes_can_start_at_zero(lab: Made) -> None:
    one = lab(zero_codes=True)
    assert isinstance(one.llm, TokenLLM)
    weights = one.llm.model.get_output_embeddings().weight
    assert not weights[8:].any()
    assert weights[:8].any()


def test_the_papers_configuration_is_that_of_llamagen(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    columns = {"image": ("float32", (3, 256, 256)), "text": ("int64", (77,))}
    vocabulary = [f"w{index}" for index in range(49408)]
    made = {"tokenizer": {"codes": 16384, "patch": 16}, "encoder": {"width": 768}, "judge": {"width": 8}}
    networks = paper_networks("arra", columns, vocabulary=vocabulary, **made)
    llm, projector = networks["llm"], networks["projector"]
    assert isinstance(llm, TokenLLM)
    assert llm.layout.cells == 256
    blocks = sum(p.numel() for p in llm.model.model.layers.parameters())
    assert blocks == 24 * (4 * 1024**2 + 3 * 1024 * 2816 + 2 * 1024)
    assert [tuple(p.shape) for p in projector.parameters()] == [(768, 1024), (768,), (768, 768), (768,)]


def test_loaded_encoders_and_language_models(lab: Made, tmp_path: Path) -> None:
    """Checkpoints do not travel, and a language model gets further tokens."""
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        LlamaConfig,
        LlamaForCausalLM,
        ViTConfig,
        ViTModel,
    )

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**size, "image_size": 12, "patch_size": 6}
    CLIPVisionModelWithProjection(CLIPVisionConfig(**vision, projection_dim=5)).save_pretrained(tmp_path / "clip")
    ViTModel(ViTConfig(**vision)).save_pretrained(tmp_path / "vit")
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=9, max_position_embeddings=40)).save_pretrained(tmp_path / "llm")
    places = {name: {"pretrained": str(tmp_path / name)} for name in ("clip", "vit", "llm")}
    one = lab(encoder=places["clip"], judge={**places["vit"], "feature": "average"}, llm=places["llm"])
    assert one.layout.words == 9
    assert one.llm.model.get_input_embeddings().weight.shape == (9 + 3 + 8, 8)
    assert set(one.loss()) == {"ar", "z", "gva"}
    pixels = torch.rand(2, 3, 16, 16)
    for role, width in (("encoder", 5), ("judge", 8)):
        found = one.networks[role].features(pixels)
        assert found.shape == (2, width)
        assert one.networks[role].num_features == width
        assert torch.equal(one.networks[role].features(pixels), found)
    exchange = Exchange(one.networks, one.method.exchange({}))
    assert {name.partition(".")[0] for name in exchange.frozen} == {"encoder"}
    assert "encoder" in exchange.fixed_roles
    one.method.server_prepare(one.server(pretrain=one.samples(16)))
    values = one.method.server_evaluate(one.server(pretrain=one.samples(16), composition=one.samples(6)))
    assert "fid" in values
    assert "caption_accuracy" not in values
    LlamaForCausalLM(LlamaConfig(**size, vocab_size=9, max_position_embeddings=8)).save_pretrained(tmp_path / "llm")
    with pytest.raises(ConfigError, match=r"(?s)method\.llm\.pretrained.*at least 21 positions"):
        lab(llm=places["llm"])
    with pytest.raises(ConfigError, match=r"(?s)method\.encoder\.pretrained.*an image encoder"):
        lab(encoder={"pretrained": str(tmp_path / "none")})
