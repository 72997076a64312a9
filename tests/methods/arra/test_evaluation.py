"""What ARRA measures, with known answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedlab.methods.arra import evaluation
from fedlab.methods.arra.sequences import Layout
from fedlab.methods.arra.vision import word_targets
from tests.methods.arra.conftest import Lab

Made = Callable[..., Lab]


def test_ridge_finds_a_linear_map_and_ignores_inputs_that_say_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator, dtype=torch.float64)
    weights = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    found = evaluation.ridge(x, x @ weights + 3, strength=1e-9)
    assert torch.allclose(found[:-1], weights, atol=1e-4)
    assert torch.allclose(found[-1], torch.full((2,), 3.0, dtype=torch.float64), atol=1e-4)
    pulled = evaluation.ridge(x, x @ weights + 3, strength=1e9)
    assert torch.allclose(pulled[:-1], torch.zeros(4, 2, dtype=torch.float64), atol=1e-3)


def test_states_that_tell_the_vector_have_no_error_and_those_that_say_nothing_have(
    lab: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lab(probed_layer=2)
    settings = one.method.settings
    public, held = one.samples(24, 1), one.samples(12, 2)

    asked = []

    def told(networks: nn.ModuleDict, layer: int, text: Tensor, pixels: Tensor) -> Tensor:
        asked.append(layer)
        vector = networks["encoder"].features(pixels)
        states = vector[:, None].repeat(1, 16, 1)
        states[:, 8:] = 0.5  # the second half of the image says nothing
        return states

    context = one.server(1, pretrain=public, composition=held)
    true = evaluation.alignment_errors(context, settings)
    monkeypatch.setattr(evaluation, "image_states", told)
    errors = evaluation.alignment_errors(context, settings)
    assert set(asked) == {2}
    assert errors.shape == true.shape == (evaluation.PROBED,)
    assert (errors[:4] < errors[4:]).all()
    values = evaluation.server_values(one.server(1, pretrain=public, composition=held), settings)
    assert values["alignment_error"] == pytest.approx(float(errors.mean()))
    assert values["alignment_spread"] == pytest.approx(float(errors[-1] / errors[0]))
    assert set(values) == {
        "alignment_error", "alignment_error_first", "alignment_error_last", "alignment_spread", "fid", "kid",
        "decoded_fid", "fid_floor", "caption_accuracy", "caption_f1", "real_caption_accuracy",
        "decoded_caption_accuracy",
    }  # fmt: skip
    assert evaluation.server_values(one.server(1, pretrain=public), settings) == {}


def test_real_images_as_generated_ones_are_at_distance_zero_and_as_good_as_real(
    lab: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = lab(generation={"samples": 12})
    held = one.samples(12, 2)
    pixels = one.networks["pixels"](held["image"])
    tokenizer = one.networks["tokenizer"]
    monkeypatch.setattr(evaluation, "generate", lambda ctx, s, text, purpose: text)
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, codes: pixels[: len(codes)])
    monkeypatch.setattr(type(tokenizer), "encode", lambda self, shown: shown)
    context = one.server(1, composition=held)
    context.batch_size = 12
    values = evaluation.generation_values(context, one.method.settings)
    assert values["fid"] == pytest.approx(0.0, abs=1e-4)
    assert values["decoded_fid"] == pytest.approx(0.0, abs=1e-4)
    assert values["fid_floor"] > 0
    assert values["caption_accuracy"] == values["real_caption_accuracy"] == values["decoded_caption_accuracy"]
    kid, shown = values["kid"], iter((1 - pixels, pixels))  # what is generated is decoded first
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, codes: next(shown))
    values = evaluation.generation_values(context, one.method.settings)
    assert values["fid"] > 1e-3
    assert values["kid"] != kid
    assert values["decoded_fid"] == pytest.approx(0.0, abs=1e-4)


def test_clients_measure_the_loss_per_predicted_token(lab: Made) -> None:
    from fedlab.method import EvaluationContext

    one = lab(llm={"width": 16, "hidden": 24, "blocks": 1, "heads": 2, "dropout": 0.0})
    nn.init.zeros_(one.llm.model.get_output_embeddings().weight)
    context = EvaluationContext(data=one.samples(5), train_data=dict, state={}, batch_size=2, client=0, **one._work(1))
    sums = evaluation.token_sums(context)
    assert float(sums["tokens"]) == 5 * 17
    assert evaluation.token_values(sums)["ar_loss"] == pytest.approx(math.log(one.layout.size), rel=1e-5)


def test_words_of_a_caption_are_those_before_its_end() -> None:
    layout = Layout(words=6, ends=(1,), codes=2, cells=1)
    text = torch.tensor([[2, 4, 1, 0], [5, 1, 3, 3], [0, 0, 0, 0]])
    expected = [{2, 4}, {5}, set()]
    assert [set(row.nonzero().flatten().tolist()) for row in word_targets(text, layout, 6)] == expected
