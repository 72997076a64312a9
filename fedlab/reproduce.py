"""Acceptance experiments: every arm and seed of a method's specification, and its gates judged."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from fedlab.batch import Batch, Plan, Results
from fedlab.config import Config, Section, apply_overrides, parse, read_yaml
from fedlab.errors import InputError, did_you_mean
from fedlab.experiment import method_folder
from fedlab.report.grids import to_markdown
from fedlab.report.spread import Spread
from fedlab.runfolder import write_atomic
from fedlab.tracking import History

_UNJUDGED = {True: "met", False: "missed", None: "not judged"}


class DifferenceGate(Section):
    """The last evaluation of one arm exceeds another's, as means over the seeds."""

    kind: Literal["difference"]
    name: str
    left: str = Field(description="the arm that should be better")
    minus: str = Field(description="the arm it is compared with")
    metric: str = Field(default="accuracy", description="a fraction; its mean over the clients counts")
    at_least: float = Field(description="points, i.e. hundredths of the metric")

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms the gate compares."""
        return self.left, self.minus

    @property
    def required(self) -> str:
        """The threshold in words."""
        return f"≥ {self.at_least:g} points"

    def seen(self, results: Results) -> dict[int, float]:
        """Points by seed, for the seeds both arms have."""
        left, minus = ({s: final(r.history, self.metric) for s, r in results[a].items()} for a in self.arms)
        return {
            seed: 100 * (value - other)
            for seed, value in left.items()
            if value is not None and (other := minus.get(seed)) is not None
        }

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        """The mean over the seeds, and whether it is enough."""
        value = statistics.fmean(seen.values())
        return value, value >= self.at_least


class RatioGate(Section):
    """The ratio of two values the server logged stays below a bound in every round that logged them, in every seed."""

    kind: Literal["ratio"]
    name: str
    arm: str
    server: tuple[str, str] = Field(description="names of the logged numerator and denominator")
    at_most: float

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm looked at."""
        return (self.arm,)

    @property
    def required(self) -> str:
        """The threshold in words."""
        return f"≤ {self.at_most:g} in every round"

    def seen(self, results: Results) -> dict[int, float]:
        """The worst round's ratio by seed."""
        worst = {}
        for seed, done in results[self.arm].items():
            above, below = (dict(done.history.logged(name, "server")) for name in self.server)
            ratios = [above[r] / below[r] if below[r] else math.inf for r in sorted(above.keys() & below.keys())]
            if ratios:
                worst[seed] = max(ratios)
        return worst

    def judge(self, seen: Mapping[int, float]) -> tuple[float, bool]:
        """The worst seed, and whether it is good enough."""
        value = max(seen.values())
        return value, value <= self.at_most


Gate = Annotated[DifferenceGate | RatioGate, Field(discriminator="kind")]


class Acceptance(Section):
    """An acceptance experiment, as ``methods/<method>/acceptance.yaml`` states it."""

    source: str = Field(description="what is run and where the gates come from, in one sentence")
    base: dict[str, Any] = Field(description="configuration all arms share")
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="arm → dotted keys it changes in `base`")
    gates: tuple[Gate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _arms_exist(self) -> Acceptance:
        for gate in self.gates:
            for arm in gate.arms:
                if arm not in self.arms:
                    raise ValueError(f"gate {gate.name!r} names no arm {arm!r}; {did_you_mean(arm, self.arms)}")
        return self

    def config(self, arm: str, seed: int) -> Config:
        """The configuration of one run.

        Raises:
            ConfigErrors: base and arm do not make a valid configuration.
        """
        return parse(Config, self.base).with_overrides({**self.arms[arm], "seed": seed})


@dataclass(frozen=True)
class Verdict:
    """A gate and what was seen.

    Args:
        gate: the gate.
        by_seed: what each seed shows.
        seen: what is compared with the threshold; None where the runs needed are not there.
        met: None likewise.
    """

    gate: DifferenceGate | RatioGate
    by_seed: Mapping[int, float] = field(default_factory=dict)
    seen: float | None = None
    met: bool | None = None

    @property
    def word(self) -> str:
        """The verdict in one or two words."""
        return _UNJUDGED[self.met]


@dataclass(frozen=True)
class Outcome:
    """A finished acceptance experiment.

    Args:
        spec: what was asked.
        seeds: seeds run.
        results: runs by arm and seed.
        failures: ``arm, seed N`` → why that run failed.
        verdicts: one per gate.
    """

    spec: Acceptance
    seeds: tuple[int, ...]
    results: Results
    failures: Mapping[str, str]
    verdicts: tuple[Verdict, ...]

    @property
    def met(self) -> bool:
        """Whether every gate was judged and met."""
        return all(verdict.met for verdict in self.verdicts)

    def arm_rows(self) -> list[list[str]]:
        """Header and one row per arm and metric: the values of each seed, mean and standard deviation, in per cent."""
        rows = [["arm", "metric", *(f"seed {seed}" for seed in self.seeds), "mean", "std"]]
        for arm, runs in self.results.items():
            for metric in self._metrics():
                values = {s: final(r.history, metric) for s, r in runs.items()}
                spread = Spread.of(values.values())
                shown = [*(values.get(seed) for seed in self.seeds), spread.mean, spread.std]
                rows.append([arm, metric, *("–" if value is None else f"{100 * value:.2f}" for value in shown)])
        return rows

    def gate_rows(self) -> list[list[str]]:
        """Header and one row per gate: required, the values of each seed, what counts, and the verdict."""
        rows = [["gate", "required", *(f"seed {seed}" for seed in self.seeds), "seen", "verdict"]]
        for verdict in self.verdicts:
            values = [*(verdict.by_seed.get(seed) for seed in self.seeds), verdict.seen]
            cells = ["–" if value is None else f"{value:.2f}" for value in values]
            rows.append([verdict.gate.name, verdict.gate.required, *cells, verdict.word])
        return rows

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        arms: dict[str, Any] = {}
        for arm, runs in self.results.items():
            metrics: dict[str, Any] = {}
            for metric in self._metrics():
                values = {str(s): final(r.history, metric) for s, r in runs.items()}
                spread = Spread.of(values.values())
                metrics[metric] = {"seeds": values, "mean": spread.mean, "std": spread.std}
            arms[arm] = {
                "changes": self.spec.arms[arm],
                "metrics": metrics,
                "runs": {str(seed): str(done.path) for seed, done in runs.items()},
            }
        gates = [
            {
                **verdict.gate.model_dump(mode="json"),
                "seeds": {str(seed): value for seed, value in verdict.by_seed.items()},
                "seen": verdict.seen,
                "met": verdict.met,
            }
            for verdict in self.verdicts
        ]
        return {
            "source": self.spec.source,
            "seeds": list(self.seeds),
            "specified_seeds": list(self.spec.seeds),
            "met": self.met,
            "gates": gates,
            "arms": arms,
            "failures": dict(self.failures),
        }

    def toto_markdown(self) -> str:
        """Both tables for a README."""
        asked = "" if self.seeds == self.spec.seeds else f" (specified: {', '.join(map(str, self.spec.seeds))})"
        lines = [self.spec.source, "", f"Seeds {', '.join(map(str, self.seeds))}{asked}.", ""]
        lines += [*to_markdown(self.gate_rows()), "", *to_markdown(self.arm_rows())]
        lines += ["", *(f"- {name} failed: {reason.splitlines()[0]}" for name, reason in self.failures.items())]
        return "\n".join(lines).rstrip() + "\n"

    def _metrics(self) -> list[str]:
        named = {gate.metric for gate in self.spec.gates if isinstance(gate, DifferenceGate)}
        return sorted(named) or ["accuracy"]


def load_acceptance(source: str) -> Acceptance:
    """The acceptance experiment of a method, or of a YAML file.

    Raises:
        InputError, ConfigErrors: no such method or file, no experiment, or one that makes no sense.
    """
    if source.endswith((".yaml", ".yml")):
        return parse(Acceptance, read_yaml(source))
    packaged = method_folder(source, "METHOD") / "acceptance.yaml"
    if not packaged.is_file():
        raise InputError("METHOD", source, "a method with an acceptance.yaml", "give the path of one of your own")
    return parse(Acceptance, read_yaml(packaged))


def reproduce(
    spec: Acceptance,
    folder: Path,
    *,
    seeds: Sequence[int] = (),
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    keep_going: bool = False,
    command: str | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run every arm with every seed, judge the gates, and write ``acceptance.json`` and ``acceptance.md``.

    A run that `folder` holds finished, of the same configuration, is not repeated.

    Args:
        spec: the experiment.
        folder: where runs, their shared cache and the outcome go.
        seeds: instead of the specified ones.
        arms: only these.
        overrides: ``dotted.key=value`` strings of the sections ``engine`` and ``tracking``.
        keep_going: go on with the other runs after one failed.
        command: how to repeat it, recorded in every run.
        announce: told what starts and how each run came out.

    Raises:
        InputError, ConfigErrors: unknown arm, or a configuration that is wrong; nothing was run.
        Exception: whatever a run raises, unless `keep_going`.
    """
    for arm in arms:
        if arm not in spec.arms:
            raise InputError("--arms", arm, "an arm of the experiment", did_you_mean(arm, spec.arms))
    seeds = tuple(dict.fromkeys(seeds)) or spec.seeds
    chosen = [arm for arm in spec.arms if not arms or arm in arms]
    raws = {arm: partial(_raw, spec, arm, folder, overrides) for arm in chosen}
    batch = Batch(Plan.make(raws, seeds, folder, kind="arm"))
    batch.run(keep_going=keep_going, command=command, announce=announce)
    results: Results = {arm: batch.results.get(arm, {}) for arm in spec.arms}
    failures = {f"{arm}, seed {seed}": reason for (arm, seed), reason in batch.failures.items()}
    outcome = Outcome(spec, seeds, results, failures, tuple(_judge(gate, results) for gate in spec.gates))
    write_atomic(folder / "acceptance.json", json.dumps(outcome.to_json(), indent=1, ensure_ascii=False))
    write_atomic(folder / "acceptance.md", outcome.toto_markdown())
    return outcome


def final(history: History, metric: str) -> float | None:
    """The metric's mean over the clients at the last evaluation."""
    series = history.series(metric)
    return series[-1][1] if series else None


def _raw(spec: Acceptance, arm: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    # a cache of their own: arms share what they start from, and nothing comes from an earlier version of the code
    config = spec.config(arm, spec.seeds[0]).with_overrides({"tracking.cache": str(folder / "cache")})
    return apply_overrides(config.model_dump(mode="json"), overrides)


def _judge(gate: DifferenceGate | RatioGate, results: Results) -> Verdict:
    by_seed = gate.seen(results)
    return Verdict(gate, by_seed, *gate.judge(by_seed)) if by_seed else Verdict(gate)
