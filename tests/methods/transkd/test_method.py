"""TransKD's networks, losses and settings against the numbers of its specification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.assembly import make_method, make_task
from fedlab.config import Config, parse
from fedlab.method import Step
from fedlab.method.exchange import Exchanges
from fedlab.methods.transkd.distiller import CrossSelectiveFusion, EmbeddingAssistant, GLMixer, SelectiveFusion
from fedlab.methods.transkd.losses import embedding_loss, feature_loss
from fedlab.methods.transkd.method import TransKD
from fedlab.models.segformer import SegFormer, SegFormerSettings, Stages

NAMES = ("background", "disc", "square", "triangle")
TINY = {"widths": (8, 8, 8, 16), "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "decoder": 8}
WIDE = {"widths": (8, 16, 16, 24), "depths": (1, 1, 1, 1), "heads": (1, 2, 2, 2), "decoder": 8}
BASE: dict[str, Any] = {"name": "transkd", "student": TINY, "teacher": WIDE, "csf_width": 8, "csf_squeeze": 4}
CITYSCAPES = tuple(f"class {k}" for k in range(19))
STREETS = {"image": ("float32", (3, 512, 1024)), "mask": ("int64", (128, 256)), "label": ("int64", ())}


def build(size: tuple[int, int] = (36, 36), seed: int = 0, **settings: Any) -> tuple[Any, nn.ModuleDict]:
    """The method and its networks for small images of four classes."""
    config = parse(Config, {"method": {**BASE, **settings}, "data": {"source": "scenes"}})
    mask = (size[0] // 4, size[1] // 4)
    columns = {"image": ("float32", (3, *size)), "mask": ("int64", mask), "label": ("int64", ())}
    torch.manual_seed(seed)
    method = make_method(config.method)
    return method, nn.ModuleDict(method.build(make_task(config, columns, NAMES, 2)))


def batch(count: int = 3, size: int = 36) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, 4, (count, size // 4, size // 4), generator=generator)
    return {"image": torch.rand(count, 3, size, size, generator=generator), "mask": labels}


def step(round: int = 1) -> Step:
    return Step(round, 0, 0, 1, round - 1, 1500, {}, {}, {}, lambda name, value: None)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# the paper's networks


@pytest.mark.parametrize(
    ("variant", "distiller", "total"),
    [("base", 843_840, 4_563_124), ("gl", 843_840 + 656_130, 5_219_254), ("ea", 843_840 + 970_952, 5_534_076)],
)
def test_parameter_counts_are_the_papers(
    paper_networks: Callable[..., nn.ModuleDict], variant: str, distiller: int, total: int
) -> None:
    networks = paper_networks("transkd", STREETS, CITYSCAPES, variant=variant)
    assert parameters(networks["student"]) == 3_719_284
    assert parameters(networks["teacher"]) == 27_362_004
    assert parameters(networks["distiller"]) == distiller
    assert parameters(networks["student"]) + parameters(networks["distiller"]) == total
    ones = sum(parameters(m.squeeze_one) for m in networks["distiller"].modules() if isinstance(m, SelectiveFusion))
    assert ones == 3 * 2_048


def test_acdcs_networks_are_the_same(paper_networks: Callable[..., nn.ModuleDict]) -> None:
    streets = {**STREETS, "image": ("float32", (3, 512, 912)), "mask": ("int64", (128, 228))}
    networks = paper_networks("transkd", streets, CITYSCAPES, file="paper_acdc.yaml")
    assert [parameters(networks[role]) for role in networks] == [3_719_284, 27_362_004, 843_840]


@pytest.fixture(scope="module")
def segformer() -> SegFormer:
    torch.manual_seed(0)
    return SegFormer(parse(SegFormerSettings, TINY), 3, 4).eval()


def test_embeddings_and_features_are_what_transformers_computes(segformer: SegFormer) -> None:
    seen: list[Tensor] = []
    for stage in segformer.model.segformer.stages:
        stage.patch_embeddings.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    images = batch()["image"]
    with torch.no_grad():
        theirs = segformer.model(images, output_hidden_states=True)
        embeddings, seen = list(seen), []
        ours = segformer.encode(images)
        assert torch.equal(segformer(images), theirs.logits)
    assert theirs.logits.shape == (3, 4, 9, 9)
    for stage in range(4):
        assert torch.equal(ours.embeddings[stage], embeddings[stage])
        assert torch.equal(ours.features[stage], theirs.hidden_states[stage])
    # normed over the channels, and not yet through a block
    assert ours.embeddings[0].mean(dim=-1).abs().max() < 1e-5
    assert ours.features[3].shape == (3, 16, 2, 2)


def test_norms_and_dropout_are_the_releases(segformer: SegFormer) -> None:
    eps = {name: m.eps for name, m in segformer.named_modules() if isinstance(m, nn.LayerNorm)}
    assert {value for name, value in eps.items() if "patch_embeddings" in name} == {1e-5}
    assert {value for name, value in eps.items() if "layernorm_" in name} == {1e-6}
    assert {value for name, value in eps.items() if name.count(".") == 4 and name.endswith("layer_norm")} == {1e-6}
    assert isinstance(segformer.model.decode_head.dropout, nn.Dropout2d)
    assert segformer.model.segformer.stages[3].blocks[0].drop_path.drop_prob == pytest.approx(0.1)


# CSF


def fusion(width: int = 8) -> CrossSelectiveFusion:
    torch.manual_seed(0)
    return CrossSelectiveFusion((8, 8, 8, 16), (8, 16, 16, 24), width, 4)


def features(seed: int = 0, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((8, 9), (8, 5), (8, 3), (16, 2))
    return [torch.randn(count, channels, side, side, generator=generator) for channels, side in sizes]


def test_equal_branches_give_the_mean_of_both_inputs() -> None:
    select = SelectiveFusion(6, 4)
    select.branches[1].load_state_dict(select.branches[0].state_dict())
    x, y = torch.randn(3, 6, 4, 4), torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(select(x, y), (x + y) / 2)


@pytest.mark.parametrize("count", [1, 4])
def test_the_weights_of_the_two_branches_sum_to_one_in_every_channel(count: int) -> None:
    select = SelectiveFusion(6, 4)
    a = select.attention(torch.randn(count, 6, 4, 4), torch.randn(count, 6, 4, 4))
    assert a.shape == (2, count, 6, 1, 1)
    torch.testing.assert_close(a.sum(dim=0), torch.ones(count, 6, 1, 1))
    assert a.std(dim=2).min() > 0  # of channels, not over them


def test_a_batch_of_one_trains_weights_of_its_own() -> None:
    for count, used, idle in ((1, "squeeze_one", "squeeze"), (2, "squeeze", "squeeze_one")):
        module = fusion().train()
        torch.stack([o.square().sum() for o in module(tuple(features(count=count)))]).sum().backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        for select in module.fusions:
            assert next(getattr(select, used).parameters()).grad is not None
            assert next(getattr(select, idle).parameters()).grad is None


def test_deep_stages_reach_shallow_ones_and_never_back() -> None:
    module = fusion().eval()
    start = module(tuple(features()))
    assert [tuple(o.shape[1:]) for o in start] == [(8, 9, 9), (16, 5, 5), (16, 3, 3), (24, 2, 2)]
    for changed in range(4):
        inputs = features()
        inputs[changed] = inputs[changed] + 1
        moved = [not torch.equal(a, b) for a, b in zip(module(tuple(inputs)), start, strict=True)]
        assert moved == [stage <= changed for stage in range(4)]


def test_what_is_handed_down_is_before_the_output_convolution() -> None:
    module = fusion().eval()
    start = module(tuple(features()))
    for output in list(module.outputs)[1:]:
        nn.init.zeros_(output[0].weight)  # type: ignore[index,arg-type]  # a Sequential of convolution and norm
    changed = module(tuple(features()))
    assert torch.equal(changed[0], start[0])
    assert not torch.equal(changed[1], start[1])


def test_a_deeper_stage_is_enlarged_by_repeating_its_nearest_pixel() -> None:
    """x_i[y, x] meets r_{i+1}[⌊y·h/H⌋, ⌊x·w/W⌋]; whatever mixes neighboring pixels is not the release's."""
    module, met = fusion().eval(), []
    for select in module.fusions:
        select.register_forward_hook(lambda layer, inputs, output: met.append((*inputs, output)))
    module(tuple(features()))
    assert [(x.shape[2], y.shape[2]) for x, y, _ in met] == [(3, 3), (5, 5), (9, 9)]  # from the deepest up
    deeper = module.inputs[3](features()[3])
    for x, enlarged, fused in met:
        place = [i * deeper.shape[2] // x.shape[2] for i in range(x.shape[2])]
        assert torch.equal(enlarged, deeper[:, :, place][:, :, :, place])
        deeper = fused


def test_convolutions_of_the_fusion_start_as_kaiming_says() -> None:
    """Uniform within ±√(6 / ((1 + a²)·fan_in)), a = 1; PyTorch's own a = √5 would leave them at 0.58 of that."""
    module = CrossSelectiveFusion((8, 8, 8, 16), (64, 64, 64, 64), 64, 4)
    for layer, fan_in in ((module.inputs[0], 8), (module.inputs[3], 16), *((o, 64 * 9) for o in module.outputs)):
        weight, bound = layer[0].weight, (3 / fan_in) ** 0.5  # type: ignore[index,union-attr]  # a Sequential
        assert 0.95 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_feature_loss_adds_the_stages() -> None:
    teacher = [torch.randn(2, 3, side, side) for side in (16, 8, 4, 2)]
    torch.testing.assert_close(feature_loss([f + 1 for f in teacher], teacher), torch.tensor(4.0))


# PEA, GL, EA


def test_embedding_loss_weighs_the_stages() -> None:
    teacher = [torch.randn(2, 5, 4) for _ in range(4)]
    weights = TransKD().settings.betas
    ones = {i: e + 1 for i, e in enumerate(teacher)}
    torch.testing.assert_close(embedding_loss(ones, teacher, weights), torch.tensor(1.7))
    last = {i: e + (i == 3) for i, e in enumerate(teacher)}
    torch.testing.assert_close(embedding_loss(last, teacher, weights), torch.tensor(1.0))


@pytest.mark.parametrize(("pea", "betas"), [("none", {}), (1, {0: 1.0}), (3, {2: 1.0}), (4, {3: 1.0})])
def test_a_stage_on_its_own_counts_one(pea: Any, betas: dict[int, float]) -> None:
    assert parse(TransKD.Settings, {"pea": pea}).betas == betas
    assert set(parse(TransKD.Settings, {"pea": pea}).betas) == set(parse(TransKD.Settings, {"pea": pea}).stages)


def test_the_mixer_without_attention_and_gate_is_half_a_convolution() -> None:
    torch.manual_seed(0)
    mixer, E = GLMixer(16, residual=False), torch.randn(2, 5, 16)
    assert (mixer.alpha_global.item(), mixer.alpha_local.item()) == (0.5, 0.5)
    with torch.no_grad():
        mixer.alpha_global.fill_(0)
        mixer.alpha_local.fill_(1)
        mixer.gate.weight.zero_()
        assert mixer.gate.bias is not None
        mixer.gate.bias.zero_()
    torch.testing.assert_close(mixer(E), 0.5 * mixer.value(E.transpose(1, 2)).transpose(1, 2))
    mixer.residual = True
    torch.testing.assert_close(mixer(E), 0.5 * mixer.value(E.transpose(1, 2)).transpose(1, 2) + E)


def test_the_mixers_attention_is_eight_plain_heads() -> None:
    torch.manual_seed(0)
    mixer, E = GLMixer(16, residual=False), torch.randn(2, 5, 16)
    with torch.no_grad():
        mixer.alpha_global.fill_(1)
        mixer.alpha_local.fill_(0)
    theirs = nn.MultiheadAttention(16, 8, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(mixer.qkv.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.load_state_dict(mixer.projection.state_dict())
    torch.testing.assert_close(mixer(E), theirs(E, E, E, need_weights=False)[0])


def test_the_assistant_starts_with_the_releases_weights() -> None:
    assistant = EmbeddingAssistant((8, 8, 8, 16), (8, 16, 16, 24), 3)
    received = [torch.rand(2, 3, 36, 36), *features()[:3]]
    for stage, weight in enumerate((0.5, 0.6, 0.7, 0.8)):
        norm: Any = assistant.patches[stage].norm
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
        tokens, channels = ((9, 8), (5, 16), (3, 16), (2, 24))[stage]
        assisted = assistant(stage, torch.zeros(2, tokens**2, channels), received[stage])
        torch.testing.assert_close(assisted, torch.full((2, tokens**2, channels), weight))
        ones = assistant(stage, torch.ones(2, tokens**2, channels), received[stage])
        torch.testing.assert_close(ones - assisted, torch.full_like(ones, (0.1, 0.2, 0.3, 0.4)[stage]))


@pytest.mark.parametrize("variant", ["base", "gl", "ea"])
def test_which_part_of_the_student_each_embedding_comes_from(variant: str) -> None:
    """GL mixes stage 4 alone; EA sees the features of the stage before (or the image), never the embeddings again."""
    _, networks = build(variant=variant)
    distiller, x = networks["distiller"].eval(), batch()["image"]
    with torch.no_grad():
        seen = networks["student"].eval().encode(x)
        plain = {i: distiller.alignment[str(i)](seen.embeddings[i]) for i in range(4)}
        start = distiller(x, seen).embeddings
        same = [torch.equal(start[i], plain[i]) for i in range(4)]
        assert same == {"base": [True] * 4, "gl": [True] * 3 + [False], "ea": [False] * 4}[variant]
        for changed in range(4):
            F_ = list(seen.features)
            F_[changed] = F_[changed] + torch.randn_like(F_[changed])
            moved = distiller(x, Stages(seen.embeddings, tuple(F_))).embeddings
            expected = [variant == "ea" and i == changed + 1 for i in range(4)]
            assert [not torch.equal(moved[i], start[i]) for i in range(4)] == expected
        other = distiller(x + torch.rand_like(x), seen).embeddings
        assert [not torch.equal(other[i], start[i]) for i in range(4)] == [variant == "ea"] + [False] * 3


# the whole loss


@pytest.mark.parametrize("variant", ["base", "gl", "ea"])
def test_one_step_trains_student_and_distiller_and_leaves_the_teacher(variant: str) -> None:
    method, networks = build(variant=variant)
    exchange = Exchanges(networks, method).enter({})
    assert exchange.fixed_roles == ("teacher",)
    networks.train()
    networks["teacher"].eval()
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    (group,) = method.param_groups(networks, {})
    trained = {name: p for name, p in networks.named_parameters() if not name.startswith("teacher.")}
    assert {id(p) for p in group["params"]} == {id(p) for p in trained.values()}
    terms = method.loss(networks, batch(), step())
    assert set(terms) == {"ce", "csf", "pea"}
    torch.stack([*terms.values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    torch.optim.AdamW(group["params"], lr=1e-3).step()
    assert all(p.grad is None for p in networks["teacher"].parameters())
    after = networks.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("teacher."))
    reached = {name for name, p in trained.items() if p.grad is not None}
    assert set(trained) - reached == {name for name in trained if "squeeze_one" in name}
    assert all(not torch.equal(after[name], before[name]) for name in reached if before[name].any())


def test_the_loss_is_the_sum_the_paper_writes() -> None:
    method, networks = build(class_weights=(0.4, 1, 1, 2))
    networks.eval()
    data = batch()
    data["mask"][0, 0] = -1
    with torch.no_grad():
        terms = method.loss(networks, data, step())
        seen = networks["student"].encode(data["image"])
        taught = networks["teacher"].encode(data["image"])
        logits = networks["student"](data["image"])
        targets = networks["distiller"](data["image"], seen)
        weight = torch.tensor([0.4, 1, 1, 2])
        torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, data["mask"], weight, ignore_index=-1))
        torch.testing.assert_close(terms["csf"], feature_loss(targets.features, taught.features))
        pea = [F.mse_loss(targets.embeddings[i], taught.embeddings[i]) for i in range(4)]
        torch.testing.assert_close(terms["pea"], 0.1 * pea[0] + 0.1 * pea[1] + 0.5 * pea[2] + pea[3])


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"csf": False, "pea": "none"}, {"ce"}),
        ({"pea": "none"}, {"ce", "csf"}),
        ({"csf": False}, {"ce", "pea"}),
        ({"csf": False, "pea": 2}, {"ce", "pea"}),
    ],
)
def test_switches_leave_out_terms_and_their_networks(settings: dict[str, Any], terms: set[str]) -> None:
    method, networks = build(**settings)
    assert set(method.loss(networks, batch(), step())) == terms
    assert ("teacher" in networks) == ("distiller" in networks) == (len(terms) > 1)
    assert {group.name for group in method.exchange({})} == set(networks)


def test_a_void_output_takes_part_without_ever_being_a_target() -> None:
    method, networks = build(void_logit=True, class_weights=(0.4, 1, 1, 2))
    assert networks["student"](batch()["image"]).shape == (3, 5, 9, 9)
    terms = method.loss(networks.eval(), batch(), step())
    logits = networks["student"](batch()["image"])
    weight = torch.tensor([0.4, 1, 1, 2, 0])
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, batch()["mask"], weight))


def test_the_student_is_the_same_with_and_without_its_distiller() -> None:
    """It starts alike, and what it predicts never depends on what hangs beside it."""
    images = batch()["image"]
    logits = []
    for settings in ({}, {"csf": False, "pea": "none"}, {"variant": "ea"}):
        method, networks = build(**settings)
        with torch.no_grad():
            logits.append(method.predict(networks.eval(), {"image": images}))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    method, networks = build()
    assert networks["student"].settings != networks["teacher"].settings
