"""A Flower app on disk: what its pyproject.toml says of it."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.errors import ConfigError, did_you_mean

Value = bool | int | float | str
"""What Flower allows as value of an app's own keys."""

_FILE = "pyproject.toml"
_MADE_BY = "`flwr new` makes such a folder"
_NO_CODE = {"venv", "env", "build", "dist", "node_modules", "__pycache__"}
_REFERENCE = re.compile(r"[\w.]+:[\w.]+")
# what `flwr run --run-config` takes for a pair: the value may be quoted
_PAIR = re.compile(r"(\S+?)=('[^']*'|\"[^\"]*\"|\S+)")


@dataclass(frozen=True)
class Project:
    """A Flower app.

    Args:
        folder: absolute path of the app.
        name: its name.
        serverapp: reference of its ServerApp, as ``module:attribute``.
        clientapp: reference of its ClientApp.
        defaults: its own keys with their defaults; those of nested tables have dotted names.
        clients: number of SuperNodes of its federation; None if it does not say.
        unused: keys of its federation of which FedLab makes no use.
    """

    folder: Path
    name: str
    serverapp: str
    clientapp: str
    defaults: Mapping[str, Value]
    clients: int | None
    unused: tuple[str, ...]

    def fingerprint(self) -> str:
        """Hash of the app's Python files and of its pyproject.toml, for the record of a run."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted([self.folder / _FILE, *self.folder.rglob("*.py")]):
            inner = path.relative_to(self.folder)
            if not any(part in _NO_CODE or part.startswith(".") for part in inner.parts):
                digest.update(f"{inner.as_posix()}:".encode() + path.read_bytes())
        return digest.hexdigest()


def read_project(path: str | Path) -> Project:
    """Read what the pyproject.toml of a Flower app says, without importing anything of the app.

    Args:
        path: the app's folder, or its pyproject.toml.

    Raises:
        ConfigError: there is no such folder, it holds no Flower app, or a component is missing.
    """
    folder = Path(path).expanduser().absolute()
    if folder.name == _FILE and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        fix = "give the folder and not a file in it" if folder.exists() else "there is no such folder"
        raise _wrong(path, f"the folder of a Flower app, which holds a {_FILE}", fix)
    tree = _toml(folder / _FILE, path)
    app = _table(tree, "tool", "flwr", "app")
    if not app:
        raise _wrong(path, f"a {_FILE} with the section [tool.flwr.app]", f"this is no Flower app; {_MADE_BY}")
    components = _table(app, "components")
    if "agentapp" in components:
        raise _wrong(path, "an app with a ServerApp and a ClientApp; this is an agent app", "run it with Flower")
    found = {name: _reference(components, name, path) for name in ("serverapp", "clientapp")}
    name = _table(tree, "project").get("name")
    clients, unused = _federation(_table(tree, "tool", "flwr", "federations"), path)
    defaults = flat(_table(app, "config"), f"{folder / _FILE}: [tool.flwr.app.config]")
    return Project(folder, str(name or folder.name), **found, defaults=defaults, clients=clients, unused=unused)


def flat(table: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Value]:
    """An app's own keys; those of nested tables get dotted names, as Flower gives them to the app.

    Args:
        table: the keys.
        where: where they stand, for the error message.
        prefix: put before every name.

    Raises:
        ConfigError: a value is a list, a date or anything else that Flower does not allow.
    """
    found: dict[str, Value] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, where, f"{name}.")
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        else:
            raise ConfigError(name, value, "a number, true, false or text", where)
    return found


def parse_run_config(texts: Sequence[str]) -> dict[str, Value]:
    """Values of an app's own keys, written as for ``flwr run --run-config``.

    Args:
        texts: pairs such as ``num-server-rounds=3 lr=0.1 name="a"``, or paths of TOML files.

    Raises:
        ConfigError: something else.
    """
    found: dict[str, Value] = {}
    for text in texts:
        if text.endswith(".toml") and "=" not in text:
            found |= flat(_toml(Path(text).expanduser(), text, key="--run-config"), text)
            continue
        if rest := _PAIR.sub("", text).strip():
            expected = "KEY=VALUE, or several of them with spaces between, or a .toml file"
            raise ConfigError("--run-config", text, expected, f"this part is neither: {rest}")
        for key, value in _PAIR.findall(text):
            try:
                found[key] = flat(tomllib.loads(f"value = {value}"), text)["value"]
            except tomllib.TOMLDecodeError as error:
                fix = f"text needs quotes of its own: --run-config '{key}=\"{value}\"'"
                raise ConfigError("--run-config", text, "values that are numbers, true, false or text", fix) from error
    return found


def check_keys(given: Mapping[str, Value], project: Project, key: str) -> None:
    """Refuse keys that the app does not have, as Flower does.

    Args:
        given: values by key.
        project: the app.
        key: what they were given by, for the error message.

    Raises:
        ConfigError: the app has no such key.
    """
    for name, value in given.items():
        if name not in project.defaults:
            expected = f"a key of [tool.flwr.app.config] in {project.folder / _FILE}"
            raise ConfigError(f"{key} {name}", value, expected, did_you_mean(name, project.defaults))


def _toml(file: Path, path: str | Path, key: str = "--flower-app") -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        made = f"; {_MADE_BY}" if file.name == _FILE else ""
        raise ConfigError(key, str(path), f"a file {file}", f"there is none{made}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(key, str(path), f"a {file.name} that is valid TOML", str(error)) from error


def _table(tree: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """A table inside others; empty if it is not there."""
    for key in keys:
        inner = tree.get(key)
        tree = inner if isinstance(inner, Mapping) else {}
    return tree


def _reference(components: Mapping[str, Any], name: str, path: str | Path) -> str:
    found = components.get(name)
    expected = f'{name} = "module:attribute" in [tool.flwr.app.components] of {_FILE}'
    if found is None:
        raise _wrong(path, expected, "it is missing there")
    if not isinstance(found, str) or not _REFERENCE.fullmatch(found):
        raise _wrong(path, expected, f"it is {found!r}")
    return found


def _federation(federations: Mapping[str, Any], path: str | Path) -> tuple[int | None, tuple[str, ...]]:
    """The number of SuperNodes of the app's own federation, and what else its options say."""
    tables = {name: table for name, table in federations.items() if isinstance(table, Mapping)}
    chosen = federations.get("default")
    if not isinstance(chosen, str) and len(tables) == 1:
        chosen = next(iter(tables))
    options = _table(tables, str(chosen), "options")
    count = options.get("num-supernodes")
    if count is not None and (type(count) is not int or count < 1):
        raise _wrong(path, "options.num-supernodes of at least 1", f"[tool.flwr.federations.{chosen}] has {count!r}")
    return count, tuple(_leaves(options.get("backend"), "options.backend"))


def _leaves(value: Any, key: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _leaves(part, f"{key}.{name}")
    elif value is not None:
        yield key


def _wrong(path: str | Path, expected: str, fix: str) -> ConfigError:
    return ConfigError("--flower-app", str(path), expected, fix)
