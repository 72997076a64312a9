"""Runs with data in the forms of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from flwr_datasets.partitioner import IidPartitioner, PathologicalPartitioner
from torch.utils.data import TensorDataset

import fedlab
from fedlab.config import Component
from fedlab.errors import ConfigError, DataError
from fedlab.experiment.prediction import predict
from fedlab.storage.hashing import hash_tensors

CENTERS = np.array([[3.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 3.0, 0]])
Y = np.arange(90) % 3
X = (CENTERS[Y] + np.random.default_rng(0).standard_normal((90, 4))).astype(np.float32)


@pytest.fixture
def raw(tmp_path: Path) -> dict[str, Any]:
    return {
        "method": "supervised",
        "model": {"name": "mlp", "hidden": [8]},
        "data": {"partition": [{"name": "iid", "clients": 3}]},
        "training": {"lr": 0.2, "batch_size": 8, "local_epochs": 2},
        "federation": {"rounds": 3},
        "engine": {"name": "inline"},
        "tracking": {"console": "quiet", "tensorboard": False, "report": False, "folder": str(tmp_path / "runs")},
    }


def weights(run: fedlab.Run) -> str:
    return hash_tensors(run.model.state_dict())


SPLITS = ((X[:60], Y[:60]), (X[60:], Y[60:]))
FORMS: dict[str, Any] = {
    "dataset": fedlab.from_arrays(*SPLITS[0], *SPLITS[1]),
    "arrays": SPLITS,
    "torch": tuple(TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in SPLITS),
    "hugging face": datasets.DatasetDict(
        {
            n: datasets.Dataset.from_dict({"features": x.tolist(), "label": y})
            for n, (x, y) in zip(("train", "test"), SPLITS, strict=True)
        }
    ),
}


def test_feature_vectors_are_learned_the_same_in_every_form(raw: dict[str, Any]) -> None:
    runs = {form: fedlab.run(raw, data=data) for form, data in FORMS.items()}
    assert len({weights(run) for run in runs.values()}) == 1
    run = runs["torch"]
    assert run.metrics["pooled"]["accuracy"] > 0.9
    assert run.config.data.source.settings["fingerprint"] == FORMS["dataset"].fingerprint
    assert run.config.data.source.settings["dataset"] == "TensorDataset"
    assert (
        len(fedlab.resume(fedlab.run(raw, data=FORMS["torch"], until=1).path, data=FORMS["arrays"]).history.rounds) == 3
    )


@pytest.mark.parametrize("model", ["logistic", "mlp"])
@pytest.mark.parametrize("method", ["supervised", "moon"])
def test_methods_that_only_ask_for_features_take_vectors(raw: dict[str, Any], method: str, model: str) -> None:
    run = fedlab.run({**raw, "method": method, "model": model, "federation": {"rounds": 1}}, data=FORMS["dataset"])
    assert run.metrics["pooled"]["accuracy"] > 0.5


def test_vectors_train_as_one_batch_on_probes_and_in_workers(raw: dict[str, Any], ray_workers: None) -> None:
    alone = fedlab.run(raw, data=FORMS["dataset"])
    raw["engine"] = {"name": "ray", "workers": 2, "device": "cpu"}
    assert weights(fedlab.run(raw, data=FORMS["torch"])) == weights(alone)
    raw["engine"] = {"name": "inline", "vectorize": 3}
    together = fedlab.run(raw, data=FORMS["dataset"])
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(together.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_model_of_images_refuses_vectors_and_names_one_that_takes_them(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mlp or logistic"):
        fedlab.run({**raw, "model": "convnet"}, data=FORMS["dataset"])


# columns of any name


def test_any_mapping_of_columns_reaches_the_method_and_the_largest_array_the_model(raw: dict[str, Any]) -> None:
    signal = X[:, None].repeat(2, axis=1)
    run = fedlab.run(raw, data={"signal": signal, "weight": Y / 2, "label": Y})
    assert run.task.input_shape == (2, 4)
    assert run.task.columns["weight"] == ("float32", ())
    assert run.metrics["pooled"]["accuracy"] > 0.9


# partitions of others


def test_given_partitions_are_the_clients(raw: dict[str, Any]) -> None:
    partitioner = PathologicalPartitioner(3, "label", 1, class_assignment_mode="deterministic")
    run = fedlab.run(raw, data=(FORMS["hugging face"]["train"], partitioner))
    assert run.config.data.partition == (Component(name="natural"),)
    assert sorted(run.metrics["clients"]) == ["0", "1", "2"]
    assert any("data.partition: natural" in warning for warning in run.history.warnings)
    assert any("no test samples were given" in warning for warning in run.history.warnings)
    again = fedlab.run(run.config, data=(FORMS["hugging face"]["train"], partitioner))
    assert weights(again) == weights(run)
    with pytest.raises(DataError, match="fingerprint"):
        fedlab.run(run.config, data=(FORMS["hugging face"]["train"], IidPartitioner(3)))


@pytest.mark.parametrize(
    "overrides", [["data.partition=[{name: iid, clients: 2}]"], {"data.partition": [{"name": "iid", "clients": 2}]}]
)
def test_another_partition_beside_a_given_one_is_refused(raw: dict[str, Any], overrides: Any) -> None:
    with pytest.raises(ConfigError, match="comes with its own"):
        fedlab.run(raw, data=((X, Y), IidPartitioner(3)), overrides=overrides)


@pytest.mark.parametrize("data", [3, "mnist", object(), [1, 2, 3], torch.zeros(3)])
def test_other_objects_are_refused_with_the_forms_that_are_accepted(raw: dict[str, Any], data: Any) -> None:
    with pytest.raises(DataError) as told:
        fedlab.run(raw, data=data)
    assert told.value.key.startswith("data")
    assert not Path(raw["tracking"]["folder"]).exists()


def test_no_source_has_to_be_named_where_data_is_given(raw: dict[str, Any]) -> None:
    del raw["data"]
    assert len(fedlab.run(raw, data=FORMS["dataset"]).metrics["clients"]) == 5


# predictions


def pictures(raw: dict[str, Any], **data: Any) -> fedlab.Run:
    pixels = (np.arange(40 * 64) * 7 % 251).astype(np.uint8).reshape(40, 8, 8)
    columns = {"image": pixels, "label": np.arange(40) % 2, "domain": np.resize(["a", "b"], 40)}
    raw = {**raw, "model": "logistic", "data": {**raw["data"], **data}}
    return fedlab.run(raw, data={"train": columns, "test": columns})


def test_predictions_of_images_are_normalized_as_training_was(raw: dict[str, Any]) -> None:
    run = pictures(raw, mean=[0.25], std=[0.75])
    pixels = (np.arange(40 * 64) * 7 % 251).astype(np.uint8).reshape(40, 8, 8)
    by_hand = torch.from_numpy((pixels[:, None] / 255 - 0.25) / 0.75).float()
    wanted = run.model["model"](by_hand)
    forms: list[Any] = [
        pixels,
        torch.from_numpy(pixels),
        (pixels / 255).astype(np.float32),
        pixels[..., None],
        {"image": pixels},
        TensorDataset(torch.from_numpy(pixels)),
        (pixels, np.arange(40)),
    ]
    for form in forms:
        torch.testing.assert_close(run.predict(form), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run.predict(pixels, batch_size=7), run.predict(pixels))
    right = (run.predict(pixels).argmax(1).numpy() == np.arange(40) % 2).mean()
    assert right == pytest.approx(run.metrics["pooled"]["accuracy"])
    assert not run.predict(pixels).requires_grad


def test_domains_that_are_normalized_differently_have_to_be_named(raw: dict[str, Any]) -> None:
    run = pictures(raw, mean={"a": [0.25], "b": [0.5]}, std=[0.5])
    pixels = (np.arange(40 * 64) * 7 % 251).astype(np.uint8).reshape(40, 8, 8)
    first, second = run.predict(pixels, domain="a"), run.predict(pixels, domain="b")
    assert not torch.allclose(first, second)
    mixed = run.predict(pixels[:2], domain=["b", "a"])
    torch.testing.assert_close(mixed, torch.stack([second[0], first[1]]))
    for domain, words in ((None, "one of a, b"), ("c", "one of a, b"), (["a"], "one for each")):
        with pytest.raises(DataError, match=words):
            run.predict(pixels, domain=domain)


def test_predictions_of_vectors_take_them_as_they_are(raw: dict[str, Any]) -> None:
    run = fedlab.run(raw, data=FORMS["dataset"])
    torch.testing.assert_close(run.predict(X.astype(np.float64)), run.model["model"](torch.from_numpy(X)))
    torch.testing.assert_close(run.predict(FORMS["dataset"].test), run.predict(X[60:]))


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros((5, 3)), "features of shape 4"),
        (np.zeros((5, 8, 8)), "a column 'features'"),
        ({"signal": X}, "a column 'features'"),
        ("text", "torch Dataset"),
        (FORMS["dataset"], "data.test"),
    ],
)
def test_samples_unlike_those_of_the_run_are_refused(raw: dict[str, Any], samples: Any, words: str) -> None:
    run = fedlab.run({**raw, "federation": {"rounds": 1}}, data=FORMS["dataset"])
    with pytest.raises(DataError, match=words):
        run.predict(samples)


def test_a_prediction_that_is_no_tensor_is_told(raw: dict[str, Any]) -> None:
    run = fedlab.run({**raw, "federation": {"rounds": 1}}, data=FORMS["dataset"])

    class Words(type(run.method)):  # type: ignore[misc]  # the class of whatever the run's method is
        def predict(self, networks: Any, batch: Any) -> Any:
            return ["a"]

    with pytest.raises(TypeError, match="returns list, no tensor"):
        predict(Words(), run.model, run.task, run.config.data, X)
