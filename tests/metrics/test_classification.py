from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.metrics import Classification, SumMetrics


def sample(n: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    return torch.randn(n, classes, generator=generator) + 1.5 * F.one_hot(labels, classes), labels


def measured(logits: Tensor, labels: Tensor, classes: int) -> Classification:
    metric = Classification(classes)
    for part, truth in zip(logits.split(7), labels.split(7), strict=True):
        metric.update(part, truth)
    return metric


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_values_equal_other_libraries(classes: int) -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score
    from torchmetrics.classification import MulticlassAccuracy

    logits, labels = sample(200, classes)
    values = measured(logits, labels, classes).compute()
    guesses = logits.argmax(1)
    assert values["accuracy"] == pytest.approx(float(MulticlassAccuracy(classes, average="micro")(logits, labels)))
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert values["f1_macro"] == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert values["loss"] == pytest.approx(float(F.cross_entropy(logits.double(), labels)), abs=1e-6)


def test_absent_classes_count_as_in_other_libraries() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score

    logits, labels = sample(60, 6)
    labels = labels % 3
    values = measured(logits, labels, 6).compute()
    guesses = logits.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's remark on predictions without a true sample
        assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert values["f1_macro"] == pytest.approx(f1_score(labels, guesses, average="macro"))


def test_merging_gives_the_same_bits_in_any_order_and_grouping() -> None:
    parts = [sample(n, 4, seed) for seed, n in enumerate((50, 1, 33, 0, 7))]
    states = [measured(*part, 4).state() for part in parts]
    whole = measured(*(torch.cat(column) for column in zip(*parts, strict=True)), 4).state()
    for order in itertools.permutations(states):
        merged = Classification(4)
        for state in order:
            merged.merge(state)
        assert all(np.array_equal(merged.state()[name], whole[name]) for name in whole)
    pair = Classification(4)
    pair.merge(states[0])
    pair.merge(states[2])
    pair.merge({name: sum(s[name] for s in (states[1], states[3], states[4])) for name in states[0]})
    assert pair.compute() == measured(*(torch.cat(column) for column in zip(*parts, strict=True)), 4).compute()


def test_a_client_without_samples_adds_nothing() -> None:
    empty = Classification(3)
    assert empty.compute() == {}
    empty.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert empty.compute() == {}
    full = measured(*sample(20, 3), 3)
    before = full.compute()
    full.merge(empty.state())
    assert full.compute() == before


def test_a_state_is_a_copy() -> None:
    metric = measured(*sample(20, 3), 3)
    state = metric.state()
    metric.update(*sample(20, 3, seed=1))
    assert state["examples"] == 20
    assert metric.state()["examples"] == 40


def test_a_hopeless_model_has_a_loss_that_is_not_hidden() -> None:
    metric = Classification(2)
    metric.update(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]))
    assert np.isnan(metric.compute()["loss"])


def test_wrong_shapes_and_labels_are_refused() -> None:
    metric = Classification(3)
    with pytest.raises(ValueError, match="expected \\(n, 3\\)"):
        metric.update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))
    for label in (-1, 3):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            metric.update(torch.zeros(1, 3), torch.tensor([label]))
    with pytest.raises(ValueError, match="confusion"):
        metric.merge(Classification(4).state())
    assert metric.compute() == {}


def test_torchmetrics_sums_merge_to_the_whole() -> None:
    from torchmetrics.classification import MulticlassAUROC, MulticlassConfusionMatrix, MulticlassF1Score

    def make() -> SumMetrics:
        return SumMetrics(
            {
                "f1": MulticlassF1Score(4, average="macro"),
                "confusion": MulticlassConfusionMatrix(4),
                "auroc": MulticlassAUROC(4, thresholds=20),
            }
        )

    parts = [sample(n, 4, seed) for seed, n in enumerate((40, 3, 21))]
    whole, merged = make(), make()
    whole.update(*(torch.cat(column) for column in zip(*parts, strict=True)))
    for part in reversed(parts):
        client = make()
        client.update(*part)
        assert merged.state().keys() == client.state().keys()
        merged.merge(client.state())
    assert merged.compute() == whole.compute()
    merged.merge(make().state())
    assert merged.compute() == whole.compute()


def test_a_merge_after_compute_counts() -> None:
    from torchmetrics.classification import MulticlassAccuracy

    metric = SumMetrics({"accuracy": MulticlassAccuracy(2, average="micro")})
    metric.update(torch.tensor([1, 1]), torch.tensor([1, 1]))
    assert metric.compute() == {"accuracy": 1.0}
    metric.merge({name: value.copy() for name, value in metric.state().items()})
    metric.update(torch.tensor([0, 0, 0, 0]), torch.tensor([1, 1, 1, 1]))
    assert metric.compute() == {"accuracy": 0.5}


def test_regression_sums_are_kept_in_double_precision() -> None:
    from torchmetrics.regression import MeanSquaredError

    metric = SumMetrics({"mse": MeanSquaredError()})
    for _ in range(50):
        metric.update(torch.full((1000,), 0.1), torch.zeros(1000))
    (value,) = metric.compute().values()
    assert value == pytest.approx(0.01, rel=1e-6)
    assert metric.state()["mse.sum_squared_error"].dtype == np.float64


def test_metrics_that_do_not_add_up_are_refused() -> None:
    from torchmetrics import MaxMetric
    from torchmetrics.classification import MulticlassAUROC

    for metric in (MaxMetric(), MulticlassAUROC(3)):
        with pytest.raises(TypeError, match="not merged by a sum"):
            SumMetrics({"x": metric})
