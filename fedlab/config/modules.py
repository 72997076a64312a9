"""Finds the user's own modules, which a configuration names as ``module:Class``, in every process of a run.

The folders with such modules are appended to Python's own search path. A user's file therefore cannot replace a module
of FedLab or of the standard library. If a file has the same name as a module that is found before it, the error says
so.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedlab.errors import ConfigError

_searched: list[Path] = []
_INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def search(folders: Iterable[str | Path]) -> None:
    """Append folders to Python's search path for modules, in this order.

    Args:
        folders: the folders; those that do not exist are ignored.
    """
    _searched[:] = list(dict.fromkeys(Path(folder).resolve() for folder in folders if Path(folder).is_dir()))
    for folder in _searched:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    importlib.invalidate_caches()


_allowed: ContextVar[tuple[str, ...] | None] = ContextVar("allowed", default=None)


@contextmanager
def only(patterns: Sequence[str] | None) -> Iterator[None]:
    """A context in which a configuration may name only these of all ``module:Class`` there are.

    What is installed as an entry point, and FedLab's own components, can always be named. A node of a deployment
    enters this context for whatever it does for a run, because a run comes from elsewhere and an import executes code.

    Args:
        patterns: each of them ``module:Class``, ``module`` for all that is in a module, ``package.*`` for all in a
            package and below it, or ``*`` for everything; None sets no limits.
    """
    token = _allowed.set(None if patterns is None else tuple(patterns))
    try:
        yield
    finally:
        _allowed.reset(token)


def check_allowed(reference: str, key: str) -> None:
    """Refuse to import what this process may not import.

    Args:
        reference: a ``module:Class`` that a configuration names.
        key: configuration key for the error message.

    Raises:
        ConfigError: no pattern of the surrounding `only` allows it.
    """
    patterns = _allowed.get()
    if patterns is None or any(_matches(pattern, reference) for pattern in patterns):
        return
    raise ConfigError(
        key,
        reference,
        "a component that is installed on this node as an entry point, or one that the node allows: "
        + (", ".join(patterns) or "it allows no others"),
        f"the operator of the node decides; to allow it, write allow: [{reference!r}] into the node's file",
    )


def _matches(pattern: str, reference: str) -> bool:
    module = reference.partition(":")[0]
    if pattern.endswith(".*"):
        package = pattern.removesuffix(".*")
        return module == package or module.startswith(f"{package}.")
    return pattern in ("*", module, reference)


class SearchPath:
    """Calls `search` in the process that unpickles it.

    It is pickled before an object of a user's class, so that the other process finds the class.

    Args:
        folders: the folders to search.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self.folders = tuple(folders)

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrived, (self.folders,)


def _arrived(folders: Sequence[str]) -> SearchPath:
    search(folders)
    return SearchPath(folders)


def load_reference(reference: str, key: str) -> Any:
    """Import what a ``module:Class`` reference names, and return it.

    Args:
        reference: dotted name of a module, a colon, and dotted name of something in it.
        key: configuration key for the error message.

    Raises:
        ConfigError: the module or the name in it cannot be imported, or another module of the same name was imported
            in place of the user's.
    """
    module_name, _, attribute = reference.partition(":")
    top = module_name.partition(".")[0]
    if top == "__main__" or "<locals>" in attribute:
        raise ConfigError(
            key,
            reference,
            "a class that can be imported by its name: this one was defined in a program itself or inside a function",
            "give it in Python again: fedlab.run(config, method=…), strategy=… or callbacks=[…], and the same of "
            "fedlab.resume; or move it into a module",
        )
    try:
        value: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        hidden = _hidden(top, tolerant=False)
        fix = f"{error}; {hidden}" if hidden else f"{error}; {_looked()}"
        raise ConfigError(key, reference, "an importable module:Class", fix) from error
    if hidden := _hidden(top, tolerant=True):
        raise ConfigError(key, reference, "one module of that name", hidden)
    return value


def home(reference: str) -> Path | None:
    """The folder in which the module of an imported ``module:Class`` was found; None if the module is installed."""
    place = _origin(reference.partition(":")[0].partition(".")[0])
    if place is None or _installed(place):
        return None
    return place.parent


def own_modules() -> list[str]:
    """The imported modules that lie in the searched folders, as paths of files or of packages' folders.

    Another machine need not have them. Modules that are installed, and FedLab itself, are not among them.
    """
    names = {name.partition(".")[0] for name in list(sys.modules)} - {"fedlab", "__main__"}
    places = (_origin(name) for name in names)
    own = {place for place in places if place is not None and place.parent in _searched and not _installed(place)}
    return sorted(str(place) for place in own if place.is_dir() or place.suffix == ".py")


def source_of(reference: str) -> tuple[str, str]:
    """The module name of an imported ``module:Class`` and a hash of its file, which is empty if no file can be read."""
    name = reference.partition(":")[0]
    file = getattr(sys.modules.get(name), "__file__", None)
    try:
        return name, hashlib.blake2b(Path(file).read_bytes(), digest_size=16).hexdigest() if file else ""
    except OSError:
        return name, ""


def _looked() -> str:
    folders = ", ".join(map(str, _searched)) or "no further folder"
    return (
        f"looked among the installed modules, on PYTHONPATH and in {folders}: put it beside the configuration, "
        "or set modules: [FOLDER]"
    )


def _origin(top: str) -> Path | None:
    """The file of an imported module, or the folder of an imported package; None if there is neither."""
    module = sys.modules.get(top)
    file = getattr(module, "__file__", None)
    if file is None:
        folders = list(getattr(module, "__path__", ()))
        return Path(folders[0]).resolve() if folders else None
    path = Path(file).resolve()
    return path.parent if path.stem == "__init__" else path


def _installed(place: Path) -> bool:
    return any(place.is_relative_to(folder) for folder in _INSTALLED)


def _hidden(top: str, *, tolerant: bool) -> str:
    """Say which file in the searched folders is hidden by another module of its name; an empty string if none is.

    Args:
        top: the first part of the module's dotted name.
        tolerant: accept an installed module, a built-in one and FedLab itself, because the user may mean those.
    """
    names = [top + ending for ending in importlib.machinery.SOURCE_SUFFIXES]
    places = [place for folder in _searched for place in (folder / top, *(folder / name for name in names))]
    found = next((place for place in places if place.is_file() or (place / "__init__.py").is_file()), None)
    origin = _origin(top)
    taken = top in sys.builtin_module_names or origin is not None
    if found is None or not taken or (origin is not None and origin == found.resolve()):
        return ""
    if tolerant and (origin is None or _installed(origin) or top == "fedlab"):
        return ""
    where = f"{origin}, which was imported first" if origin is not None else "a part of Python itself"
    return f"{found} is not used: the name {top!r} is taken by {where}; rename your module"
