"""What the loss asks of the networks, stage by stage; checks of §8 of its specification; settings that cannot work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.assembly import make_task
from fedlab.errors import ConfigError, ConfigErrors, DataError
from fedlab.experiment.checks import resolve
from fedlab.experiment.start import configure
from fedlab.methods.hybrid_distill import teaching
from fedlab.methods.hybrid_distill.lessons import feature_term, lesson, relation_term
from fedlab.methods.hybrid_distill.method import HybridDistill
from fedlab.methods.hybrid_distill.networks import MaskedDecoder, Shape
from fedlab.methods.hybrid_distill.settings import HybridSettings, RelationTeacher
from tests.methods.hybrid_distill.conftest import TOWER, Lab, settings

Made = Callable[..., Lab]


def copied(one: Lab) -> Lab:
    """The same, where all three transformers have the weights of the student."""
    for role in ("feature_teacher", "relation_teacher"):
        one.networks[role].load_state_dict(one.networks["student"].state_dict())
    return one


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


# the loss


@pytest.mark.parametrize("distance", ["smooth_l1", "kl"])
@pytest.mark.parametrize("relations", [["qk"], ["qk", "vv"]])
def test_a_student_that_is_both_teachers_has_no_loss(lab: Made, distance: str, relations: list[str]) -> None:
    settings = {"projector": "identity", "mask": "none", "relation_distance": distance, "relations": relations}
    assert total(copied(lab(**settings, whiten=False)).loss()).item() == 0
    assert total(copied(lab(**settings)).loss()).item() == pytest.approx(0, abs=1e-5)


def test_a_student_that_is_its_teacher_has_a_loss_as_soon_as_it_sees_fewer_patches(lab: Made) -> None:
    terms = copied(lab(projector="identity")).loss()
    assert float(terms["l_c"]) > 1e-4, "its patches attend to fewer others"
    assert float(terms["l_m"]) == pytest.approx(0, abs=1e-6), "in the first block, queries and keys are the same"


def test_both_terms_are_weighted_and_a_term_of_weight_0_is_not_computed(lab: Made) -> None:
    plain = lab().loss()
    weighted = lab(feature_weight=3.0, relation_weight={"smooth_l1": 0.5, "kl": 7.0}).loss()
    assert plain.keys() == {"l_c", "l_m"}
    assert float(weighted["l_c"]) == pytest.approx(3 * float(plain["l_c"]))
    assert float(weighted["l_m"]) == pytest.approx(0.5 * float(plain["l_m"]))
    assert lab(feature_weight=0.0).loss().keys() == {"l_m"}
    assert lab(relation_weight={"smooth_l1": 0.0}).loss().keys() == {"l_c"}
    assert lab(relation_weight={"smooth_l1": 0.0}, relation_distance="kl").loss().keys() == {"l_c", "l_m"}


def test_relations_of_the_teacher_are_restricted_to_the_tokens_that_the_student_has(lab: Made) -> None:
    """R of all tokens, whose rows and columns are then chosen, by hand."""
    one = lab(drop_blocks=(0,), keep=0.5)
    batch, s = one.batch(), one.method.settings
    shown = lesson(s, one.networks, batch["image"], batch["order"], features=False, relations=True)
    made = one.networks["student"].passed(batch["image"], shown.drops, [0])
    query, key, _ = one.networks["relation_teacher"].blocks[0].queries_keys_values(shown.entering[0])
    whole = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    mine, theirs, _ = one.networks["student"].blocks[0].queries_keys_values(made.entering[0])
    of_student = mine @ theirs.transpose(2, 3) / mine.shape[-1] ** 0.5
    wanted = []
    for image, kept in zip(whole, shown.drops[0].kept, strict=True):
        places = torch.cat([torch.zeros(1, dtype=torch.int64), kept + 1])
        wanted.append(image[:, places][:, :, places])
    expected = torch.nn.functional.smooth_l1_loss(of_student, torch.stack(wanted))
    found = relation_term(s, one.networks, shown, made)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_relations_and_features_are_taken_at_the_blocks_that_are_asked_for(lab: Made) -> None:
    deep = {"depth": 4}
    one = lab(mask="none", student=deep, relation_teacher=deep, relation_layers=[2])
    before = {name: float(value) for name, value in one.loss().items()}
    with torch.no_grad():  # what comes after the second block's queries and keys
        for p in one.networks["relation_teacher"].blocks[2:].parameters():
            p.normal_()
        one.networks["relation_teacher"].blocks[1].mlp[0].weight.normal_()
    assert {name: float(value) for name, value in one.loss().items()} == before
    with torch.no_grad():
        one.networks["relation_teacher"].blocks[1].qkv.weight.normal_()
    after = one.loss()
    assert float(after["l_m"]) != before["l_m"]
    assert float(after["l_c"]) == before["l_c"]


def test_the_relation_term_is_the_mean_over_blocks_and_kinds_of_relations(lab: Made) -> None:
    def term(layers: list[int], kinds: list[str]) -> float:
        one = lab(mask="none", relation_layers=layers, relations=kinds)
        return float(one.loss()["l_m"].detach())

    single = [term([layer], [kind]) for layer in (1, 2) for kind in ("qk", "vv")]
    assert len({round(value, 4) for value in single}) == 4
    assert term([1, 2], ["qk", "vv"]) == pytest.approx(sum(single) / 4, rel=1e-5)


def test_blocks_of_a_student_of_another_depth_are_those_of_the_same_relative_depth() -> None:
    s = settings(student={"depth": 6}, relation_teacher={"depth": 12}, relation_layers=[2, 11, 12])
    assert s.compared == ((0, 1), (5, 10), (5, 11))  # 11 · 6 / 12 = 5.5 is rounded to the even number
    assert settings().compared == ((10, 10),)
    assert settings(student={"depth": 1}, relation_teacher={"depth": 12}).compared == ((0, 10),)


def test_the_class_token_can_be_left_out_of_both_terms(lab: Made) -> None:
    one = lab(class_token=False, mask="none")
    batch, s = one.batch(), one.method.settings
    shown = lesson(s, one.networks, batch["image"], batch["order"], features=True, relations=True)
    made = one.networks["student"].passed(batch["image"], shown.drops, [0])
    before = float(feature_term(s, one.networks, shown, made)), float(relation_term(s, one.networks, shown, made))
    shown.entering[0][:, 0] += 1
    assert shown.features is not None
    shown.features[:, 0] += 1
    after = float(feature_term(s, one.networks, shown, made)), float(relation_term(s, one.networks, shown, made))
    assert before == after


def test_models_of_different_sizes_are_compared(lab: Made) -> None:
    one = lab(
        student={"width": 8, "heads": 4, "depth": 3},
        feature_teacher={"width": 24, "heads": 3},
        relation_teacher={"width": 16, "heads": 2},
    )
    terms = one.loss()
    assert all(bool(value.isfinite()) for value in terms.values())
    assert one.networks["projector"].weight.shape == (24, 8)


def test_permuted_patches_with_their_positions_have_the_same_loss(lab: Made) -> None:
    one = lab(mask="none")
    x = one.batch()["image"]
    order = torch.randperm(36, generator=torch.Generator().manual_seed(3))
    rows = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)[:, order]
    moved = rows.unflatten(1, (6, 6)).permute(0, 3, 1, 4, 2, 5).reshape_as(x)
    before = one.loss()
    with torch.no_grad():
        for role in ("student", "feature_teacher", "relation_teacher"):
            positions = one.networks[role].positions
            positions[:, 1:] = positions[:, 1:][:, order].clone()
    after = one.loss({**one.batch(), "image": moved})
    for name, value in before.items():
        assert float(after[name]) == pytest.approx(float(value), rel=1e-4), name


# gradients (§8, 8)


def test_teachers_get_no_gradient_and_everything_of_the_student_does(lab: Made) -> None:
    one = lab()
    found = one.gradients(total(one.loss()))
    assert {name.partition(".")[0] for name in found} == {"student", "projector"}
    assert all(float(value.abs().sum()) > 0 for value in found.values())
    assert {name for name in found if name.startswith("student")} == {
        f"student.{name}" for name, _ in one.networks["student"].named_parameters()
    }


def test_relations_alone_teach_nothing_that_comes_after_queries_and_keys(lab: Made) -> None:
    one = lab(feature_weight=0.0, mask="none", student={"depth": 3}, relation_teacher={"depth": 3})
    found = one.gradients(total(one.loss()))
    taught = {name for name, value in found.items() if float(value.abs().sum()) > 0}
    assert {name.split(".")[2] for name in taught if name.startswith("student.blocks")} == {"0", "1"}
    assert {name for name in taught if name.startswith("student.blocks.1")} == {
        f"student.blocks.1.{part}.{kind}" for part in ("norm1", "qkv") for kind in ("weight", "bias")
    }
    assert not [name for name in taught if name.startswith(("projector", "student.norm"))]
    queries, keys, values = found["student.blocks.1.qkv.weight"].chunk(3)
    assert float(queries.abs().sum()) > 0 < float(keys.abs().sum())
    assert float(values.abs().sum()) == 0


def test_features_alone_teach_queries_and_keys_too(lab: Made) -> None:
    one = lab(relation_weight={"smooth_l1": 0.0})
    queries, keys, _ = one.gradients(total(one.loss()))["student.blocks.0.qkv.weight"].chunk(3)
    assert float(queries.abs().sum()) > 0 < float(keys.abs().sum())


# stages and what travels


MODES = {
    "relations": {"relation_teacher": "average", "decoder": "average"},
    "features": {"feature_teacher": "average", "classifier": "average"},
    "distill": {"student": "average", "projector": "average", "relation_teacher": "once", "feature_teacher": "once"},
    "finetune": {"student": "average", "head": "average"},
}


@pytest.mark.parametrize("stage", MODES)
def test_what_a_stage_does_not_need_rests(lab: Made, stage: str) -> None:
    one = lab(stage=stage, finetune_rounds=1)
    modes = {group.name: group.mode for group in one.method.exchange(one.plan)}
    assert {name: mode for name, mode in modes.items() if mode != "rest"} == MODES[stage]
    assert modes.keys() == set(one.networks)
    terms = one.loss()
    found = one.gradients(total(terms))
    assert {name.partition(".")[0] for name in found} == {n for n, mode in MODES[stage].items() if mode == "average"}
    trained = [p for group in one.method.param_groups(one.networks, one.plan) for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in one.networks.parameters() if p.requires_grad}


def test_teachers_that_are_loaded_never_travel(lab: Made) -> None:
    one = lab(feature_teacher={"steps": 0}, relation_teacher={"steps": 0, "rounds": 1})
    modes = {group.name: group.mode for group in one.method.exchange(one.plan)}
    assert modes["feature_teacher"] == "frozen"
    assert modes["relation_teacher"] == "once"
    assert "classifier" not in one.networks
    resting = {g.name: g.mode for g in one.method.exchange({"stage": "relations"})}
    assert resting["feature_teacher"] == "rest", "a frozen one would be hashed"


def test_the_stages_come_one_after_the_other(lab: Made) -> None:
    one = lab(relation_teacher={"rounds": 2}, feature_teacher={"rounds": 1, "training": {"lr": 0.5}}, finetune_rounds=1)
    plans = [one.method.plan(round, 6) for round in range(1, 7)]
    assert [plan["stage"] for plan in plans] == ["relations"] * 2 + ["features"] + ["distill"] * 2 + ["finetune"]
    assert one.method.training(plans[2]) == {"lr": 0.5}
    assert one.method.training(plans[3]) == {}


def test_teachers_are_the_same_whatever_the_student_is(lab: Made) -> None:
    one, other = lab(), lab(student={"width": 32, "depth": 3}, mask="none")
    for role in ("feature_teacher", "relation_teacher"):
        state = other.networks[role].state_dict()
        assert all(torch.equal(value, state[name]) for name, value in one.networks[role].state_dict().items())


def test_the_rate_rises_and_falls_in_every_stage_by_itself(lab: Made) -> None:
    one = lab(warmup_epochs=1)  # a fourth of the stage
    group = {"lr": 0.5}
    rates = [one.method.schedule(one.step(at), group)["lr"] for at in range(100)]
    assert rates[0] == 0
    assert rates[24] == rates[25] == 0.5
    assert rates[99] < 0.01
    one.plan = {"stage": "distill", "stage_round": 2, "stage_rounds": 2}
    assert one.method.schedule(one.step(0), group)["lr"] == pytest.approx(0.5 * (1 + 0.5) / 2, abs=0.01)


def test_matrices_decay_and_biases_do_not(lab: Made) -> None:
    one = lab()
    groups = one.method.param_groups(one.networks, one.plan)
    assert all((p.ndim > 1) == ("weight_decay" not in group) for group in groups for p in group["params"])


# teachers


def test_the_masked_autoencoder_sees_a_fourth_of_the_patches_and_restores_the_others(lab: Made) -> None:
    one = lab(stage="relations")
    batch = one.batch()
    made, wanted, hidden = teaching.restored(one.method.settings, one.networks, batch)
    assert made.shape == wanted.shape == (5, 36, 48)
    assert hidden.sum(1).tolist() == [27] * 5
    assert torch.equal(hidden, batch["order"] > batch["order"].sort(dim=1).values[:, 8:9])
    expected = (made - wanted).square().mean(-1)[hidden].mean()
    assert float(one.loss(batch)["mae"]) == pytest.approx(float(expected), rel=1e-5)
    changed = batch["image"].clone()
    for patch in hidden[0].nonzero().flatten().tolist():
        row, column = divmod(patch, 6)
        changed[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 9.0
    again, _, _ = teaching.restored(one.method.settings, one.networks, {**batch, "image": changed})
    assert torch.equal(again[0], made[0]), "hidden pixels are not seen"


def test_the_decoder_puts_tokens_back_to_their_places() -> None:
    torch.manual_seed(0)
    settings = RelationTeacher(**TOWER, decoder_width=8, decoder_depth=1, decoder_heads=2)
    decoder = MaskedDecoder(settings, Shape(3, (24, 24), 4, 0.2)).eval()
    decoder.blocks[0] = torch.nn.Identity()  # every token by itself
    tokens = torch.randn(1, 3, 16)
    decoder.blocks[0].forward = lambda tokens, mask=None: tokens  # type: ignore[method-assign]  # blocks take a mask
    made = decoder(tokens, torch.tensor([[2, 30]]))
    other = decoder(tokens.roll(1, dims=1), torch.tensor([[2, 30]]))
    differs = (made - other).abs().sum(-1)[0] > 0
    assert differs.nonzero().flatten().tolist() == [2, 30]
    with torch.no_grad():
        decoder.mask_token += torch.randn(8)
    differs = (decoder(tokens, torch.tensor([[2, 30]])) - made).abs().sum(-1)[0] > 1e-6
    assert differs.sum() == 34


def test_a_teacher_can_have_its_own_normalization(lab: Made) -> None:
    own = lab(feature_teacher={"mean": (0.2,), "std": (0.1,)}).networks["feature_teacher"]
    plain = lab().networks["feature_teacher"]
    pixels = torch.rand(2, 3, 24, 24)
    given = (pixels - 0.5) / 0.5  # by data.mean and data.std
    assert torch.allclose(own(given), plain((pixels - 0.2) / 0.1), atol=1e-5)
    assert set(own.state_dict()) == set(plain.state_dict())


def test_views_are_the_same_for_all_networks_and_carry_their_random_numbers(lab: Made) -> None:
    one = lab(crop=(0.2, 0.4), flip=True)
    batch = one.batch(64)
    assert batch["image"].shape == (64, 3, 24, 24)
    assert batch["order"].shape == (64, 36)
    assert torch.equal(batch["image"], one.batch(64)["image"])
    plain = lab().batch(64)
    assert not torch.equal(batch["image"], plain["image"])
    images = torch.randn(64, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain["image"], images)


def test_features_are_of_all_patches_without_projector(lab: Made) -> None:
    one = lab()
    batch = one.batch()
    found = one.method.features(one.networks, batch, "student")
    tokens = one.networks["student"](batch["image"])
    assert found.grid == (6, 6)
    assert torch.equal(found.vectors, tokens[:, 1:].mean(1))
    by_class = lab(pooling="class").method.features(one.networks, batch, "student")
    assert torch.equal(by_class.vectors, tokens[:, 0])


# what cannot work


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"relation_layers": "[5]"}, "blocks from 1 to 4"),
        ({"drop_blocks": "[0, 4]"}, "different blocks from 0 to 3"),
        ({"drop_blocks": "[2, 1]"}, "rising order"),
        ({"relation_heads": 7}, "a divisor of both widths"),
        ({"student.width": 50}, r"student\.width = 50\n  expected: a multiple of heads = 4"),
        ({"projector": "identity", "student.width": 96}, "the widths are 96 and 32"),
        ({"feature_weight": 0, "relation_weight.smooth_l1": 0}, "a loss"),
        ({"feature_teacher.steps": 0}, "init.feature_teacher"),
        ({"relation_teacher.steps": 0}, "method.relation_teacher.pretrained"),
        ({"finetune_rounds": 13}, "at least 13"),
        ({"finetune_training": "{rl: 3}"}, "finetune_training.rl"),
        ({"crop": "[0.5, 0.2]"}, "the smaller first"),
        ({"keep": 0}, "greater than 0"),
        ({"relation_teacher.decoder_width": 50}, "decoder_width"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    overrides = [f"method.{key}={value}" for key, value in settings.items()]
    with pytest.raises((ConfigErrors, ConfigError), match=said):
        resolve(configure("hybrid_distill", overrides))


def test_what_probably_should_not_be_used_is_warned_of() -> None:
    def warned(*overrides: str) -> list[str]:
        config = configure("hybrid_distill", overrides)
        return HybridDistill(HybridSettings(**config.method.settings)).check(config)

    assert warned() == []
    assert "random" in warned("method.mask=random")[0]
    assert "adamw" in warned("training.optimizer=sgd")[0]


def test_images_without_labels_train_no_feature_teacher(lab: Made) -> None:
    one = lab()
    task = make_task(one.config, {"image": ("float32", (3, 24, 24))}, [], 2)
    with pytest.raises(DataError, match=r"method\.feature_teacher\.steps"):
        one.method.build(task)


@pytest.mark.parametrize(
    ("columns", "settings", "said"),
    [
        ({"audio": ("float32", (100,))}, {}, "images in a column 'image'"),
        ({"image": ("float32", (3, 26, 24)), "label": ("int64", ())}, {}, "a divisor of the images' 26 × 24"),
        (
            {"image": ("float32", (3, 24, 24)), "label": ("int64", ())},
            {"feature_teacher": {"mean": (0.1, 0.2)}},
            "1 or 3 numbers",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(lab: Made, columns: Any, settings: Any, said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        lab(columns=columns, **settings)
