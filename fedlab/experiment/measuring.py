"""Measures what the preflight does: memory of worker and server, seconds of a step, bytes of a round."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from fedlab.clients.app import reply_without_state
from fedlab.clients.runtime import ClientRuntime
from fedlab.clients.work import Trained, WorkRequest
from fedlab.engine.resident import peak_bytes, start_peak
from fedlab.experiment.rehearsal import Observer
from fedlab.method.exchange import Exchange
from fedlab.protocol.encoding import sent_bytes
from fedlab.server.ledger import payload_bytes
from fedlab.server.strategies import Strategy
from fedlab.server.strategies.average import AveragingStrategy
from fedlab.server.strategies.trial import Trial

Who = Literal["worker", "server"]
_CALLS, _LONG = 3, 2.0  # calls of which the fastest counts; seconds after which there are no more
_PATIENCE = 10.0  # seconds of a first call after which there is no second one


@dataclass
class StageCost:
    """What one client's round of training cost in one kind of round. Memory is in bytes, sizes are payload.

    Args:
        round: the round that was tried.
        step: seconds of a client's work in which it took one step on a batch, once everything has been used before.
        idle: seconds of its work in a round without a step: taking over weights, and preparing what is sent. Part of
            `step`. None if the method cannot do a round without steps.
        own_loop: whether the method replaces the loop of steps, so that the trial is a short form of its round.
        other_steps: steps of a whole round, if they are on samples other than the client's own; None otherwise.
        aggregate: seconds in which the server averages one reply; None for a strategy that FedLab does not know.
        update: seconds of `Method.server_update`, in the short form that is tried before every run.
        evaluate: seconds in which a client evaluates its test samples.
        down: bytes that a client is sent in each such round.
        once: bytes that it is sent beside them the first time.
        up: bytes that it sends.
        stays: names of the groups of state that are trained and stay on the client.
    """

    round: int
    step: float
    idle: float | None = None
    own_loop: bool = False
    other_steps: int | None = None
    aggregate: float | None = None
    update: float = 0.0
    evaluate: float = 0.0
    down: int = 0
    once: int = 0
    up: int = 0
    stays: tuple[str, ...] = ()


@dataclass
class Peak:
    """The most memory that was taken, in bytes, and by what."""

    bytes: int = 0
    gpu: int = 0
    phase: str = ""


@dataclass
class Meter(Observer):
    """Measures while the preflight runs.

    Args:
        strategy: the aggregation rule; averages one reply for a trial if it is FedLab's own.
        device: where networks compute.
        threads: of torch. With a single one on the CPU, seconds are those of the processor, because whatever else the
            machine does lengthens those of a clock.
        tell: is told each phase before it begins.
    """

    strategy: Strategy
    device: torch.device
    threads: int = 1
    tell: Callable[[str], None] = lambda phase: None
    stages: list[StageCost] = field(default_factory=list)
    peaks: dict[Who, Peak] = field(default_factory=lambda: {"worker": Peak(), "server": Peak()})
    _last: float = 0.0
    apart: bool = True
    """Whether the peaks of worker and server could be told apart."""

    @contextmanager
    def phase(self, who: Who, what: str, round: int) -> Iterator[None]:
        name = f"{who}: {what}, round {round}"
        self.tell(name)
        self.apart = start_peak() and self.apart
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        began = self._now()
        yield
        self._last = seconds = self._now() - began
        gpu = torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else 0
        peak, taken = self.peaks[who], peak_bytes()
        if taken >= peak.bytes:
            peak.bytes, peak.phase = taken, name
        peak.gpu = max(peak.gpu, gpu)
        if what in ("update", "evaluate") and self.stages:
            now = self.stages[-1]
            if who == "server" and what == "update":
                now.update = seconds
            elif who == "worker":
                now.evaluate = seconds

    def trained(
        self, runtime: ClientRuntime, client: int, request: WorkRequest, version: int | None, answer: Trained
    ) -> None:
        """Let the client work once more if that is quick, since first times take longer, and average what it sends."""
        exchange, round = runtime.enter(request.instructions.plan), request.instructions.round
        trial, more = None, False
        if isinstance(self.strategy, AveragingStrategy):
            names = [name for name, p in runtime.networks.named_parameters() if p.requires_grad]
            trial = Trial(self.strategy, exchange, request.arrays, names, client, max(1, answer.examples), round)
            more = trial.arrays.keys() != request.arrays.keys()  # the algorithm wants more back than was trained for
            request = replace(request, arrays=trial.arrays, settings=trial.settings)
        warm, seconds = answer, self._last
        if more or seconds < _PATIENCE:
            with self.phase("worker", "train again", round):
                warm, seconds = self._fastest(lambda: runtime.train(client, request, version))
        cost = StageCost(round, seconds)
        self.stages.append(cost)
        cost.down = sum(array.nbytes for array in request.arrays.values())
        cost.once = sum(array.nbytes for array in request.shared.values())
        results = payload_bytes(warm.results)
        cost.up = payload_bytes(warm.arrays) + results
        cost.stays = _staying(exchange)
        if trial is not None:
            reply = reply_without_state(trial.message, warm, request.instructions)
            compressed = sent_bytes(reply.content)
            if compressed is not None:
                cost.up = sum(compressed.values()) + results
            began = self._now()
            with self.phase("server", "aggregate", round):
                trial.average(reply)
            cost.aggregate = self._now() - began
        cost.other_steps = warm.other_steps
        cost.own_loop = runtime.method.overrides("fit")
        still = replace(request, instructions=replace(request.instructions, steps={str(client): 0}))
        try:
            _, idle = self._fastest(lambda: runtime.train(client, still, version))
            cost.idle = min(cost.step, idle)
        except Exception:
            if not cost.own_loop:  # a method's own loop need not know what to do without any step
                raise

    @property
    def clock(self) -> Literal["processor", "wall"]:
        """What the seconds are those of."""
        return "processor" if self.device.type == "cpu" and self.threads == 1 else "wall"

    def _now(self) -> float:
        return time.process_time() if self.clock == "processor" else time.perf_counter()

    def _fastest(self, work: Callable[[], Trained]) -> tuple[Trained, float]:
        """The last answer, and the seconds of the fastest of a few calls; of a long call there is only one."""
        best, began, answers = float("inf"), self._now(), 0
        while True:
            start = self._now()
            answer = work()
            now = self._now()
            best, answers = min(best, now - start), answers + 1
            if answers >= _CALLS or now - began > _LONG:
                return answer, best


def _staying(exchange: Exchange) -> tuple[str, ...]:
    """Names of the groups whose state a client trains and keeps."""
    return tuple(dict.fromkeys(exchange.group_of[name].name for name in exchange.local))
