"""What an acceptance experiment has shown: its runs, and a verdict for each gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlab.report.grids import to_markdown
from fedlab.report.record import RunRecord
from fedlab.report.spread import Spread, measured_on
from fedlab.report.values import moment
from fedlab.studies.acceptance import Acceptance, Shown
from fedlab.studies.gates import AnyGate, DifferenceGate, MetricGate, RankGate, last_value
from fedlab.studies.plan import Results

_VERDICTS = {True: "met", False: "missed", None: "not judged"}


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
    def std(self) -> float | None:
        """Sample standard deviation of the values of the seeds; None below two of them."""
        return Spread.of(self.by_seed.values()).std

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
            f"{verdict.gate.name} (lacks runs of {', '.join(lacking) or 'further seeds'})"
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
        rows = [["gate", "required", *(f"seed {seed}" for seed in self.seeds), "seen", "std", "verdict"]]
        for verdict in self.verdicts:
            values = [*(verdict.by_seed.get(seed) for seed in self.seeds), verdict.seen, verdict.std]
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
                "std": verdict.std,
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
        named += [
            Shown(metric=metric, scope=gate.scope)
            for gate in self.spec.gates
            if isinstance(gate, RankGate)
            for metric in gate.metrics
        ]
        kept: dict[str, Shown] = {}
        for shown in sorted([*self.spec.show, *named], key=lambda shown: not shown.percent):
            kept.setdefault(shown.label, shown)
        return list(kept.values()) or [Shown(metric="accuracy")]


def judge(gate: AnyGate, results: Results) -> Verdict:
    """Judge a gate, unless too few runs are there."""
    by_seed = gate.seen(results)
    return Verdict(gate, by_seed, *gate.judge(by_seed)) if len(by_seed) >= gate.fewest else Verdict(gate, by_seed)


def _written(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f}" if percent else f"{value:.4g}"
