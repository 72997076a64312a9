"""Compares finished and unfinished runs: the differences of their configurations, and their results."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedlab.config import Config, parse
from fedlab.errors import CheckpointError, ConfigError, ConfigErrors, did_you_mean
from fedlab.experiment.components import bare, complete
from fedlab.experiment.result import Run
from fedlab.report.bands import Line, bands_picture
from fedlab.report.compared import LONGEST, Compared, Side
from fedlab.report.grids import to_csv, to_markdown, to_table
from fedlab.report.record import RunRecord, main_metrics
from fedlab.report.spread import Spread, curve, known_metrics, quantities, shown_on
from fedlab.report.values import plural
from fedlab.storage.checkpoint import NETWORK, latest_checkpoint, load_checkpoint
from fedlab.storage.hashing import hash_tensors
from fedlab.storage.runfolder import write_atomic
from fedlab.studies.plan import folder_name
from fedlab.tracking.notebook import picture_html, to_html

_NOT_SET = "not set"
_MOST_COLUMNS = 5
_LABEL = 44  # characters of a name that the picture has room for
_DATA = "data (fingerprint)"


@dataclass(frozen=True)
class RunGroup:
    """Runs on the same data whose configurations differ only in the seed.

    Args:
        name: a letter.
        records: the runs, by seed.
        settings: their configuration by dotted key, without keys that do not affect results.
        defaults: those of the keys that are settings of components, at their defaults.
    """

    name: str
    records: Mapping[int, RunRecord]
    settings: Mapping[str, str]
    defaults: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Comparison:
    """Groups of runs.

    Args:
        groups: in the order of their first runs.
        metrics: metrics that are shown besides bytes and seconds.
    """

    groups: tuple[RunGroup, ...]
    metrics: tuple[str, ...]

    @cached_property
    def differing(self) -> list[str]:
        """Dotted keys whose values differ between groups, except defaults of settings that some groups do not have."""
        keys = dict.fromkeys(key for group in self.groups for key in group.settings)
        return [
            key
            for key in keys
            if len({group.settings.get(key, _NOT_SET) for group in self.groups}) > 1
            and not all(key not in group.settings or key in group.defaults for group in self.groups)
        ]

    def settings(self) -> list[list[str]]:
        """Header and one row per key that differs."""
        rows = [["key", *(group.name for group in self.groups)]]
        return rows + [[key, *(group.settings.get(key, _NOT_SET) for group in self.groups)] for key in self.differing]

    def runs(self) -> list[list[str]]:
        """Header and one row per run: its progress, its folder, and the hash of its last weights."""
        rows = [["", "run", "seed", "status", "rounds", "weights"]]
        for group in self.groups:
            for seed, record in group.records.items():
                rounds = f"{len(record.rounds)} of {record.rounds_planned}"
                status: str = "no end recorded" if record.status == "open" else record.status
                if alarms := record.history.alarms:
                    status = f"{status}, with {plural(len(alarms), 'alarm')}"
                weights = self.weights.get((group.name, seed), "–")
                rows.append([group.name, str(record.folder.path), str(seed), status, rounds, weights[:12]])
        return rows

    def results(self) -> list[list[str]]:
        """Quantities by group, each with the difference from the first group; one row per group if there are many."""
        told = quantities(self.metrics)
        first = [Spread.of(map(quantity.of, self.groups[0].records.values())) for quantity in told]
        rows = [["", "runs", "last evaluation", *(quantity.title for quantity in told), "measured on"]]
        for group in self.groups:
            records = group.records.values()
            spreads = [Spread.of(map(quantity.of, records)) for quantity in told]
            figures = [
                quantity.shown(mine) if group is self.groups[0] else quantity.compared(mine, other)
                for quantity, mine, other in zip(told, spreads, first, strict=True)
            ]
            evaluated = sorted({max(record.evaluations, default=0) for record in records})
            when = " to ".join(f"round {round}" for round in dict.fromkeys((evaluated[0], evaluated[-1])))
            rows.append([group.name, str(len(records)), when, *figures, shown_on(records, self.metrics)])
        return rows if len(self.groups) > _MOST_COLUMNS else [[*column] for column in zip(*rows, strict=True)]

    @cached_property
    def weights(self) -> dict[tuple[str, int], str]:
        """Hash of the networks in the last complete checkpoint, by group and seed."""
        found = {}
        for group in self.groups:
            for seed, record in group.records.items():
                path = latest_checkpoint(record.folder.checkpoints)
                if path is not None:
                    found[group.name, seed] = _weights_hash(path)
        return found

    def equal_weights(self) -> str:
        """Which runs ended with the same weights, in a sentence."""
        same = defaultdict(list)
        for (name, seed), weights in self.weights.items():
            same[weights].append(f"{name} seed {seed}")
        equal = [" = ".join(runs) for runs in same.values() if len(runs) > 1]
        if not equal:
            return "weights of the last checkpoints: no two runs are bitwise equal"
        return f"weights of the last checkpoints: bitwise equal are {'; '.join(equal)}"

    def other_code(self) -> str:
        """Says which runs were made by different versions of the code; "" if all were made by the same."""
        made: dict[str, list[str]] = defaultdict(list)
        for group in self.groups:
            for seed, record in group.records.items():
                made[json.dumps(record.code, sort_keys=True)].append(f"{group.name} seed {seed}")
        if len(made) < 2:
            return ""
        return f"made by different versions of the code: {'; '.join(', '.join(runs) for runs in made.values())}"

    def words(self, group: RunGroup) -> str:
        """The values in which the group differs, or the name of its run if the configurations do not differ."""
        told = ", ".join(f"{short}={group.settings.get(key, _NOT_SET)}" for key, short in self._short_keys.items())
        return told or next(iter(group.records.values())).folder.path.name

    def describe(self, group: RunGroup) -> str:
        """The name of the group and the values in which it differs."""
        return f"{group.name}: {self.words(group)}"

    @cached_property
    def _short_keys(self) -> dict[str, str]:
        """The keys that differ, each with as few of its last parts as tell it from the others.

        A ``name`` is that of what it belongs to: ``model.name`` is ``model``. None begins with a place in a list.
        """
        parts = {key: key.removesuffix(".name").split(".") for key in self.differing}
        found = {}
        for key, words in parts.items():
            tails = (".".join(words[place:]) for place in reversed(range(len(words))) if not words[place].isdecimal())
            others = [".".join(other) for one, other in parts.items() if one != key]
            found[key] = next((t for t in tails if not any(f".{o}".endswith(f".{t}") for o in others)), key)
        return found

    def _telling(self, group: RunGroup) -> str:
        """`words`, or where those of any group are long, the one value that tells all groups apart, if one does."""
        if all(len(self.words(one)) <= LONGEST for one in self.groups):
            return self.words(group)
        for key, short in self._short_keys.items():
            told = {one.name: f"{short}={one.settings.get(key, _NOT_SET)}" for one in self.groups}
            if len(set(told.values())) == len(told) and max(map(len, told.values())) <= LONGEST:
                return told[group.name]
        return ""

    def picture(self, metric: str) -> bytes:
        """Curves and final values as PNG."""
        short = all(len(self.describe(group)) <= _LABEL for group in self.groups)  # else the tables tell
        lines = [
            Line(
                self.describe(g) if short else f"{g.name} {self._telling(g)}".strip(),
                [curve(record, metric) for record in g.records.values()],
            )
            for g in self.groups
        ]
        return bands_picture({"": lines}, metric)

    def to_markdown(self) -> str:
        """All tables."""
        parts = [*to_markdown(self.runs()), "", self.equal_weights(), ""]
        parts += [self.other_code(), ""] if self.other_code() else []
        parts += [*to_markdown(self.settings()), ""] if self.differing else []
        return "\n".join([*parts, *to_markdown(self.results())]) + "\n"

    def _repr_html_(self) -> str:
        """The tables and curves, as a notebook shows them."""
        same = "the configurations do not differ, except in the seed"
        keys = to_table("Keys that differ", self.settings(), left=1 + len(self.groups)) if self.differing else same
        tables = [
            to_table("Runs", self.runs(), left=2),
            keys,
            to_table("Results, with the difference to A", self.results()),
        ]
        curves = (picture_html(self.picture(metric), f"{metric} over the rounds") for metric in self.metrics)
        return to_html([*tables, *filter(None, [self.equal_weights(), self.other_code()])]) + "".join(curves)

    def write(self, folder: Path) -> list[Path]:
        """Write ``compare.md``, ``compare.csv`` and a picture per metric; returns their paths."""
        contents: dict[str, str | bytes] = {"compare.md": self.to_markdown(), "compare.csv": to_csv(self._numbers())}
        contents |= {f"compare-{folder_name(metric)}.png": self.picture(metric) for metric in self.metrics}
        for name, content in contents.items():
            write_atomic(folder / name, content)
        return [folder / name for name in contents]

    def page(self) -> str:
        """An HTML page that needs no other files: tables, curves in common charts, pictures side by side."""
        settings, results = self.settings(), self.results()
        results[0] = ["runs" if len(self.groups) > _MOST_COLUMNS else "result", *results[0][1:]]
        if len(self.groups) > _MOST_COLUMNS:
            settings = [[*column] for column in zip(*settings, strict=True)]
        return Compared(
            [Side(group.name, self._telling(group), group.records) for group in self.groups],
            self.metrics,
            results,
            settings if self.differing else [[""]],
            self.runs(),
            [self.equal_weights(), self.other_code()],
        ).page()

    def write_page(self, path: Path) -> Path:
        """Write `page` into a file, and return its path."""
        write_atomic(path, self.page())
        return path

    def _numbers(self) -> list[list[object]]:
        told = quantities(self.metrics)
        keys = [quantity.key for quantity in told]
        rows: list[list[object]] = [["group", "seed", "status", "rounds", *keys, "measured_on", "weights", "run"]]
        for group in self.groups:
            for seed, record in group.records.items():
                figures = [quantity.of(record) for quantity in told]
                counted = shown_on([record], self.metrics)
                ends = [counted, self.weights.get((group.name, seed)), str(record.folder.path)]
                rows.append([group.name, seed, record.status, len(record.rounds), *figures, *ends])
        return rows


def compare(runs: Sequence[str | Path | Run], metrics: Sequence[str] = ()) -> Comparison:
    """Compare runs, finished or not.

    Args:
        runs: two or more runs, or their folders.
        metrics: metrics to show besides bytes and seconds; default: those that the runs' reports show first.

    Raises:
        CheckpointError: a path is no run folder, or its configuration cannot be read.
        ConfigError: fewer than two runs, or a metric that none of them has.
    """
    paths = [run.path if isinstance(run, Run) else Path(run) for run in runs]
    places = list(dict.fromkeys(path.resolve() for path in paths))
    if len(places) < 2:
        raise ConfigError("RUN", [*map(str, paths)], "two or more different runs", "`fedlab show` shows a single run")
    records = [RunRecord.open(path) for path in dict.fromkeys(paths)]
    for record in records:
        if not record.config:
            raise CheckpointError("run", str(record.folder.path), "a run whose config.yaml can be read")
    known = known_metrics(event for record in records for event in record.evaluations.values())
    for metric in metrics:
        if known and metric not in known:
            expected = f"a metric of the runs: {', '.join(known)}"
            raise ConfigError("--metric", metric, expected, did_you_mean(metric, known))
    shown = tuple(metrics) or main_metrics(record.history for record in records)
    return Comparison(tuple(_grouped(records)), shown)


def _grouped(records: Sequence[RunRecord]) -> Iterator[RunGroup]:
    """Groups of runs with one configuration; a second run with the same seed starts another group."""
    members: dict[tuple[str, int], dict[int, RunRecord]] = {}
    settings: dict[tuple[str, int], dict[str, str]] = {}
    repeated: Counter[tuple[str, int]] = Counter()
    for record in records:
        config = _complete(record.config)
        mine = dict(_flat({k: v for k, v in config.items() if k not in ("seed", "tracking", "modules")}))
        # equal words do not make equal data: a file may have been overwritten between two runs
        mine[_DATA] = str(record.data.get("fingerprint", "not recorded"))
        seed, identity = int(record.config.get("seed", 0)), json.dumps(mine, sort_keys=True)
        key = (identity, repeated[identity, seed])
        repeated[identity, seed] += 1
        members.setdefault(key, {})[seed] = record
        settings[key] = mine
    for index, (key, runs) in enumerate(members.items()):
        chosen = dict(_flat(bare(_complete(next(iter(runs.values())).config))))
        yield RunGroup(_letters(index), runs, settings[key], frozenset(settings[key].keys() - chosen.keys() - {_DATA}))


def _complete(raw: dict[str, Any]) -> dict[str, Any]:
    """A recorded configuration with all defaults, which runs of older versions may not have recorded."""
    try:
        return complete(parse(Config, raw)).model_dump(mode="json")
    except ConfigErrors:
        return raw


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of a configuration."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    if not children or not tree:
        yield prefix, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
    for key, value in children if tree else ():
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _letters(index: int) -> str:
    """A, B, …, Z, AA, AB, …"""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def _weights_hash(checkpoint: Path) -> str:
    """Hash of names, shapes and bytes of the networks' tensors, without the other tensors of a checkpoint."""
    tensors, _ = load_checkpoint(checkpoint)
    return hash_tensors({name: value for name, value in tensors.items() if name.startswith(NETWORK)})
