"""Recorded rehearsals: what configurations cost, kept as ``rehearsed.json`` in the method's folder; their tables."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedlab.assembly import METHODS
from fedlab.config import read_yaml
from fedlab.errors import InputError
from fedlab.experiment.configuration import is_file, method_folder
from fedlab.report.grids import Rows
from fedlab.report.values import human_bytes
from fedlab.studies.recorded import rounded
from fedlab.tracking.durations import human_seconds

FILE, CARD = "rehearsed.json", "card.yaml"
_DEFAULT = "config.yaml"
_NONE = "–"
_SHORTEST = 0.0005  # seconds of a step of clients that train at all
_PLACE = re.compile(r" \(.*\)")  # where it was looked for on this machine
_KEPT = ("status", "phase", "taken", "limit", "clients", "cohort", "rounds", "workers", "machine", "replaced",
         "estimated", "measured", "extrapolated", "not_counted")  # fmt: skip
_WORDS = {"rehearsed": "built, rehearsed", "too large": "not built here", "stopped": "built, not run here"}
_FACTS = ("distils", "stays", "limits")


def record(report: Mapping[str, Any], source: str, changes: Sequence[str] = ()) -> Path:
    """Write the result of a rehearsal into the folder of the method, under the name of its configuration file.

    Args:
        report: what `fedlab.experiment.rehearse.rehearse` returned.
        source: the configuration file, which lies in the folder of its method, or the name of the method.
        changes: what ``--set`` changed in it.

    Raises:
        InputError: the file lies elsewhere, or the folder cannot be written to.
    """
    folder = method_folder(report["method"], "METHOD")
    file = Path(source).absolute() if is_file(source) else folder / _DEFAULT
    if not file.is_file() or file.parent.resolve() != folder.resolve():
        fix = "leave --record out, and keep what --json prints"
        raise InputError("--record", source, f"a configuration in the folder of its method, {folder}", fix)
    path = folder / FILE
    known = recorded(report["method"])
    kept = {name: report[name] for name in _KEPT if name in report}
    found: dict[str, Any] = {"recorded": f"{datetime.now(UTC):%Y-%m-%d}", "of": _hash(file), **kept}
    known[file.name] = {**found, "changes": list(changes)}
    known[file.name]["replaced"] = [_PLACE.sub("", text) for text in report["replaced"]]
    try:
        text = json.dumps(rounded(dict(sorted(known.items()))), indent=1, ensure_ascii=False)
        path.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        expected = f"a method whose folder can be written to: {error}"
        raise InputError("--record", source, expected, "install FedLab from a clone: pip install -e .") from error
    return path


def recorded(method: str) -> dict[str, Any]:
    """The recorded rehearsals of a method, by the name of the configuration file."""
    path = method_folder(method, "METHOD") / FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def stale() -> list[str]:
    """The configurations that have changed since they were rehearsed, as METHOD/FILE."""
    return [
        f"{name}/{file}"
        for name in METHODS.builtin
        for file, found in recorded(name).items()
        if not (path := method_folder(name, "METHOD") / file).is_file() or found["of"] != _hash(path)
    ]


def comparison_table() -> Rows:
    """Header and one row for each of FedLab's methods: what it exchanges and costs, and its limits.

    What cannot be computed stands in ``card.yaml`` of the method's folder: who distils, what stays on the client, and
    known limits. Payload and seconds are those of the recorded rehearsal of the method's own configuration.
    """
    rows = [["method", "data", "who distils", "what stays on the client", "a client's payload in a round", "a round on",
             "known limits"]]  # fmt: skip
    for name in METHODS.builtin:
        card, found = _card(name), recorded(name).get(_DEFAULT, {})
        facts = [card.get(fact, _NONE) for fact in _FACTS]
        rows.append(
            [_linked(name), METHODS.find(name).modality, *facts[:2], _payload(found), _seconds(found), facts[2]]
        )
    return rows


def rehearsals_table() -> Rows:
    """Header and one row for each configuration of paper size: whether it was built and tried, and what it takes."""
    rows = [
        ["configuration", "state", "parameters", "worker", "server", "a step", "down and up of a client", "whole run"]
    ]
    for name in METHODS.builtin:
        known = recorded(name)
        for path in sorted(method_folder(name, "METHOD").glob("paper*.yaml")):
            shown, found = f"{name}/{path.name}", known.get(path.name)
            rows.append([shown, "not yet", *[_NONE] * 6] if found is None else [shown, *_rehearsal(found)])
    return rows


def _rehearsal(found: Mapping[str, Any]) -> list[str]:
    sizes, state = found["estimated"], _WORDS[found["status"]]
    if found["changes"]:
        state = f"{state} with {', '.join(f'`{change}`' for change in found['changes'])}"
    parameters = f"{sum(sizes['parameters'].values()) / 1e6:.1f} M"
    if found["status"] != "rehearsed":
        return [
            state,
            parameters,
            *(f"at least {human_bytes(sizes[who])}" for who in ("worker", "server")),
            *[_NONE] * 3,
        ]
    measured = found["measured"]
    step = max(stage["step"] - (stage["idle"] or 0.0) for stage in measured["stages"])
    run = found["extrapolated"]["run_seconds"]
    return [
        state,
        parameters,
        *(human_bytes(measured[who]["bytes"]) for who in ("worker", "server")),
        human_seconds(step) if step >= _SHORTEST else _NONE,
        _payload(found),
        _NONE if run is None else f"{_days(run)}{_more(measured['stages'])}",
    ]


def _payload(found: Mapping[str, Any]) -> str:
    if "measured" not in found:
        return _NONE
    stages: Sequence[Mapping[str, Any]] = found["measured"]["stages"]
    down, up = (max(stage[way] for stage in stages) for way in ("down", "up"))
    return f"{human_bytes(down)}, {human_bytes(up)}"


def _seconds(found: Mapping[str, Any]) -> str:
    if "extrapolated" not in found:
        return _NONE
    seconds = [value for value in found["extrapolated"]["round_seconds"] if value is not None]
    more = _more(found["measured"]["stages"])
    return f"{human_seconds(max(seconds))}{more}, {found['workers']} workers" if seconds else _NONE


def _more(stages: Sequence[Mapping[str, Any]]) -> str:
    """What is said of a time if the trial was a short form of the method's own loop."""
    return " and more" if any(stage["own_loop"] for stage in stages) else ""


def _days(seconds: float) -> str:
    return human_seconds(seconds) if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"


def _card(method: str) -> Mapping[str, str]:
    path = method_folder(method, "METHOD") / CARD
    if not path.is_file():
        return {}
    found = read_yaml(path)
    if wrong := sorted(set(found) - set(_FACTS)):
        raise InputError(str(path), wrong[0], f"keys among {', '.join(_FACTS)}", "rename or remove it")
    return {name: str(text) for name, text in found.items()}


def _linked(name: str) -> str:
    return f"[{name}](../methods/{name}/README.md)"


def _hash(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
