"""Makes the configuration of a Flower app's run from a folder or a recorded configuration, and from options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlab.config import apply_overrides, parse, read_yaml
from fedlab.config.flowerapp import FLOWER_APP, FlowerAppConfig
from fedlab.config.walk import Walk
from fedlab.errors import UNSET, ConfigError, ConfigErrors
from fedlab.experiment.configuration import is_file
from fedlab.flowerapp.project import Project, Value, check_keys, flat, parse_run_config, read_project

_SECTION = f"{FLOWER_APP}.run_config"


def configure_app(
    source: str | Path,
    *,
    clients: int | None = None,
    run_config: Sequence[str] | Mapping[str, Value] = (),
    overrides: Sequence[str] = (),
) -> tuple[FlowerAppConfig, Project]:
    """Make the configuration of a run, and read what the app says of itself.

    Args:
        source: the app's folder, or the ``config.yaml`` of an earlier run of such an app.
        clients: number of clients; None takes the one that the configuration or the app's federation names.
        run_config: values of the app's own keys: a mapping, or texts as for ``flwr run --run-config``.
        overrides: further changes, as ``dotted.key=value``.

    Raises:
        ConfigError, ConfigErrors: there is no such app, or keys are unknown or have wrong values.
    """
    raw: dict[str, Any] = read_yaml(source) if is_yaml(source) else {FLOWER_APP: {"path": str(source)}}
    given = parse_run_config(run_config) if not isinstance(run_config, Mapping) else dict(run_config)
    section = raw.get(FLOWER_APP)
    if not isinstance(section, dict) or not isinstance(section.get("path"), str):
        raise ConfigError(f"{FLOWER_APP}.path", UNSET, "the folder of a Flower app", "set it")
    folder = Path(source).absolute().parent if is_yaml(source) else Path.cwd()
    project = read_project(folder / Path(section["path"]).expanduser())
    check_keys(given, project, "--run-config")
    earlier = section.get("run_config")
    section["run_config"] = {**project.defaults, **(earlier if isinstance(earlier, dict) else {}), **given}
    section |= {"path": str(project.folder), "name": project.name}
    section |= {"serverapp": project.serverapp, "clientapp": project.clientapp}
    if (number := clients or section.get("clients") or project.clients) is not None:
        section["clients"] = number
    raw = apply_overrides(raw, overrides)
    changed = raw[FLOWER_APP] if isinstance(raw.get(FLOWER_APP), dict) else {}
    for key in ("path", "name", "serverapp", "clientapp"):
        if changed.get(key) != section[key]:
            fix = "give the folder by --flower-app; all else stands in its pyproject.toml"
            raise ConfigError(f"{FLOWER_APP}.{key}", changed.get(key), section[key], fix)
    if isinstance(keys := changed.get("run_config"), dict):
        changed["run_config"] = flat(keys, _SECTION)
        check_keys(changed["run_config"], project, _SECTION)
    if "clients" not in changed:
        expected = "the number of clients, which Flower calls SuperNodes"
        fix = "the app's pyproject.toml names none (options.num-supernodes): add, for example, --clients 10"
        raise ConfigErrors([ConfigError("--clients", UNSET, expected, fix)])
    config = parse(FlowerAppConfig, _placed(parse(FlowerAppConfig, raw)))
    engine = config.engine
    for key, value, usual in (("vectorize", engine.vectorize, "off"), ("resident", engine.resident, None)):
        if value != usual:
            expected = "not set: a Flower app trains its clients itself, one by one"
            raise ConfigError(f"engine.{key}", value, expected, "leave it out")
    return config, project


def _placed(config: FlowerAppConfig) -> dict[str, Any]:
    """The configuration with absolute paths; relative ones start from the current folder."""
    walk = Walk[str]({}, lambda registry, name: None, visit=lambda kind, text, key: kind.absolute(text, Path.cwd()))
    return walk.of(FlowerAppConfig, config.model_dump(mode="json"))


def is_yaml(source: str | Path) -> bool:
    """Whether `source` is a configuration file, and not the folder of an app."""
    return is_file(str(source))
