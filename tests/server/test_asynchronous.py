"""FedBuff on the virtual clock: known answers, equal bits, exact resume."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fedlab
from fedlab.config import Config
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.experiment.result import Run
from fedlab.method import Method
from fedlab.server.asynchronous import staleness_weight

Settings = Callable[..., Config]
EQUAL = {"speed_spread": 0.0, "link_spread": 0.0}


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


def asynchronous(concurrency: int, buffer: int, **devices: Any) -> dict[str, Any]:
    return {
        "federation__mode": "asynchronous",
        "federation__asynchronous": {"concurrency": concurrency, "buffer": buffer},
        "federation__devices": devices,
    }


def close(one: Run, other: Run) -> None:
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clients", [1, 4])
def test_equal_devices_and_a_buffer_of_all_are_synchronous_rounds(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], clients: int
) -> None:
    parts = {"data__partition": [{"name": "iid", "clients": clients}]}
    rounds = fedlab.run(settings(**parts), method=plain, data=samples)
    buffered = fedlab.run(settings(**parts, **asynchronous(clients, clients, **EQUAL)), method=plain, data=samples)
    close(rounds, buffered)


def test_stale_updates_weigh_less(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], tmp_path: Path
) -> None:
    """Two clients, K = 1; client 1 is 2.5 times as slow, so it arrives third, two updates late."""
    file = tmp_path / "devices.csv"
    file.write_text("client,speed,down,up\n0,80,1e12,1e12\n1,32,1e12,1e12\n")
    parts = {
        "data__partition": [{"name": "iid", "clients": 2}],
        "training__batch_size": 80,
        "tracking__checkpoint_every": 1,
    }
    changes = asynchronous(2, 1, csv=str(file))
    run = fedlab.run(settings(**parts, **changes), method=plain, data=samples)
    assert [r["clients"] for r in run.history.rounds] == [[0], [0], [1]]
    assert [r["virtual"]["total"] for r in run.history.rounds] == pytest.approx([1, 2, 2.5])
    # what client 1 changes, from a run in which it alone trains the first model
    file.write_text("client,speed,down,up\n0,1,1e12,1e12\n1,32,1e12,1e12\n")
    alone = fedlab.run(settings(**parts, **changes), method=plain, data=samples, until=1)
    assert alone.history.rounds[0]["clients"] == [1]
    still = fedlab.run(settings(**parts, **changes, training__lr=1e-30), method=plain, data=samples, until=1)
    second = fedlab.run(
        settings(**parts, **asynchronous(2, 1, **devices(tmp_path))), method=plain, data=samples, until=2
    )
    for name, value in run.model.state_dict().items():
        change = alone.model.state_dict()[name] - still.model.state_dict()[name]
        expected = second.model.state_dict()[name] + staleness_weight(2) * change
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def devices(folder: Path) -> dict[str, str]:
    file = folder / "again.csv"
    file.write_text("client,speed,down,up\n0,80,1e12,1e12\n1,32,1e12,1e12\n")
    return {"csv": str(file)}


def test_the_weights_of_the_paper() -> None:
    assert [staleness_weight(t) for t in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])


VARIED = {**asynchronous(3, 2), "federation__dropout": 0.2, "federation__sampler": "power_of_choice"}


def told(run: Run) -> list[Any]:
    return [(r["clients"], r["virtual"], r["bytes_down"]) for r in run.history.rounds]


def test_the_queue_is_resumed_exactly(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    config = settings(federation__rounds=6, **VARIED)
    whole = fedlab.run(config, method=plain, data=samples)
    half = fedlab.run(config, method=plain, data=samples, until=3)
    resumed = fedlab.resume(half.path, method=plain, data=samples)
    assert (digest(resumed), told(resumed)) == (digest(whole), told(whole))


def test_engines_agree(ray_workers: None, settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    inline = fedlab.run(settings(**VARIED), method=plain, data=samples)
    ray = settings(engine__name="ray", engine__workers=2, engine__chunk=1, **VARIED)
    other = fedlab.run(ray, method=plain, data=samples)
    assert (digest(inline), told(inline)) == (digest(other), told(other))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"federation__devices": None}, "federation.devices"),
        ({"federation__strategy": "scaffold"}, "federation.strategy"),
        ({"federation__deadline": 3.0}, "federation.deadline"),
        ({"federation__asynchronous": {"concurrency": 5}}, "federation.asynchronous.concurrency"),
    ],
)
def test_what_it_cannot_do_is_refused(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], change: dict[str, Any], key: str
) -> None:
    config = settings(**{**VARIED, **change})
    with pytest.raises((ConfigError, ConfigErrors), match=re.escape(key)):
        fedlab.run(config, method=plain, data=samples)
    assert not Path(config.tracking.folder).exists()  # no run, no worker
