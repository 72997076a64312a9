"""All errors that a user can meet. They name the key and its value, and say what was expected and what to do."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Final


class Unset(Enum):
    """The value in an error if no value was given."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


class FedLabError(Exception):
    """Base of all errors FedLab raises on purpose; the CLI prints them without a traceback."""

    in_run = False
    """Whether a run had begun when it happened. What is wrong with the input is found before that."""


class InputError(FedLabError):
    """A value the user gave cannot be used.

    Args:
        key: dotted name of the offending setting, file or argument (``data.partition.1.alpha``).
        value: what was found there; `UNSET` where nothing was given.
        expected: what would have been accepted.
        fix: one sentence, what to do about it.
    """

    def __init__(self, key: str, value: object, expected: str, fix: str = "") -> None:
        self.key, self.value, self.expected, self.fix = key, value, expected, fix
        if value is UNSET:
            super().__init__("; ".join(filter(None, [f"{key}: {expected}", fix])))
            return
        lines = [f"{key} = {_short(value)}", f"  expected: {expected}"]
        if fix:
            lines.append(f"  to do:    {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type, tuple[str, object, str, str]]:
        return type(self), (self.key, self.value, self.expected, self.fix)


class ConfigError(InputError):
    """The configuration is wrong."""


class NoClientError(ConfigError):
    """This node is no client of the run: its site is not listed, or its number is not one of the clients'."""


class DataError(InputError):
    """The data is missing, unreadable or cannot be used as asked."""


class CheckpointError(InputError):
    """A checkpoint or run folder is missing, incomplete or of another kind."""


class MachineError(InputError):
    """The configuration asks for something that this machine does not have."""


class NotEvaluatedError(FedLabError, KeyError):
    """A run has no evaluation, and its metrics were asked for."""

    def __str__(self) -> str:  # a KeyError's own is the repr of its message
        return str(self.args[0])


class DiskFullError(FedLabError):
    """A disk is full.

    Args:
        folder: the folder that was to be written to.
        fix: one sentence, what to do about it.
    """

    def __init__(self, folder: object, fix: str = "free some room and try again") -> None:
        self.folder, self.fix = folder, fix
        super().__init__(f"the disk is full: nothing more can be written to {folder}\n  to do:    {fix}")

    def __reduce__(self) -> tuple[type, tuple[object, str]]:
        return type(self), (self.folder, self.fix)


class ConfigErrors(FedLabError):
    """Several configuration errors found in one pass.

    Args:
        errors: the single errors, in the order of the file.
    """

    def __init__(self, errors: list[InputError]) -> None:
        self.errors = errors
        super().__init__("\n".join(str(error) for error in errors))

    def __reduce__(self) -> tuple[type, tuple[list[InputError]]]:
        return type(self), (self.errors,)


class Mistakes:
    """Collects errors about the user's input, so that all of them can be raised at once.

    Attributes:
        errors: those that were found so far, in their order.
    """

    def __init__(self) -> None:
        self.errors: list[InputError] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """A context that ends at the first error about the user's input inside, which is collected."""
        try:
            yield
        except ConfigErrors as several:
            self.errors += several.errors
        except InputError as error:
            self.errors.append(error)

    def settle(self) -> None:
        """Raise what was collected.

        Raises:
            ConfigErrors: all errors, if there are any.
        """
        if self.errors:
            raise ConfigErrors(self.errors)


class ClientError(FedLabError):
    """Work on one client failed.

    Args:
        client: FedLab client id, or -1 where the engine no longer knows it.
        round: federated round, 0 before the first.
        phase: ``prepare``, ``train`` or ``evaluate``.
        reason: the client's own traceback or the engine's explanation.
        name: the client's name, in a deployment.
    """

    def __init__(self, client: int, round: int, phase: str, reason: str, name: str = "") -> None:
        self.client, self.round, self.phase, self.reason, self.name = client, round, phase, reason, name
        who = f" ({name})" if name else ""
        super().__init__(f"client {client} failed in round {round}, phase {phase}{who}:\n{reason}")

    def __reduce__(self) -> tuple[type, tuple[int, int, str, str, str]]:
        return type(self), (self.client, self.round, self.phase, self.reason, self.name)


class CallbackError(FedLabError):
    """A hook of a callback failed.

    Args:
        name: the callback's class and configuration key.
        hook: the hook.
        when: in which round, in words.
        reason: the callback's own traceback.
    """

    def __init__(self, name: str, hook: str, when: str, reason: str) -> None:
        self.name, self.hook, self.when, self.reason = name, hook, when, reason
        super().__init__(f"the callback {name} failed in {hook}() {when}:\n{reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str, str]]:
        return type(self), (self.name, self.hook, self.when, self.reason)


class RefusedError(FedLabError):
    """Nodes of a deployment cannot take part in a run.

    Args:
        refusals: what each of them says, as text.
        fix: what to do about it.
    """

    def __init__(self, refusals: Sequence[str], fix: str) -> None:
        self.refusals, self.fix = tuple(refusals), fix
        who = "1 node" if len(self.refusals) == 1 else f"{len(self.refusals)} nodes"
        super().__init__("\n".join([f"{who} cannot take part in the run:", *self.refusals, f"  to do:    {fix}"]))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...], str]]:
        return type(self), (self.refusals, self.fix)


class RunFailedError(FedLabError):
    """A run of a study failed in a process of its own.

    Args:
        run: the run, in words.
        reason: why it failed.
    """

    def __init__(self, run: str, reason: str) -> None:
        self.run, self.reason = run, reason
        super().__init__(f"{run} failed: {reason}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.run, self.reason)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest known words, or the whole list where none is close."""
    choices = sorted(set(known))
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "known: " + ", ".join(choices) if choices else ""


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 120
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = 8


def _short(value: object, limit: int = 120) -> str:
    """At most `limit` characters, however large, deep or endless the value is."""
    try:
        text = _BRIEF.repr(value)
    except ValueError:  # Python refuses to write out integers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= limit else text[: limit - 1] + "…"
