"""What a configuration of probes is made into, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedlab.config import Component
from fedlab.config.held import HeldSet
from fedlab.errors import ConfigError, ConfigErrors, FedLabError
from fedlab.method import Batch, Features, Method, Task
from fedlab.probes import check_sets, make_probes, run_probes, try_probes

PARTS = ("student", "teacher")


def components(*probes: Any) -> list[Component]:
    return [Component(**({"name": probe} if isinstance(probe, str) else probe)) for probe in probes]


def metrics(*probes: Any) -> list[str]:
    return [one.metric for one in make_probes(components(*probes), PARTS)]


def test_metrics_have_the_names_of_probes_and_what_tells_them_apart() -> None:
    assert metrics("linear", "knn") == ["probe_linear", "probe_knn"]
    two = metrics("linear", {"name": "linear", "part": "teacher"})
    assert two == ["probe_linear_student", "probe_linear_teacher"]
    sides = metrics({"name": "knn", "test": "far"}, {"name": "knn", "test": "near", "part": "teacher"})
    assert sides == ["probe_knn_student_far", "probe_knn_teacher_near"]
    assert metrics("knn", {"name": "knn", "k": 5, "suffix": "5"}) == ["probe_knn", "probe_knn_5"]


HELD = {"few": HeldSet(), "late": HeldSet(split="test", share=0.5)}


@pytest.mark.parametrize(
    ("probe", "key", "expected"),
    [
        ({"name": "linaer"}, "probes.0.name", "did you mean 'linear'"),
        ({"name": "linear", "strenght": 1}, "probes.0.strenght", "did you mean 'strength'"),
        ({"name": "linear", "strength": []}, "probes.0.strength", "at least 1"),
        ({"name": "knn", "k": 0}, "probes.0.k", "greater than or equal to 1"),
        ({"name": "knn", "fit": "near", "test": "near"}, "probes.0.fit", "another set than probes.0.test"),
        ({"name": "knn", "fit": "test", "test": "near"}, "probes.0.fit", "does not come from test samples"),
        ({"name": "knn", "fit": "late"}, "probes.0.fit", "does not come from test samples"),
        ({"name": "knn", "fit": None}, "probes.0.fit", "a set to fit on"),
        ({"name": "knn", "part": "pupil"}, "probes.0.part", "student, teacher"),
        ({"name": "ridge", "fit": "probe"}, "probes.0.fit", "train or validation"),
        ({"name": "ridge", "test": "few"}, "probes.0.test", "on: server"),
    ],
)
def test_mistakes_are_told_before_the_run(probe: dict[str, Any], key: str, expected: str) -> None:
    with pytest.raises(ConfigErrors) as refused:
        make_probes(components(probe), PARTS, HELD)
    assert key in str(refused.value)
    assert expected in str(refused.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigErrors) as refused:
        make_probes(components({"name": "knn", "part": "x"}, {"name": "svm", "C": -1}, "lin"), PARTS)
    assert len(refused.value.errors) == 3


def test_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigErrors, match="several are called probe_knn"):
        make_probes(components("knn", {"name": "knn", "k": 5}), PARTS)


def test_a_method_without_features_is_refused() -> None:
    with pytest.raises(ConfigErrors, match="a method whose features can be probed"):
        make_probes(components("knn"), ())


SETS = {
    "probe": {"image": np.zeros((6, 1, 2, 2)), "label": np.arange(6) % 2},
    "test": {"image": np.zeros((4, 1, 2, 2)), "label": np.arange(4) % 2},
    "one": {"image": np.zeros((4, 1, 2, 2)), "label": np.zeros(4, np.int64)},
}


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ({"name": "knn", "fit": "prob"}, "did you mean 'probe'"),
        ({"name": "knn", "label": "lable"}, "did you mean 'label'"),
        ({"name": "knn", "fit": "one"}, "at least two classes"),
    ],
)
def test_samples_that_are_not_there_are_refused(probe: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigErrors, match=expected):
        check_sets(make_probes(components(probe), PARTS), SETS)


def test_without_samples_on_the_server_the_probe_ridge_is_advised() -> None:
    with pytest.raises(ConfigErrors, match="use the probe ridge"):
        check_sets(make_probes(components("knn"), PARTS), {})
    check_sets(make_probes(components("ridge"), PARTS), {}, classes=3)
    with pytest.raises(ConfigErrors, match="at least two classes"):
        check_sets(make_probes(components("ridge"), PARTS), {}, classes=0)


class Seeing(Method):
    """Its features are the pixels, changed by dropout in training."""

    def __init__(self, vectors: Any = None) -> None:
        super().__init__()
        self.made, self._vectors = 0, vectors

    def build(self, task: Task) -> dict[str, nn.Module]:
        raise NotImplementedError

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        self.made += 1
        vectors = networks["model"](batch["image"]).flatten(1)
        return Features(vectors if self._vectors is None else self._vectors(vectors))


def tensors() -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = labels.reshape(-1, 1, 1, 1) * 3 + torch.rand(40, 1, 2, 2, generator=generator)
    halves = {"probe": slice(0, 20), "test": slice(20, 40)}
    return {name: {"image": images[part], "label": labels[part]} for name, part in halves.items()}


def run(method: Method, *probes: Any, networks: nn.ModuleDict | None = None) -> dict[str, float]:
    network = networks or nn.ModuleDict({"model": nn.Dropout(0.5)})
    made = make_probes(components(*probes), ("model",))
    return run_probes(made, method, network, tensors(), batch_size=8, seed=0)


def test_networks_are_in_evaluation_mode_and_then_as_before() -> None:
    networks = nn.ModuleDict({"model": nn.Dropout(0.5), "other": nn.Identity()})
    networks["other"].eval()
    assert run(Seeing(), "linear", networks=networks) == {"probe_linear": 1.0}
    assert (networks["model"].training, networks["other"].training) == (True, False)


def test_features_are_computed_once_for_all_probes() -> None:
    method = Seeing()
    found = run(method, "linear", "knn", {"name": "few_shot", "ways": 2, "queries": 5})
    assert method.made == 6  # two sets of three batches
    assert set(found) == {"probe_linear", "probe_knn", "probe_few_shot", "probe_few_shot_std"}


def test_features_that_are_not_finite_give_no_number() -> None:
    found = run(Seeing(lambda vectors: vectors / 0), "linear")
    assert np.isnan(found["probe_linear"])


@pytest.mark.parametrize("wrong", [lambda v: v[:-1], lambda v: v[:, 0]])
def test_features_of_another_form_are_an_error_of_the_method(wrong: Any) -> None:
    with pytest.raises(FedLabError, match=r"\(2, D\) is expected"):
        try_probes(
            make_probes(components("knn"), ("model",)),
            Seeing(wrong),
            nn.ModuleDict({"model": nn.Identity()}),
            tensors(),
        )


class TestDefaultFeatures:
    def test_they_are_what_the_head_receives(self) -> None:
        from fedlab.models import build_model

        model = build_model(Component(name="simple_cnn"), (1, 8, 8), 3).eval()
        networks = nn.ModuleDict({"model": model})
        images = torch.rand(5, 1, 8, 8)
        found = Plain().features(networks, {"image": images}, "model").vectors
        assert torch.equal(model.head(found), model(images))

    def test_a_network_without_features_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"model \(Linear\)"):
            Plain().features(nn.ModuleDict({"model": nn.Linear(2, 2)}), {"image": torch.zeros(1, 2)}, "model")


class Plain(Method):
    def build(self, task: Task) -> dict[str, nn.Module]:
        raise NotImplementedError
