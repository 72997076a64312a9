"""Compressed uploads in whole runs: equal bits everywhere, what is kept back, what the ledger says."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedlab
from fedlab.clients.state import StateStore
from fedlab.config import Config
from fedlab.errors import ClientError, ConfigErrors
from fedlab.experiment.result import Run
from fedlab.method import Method

Settings = Callable[..., Config]
CHAIN: list[dict[str, Any]] = [{"name": "topk", "fraction": 0.1}, {"name": "quantize", "bits": 4}]


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def wire(run: Run) -> list[tuple[int, int]]:
    """(sent, raw) bytes of each row of the ledger."""
    with run.folder.ledger.open() as file:
        return [(int(row["up"]), int(row["raw_up"])) for row in csv.DictReader(file)]


def entries(run: Run) -> dict[str, int]:
    return {name: p.numel() for name, p in run.model.named_parameters()}


def test_every_engine_decodes_to_the_same_weights(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    runs = [
        fedlab.run(settings(exchange__compression=CHAIN, **engine), method=plain, data=samples)
        for engine in (
            {"engine__name": "inline"},
            {"engine__name": "ray", "engine__workers": 2, "engine__chunk": 1},
        )
    ]
    assert len({digest(run) for run in runs}) == 1
    assert len({run.folder.ledger.read_text() for run in runs}) == 1
    assert digest(fedlab.run(settings(), method=plain, data=samples)) != digest(runs[0])


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fednova", "flower.FedMedian"])
def test_the_ledger_has_the_bytes_of_what_was_encoded(
    strategy: str, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(exchange__compression=CHAIN, federation__strategy=strategy, federation__rounds=2)
    run = fedlab.run(config, method=plain, data=samples)
    kept = [max(1, count // 10) for count in entries(run).values()]
    expected = sum(4 * k + (k + 1) // 2 + 4 for k in kept)
    raw = sum(4 * count for count in entries(run).values())
    for event in run.history.rounds:
        assert event["bytes"]["model"]["up"] == 4 * expected
        assert event["raw_up"]["model"] == 4 * raw
        if strategy == "scaffold":  # control variates travel as they are
            assert event["bytes"]["algorithm"]["up"] == event["raw_up"]["algorithm"] == 4 * raw
    model_rows = [(expected, raw)] * 8
    assert [row for row in wire(run) if row[0] != row[1]] == model_rows
    assert run.metrics["mean"]["accuracy"] > 0.4


@pytest.mark.parametrize("chain", [[], [{"name": "topk", "fraction": 1.0}]])
def test_a_chain_without_effect_changes_no_bit(
    chain: list[Any], settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    whole = fedlab.run(settings(), method=plain, data=samples)
    run = fedlab.run(settings(exchange__compression=chain), method=plain, data=samples)
    assert digest(run) == digest(whole)
    assert run.folder.ledger.read_text() == whole.folder.ledger.read_text()
    assert run.history.rounds[0]["raw_up"] == {}


def test_half_precision_halves_the_upload_of_a_model(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    run = fedlab.run(settings(exchange__compression=["fp16"]), method=plain, data=samples)
    assert all(raw == 2 * sent for sent, raw in wire(run))
    down, up = run.history.bytes_total()
    assert down == 2 * up


def test_one_clients_residual_is_what_the_server_did_not_get(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    """With one client and one round, the server's model and the residual make the uncompressed model."""
    alone = {"data__partition": [{"name": "iid", "clients": 1}], "federation__rounds": 1}
    whole = fedlab.run(settings(**alone), method=plain, data=samples)
    run = fedlab.run(settings(exchange__compression=CHAIN, **alone), method=plain, data=samples)
    state = StateStore(run.folder.clients).latest(0)
    assert state is not None
    changed = 0
    for name, p in run.model.named_parameters():
        residual = state[f"compression/{name}"].reshape(p.shape)
        torch.testing.assert_close(p + residual, whole.model.get_parameter(name), atol=1e-6, rtol=0)
        changed += int(residual.count_nonzero())
    assert changed


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_a_compressed_run_resumes_bit_for_bit(
    strategy: str, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(
        exchange__compression=CHAIN, federation__strategy=strategy, federation__rounds=4, tracking__checkpoint_every=2
    )
    whole = fedlab.run(config, method=plain, data=samples)
    part = fedlab.run(config, method=plain, data=samples, until=2)
    done = fedlab.resume(part.path, method=plain, data=samples)
    assert digest(done) == digest(whole)
    assert done.folder.ledger.read_text() == whole.folder.ledger.read_text()


def test_groups_with_their_own_weights_and_groups_held_back_can_be_compressed(
    settings: Settings, samples: fedlab.Dataset, staged: type[Method]
) -> None:
    run = fedlab.run(settings(exchange__compression=["fp16"]), method=staged, data=samples)
    assert [event["bytes"]["expert"]["up"] for event in run.history.rounds] == [10] * 3
    # half precision of an update near 4 is off by at most 2^-10
    assert run.model["expert"].bias.item() == pytest.approx(1 + 3, abs=2**-10)


def test_a_diverged_client_is_named(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    config = settings(method__nan=3, exchange__compression=CHAIN)
    with pytest.raises(ClientError, match=r"client 3 failed in round 2[\s\S]*model\.body\.0\.weight[\s\S]*diverged"):
        fedlab.run(config, method=plain, data=samples)


def test_a_wrong_chain_is_refused_before_a_run_exists(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(exchange__compression=["fp16", "quantize"])
    with pytest.raises(ConfigErrors, match=r"exchange\.compression\.1\.name"):
        fedlab.run(config, method=plain, data=samples)


@pytest.mark.parametrize("chain", [[], CHAIN, [{"name": "fp16"}], [{"name": "quantize", "bits": 4}]])
def test_the_virtual_clock_counts_the_bytes_that_travel(
    chain: list[dict[str, Any]], settings: Settings, samples: fedlab.Dataset, plain: type[Method], tmp_path: Path
) -> None:
    """Four clients with a thin link up, next to which all else takes no time."""
    devices = tmp_path / "devices.csv"
    devices.write_text("client,speed,down,up\n" + "".join(f"{i},1e12,1e12,1000\n" for i in range(4)))
    config = settings(
        exchange__compression=chain, federation__rounds=1, federation__devices={"csv": str(devices)},
        model__norm="batch",
    )  # fmt: skip
    run = fedlab.run(config, method=plain, data=samples)
    (event,) = run.history.rounds
    assert event["virtual"]["round_seconds"] == pytest.approx(event["bytes_up"] / 4 / 1000, rel=1e-6)
