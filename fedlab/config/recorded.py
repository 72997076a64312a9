"""The configuration in a run folder: how it is recorded, and whether it was changed since.

``config.yaml`` is there to be read and to be used for new runs. A hidden copy beside it carries a hash over its own
content. A run goes on only with the configuration that it began with, as far as it decides the result.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from typing import Any

from fedlab.config.flowerapp import FlowerAppConfig, is_flower_app
from fedlab.config.sections import LARGEST, Config, parse, read_yaml
from fedlab.config.yamltree import dump_yaml, load_yaml
from fedlab.errors import CheckpointError, ConfigErrors
from fedlab.storage import renamed
from fedlab.storage.plain import read_plain
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.storage.secrets import is_secret, tree_redacted

_ANYWHERE = ("tracking", "modules")
"""Sections that say where a run writes and finds its code, and nothing about its result."""
_ELSEWHERE = {"data": ("source",), "federation": ("timeout", "min_clients", "reply_limit")}
"""Keys by section that do not decide the result; the samples of a source are compared by their fingerprint."""
_HEAD = b"# sha256 "


def record_config(folder: RunFolder, config: Config | FlowerAppConfig) -> None:
    """Write a run's configuration and its copy. Passwords and tokens below ``tracking`` and ``engine`` are left out.

    Args:
        folder: the run folder.
        config: the configuration.
    """
    tree = config.model_dump(mode="json")
    hidden = {**tree, **{name: tree_redacted(tree[name]) for name in ("tracking", "engine")}}
    text = dump_yaml(hidden).encode()
    copy = _HEAD + hashlib.sha256(text).hexdigest().encode() + b"\n" + text
    if folder.copy.is_file() and folder.copy.read_bytes() != copy:
        folder.copy.unlink()  # between the two writes a copy of another configuration would look like an edit
    write_atomic(folder.config, text)
    write_atomic(folder.copy, copy)


def recorded_config(folder: RunFolder) -> Config:
    """The configuration that ``config.yaml`` in a run folder holds, in today's words.

    Raises:
        CheckpointError: the run is one of a Flower app.
        ConfigErrors: it cannot be read or is not valid, because it was changed or another version wrote it.
    """
    try:
        raw = read_yaml(folder.config)
        if is_flower_app(raw):
            expected = "a run of a method; this one is of a Flower app, which makes its networks and rounds itself"
            again = shlex.join(["fedlab", "run", str(folder.config)])
            fix = f"`fedlab show` and `fedlab report` read it; to run it again: {again}"
            raise CheckpointError("run", str(folder.path), expected, fix)
        return parse(Config, renamed.configuration(raw))
    except ConfigErrors as several:
        copy = _copy(folder)
        if copy is None or not _is_valid(copy):
            raise
        fix = f"bring it back: {folder.how_to_restore}"
        advice = CheckpointError("run", str(folder.path), "a config.yaml as the run wrote it", fix)
        raise ConfigErrors([*several.errors, advice]) from several


def changes(folder: RunFolder) -> list[str]:
    """What was changed in ``config.yaml`` that decides the result, since the run recorded it.

    Returns:
        One text for each key, with its value now and then; empty if the folder has no intact copy, as those of runs
        that earlier versions of FedLab wrote.

    Raises:
        ConfigErrors: ``config.yaml`` cannot be read.
    """
    copy = _copy(folder)
    return [] if copy is None else _differences(read_yaml(folder.config), copy)


def check_unchanged(folder: RunFolder, then: Mapping[str, Any] | None = None) -> None:
    """Refuse to go on with a run whose ``config.yaml`` was changed.

    Args:
        folder: the run folder.
        then: what a checkpoint of the run holds, see `deciding`; None compares with the folder's own copy.

    Raises:
        CheckpointError: it was changed in a key that decides the result.
        ConfigErrors: it cannot be read.
    """
    copy = _copy(folder)
    if then is None:
        found = [] if copy is None else _differences(read_yaml(folder.config), copy)
    else:
        # where the copy is intact, keys that the checkpoint lacks are those that a newer version of FedLab has added
        now = deciding(renamed.configuration(read_yaml(folder.config)))
        found = _differences(now, then, added=copy is None)
    if found:
        back = folder.how_to_restore if copy else "change these keys back"
        raise CheckpointError(
            "config.yaml",
            str(folder.config),
            f"what the run began with, because another configuration gives another result; {'; '.join(found)}",
            f"bring it back: {back}; to try other values, start a new run: fedlab run {folder.config}",
        )


def deciding(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a raw configuration that decides the result, for a checkpoint: a run may get more rounds."""
    kept = _deciding(tree)
    federation = kept.get("federation")
    rounds = {"federation": {k: v for k, v in federation.items() if k != "rounds"}} if federation else {}
    return {**kept, **rounds}


def _is_valid(tree: Mapping[str, Any]) -> bool:
    try:
        parse(Config, renamed.configuration(tree))
    except ConfigErrors:
        return False
    return True


def _differences(now: Mapping[str, Any], then: Mapping[str, Any], *, added: bool = True) -> list[str]:
    """What differs between two raw configurations that decides the result.

    Args:
        now: the configuration.
        then: what it was.
        added: whether keys that `then` lacks count.
    """
    if now == then:
        return []
    ours, theirs = (_flat(_deciding(renamed.configuration(tree))) for tree in (now, then))
    keys = ours.keys() | theirs.keys() if added else theirs.keys()
    return [
        f"{key} was changed"
        if is_secret(key)
        else f"{key} is {ours.get(key, 'not set')} and was {theirs.get(key, 'not set')}"
        for key in sorted(keys)
        if ours.get(key) != theirs.get(key)
    ]


def _copy(folder: RunFolder) -> dict[str, Any] | None:
    """The copy of the configuration; None if there is none, or it is damaged."""
    try:
        head, _, content = read_plain(folder.copy, 2 * LARGEST).partition(b"\n")
        if head != _HEAD + hashlib.sha256(content).hexdigest().encode():
            return None
        tree = load_yaml(content.decode())
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _deciding(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a raw configuration that decides the result."""
    kept = {key: value for key, value in tree.items() if key not in (*_ANYWHERE, "engine")}
    for section, keys in _ELSEWHERE.items():
        if isinstance(kept.get(section), Mapping):
            kept[section] = {key: value for key, value in kept[section].items() if key not in keys}
    engine = tree.get("engine")
    vectorize = engine.get("vectorize") if isinstance(engine, Mapping) else None
    return {**kept, "engine": {"vectorize": vectorize}}


def _canonical(tree: Any) -> str:
    """Equal trees as equal texts, whatever the order of their keys."""
    return json.dumps(json.loads(json.dumps(tree)), sort_keys=True)


def _flat(tree: Any, key: str = "") -> dict[str, str]:
    """The values of nested mappings by dotted key, as JSON."""
    if not isinstance(tree, Mapping) or not tree:
        return {key: _canonical(tree)}
    return {name: v for k, part in tree.items() for name, v in _flat(part, f"{key}.{k}" if key else str(k)).items()}
