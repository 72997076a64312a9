"""BLIP with word embeddings in place of words, and the small model that comes with FedLab."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedlab.config import Component
from fedlab.data.generated.edits import WORDS, all_objects, draw_pictures, encoded, words_of
from fedlab.data.sources import load_source
from fedlab.errors import ConfigError
from fedlab.metrics.composed import ComposedRetrieval
from fedlab.models.blip import TINY, Blip, load_blip, match_probability
from fedlab.seeding import numpy_generator

ROOT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def tiny() -> Blip:
    return load_blip(TINY, "method.vl.pretrained")


def nothing(count: int) -> Tensor:
    return torch.zeros(count, 0, tiny().word_width)


def captions() -> Tensor:
    return torch.from_numpy(encoded([("a", "red", "square", "left"), ("blue", "above"), ("but", "blue")]))


def seen() -> Tensor:
    images = draw_pictures(all_objects()[[0, 20, 40]], numpy_generator(0, "test"))
    return tiny().look(torch.from_numpy(images).float() / 255).tokens


# 6: words and their embeddings are the same to it


@torch.no_grad()
def test_embeddings_of_a_captions_words_pass_as_the_words_do() -> None:
    vl, ids, tokens = tiny(), captions(), seen()
    model, mask = vl.model, (captions() != 0).long()
    plain = model.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(model.text_proj(plain), dim=1)
    for row, count in enumerate((4, 2, 2)):
        words = vl.word_embeddings[ids[row : row + 1, 1 : 1 + count]]
        before = words.clone()
        sentence = vl.sentence(words)
        assert torch.allclose(vl.read(sentence), expected[row : row + 1], atol=1e-6)
        # twice, and with images in between: nothing is changed in place
        vl.match(sentence, tokens[row : row + 1])
        assert torch.allclose(vl.read(sentence), expected[row : row + 1], atol=1e-6)
        assert torch.equal(words, before)
    crossed = model.text_encoder(
        input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens,
        encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long),
    ).last_hidden_state[:, 0]  # fmt: skip
    found = vl.match(vl.sentence(nothing(3), ids), tokens)
    assert torch.allclose(found, model.itm_head(crossed), atol=1e-5)


# 10: no tokens


@torch.no_grad()
def test_a_sentence_without_tokens_is_the_text() -> None:
    vl, ids = tiny(), captions()
    plain = vl.model.text_encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(vl.model.text_proj(plain), dim=1)
    assert torch.allclose(vl.read(vl.sentence(nothing(3), ids)), expected, atol=1e-6)


@torch.no_grad()
def test_padding_and_the_company_of_longer_texts_change_nothing() -> None:
    vl, ids = tiny(), captions()
    tokens = torch.randn(3, 2, vl.word_width)
    together = vl.read(vl.sentence(tokens, ids))
    for row in range(3):
        alone = vl.read(vl.sentence(tokens[row : row + 1], ids[row : row + 1]))
        assert torch.allclose(alone, together[row : row + 1], atol=1e-5)
    assert not torch.allclose(vl.read(vl.sentence(tokens)), together, atol=1e-3)


def test_a_sentence_consists_of_tokens_and_words_in_their_order() -> None:
    vl, tokens = tiny(), torch.randn(2, 3, tiny().word_width)
    ids = torch.from_numpy(encoded([("but", "blue"), ("but",)]))
    found = vl.sentence(tokens, ids)
    number = {word: place for place, word in enumerate(WORDS)}
    rest = torch.tensor([[number["but"], number["blue"], 2], [number["but"], 2, 0]])
    assert torch.equal(found.embeddings[:, 0], vl.word_embeddings[[1, 1]])
    assert torch.equal(found.embeddings[:, 1:4], tokens)
    assert torch.equal(found.embeddings[:, 4:], vl.word_embeddings[rest])
    assert found.mask.tolist() == [[True] * 7, [True] * 6 + [False]]


def test_gradients_pass_through_both_encoders_into_the_tokens() -> None:
    vl = load_blip(TINY, "x").requires_grad_(False)
    tokens = torch.randn(3, 2, vl.word_width, requires_grad=True)
    sentence = vl.sentence(tokens, captions())
    for value in (vl.read(sentence).sum(), vl.match(sentence, seen().detach()).sum()):
        (gradient,) = torch.autograd.grad(value, tokens, retain_graph=True)
        assert float(gradient.abs().sum()) > 0
    assert all(p.grad is None for p in vl.parameters())


# the small model that comes with FedLab


def test_the_shipped_model_is_the_one_that_the_readme_describes() -> None:
    file = Path(TINY) / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest in (ROOT / "methods" / "isa" / "README.md").read_text(encoding="utf-8")
    assert file.stat().st_size < 1_000_000
    vl = tiny()
    assert (vl.cls, vl.sep, vl.pad, vl.num_words) == (1, 2, 0, len(WORDS))
    assert vl.grid == (4, 4)


@torch.no_grad()
def test_its_word_oracle_finds_what_is_asked_for() -> None:
    """True captions of the reference, followed by the edit: the precondition of everything that ISA measures."""
    vl = tiny()
    source = Component(name="edited_scenes", train=48, test=48, gallery=2, references=1, data_seed=11)
    server = load_source(source, 0).server
    queries = {name: torch.from_numpy(values) for name, values in server["queries"].columns.items()}
    index = vl.look(torch.from_numpy(server["gallery"]["image"]).float() / 255).vectors
    metric = ComposedRetrieval()
    found = vl.read(vl.sentence(nothing(len(queries["oracle"])), queries["oracle"]))
    metric.update(found @ index.T, queries["targets"], removed=queries["removed"])
    assert metric.compute()["recall@1"] >= 0.95


@torch.no_grad()
def test_it_matches_captions_with_their_own_pictures() -> None:
    vl, objects = tiny(), all_objects()[::5]
    images = draw_pictures(objects, numpy_generator(1, "test"))
    tokens = vl.look(torch.from_numpy(images).float() / 255).tokens
    ids = torch.from_numpy(encoded([words_of(found) for found in objects.tolist()]))
    own = match_probability(vl.match(vl.sentence(nothing(len(ids)), ids), tokens))
    other = match_probability(vl.match(vl.sentence(nothing(len(ids)), ids), tokens.roll(1, dims=0)))
    assert float(own.mean()) > 0.8
    assert float(other.mean()) < 0.2


# other checkpoints


def test_what_is_no_such_model_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    with pytest.raises(ConfigError, match=r"(?s)method\.vl\.pretrained.*a BLIP model"):
        load_blip(str(tmp_path / "none"), "method.vl.pretrained")
    small = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ViTModel(small).save_pretrained(tmp_path / "vit")
    with pytest.raises(ConfigError, match=re.escape("method.vl.pretrained")):
        load_blip(str(tmp_path / "vit"), "method.vl.pretrained")


def test_published_checkpoints_have_the_numbers_of_bert() -> None:
    from transformers import BlipConfig, BlipForImageTextRetrieval

    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = BlipConfig(text_config={**size, "vocab_size": 120}, vision_config={**size, "image_size": 32})
    vl = Blip(BlipForImageTextRetrieval(config))
    assert (vl.cls, vl.sep, vl.pad) == (101, 102, 0)
