"""What a whole run would take, from one measured step of each kind of round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedlab.config import TrainingConfig
from fedlab.experiment.measuring import StageCost
from fedlab.server.participation.devices import planned


@dataclass(frozen=True)
class Size:
    """How large a run is.

    Args:
        rounds: number of rounds of each kind, in the order of the measured stages.
        training: the section ``training`` in each of them.
        cohort: clients of a round.
        workers: processes that train clients.
        examples: training samples of a client of mean size; None if that is not known.
        tests: test samples of all clients; None if that is not known.
        tested: test samples that were evaluated when it was measured.
        evaluations: how often the clients are evaluated.
    """

    rounds: Sequence[int]
    training: Sequence[TrainingConfig]
    cohort: int
    workers: int
    examples: float | None
    tests: int | None
    tested: int
    evaluations: int


@dataclass(frozen=True)
class Extrapolated:
    """What was computed. Seconds are None if the number of steps is not known.

    Args:
        steps: steps of a client in a round, in each kind of round.
        round: seconds of a round, in each kind of round.
        training: seconds of all rounds.
        evaluation: seconds of all evaluations by clients; None if the number of test samples is not known.
        down: bytes that the clients of all rounds are sent.
        up: bytes that they send.
        missing: what is not part of the figures, as sentences.
    """

    steps: tuple[int | None, ...]
    round: tuple[float | None, ...]
    training: float | None
    evaluation: float | None
    down: int
    up: int
    missing: tuple[str, ...]

    @property
    def run(self) -> float | None:
        """Seconds of the whole run, as far as they are known."""
        return None if self.training is None else self.training + (self.evaluation or 0.0)

    def to_json(self) -> dict[str, object]:
        """Fields for JSON."""
        return {
            "steps": self.steps, "round_seconds": self.round, "training_seconds": self.training,
            "evaluation_seconds": self.evaluation, "run_seconds": self.run, "bytes_down": self.down,
            "bytes_up": self.up,
        }  # fmt: skip


def extrapolated(stages: Sequence[StageCost], size: Size) -> Extrapolated:
    """What the whole run would take: clients × steps × rounds / workers.

    Args:
        stages: what was measured, by kind of round.
        size: of the run.
    """
    waves = math.ceil(size.cohort / size.workers)
    pairs = zip(stages, size.training, strict=True)
    steps = tuple(_steps(stage, training, size.examples) for stage, training in pairs)
    rounds = tuple(_round(stage, count, waves, size) for stage, count in zip(stages, steps, strict=True))
    known = [seconds * count for seconds, count in zip(rounds, size.rounds, strict=True) if seconds is not None]
    sample = max((stage.evaluate for stage in stages), default=0.0) / max(1, size.tested)
    evaluation = None if size.tests is None else sample * size.tests * size.evaluations / size.workers
    first = sum(stage.once for stage in stages) * size.cohort
    counted = list(zip(stages, size.rounds, strict=True))
    return Extrapolated(
        steps,
        rounds,
        sum(known) if len(known) == len(rounds) else None,
        evaluation,
        sum(stage.down * count for stage, count in counted) * size.cohort + first,
        sum(stage.up * count for stage, count in counted) * size.cohort,
        _missing(stages, size),
    )


def _steps(stage: StageCost, training: TrainingConfig, examples: float | None) -> int | None:
    if stage.other_steps is not None:
        return stage.other_steps
    if training.local_steps is not None:
        return training.local_steps
    return None if examples is None else planned(training, math.ceil(examples), 0, 0).steps


def _round(stage: StageCost, steps: int | None, waves: int, size: Size) -> float | None:
    """Seconds of a round in which every worker trains one client after the other."""
    server = stage.update + (stage.aggregate or 0.0) * waves
    if steps is None:
        return None
    idle = stage.idle or 0.0
    return waves * (idle + steps * (stage.step - idle)) + server


def _missing(stages: Sequence[StageCost], size: Size) -> tuple[str, ...]:
    told: Mapping[str, bool] = {
        "steps of a round: the data is not here, and --samples does not say how many training samples there are": (
            size.examples is None and any(training.local_steps is None for training in size.training)
        ),
        "evaluation by clients: the data is not here, and --test-samples does not say how many samples it has": (
            size.tests is None
        ),
        "a client's work beside its steps in full length: the method replaces the loop of steps (fit), of which the "
        "trial is a short form": any(stage.own_loop for stage in stages),
        "averaging: the strategy is not FedLab's own": any(stage.aggregate is None for stage in stages),
    }
    return tuple(text for text, holds in told.items() if holds)
