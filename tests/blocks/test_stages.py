from __future__ import annotations

from typing import Any

import pytest

from fedlab.blocks.stages import REST, Stage, Stages, position
from fedlab.errors import ConfigError
from fedlab.method import Step


def step(plan: dict[str, Any], round: int, index: int, per_round: int = 4, rounds: int = 10) -> Step:
    at, total = (round - 1) * per_round + index, rounds * per_round
    return Step(round, 0, index, per_round, at, total, plan, {}, {}, lambda name, value: None)


THREE = Stages(Stage("first", 3, {"lr": 0.1}), Stage("middle"), Stage("last", 2, key="method.last_rounds"))


def test_each_round_belongs_to_one_stage() -> None:
    plans = [THREE.plan(round, 9) for round in range(1, 10)]
    assert [plan["stage"] for plan in plans] == ["first"] * 3 + ["middle"] * 4 + ["last"] * 2
    assert [plan["stage_round"] for plan in plans] == [1, 2, 3, 1, 2, 3, 4, 1, 2]
    assert [plan["stage_rounds"] for plan in plans] == [3] * 3 + [4] * 4 + [2] * 2


def test_the_rest_may_be_nothing_and_a_stage_may_have_no_rounds() -> None:
    assert [THREE.plan(round, 5)["stage"] for round in range(1, 6)] == ["first"] * 3 + ["last"] * 2
    stages = Stages(Stage("none", 0), Stage("all", REST))
    assert stages.plan(1, 2) == {"stage": "all", "stage_round": 1, "stage_rounds": 2}


def test_steps_count_from_the_start_of_the_stage() -> None:
    plan = THREE.plan(5, 9)
    assert THREE.position(step(plan, 5, 3)) == (1 * 4 + 3, 4 * 4)
    assert THREE.position(step(THREE.plan(1, 9), 1, 0)) == (0, 12)


def test_without_stages_steps_count_from_the_start_of_the_run() -> None:
    assert position(step({"anything": 1}, 5, 3)) == (19, 40)


def test_training_is_that_of_the_stage() -> None:
    assert THREE.training(THREE.plan(3, 9)) == {"lr": 0.1}
    assert THREE.training(THREE.plan(4, 9)) == {}


def test_too_few_rounds_are_refused_with_the_settings_that_need_them() -> None:
    with pytest.raises(
        ConfigError, match=r"federation\.rounds = 4\n.*at least 5.*first = 3 \+ method\.last_rounds = 2"
    ):
        THREE.plan(1, 4)
    THREE.check(5)


def test_rounds_that_no_stage_takes_are_refused() -> None:
    stages = Stages(Stage("a", 2), Stage("b", 1))
    stages.check(3)
    with pytest.raises(ConfigError, match=r"expected: 3, the rounds of the stages: a = 2 \+ b = 1"):
        stages.check(4)


@pytest.mark.parametrize(
    "stages",
    [(), (Stage("a"), Stage("b")), (Stage("a", 1), Stage("a", 1)), (Stage("a", -1), Stage("b"))],
    ids=["none", "two rests", "equal names", "negative"],
)
def test_impossible_stages_are_refused(stages: tuple[Stage, ...]) -> None:
    with pytest.raises(ValueError, match=r"stage"):
        Stages(*stages)
