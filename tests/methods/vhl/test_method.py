from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedlab
from fedlab.assembly import make_method, make_task
from fedlab.config import Config, parse
from fedlab.distill.contrastive import supervised_contrastive
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.start import configure
from fedlab.method import FigureContext, Step
from fedlab.methods.vhl.generator import virtual_images
from fedlab.methods.vhl.method import VHL
from fedlab.storage.checkpoint import load_checkpoint
from tests.methods.states import same, weights

Start = Callable[..., fedlab.Run]
SMALL = "method={name: vhl, images_per_class: 6}"
SKEWED = "data.partition=[{name: dirichlet, clients: 4, alpha: 0.1, min_samples: 2}]"
BASE = {"method": "vhl", "data": {"source": "digits"}}


@pytest.fixture
def lab(bench: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """``lab(alpha=1, training=…)``: a `Bench` of this method whose server has made the virtual set."""
    kind = type(bench())

    def make(training: Mapping[str, Any] | None = None, **settings: Any) -> Any:
        training = {"lr": 0.1, "batch_size": 8, **(training or {})}
        made = kind(tmp_path, {"name": "vhl", "images_per_class": 5, **settings}, training=training)
        made.method.server_prepare(made.server())
        return made

    return make


def shared_images(run: fedlab.Run) -> Tensor:
    return load_checkpoint(run.checkpoint)[0]["shared/images"]


def make(seed: int = 0, shape: tuple[int, int, int] = (3, 28, 28), classes: int = 10, per_class: int = 20) -> Tensor:
    return virtual_images(shape, classes, per_class, 0.5, 0.3, torch.Generator().manual_seed(seed))


# the virtual set


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 8, 8), (3, 3, 20), (2, 33, 16)])
def test_the_set_is_standardized_in_any_shape(shape: tuple[int, int, int]) -> None:
    images = make(shape=shape, classes=3, per_class=7)
    assert images.shape == (21, *shape)
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(shape[0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(images.std((0, 2, 3), correction=0), torch.ones(shape[0]), rtol=0, atol=1e-5)
    assert not images.requires_grad


def test_it_is_a_function_of_the_seed_alone() -> None:
    first, state = make(0), torch.get_rng_state()
    torch.rand(3)
    disturbed = torch.get_rng_state()
    assert torch.equal(make(0), first)
    assert torch.equal(torch.get_rng_state(), disturbed)
    assert not torch.equal(make(1), first)
    torch.set_rng_state(state)


def test_classes_differ_more_than_images_of_a_class() -> None:
    images, labels = make().flatten(1), torch.arange(10).repeat_interleave(20)
    assert len(images.unique(dim=0)) == 200
    means = torch.stack([images[labels == c][::2].mean(0) for c in range(10)])
    nearest = torch.cdist(images[1::2], means).argmin(1)
    assert (nearest == labels[1::2]).float().mean() > 0.95


# the network


@pytest.mark.parametrize("model", ["convnet", "logistic", "resnet18", "simple_cnn"])
def test_every_model_gets_outputs_for_both_kinds_and_predicts_real_ones(model: str) -> None:
    config = parse(Config, {**BASE, "method": {"name": "vhl", "virtual_classes": 4}, "model": model})
    task = make_task(config, {"image": ("float32", (1, 25, 25)), "label": ("int64", ())}, ["a", "b", "c"], 2)
    method = make_method(config.method)
    networks = torch.nn.ModuleDict(method.build(task)).eval()
    network: Any = networks["model"]
    x = torch.randn(5, 1, 25, 25)
    assert network.head(network.features(x)).shape == (5, 7)
    with torch.no_grad():
        network.head.bias[3:] = 1e6
    logits = method.predict(networks, {"image": x})
    assert logits.shape == (5, 3)
    assert logits.abs().max() < 1e5


def test_samples_that_are_no_images_are_refused() -> None:
    config = parse(Config, {**BASE, "model": "logistic"})
    task = make_task(config, {"points": ("float32", (64, 3)), "label": ("int64", ())}, ["a", "b"], 2)
    with pytest.raises(ConfigError, match="image data"):
        make_method(config.method).build(task)


# the loss


def first_batch(bench: Any, drawn: list[int], **settings: Any) -> tuple[dict[str, Tensor], dict[str, Any], Step]:
    ctx = bench.client(**settings)
    batch, step = next(ctx.batches())
    step.scratch["virtual"] = iter(drawn)
    return bench.method.loss(bench.networks, batch, step), batch, step


def test_the_four_terms_are_those_of_the_formula(lab: Callable[..., Any]) -> None:
    bench = lab(alpha=0.7, w_real=0.4, w_virtual=0.2, virtual_classes=3, temperature=0.1)
    drawn = [0, 4, 5, 9, 10, 14, 11, 3]
    virtual_labels = torch.tensor([0, 0, 1, 1, 2, 2, 2, 0])
    terms, batch, _ = first_batch(bench, drawn)
    model = bench.networks["model"]
    z, z_v = model.features(batch["image"]), model.features(bench.shared["images"][drawn])
    expected = {
        "ce": F.cross_entropy(model.head(z), batch["label"]),
        # the virtual class ỹ is the classifier's class K + ỹ …
        "virtual_ce": 0.7 * F.cross_entropy(model.head(z_v), 4 + virtual_labels),
        # … and the real class ỹ of the alignment
        "align": 0.4 * supervised_contrastive(torch.cat([z, z_v]), torch.cat([batch["label"], virtual_labels]), 0.1),
        "virtual_contrast": 0.2 * supervised_contrastive(z_v, virtual_labels, 0.1),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


def test_virtual_features_are_anchors_of_the_alignment_and_move_by_their_own_contrast(lab: Callable[..., Any]) -> None:
    bench = lab()
    bench.shared["images"].requires_grad_()
    terms, *_ = first_batch(bench, list(range(8)))
    (none,) = torch.autograd.grad(terms["align"], bench.shared["images"], allow_unused=True, retain_graph=True)
    (some,) = torch.autograd.grad(terms["virtual_contrast"], bench.shared["images"], retain_graph=True)
    assert none is None or not none.any()
    assert some.any()
    weights = [p for p in bench.networks["model"].encoder.parameters() if p.requires_grad]
    assert all(g.any() for g in torch.autograd.grad(terms["align"], weights))


def test_contrast_ends_after_the_first_local_epochs_of_every_round(lab: Callable[..., Any]) -> None:
    bench = lab(align_epochs=2, training={"local_epochs": 4})
    for round in (1, 2):
        ctx = bench.client(round=round)
        found = []
        for batch, step in ctx.batches():
            step.scratch["virtual"] = itertools.count(0)
            found.append((step.epoch, "align" in bench.method.loss(bench.networks, batch, step)))
        assert found == [(epoch, epoch < 2) for epoch in range(4) for _ in range(3)]


def test_the_naive_variant_only_classifies(lab: Callable[..., Any]) -> None:
    terms, *_ = first_batch(lab(naive=True), list(range(8)))
    assert terms.keys() == {"ce", "virtual_ce"}


@pytest.mark.parametrize("missing", [(0, 1), (3,)])
def test_a_client_without_some_classes_trains_on_finite_losses(lab: Callable[..., Any], missing: tuple[int]) -> None:
    bench = lab()
    held = tuple(c for c in range(4) if c not in missing)
    ctx = bench.client(bench.data(classes=held))
    bench.method.fit(ctx)
    assert all(torch.isfinite(value).all() for value in bench.weights().values())
    assert ctx.metrics["align"] > 0


def test_every_batch_has_as_many_virtual_samples_and_passes_do_not_repeat(lab: Callable[..., Any]) -> None:
    bench = lab(training={"local_epochs": 2})
    drawn: list[int] = []
    ctx = bench.client()

    def recorded(stream: Any) -> Any:
        for index in stream:
            drawn.append(index)
            yield index

    scratch_train = ctx.train
    ctx.train = lambda: (ctx.scratch.update(virtual=recorded(ctx.scratch["virtual"])), scratch_train())[1]
    bench.method.fit(ctx)
    assert len(drawn) == 48  # 24 samples, two epochs
    assert sorted(drawn[:20]) == sorted(drawn[20:40]) == list(range(20))
    assert drawn[:20] != drawn[20:40]


def test_draws_depend_on_round_and_client_only(lab: Callable[..., Any]) -> None:
    bench = lab()

    def order(**who: int) -> list[int]:
        ctx = bench.client(**who)
        ctx.train = lambda: None
        bench.method.fit(ctx)
        return list(itertools.islice(ctx.scratch["virtual"], 20))

    assert order(client=1, round=2) == order(client=1, round=2)
    assert len({tuple(order(client=c, round=r)) for c in (0, 1) for r in (1, 2)}) == 4


# whole runs


def test_the_set_is_sent_in_a_clients_first_round_only_and_never_changes(run: Start) -> None:
    done = run(SMALL, "federation.sampler.fraction=0.5", SKEWED)
    images, met = shared_images(done), set[int]()
    assert images.shape == (60, 3, 16, 16)
    for r in done.history.rounds:
        new = set(r["clients"]) - met
        assert r["bytes"].get("shared", {}).get("down", 0) == len(new) * images.numel() * 4
        assert r["bytes"]["model"]["up"] == r["bytes_up"]
        met |= new
    assert len(met) > 2
    assert torch.equal(shared_images(run(SMALL, "federation.rounds=1")), images)
    assert not torch.equal(shared_images(run(SMALL, "federation.rounds=1", "seed=1")), images)


def test_scaffold_corrects_its_steps(run: Start) -> None:
    plain, corrected = (
        run(SMALL, SKEWED, "federation.rounds=3", f"federation.strategy={strategy}")
        for strategy in ("fedavg", "scaffold")
    )
    assert not same(weights(corrected), weights(plain))
    assert all(torch.isfinite(value).all() for value in weights(corrected).values())


def test_fewer_virtual_than_real_classes_will_do(run: Start) -> None:
    done = run("method={name: vhl, images_per_class: 4, virtual_classes: 3}", "federation.rounds=1")
    assert shared_images(done).shape == (12, 3, 16, 16)
    assert weights(done)["network/model.head.bias"].shape == (13,)


def test_it_learns_the_digits(run: Start) -> None:
    done = run(
        "method={name: vhl, images_per_class: 10}", "federation.rounds=6", "training.lr=0.2",
        "training.batch_size=8", "training.local_epochs=2", "evaluation.every=6",
    )  # fmt: skip
    assert done.metrics["clients"]["grey"]["accuracy"] > 0.5
    first, last = (done.history.rounds[i]["train"] for i in (0, -1))
    assert last["virtual_ce"] < 0.5 * first["virtual_ce"]
    assert last["align"] < first["align"]


def test_the_set_is_shown_once(lab: Callable[..., Any]) -> None:
    bench = lab()

    def look(round: int) -> Any:
        context = FigureContext(
            task=bench.task, round=round, shared=bench.shared, client_names=("a",), client_state=lambda _: None,
            denormalize=lambda x: x, networks=bench.networks, data={}, client_test=lambda _: None, seed=0,
            batch_size=256,
        )  # fmt: skip
        return bench.method.figures(context)

    grid = look(0)["virtual"]
    assert grid.columns == 4
    assert torch.equal(grid.images[:4], bench.shared["images"][::5])
    assert look(1) == {}


# settings


def test_defaults_are_those_of_the_scripts() -> None:
    s = VHL().settings
    assert (s.virtual_classes, s.images_per_class, s.mean_std, s.latent_std) == (None, 200, 0.5, 0.3)
    assert (s.alpha, s.w_real, s.w_virtual, s.temperature, s.align_epochs, s.naive) == (1.0, 1.0, 0.1, 0.07, 5, False)
    assert VHL(parse(VHL.Settings, configure("vhl").method.settings)).check(configure("vhl")) == []


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"alpha": 0}, "learns nothing"),
        ({"align_epochs": 0}, "this is method.naive"),
        ({"w_real": 0, "w_virtual": 0}, "this is method.naive"),
        ({"images_per_class": 1}, "a single image"),
        ({"latent_std": 0}, "are the same"),
    ],
)
def test_settings_without_sense_are_pointed_out(settings: dict[str, Any], warning: str) -> None:
    config = parse(Config, {**BASE, "method": {"name": "vhl", **settings}})
    (text,) = make_method(config.method).check(config)
    assert warning in text


@pytest.mark.parametrize("setting", [{"temperature": 0}, {"images_per_class": 0}, {"virtual_classes": 0}, {"w": 1}])
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match=f"method.{next(iter(setting))}"):
        make_method(parse(Config, {**BASE, "method": {"name": "vhl", **setting}}).method)
