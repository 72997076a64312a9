"""The three losses, the two decoders, the target, and the schedules (checks 6 to 11)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedlab.config import load_config
from fedlab.distill.schedules import cosine
from fedlab.experiment.start import method_folder
from fedlab.methods.fsfm.losses import masked_mean, patch_errors, patch_targets, similarity_loss
from fedlab.methods.fsfm.networks import Classifier, Normalizer, Student, image_sums
from tests.methods.fsfm.conftest import Lab

Make = Callable[..., Lab]
FOLDER = Path(method_folder("fsfm", "method"))
ONE, OTHER = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[-2.0, 1.0, 5.0]])


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# L_sim (check 6)


def test_the_similarity_loss_is_half_the_negative_cosine() -> None:
    assert float(similarity_loss(3 * ONE, ONE)) == pytest.approx(-0.5)
    assert float(similarity_loss(ONE, OTHER)) == pytest.approx(0, abs=1e-6)
    assert float(similarity_loss(-ONE, ONE)) == pytest.approx(0.5)
    assert float(similarity_loss(torch.cat([ONE, OTHER]), torch.cat([ONE, ONE]))) == pytest.approx(-0.25)


def test_other_forms_of_it() -> None:
    z, t = torch.cat([ONE, OTHER]), torch.cat([ONE, OTHER])
    assert float(similarity_loss(ONE, OTHER, "byol")) == pytest.approx(2)
    assert float(similarity_loss(z, t, "byol")) == pytest.approx(0, abs=1e-6)
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
    info = float(nn.functional.cross_entropy(logits, torch.arange(2)))
    assert float(similarity_loss(z, t, "info_nce", 0.2)) == pytest.approx(info)
    assert float(similarity_loss(z, t, "moco", 0.2)) == pytest.approx(0.4 * info)
    # every view looks for its other view among the three other views
    simclr = -torch.tensor([5.0, 0.0, 0.0]).log_softmax(0)[0]
    assert float(similarity_loss(z, t, "simclr", 0.2)) == pytest.approx(float(simclr))


@pytest.mark.parametrize("form", ["simsiam", "byol", "info_nce", "moco", "simclr"])
def test_the_target_gets_no_gradient(form: Any) -> None:
    z, t = rand(4, 3).requires_grad_(), rand(4, 3, seed=1).requires_grad_()
    similarity_loss(z, t, form).backward()
    assert z.grad is not None
    assert t.grad is None


# L_m and L_fr (checks 3, 7, 8)


def test_errors_of_one_make_losses_of_one_over_the_whole_batch() -> None:
    masked, region = rand(3, 8) < 0.6, rand(3, 8, seed=1) < 0.3
    assert float(masked_mean(torch.ones(3, 8), masked)) == pytest.approx(1)
    errors = torch.zeros(2, 4)
    errors[0, 0] = 1
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    assert float(masked_mean(errors, mask)) == 0.25  # a mean of each face's mean would be 1/2
    assert float(masked_mean(errors, torch.zeros_like(region[:2, :4]))) == 0


@pytest.mark.parametrize("patch", [4, 16])
def test_standardized_patches(patch: int) -> None:
    images = rand(2, 3, 32, 32)
    targets = patch_targets(images, patch, True)
    values = 3 * patch**2
    assert targets.shape == (2, (32 // patch) ** 2, values)
    # unbiased variance: predicting 0 costs 47/48 with 4 pixels, 767/768 with 16
    expected = torch.full(targets.shape[:2], (values - 1) / values)
    torch.testing.assert_close(patch_errors(torch.zeros_like(targets), targets), expected, atol=1e-4, rtol=0)
    assert not patch_targets(torch.full((1, 3, 32, 32), 0.3), patch, True).any()


def test_the_pixels_of_a_patch_and_their_order() -> None:
    images = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    raw = patch_targets(images, 2, False)
    assert raw[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_the_loss_is_the_sum_of_its_weighted_terms(lab: Make) -> None:
    small = lab()
    batch = small.batch()
    terms = small.terms(batch)
    student: Any = small.networks["student"]
    with torch.no_grad():
        x = small.networks["normalizer"](batch["image"])
        made = student.masked(x, batch["visible"])
        errors = patch_errors(made.pixels, patch_targets(x, 8, True))
        cos = torch.cosine_similarity(made.prediction, small.networks["target"](x)).mean()
    assert float(terms["l_m"].detach()) == pytest.approx(float(errors[batch["masked"]].mean()), rel=1e-5)
    assert float(terms["l_fr"].detach()) == pytest.approx(0.007 * float(errors[batch["region"]].mean()), rel=1e-5)
    assert float(terms["l_sim"].detach()) == pytest.approx(-0.05 * float(cos), rel=1e-4)
    assert set(lab(similarity_weight=0.0).terms()) == {"l_m", "l_fr"}
    assert set(lab(region_weight=0.0).terms()) == {"l_m", "l_sim"}


def test_a_region_that_no_face_has_makes_no_nan(lab: Make) -> None:
    small = lab()
    batch = small.batch() | {"region": torch.zeros(4, 16, dtype=torch.bool)}
    terms = small.terms(batch)
    assert float(terms["l_fr"].detach()) == 0
    assert all(term.isfinite() for term in terms.values())


# networks (§3.3, check 10)


def test_hidden_patches_do_not_reach_the_encoder_and_the_target_sees_all(lab: Make) -> None:
    small = lab()
    batch = small.batch()
    student: Any = small.networks["student"]
    x = batch["image"]
    covered = torch.nn.functional.interpolate(batch["masked"].reshape(-1, 1, 4, 4).float(), scale_factor=8) > 0
    changed = torch.where(covered, torch.rand_like(x), x)
    seen, same = student.masked(x, batch["visible"]), student.masked(changed, batch["visible"])
    torch.testing.assert_close(seen.pixels, same.pixels)
    torch.testing.assert_close(seen.prediction, same.prediction)
    other = small.batch(seed=1)["visible"]
    assert not torch.allclose(student.masked(x, other).prediction, seen.prediction)
    target: Any = small.networks["target"]
    assert not torch.allclose(target(x), target(changed))


def test_tokens_come_back_to_their_places(lab: Make) -> None:
    """With decoders that do nothing but pass on, each visible place has its own token and all others the mask token."""
    student: Any = lab().networks["student"]
    decoder = student.rep_decoder
    decoder.embed, decoder.norm, decoder.out = nn.Identity(), nn.Identity(), nn.Identity()
    decoder.blocks = nn.ModuleList()
    decoder.positions = torch.zeros_like(decoder.positions)
    tokens, visible = rand(1, 3, 16), torch.tensor([[2, 7]])
    made = decoder(tokens, student.mask_token, visible)
    assert torch.equal(made[:, [0, 3, 8]], tokens)
    rest = [place for place in range(1, 17) if place not in (3, 8)]
    assert torch.equal(made[:, rest], student.mask_token.expand(1, 14, -1))
    whole = (tokens.sum(1) + 14 * student.mask_token[:, 0]) / 17  # the class token counts too
    torch.testing.assert_close(student.representation(tokens, student.mask_token, visible), whole)


def test_both_decoders_share_one_mask_token_and_neither_sends_positions(lab: Make) -> None:
    small = lab()
    small.terms()["l_m"].backward()
    student: Any = small.networks["student"]
    by_pixels = student.mask_token.grad.clone()
    student.mask_token.grad = None
    small.terms()["l_sim"].backward()
    by_views = student.mask_token.grad
    assert by_pixels.abs().sum() > 0
    assert by_views.abs().sum() > 0
    state = small.networks.state_dict()
    assert sum("mask_token" in name for name in state) == 1
    assert not any("positions" in name for name in state)


def test_the_predictor_has_no_target_and_no_gradient_reaches_the_target(lab: Make) -> None:
    small = lab()
    target, student = small.networks["target"], small.networks["student"]
    parts = {name.partition(".")[0] for name, _ in target.named_parameters()}
    assert parts == {"encoder", "rep_decoder", "projector"}
    assert set(target.state_dict()) < set(student.state_dict())
    torch.stack(list(small.terms().values())).sum().backward()
    assert all(p.grad is None for p in target.parameters())
    assert all(p.grad is not None for name, p in student.named_parameters())


def test_there_is_no_batch_normalization(lab: Make) -> None:
    assert not any("BatchNorm" in type(module).__name__ for module in lab().networks.modules())


def test_the_target_follows_after_each_step_with_a_rising_momentum(lab: Make) -> None:
    assert [cosine(step, 100, 0.996, 1.0) for step in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])
    small = lab(momentum=0.9)
    student, target = small.networks["student"], small.networks["target"]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    before = [p.clone() for p in target.parameters()]
    small.method.after_step(small.networks, small.step(0))
    for old, new in zip(before, target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
    frozen = lab(momentum=1.0)
    before = [p.clone() for p in frozen.networks["target"].parameters()]
    with torch.no_grad():
        for p in frozen.networks["student"].parameters():
            p.add_(1.0)
    frozen.method.after_step(frozen.networks, frozen.step(0))
    assert all(torch.equal(old, new) for old, new in zip(before, frozen.networks["target"].parameters(), strict=True))


def test_heads_and_encoder_start_from_the_same_initialization(lab: Make) -> None:
    """Xavier-uniform everywhere, as the authors' code ends up with, and not the truncated normal of other heads."""
    student: Any = lab().networks["student"]
    for layer in (student.predictor.mlp[0], student.encoder.blocks[0].qkv, student.pixel_decoder.out):
        bound = (6 / (layer.weight.shape[0] + layer.weight.shape[1])) ** 0.5
        assert 0.9 * bound < float(layer.weight.detach().abs().max()) <= bound


# statistics (§6)


def test_sums_of_clients_give_mean_and_deviation_of_all_their_pictures() -> None:
    images = rand(6, 3, 8, 8)
    normalizer = Normalizer((0.5,), (0.5,), 3)
    normalizer.set(image_sums([images[:2]], 3) + image_sums([images[2:5], images[5:]], 3))
    made = normalizer(images)
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    normalizer.set(image_sums([torch.full((1, 3, 4, 4), 0.25)], 3))
    assert torch.isfinite(normalizer(images)).all()


# the classifier (§3.6)


@pytest.mark.parametrize("head", ["linear", "bottleneck"])
def test_the_classifier_takes_the_encoder_over_without_its_last_normalization(lab: Make, head: str) -> None:
    small = lab(finetune={"head": head})
    classifier: Any = small.networks["classifier"]
    student: Any = small.networks["student"]
    assert isinstance(classifier, Classifier)
    assert isinstance(student, Student)
    assert not any(name.startswith("encoder.norm") for name in classifier.state_dict())
    with torch.no_grad():
        student.encoder.norm.weight.fill_(7.0)
    classifier.take_over(student.encoder)
    x = rand(2, 3, 32, 32)
    expected = student.encoder.run(student.encoder.embed(x))[:, 1:].mean(1)
    mean, std = expected.mean(1, keepdim=True), expected.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(classifier.features(x), (expected - mean) / std, atol=1e-4, rtol=1e-4)
    assert classifier.eval()(x).shape == (2, 2)


def test_learning_rates_fall_from_block_to_block_and_a_probe_trains_the_head_alone(lab: Make) -> None:
    small = lab(finetune={"layer_decay": 0.5})
    groups = small.method.param_groups(small.networks, {"stage": "finetune"})
    assert sorted({group.get("lr_factor", 1.0) for group in groups}) == [0.125, 0.25, 0.5, 1.0]
    probe = lab(finetune={"train": "head"})
    trained = {
        id(p) for group in probe.method.param_groups(probe.networks, {"stage": "finetune"}) for p in group["params"]
    }
    classifier: Any = probe.networks["classifier"]
    assert trained == {id(p) for part in (classifier.fc_norm, classifier.head) for p in part.parameters()}


# schedules (check 11) and the paper's sizes


def test_learning_rates_of_the_paper() -> None:
    assert load_config(FOLDER / "paper.yaml").training.lr == pytest.approx(1.5e-4 * 4096 / 256)
    tuning: Any = load_config(FOLDER / "paper_deepfakes.yaml").method.settings["finetune"]
    assert tuning["training"]["lr"] == pytest.approx(2.5e-4 * 64 / 256)
    diffusion: Any = load_config(FOLDER / "paper_diffusion.yaml").method.settings["finetune"]
    assert diffusion["training"]["lr"] == pytest.approx(5e-4 * 256 / 256)


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_to_0(lab: Make) -> None:
    small = lab()
    rates = [small.method.schedule(small.step(step, 100), {"lr": 2.0})["lr"] for step in (0, 9, 10, 55, 99)]
    assert rates == pytest.approx([0, 2, 2, 1, 0], abs=1e-2)


def test_the_paper_s_networks_have_the_sizes_of_vit_b(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    columns = {"image": ("float32", (3, 224, 224)), "regions": ("uint8", (224, 224)), "label": ("int64", ())}
    networks = paper_networks("fsfm", columns, ("fake", "real"))
    student: Any = networks["student"]
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in student.named_children()}
    blocks = 12 * (4 * 768**2 + 4 * 768 + 8 * 768**2 + 5 * 768 + 4 * 768)
    assert counts["encoder"] == blocks + 768 * 768 + 768 + 768 + 2 * 768
    assert counts["projector"] == 768 * 4096 + 4096 + 2 * 4096 + 4096 * 256 + 256
    assert student.mask_token.shape == (1, 1, 768)
    assert student.pixel_decoder.out.out_features == 768
    assert counts == {
        "encoder": 85_647_360, "rep_decoder": 15_358_464, "projector": 4_206_848, "pixel_decoder": 26_007_808,
        "predictor": 2_109_696,
    }  # fmt: skip
