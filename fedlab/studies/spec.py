"""What a sweep varies: a grid, a list of variants and seeds, from a sweep file or from the command line."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from fedlab.config import Section, UnfitValue, apply_overrides, parse, read_yaml
from fedlab.config.walk import within
from fedlab.config.yamltree import dump_yaml, load_yaml
from fedlab.errors import UNSET, ConfigError
from fedlab.experiment.components import bare
from fedlab.experiment.configuration import look_for_modules, placed
from fedlab.experiment.start import configure
from fedlab.studies.plan import with_dotted, with_own_cache
from fedlab.studies.ranges import Range

LIST = "configuration"  # the axis that a file's `list` makes
PLACED = {"seed": "use seeds", "tracking.folder": "each run has its own", "tracking.name": "each run has its own"}
"""Keys that a sweep sets itself, and what to do instead."""
_CALL = re.compile(r"\s*[a-z]+\(.*\)\s*")  # in which a comma does not separate two values


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

    @classmethod
    def of(cls, key: str, value: Any) -> Choice:
        """A value of a key, named by itself."""
        label = _label(value)
        return cls(key, label, f"{key}={label}", {key: value})


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
    """A sweep as described in a YAML file: every value of the grid with every entry of the list and every seed.

    With `trials`, Optuna searches the grid instead, in which an axis may then be a range of numbers.
    """

    base: str | dict[str, Any] = Field(
        description="what all runs share: the name of a method, a YAML file or a configuration"
    )
    grid: dict[str, tuple[Any, ...] | dict[str, Any] | str] = Field(
        default={},
        description="dotted key → its values, as a list or as a mapping of names of your own to values; with `trials` "
        "also a range of numbers, such as log(1e-4, 1e-1)",
    )
    listed: dict[str, dict[str, Any]] = Field(
        default={}, alias="list", description="name of a variant → dotted keys of `base` that it changes"
    )
    seeds: tuple[int, ...] = Field(default=(), description="seeds of the runs; default: the seed of `base`")
    trials: int | None = Field(
        default=None, ge=1, description="number of points that Optuna chooses, instead of all of the grid"
    )
    objective: str = Field(
        default="accuracy", description="metric that Optuna improves, as the mean over the clients' validation samples"
    )
    search_seed: int = Field(default=0, ge=0, description="seed of Optuna's choices")
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _typed: frozenset[str] = PrivateAttr(default=frozenset())

    def of(self, folder: Path, typed: Iterable[str] = ()) -> SweepSpec:
        """The same, with relative paths that start from a folder, but for those of keys that were typed in."""
        self._folder, self._typed = folder, frozenset(typed)
        return self

    @model_validator(mode="after")
    def _sound(self) -> SweepSpec:
        if len(set(self.seeds)) < len(self.seeds):
            raise UnfitValue("seeds", self.seeds, "each seed once")
        for key, values in self.grid.items():
            if key in PLACED:
                raise UnfitValue(f"grid.{key}", values, "a key that runs of a sweep share", PLACED[key])
            if not values:
                raise UnfitValue(f"grid.{key}", values, "at least one value")
            if other := next((other for other in self.grid if below(key, other)), None):
                raise UnfitValue(f"grid.{key}", values, f"this key or {other}, not both: one is part of the other")
            if isinstance(values, str):
                if self.trials is None:
                    raise UnfitValue(f"grid.{key}", values, "a list of values; a range needs trials (--optuna N)")
                try:
                    Range.parse(values)
                except ValueError as error:
                    raise UnfitValue(f"grid.{key}", values, str(error)) from None
                continue
            twice = [label for label, count in Counter(c.label for c in self.axis(key)).items() if count > 1]
            if twice:
                raise UnfitValue(f"grid.{key}", values, f"each value once; {twice[0]} is there twice")
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
        """All combinations of the values of a grid without ranges."""
        return tuple(map(Point, itertools.product(*map(self.axis, self.axes))))

    @property
    def ranges(self) -> dict[str, Range]:
        """The axes that are ranges of numbers."""
        return {key: Range.parse(values) for key, values in self.grid.items() if isinstance(values, str)}

    def axis(self, key: str) -> list[Choice]:
        """The choices of an axis that is no range."""
        if key == LIST and self.listed:
            return [Choice(LIST, name, name, changes) for name, changes in self.listed.items()]
        values = self.grid[key]
        if isinstance(values, dict):
            return [Choice(key, name, name, {key: value}) for name, value in values.items()]
        return [Choice.of(key, value) for value in values]


def load_spec(
    source: str,
    over: Sequence[str] = (),
    seeds: Sequence[int] = (),
    *,
    trials: int | None = None,
    objective: str | None = None,
) -> SweepSpec:
    """A sweep from a sweep file, or of a method or configuration.

    Args:
        source: a method's name, a configuration file, or a file with the keys of `SweepSpec`.
        over: ``dotted.key=value,value,…``, or with trials ``dotted.key=log(low,high)`` and the like: further axes; they
            replace a file's axis of the same key.
        seeds: instead of the file's.
        trials: instead of the file's; makes the sweep a search by Optuna.
        objective: instead of the file's.

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
    raw |= {} if trials is None else {"trials": trials}
    raw |= {} if objective is None else {"objective": objective}
    spec = parse(SweepSpec, raw).of(folder, axes)
    if not spec.axes and (len(spec.seeds) < 2 or spec.trials is not None):
        raise ConfigError("--over", UNSET, "a key to vary", "e.g. --over training.lr=0.01,0.1 or --seeds 0,1,2")
    return spec


def base_of(spec: SweepSpec, folder: Path, overrides: Sequence[str], quiet: bool) -> dict[str, Any]:
    """The raw configuration that all runs of a sweep share.

    Unless it names a cache, it has a new one in `folder`, without results of older code.

    Args:
        spec: the sweep.
        folder: the folder of the sweep.
        overrides: ``dotted.key=value`` strings that change the base.
        quiet: whether the runs show no progress, unless the base or an override asks for it.

    Raises:
        ConfigError, ConfigErrors: the base is wrong, or an override changes what the sweep itself varies.
    """
    varied = [*spec.grid, *PLACED.keys() - (set() if spec.seeds else {"seed"})]
    for override in overrides:
        key = override.partition("=")[0].strip()
        if any(key == other or below(other, key) for other in varied):
            raise ConfigError("--set", override, "keys that the sweep does not vary itself", "see --over and --folder")
    raw = bare(configure(spec.base).model_dump(mode="json")) if isinstance(spec.base, str) else spec.placed(spec.base)
    raw = with_own_cache(raw, folder)
    if quiet and raw["tracking"].get("console", "auto") == "auto":
        raw = with_dotted(raw, {"tracking.console": "quiet"})
    return placed(apply_overrides(raw, overrides), lambda key: Path.cwd())


def below(upper: str, key: str) -> bool:
    """Whether a dotted key leads to a part of what another one, `upper`, names."""
    return key.startswith(f"{upper}.")


def _axis_of(text: str) -> tuple[str, list[Any] | str]:
    key, separator, values = text.partition("=")
    if separator and key.strip() and _CALL.fullmatch(values):
        return key.strip(), values.strip()
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
