"""Stages of the squeeze, settings and refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedlab.assembly import make_method, make_task
from fedlab.config import Config, load_config, parse
from fedlab.distill.bn_matching import batch_norms
from fedlab.distill.schedules import cosine
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.start import configure, method_folder
from fedlab.methods.cda.settings import CDASettings, Recover

# stages, settings, refusals


def test_the_squeeze_has_its_own_schedule_and_augmentation(lab: Callable[..., Any]) -> None:
    bench = lab(squeeze={"rounds": 2, "crop": 0.5, "shift": 1})
    ctx = bench.client(round=2)
    rates = [bench.method.schedule(step, {"lr": 0.4})["lr"] for _, step in ctx.batches()]
    assert rates == pytest.approx([0.2, 0.4 * cosine(4, 6), 0.4 * cosine(5, 6)])
    batch, _ = next(iter(ctx.batches()))
    assert not (batch["image"][:, None] == ctx.data["image"][None]).flatten(2).all(2).any()


def test_a_mixture_is_what_the_server_makes_of_the_variances(lab: Callable[..., Any]) -> None:
    bench = lab()
    ctx = bench.client(round=1)
    bench.method.fit(ctx)
    first: Any = batch_norms(bench.networks["model"])[0]
    sent = first.running_var.clone()
    bench.method.server_update(bench.server(1))
    torch.testing.assert_close(first.running_var, sent - first.running_mean.square())


@pytest.mark.parametrize(
    "model", [{"name": "convnet", "width": 8, "depth": 2}, {"name": "convnet", "norm": "group"}, {"name": "logistic"}]
)
def test_a_teacher_without_batch_norm_is_refused(lab: Callable[..., Any], model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)model\.name.*BatchNorm"):
        lab(model=model)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"federation.rounds": 11}, "federation.rounds"),
        ({"method.squeeze.rounds": 0}, "method.squeeze.rounds"),
        ({"exchange.local": ["norm"]}, "exchange.local"),
        ({"data.mean": {"all": [0.5]}}, "data.mean"),
        ({"method.recover.form": "server", "method.post.labels": "ensemble"}, "method.post.labels"),
        ({"method.recover.form": "server", "method.recover.images": "real"}, "method.recover.images"),
        ({"federation.mode": "asynchronous"}, "federation.mode"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], key: str) -> None:
    config = configure("cda").with_overrides(changes)
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        make_method(config.method).check(config)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ({"recover": {"milestone": 1.5}}, "recover.milestone"),
        ({"recover": {"curriculum": "spiral"}}, "recover.curriculum"),
        ({"recover": {"ipc": 0}}, "recover.ipc"),
        ({"post": {"temperature": 0}}, "post.temperature"),
        ({"post": {"labels": "hard", "relabel": "stored"}}, "post"),
        ({"post": {"epochs": 2, "warmup_epochs": 3}}, "post"),
        ({"squeeze": {"rounds": 1, "warmup_rounds": 2}}, "squeeze"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigErrors, match=f"method.{key}"):
        make_method(parse(Config, {"data": {"source": "digits"}, "method": {"name": "cda", **setting}}).method)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"method.recover.images": "real"}, "private images"),
        ({"method.recover.milestone": 0}, "SRe²L"),
        ({"method.recover.r_bn": 0}, "only the cross-entropy"),
        ({"method.post.labels": "hard"}, "loses"),
        ({"method.post.temperature": 1}, "hardly softens"),
        ({"training.schedule": "cosine"}, "squeeze.schedule"),
        ({"method.squeeze.variance": "average"}, "understates"),
        ({"federation.sampler": {"name": "uniform", "fraction": 0.5}}, "send images"),
    ],
)
def test_traps_are_pointed_out(changes: dict[str, Any], warning: str | None) -> None:
    config = configure("cda").with_overrides(changes)
    found = make_method(config.method).check(config)
    assert [warning in text for text in found] == [True] if warning else found == []  # type: ignore[operator]  # not None where it is read


def test_the_default_curriculum_is_cdas_and_not_sre2ls() -> None:
    s = Recover()
    assert (s.curriculum, s.milestone, s.smallest, s.first_bn) == ("cosine", 1.0, 0.08, 10.0)


@pytest.mark.parametrize(
    ("student", "key"), [({"name": "convnett"}, r"a\.name"), ({"name": "convnet", "width": 0}, r"a\.width")]
)
def test_a_wrong_student_is_named(student: dict[str, Any], key: str) -> None:
    config = configure("cda").with_overrides({"method.post.students": {"a": student}})
    with pytest.raises(ConfigErrors, match=r"method\.post\.students\." + key):
        make_method(config.method).check(config)


def test_a_task_tells_how_images_were_normalized() -> None:
    def task(**data: Any) -> Any:
        config = parse(Config, {"method": "cda", "data": {"source": "digits", **data}})
        return make_task(config, {"image": ("float32", (3, 8, 8))}, ["a", "b"], 1)

    assert (task().mean, task().std) == ((0.5,), (0.5,))
    assert task(mean=[0.1, 0.2, 0.3]).mean == (0.1, 0.2, 0.3)
    assert task(std={"x": [0.5], "y": [0.1, 0.2, 0.3]}).std == pytest.approx((0.3, 0.35, 0.4))


def test_the_configuration_for_tiny_imagenet_takes_the_releases_mean_and_std() -> None:
    data = load_config(method_folder("cda", "method") / "paper_tinyimagenet.yaml").data
    assert (data.mean, data.std) == ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))


def test_the_configuration_for_cifar_100_is_that_of_the_releases_code_for_small_data_sets() -> None:
    config = load_config(method_folder("cda", "method") / "paper_cifar100.yaml")
    recover, post = CDASettings(**config.method.settings).recover, CDASettings(**config.method.settings).post
    assert (recover.jitter, recover.flip, recover.curriculum, recover.milestone) == (4, False, "step", 1.0)
    assert (post.crop, post.shift, post.flip, post.mixing) == (1.0, 4, True, "mixup")
    assert (post.optimizer, post.weight_decay, post.decay) == ("adamw", 0.01, "all")
    assert (config.data.mean, config.data.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
