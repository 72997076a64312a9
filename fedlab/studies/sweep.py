"""Sweeps: a configuration over a grid or a list of changes and over seeds, with mean ± standard deviation."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from fedlab.config import Config, Section, apply_overrides, parse, read_yaml
from fedlab.config.walk import within
from fedlab.config.yamltree import dump_yaml, load_yaml
from fedlab.errors import UNSET, ConfigError, did_you_mean
from fedlab.experiment.components import bare
from fedlab.experiment.configuration import look_for_modules, placed
from fedlab.experiment.result import Run
from fedlab.experiment.start import configure
from fedlab.report.bands import Line, bands_picture
from fedlab.report.grids import to_csv, to_markdown
from fedlab.report.record import RunRecord, main_metrics
from fedlab.report.spread import Spread, curve, known_metrics, quantities, shown_on
from fedlab.storage.runfolder import why_unwritable, write_atomic
from fedlab.studies.plan import RunPlan, RunQueue, folder_name, with_dotted, with_own_cache

LIST = "configuration"  # the axis that a file's `list` makes
_PLACED = {"seed": "use seeds", "tracking.folder": "each run has its own", "tracking.name": "each run has its own"}


@dataclass(frozen=True)
class Choice:
    """One value of one axis.

    Args:
        axis: the key or list that is varied.
        label: the value, in a table whose column is the axis.
        text: the value, for places that do not name its axis.
        changes: dotted keys it changes.
    """

    axis: str
    label: str
    text: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep without its seed: one choice for each axis."""

    choices: tuple[Choice, ...]

    @property
    def name(self) -> str:
        """Unique in the sweep."""
        return ", ".join(choice.text for choice in self.choices) or "all runs"

    @property
    def changes(self) -> dict[str, Any]:
        """Dotted keys it changes."""
        return {key: value for choice in self.choices for key, value in choice.changes.items()}


class SweepSpec(Section):
    """A sweep as described in a YAML file: every value of the grid with every entry of the list and every seed."""

    base: str | dict[str, Any] = Field(
        description="what all runs share: the name of a method, a YAML file or a configuration"
    )
    grid: dict[str, tuple[Any, ...] | dict[str, Any]] = Field(
        default={}, description="dotted key → its values, as a list or as a mapping of names of your own to values"
    )
    listed: dict[str, dict[str, Any]] = Field(
        default={}, alias="list", description="name of a variant → dotted keys of `base` that it changes"
    )
    seeds: tuple[int, ...] = Field(default=(), description="seeds of the runs; default: the seed of `base`")
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _typed: frozenset[str] = PrivateAttr(default=frozenset())

    def of(self, folder: Path, typed: Iterable[str] = ()) -> SweepSpec:
        """The same, with relative paths that start from a folder, but for those of keys that were typed in."""
        self._folder, self._typed = folder, frozenset(typed)
        return self

    @model_validator(mode="after")
    def _sound(self) -> SweepSpec:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("each seed once")
        for key, values in self.grid.items():
            if key in _PLACED:
                raise ValueError(f"no {key} in the grid: {_PLACED[key]}")
            if not values:
                raise ValueError(f"at least one value of {key}")
            twice = [label for label, count in Counter(c.label for c in self._axis(key)).items() if count > 1]
            if twice:
                raise ValueError(f"each value of {key} once; {twice[0]} is there twice")
            if other := next((other for other in self.grid if _below(key, other)), None):
                raise ValueError(f"{key} or {other} in the grid, not both: one is part of the other")
        return self

    def placed(self, base: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A raw configuration with changes that the sweep's file makes to it, whose paths start from its folder."""
        raw = with_dotted(base, changes or {})
        look_for_modules(raw, self._folder)
        return placed(raw, lambda key: Path.cwd() if within(key, self._typed) else self._folder)

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes, the slowest first."""
        return (*self.grid, LIST) if self.listed else tuple(self.grid)

    @property
    def points(self) -> tuple[Point, ...]:
        """All combinations."""
        axes = [self._axis(key) for key in self.grid]
        if self.listed:
            axes.append([Choice(LIST, name, name, changes) for name, changes in self.listed.items()])
        return tuple(map(Point, itertools.product(*axes)))

    def _axis(self, key: str) -> list[Choice]:
        values = self.grid[key]
        if isinstance(values, dict):
            return [Choice(key, name, name, {key: value}) for name, value in values.items()]
        return [Choice(key, label, f"{key}={label}", {key: value}) for value in values for label in [_label(value)]]


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


def load_spec(source: str, over: Sequence[str] = (), seeds: Sequence[int] = ()) -> SweepSpec:
    """A sweep from a sweep file, or of a method or configuration.

    Args:
        source: a method's name, a configuration file, or a file with the keys of `SweepSpec`.
        over: ``dotted.key=value,value,…``: further axes; they replace a file's axis of the same key.
        seeds: instead of the file's.

    Raises:
        InputError, ConfigErrors: there is no such method or file, the sweep is invalid, or it varies nothing.
    """
    raw: dict[str, Any] = {"base": source}
    folder = Path.cwd()
    if source.endswith((".yaml", ".yml")):
        found = read_yaml(source)
        if "base" in found or not {"method", "data"} & set(found):
            raw, folder = found, Path(source).absolute().parent
            if isinstance(found.get("base"), str) and found["base"].endswith((".yaml", ".yml")):
                raw["base"] = str(Path(source).parent / found["base"])
    grid = raw.get("grid") or {}
    axes: dict[str, Any] = {}
    for text in over:
        key, values = _axis_of(text)
        if key in axes:
            raise ConfigError(
                "--over", text, "each key once", f"write all values of {key} after one another, separated by commas"
            )
        axes[key] = values
    if axes:
        raw["grid"] = {**grid, **axes} if isinstance(grid, Mapping) else grid
    if seeds:
        raw["seeds"] = list(seeds)
    spec = parse(SweepSpec, raw).of(folder, axes)
    if not spec.axes and len(spec.seeds) < 2:
        raise ConfigError("--over", UNSET, "a key to vary", "e.g. --over training.lr=0.01,0.1 or --seeds 0,1,2")
    return spec


def sweep(
    spec: SweepSpec,
    folder: Path,
    *,
    metrics: Sequence[str] = (),
    overrides: Sequence[str] = (),
    quiet: bool = False,
    keep_going: bool = False,
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
        command: how to repeat it, recorded in every run.
        announce: called with a line when a run starts and when it ends.

    Raises:
        InputError, ConfigErrors: a configuration is wrong (then nothing was run), or the first run has no such metric.
        Exception: whatever a run raises, unless `keep_going`.
    """
    _refuse_overridden(spec, overrides)
    base = _base(spec, folder, overrides, quiet)
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
            keep_going=keep_going,
            command=command,
            announce=announce,
            inspect=partial(_refuse_unknown_metrics, metrics=metrics),
        )
    finally:
        done.write()
    return done


def _base(spec: SweepSpec, folder: Path, overrides: Sequence[str], quiet: bool) -> dict[str, Any]:
    """The raw configuration of all runs. Unless it names a cache, it is a new one, without results of older code."""
    raw = bare(configure(spec.base).model_dump(mode="json")) if isinstance(spec.base, str) else spec.placed(spec.base)
    raw = with_own_cache(raw, folder)
    if quiet and raw["tracking"].get("console", "auto") == "auto":
        raw = with_dotted(raw, {"tracking.console": "quiet"})
    return placed(apply_overrides(raw, overrides), lambda key: Path.cwd())


def _refuse_overridden(spec: SweepSpec, overrides: Sequence[str]) -> None:
    """Refuse a change of the base that the sweep itself would replace."""
    varied = [*spec.grid, *_PLACED.keys() - (set() if spec.seeds else {"seed"})]
    for override in overrides:
        key = override.partition("=")[0].strip()
        if any(key == other or _below(other, key) for other in varied):
            raise ConfigError("--set", override, "keys that the sweep does not vary itself", "see --over and --folder")


def _refuse_unknown_metrics(run: Run, metrics: Sequence[str]) -> None:
    known = known_metrics(run.history.evaluations)
    for metric in metrics:
        if known and metric not in known:
            expected = f"a metric of the runs: {', '.join(known)} ({run.path})"
            raise ConfigError("--metric", metric, expected, did_you_mean(metric, known))


def _axis_of(text: str) -> tuple[str, list[Any]]:
    key, separator, values = text.partition("=")
    try:
        found = load_yaml(f"[{values}]")
    except ValueError as error:
        raise ConfigError("--over", text, "values as YAML, separated by commas", str(error)) from None
    if not separator or not key.strip() or not found:
        raise ConfigError("--over", text, "dotted.key=value,value,…", "e.g. --over training.lr=0.01,0.1")
    return key.strip(), found


def _label(value: Any) -> str:
    """A value in short: ``0.1``, ``fedprox(mu=0.1)``, ``[3, 4]``."""
    if isinstance(value, Mapping):
        parts = ", ".join(f"{key}={_label(inner)}" for key, inner in value.items() if key != "name")
        name = str(value.get("name", ""))
        return f"{name}({parts})" if parts or not name else name
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_label, value))}]"
    return value if isinstance(value, str) else dump_yaml(value).removesuffix("...\n").strip()


def _below(upper: str, key: str) -> bool:
    return key.startswith(f"{upper}.")
