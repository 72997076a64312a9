"""Every evaluation measures the clients' validation samples too, if there are any, and nothing else changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import typer.testing
from flwr.app import Message, MetricRecord

import fedlab
from fedlab.cli.main import app
from fedlab.config import Config
from fedlab.data.federated import FederatedData
from fedlab.errors import ClientError
from fedlab.experiment.result import Run
from fedlab.method import EvaluationContext, Method
from fedlab.methods.supervised.method import Supervised
from fedlab.protocol.messages import NUM_EXAMPLES, VALIDATED, VALIDATION, array_record, to_numpy, to_record
from tests.server.nodes import Deployment, count

Settings = Callable[..., Config]


class Counting(Supervised):
    """Its metric is the number of samples in a client's evaluation, and their mean label."""

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        labels = ctx.data["label"].double()
        return {"n": np.array(float(len(labels))), "sum": np.array(float(labels.sum()))}

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Any) -> dict[str, float]:
        return {"size": float(sums["n"]), "mean_label": float(sums["sum"] / max(sums["n"], 1))}


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def test_the_values_are_those_of_the_samples_that_were_held_back(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(data__validation=0.25, data__partition=[{"name": "dirichlet", "clients": 3}], data__unseen=[])
    run = fedlab.run(config, method=Counting, data=samples)
    federated = FederatedData(samples, config.data, config.seed)
    held = [federated.client(client).validation["label"] for client in range(3)]
    assert all(map(len, held))
    event = run.metrics
    assert event["validation"]["size"] == pytest.approx(np.mean([len(part) for part in held]))
    assert event["validation"]["mean_label"] == pytest.approx(np.mean([part.mean() for part in held]))
    assert event["validation_pooled"]["size"] == sum(map(len, held))
    assert event["validation_pooled"]["mean_label"] == pytest.approx(np.concatenate(held).mean())
    assert event["validation_basis"] == {"clients": 3, "samples": sum(map(len, held))}
    assert event["pooled"]["size"] == len(samples.test)


def test_clients_that_never_train_do_not_count(settings: Settings, samples: fedlab.Dataset) -> None:
    config = settings(data__validation=0.25, data__unseen=["3"], federation__rounds=1)
    event = fedlab.run(config, method=Counting, data=samples).metrics
    assert "3" in event["clients"]
    assert event["validation_basis"] == {"clients": 3, "samples": 30}
    assert event["validation"]["size"] == 10


def test_it_can_be_left_out_and_changes_no_other_number(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(data__validation=0.25)
    told = fedlab.run(config, method=plain, data=samples)
    silent = fedlab.run(config.with_overrides({"evaluation.validation": False}), method=plain, data=samples)
    assert digest(told) == digest(silent)
    added = {"validation", "validation_pooled", "validation_basis", "time"}
    for ours, theirs in zip(told.history.evaluations, silent.history.evaluations, strict=True):
        assert added - {"time"} <= ours.keys()
        assert added.isdisjoint(theirs.keys() - {"time"})
        assert {k: v for k, v in ours.items() if k not in added} == {k: v for k, v in theirs.items() if k != "time"}


def test_without_validation_samples_nothing_is_told_of_them(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(federation__rounds=1), method=plain, data=samples)
    assert not [name for name in run.metrics if name.startswith("validation")]
    assert "validation" not in run.folder.metrics.read_text()


@pytest.mark.parametrize("strategy", ["fedavg", "flower.FedAvg"])
def test_clients_without_test_samples_are_still_validated(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], strategy: str
) -> None:
    config = settings(
        data__validation=0.25, data__test_clients=0.5, federation__rounds=1, federation__strategy=strategy
    )  # fmt: skip
    event = fedlab.run(config, method=plain, data=samples).metrics
    assert len(event["clients"]) == 2
    assert event["validation_basis"]["clients"] == 4


@pytest.mark.usefixtures("reports")
def test_they_are_shown_beside_the_test_samples(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(data__validation=0.25), method=plain, data=samples)
    shown = typer.testing.CliRunner().invoke(app, ["show", str(run.path)]).output
    (line,) = [line for line in shown.splitlines() if "validation mean" in line]
    assert line.split()[-2] == "40"
    page = run.folder.report.read_text()
    for text in ("Validation accuracy", "Validation mean", "40 validation samples of 4 clients"):
        assert text in page
    rows = run.folder.metrics.read_text()
    assert "3,validation,accuracy," in rows
    assert "3,validation_pooled,loss," in rows


class Broken(Supervised):
    """It needs a column of test samples that training samples lack."""

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        if len(ctx.data["label"]) == 10:  # the validation samples of a client
            raise KeyError("query")
        return super().evaluate(ctx)


def test_a_method_that_cannot_evaluate_on_them_is_told_how_to_leave_them_out(
    settings: Settings, samples: fedlab.Dataset
) -> None:
    with pytest.raises(KeyError, match="query") as caught:
        fedlab.run(settings(data__validation=0.25), method=Broken, data=samples)
    assert "evaluation.validation: false leaves them out" in caught.value.__notes__[0]


def more(message: Message) -> None:
    message.content[VALIDATED] = MetricRecord({NUM_EXAMPLES: 1})


def half(message: Message) -> None:
    message.content[VALIDATED] = MetricRecord({NUM_EXAMPLES: 0.5})


def alone(message: Message) -> None:
    del message.content[VALIDATED]


def empty(message: Message) -> None:
    del message.content[VALIDATION]


def other_shape(message: Message) -> None:
    record = array_record(message.content, VALIDATION)
    assert record is not None
    message.content[VALIDATION] = to_record({n: np.append(v.reshape(-1), 0.0) for n, v in to_numpy(record).items()})


def other_names(message: Message) -> None:
    record = array_record(message.content, VALIDATION)
    assert record is not None
    message.content[VALIDATION] = to_record({f"x{name}": values for name, values in to_numpy(record).items()})


def not_finite(message: Message) -> None:
    record = array_record(message.content, VALIDATION)
    assert record is not None
    message.content[VALIDATION] = to_record({n: v + np.nan for n, v in to_numpy(record, copy=True).items()})


def spoiled(by: Callable[[Message], None]) -> Callable[[int, str, int, Message], str]:
    """What becomes of messages: client 1 spoils what it says of its validation samples."""

    def fate(client: int, kind: str, round: int, message: Message) -> str:
        if (client, kind) == (1, "evaluate") and VALIDATION in message.content:
            by(message)
        return ""

    return fate


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (more, "another number of samples than the client says it has validated"),
        (half, "no whole number"),
        (alone, "lacks the record 'fedlab.validated'"),
        (empty, "lacks the record 'fedlab.validation'"),
        (other_shape, "the sum on validation samples .* has the shape"),
        (other_names, "holds the sum .x.*, which most clients do not send"),
        (not_finite, "has NaN or infinite values"),
    ],
)
def test_what_a_node_says_of_them_is_checked(
    small: Settings, deployment: Deployment, spoil: Callable[[Message], None], told: str
) -> None:
    config = small(data__validation=0.3, federation__rounds=1)
    nodes = deployment.submitted(config, 3)
    nodes.fate = spoiled(by=spoil)
    run = deployment.serve(nodes)
    assert count(run, "what the client sent cannot be used") == 1
    assert any(re.search(told, text) for text in run.history.warnings)
    assert run.metrics["validation_basis"]["clients"] == 2
    assert len(run.metrics["clients"]) == 2


def test_a_node_that_spoils_them_ends_a_run_that_skips_nobody(small: Settings, deployment: Deployment) -> None:
    config = small(data__validation=0.3, federation__rounds=1, federation__on_client_error="stop")
    nodes = deployment.submitted(config, 3)
    nodes.fate = spoiled(by=half)
    with pytest.raises(ClientError, match="client 1 failed in round 1, phase evaluate"):
        deployment.serve(nodes)
