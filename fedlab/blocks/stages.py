"""Stages: consecutive rounds of a run in which a method does different things, such as pre-training and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedlab.errors import ConfigError
from fedlab.method import Plan, Step

REST: Literal["rest"] = "rest"


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Args:
        name: the value of ``plan["stage"]`` in its rounds.
        rounds: its number of rounds; ``"rest"`` stands for all rounds that the other stages leave, which may be none.
        training: keys of the section ``training`` that have other values in this stage, see `Method.training`.
        key: the setting that its number of rounds comes from, for error messages.
    """

    name: str
    rounds: int | Literal["rest"] = REST
    training: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


class Stages:
    """The stages of a run, in order. `plan`, `training` and `position` serve the hooks of the same names.

    Args:
        stages: at least one stage; at most one has ``"rest"`` as its number of rounds.

    Raises:
        ValueError: there is no stage, two stages have the same name, a number of rounds is negative, or several stages
            take the rest.
    """

    def __init__(self, *stages: Stage) -> None:
        names = [stage.name for stage in stages]
        if not stages or len(set(names)) < len(names):
            raise ValueError(f"stages need different names: {names}")
        if sum(stage.rounds == REST for stage in stages) > 1:
            raise ValueError("only one stage can take the rest of the rounds")
        if any(isinstance(stage.rounds, int) and stage.rounds < 0 for stage in stages):
            raise ValueError("a stage has at least 0 rounds")
        self.stages = stages

    def check(self, rounds: int) -> None:
        """Refuse a run whose number of rounds is not that of the stages.

        Args:
            rounds: number of rounds of the run.

        Raises:
            ConfigError: the stages need more rounds than the run has, or other rounds are left although no stage takes
                the rest.
        """
        needed = self._needed
        if rounds < needed or (rounds > needed and not any(stage.rounds == REST for stage in self.stages)):
            parts = " + ".join(
                f"{stage.key or stage.name} = {stage.rounds}" for stage in self.stages if stage.rounds != REST
            )
            least = "at least " if any(stage.rounds == REST for stage in self.stages) else ""
            fix = "change the number of rounds of the run or of a stage"
            raise ConfigError("federation.rounds", rounds, f"{least}{needed}, the rounds of the stages: {parts}", fix)

    def plan(self, round: int, rounds: int) -> dict[str, int | str]:
        """The stage of a round, as a plan.

        Args:
            round: the round, from 1.
            rounds: number of rounds of the run.

        Returns:
            ``stage``, its name; ``stage_round``, the number of the round within the stage, from 1; and
            ``stage_rounds``, the number of rounds of the stage.

        Raises:
            ConfigError: see `check`.
        """
        self.check(rounds)
        before = 0
        for stage in self.stages:
            length = rounds - self._needed if isinstance(stage.rounds, str) else stage.rounds
            if round <= before + length:
                return {"stage": stage.name, "stage_round": round - before, "stage_rounds": length}
            before += length
        raise ValueError(f"round {round} of {rounds}")

    def training(self, plan: Plan) -> Mapping[str, Any]:
        """The changes of the section ``training`` in a round with this plan."""
        return next(stage.training for stage in self.stages if stage.name == plan["stage"])

    @staticmethod
    def position(step: Step) -> tuple[int, int]:
        """The number of a step within its stage, from 0, and the number of a client's steps in the whole stage."""
        return position(step)

    @property
    def _needed(self) -> int:
        return sum(stage.rounds for stage in self.stages if isinstance(stage.rounds, int))


def position(step: Step) -> tuple[int, int]:
    """Where a step is: its number, from 0, and the number of all steps of a client.

    Both count the steps of the stage if the plan of the round is one of `Stages.plan`, and those of the whole run
    otherwise.
    """
    if "stage_round" not in step.plan:
        return step.global_step, step.total_steps
    done = int(step.plan["stage_round"]) - 1
    return done * step.per_round + step.index, int(step.plan["stage_rounds"]) * step.per_round
