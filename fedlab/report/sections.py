"""The sections of the report: tables, charts and pictures made from the record of a run."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedlab.report.blocks import Chart, Table
from fedlab.report.charts import lines_chart, partition_chart
from fedlab.report.earlier import MEAN, earlier_values
from fedlab.report.notes import SKEW, TRAINED
from fedlab.report.record import RunRecord, claims, main_metric
from fedlab.report.svg import SERIES
from fedlab.report.svg import slug as _slug
from fedlab.report.units import Measured, unit_tables
from fedlab.report.validation import validation_curve
from fedlab.report.values import (
    is_number,
    is_share,
    metric_label,
    metric_names,
    metric_phrase,
    moment,
    number,
)
from fedlab.storage.secrets import known_variables, redacted
from fedlab.tracking.basis import server_basis
from fedlab.tracking.left_out import LeftOut

_ACCURACIES = "accuracies"
_EXAMPLES = 4  # of what was left out


def facts(record: RunRecord) -> list[tuple[str, str]]:
    """(name, value) of the main settings of the run."""
    start = record.history.start
    parts = record.setting("data", "partition") or []
    done, planned = len(record.rounds), record.rounds_planned
    shape = start.get("input_shape")
    app = record.setting("flower_app") or {}
    server, client = ("ServerApp", "ClientApp") if app else ("Strategy", "Model")
    found = [
        ("Folder of the app", str(app.get("path", ""))),
        ("Run config", component(app.get("run_config"))),
        ("Data", data_source(record)),
        ("Partition", " → ".join(component(part) for part in parts)),
        ("Held back", "; ".join(map(str, record.partition.get("held", ())))),
        ("Drift", " → ".join(component(drift) for drift in record.setting("data", "drift") or [])),
        ("Seed", _told(start.get("seed", record.setting("seed")))),
        ("Rounds", f"{done:,} of {planned:,}" if planned else f"{done:,}"),
        ("Stopped early", _early(record)),
        ("Clients", f"{start['clients']:,}" if is_number(start.get("clients")) else ""),
        (server, str(start.get("strategy") or component(record.setting("federation", "strategy")))),
        (client, str(start.get("model") or component(record.setting("model")))),
        ("Parameters", f"{start['parameters']:,}" if is_number(start.get("parameters")) else ""),
        ("Input", " × ".join(str(side) for side in shape) if shape else ""),
        ("Started", moment(start.get("time"))),
    ]
    return [(name, value) for name, value in found if value]


def _early(record: RunRecord) -> str:
    """Why a callback has ended the run before its last round."""
    early = record.history.stopped
    return f"after round {early['round']}: {early['reason']} ({early['by']})" if early else ""


def _told(value: Any) -> str:
    return "" if value is None else str(value)


def component(raw: Any) -> str:
    """A component with those of its settings that are set, in one line: ``dirichlet (alpha 0.5)``."""
    if isinstance(raw, list):
        return ", ".join(map(component, raw))
    if not isinstance(raw, Mapping):
        return "" if raw is None else str(raw)
    told = {key: component(value) for key, value in raw.items() if key != "name" and value not in (None, [], {})}
    settings = ", ".join(f"{key} {value}" for key, value in told.items())
    name = str(raw.get("name", ""))
    return f"{name} ({settings})" if name and settings else name or settings


def data_source(record: RunRecord) -> str:
    """Where the samples came from, in one line."""
    source = record.setting("data", "source")
    if _given(record, "data", "source"):
        return f"{source.get('dataset')}, given in Python ({component({**source, 'name': '', 'dataset': None})})"
    return component(source)


def server_tables(record: RunRecord) -> list[Table]:
    """What the method measured on the server's own data at the last evaluation, by unit."""
    if not record.evaluations:
        return []
    event = record.evaluations[max(record.evaluations)]
    values = event.get("server") or {}
    held = server_basis(event)
    found = [Measured(metric, float(values[metric])) for metric in _claimed_first(record, metric_names([values]))]
    return unit_tables(found, "On the server’s data", note=f"Measured on {held}." if held else "")


def _claimed_first(record: RunRecord, metrics: Sequence[str]) -> list[str]:
    """Metrics on the server's data, those of the method's claim first."""
    claimed = [metric for metric, scope in claims(record.history) if scope == "server" and metric in metrics]
    return list(dict.fromkeys([*claimed, *metrics]))


def curves(record: RunRecord) -> Iterator[Chart]:
    """Evaluation metrics by client, those on the server's data, and what clients and server logged.

    Where the method's claim is about the server's data, its metrics come first.
    """
    on_server = list(_server_curves(record))
    leading = any(scope == "server" for _, scope in claims(record.history))
    yield from on_server if leading else ()
    names = list(dict.fromkeys(name for event in record.evaluations.values() for name in event["clients"]))
    first = main_metric(record.history)
    shown = [first] if first else []
    shown += [name for name in ("loss",) if name != first and record.metric_over_rounds(name, "mean")]
    # no other part of the page shows the metrics of a stage that has ended
    gone = [earlier.metric for earlier in earlier_values(record.evaluations.values()) if earlier.scope == MEAN]
    shown += [name for name in gone if name not in shown and len(record.metric_over_rounds(name, "mean")) > 1]
    for metric in shown:
        series = {name: record.metric_over_rounds(metric, "clients", name) for name in names}
        series = {name: points for name, points in series.items() if points}
        label = metric_phrase(metric)
        many = "Dark band: the middle half of the clients. Light band: all clients." if len(series) > 8 else ""
        yield Chart(
            f"Test {label}",
            lines_chart(
                f"test-{_slug(metric)}",
                series,
                ylabel=f"test {label}" + (" (%)" if is_share(metric) else ""),
                percent=is_share(metric),
                span=record.span,
                mean=record.metric_over_rounds(metric, "mean"),
            ),
            many,
        )
        yield from validation_curve(record, metric, f"validation-{_slug(metric)}")
    yield from () if leading else on_server
    for side, who in (("train", "Training"), ("server", "Server")):
        logged = record.logged("train" if side == "train" else "server")
        logged.pop("seconds", None)
        note = TRAINED if side == "train" else "Logged by the server."
        for stem, group in _families(logged).items():
            svg = lines_chart(f"{side}-{_slug(stem)}", group, ylabel=f"{stem} (as logged)", span=record.span)
            yield Chart(f"{who}: {stem}", svg, note)


def _server_curves(record: RunRecord) -> Iterator[Chart]:
    """Metrics on the server's own data: accuracies share charts, every other metric has a chart of its own."""
    groups: dict[str, dict[str, Mapping[int, float]]] = {}
    measured = metric_names([event.get("server", {}) for event in record.evaluations.values()])
    for metric in _claimed_first(record, measured):
        points = record.metric_over_rounds(metric, "server")
        if len(points) > 1:  # a single value is in the table
            group = _ACCURACIES if is_share(metric) else metric_phrase(metric)
            groups.setdefault(group, {})[metric_label(metric)] = points
    most = len(SERIES)
    parts = [
        (label, dict(list(series.items())[start : start + most]))
        for label, series in groups.items()
        for start in range(0, len(series), most)
    ]
    for place, (label, series) in enumerate(parts):
        percent = label == _ACCURACIES
        svg = lines_chart(
            f"held-{place}-{_slug(label)}",
            series,
            ylabel=label + (" (%)" if percent else ""),
            percent=percent,
            span=record.span,
        )
        yield Chart(f"Server’s data: {label}", svg, "Measured by the method on samples that the server holds.")


def _families(logged: Mapping[str, Mapping[int, float]]) -> dict[str, dict[str, Mapping[int, float]]]:
    """A value and its ``_first`` and ``_last`` share one chart; any others may differ by orders of magnitude."""
    families: dict[str, dict[str, Mapping[int, float]]] = defaultdict(dict)
    for name, points in logged.items():
        families[name.removesuffix("_first").removesuffix("_last")][name] = points
    return families


_LABEL_SKEW = {
    "label_entropy_mean": "Label entropy, mean over clients (bits)",
    "label_entropy_min": "Label entropy, lowest client (bits)",
    "label_entropy_global": "Label entropy, all samples together (bits)",
    "label_emd_mean": "Label distance to all samples, mean over clients",
    "label_emd_max": "Label distance to all samples, largest",
}


def partition(record: RunRecord) -> tuple[Chart, Table] | None:
    """How the samples are divided among the clients, with figures of the skew."""
    summary = record.partition
    if not summary.get("clients"):
        return None
    skew = summary["skew"]
    rows = [
        ("Clients", f"{skew['clients']:,}"),
        ("Training samples", f"{skew['samples']:,}"),
        (
            "Samples of a client: smallest, median, largest",
            _three(skew["size_min"], skew["size_median"], skew["size_max"]),
        ),
        ("Gini index of the clients’ sizes", number(skew["size_gini"])),
        *((text, number(skew[key])) for key, text in _LABEL_SKEW.items() if key in skew),
    ]
    known = "label_emd_mean" in skew  # nodes with data of their own do not say how many samples of a class they have
    what = "Training samples by client and class" if known else "Training samples by client"
    chart = Chart(what, partition_chart("partition", summary))
    return chart, Table(("Skew", "Value"), rows, note=SKEW)


def _three(*values: float) -> str:
    return " / ".join(f"{value:,.0f}" for value in values)


def left_out(record: RunRecord) -> Table | None:
    """What was there and was not used."""
    found = record.history.left_out
    rows = [
        [
            left.what,
            left.why,
            left.fix,
            _examples(left),
            f"{left.count:,.10g}",
            "–" if left.total is None else f"{left.total:,.10g}",
        ]
        for left in found
    ]
    note = "Of: how many there were in the rounds in which some of them were left out."
    return (
        Table(("What", "Why", "What to do", "Such as", "Left out", "Of"), rows, note=note, text_columns=3)
        if rows
        else None
    )


def _examples(left: LeftOut) -> str:
    """Names of some things that were left out, in full."""
    shown = left.examples[:_EXAMPLES]
    return ", ".join([*shown, *(["…"] if shown and left.count > len(shown) else [])])


def repeat(record: RunRecord) -> dict[str, Any]:
    """What is needed to repeat the run."""
    environment = record.environment
    hardware = [
        ("Platform", environment.get("platform")),
        ("Processor", f"{environment.get('cores')} cores, {environment.get('cpu_capability')}"),
        ("GPUs", ", ".join(environment.get("gpus") or []) or "none"),
        ("Device used", record.history.start.get("device")),
        ("Python", environment.get("python")),
    ]
    versions = [(name, version) for name, version in (environment.get("packages") or {}).items() if version]
    variables = list(known_variables(environment.get("variables") or {}).items())
    command = environment.get("command") or record.history.start.get("command")
    return {
        # earlier versions recorded commands and variables as they were
        "command": redacted(str(command)) if command else None,
        "directory": environment.get("directory"),
        "from_folder": _again(record),
        "given": list(_given_words(record)),
        "hardware": [(name, str(value)) for name, value in hardware if value] if environment else [],
        "versions": versions,
        "variables": variables,
        "config": record.config_text,
    }


def _again(record: RunRecord) -> str:
    """How to repeat the run from its folder: a command, or a call in Python if parts were given in Python."""
    named = bool(record.setting("tracking", "name"))
    given = [argument for argument, *keys in _GIVEN if _given(record, *keys)]
    if not given:
        return shlex.join(["fedlab", "run", "config.yaml", *(["--set", "tracking.name=null"] if named else [])])
    anew = ', overrides=["tracking.name=null"]' if named else ""
    return f'fedlab.run("config.yaml", {", ".join(f"{argument}=…" for argument in given)}{anew})'


_GIVEN = (
    ("data", "data", "source"),
    ("method", "method"),
    ("strategy", "federation", "strategy"),
    ("sampler", "federation", "sampler"),
    ("model", "model"),
)
"""Arguments of `fedlab.run`, each with the keys of what it takes the place of."""


def _given(record: RunRecord, *keys: str) -> bool:
    """Whether a component was given in Python and cannot be built again from the record of the run."""
    name = str(record.setting(*keys, "name") or "")
    return name == "given" or name.startswith("__main__:") or "<locals>" in name


def _given_words(record: RunRecord) -> Iterator[str]:
    """One sentence for each part of the run that was given in Python."""
    if _given(record, "data", "source"):
        source = record.setting("data", "source")
        yield (
            f"The samples were given in Python: {source.get('dataset')}, {source.get('train')} training and "
            f"{source.get('test')} test samples, fingerprint {source.get('fingerprint')}. Other samples are refused."
        )
    for _, *keys in _GIVEN[1:]:
        if not _given(record, *keys):
            continue
        found = record.setting(*keys)
        yield f"The {keys[-1]} was given in Python: {found.get('of') or found.get('name')}; {_given_as(found)}."


def _given_as(found: Mapping[str, Any]) -> str:
    """What is recorded of a component that was given in Python, or why it cannot be made again, as a clause."""
    if found.get("unknown"):
        unknown = ", ".join(map(str, found["unknown"]))
        return f"these arguments of its constructor could not be recorded: {unknown}"
    if found.get("fingerprint"):
        return f"{found.get('parameters')} parameters, fingerprint {found['fingerprint']}"
    if found.get("name") == "given":
        return "it was an object, which cannot be made again from its settings"
    return "its class was defined in the program itself or in a function, so it cannot be imported by name"
