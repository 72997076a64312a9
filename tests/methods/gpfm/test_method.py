"""The hooks of GPFM on single batches: what sees what, what is trained, clipped, scheduled and exchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedlab.distill.spread import koleo
from fedlab.errors import ConfigErrors, DataError, FedLabError
from fedlab.method.exchange import Exchange
from fedlab.methods.gpfm.method import GPFM
from fedlab.methods.gpfm.settings import ema
from fedlab.methods.gpfm.views import training_crops, whole_tiles

Make = Callable[..., Any]


def gradients(lab: Any, batch: dict[str, Tensor]) -> dict[str, Tensor | None]:
    torch.manual_seed(0)
    lab.networks.zero_grad()
    torch.stack(list(lab.terms(batch).values())).sum().backward()
    return {name: p.grad for name, p in lab.networks.named_parameters()}


def test_experts_see_the_students_crops_unmasked(lab: Make) -> None:
    made = lab("nuclei", "stroma")
    batch, seen = made.batch(), []
    made.networks["student"].backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], kwargs.get("masked"))), with_kwargs=True
    )
    made.networks["teacher"].backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0], kwargs.get("masked"))), with_kwargs=True
    )
    terms = made.terms(batch)
    assert set(terms) == {"l_dino", "l_ibot", "l_koleo", "cls_nuclei", "patch_nuclei", "cls_stroma"}
    (taught, none), (student, mask), (local, no_mask) = seen
    assert taught is student is batch["crops"]
    assert (none, no_mask) == (None, None)
    assert mask is batch["mask"]
    assert local is batch["local"]
    assert all(expert.seen == [batch["crops"]] for expert in made.experts.values())


@pytest.mark.parametrize(("at", "temperature"), [(0, 0.04), (8, 0.07)])
def test_the_self_part_by_hand(lab: Make, at: int, temperature: float) -> None:
    """Targets of the teacher, with a center and a temperature of their own, and logits of the masked student."""
    made = lab(drop_path=0.0)
    batch, student, teacher = made.batch(), made.networks["student"], made.networks["teacher"]
    generator = torch.Generator().manual_seed(5)
    classes, patches = (torch.randn(12, generator=generator) / 9 for _ in range(2))
    with torch.no_grad():
        for p in (*teacher.parameters(), *student.parameters()):  # so that the tokens of two crops differ
            p.add_(0.5 * torch.randn(p.shape, generator=generator))
        made.networks["centers"].classes.value.copy_(classes)
        made.networks["centers"].patches.value.copy_(patches)
        seen, made_of = teacher.backbone(batch["crops"]), student.backbone(batch["crops"], masked=batch["mask"])
        views = [
            *student.logits(made_of[:, 0]).chunk(2),
            *student.logits(student.backbone(batch["local"])[:, 0]).chunk(2),
        ]
        targets = ((teacher.logits(seen[:, 0]) - classes) / temperature).softmax(-1).chunk(2)
        costs = [
            -(p * (view / 0.1).log_softmax(-1)).sum(-1).mean()
            for place, p in enumerate(targets)
            for number, view in enumerate(views)
            if number != place
        ]
        q = ((teacher.logits(seen[:, 1:]) - patches) / temperature).softmax(-1)
        each = -(q * (student.logits(made_of[:, 1:]) / 0.1).log_softmax(-1)).sum(-1)
        masked = [float(row[mask].mean()) for row, mask in zip(each, batch["mask"], strict=True) if mask.any()]
        spread = sum(koleo(block) for block in made_of[:, 0].chunk(2))
    terms = {name: float(term.detach()) for name, term in made.terms(batch, at).items()}
    assert terms["l_dino"] == pytest.approx(float(torch.stack(costs).mean()), rel=1e-4)
    assert terms["l_ibot"] == pytest.approx(sum(masked) / 8, rel=1e-4)
    assert terms["l_koleo"] == pytest.approx(0.1 * float(spread), rel=1e-3)


def test_the_imitation_by_hand_and_every_term_has_its_weight(lab: Make) -> None:
    made, weights = lab("nuclei", drop_path=0.0), {"cls_weight": 0.5, "patch_weight": 0.75}
    batch, expert, head = made.batch(), made.experts["nuclei"], made.networks["experts"]["nuclei"]
    with torch.no_grad():
        made_of = head(made.networks["student"].backbone(batch["crops"], masked=batch["mask"])).logits
        wanted = expert(batch["crops"])
    cosine = torch.nn.functional.cosine_similarity
    first = {name: float(term.detach()) for name, term in made.terms(batch).items()}
    assert first["cls_nuclei"] == pytest.approx(
        float(1 - cosine(made_of[:, 0], wanted.classes, dim=-1).mean()), rel=1e-4
    )
    patches = 0.9 * (1 - cosine(made_of[:, 1:], wanted.patches, dim=-1).mean())
    patches += 0.1 * torch.nn.functional.smooth_l1_loss(made_of[:, 1:], wanted.patches)
    assert first["patch_nuclei"] == pytest.approx(0.25 * float(patches), rel=1e-4)
    experts = {"nuclei": {"dim": 8, **weights}, "stroma": {"dim": 12}}
    other = lab("nuclei", drop_path=0.0, experts=experts, dino_weight=2.0, ibot_weight=3.0, koleo_weight=0.4)
    other.experts["nuclei"] = expert
    factors = {"l_dino": 2, "l_ibot": 3, "l_koleo": 4, "cls_nuclei": 0.5, "patch_nuclei": 3}
    assert {n: float(term.detach()) / first[n] for n, term in other.terms(batch).items()} == pytest.approx(factors)


def test_masked_and_visible_patches_are_both_distilled(lab: Make) -> None:
    """Whether a patch is masked changes what the student makes of all patches, and so the loss of the experts."""
    made = lab("nuclei", drop_path=0.0)
    batch = made.batch()
    masked = float(made.terms(batch)["patch_nuclei"].detach())
    free = float(made.terms({**batch, "mask": torch.zeros_like(batch["mask"])})["patch_nuclei"].detach())
    assert masked != free


def test_only_the_student_and_the_heads_of_held_experts_get_gradients(lab: Make) -> None:
    made = lab("nuclei")
    found = gradients(made, made.batch())
    trained = {name for name, value in found.items() if value is not None and bool(value.any())}
    assert {name.split(".")[0] for name in trained} == {"student", "experts"}
    assert not any(name.startswith("experts.stroma") for name in trained)
    assert any(name.startswith("experts.nuclei") for name in trained)
    assert "student.backbone.mask_token" in trained
    assert all(p.grad is None for expert in made.experts.values() for p in expert.parameters())


def test_without_experts_it_is_plain_self_distillation(lab: Make) -> None:
    """§8, 11: weights of 0 and no expert at all give the same loss and the same gradients."""
    experts = {name: {"dim": 8, "cls_weight": 0, "patch_weight": 0} for name in ("nuclei", "stroma")}
    off, none = lab(experts=experts), lab()
    assert off.method.assets(None) == {}
    state = off.networks.state_dict()
    batch = off.batch()
    none.networks.load_state_dict({n: v for n, v in state.items() if not n.startswith("experts")}, strict=False)
    torch.manual_seed(0)
    first = {name: float(term.detach()) for name, term in off.terms(batch).items()}
    torch.manual_seed(0)
    assert {name: float(term.detach()) for name, term in none.terms(batch).items()} == first
    assert set(first) == {"l_dino", "l_ibot", "l_koleo"}
    one, other = gradients(off, batch), gradients(none, batch)
    for name, value in one.items():
        if name.startswith("student"):
            assert value is not None
            assert torch.equal(value, other[name]), name


def test_the_teacher_follows_backbone_and_prototype_head_and_is_in_evaluation_mode(lab: Make) -> None:
    for momentum, moves in ((1.0, False), (0.0, True)):
        made = lab("nuclei", momentum=momentum)
        before = {n: v.clone() for n, v in made.networks["teacher"].state_dict().items()}
        with torch.no_grad():
            for p in made.networks["student"].parameters():
                p.add_(1.0)
        step = made.step()
        made.method.loss(made.networks, made.batch(), step)
        made.method.after_step(made.networks, step)
        after, student = made.networks["teacher"].state_dict(), made.networks["student"].state_dict()
        assert all(torch.equal(after[n], (student if moves else before)[n]) for n in before)
        assert set(before) == set(student), "distillation heads have no EMA copy"
        assert not made.networks["teacher"].training
        assert made.networks["student"].training


def test_centers_move_by_a_tenth_of_the_teachers_mean_after_the_step(lab: Make) -> None:
    made, step = lab(), None
    batch, step = made.batch(), made.step()
    made.method.loss(made.networks, batch, step)
    teacher, centers = made.networks["teacher"], made.networks["centers"]
    assert not centers.classes.value.any()
    with torch.no_grad():
        tokens = teacher.backbone(batch["crops"])
        wanted = teacher.logits(tokens[:, 0]).mean(0), teacher.logits(tokens[:, 1:][batch["mask"]]).mean(0)
    made.method.after_step(made.networks, step)
    assert torch.allclose(centers.classes.value, 0.1 * wanted[0], atol=1e-6)
    assert torch.allclose(centers.patches.value, 0.1 * wanted[1], atol=1e-6)


def test_schedules_are_those_of_the_paper_over_all_rounds(lab: Make) -> None:
    made = lab(epochs=400, warmup_epochs=40, momentum=0.992, final_lr=1e-6, weight_decay=[0.04, 0.4])
    method, total = made.method, 4000
    peak = 4e-4 * (1536 / 1024) ** 0.5
    assert peak == pytest.approx(4.899e-4, rel=1e-4)
    group = {"lr": peak, "decays": True, "rests": False}
    at = [method.schedule(made.step(step, total), group) for step in (0, 399, 400, 4000)]
    assert [values["lr"] for values in at] == pytest.approx([0, peak, peak, 1e-6])
    assert [at[0]["weight_decay"], at[3]["weight_decay"]] == pytest.approx([0.04, 0.4])
    resting = {**group, "rests": True, "decays": False}
    lasts = [method.schedule(made.step(step, total), resting) for step in (5, 9, 10)]
    assert [values["lr"] > 0 for values in lasts] == [False, False, True]
    assert all(values["weight_decay"] == 0 for values in lasts)
    teacher = ema(method.settings)
    assert [teacher.momentum(step, total) for step in (0, total)] == pytest.approx([0.992, 1.0])


def test_backbone_and_head_are_clipped_apart_and_heads_of_experts_not_at_all(lab: Make) -> None:
    made = lab("nuclei", clip_norm=3.0, layer_decay=0.5, patch_factor=0.2)
    groups = made.method.param_groups(made.networks, {})
    grouped = [id(p) for group in groups for p in group["params"]]
    wanted = [p for role in ("student", "experts") for p in made.networks[role].parameters()]
    assert sorted(grouped) == sorted(map(id, wanted)), "each parameter is in one group"
    from fedlab.config import TrainingConfig
    from fedlab.method.optimizer import Optimizer

    for p in wanted:
        p.grad = torch.full_like(p, 7.0)
    inner = torch.optim.SGD([{**group, "lr": TrainingConfig().lr} for group in groups], lr=0.1)
    Optimizer(inner).clip_gradients()

    def norm(module: Any) -> float:
        return float(torch.stack([p.grad.norm() for p in module.parameters()]).norm())

    student = made.networks["student"]
    assert norm(student.backbone) == pytest.approx(3.0, rel=1e-4)
    assert norm(student.head) == pytest.approx(3.0, rel=1e-4)
    assert all(bool((p.grad == 7.0).all()) for p in made.networks["experts"].parameters())
    factors = {group["clip_with"]: set() for group in groups}
    for group in groups:
        factors[group["clip_with"]].add(round(group.get("lr_factor", 1.0), 6))
    assert factors["head"] == factors["experts"] == {1.0}
    assert factors["backbone"] == {0.05, 0.25, 0.5, 1.0}, "layer-wise decay, and a further 0.2 for the patch embedding"


def test_what_travels(lab: Make) -> None:
    made = lab()
    exchange = Exchange(made.networks, made.method.exchange({}))
    assert set(exchange.averaged) == {
        "student", "proto_head", "teacher", "centers", "distill_head/nuclei", "distill_head/stroma",
    }  # fmt: skip
    assert exchange.needs == {"distill_head/nuclei": "nuclei", "distill_head/stroma": "stroma"}
    assert not exchange.local
    assert "centers.patches.value" in exchange.up
    part = lab(experts={"nuclei": {"dim": 8}, "stroma": {"dim": 8, "cls_weight": 0, "patch_weight": 0}})
    unused = Exchange(part.networks, part.method.exchange({}))
    assert {unused.group_of[n].name for n in unused.rest} == {"unused_heads"}


def test_every_crop_of_a_batch_has_a_draw_of_its_own(lab: Make) -> None:
    settings = lab(views={"local": 1, "blur": [0.0, 0.0, 0.0], "solarize": 0.0}).method.settings
    same = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(1)).expand(8, -1, -1, -1)
    made = training_crops(settings, {"image": same}, torch.Generator().manual_seed(0))
    assert made["crops"].shape == (16, 3, 24, 24)
    assert made["local"].shape == (8, 3, 12, 12)
    for crops in (made["crops"][:8], made["local"]):
        distances = torch.cdist(crops.flatten(1), crops.flatten(1)) + 9 * torch.eye(8)
        assert float(distances.min()) > 0.1
    assert made["mask"].shape == (16, 36)
    assert int(made["mask"].any(1).sum()) == 8, "half of the global crops are masked"
    again = training_crops(settings, {"image": same}, torch.Generator().manual_seed(0))
    assert torch.equal(again["crops"], made["crops"])
    assert torch.equal(whole_tiles(settings, same), (same - 0.6) / 0.2)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"width": 18, "heads": 4}, "a divisor of method.width"),
        ({"patch": 5}, r"method.views.size"),
        ({"judged": "conch"}, "teacher, student or an expert"),
        ({"judged": "nuclei"}, "an expert that the server holds"),
        ({"experts": {"uni": {"dim": 8, "cls_weight": 0.0}}}, "not used at all"),
        ({"experts": {"teacher": {"dim": 8}}}, "one of GPFM's own networks"),
        ({"experts": {"a.b": {"dim": 8}}}, "pattern"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], hint: str) -> None:
    from fedlab.assembly import make_method
    from fedlab.config import Config, parse
    from tests.methods.gpfm.conftest import SMALL

    config = parse(Config, {**SMALL, "method": {**SMALL["method"], **settings}})
    with pytest.raises((FedLabError, ConfigErrors), match=hint):
        make_method(config.method).check(config)


def test_data_without_pictures_is_refused(lab: Make) -> None:
    from fedlab.assembly import make_task
    from fedlab.config import Config, parse
    from tests.methods.gpfm.conftest import SMALL

    config = parse(Config, SMALL)
    with pytest.raises(DataError, match="pictures in a column 'image'"):
        lab().method.build(make_task(config, {"points": ("float32", (10, 3))}, (), 2))
    assert isinstance(lab().method, GPFM)


def test_parameters_of_the_papers_networks(paper_networks: Callable[..., Any]) -> None:
    """Counted without memory; a ViT-L/14 of 224 pixels has 303.2 million without LayerScale and mask token."""
    columns = {"image": ("float32", (3, 512, 512)), "label": ("int64", ())}
    networks = paper_networks("gpfm", columns, ("a", "b"))
    student = networks["student"]
    parts = {"backbone": student.backbone, "head": student.head, "experts": networks["experts"]}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    scales, mask = 2 * 24 * 1024, 1024
    assert counts["backbone"] == 303_178_752 + 1024 + scales + mask - 1024
    assert counts["head"] == (1024 + 1) * 2048 + (2048 + 1) * 2048 + (2048 + 1) * 256 + 256 * 65536
    assert counts["experts"] == 3 * (1024 + 1) * 256 + 256 * (1024 + 768 + 512)
