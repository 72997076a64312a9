"""The sections of the report: tables, charts and pictures made from the record of a run."""

from __future__ import annotations

import base64
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedlab.metrics.direction import best_of
from fedlab.report.blocks import Chart, Pictures, Shot, Table
from fedlab.report.charts import lines_chart, partition_chart
from fedlab.report.earlier import MEAN, earlier_values
from fedlab.report.notes import SKEW, TRAINED
from fedlab.report.privacy import privacy_figure
from fedlab.report.record import RunRecord, main_metric
from fedlab.report.values import (
    human_bytes,
    is_number,
    is_share,
    metric_label,
    metric_names,
    metric_phrase,
    metric_value,
    moment,
    number,
    plural,
    words,
)
from fedlab.storage.secrets import known_variables, redacted
from fedlab.tracking.basis import Basis, basis, server_basis
from fedlab.tracking.durations import human_seconds

_ACCURACIES = "accuracies"


def headline(record: RunRecord) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the figures at the top of the report."""
    figures: list[tuple[str, str, str]] = []
    metric = main_metric(record.history)
    if metric and record.evaluations:
        mean = record.metric_over_rounds(metric, "mean")
        pooled = record.metric_over_rounds(metric, "pooled")
        last = max(record.evaluations)
        event = record.evaluations[last]
        stands = {scope: basis(event, scope, metric) for scope in ("mean", "pooled", "unseen")}
        name = metric_phrase(metric)
        if last in mean:
            remark = f"over {stands['mean'].who if stands['mean'].amount else 'clients'}{_with(stands['mean'])}"
            figures.append((f"Mean {name}", metric_value(metric, mean[last]), f"{remark}, after round {last}"))
        unseen = record.metric_over_rounds(metric, "unseen")
        if last in unseen:
            apart = stands["unseen"]
            who = "1 client that never trains" if apart.clients == 1 else f"{apart.clients:,} clients that never train"
            remark = f"mean over {who}{_with(apart)}"
            figures.append((f"Unseen {name}", metric_value(metric, unseen[last]), remark))
        if last in pooled:
            remark = f"over all {stands['pooled'].amount or stands['pooled'].unit}"
            figures.append((f"Pooled {name}", metric_value(metric, pooled[last]), remark))
        better = best_of(metric)
        if better and len(mean) > 1:
            best = better(mean, key=lambda round: (mean[round], -round) if better is max else (mean[round], round))
            remark = f"round {best}, chosen on test data{_with(basis(record.evaluations[best], 'mean', metric))}"
            figures.append((f"Best mean {name}", metric_value(metric, mean[best]), remark))
    spent = privacy_figure(record)
    if spent is not None:
        figures.append(spent)
    if record.rounds:
        down, up = record.bytes_total()
        figures.append(("Sent to clients", human_bytes(down), "in all rounds"))
        figures.append(("Sent to server", human_bytes(up), "in all rounds"))
    seconds = record.wall_seconds()
    if seconds is not None:
        figures.append(("Wall time", human_seconds(seconds), _engine(record)))
    return figures


def _with(stands: Basis) -> str:
    return f", {stands.amount}" if stands.amount else ""


def _engine(record: RunRecord) -> str:
    start = record.history.start
    workers = start.get("workers")
    return f"{start.get('engine', '')} engine" + (f", {plural(workers, 'worker')}" if workers else "")


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
        ("Clients", f"{start['clients']:,}" if is_number(start.get("clients")) else ""),
        (server, str(start.get("strategy") or component(record.setting("federation", "strategy")))),
        (client, str(start.get("model") or component(record.setting("model")))),
        ("Parameters", f"{start['parameters']:,}" if is_number(start.get("parameters")) else ""),
        ("Input", " × ".join(str(side) for side in shape) if shape else ""),
        ("Started", moment(start.get("time"))),
    ]
    return [(name, value) for name, value in found if value]


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


def server_table(record: RunRecord) -> Table | None:
    """What the method measured on the server's own data at the last evaluation."""
    values = record.evaluations[max(record.evaluations)].get("server", {}) if record.evaluations else {}
    rows = [(metric_label(metric), metric_value(metric, values[metric])) for metric in metric_names([values])]
    held = server_basis(record.evaluations[max(record.evaluations)]) if rows else ""
    return Table(("On the server’s data", "Value"), rows, note=f"Measured on {held}." if held else "") if rows else None


def curves(record: RunRecord) -> Iterator[Chart]:
    """Evaluation metrics by client, then what clients and server logged."""
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
    yield from _server_curves(record)
    for side, who in (("train", "Training"), ("server", "Server")):
        logged = record.logged("train" if side == "train" else "server")
        logged.pop("seconds", None)
        note = TRAINED if side == "train" else "Logged by the server."
        for stem, group in _families(logged).items():
            svg = lines_chart(f"{side}-{_slug(stem)}", group, ylabel=f"{stem} (as logged)", span=record.span)
            yield Chart(f"{who}: {stem}", svg, note)


def _server_curves(record: RunRecord) -> Iterator[Chart]:
    """Metrics on the server's own data: all accuracies in one chart, every other metric in a chart of its own."""
    groups: dict[str, dict[str, Mapping[int, float]]] = {}
    for metric in metric_names([event.get("server", {}) for event in record.evaluations.values()]):
        points = record.metric_over_rounds(metric, "server")
        if len(points) > 1:  # a single value is in the table
            group = _ACCURACIES if is_share(metric) else metric_phrase(metric)
            groups.setdefault(group, {})[metric_label(metric)] = points
    for label, series in groups.items():
        percent = label == _ACCURACIES
        svg = lines_chart(
            f"held-{_slug(label)}",
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


def _slug(name: str) -> str:
    """A name that is safe in an HTML id: letters and digits are kept, other characters become their codes."""
    return "".join(char if char.isascii() and char.isalnum() else f"_{ord(char):x}" for char in name)


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


def pictures(record: RunRecord) -> list[Pictures]:
    """The method's figures by name."""
    events: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for event in record.history.of("figure"):
        events[event["name"]][event["round"]] = event
    groups = []
    for name, by_round in events.items():
        shots = [
            Shot(_when(round, record), event["title"] or words(name), source)
            for round, event in sorted(by_round.items())
            if (source := _picture(record.folder.path, event["path"]))
        ]
        if shots:
            groups.append(Pictures(words(name), next(iter(by_round.values()))["caption"], shots))
    return groups


def _when(round: int, record: RunRecord) -> str:
    if round == 0:
        return "Before round 1"
    return f"After round {round}" + (", the last" if round == record.rounds_planned and round > 1 else "")


def _picture(folder: Path, name: str) -> str | None:
    """A PNG of this run as data URI; a path that leads out of the folder is not followed."""
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return None
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def left_out(record: RunRecord) -> Table | None:
    """What was there and was not used."""
    found = record.history.left_out
    rows = [
        [left.what, left.why, left.fix, f"{left.count:,.10g}", "–" if left.total is None else f"{left.total:,.10g}"]
        for left in found
    ]
    note = "Of: how many there were in the rounds in which some of them were left out."
    return Table(("What", "Why", "What to do", "Left out", "Of"), rows, note=note, text_columns=2) if rows else None


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


_GIVEN = (("data", "data", "source"), ("method", "method"), ("strategy", "federation", "strategy"))
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
        unknown = found.get("unknown") or []
        why = (
            f"these arguments of its constructor could not be recorded: {', '.join(map(str, unknown))}"
            if unknown
            else "its class was defined in the program itself or in a function, so it cannot be imported by name"
        )
        yield f"The {keys[-1]} was given in Python: {found.get('of') or found.get('name')}; {why}."
