from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fedlab.blocks.labels import check_classes, label_values, labels_of, measure_on_server, server_labels, targets_of
from fedlab.errors import DataError
from fedlab.method import Batch, ServerContext
from fedlab.metrics import Classification, TagPrecision

Server = Callable[..., ServerContext]
LOGITS = torch.tensor([[4.0, 0, 0], [0, 4, 0], [0, 4, 0], [0, 0, 4], [4, 0, 0], [0, 0, 4]])
CLASSES = torch.tensor([0, 1, 2, 2, 0, 0])
TAGS = torch.nn.functional.one_hot(CLASSES, 3).bool()


def of(batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = batch["logits"]
    return logits


def test_targets_are_ones_for_classes_and_the_tags_themselves() -> None:
    assert targets_of({"label": torch.tensor([2, 0])}, 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    tags = torch.tensor([[True, True, False]])
    assert targets_of({"tags": tags, "label": torch.tensor([1])}, 3).tolist() == [[1, 1, 0]]


def test_tags_say_more_than_a_class() -> None:
    both = {"tags": TAGS, "label": CLASSES}
    assert labels_of(both) is TAGS
    assert labels_of({"label": CLASSES}) is CLASSES
    assert labels_of({}) is None


def test_labels_of_a_set_are_those_of_all_its_samples_and_of_one_batch_in_preflight(server: Server) -> None:
    data = {"test": {"logits": LOGITS, "label": CLASSES}}
    assert server_labels(server(data=data), "test").tolist() == CLASSES.tolist()
    assert server_labels(server(data=data, preflight=True), "test").tolist() == CLASSES[:4].tolist()


def test_a_set_without_labels_is_refused(server: Server) -> None:
    with pytest.raises(DataError, match="no labels"):
        server_labels(server(data={"test": {"logits": LOGITS}}), "test")


@pytest.mark.parametrize("name", ["label", "tags"])
def test_a_set_of_one_class_is_refused(server: Server, name: str) -> None:
    held: dict[str, Any] = {"label": CLASSES, "tags": TAGS}
    check_classes(server(data={"probe": {name: held[name]}}), "probe")
    with pytest.raises(DataError, match="samples of one class"):
        check_classes(server(data={"probe": {name: held[name][[0, 4, 5]]}}), "probe")


def test_accuracy_for_classes_and_mean_average_precision_for_tags(server: Server) -> None:
    found = measure_on_server(server(data={"test": {"logits": LOGITS, "label": CLASSES}}), "test", of)
    assert found == {"accuracy": pytest.approx(4 / 6)}
    tagged = measure_on_server(server(data={"test": {"logits": LOGITS, "tags": TAGS}}), "test", of)
    # class 0: two of three found first, then four tied; class 1: one of two; class 2: one of two, then four tied
    assert tagged.keys() == {"map"}
    assert tagged["map"] == pytest.approx(np.mean([2 / 3 + 3 / 6 / 3, 0.5, 0.5 / 2 + 2 / 6 / 2]))


def test_values_come_from_the_statistics_that_there_are(server: Server) -> None:
    classes, tags = Classification(3), TagPrecision(3)
    classes.update(LOGITS, CLASSES)
    tags.update(LOGITS, TAGS)
    task = server().task
    assert label_values(classes.state(), task)["accuracy"] == pytest.approx(4 / 6)
    assert "map" in label_values(tags.state(), task)
