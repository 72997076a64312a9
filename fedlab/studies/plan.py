"""Plans many runs, all of which are checked beforehand, and makes one of them; a finished one is not repeated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from fedlab.config import Config, set_dotted
from fedlab.config.recorded import check_unchanged
from fedlab.config.yamltree import unshared
from fedlab.data.sources import load_source
from fedlab.errors import CheckpointError, ConfigErrors, FedLabError, InputError
from fedlab.experiment.checks import check_data, check_population, resolve
from fedlab.experiment.components import complete
from fedlab.experiment.result import Run, load
from fedlab.experiment.start import configure, resume, run
from fedlab.report.record import run_status
from fedlab.storage.checkpoint import latest_checkpoint
from fedlab.storage.names import file_name
from fedlab.storage.unusable import warn_once
from fedlab.storage.weights import check_weights

Results = Mapping[str, Mapping[int, Run]]  # by point and seed
Key = tuple[str, int]


class Registered(NamedTuple):
    """Facts about the data of a configuration: its clients, which of them never train, and a hash of the samples.

    Args:
        clients: registered clients.
        unseen: clients that never train.
        fingerprint: hash of the samples.
        seed: seed of the run with which the samples were loaded.
    """

    clients: int
    unseen: frozenset[int]
    fingerprint: str
    seed: int

    def same(self, recorded: str, config: Config) -> bool:
        """Whether the present data is what a run recorded; the data of a source may depend on the run's seed."""
        if recorded == self.fingerprint or config.seed == self.seed:
            return recorded == self.fingerprint
        return recorded == load_source(config.data.source, config.seed).fingerprint


@dataclass(frozen=True)
class RunPlan:
    """Runs to be made.

    Args:
        configs: by point and seed, in the order in which they run.
        data: facts about their present data, by point and seed.
        folder: the folder of the study, below which the runs lie.
    """

    configs: Mapping[Key, Config]
    data: Mapping[Key, Registered] = field(default_factory=dict)
    folder: Path = Path()

    @cached_property
    def place(self) -> Mapping[Key, int]:
        """Positions of the runs, from 0, in the order in which they run."""
        return {key: place for place, key in enumerate(self.configs)}

    @classmethod
    def make(
        cls,
        points: Mapping[str, Callable[[], Mapping[str, Any]]],
        seeds: Sequence[int],
        folder: Path,
        *,
        kind: str = "point",
        only: Mapping[str, Sequence[int]] | None = None,
    ) -> RunPlan:
        """A plan of every point with every seed, for which components, machine, data and partition are checked.

        Args:
            points: functions that make the raw configuration, by name; they may raise ConfigErrors.
            seeds: seeds in the order of the outer loop, so that all points can be compared early.
            folder: the folder for the runs, with one folder for each point.
            kind: name of a point in error messages.
            only: seeds of the points that do not run with all seeds.

        Raises:
            ConfigErrors: everything that is wrong with any point.
        """
        configs: dict[Key, Config] = {}
        data: dict[Key, Registered] = {}
        problems: dict[str, tuple[InputError, dict[str, None]]] = {}
        tried: dict[str, Registered | InputError] = {}
        for seed in seeds:
            for name, raw in points.items():
                if seed not in (only or {}).get(name, seeds):
                    continue
                try:
                    configs[name, seed] = config = _placed(raw(), folder / "runs" / folder_name(name), seed)
                    data[name, seed] = _check(config, tried)
                except (ConfigErrors, InputError) as error:
                    for single in error.errors if isinstance(error, ConfigErrors) else [error]:
                        problems.setdefault(str(single), (single, {}))[1][name] = None
        if problems:
            raise ConfigErrors([_attributed(e, list(names), len(points), kind) for e, names in problems.values()])
        return cls(configs, data, folder)


def finished(config: Config, data: Registered | None = None) -> Run | None:
    """The newest completed run of an equal configuration in the run's folder.

    Args:
        config: the configuration.
        data: facts about the present data; a run that recorded other data does not count.
    """
    return next((run for run in filter(_complete, _equal(config)) if _alike(run, config, data)), None)


def _alike(run: Run, config: Config, data: Registered | None) -> bool:
    recorded = run.data.get("fingerprint")
    return data is None or recorded is None or data.same(recorded, config)


def _equal(config: Config) -> Iterator[Run]:
    """Runs of an equal configuration in the run's folder, the newest first."""
    for path in sorted(Path(config.tracking.folder).glob("*/config.yaml"), reverse=True):
        try:
            found = load(path.parent)
            check_unchanged(found.folder)
        except FedLabError as error:
            warn_once(f"a run folder is not looked at, {path.parent}: {error}")
            continue
        # what `auto` found out is what the run's own configuration says
        alike = config.engine.vectorize in ("auto", found.config.engine.vectorize)
        if alike and _essence(found.config) == _essence(config):
            yield found


def made(config: Config, command: str | None, announce: Callable[[str], None]) -> Run:
    """Make the run; an interrupted one continues from its last checkpoint, with exactly the same result."""
    where = {
        f"{part}.{key}": value
        for part, section in (("engine", config.engine), ("tracking", config.tracking))
        for key, value in section.model_dump(mode="json", exclude={"folder", "name", "vectorize"}).items()
    }
    for begun in _equal(config):
        round = _reached(begun)
        if not 0 < round < config.federation.rounds:
            continue
        try:
            announce(f"continuing after round {round}: {begun.path}")
            return resume(begun.path, overrides=[f"{k}={json.dumps(v)}" for k, v in where.items()], command=command)
        except CheckpointError as error:  # its data has changed, or another process is at it
            announce(f"begun anew: {error}")
    return run(config, command=command)


def _reached(run: Run) -> int:
    """The round of its last complete checkpoint, 0 where there is none."""
    found = latest_checkpoint(run.folder.checkpoints)
    return int(found.name.removeprefix("round_")) if found is not None else 0


def _complete(run: Run) -> bool:
    """Whether a run did all its rounds, or those until a callback ended it; `until` is recorded as completed, too."""
    whole = run.history.last_round == run.config.federation.rounds or bool(run.history.stopped)
    return run_status(run.history) == "completed" and whole


def with_dotted(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a raw configuration with dotted keys replaced.

    Raises:
        ConfigErrors: a key that leads nowhere.
    """
    changed: dict[str, Any] = unshared(raw)
    for key, value in changes.items():
        set_dotted(changed, key, unshared(value))
    return changed


def with_own_cache(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of a raw configuration whose results are reused within `folder` alone, unless it names a cache itself.

    Raises:
        ConfigErrors: `tracking` is no section.
    """
    tracking = raw.get("tracking")
    if isinstance(tracking, Mapping) and tracking.get("cache") is not None:
        return dict(raw)
    return with_dotted(raw, {"tracking.cache": str(folder / "cache")})


def made_before(points: Mapping[str, Callable[[], Mapping[str, Any]]], seeds: Sequence[int], folder: Path) -> Results:
    """Finished runs of these points in the folder, with equal configurations and the present data; nothing is run.

    Args:
        points: as in `RunPlan.make`.
        seeds: the seeds that count.
        folder: as in `RunPlan.make`.

    Returns:
        Runs by point and seed; a point whose configuration cannot be run any more has none, which is logged.
    """
    found: dict[str, dict[int, Run]] = {name: {} for name in points}
    for name, raw in points.items():
        if not (folder / "runs" / folder_name(name)).is_dir():
            continue
        try:
            plan = RunPlan.make({name: raw}, seeds, folder)
        except ConfigErrors as error:
            warn_once(f"the runs of {name} in {folder} are not looked at: {error}")
            continue
        for key, config in plan.configs.items():
            if (run := finished(config, plan.data.get(key))) is not None:
                found[name][key[1]] = run
    return found


def folder_name(point: str) -> str:
    """A folder's name for a point; distinct points have distinct names."""
    return file_name(point, digest=4)  # by which sweeps of earlier versions are found


def _placed(raw: Mapping[str, Any], folder: Path, seed: int) -> Config:
    # a name of its own would be taken once the second seed starts
    return configure(with_dotted(raw, {"seed": seed, "tracking.folder": str(folder), "tracking.name": None}))


def _check(config: Config, tried: dict[str, Registered | InputError]) -> Registered:
    """Check data and partition once for all points and seeds that share them, because loading can take long."""
    resolved = resolve(config)
    check_weights(config.init)
    data = config.data.model_dump_json()
    if data not in tried:
        try:
            federated = check_data(resolved)
            fingerprint = federated.dataset.fingerprint
            tried[data] = Registered(federated.num_clients, federated.unseen, fingerprint, config.seed)
        except InputError as error:
            tried[data] = error
    seen = tried[data]
    if isinstance(seen, InputError):
        raise seen
    check_population(resolved, seen.clients, seen.unseen)
    return seen


def _attributed(error: InputError, names: Sequence[str], points: int, kind: str) -> InputError:
    """The error with the names of its points; an error of all points is one of the base."""
    if len(names) == points > 1:
        return error
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return type(error)(f"{kind} {names[0]}{more}: {error.key}", error.value, error.expected, error.fix)


def reason(error: Exception) -> str:
    """Why a run failed, with the notes that were added."""
    text = str(error) if isinstance(error, FedLabError) else f"{type(error).__name__}: {error}"
    return "\n".join([text, *getattr(error, "__notes__", [])])


def _essence(config: Config) -> dict[str, Any]:
    """The part of a configuration that results depend on, with all defaults: without engine and tracking."""
    return complete(config).model_dump(mode="json", exclude={"engine", "tracking", "modules"})
