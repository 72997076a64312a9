"""Sweeps: a configuration over a grid or a list of changes and over seeds, with mean ± standard deviation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedlab.config import Config, parse
from fedlab.errors import ConfigError, did_you_mean
from fedlab.experiment.result import Run
from fedlab.report.bands import Line, bands_picture
from fedlab.report.grids import to_csv, to_markdown
from fedlab.report.record import RunRecord, main_metrics
from fedlab.report.spread import Spread, curve, known_metrics, quantities, shown_on
from fedlab.storage.runfolder import why_unwritable, write_atomic
from fedlab.studies.plan import RunPlan, folder_name
from fedlab.studies.queue import RunQueue
from fedlab.studies.spec import Point, SweepSpec, base_of


@dataclass(frozen=True)
class Sweep:
    """The results of a sweep, finished or not.

    Args:
        spec: the sweep.
        seeds: seeds of every point.
        asked: metrics to show besides bytes and seconds; empty: those that the runs' reports show first.
        folder: the folder of the sweep.
        batch: runs and failures.
    """

    spec: SweepSpec
    seeds: tuple[int, ...]
    asked: tuple[str, ...]
    folder: Path
    batch: RunQueue

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that are shown; none before the first run if none were asked for."""
        return self.asked or main_metrics(run.history for runs in self.batch.results.values() for run in runs.values())

    @property
    def files(self) -> dict[str, Path]:
        """The paths of the files that `write` writes, by their content."""
        pictures = {metric: self.folder / f"sweep-{folder_name(metric)}.png" for metric in self.metrics}
        return {name: self.folder / name for name in ("sweep.csv", "sweep.md", "runs.csv")} | pictures

    def records(self, point: Point) -> dict[int, RunRecord]:
        """A point's finished runs, by seed."""
        return {
            seed: RunRecord(run.folder, run.history) for seed, run in self.batch.results.get(point.name, {}).items()
        }

    def table(self) -> list[list[str]]:
        """Header and one row per point: mean ± sample standard deviation over its n runs."""
        told = quantities(self.metrics)
        rows = [[*self.spec.axes, "n", *(quantity.title for quantity in told), "measured on"]]
        for point in self.spec.points:
            records = self.records(point).values()
            figures = [quantity.shown(Spread.of(map(quantity.of, records))) for quantity in told]
            labels = [choice.label for choice in point.choices]
            rows.append([*labels, str(len(records)), *figures, shown_on(records, self.metrics)])
        return rows

    def means(self) -> list[list[object]]:
        """The table in plain numbers: metrics as they are, bytes and seconds."""
        told = quantities(self.metrics)
        rows: list[list[object]] = [
            [
                *self.spec.axes,
                "n",
                *(f"{quantity.key}_{part}" for quantity in told for part in ("mean", "std")),
                "measured_on",
            ]
        ]
        for point in self.spec.points:
            records = self.records(point).values()
            spreads = [Spread.of(map(quantity.of, records)) for quantity in told]
            figures = [figure for spread in spreads for figure in (spread.mean, spread.std)]
            labels = [choice.label for choice in point.choices]
            rows.append([*labels, len(records), *figures, shown_on(records, self.metrics)])
        return rows

    def runs(self) -> list[list[object]]:
        """Header and one row per run that was finished or failed."""
        told = quantities(self.metrics)
        rows: list[list[object]] = [
            [
                *self.spec.axes,
                "seed",
                "status",
                "rounds",
                *(q.key for q in told),
                "bytes_down",
                "bytes_up",
                "measured_on",
                "run",
            ]
        ]
        for point in self.spec.points:
            labels = [choice.label for choice in point.choices]
            for seed, record in self.records(point).items():
                figures = [quantity.of(record) for quantity in told]
                facts = (*record.bytes_total(), shown_on([record], self.metrics), str(record.folder.path))
                rows.append([*labels, seed, record.status, len(record.rounds), *figures, *facts])
            for seed in self.seeds:
                if (point.name, seed) in self.batch.failures:
                    rows.append([*labels, seed, "failed", *[None] * (len(told) + 5)])
        return rows

    def to_markdown(self) -> str:
        """The table, how to read it, and what failed."""
        seeds = ", ".join(map(str, self.seeds))
        note = f"Mean ± sample standard deviation over n runs (seeds {seeds}), at each run's last evaluation."
        failed = [f"- {name}, seed {seed} failed: {why}" for (name, seed), why in self.batch.failures.items()]
        lines = [*to_markdown(self.table()), "", note, "", *(line.splitlines()[0] for line in failed)]
        return "\n".join(lines).rstrip() + "\n"

    def picture(self, metric: str) -> bytes:
        """Curves and final values as PNG; with several axes, one panel for every value of the first."""
        panels: dict[str, list[Line]] = {}
        for point in self.spec.points:
            texts = [choice.text for choice in point.choices]
            title, label = (texts[0], ", ".join(texts[1:])) if len(texts) > 1 else ("", point.name)
            curves = [curve(record, metric) for record in self.records(point).values()]
            panels.setdefault(title, []).append(Line(label, curves))
        return bands_picture(panels, metric)

    def write(self) -> None:
        """Write the tables and a picture per metric."""
        contents: dict[str, str | bytes] = {
            "sweep.csv": to_csv(self.means()),
            "sweep.md": self.to_markdown(),
            "runs.csv": to_csv(self.runs()),
            **{metric: self.picture(metric) for metric in self.metrics},
        }
        for name, path in self.files.items():
            write_atomic(path, contents[name])


def sweep(
    spec: SweepSpec,
    folder: Path,
    *,
    metrics: Sequence[str] = (),
    overrides: Sequence[str] = (),
    quiet: bool = False,
    keep_going: bool = False,
    jobs: int | None = 1,
    command: str | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Sweep:
    """Run every point with every seed, and write tables and pictures, even if the sweep is interrupted.

    Finished runs of the same configuration in `folder` are not repeated, and interrupted ones continue from
    its last checkpoint.

    Args:
        spec: what to run.
        folder: where runs, their shared cache, tables and pictures go.
        metrics: metrics to show besides bytes and seconds; default: those that the runs' reports show first.
        overrides: ``dotted.key=value`` strings that change the base.
        quiet: whether the runs show no progress, unless the base or an override asks for it.
        keep_going: continue with the other runs when one fails.
        jobs: how many runs to make at the same time, see `RunQueue.run`.
        command: how to repeat it, recorded in every run.
        announce: called with a line when a run starts and when it ends.

    Raises:
        InputError, ConfigErrors: a configuration is wrong (then nothing was run), or the first run has no such metric.
        Exception: whatever a run raises, unless `keep_going`.
    """
    if spec.trials is not None:
        raise ConfigError(
            "trials", spec.trials, "a sweep over all of the grid", "`fedlab.studies.search.search` has Optuna choose"
        )
    base = base_of(spec, folder, overrides, quiet)
    points = {point.name: partial(spec.placed, base, point.changes) for point in spec.points}
    if len(points) < len(spec.points):
        raise ConfigError("list", [*points], "points of different names", "rename some of the grid's or list's values")
    seeds = spec.seeds or (parse(Config, next(iter(points.values()))()).seed,)
    if problem := why_unwritable(folder):
        raise ConfigError("--folder", str(folder), "a folder that can be written to", problem)
    done = Sweep(spec, seeds, tuple(metrics), folder, RunQueue(RunPlan.make(points, seeds, folder)))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done.batch.run(
            jobs=jobs,
            keep_going=keep_going,
            command=command,
            announce=announce,
            inspect=partial(_refuse_unknown_metrics, metrics=metrics),
        )
    finally:
        done.write()
    return done


def _refuse_unknown_metrics(run: Run, metrics: Sequence[str]) -> None:
    known = known_metrics(run.history.evaluations)
    for metric in metrics:
        if known and metric not in known:
            expected = f"a metric of the runs: {', '.join(known)} ({run.path})"
            raise ConfigError("--metric", metric, expected, did_you_mean(metric, known))
