"""Acceptance experiments: run every arm of a method's experiment with every seed, and judge the gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from fedlab.config import Config, Section, apply_overrides, parse, read_yaml
from fedlab.errors import InputError, did_you_mean
from fedlab.experiment.configuration import look_for_modules, placed
from fedlab.experiment.result import Run
from fedlab.experiment.start import method_folder
from fedlab.report.grids import to_markdown
from fedlab.report.record import RunRecord
from fedlab.report.spread import Spread, measured_on
from fedlab.report.values import moment
from fedlab.storage.runfolder import write_atomic
from fedlab.studies.gates import AnyGate, DifferenceGate, MetricGate, Scope, last_value
from fedlab.studies.plan import Results, RunPlan, RunQueue, made_before, with_dotted, with_own_cache

_VERDICTS = {True: "met", False: "missed", None: "not judged"}


class Shown(Section):
    """A column of values in the table of arms."""

    metric: str
    scope: Scope = "mean"
    percent: bool = True

    @property
    def label(self) -> str:
        """The metric, with its scope unless it is the mean over the clients."""
        return self.metric if self.scope == "mean" else f"{self.metric} ({self.scope})"


class Acceptance(Section):
    """An acceptance experiment, as described in ``methods/<method>/acceptance.yaml``."""

    source: str = Field(description="what is run and where the gates come from, in one sentence")
    base: dict[str, Any] = Field(description="configuration that all arms share")
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name of the arm → dotted keys of `base` that it changes"
    )
    gates: tuple[AnyGate, ...] = Field(min_length=1)
    show: tuple[Shown, ...] = Field(
        default=(), description="further metrics that the table shows besides those of the gates"
    )
    seeds_of: dict[str, tuple[int, ...]] = Field(
        default={}, description="name of the arm → its seeds, if it does not run with all seeds"
    )

    @model_validator(mode="after")
    def _arms_exist(self) -> Acceptance:
        for arm in self.seeds_of:
            if arm not in self.arms:
                raise ValueError(f"seeds_of names no arm {arm!r}; {did_you_mean(arm, self.arms)}")
        for gate in self.gates:
            for arm in gate.arms:
                if arm not in self.arms:
                    raise ValueError(f"gate {gate.name!r} names no arm {arm!r}; {did_you_mean(arm, self.arms)}")
        return self

    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    def of(self, folder: Path) -> Acceptance:
        """The same, with relative paths that start from a folder."""
        self._folder = folder
        return self

    def config(self, arm: str, seed: int) -> Config:
        """The configuration of one run.

        Raises:
            ConfigErrors: base and arm do not make a valid configuration.
        """
        raw = with_dotted(self.base, {**self.arms[arm], "seed": seed})
        look_for_modules(raw, self._folder)
        return parse(Config, placed(raw, lambda key: self._folder))


@dataclass(frozen=True)
class Verdict:
    """A gate and its outcome.

    Args:
        gate: the gate.
        by_seed: the value of each seed.
        seen: the value that is compared with the threshold; None if runs are missing.
        met: whether the gate is met; None if runs are missing.
    """

    gate: AnyGate
    by_seed: Mapping[int, float] = field(default_factory=dict)
    seen: float | None = None
    met: bool | None = None

    @property
    def word(self) -> str:
        """The verdict in one or two words."""
        return "void" if self.met is False and self.gate.void else _VERDICTS[self.met]


@dataclass(frozen=True)
class Outcome:
    """A finished acceptance experiment.

    Args:
        spec: the experiment.
        seeds: the seeds that were run.
        results: runs by arm and seed.
        failures: ``arm, seed N`` → why that run failed.
        verdicts: one per gate.
        kept: seeds of the runs that an earlier call made, by arm.
    """

    spec: Acceptance
    seeds: tuple[int, ...]
    results: Results
    failures: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    kept: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether every gate was judged and met."""
        return all(verdict.met for verdict in self.verdicts)

    @property
    def failed(self) -> bool:
        """Whether a gate was missed or a run failed; the rest may be met or not judged."""
        return bool(self.failures) or any(verdict.met is False for verdict in self.verdicts)

    @property
    def undecided(self) -> list[str]:
        """Names of the gates that were not judged, each with the arms of which runs are missing."""
        return [
            f"{verdict.gate.name} (lacks runs of {', '.join(lacking) or 'one seed of all its arms'})"
            for verdict in self.verdicts
            if verdict.met is None
            for lacking in [[arm for arm in dict.fromkeys(verdict.gate.arms) if not self.results.get(arm)]]
        ]

    def earlier(self) -> list[str]:
        """A line per arm with runs that an earlier call made, with the date on which each ended."""
        return [
            f"{arm}: " + ", ".join(f"seed {seed} of {self._ended(arm, seed)}" for seed in seeds)
            for arm, seeds in self.kept.items()
            if seeds
        ]

    def _ended(self, arm: str, seed: int) -> str:
        return moment(self.results[arm][seed].history.end.get("time"))

    def arm_rows(self) -> list[list[str]]:
        """Header and one row per arm and metric it has: the values of each seed, mean and standard deviation."""
        rows = [["arm", "metric", *(f"seed {seed}" for seed in self.seeds), "mean", "std", "measured on"]]
        for arm, runs in self.results.items():
            for shown in self._shown():
                values = {s: last_value(r.history, shown.metric, shown.scope) for s, r in runs.items()}
                spread = Spread.of(values.values())
                if spread.mean is None and len(self._shown()) > 1:
                    continue
                numbers = [*(values.get(seed) for seed in self.seeds), spread.mean, spread.std]
                records = [RunRecord(run.folder, run.history) for run in runs.values()]
                stands = measured_on(records, shown.scope) if shown.scope not in ("train", "logged") else "–"
                label = f"{shown.label}, %" if shown.percent else shown.label
                rows.append([arm, label, *(_written(number, shown.percent) for number in numbers), stands])
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
        """The outcome as plain values."""
        arms: dict[str, Any] = {}
        for arm, runs in self.results.items():
            metrics: dict[str, Any] = {}
            for shown in self._shown():
                values = {str(s): last_value(r.history, shown.metric, shown.scope) for s, r in runs.items()}
                spread = Spread.of(values.values())
                metrics[shown.label] = {"seeds": values, "mean": spread.mean, "std": spread.std}
            arms[arm] = {
                "changes": self.spec.arms[arm],
                "metrics": metrics,
                "runs": {str(seed): str(done.path) for seed, done in runs.items()},
                "ended": {str(seed): self._ended(arm, seed) for seed in runs},
                "made_by_an_earlier_call": list(self.kept.get(arm, ())),
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

    def to_markdown(self) -> str:
        """Both tables as Markdown, for a README."""
        asked = "" if self.seeds == self.spec.seeds else f" (specified: {', '.join(map(str, self.spec.seeds))})"
        lines = [self.spec.source, "", f"Seeds {', '.join(map(str, self.seeds))}{asked}.", ""]
        lines += [*to_markdown(self.gate_rows()), "", *to_markdown(self.arm_rows())]
        if self.earlier():
            lines += ["", "Runs of earlier calls:", "", *(f"- {line}" for line in self.earlier())]
        lines += ["", *(f"- {name} failed: {reason.splitlines()[0]}" for name, reason in self.failures.items())]
        return "\n".join(lines).rstrip() + "\n"

    def _shown(self) -> list[Shown]:
        named = [
            Shown(metric=gate.metric, scope=gate.scope, percent=isinstance(gate, DifferenceGate))
            for gate in self.spec.gates
            if isinstance(gate, MetricGate)
        ]
        kept: dict[str, Shown] = {}
        for shown in sorted([*self.spec.show, *named], key=lambda shown: not shown.percent):
            kept.setdefault(shown.label, shown)
        return list(kept.values()) or [Shown(metric="accuracy")]


def load_acceptance(source: str) -> Acceptance:
    """The acceptance experiment of a method, or of a YAML file.

    Raises:
        InputError, ConfigErrors: there is no such method or file, it has no experiment, or the experiment is invalid.
    """
    if source.endswith((".yaml", ".yml")):
        return parse(Acceptance, read_yaml(source)).of(Path(source).absolute().parent)
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

    Finished runs of the same configuration in `folder` are not repeated. The outcome covers all finished runs
    of the experiment in `folder`, including those that earlier calls made for other arms and seeds.

    Args:
        spec: the experiment.
        folder: where runs, their shared cache and the outcome go.
        seeds: instead of the specified ones.
        arms: run only these arms; default: all.
        overrides: ``dotted.key=value`` strings of the sections ``engine`` and ``tracking``.
        keep_going: continue with the other runs when one fails.
        command: how to repeat it, recorded in every run.
        announce: called with a line when a run starts and when it ends.

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
    # seeds asked for by hand are meant for every arm
    only = spec.seeds_of if seeds == spec.seeds else {}
    batch = RunQueue(RunPlan.make(raws, seeds, folder, kind="arm", only=only))
    batch.run(keep_going=keep_going, command=command, announce=announce)
    kept = _kept(spec, folder, overrides, batch)
    every = tuple(dict.fromkeys([*spec.seeds, *seeds]))
    results: Results = {
        arm: {seed: found[seed] for seed in every if seed in found}
        for arm in spec.arms
        for found in [{**batch.results.get(arm, {}), **kept.get(arm, {})}]
    }
    shown = {seed for runs in results.values() for seed in runs} | set(seeds)
    seeds = tuple(seed for seed in every if seed in shown)
    failures = {f"{arm}, seed {seed}": reason for (arm, seed), reason in batch.failures.items()}
    verdicts = tuple(_judge(gate, results) for gate in spec.gates)
    outcome = Outcome(spec, seeds, results, failures, verdicts, {arm: list(runs) for arm, runs in kept.items()})
    write_atomic(folder / "acceptance.json", json.dumps(outcome.to_json(), indent=1, ensure_ascii=False))
    write_atomic(folder / "acceptance.md", outcome.to_markdown())
    return outcome


def _raw(spec: Acceptance, arm: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    # a cache of their own: arms share what they start from, and nothing comes from an earlier version of the code
    raw = with_own_cache(spec.config(arm, spec.seeds[0]).model_dump(mode="json"), folder)
    return apply_overrides(raw, overrides)


def _kept(spec: Acceptance, folder: Path, overrides: Sequence[str], batch: RunQueue) -> Results:
    """Finished runs of the experiment that were not asked for this time."""
    kept: dict[str, Mapping[int, Run]] = {}
    for arm in spec.arms:
        specified = spec.seeds_of.get(arm, spec.seeds)
        others = [seed for seed in specified if (arm, seed) not in batch.plan.configs]
        kept |= made_before({arm: partial(_raw, spec, arm, folder, overrides)}, others, folder) if others else {}
    return {arm: runs for arm, runs in kept.items() if runs}


def _judge(gate: AnyGate, results: Results) -> Verdict:
    by_seed = gate.seen(results)
    return Verdict(gate, by_seed, *gate.judge(by_seed)) if by_seed else Verdict(gate)


def _written(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f}" if percent else f"{value:.4g}"
