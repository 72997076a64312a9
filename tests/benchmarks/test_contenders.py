"""The contenders that others are held against do the work they are said to do."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F


@pytest.fixture
def work(tmp_path: Path) -> Any:
    from benchmarks.work import Work

    small = Work("train", str(tmp_path), clients=6, cohort=3, rounds=2, samples=20)
    small.write_data()
    return small


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many turns as a contender asks for."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n" * 10))


def test_the_bare_loop_is_federated_averaging(work: Any) -> None:
    from benchmarks.contenders.bare import Loop, simple_cnn

    loop = Loop(work, *work.of_clients(range(2, 5)))
    before = {name: value.clone() for name, value in loop.server.items()}
    images, labels = (torch.from_numpy(values.copy()) for values in work.data())
    torch.manual_seed(1)
    loop.begin()
    for client in (0, 2):
        loop.visit(client, torch.Generator().manual_seed(client))
    loop.end()

    trained, model = [], simple_cnn().train()
    torch.manual_seed(1)
    for client in (0, 2):
        model.load_state_dict(before)
        own = slice((2 + client) * 20, (3 + client) * 20)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(client))
        for batch in (order[:10], order[10:]):
            loss = F.cross_entropy(model(images[own][batch]), labels[own][batch])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        trained.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in loop.server.items():
        assert not torch.equal(value, before[name])
        torch.testing.assert_close(value, (trained[0][name] + trained[1][name]) / 2)


@pytest.mark.parametrize(("clients", "cohort", "loops"), [(1000, 50, 2), (7, 5, 2), (7, 5, 3)])
def test_loops_at_once_divide_the_clients_and_the_cohort_of_one(clients: int, cohort: int, loops: int) -> None:
    from benchmarks.contenders.bare_loops import divided
    from benchmarks.work import Work

    shares = divided(Work("train", "", clients=clients, cohort=cohort), loops)
    assert [client for share in shares for client in share.clients] == list(range(clients))
    assert sum(share.cohort for share in shares) == cohort
    assert max(share.cohort for share in shares) - min(share.cohort for share in shares) <= 1
    assert all(share.cohort <= len(share.clients) for share in shares)


def test_one_of_several_loops_does_what_the_bare_loop_does_to_its_share(
    work: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from multiprocessing import Pipe

    from benchmarks.contenders import bare_loops
    from benchmarks.contenders.bare import Loop

    made = []
    monkeypatch.setattr(bare_loops, "Loop", lambda *arguments: made.append(Loop(*arguments)) or made[-1])
    share = bare_loops.divided(work, 2)[1]
    here, there = Pipe()
    thread = Thread(target=bare_loops.serve, args=(there, work, share))
    thread.start()
    assert here.recv() == 0
    for _ in range(2):
        here.send("a round")
        assert here.recv() == share.cohort == 2
    here.close()
    thread.join()

    torch.manual_seed(share.clients.start)
    loop = Loop(work, *work.of_clients(range(3, 6)))
    for _ in range(2):
        loop.round(2)
    assert all(torch.equal(value, loop.server[name]) for name, value in made[0].server.items())


def test_both_halves_of_one_process_train_the_same_clients_to_the_same_weights(
    work: Any, turns: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.bars import BARE, INLINE
    from benchmarks.contenders.in_turns import check_equal, main
    from benchmarks.pace import MARK

    run, loop = main(work)
    assert check_equal(loop, run.model.state_dict().values()) < 1e-6
    reports = [json.loads(line[len(MARK) :]) for line in capsys.readouterr().out.splitlines() if line.startswith(MARK)]
    assert reports[0] == {"ready": True}
    assert [set(report["parts"]) for report in reports[1:]] == [{BARE, INLINE}] * work.rounds
    assert all(seconds > 0 for report in reports[1:] for seconds in report["parts"].values())


def test_halves_that_do_different_work_are_not_compared(
    work: Any, turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.contenders import in_turns

    monkeypatch.setattr(in_turns, "_SEED", 1)  # other batches and other dropout masks than FedLab's
    with pytest.raises(in_turns.DifferentWorkError, match="weights of FedLab and of the bare loop differ"):
        in_turns.main(work)


def test_a_round_is_divided_between_timed_calls_and_the_rest(
    turns: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import pace
    from benchmarks.pace import DividedPace

    clock = SimpleNamespace(thread=100.0, process=200.0)
    fake = {"thread_time": lambda: clock.thread, "process_time": lambda: clock.process}
    monkeypatch.setattr(pace, "time", SimpleNamespace(perf_counter=time.perf_counter, **fake))

    def work(seconds: float, elsewhere: float = 0.0) -> None:
        clock.thread += seconds
        clock.process += seconds + elsewhere

    taken = DividedPace(rounds=2, rest="FedLab")
    work(50.0)  # before the first round
    for factor in (1, 2):
        assert taken.tick()
        for _ in range(3):
            with taken.timed("bare"):
                work(1.0 * factor)
            with taken.timed(DividedPace.ASIDE):
                work(7.0)
            work(2.0 * factor, elsewhere=0.5 * factor)  # another thread of this process counts too
    assert not taken.tick()
    lines = [json.loads(line.partition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert [line["parts"] for line in lines[1:]] == [{"FedLab": 7.5, "bare": 3.0}, {"FedLab": 15.0, "bare": 6.0}]


def test_the_flower_app_is_trained_by_fedlab_too(
    work: Any, turns: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.contenders import stock
    from benchmarks.contenders.bare import simple_cnn
    from benchmarks.contenders.flower_app import main
    from benchmarks.pace import MARK

    monkeypatch.delenv(stock.WORK, raising=False)
    starts: list[Any] = []
    monkeypatch.setattr(stock, "simple_cnn", lambda: starts.append(simple_cnn()) or starts[-1])
    run = main(work, "inline")
    assert [len(event["clients"]) for event in run.history.rounds] == [work.cohort] * work.rounds
    reports = [json.loads(line[len(MARK) :]) for line in capsys.readouterr().out.splitlines() if line.startswith(MARK)]
    assert [set(report) for report in reports] == [{"ready"}, *[{*reports[1]}] * work.rounds]
    before = starts[0].state_dict()  # the server's, from which all begin
    assert run.arrays.keys() == before.keys()
    assert not any(torch.equal(torch.from_numpy(values), before[name]) for name, values in run.arrays.items())


def test_the_flower_app_echoes_what_it_gets(tmp_path: Path, turns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.contenders import stock
    from benchmarks.contenders.flower_app import main
    from benchmarks.work import Work

    monkeypatch.delenv(stock.WORK, raising=False)
    run = main(Work("empty", str(tmp_path), clients=4, cohort=2, rounds=2, payload=5), "inline")
    assert [values.tolist() for values in run.arrays.values()] == [[0.0] * 5]
    assert [event["bytes_up"] for event in run.history.rounds] == [2 * 5 * 4] * 2
