"""A study of Optuna whose choices depend on its seed and on earlier answers alone, and its journal on disk."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlab.engine.machine import is_installed
from fedlab.errors import CheckpointError, ConfigError
from fedlab.seeding import derive_seed
from fedlab.studies.ranges import Range

if TYPE_CHECKING:
    import optuna


FIRST = 10
"""Number of trials that are drawn at random, without regard to each other; as many as Optuna's own default."""
_NAME = "fedlab"
_SPACE, _TOGETHER, _WHY = "fedlab:search", "fedlab:together", "fedlab:failed"
Answer = float | int | str


@dataclass(frozen=True)
class Question:
    """One trial that Optuna asks for.

    Args:
        number: of the trial, from 0.
        values: by axis, a number of a range, or the label of a choice.
    """

    number: int
    values: Mapping[str, Answer]


class Study:
    """A study in memory. Whoever asks the same questions and gives the same answers gets the same study.

    Args:
        space: by axis, a range or the labels of its choices.
        maximize: whether larger values are better.
        seed: of all choices.
    """

    def __init__(self, space: Mapping[str, Range | Sequence[str]], *, maximize: bool, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._seed, self._maximize = seed, maximize
        self._space = {
            axis: one.distribution if isinstance(one, Range) else optuna.distributions.CategoricalDistribution([*one])
            for axis, one in space.items()
        }
        self._study = optuna.create_study(direction=self._direction)
        self._asked: dict[int, optuna.Trial] = {}

    @property
    def _direction(self) -> str:
        return "maximize" if self._maximize else "minimize"

    def ask(self) -> Question:
        """The next trial. Those that have been asked for and not answered are taken to be no good."""
        number = len(self._asked)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of Optuna's releases call this use of TPE experimental
            self._study.sampler = self._sampler(number)
            trial = self._study.ask(self._space)
        self._asked[number] = trial
        return Question(number, {axis: trial.params[axis] for axis in self._space})

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A sampler for one trial, so that no state of a sampler has to outlive the process."""
        from optuna.samplers import RandomSampler, TPESampler

        seed = derive_seed(self._seed, "optuna", number) % 2**32
        return RandomSampler(seed) if number < FIRST else TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)

    def tell(self, number: int, value: float | None, why: str = "") -> None:
        """Answer a question.

        Args:
            number: of the trial.
            value: of the objective; None if the trial failed.
            why: why it failed.
        """
        from optuna.trial import TrialState

        trial = self._asked[number]
        if value is None:
            trial.set_user_attr(_WHY, why)
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, value)

    def write(self, path: Path, identity: Mapping[str, Any], together: int) -> None:
        """Write all trials that have been answered as a journal of Optuna, in place of the one that is there.

        Args:
            path: the journal.
            identity: what the search is, for `Past.read`.
            together: how many trials are asked for at a time.
        """
        import optuna

        new = path.with_name(f"{path.name}.new")
        with suppress(FileNotFoundError):
            new.unlink()  # of a process that was killed while it wrote
        study = optuna.create_study(study_name=_NAME, storage=_journal(new), direction=self._direction)
        study.set_user_attr(_SPACE, json.loads(json.dumps(identity)))
        study.set_user_attr(_TOGETHER, together)
        study.add_trials([trial for trial in self._study.trials if trial.state.is_finished()])
        os.replace(new, path)


@dataclass(frozen=True)
class Past:
    """What the journal of a search tells of its earlier trials.

    Args:
        trials: how many there are.
        together: how many trials are asked for at a time; None for a new search.
        failed: by number, the values of trials that failed, and why.
    """

    trials: int = 0
    together: int | None = None
    failed: Mapping[int, tuple[Mapping[str, Answer], str]] | None = None

    @classmethod
    def read(cls, path: Path, identity: Mapping[str, Any]) -> Past:
        """Read a journal, if there is one.

        Args:
            path: the journal.
            identity: what the present search is.

        Raises:
            ConfigError: the journal is of another search.
            CheckpointError: it cannot be read.
        """
        if not path.is_file():
            return cls()
        import optuna

        try:
            study = optuna.load_study(study_name=_NAME, storage=_journal(path))
            then, together = study.user_attrs[_SPACE], int(study.user_attrs[_TOGETHER])
            trials = study.trials
        except Exception as error:  # whatever Optuna raises for lines that it cannot read
            told = f"a journal of Optuna that `fedlab sweep` wrote ({type(error).__name__}: {error})"
            raise CheckpointError("--folder", str(path), told, f"remove {path}; the runs are kept and found") from None
        now = json.loads(json.dumps(identity))
        other = [name for name in now if now[name] != then.get(name)]
        if other:
            raise ConfigError(
                "--folder",
                str(path.parent),
                f"the folder of this search; the one in it was begun with other values of: {', '.join(other)}",
                "choose another --folder, or give the same values again",
            )
        failed = {
            t.number: (dict(t.params), str(t.user_attrs.get(_WHY, "")))
            for t in trials
            if t.state == optuna.trial.TrialState.FAIL
        }
        return cls(len(trials), together, failed)

    def why(self, question: Question) -> str | None:
        """Why this trial failed before; None if it did not."""
        values, reason = (self.failed or {}).get(question.number, ({}, ""))
        return (reason or "it failed before") if values and values == question.values else None


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: it is not.
    """
    if not is_installed("optuna"):
        raise ConfigError("--optuna", "given", "the package optuna", "pip install 'fedlab-sim[optuna]'")


def _journal(path: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # a lock of its own kind: the usual symbolic link cannot be made on every file system
        return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))
