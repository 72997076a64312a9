"""Who takes part and how long it takes: samplers, availability, the virtual clock."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedlab
from fedlab.config import AvailabilityConfig, Component, Config, DevicesConfig, TrainingConfig, parse
from fedlab.config.yamltree import load_yaml
from fedlab.errors import ConfigError, ConfigErrors, FedLabError
from fedlab.experiment.result import Run
from fedlab.method import Method
from fedlab.server.participation.availability import Days, Intervals, make_availability
from fedlab.server.participation.devices import ClientWork, Device, Devices, planned
from fedlab.server.participation.samplers import Known, make_sampler
from fedlab.server.participation.selection import ClientSelector, make_rules

Settings = Callable[..., Config]
CLOCK = {"speed": 1000.0, "speed_spread": 1.0}


def known(examples: dict[int, int], losses: dict[int, float] | None = None) -> Known:
    return Known(lambda clients: [examples[client] for client in clients], losses or {})


def participation(**federation: Any) -> ClientSelector:
    raw = {"method": "supervised", "data": {"source": "digits"}, "federation": federation}
    config = parse(Config, raw)
    rules = make_rules(config, make_sampler(config.federation.sampler, config.seed))
    return ClientSelector(rules, lambda clients: [10] * len(clients))


def unused(client: int) -> ClientWork:
    raise AssertionError("no clock, no work")


def test_weighted_sampling_draws_in_proportion_and_never_a_client_without_samples() -> None:
    sampler = make_sampler(Component(name="weighted"), 0)
    facts = known({0: 1, 1: 3, 2: 0, 3: 6})
    counts = Counter(sampler.sample(range(4), round, 1, facts)[0] for round in range(4000))
    assert np.allclose([counts[c] / 4000 for c in range(4)], [0.1, 0.3, 0, 0.6], atol=0.03)
    assert sampler.sample(range(4), 1, 4, facts) == [0, 1, 3]


def test_power_of_choice_takes_the_unknown_then_the_highest_losses() -> None:
    sampler = make_sampler(Component(name="power_of_choice", candidates=4), 0)
    examples = dict.fromkeys(range(4), 5)
    assert sampler.sample(range(4), 1, 2, known(examples, {0: 0.1, 1: 9.0, 2: 0.3})) == [1, 3]
    assert sampler.sample(range(4), 1, 2, known(examples, {0: 0.1, 1: 9.0, 2: 0.3, 3: 0.2})) == [1, 2]


def test_power_of_choice_chooses_among_its_candidates_only() -> None:
    sampler = make_sampler(Component(name="power_of_choice", candidates=2), 0)
    facts = known(dict.fromkeys(range(10), 5), {client: float(client) for client in range(10)})
    chosen = {sampler.sample(range(10), round, 1, facts)[0] for round in range(50)}
    assert 9 in chosen
    assert len(chosen) > 4


def test_poisson_rounds_differ_in_size() -> None:
    sampler = make_sampler(Component(name="poisson", probability=0.25), 0)
    sizes = [len(sampler.sample(range(20), round, 20, known({}))) for round in range(400)]
    assert np.mean(sizes) == pytest.approx(5, abs=0.3)
    assert 0 in sizes


def test_days_are_shared_out_and_mornings_are_found() -> None:
    days = Days(24.0, 0.25, seed=3)
    times = np.arange(0, 24, 0.1)
    for client in range(5):
        assert np.mean([days.open(client, t) for t in times]) == pytest.approx(0.25, abs=0.01)
        morning = days.opens(client, 100.0)
        assert days.open(client, morning)
        assert not any(days.open(client, t) for t in np.linspace(100, morning, 50, endpoint=False)) or morning == 100


def test_recorded_intervals_are_half_open(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("client,from,to\n0,1,3\n0,5,6\n")
    trace = make_availability(AvailabilityConfig(csv=str(file)), 0)
    assert isinstance(trace, Intervals)
    assert [trace.open(0, t) for t in range(7)] == [False, True, True, False, False, True, False]
    assert (trace.opens(0, 3), trace.opens(0, 2), trace.opens(1, 0)) == (5, 2, float("inf"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("client,from\n0,1\n", "columns client,from,to"),
        ("client,from,to\n0,3,3\n", "end after they begin"),
        ("client,from,to\n0.5,1,3\n", "a client id"),
        ("", "at least one row"),
    ],
)
def test_unusable_traces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        participation(availability={"csv": str(file)})


@pytest.mark.parametrize(
    ("federation", "key"),
    [
        ({"deadline": 3}, "federation.deadline"),
        ({"over_selection": 1.5}, "federation.over_selection"),
        ({"over_selection": 1.5, "devices": {}, "sampler": "poisson"}, "federation.over_selection"),
        ({"availability": {"period": 5, "unit": "seconds"}}, "federation.availability.unit"),
        ({"availability": {}}, "federation.availability"),
        ({"availability": {"csv": "nowhere.csv"}}, "federation.availability.csv"),
        ({"devices": {"csv": "nowhere.csv"}}, "federation.devices.csv"),
        ({"dropout": 0.5, "strategy": "flower.FedAdam"}, "federation.dropout"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run(settings: Settings, federation: dict[str, Any], key: str) -> None:
    with pytest.raises((ConfigError, ConfigErrors), match=re.escape(key)):
        fedlab.run(settings(**{f"federation__{k}": v for k, v in federation.items()}))


@pytest.mark.parametrize(
    ("training", "work"),
    [
        ({"batch_size": 4}, (3, 10, 4)),
        ({"batch_size": 4, "drop_last": True, "local_epochs": 2}, (4, 16, 4)),
        ({"batch_size": 4, "local_steps": 7}, (7, 28, 4)),
        ({"batch_size": 40, "local_epochs": 2}, (2, 20, 10)),
    ],
)
def test_the_planned_work(training: dict[str, Any], work: tuple[int, int, int]) -> None:
    assert planned(TrainingConfig(**training), 10, 1, 2) == ClientWork(1, 2, *work)


@pytest.mark.parametrize(
    ("training", "work"),
    [({"batch_size": 4, "local_epochs": 3}, (6, 24, 4)), ({"batch_size": 40, "local_epochs": 2}, (2, 20, 10))],
)
def test_the_planned_work_with_batches_drawn_anew(training: dict[str, Any], work: tuple[int, int, int]) -> None:
    """round(10/4) steps an epoch, of batches of 4 on average."""
    assert planned(TrainingConfig(**training), 10, 1, 2, poisson=True) == ClientWork(1, 2, *work)


def test_a_round_takes_download_training_and_upload() -> None:
    device, work = Device(speed=10, down=100, up=50), ClientWork(down=200, up=100, steps=8, samples=32, batch=4)
    assert device.seconds(work) == pytest.approx(2 + 3.2 + 2)
    assert device.steps_until(6, work) == 5
    assert device.steps_until(4.3, work) == 0


def test_devices_are_log_normal_across_clients_and_a_function_of_the_seed() -> None:
    devices = Devices(DevicesConfig(speed=50, speed_spread=0.5), 7)
    logs = np.log([devices[client].speed for client in range(2000)])
    assert (logs.mean(), logs.std()) == (pytest.approx(np.log(50), abs=0.05), pytest.approx(0.5, abs=0.05))
    assert Devices(DevicesConfig(speed=50, speed_spread=0.5), 7)[3] == devices[3]


@pytest.fixture
def three_devices(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "devices.csv"
    file.write_text("client,speed,down,up\n0,10,1,1\n1,5,1,1\n2,1,1,1\n")
    return {"csv": str(file)}


def ten_steps(client: int) -> ClientWork:
    return ClientWork(0, 0, 10, 10, 1)


def test_the_first_of_an_over_selection_count(three_devices: dict[str, Any]) -> None:
    held = participation(devices=three_devices, over_selection=1.5, sampler={"name": "uniform", "fraction": 0.67})
    selection = held.choose(range(3), 1, ten_steps)
    assert (selection.clients, selection.seconds, held.time) == ((0, 1), 2.0, 2.0)


def test_a_late_client_does_the_steps_that_fit_or_does_not_count(three_devices: dict[str, Any]) -> None:
    partial = participation(devices=three_devices, deadline=4.5).choose(range(3), 1, ten_steps)
    assert (partial.clients, partial.steps, partial.seconds) == ((0, 1, 2), {2: 4}, 4.0)
    dropped = participation(devices=three_devices, deadline=4.5, late="drop").choose(range(3), 1, ten_steps)
    assert (dropped.clients, dropped.steps, dropped.seconds) == ((0, 1), {}, 4.5)


def test_a_client_without_a_device_is_named(three_devices: dict[str, Any]) -> None:
    with pytest.raises(FedLabError, match="no line for client 3"):
        participation(devices=three_devices).choose(range(4), 1, ten_steps)


def test_drop_out_has_its_rate_and_depends_on_the_seed_only() -> None:
    held = participation(dropout=0.3)
    sizes = [len(held.choose(range(20), round, unused).clients) for round in range(200)]
    assert np.mean(sizes) == pytest.approx(14, abs=0.5)
    again = participation(dropout=0.3)
    assert [len(again.choose(range(20), round, unused).clients) for round in range(199, -1, -1)] == sizes[::-1]


def test_the_clock_waits_for_a_client(tmp_path: Path, three_devices: dict[str, Any]) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("client,from,to\n1,50,51\n")
    held = participation(devices=three_devices, availability={"csv": str(file), "unit": "seconds"})
    assert held.choose(range(3), 1, ten_steps).clients == (1,)
    assert held.time == 52.0
    with pytest.raises(FedLabError, match="after 52 virtual seconds no client is ever available again"):
        held.choose(range(3), 2, ten_steps)


def digest(run: Run) -> str:
    return hashlib.sha256((run.checkpoint / "tensors.safetensors").read_bytes()).hexdigest()


EVERYTHING = {
    "federation__sampler": {"name": "power_of_choice", "fraction": 0.5, "candidates": 3},
    "federation__devices": CLOCK,
    "federation__dropout": 0.2,
    "federation__over_selection": 1.5,
    "federation__deadline": 0.06,
    "federation__strategy": "fednova",
    "federation__availability": {"period": 0.5, "share": 0.8, "unit": "seconds"},
}


def told(run: Run) -> list[Any]:
    return [(r["clients"], r["virtual"], r["bytes_down"]) for r in run.history.rounds]


def test_resumed_runs_choose_and_count_as_whole_ones(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    config = settings(federation__rounds=5, **EVERYTHING)
    whole = fedlab.run(config, method=plain, data=samples)
    half = fedlab.run(config, method=plain, data=samples, until=2)
    resumed = fedlab.resume(half.path, method=plain, data=samples)
    assert (digest(resumed), told(resumed)) == (digest(whole), told(whole))
    assert len({tuple(clients) for clients, _, _ in told(whole)}) > 1


def test_engines_agree_on_the_virtual_clock(
    ray_workers: None, settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    inline = fedlab.run(settings(**EVERYTHING), method=plain, data=samples)
    ray = settings(engine__name="ray", engine__workers=2, engine__chunk=1, **EVERYTHING)
    other = fedlab.run(ray, method=plain, data=samples)
    assert (digest(inline), told(inline)) == (digest(other), told(other))


def test_a_step_limit_is_the_same_as_fewer_steps(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method]
) -> None:
    """At one sample a second the four clients of forty samples have time for one step of sixteen."""
    slow = {"speed": 1.0, "speed_spread": 0.0, "down": 1e12, "up": 1e12, "link_spread": 0.0}
    partial = fedlab.run(settings(federation__devices=slow, federation__deadline=20), method=plain, data=samples)
    one = fedlab.run(settings(training__local_steps=1), method=plain, data=samples)
    assert digest(partial) == digest(one)
    assert [r["virtual"]["round_seconds"] for r in partial.history.rounds] == [pytest.approx(16)] * 3


def test_a_round_without_clients_changes_nothing(
    settings: Settings, samples: fedlab.Dataset, plain: type[Method], tmp_path: Path
) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("client,from,to\n0,1,2\n0,3,4\n")
    run = fedlab.run(settings(federation__availability={"csv": str(file)}), method=plain, data=samples)
    assert [r["clients"] for r in run.history.rounds] == [[0], [], [0]]
    assert run.history.evaluations[0]["mean"] == run.history.evaluations[1]["mean"]


def test_a_loss_nobody_reports_is_named(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    config = settings(federation__sampler={"name": "power_of_choice", "metric": "kl"})
    with pytest.raises(FedLabError, match=r"needs the clients' metric 'kl'[\s\S]*federation\.sampler\.metric"):
        fedlab.run(config, method=plain, data=samples)


def test_the_documented_settings_run(settings: Settings, samples: fedlab.Dataset, plain: type[Method]) -> None:
    text = (Path(__file__).parents[3] / "docs" / "participation.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        federation: dict[str, Any] = dict(load_yaml(block))["federation"]
        changes = {f"federation__{key}": value for key, value in federation.items()}
        assert fedlab.run(settings(**changes), method=plain, data=samples).history.end["status"] == "completed"
