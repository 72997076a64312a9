"""Reference pages that are made from the code: commands, keys of a configuration, components, and the Python API."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import click
import typer.main

import fedlab
import fedlab.blocks
import fedlab.distill
import fedlab.errors
import fedlab.method
from fedlab.cli.catalogue import rows
from fedlab.cli.describe import reference
from fedlab.cli.main import app
from fedlab.config import Config
from fedlab.experiment.components import settings_of
from fedlab.registry import KINDS

_STRATEGIES = (
    "fedlab.server.strategies.average.AveragingStrategy",
    "fedlab.server.strategies.rounds.TrainingRound",
    "fedlab.server.strategies.rounds.Cohort",
    "fedlab.server.strategies.rounds.RoundStrategy",
)
_INTERFACES = {
    "Data sources": ("fedlab.data.sources.Source", "fedlab.data.sources.made.MadeSource"),
    "Steps of a partition": ("fedlab.data.partition.steps.PartitionStep",),
    "Drifts": ("fedlab.data.partition.drift.Drift",),
    "Samplers": ("fedlab.server.participation.samplers.Sampler", "fedlab.server.participation.samplers.Known"),
    "Compressors": ("fedlab.protocol.compression.Compressor",),
    "Probes": ("fedlab.probes.base.Probe", "fedlab.probes.base.MergeableProbe"),
    "Callbacks": ("fedlab.callbacks.Callback", "fedlab.callbacks.CallbackContext"),
    "Trackers": ("fedlab.tracking.trackers.RunTracker", "fedlab.tracking.trackers.TrackedRun"),
    "Sinks of events": ("fedlab.tracking.tracker.Sink", "fedlab.tracking.tracker.Tracker"),
    "History of a run": ("fedlab.tracking.history.History",),
}


def pages() -> dict[str, str]:
    """Every generated page, by its place in the documentation."""
    distill, blocks = (list(_modules(package)) for package in (fedlab.distill, fedlab.blocks))
    return {
        "reference/cli.md": "\n\n".join(["# Command line", *_commands(typer.main.get_command(app), "fedlab")]) + "\n",
        "reference/configuration.md": _configuration(),
        "reference/components.md": "\n\n".join(["# Components", _COMPONENTS, *_components()]) + "\n",
        "reference/fedlab.md": _api("fedlab", _FEDLAB, [f"fedlab.{name}" for name in _functions_first()]),
        "reference/method.md": _api(
            "fedlab.method", _METHOD, [f"fedlab.method.{name}" for name in fedlab.method.__all__]
        ),
        "reference/strategies.md": _api("Strategies", _STRATEGY, _STRATEGIES),
        "reference/interfaces.md": _interfaces(),
        "reference/distill.md": _api("fedlab.distill", _DISTILL, distill),
        "reference/blocks.md": _api("fedlab.blocks", _BLOCKS, blocks),
        "reference/errors.md": _api("Errors", _ERRORS, [f"fedlab.errors.{name}" for name in _errors(fedlab.errors)]),
    }


_FEDLAB = "What `import fedlab` gives. Everything else is imported from the modules of the other pages."
_METHOD = "All that the author of a method needs. [Your own method](../tutorial/own_method.md) shows it in use."
_STRATEGY = (
    "The base class of FedLab's strategies, and what it is told of a round. A strategy of Flower "
    "(`flwr.serverapp.strategy.Strategy`) is used as it is."
)
_DISTILL = "Mathematics that methods share: pure functions and small modules, each with its source."
_BLOCKS = "Parts that several methods share and that know the hooks of a method."
_ERRORS = (
    "The errors that FedLab raises on purpose. They name a key and its value, and say what was expected and what to do."
)
_COMPONENTS = (
    "What a configuration can name, and the settings of each. A component is written as "
    "`{name: dirichlet, clients: 10, alpha: 0.3}`, or as its name alone if its settings have defaults. "
    "`fedlab list` shows the same names, and those of packages that you have installed."
)
_CONFIGURATION = (
    "Every key, with its type, its default and its meaning. `fedlab config show CONFIG --describe` shows the same with "
    "the values of your own configuration. The settings of components, such as `method`, are on "
    "[their own page](components.md)."
)


def _commands(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """A command and those below it."""
    context = click.Context(command, info_name=name, parent=parent)
    yield f"## `{context.command_path}`"
    yield f"```console\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```"
    yield _text(command.help or "")
    yield "\n".join(_parameters(command, context))
    for inner, child in sorted(getattr(command, "commands", {}).items()):
        if not child.hidden:
            yield from _commands(child, inner, context)


def _parameters(command: click.Command, context: click.Context) -> Iterator[str]:
    """A line for each argument and option."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            yield f"- `{record[0]}`: {_text(record[1])}"


def _text(text: str) -> str:
    r"""A help text as Markdown. Its brackets were written as ``\[`` for rich, and angles are no tags."""
    parts = text.replace("\\[", "[").split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("[", "\\[").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)


def _configuration() -> str:
    """Every key of a configuration, by section."""
    parts, section = ["# Configuration", _CONFIGURATION], ""
    for key, kind, default, meaning in reference(Config):
        head = key.partition(".")[0] if "." in key else ""
        if head != section and head in Config.model_fields:
            section = head
            parts.append(f"## `{section}`")
        parts.append(_key(key, kind, default, meaning))
    return "\n\n".join(parts) + "\n"


def _components() -> Iterator[str]:
    """Every component, by its kind."""
    for kind in KINDS:
        yield f"## {kind.plural.capitalize()}: `{kind.key}`"
        for name, about, _ in rows(kind.plural):
            yield f"### `{name}` ({_last(kind.key)})\n\n{_text(about)}"
            settings = settings_of(kind.registry, name)
            if settings is not None:
                yield "\n\n".join(_key(*row) for row in reference(settings))


def _last(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def _key(key: str, kind: str, default: str, meaning: str) -> str:
    """A key with what is known of it."""
    facts = [f"`{kind}`" if kind else "", f"default `{default}`" if default else "", _text(meaning)]
    return f"- `{key}`: " + " · ".join(fact for fact in facts if fact)


def _api(title: str, about: str, names: list[str] | tuple[str, ...]) -> str:
    """A page with the documentation of objects or modules, which mkdocstrings fills in."""
    return "\n\n".join([f"# {title}", about, *(f"::: {name}" for name in names)]) + "\n"


def _interfaces() -> str:
    about = "What components of your own are made of, besides methods and strategies."
    parts = [
        f"## {title}\n\n" + "\n\n".join(f"::: {name}\n    options:\n      heading_level: 3" for name in names)
        for title, names in _INTERFACES.items()
    ]
    return "\n\n".join(["# Other interfaces", about, *parts]) + "\n"


def _functions_first() -> list[str]:
    """The public names; functions come first, because they are what a user calls."""
    return sorted(fedlab.__all__, key=lambda name: (name[0].isupper(), name))


def _modules(package: ModuleType) -> Iterator[str]:
    """The modules of a package by their full names."""
    for module in pkgutil.iter_modules(package.__path__):
        yield f"{package.__name__}.{module.name}"


def _errors(module: ModuleType) -> list[str]:
    """The classes of errors that a module defines, in the order of its file."""
    found = [value for value in vars(module).values() if inspect.isclass(value) and value.__module__ == module.__name__]
    return [value.__name__ for value in found if issubclass(value, Exception)]
