"""Words that FedLab has renamed since it wrote them: what an earlier version left on the disk still opens.

Nothing here concerns what users write. A configuration file with an old key is refused, and the error names the new
one. Settings, networks and metrics are renamed for FedLab's own methods and sources only, by their names: a method of
the user's own may use any of the old words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fedlab.storage.plain import read_plain_text

T = TypeVar("T")
_LARGEST = 1_000_000  # bytes of a configuration, as `fedlab.config` reads it

KEYS = {"training.optimiser": "optimizer", "engine.vectorise": "vectorize"}
"""Old dotted key of a configuration → new last part."""
METHOD_KEYS = {
    "cda": {"post.optimiser": "optimizer"},
    "pat": {"neighbours": "neighbors", "grey_patch": "gray_patch"},
}
"""Method → the same of its settings."""
SOURCE_KEYS = {"shapecap": {"unseen_colours": "unseen_colors"}}
"""Source → the same of its settings."""
SOURCE_VALUES = {"shapecap": {"natural": {"colour": "color"}}}
"""Source → setting → old value → new value."""
COMPRESSORS = {"quantise": "quantize"}
EVENTS = {"vectorise": "vectorize"}
METRICS = {
    "pat": {
        "neighbour_probability": "neighbor_probability",
        "no_neighbours_single_image": "no_neighbors_single_image",
    },
}
"""Method → what its clients log."""
ROLES = {"asit": {"normaliser": "normalizer"}}
"""Method → roles of its networks."""
MEMORIES = {"cda": {"optimiser": "optimizer"}}
"""Method → first parts of the names of other tensors that it keeps."""


def configuration(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded configuration of a run in today's words; what is not as FedLab writes it stays as it is.

    Args:
        raw: what ``config.yaml`` in a run folder holds.
    """
    changed = _with_keys(raw, KEYS)
    method = _name(changed.get("method"))
    changed |= _if_there(changed, "method", lambda value: _with_keys(value, METHOD_KEYS.get(method, {})))
    changed |= _if_there(changed, "data", lambda value: {**value, **_if_there(value, "source", _source)})
    changed |= _if_there(changed, "init", lambda value: _init(value, ROLES.get(method, {})))
    changed |= _if_there(changed, "exchange", lambda value: _exchange(value, ROLES.get(method, {})))
    return changed


def events(found: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The recorded events of a run in today's words.

    Args:
        found: in order, from the beginning: the first names the method.
    """
    metrics: Mapping[str, str] = {}
    for event in found:
        if event["event"] == "run_start":
            metrics = METRICS.get(str(event.get("method")), {})
        renamed = {**event, "event": EVENTS.get(event["event"], event["event"])}
        for field in ("metrics", "train") if metrics else ():
            renamed |= _if_there(event, field, lambda values, words=metrics: _with_keys(values, words))
        yield renamed


def tensors(found: Mapping[str, T], run: Path) -> dict[str, T]:
    """Tensors that a run has kept, under today's names.

    Args:
        found: by recorded name: what a checkpoint or the state of a client holds.
        run: folder of the run, whose configuration names the method.
    """
    new = _naming(found, run)
    return {new(name): value for name, value in found.items()}


def checkpoint(found: Mapping[str, T], meta: Mapping[str, Any], run: Path) -> tuple[dict[str, T], dict[str, Any]]:
    """Tensors and facts of a checkpoint, under today's names: its facts list versions of the server's tensors.

    Args:
        found: tensors by recorded name.
        meta: facts.
        run: folder of the run, whose configuration names the method.
    """
    new = _naming(found, run)
    shared = {"shared": _everywhere(meta["shared"], new)} if "shared" in meta else {}
    return {new(name): value for name, value in found.items()}, {**meta, **shared}


def _naming(names: Iterable[str], run: Path) -> Callable[[str], str]:
    """What gives a recorded name of a tensor its new form; the configuration is only read where that may matter."""
    concerned = {word for words in (*ROLES.values(), *MEMORIES.values()) for word in words}
    if not any(concerned & set(re.split(r"[/.]", name)) for name in names):
        return str
    method = _method_of(run)
    return partial(_tensor, roles=ROLES.get(method, {}), memories=MEMORIES.get(method, {}))


def _tensor(name: str, roles: Mapping[str, str], memories: Mapping[str, str]) -> str:
    """The new form of ``network/ROLE.x``, ``shared/network/ROLE.x``, ``ROLE.x`` or ``server/MEMORY/…``."""
    for old, new in roles.items():
        name = re.sub(rf"(^|/){re.escape(old)}\.", rf"\g<1>{new}.", name)
    for old, new in memories.items():
        name = re.sub(rf"^(server/)?{re.escape(old)}/", rf"\g<1>{new}/", name)
    return name


def _everywhere(tree: Any, new: Callable[[str], str]) -> Any:
    if isinstance(tree, Mapping):
        return {new(key): _everywhere(value, new) for key, value in tree.items()}
    return [_everywhere(item, new) for item in tree] if isinstance(tree, list) else tree


def _method_of(run: Path) -> str:
    try:
        raw = yaml.safe_load(read_plain_text(run / "config.yaml", _LARGEST))
    except (OSError, yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
        return ""
    return _name(raw.get("method")) if isinstance(raw, Mapping) else ""


def _name(component: Any) -> str:
    return str(component.get("name")) if isinstance(component, Mapping) else str(component)


def _if_there(tree: Any, key: str, change: Any) -> dict[str, Any]:
    """The changed part below a key where a mapping lies there, and else nothing."""
    part = tree.get(key) if isinstance(tree, Mapping) else None
    return {key: change(part)} if isinstance(part, Mapping) else {}


def _with_keys(tree: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """A copy in which dotted keys have their new last parts, at the same places."""
    changed = dict(tree)
    for dotted, new in words.items():
        first, _, rest = dotted.partition(".")
        if rest:
            changed |= _if_there(changed, first, lambda part, rest=rest, new=new: _with_keys(part, {rest: new}))
        elif first in changed and new not in changed:
            changed = {new if key == first else key: value for key, value in changed.items()}
    return changed


def _source(source: Mapping[str, Any]) -> dict[str, Any]:
    """A data source, and those inside one that unites several."""
    changed = _with_keys(source, SOURCE_KEYS.get(_name(source), {}))
    for key, words in SOURCE_VALUES.get(_name(source), {}).items():
        if isinstance(changed.get(key), str):
            changed[key] = words.get(changed[key], changed[key])
    inside = _if_there(changed, "sources", lambda parts: {name: _source_or(part) for name, part in parts.items()})
    return changed | inside


def _source_or(part: Any) -> Any:
    return _source(part) if isinstance(part, Mapping) else part


def _init(init: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    """Weights to start from: the run's own roles, and those of other runs behind the ``#``, which may be of asit."""
    everywhere = {old: new for words in ROLES.values() for old, new in words.items()}
    changed = {}
    for role, source in init.items():
        place, mark, other = str(source).rpartition("#")
        changed[roles.get(role, role)] = f"{place}#{everywhere[other]}" if mark and other in everywhere else source
    return changed


def _exchange(exchange: Mapping[str, Any], roles: Mapping[str, str]) -> dict[str, Any]:
    changed = dict(exchange)
    if isinstance(stages := exchange.get("compression"), list):
        changed["compression"] = [
            {**stage, "name": COMPRESSORS.get(_name(stage), _name(stage))} if isinstance(stage, Mapping) else stage
            for stage in stages
        ]
    if isinstance(patterns := exchange.get("local"), list):
        changed["local"] = [
            _tensor(pattern, roles, {}) if isinstance(pattern, str) else pattern for pattern in patterns
        ]
    return changed
