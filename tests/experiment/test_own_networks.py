"""Runs with a network of the user's own: they record it, ask for it again, and refuse what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedlab
from fedlab.config import Component, Section
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.methods.supervised.method import Supervised
from fedlab.report.record import RunRecord
from fedlab.report.sections import repeat
from fedlab.storage.hashing import hash_tensors

SHAPE, CLASSES = (3, 8, 8), 3


class Net(nn.Module):
    """A network that can be imported from where these tests lie."""

    def __init__(self, num_classes: int = CLASSES, hidden: int = 8) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(192, hidden), nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.body(x.flatten(1)).relu())
        return found


class Configured(Net):
    class Settings(Section):
        hidden: int = 8

    def __init__(self, settings: Settings, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(num_classes, settings.hidden)
        self.input_shape = input_shape


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "supervised",
        "data": {"partition": [{"name": "iid", "clients": 2}]},
        "training": {"lr": 0.1, "batch_size": 8},
        "federation": {"rounds": 2},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "report": False, "folder": str(tmp_path / "runs")},
    }


def arrays() -> fedlab.Dataset:
    images = (np.arange(24 * 3 * 8 * 8) % 251).astype(np.uint8).reshape(24, *SHAPE)
    return fedlab.from_arrays(images, np.arange(24) % CLASSES, images, np.arange(24) % CLASSES)


def net(seed: int = 3) -> Net:
    torch.manual_seed(seed)
    return Net()


def weights(run: fedlab.Run) -> str:
    return hash_tensors(run.model.state_dict())


def test_a_module_is_trained_from_its_own_weights_and_is_not_changed(raw: dict[str, Any]) -> None:
    own = net()
    before = hash_tensors(own.state_dict())
    raw["training"]["lr"] = 1e-12
    run = fedlab.run(raw, model=own, data=arrays())
    for name, value in own.state_dict().items():
        torch.testing.assert_close(run.model["model"].state_dict()[name], value)
    assert hash_tensors(own.state_dict()) == before
    other = fedlab.run(raw, model=net(4), data=arrays())
    assert not torch.allclose(other.model["model"].head.weight, own.head.weight)


def test_it_is_recorded_by_class_size_and_hash(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, model=net(), data=arrays())
    recorded = fedlab.load(run.path).config.model
    assert recorded.name == "given"
    assert recorded.settings["of"] == f"{__name__}:Net"
    assert recorded.settings["parameters"] == 192 * 8 + 8 + 8 * 3 + 3
    assert run.history.start["model"] == "Net"
    told = repeat(RunRecord.open(run.path))
    assert told["from_folder"] == 'fedlab.run("config.yaml", data=…, model=…)'
    assert f"{recorded.settings['parameters']} parameters, fingerprint" in told["given"][1]
    again = fedlab.run(run.folder.config, model=net(), data=arrays())
    assert weights(again) == weights(run)
    with pytest.raises(ConfigError, match="the network of this configuration"):
        fedlab.run(run.folder.config, model=net(4), data=arrays())


def test_a_resumed_run_wants_the_same_and_ends_with_the_same_weights(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, model=net(), data=arrays(), until=1)
    events = run.folder.events.read_bytes()
    with pytest.raises(ConfigErrors, match="given in Python") as told:
        fedlab.resume(run.path, data=arrays())
    assert "fedlab.resume(run, model=…)" in str(told.value)
    wrong: list[tuple[Any, str]] = [
        (net(4), "the network of this configuration"),
        (Net, "the network of this configuration"),
        (Configured, "the model that the run began with"),
        ("mlp", "no name"),
    ]
    for other, words in wrong:
        with pytest.raises(ConfigError, match=words):
            fedlab.resume(run.path, model=other, data=arrays())
    assert run.folder.events.read_bytes() == events
    assert weights(fedlab.resume(run.path, model=net(), data=arrays())) == weights(
        fedlab.run(raw, model=net(), data=arrays())
    )


def test_a_run_of_the_registry_is_not_resumed_with_a_network(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, model="logistic", data=arrays(), until=1)
    with pytest.raises(ConfigError, match="the model that the run began with, logistic"):
        fedlab.resume(run.path, model=net(), data=arrays())


def test_workers_get_it_too(raw: dict[str, Any], ray_workers: None) -> None:
    class Local(Net):
        """Cannot be imported by name."""

    local = Local()
    alone = fedlab.run(raw, model=local, data=arrays())
    raw["engine"] = {"name": "ray", "workers": 2, "device": "cpu"}
    assert weights(fedlab.run(raw, model=local, data=arrays())) == weights(alone)
    assert weights(fedlab.run(raw, model=lambda num_classes: Net(num_classes), data=arrays())) == weights(
        fedlab.run({**raw, "engine": {"name": "inline"}}, model=lambda num_classes: Net(num_classes), data=arrays())
    )


def test_a_factory_depends_on_the_runs_seed_and_knows_the_classes(raw: dict[str, Any]) -> None:
    runs = [fedlab.run({**raw, "seed": seed}, model=Net, data=arrays()) for seed in (0, 0, 1)]
    assert weights(runs[0]) == weights(runs[1])
    assert weights(runs[0]) != weights(runs[2])
    settings = runs[0].config.model.settings
    assert (settings["of"], settings["made_by"]) == (f"{__name__}:Net", f"{__name__}:Net")
    assert settings["fingerprint"] == runs[2].config.model.settings["fingerprint"], "it does not depend on the seed"


def test_a_class_with_settings_is_recorded_by_its_name_and_needs_not_be_given_again(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, model=Configured, data=arrays(), overrides={"model.hidden": 5}, until=1)
    assert run.config.model == Component(name=f"{__name__}:Configured", hidden=5)
    assert run.model["model"].head.in_features == 5
    assert run.model["model"].input_shape == SHAPE
    again = fedlab.run(run.config, model=Configured, data=arrays(), until=1)
    assert again.config.model == run.config.model, "the settings stay"
    with pytest.raises(ConfigErrors, match=r"model\.width"):
        fedlab.run(raw, model=Configured, data=arrays(), overrides={"model.width": 5})


@pytest.mark.parametrize("model", ["logistic", {"name": "mlp", "hidden": [4]}])
def test_a_name_is_a_name(raw: dict[str, Any], model: Any) -> None:
    run = fedlab.run(raw, model=model, data=arrays())
    assert run.config.model.name == (model if isinstance(model, str) else "mlp")
    with pytest.raises(ConfigError, match="one model"):
        fedlab.run(raw, model=model, data=arrays(), overrides={"model": "convnet"})


def test_a_loaded_run_needs_the_layers_and_takes_the_weights_of_the_checkpoint(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, model=net(), data=arrays())
    with pytest.raises(ConfigError, match=r"fedlab\.load"):
        _ = fedlab.load(run.path).model
    assert weights(fedlab.load(run.path, model=Net(CLASSES))) == weights(run)
    assert weights(fedlab.load(run.path, model=Net)) == weights(run)
    with pytest.raises(ConfigError, match="size mismatch"):
        _ = fedlab.load(run.path, model=Net(7)).model


class Embedding(Supervised):
    """Puts a layer of its own on what the run's model returns."""

    def build(self, task: Any) -> dict[str, nn.Module]:
        return {"model": nn.Sequential(task.model(), nn.Linear(7, task.num_classes))}


def test_the_output_has_to_fit_the_classes_where_the_method_uses_it_as_logits(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"shape \(n, 3\)") as told:
        fedlab.run(raw, model=Net(7), data=arrays())
    assert "(2, 7)" in str(told.value)
    assert fedlab.run(raw, model=Net(7), data=arrays(), method=Embedding).metrics["mean"]


class Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return (x.flatten(1)[:, :CLASSES],)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(5, 3), "samples of shape nx3x8x8, float32"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(2 * 192, 3)), r"logits of shape \(n, 3\)"),
        (Odd(), "tuple"),
        (3, "list models"),
        (lambda width: Net(width), "needs width"),
        (nn.LazyLinear(3), "lazy"),
        ("mlpp", "mlp"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_the_run_begins(
    raw: dict[str, Any], model: Any, words: str
) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=words):
        fedlab.run(raw, model=model, data=arrays())
    assert not Path(raw["tracking"]["folder"]).exists()


def test_a_method_with_networks_of_its_own_refuses_one(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match="a method that trains the run's model"):
        fedlab.run({**raw, "method": "transkd"}, model=net(), data=arrays())


def test_a_method_that_asks_for_a_column_that_is_not_there_is_told_so(raw: dict[str, Any]) -> None:
    x = np.random.default_rng(0).standard_normal((24, 5))
    data = fedlab.from_arrays(x, np.arange(24) % 3, x, np.arange(24) % 3)

    class Pictures(Supervised):
        title = "Pictures"

        def loss(self, networks: Any, batch: Any, step: Any) -> Any:
            return {"ce": networks["model"](batch["image"]).sum()}

    with pytest.raises(ConfigError, match="a column 'image', which Pictures asks for") as told:
        fedlab.run(raw, method=Pictures, model="mlp", data=data)
    assert "features" in str(told.value)

    class Buggy(Supervised):
        def loss(self, networks: Any, batch: Any, step: Any) -> Any:
            return {"ce": batch["featurs"]}

    with pytest.raises(KeyError, match="featurs"):
        fedlab.run(raw, method=Buggy, model="mlp", data=data)
