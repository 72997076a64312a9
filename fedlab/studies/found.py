"""What a search has found: its trials, the best of them, and the files that tell of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedlab.experiment.result import Run
from fedlab.metrics.direction import best_of
from fedlab.report.grids import to_csv, to_markdown
from fedlab.report.record import RunRecord, main_metrics
from fedlab.report.spread import Spread, quantities, shown_on
from fedlab.report.trials import Axis, trials_picture
from fedlab.report.values import is_share, metric_phrase, metric_value, number, plural
from fedlab.storage.runfolder import write_atomic
from fedlab.studies.spec import Point, SweepSpec

JOURNAL = "optuna.journal"


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Args:
        number: from 0.
        point: what was tried.
        values: the objective of each run, by seed.
        runs: the runs, by seed.
        why: why the trial failed; "" if it did not.
        same: number of an earlier trial of the same values, whose runs these are.
    """

    number: int
    point: Point
    values: Mapping[int, float] = field(default_factory=dict)
    runs: Mapping[int, Run] = field(default_factory=dict)
    why: str = ""
    same: int | None = None

    @property
    def name(self) -> str:
        """``trial 3``."""
        return f"trial {self.number}"

    @property
    def spread(self) -> Spread:
        """Mean and deviation of the objective over the seeds; the mean is what Optuna is told."""
        return Spread.of(() if self.why else self.values.values())


@dataclass(frozen=True)
class Found:
    """The trials of a search, finished or not.

    Args:
        spec: the sweep that was searched.
        seeds: seeds of every trial.
        folder: the folder of the search.
        trials: in the order of their numbers.
    """

    spec: SweepSpec
    seeds: tuple[int, ...]
    folder: Path
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """The best trial, the first of several that are equally good; None if none has succeeded."""
        good = [trial for trial in self.trials if trial.spread.mean is not None]
        better = best_of(self.spec.objective)
        return better(good, key=lambda trial: trial.spread.mean) if good else None

    @property
    def failed(self) -> list[Trial]:
        """The trials that failed."""
        return [trial for trial in self.trials if trial.why]

    @property
    def files(self) -> dict[str, Path]:
        """The files of the search, by name."""
        return {name: self.folder / name for name in ("trials.csv", "trials.md", "trials.png", JOURNAL)}

    def table(self) -> list[list[str]]:
        """Header and one row for each trial: its values and its objective, mean ± sample standard deviation."""
        share = is_share(self.spec.objective)
        title = f"validation {metric_phrase(self.spec.objective)}{' (%)' if share else ''}"
        rows = [["trial", *self.spec.axes, "n", title, ""]]
        for trial in self.trials:
            spread = trial.spread
            parts = [part for part in (spread.mean, spread.std) if part is not None]
            told = " ± ".join(f"{100 * part:.1f}" if share else number(part) for part in parts) or "–"
            mark = "failed" if trial.why else "best" if trial is self.best else ""
            if trial.same is not None:
                mark = ", ".join(filter(None, (mark, f"as trial {trial.same}")))
            labels = [choice.label for choice in trial.point.choices]
            rows.append([str(trial.number), *labels, str(spread.n), told, mark])
        return rows

    def summary(self) -> str:
        """The best trial, its value on validation samples and on test samples, and how many trials failed."""
        lines = []
        if (best := self.best) is not None:
            metric = self.spec.objective
            told = metric_value(metric, best.spread.mean)
            lines.append(f"best: {best.name} ({best.point.name}), validation {metric_phrase(metric)} {told}")
            records = [RunRecord(run.folder, run.history) for run in best.runs.values()]
            shown = main_metrics(run.history for run in best.runs.values())
            for quantity in quantities(shown):
                if quantity.key not in ("bytes", "seconds"):
                    lines.append(f"  {quantity.title}: {quantity.shown(Spread.of(map(quantity.of, records)))}")
            lines.append(f"  measured on {shown_on(records, shown)}, which the search has not seen")
            lines += [f"  run folder: {run.path}" for run in best.runs.values()]
        if failed := self.failed:
            lines.append(f"{plural(len(failed), 'trial')} of {len(self.trials)} failed")
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """The table, the best trial, and why others failed."""
        seeds = ", ".join(map(str, self.seeds))
        note = (
            f"The objective is the mean over the clients of {metric_phrase(self.spec.objective)} on their validation "
            f"samples at each run's last evaluation; n runs each (seeds {seeds})."
        )
        failed = [f"- {trial.name} failed: {trial.why.splitlines()[0]}" for trial in self.failed]
        return "\n".join([*to_markdown(self.table()), "", note, "", self.summary(), "", *failed]).rstrip() + "\n"

    def numbers(self) -> list[list[object]]:
        """The table in plain numbers, with the run folders and why trials failed."""
        rows: list[list[object]] = [
            ["trial", *self.spec.axes, f"validation_{self.spec.objective}_mean", "std", "n", "failed", "runs"]
        ]
        for trial in self.trials:
            spread = trial.spread
            exact = [c.changes[c.axis] if c.axis in self.spec.ranges else c.label for c in trial.point.choices]
            runs = " ".join(str(run.path) for run in trial.runs.values())
            rows.append([trial.number, *exact, spread.mean, spread.std, spread.n, trial.why.partition("\n")[0], runs])
        return rows

    def picture(self) -> bytes:
        """The objective by trial and along each axis, as PNG."""
        ranges = self.spec.ranges
        axes = [
            Axis(
                axis,
                [
                    trial.point.changes[axis] if axis in ranges else trial.point.choices[place].label
                    for trial in self.trials
                ],
                log=axis in ranges and ranges[axis].kind.startswith("log"),
            )
            for place, axis in enumerate(self.spec.axes)
        ]
        values = [trial.spread.mean for trial in self.trials]
        return trials_picture(values, axes, self.spec.objective)

    def write(self) -> None:
        """Write the tables and the picture; the journal is written as the search goes on."""
        if not self.trials:
            return
        contents: dict[str, str | bytes] = {
            "trials.csv": to_csv(self.numbers()),
            "trials.md": self.to_markdown(),
            "trials.png": self.picture(),
        }
        for name, content in contents.items():
            write_atomic(self.files[name], content)
