"""Searches: Optuna chooses the points of a sweep, to improve a metric on the clients' validation samples.

The choices depend on nothing but the sweep, its seed and what the runs have come to. A search that goes on therefore
asks all its questions again, finds the runs that are done, and makes the same choices as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedlab.config import Config, parse
from fedlab.errors import UNSET, ConfigError, ConfigErrors, FedLabError, did_you_mean
from fedlab.experiment.result import Run
from fedlab.metrics.direction import best_of
from fedlab.report.values import is_number, metric_names, metric_phrase, metric_value
from fedlab.storage.runfolder import why_unwritable
from fedlab.studies.found import JOURNAL, Found, Trial
from fedlab.studies.optuna_study import FIRST, Past, Question, Study, check_optuna
from fedlab.studies.plan import RunPlan
from fedlab.studies.queue import RunQueue
from fedlab.studies.spec import Choice, Point, SweepSpec, base_of

Announce = Callable[[str], None]


def search(
    spec: SweepSpec,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    quiet: bool = False,
    jobs: int | None = 1,
    command: str | None = None,
    announce: Announce = lambda text: None,
) -> Found:
    """Let Optuna choose points of a sweep, and write what was found, even if the search is interrupted.

    The first ten trials are drawn at random, independently of each other. Later ones are chosen by Optuna's TPE
    sampler, as many at a time as `jobs` says when the search begins, or one at a time if `jobs` is None. That number is
    recorded and stays, because the choices depend on it. A trial whose run fails is counted and not repeated.

    Args:
        spec: the sweep; ``spec.trials`` says how many trials there are to be, with those of earlier calls.
        folder: where runs, their shared cache, the journal of Optuna, tables and the picture go.
        overrides: ``dotted.key=value`` strings that change the base.
        quiet: whether the runs show no progress, unless the base or an override asks for it.
        jobs: how many runs to make at the same time, see `fedlab.studies.queue.RunQueue.run`.
        command: how to repeat it, recorded in every run.
        announce: called with a line when a run starts or ends, and with the value of every trial.

    Raises:
        InputError, ConfigErrors: something is wrong with the sweep or the machine (then nothing was run), or the runs
            have no such objective.
        FedLabError: all of the first trials failed.
    """
    check_optuna()
    base = base_of(spec, folder, overrides, quiet)
    corners = _corners(spec)
    seeds = spec.seeds or (parse(Config, spec.placed(base, corners[0].changes)).seed,)
    if problem := why_unwritable(folder):
        raise ConfigError("--folder", str(folder), "a folder that can be written to", problem)
    _check(spec, base, corners, seeds, folder)
    identity = _identity(spec, base, seeds)
    past = Past.read(folder / JOURNAL, identity)
    together = past.together or jobs or 1
    maker = _Maker(spec, base, seeds, folder, past, jobs, command, announce)
    study = Study(maker.space, maximize=best_of(spec.objective) is max, seed=spec.search_seed)
    found = Found(spec, seeds, folder)
    folder.mkdir(parents=True, exist_ok=True)
    total = max(spec.trials or 0, past.trials)
    try:
        while (number := len(found.trials)) < total:
            size = FIRST if number < FIRST else together
            trials = maker.make([study.ask() for _ in range(min(size, total - number))], found.trials)
            for trial in trials:
                study.tell(trial.number, trial.spread.mean, trial.why)
                found.trials.append(trial)
                announce(_told(found, trial))
            study.write(folder / JOURNAL, identity, together)
            if not number and all(trial.why for trial in trials):
                raise FedLabError(f"all of the first {len(trials)} trials failed; trial 0: {trials[0].why}")
    finally:
        found.write()
    return found


class _Maker:
    """Makes the runs of trials.

    Args:
        spec: the sweep.
        base: the raw configuration of all runs.
        seeds: seeds of every trial.
        folder: the folder of the search.
        past: what earlier calls came to.
        jobs: how many runs to make at the same time.
        command: how to repeat it.
        announce: called with lines.
    """

    def __init__(
        self,
        spec: SweepSpec,
        base: Mapping[str, Any],
        seeds: Sequence[int],
        folder: Path,
        past: Past,
        jobs: int | None,
        command: str | None,
        announce: Announce,
    ) -> None:
        self._spec, self._base, self._seeds, self._folder = spec, base, seeds, folder
        self._past, self._jobs, self._command, self._announce = past, jobs, command, announce
        self._choices = {axis: {c.label: c for c in spec.axis(axis)} for axis in spec.axes if axis not in spec.ranges}
        self.space = {axis: spec.ranges.get(axis) or [*self._choices[axis]] for axis in spec.axes}

    def make(self, questions: Sequence[Question], before: Sequence[Trial]) -> list[Trial]:
        """Make the runs of some trials.

        Args:
            questions: the trials that are asked for.
            before: all earlier trials. What has been tried is not made again.
        """
        first = {_same(trial.point): trial.number for trial in reversed(before)}
        asked: dict[int, Point] = {}
        failed: dict[int, str] = {}
        for question in questions:
            point = asked[question.number] = self._point(question)
            first.setdefault(_same(point), question.number)
            if (why := self._past.why(question)) is not None:
                failed[question.number] = why
        new = {
            number: point for number, point in asked.items() if first[_same(point)] == number and number not in failed
        }
        for number, point in new.items():
            self._announce(f"trial {number}: {point.name}")
        plan, refused = self._plan(new)
        failed |= refused
        queue = RunQueue(plan)
        inspect = partial(_refuse_unknown_objective, objective=self._spec.objective)
        queue.run(jobs=self._jobs, keep_going=True, command=self._command, announce=self._announce, inspect=inspect)
        known = {trial.number: trial for trial in before}
        for number, point in asked.items():
            origin = first[_same(point)]
            if origin != number:
                one = known[origin]
                known[number] = Trial(number, point, one.values, one.runs, one.why, same=origin)
            elif number in failed:
                known[number] = Trial(number, point, why=failed[number])
            else:
                known[number] = self._trial(number, point, queue)
        return [known[number] for number in asked]

    def _trial(self, number: int, point: Point, queue: RunQueue) -> Trial:
        """A trial whose runs have been made."""
        name = _name(number)
        runs = queue.results.get(name, {})
        values: dict[int, Any] = {seed: validated(run).get(self._spec.objective) for seed, run in runs.items()}
        good = {seed: float(value) for seed, value in values.items() if is_number(value)}
        whys = [queue.failures[name, seed] for seed in self._seeds if (name, seed) in queue.failures]
        lacking = [seed for seed in values if seed not in good]
        if lacking and not whys:
            whys = [f"no finite validation {metric_phrase(self._spec.objective)} with seed {lacking[0]}"]
        return Trial(number, point, good, runs, whys[0] if whys else "")

    def _plan(self, points: Mapping[int, Point]) -> tuple[RunPlan, dict[int, str]]:
        """A plan of the runs of these trials, and why others of them cannot be run, by number."""

        def planned(some: Mapping[int, Point]) -> RunPlan:
            raw = {_name(n): partial(self._spec.placed, self._base, point.changes) for n, point in some.items()}
            return RunPlan.make(raw, self._seeds, self._folder, kind="trial")

        try:
            return planned(points), {}
        except ConfigErrors:
            made, refused = list[RunPlan](), dict[int, str]()
        for number, point in points.items():  # values that do not go together, which a search may well try
            try:
                made.append(planned({number: point}))
            except ConfigErrors as error:
                refused[number] = str(error)
        configs = {key: config for plan in made for key, config in plan.configs.items()}
        data = {key: facts for plan in made for key, facts in plan.data.items()}
        return RunPlan(configs, data, self._folder), refused

    def _point(self, question: Question) -> Point:
        return Point(
            tuple(
                self._choices[axis][str(value)] if axis in self._choices else _number(axis, value)
                for axis, value in question.values.items()
            )
        )


def validated(run: Run) -> Mapping[str, Any]:
    """The metrics of a run's last evaluation on validation samples: means over the clients; empty if there are none."""
    found: Mapping[str, Any] = (run.history.evaluations or [{}])[-1].get("validation") or {}
    return found


def _number(axis: str, value: Any) -> Choice:
    """A number of a range, of which four digits are shown."""
    label = f"{value:.4g}" if isinstance(value, float) else str(value)
    return Choice(axis, label, f"{axis}={label}", {axis: value})


def _same(point: Point) -> str:
    """Equal for points that stand for the same configuration."""
    return repr(sorted(point.changes.items()))


def _name(number: int) -> str:
    return f"trial {number}"


def _told(found: Found, trial: Trial) -> str:
    """The outcome of a trial in a line."""
    metric, best = found.spec.objective, found.best
    if trial.why:
        return f"{trial.name} failed: {trial.why.splitlines()[0]}"
    value = f"{trial.name}: validation {metric_phrase(metric)} {metric_value(metric, trial.spread.mean)}"
    if best is None or best is trial:
        return f"{value}, the best so far"
    return f"{value}; best so far: {best.name}, {metric_value(metric, best.spread.mean)}"


def _corners(spec: SweepSpec) -> list[Point]:
    """Points in which every choice and every end of a range occurs."""
    axes = [
        [_number(key, spec.ranges[key].low), _number(key, spec.ranges[key].high)]
        if key in spec.ranges
        else spec.axis(key)
        for key in spec.axes
    ]
    return [Point(tuple(axis[min(n, len(axis) - 1)] for axis in axes)) for n in range(max(map(len, axes)))]


def _check(
    spec: SweepSpec, base: Mapping[str, Any], corners: Sequence[Point], seeds: Sequence[int], folder: Path
) -> None:
    """Check a search before anything runs: its objective, validation samples, and every value of every axis.

    Raises:
        ConfigError, ConfigErrors: something is wrong.
    """
    if best_of(spec.objective) is None:
        fix = "e.g. --objective accuracy or --objective loss"
        raise ConfigError(
            "--objective", spec.objective, "a metric whose name tells whether more or less is better", fix
        )
    points = {point.name: partial(spec.placed, base, point.changes) for point in corners}
    plan = RunPlan.make(points, seeds[:1], folder)
    if any(config.data.validation is None for config in plan.configs.values()):
        raise ConfigError(
            "data.validation",
            UNSET,
            "the share of each client's training samples on which trials are compared, because a search must not see "
            "test samples",
            "add --set data.validation=0.2, or the key to the configuration",
        )


def _identity(spec: SweepSpec, base: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """All that the choices and values of a search depend on, apart from the data."""
    told = spec.model_dump(mode="json", include={"grid", "listed", "objective", "search_seed"})
    return {
        "base": {key: value for key, value in base.items() if key not in ("engine", "tracking", "modules")},
        "grid": told["grid"],
        "list": told["listed"],
        "seeds": [*seeds],
        "objective": told["objective"],
        "search_seed": told["search_seed"],
    }


def _refuse_unknown_objective(run: Run, objective: str) -> None:
    if not validated(run):
        raise FedLabError(
            f"a run without metrics on validation samples: {run.path}\n"
            "  to do:    set evaluation.validation: true, and choose a method that evaluates on its clients"
        )
    known = metric_names([validated(run)])
    if known and objective not in known:
        expected = f"a metric of the clients' validation samples: {', '.join(known)} ({run.path})"
        raise ConfigError("--objective", objective, expected, did_you_mean(objective, known))
