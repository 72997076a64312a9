"""From what a user gives to one complete configuration: paths absolute, own modules found, defaults spelled out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlab.assembly import METHODS
from fedlab.config import Config, apply_overrides, parse, read_yaml
from fedlab.config.modules import home, search, source_of
from fedlab.errors import ConfigError, ConfigErrors, InputError
from fedlab.experiment.components import bare, complete, located, place_of, references
from fedlab.storage.cache import code_fingerprint
from fedlab.storage.paths import PathKind


def configure(
    source: str | Path | Mapping[str, Any] | Config, overrides: Sequence[str] = (), *, here: bool = True
) -> Config:
    """A configuration from a method's name, a YAML file, a mapping or a `Config`, with ``dotted.key=value`` overrides.

    Paths in a YAML file start from its folder, those in overrides and of all other sources from the current one; what
    a component leaves out is spelled out.

    Args:
        source: what to configure.
        overrides: what to change.
        here: the run is made on this machine; paths of one that is made elsewhere are left as they are.

    Raises:
        ConfigErrors, ConfigError: no such method or file, unknown keys, bad values.
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
    raw = apply_overrides(raw, ())  # a tree without loops, which can be walked over
    given = [override.partition("=")[0].strip() for override in overrides]

    def start(key: str) -> Path:
        return Path.cwd() if within(key, given) else folder

    look_for_modules(raw, folder)
    if overrides:
        raw = apply_overrides(bare(raw), overrides)
        look_for_modules(raw, start("modules"), folder)
    if not here:
        return complete(parse(Config, raw))
    config = complete(parse(Config, placed(raw, start)))
    # what is a default only has its place from here on
    return recorded(parse(Config, placed(config.model_dump(mode="json"), lambda key: Path.cwd())))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A configuration from a YAML file, as `configure` makes it.

    Raises:
        ConfigErrors: unreadable file, YAML error, unknown key or bad value.
    """
    return configure(Path(path), overrides)


def is_file(source: str | Path) -> bool:
    """Whether it names a configuration file and no method."""
    return isinstance(source, Path) or source.endswith((".yaml", ".yml"))


def method_folder(name: str, key: str) -> Path:
    """The folder a method's module lies in, where its config.yaml is.

    Args:
        name: as in ``method.name``.
        key: what the name was given as, for the error message.

    Raises:
        ConfigError: no such method.
    """
    module = sys.modules[METHODS.find(name, key).__module__]
    return Path(module.__file__ or "").parent


def look_for_modules(raw: Mapping[str, Any], folder: Path, *more: Path) -> None:
    """Let ``module:Class`` names of a raw configuration be found in the folders it lists and some others.

    Args:
        raw: the configuration.
        folder: where the folders it lists start, and one to look in.
        more: other folders; the current one comes last.
    """
    listed = raw.get("modules")
    texts = [text for text in listed if isinstance(text, str) and text] if isinstance(listed, list | tuple) else []
    search([*(folder / Path(text).expanduser() for text in texts), folder, *more, Path.cwd()])


def recorded(config: Config) -> Config:
    """The configuration with the folders in which its own modules were found, so that it finds them from anywhere."""
    homes = [home(reference) for reference in references(config)]
    folders = dict.fromkeys([*config.modules, *(str(folder) for folder in homes if folder is not None)])
    return config if tuple(folders) == config.modules else config.model_copy(update={"modules": tuple(folders)})


def code_of(config: Config) -> dict[str, str]:
    """Hash of the code that carries a configuration out, by module: FedLab's own, and those of the user's."""
    return {"fedlab": code_fingerprint(), **dict(map(source_of, references(config)))}


def placed(raw: Mapping[str, Any], folder: Callable[[str], Path]) -> dict[str, Any]:
    """A raw configuration with absolute paths.

    Args:
        raw: it.
        folder: by dotted key, where a relative path starts.

    Raises:
        ConfigErrors: files that are not there, but would be if their paths started from the current folder.
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


def within(key: str, given: Iterable[str]) -> bool:
    """Whether a dotted key is one of those, or lies below one."""
    return any(key == other or key.startswith(f"{other}.") for other in given)


def _is_there(kind: PathKind, place: Path) -> bool:
    role = kind.kind == "weights" and "#" in place.name
    return place.exists() or (role and place.with_name(place.name.rpartition("#")[0]).exists())
