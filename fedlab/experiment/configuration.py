"""Makes a complete configuration from a user's input, with absolute paths, the user's own modules and all defaults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedlab.assembly import METHODS
from fedlab.config import Config, apply_overrides, parse, read_yaml, set_dotted
from fedlab.config.modules import home, search, source_of
from fedlab.config.overrides import Overrides, changes
from fedlab.config.walk import place_of, within
from fedlab.errors import ConfigError, ConfigErrors, InputError
from fedlab.experiment.components import bare, complete, located, references
from fedlab.registry import GIVEN
from fedlab.storage.cache import code_fingerprint
from fedlab.storage.paths import PathKind


def configure(
    source: str | Path | Mapping[str, Any] | Config,
    overrides: Overrides = (),
    *,
    here: bool = True,
    given: Mapping[str, str] | None = None,
) -> Config:
    """Make a configuration, to which the defaults of all components are added.

    Relative paths in a YAML file that the user gives start from the folder of the file. All other relative paths, those
    of outputs included, start from the current folder.

    Args:
        source: a YAML file, the name of a method that has a configuration of its own, a mapping, or a `Config`.
        overrides: changes; see `fedlab.config.overrides.changes`. They are made after those for `given`.
        here: whether the run takes place on this machine. If not, paths are left as they are.
        given: keys of the components that are given in Python, with the names of their classes. The settings of
            such a component are kept only if the configuration describes a given component or one of this class.

    Raises:
        ConfigErrors, ConfigError: there is no such method or file, or keys are unknown or have wrong values.
    """
    folder = Path.cwd()
    if isinstance(source, Config):
        raw = bare(source.model_dump(mode="json")) if overrides else source.model_dump(mode="json")
    elif isinstance(source, Mapping):
        raw = dict(source)
    elif is_file(source):
        folder = Path(source).absolute().parent
        raw = read_yaml(source)
    else:
        packaged = method_folder(str(source), "METHOD or CONFIG") / "config.yaml"
        if not packaged.is_file():
            raise ConfigError(
                "METHOD or CONFIG", source, "a method that brings a config.yaml", "write a YAML file that names it"
            )
        raw = read_yaml(packaged)
    raw = apply_overrides(raw, ())  # refuses mappings that contain themselves, before they are walked through
    raw = _without_replaced(raw, given or {})
    changed = [key for key, _ in changes(overrides, Config)]

    def start(key: str) -> Path:
        return Path.cwd() if within(key, changed) else folder

    look_for_modules(raw, folder)
    if overrides:
        raw = apply_overrides(bare(raw), overrides)
        look_for_modules(raw, start("modules"), folder)
    if not here:
        return complete(parse(Config, raw))
    config = complete(parse(Config, placed(raw, start)))
    # Defaults that are paths were only added just now, and have to be made absolute too.
    return recorded(parse(Config, placed(config.model_dump(mode="json"), lambda key: Path.cwd())))


def load_config(path: str | Path, overrides: Overrides = ()) -> Config:
    """Make a configuration from a YAML file, as `configure` does.

    Args:
        path: the YAML file.
        overrides: changes; see `fedlab.config.overrides.changes`.

    Raises:
        ConfigErrors: the file cannot be read or is not valid YAML, or keys are unknown or have wrong values.
    """
    return configure(Path(path), overrides)


def _without_replaced(raw: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """A raw configuration in which the components that are given in Python have the name `GIVEN`; see `configure`."""
    for key, kind in given.items():
        found: Any = raw
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        name = str(found.get("name") if isinstance(found, Mapping) else found)
        same = name == GIVEN or (kind and name.rpartition(":")[2].rpartition(".")[2] == kind)
        settings = {k: v for k, v in found.items() if k != "name"} if same and isinstance(found, Mapping) else {}
        set_dotted(raw, key, {"name": GIVEN, **settings})
    return raw


def is_file(source: str | Path) -> bool:
    """Whether `source` is a configuration file, and not the name of a method."""
    return isinstance(source, Path) or source.endswith((".yaml", ".yml"))


def method_folder(name: str, key: str) -> Path:
    """Return the folder of a method's module, which also holds its config.yaml if it has one.

    Args:
        name: name of the method, as in ``method.name``.
        key: configuration key or argument that holds the name, for the error message.

    Raises:
        ConfigError: there is no such method.
    """
    module = sys.modules[METHODS.find(name, key).__module__]
    return Path(module.__file__ or "").parent


def look_for_modules(raw: Mapping[str, Any], folder: Path, *more: Path) -> None:
    """Append the folders that may hold the user's own modules to Python's search path.

    These are the folders that the configuration lists as ``modules``, then `folder`, `more` and the current folder.

    Args:
        raw: the configuration, before it is validated.
        folder: folder from which relative paths in ``modules`` start.
        more: further folders.
    """
    listed = raw.get("modules")
    texts = [text for text in listed if isinstance(text, str) and text] if isinstance(listed, list | tuple) else []
    search([*(folder / Path(text).expanduser() for text in texts), folder, *more, Path.cwd()])


def recorded(config: Config) -> Config:
    """Return the configuration with the folders of the user's own modules added to ``modules``.

    The modules are then found from every current folder.
    """
    homes = [home(reference) for reference in _code(config)]
    folders = dict.fromkeys([*config.modules, *(str(folder) for folder in homes if folder is not None)])
    return config if tuple(folders) == config.modules else config.model_copy(update={"modules": tuple(folders)})


def code_of(config: Config) -> dict[str, str]:
    """Return hashes of the code that a configuration runs, by module: FedLab's own as a whole, and the user's."""
    return {"fedlab": code_fingerprint(), **dict(map(source_of, _code(config)))}


def _code(config: Config) -> list[str]:
    """Every ``module:Class`` that a configuration names, with those of a network that was given in Python."""
    settings = config.model.settings if config.model.name == GIVEN else {}
    given = [str(settings[key]) for key in ("of", "made_by") if settings.get(key)]
    return [*references(config), *given]


def placed(raw: Mapping[str, Any], folder: Callable[[str], Path]) -> dict[str, Any]:
    """Return a raw configuration with absolute paths.

    Args:
        raw: the raw configuration.
        folder: returns the folder from which a relative path starts, given the dotted key of the path.

    Raises:
        ConfigErrors: files do not exist, but would exist if their paths started from the current folder.
    """
    errors: list[InputError] = []

    def visit(kind: PathKind, text: str, key: str) -> str:
        start = folder(key)
        place = place_of(kind, text, start)
        if kind.kind in ("input", "hub", "weights") and not _is_there(kind, start / place):
            other = Path.cwd() / place_of(kind, text, Path.cwd())
            if _is_there(kind, other):
                expected = (
                    f"a path from the configuration file's folder: there is no {start / text}, but there is {other}"
                )
                fix = f"write it from {start}, or absolute, or --set {key}={text}, which starts from the current folder"
                errors.append(ConfigError(key, text, expected, fix))
        return place

    found = located(raw, visit)
    if errors:
        raise ConfigErrors(errors)
    return found


def _is_there(kind: PathKind, place: Path) -> bool:
    role = kind.kind == "weights" and "#" in place.name
    return place.exists() or (role and place.with_name(place.name.rpartition("#")[0]).exists())
