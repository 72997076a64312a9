"""Imports the two components of a Flower app, in the driver and in every worker."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import PARTITION_ID_KEY
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app

from fedlab.errors import ConfigError, FedLabError
from fedlab.flowerapp.project import Project
from fedlab.seeding import Purpose, global_generators

C = TypeVar("C", ServerApp, ClientApp)


class FlowerAppError(FedLabError):
    """The code of a Flower app has failed.

    Args:
        what: what it was doing, as a clause.
        details: its traceback.
    """

    def __init__(self, what: str, details: str) -> None:
        self.what, self.details = what, details
        super().__init__(f"the Flower app failed, {what}:\n{details}")

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.what, self.details)

    @classmethod
    def of(cls, what: str, error: BaseException, folder: Path) -> FlowerAppError:
        """From what the app's code has raised; the traceback begins with the first line that is of the app.

        Args:
            what: what it was doing, as a clause.
            error: what it has raised.
            folder: of the app.
        """
        trace = _trace_in(error, folder) or error.__traceback__
        return cls(what, "".join(traceback.format_exception(type(error), error, trace)).rstrip())


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules in `folder` be imported inside the block, and forget them afterwards.

    Another app in the same process may have modules of the same names, such as ``client_app``.

    Args:
        folder: of the app.
    """
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and Path(file).is_relative_to(folder):
                del sys.modules[name]


def load_components(project: Project) -> tuple[ServerApp, ClientApp]:
    """Import both components of an app, whose folder must be `importable`.

    Args:
        project: the app.

    Raises:
        ConfigError: a module, a package that it needs or an attribute is missing, or an attribute is something else.
        FlowerAppError: a module raises an exception while it is imported.
    """
    server = _load(project, project.serverapp, ServerApp, "serverapp")
    return server, _load(project, project.clientapp, ClientApp, "clientapp")


def _load(project: Project, reference: str, kind: type[C], name: str) -> C:
    key, module = f"tool.flwr.app.components.{name}", reference.partition(":")[0]
    try:
        found = load_app(reference, AttributeError, project.folder)
    except (Exception, SystemExit) as error:  # whatever the app's modules do while they are imported
        raise _explained(error, key, reference, project.folder) from error
    if not isinstance(found, kind):
        raise ConfigError(key, reference, f"a {kind.__name__} of Flower", f"it is a {type(found).__name__}")
    file = getattr(sys.modules[module], "__file__", None)
    own = project.folder.joinpath(*module.split("."))
    if (own.is_dir() or own.with_suffix(".py").is_file()) and not Path(file or "").is_relative_to(project.folder):
        fix = f"{file} has the same name and hides it: rename the app's module"
        raise ConfigError(key, reference, f"the module in {project.folder}", fix)
    return found


def _explained(error: BaseException, key: str, reference: str, folder: Path) -> FedLabError:
    module, inside = reference.partition(":")[0], _trace_in(error, folder) is not None
    if isinstance(error, AttributeError) and not inside:
        return ConfigError(key, reference, f"an attribute of the module {module}", "there is none of that name")
    if isinstance(error, ModuleNotFoundError):
        missing = str(error.name)
        if not inside:
            return ConfigError(key, reference, "a module of the app, or one that is installed", f"no module {missing}")
        if missing.partition(".")[0] != module.partition(".")[0]:
            fix = f"its code imports {missing}: install the package that provides it"
            return ConfigError(key, reference, "an app whose dependencies are installed here", fix)
    return FlowerAppError.of(f"importing {module}", error, folder)


def _trace_in(error: BaseException, folder: Path) -> TracebackType | None:
    """The traceback of an error from the first line that is of the app; None if no line is."""
    trace = error.__traceback__
    while trace is not None and not Path(trace.tb_frame.f_code.co_filename).is_relative_to(folder):
        trace = trace.tb_next
    return trace


@dataclass(frozen=True)
class ClientAppLoader:
    """Makes the client app in a worker; see `fedlab.engine.Simulation`.

    Args:
        folder: of the app.
        reference: of its ClientApp.
        seed: of the run.
    """

    folder: str
    reference: str
    seed: int

    def __call__(self) -> ClientApp:
        with seeded(self.seed, "import"):
            found: ClientApp = load_app(self.reference, AttributeError, self.folder)
        return SeededApp(found, self.seed)


class SeededApp(ClientApp):
    """A client app before each of whose messages the global generators are seeded.

    What a client draws then depends on the run's seed, the client, the type of the message and its round, not on the
    worker or on what ran there before.

    Args:
        app: the client app.
        seed: of the run.
    """

    def __init__(self, app: ClientApp, seed: int) -> None:
        super().__init__()
        self._app, self._seed = app, seed

    def __call__(self, message: Message, context: Context) -> Message:
        number = round_of(message)
        when: Purpose = f"message {message.metadata.message_id}" if number is None else number
        client = str(context.node_config.get(PARTITION_ID_KEY, context.node_id))
        with seeded(self._seed, "client", client, message.metadata.message_type, when):
            return self._app(message, context)


def seeded(seed: int, *purpose: Purpose) -> AbstractContextManager[None]:
    """A context in which the global generators of Python, NumPy and torch are seeded for a purpose of an app."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the app chooses its device itself
    return global_generators(seed, "flower app", *purpose, device=device)


def round_of(message: Message) -> int | None:
    """The round of a message, as Flower's strategies write it into their messages; None if it is not there."""
    for record in message.content.values():
        if isinstance(record, ConfigRecord) and type(number := record.get("server-round")) is int:
            return number
    group = message.metadata.group_id
    return int(group) if group.isascii() and group.isdecimal() else None
