"""Probes of a run's features after the run: on its own data or on other data."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.assembly import make_method
from fedlab.config import Component, DataConfig, parse, read_yaml
from fedlab.data.held import hold_out
from fedlab.data.normalize import check_statistics, normalize, overall_statistics
from fedlab.data.samples import Dataset, Samples, on_device
from fedlab.data.sources import load_source
from fedlab.engine.device import choose_device, use_deterministic_kernels
from fedlab.errors import ConfigError, ConfigErrors, DataError, InputError
from fedlab.experiment.configuration import is_file, look_for_modules, placed
from fedlab.experiment.result import Run
from fedlab.method.columns import ANNOTATIONS
from fedlab.probes import ConfiguredProbe, check_sets, make_probes, run_probes
from fedlab.storage.checkpoint import load_checkpoint
from fedlab.storage.plain import read_plain
from fedlab.tracking.tracker import plain

_OPTIONS = ("fit", "test", "label", "part")
TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured on a run's features.

    Args:
        kind: name of the probe.
        round: round after which the weights were saved.
        part: part of the method whose features were probed.
        fit: set that the probe was fitted to, with its number of samples; None if there was none.
        test: set that it was scored on, likewise.
        data: name of the data.
        values: values by name of the metric.
    """

    kind: str
    round: int
    part: str
    fit: tuple[str, int] | None
    test: tuple[str, int]
    data: str
    values: Mapping[str, float]

    @property
    def basis(self) -> str:
        """The samples that the values are based on, in words."""
        fitted = "" if self.fit is None else f"fitted to {self.fit[0]} ({self.fit[1]:,} samples), "
        return f"{fitted}scored on {self.test[0]} ({self.test[1]:,} samples)"


def probe_run(
    run: Run, kind: str, settings: Mapping[str, Any], data: str | Path | Dataset | None = None
) -> ProbeResult:
    """Fit a probe to the features of a run's last checkpoint, score it, and append the result to the run folder.

    Args:
        run: the run, whether it has finished or not.
        kind: name of the probe.
        settings: its settings. The set to fit on is by default ``train``, all training samples of the clients, and the
            set to score on ``test``; the sets that the server holds can be named too.
        data: samples to probe instead of the run's own: a YAML file with a section ``data``, a folder of pictures with
            one folder for each class, an .npz file, or samples in memory. Pictures are normalized as in the run, unless
            the section has a ``mean`` or ``std``.

    Raises:
        CheckpointError: the run has no complete checkpoint.
        ConfigErrors: a wrong probe or setting, or the run's configuration cannot be carried out here.
        DataError: the data is missing, or of another shape than that of the run.
    """
    config, checkpoint = run.config, run.checkpoint
    method = run.method or make_method(config.method)
    device = choose_device(config.engine.device)
    use_deterministic_kernels(device)
    _, meta = load_checkpoint(checkpoint)
    section = _section(run, data, meta["columns"])
    component = Component(name=kind, **{"fit": TRAIN, **_on_server(kind), **settings})
    try:
        (one,) = make_probes([component], method.feature_parts, section.held)
        dataset = data if isinstance(data, Dataset) else load_source(section.source, config.seed)
        sets = _sets(hold_out(dataset, section.held, section.validation), section, one)
        _check_shapes(sets, meta["columns"])
        check_sets([one], {name: samples.columns for name, samples in sets.items()})
    except InputError as error:
        raise _as_option(error) from error
    except ConfigErrors as several:
        raise ConfigErrors([_as_option(error) for error in several.errors]) from several
    columns = {name: on_device(samples, device) for name, samples in sets.items()}
    networks = run.model.to(device)
    values = run_probes([one], method, networks, columns, config.evaluation.batch_size, config.seed)
    s = one.settings
    fit = None if s.fit is None else (s.fit, len(sets[s.fit]))
    result = ProbeResult(kind, int(meta["round"]), one.part, fit, (s.test, len(sets[s.test])), dataset.name, values)
    _append(run, result, one, dataset)
    return result


def _on_server(kind: str) -> dict[str, str]:
    return {"on": "server"} if kind == "ridge" else {}


def _section(run: Run, data: str | Path | Dataset | None, columns: Mapping[str, Any]) -> DataConfig:
    """The section ``data`` that describes the samples to be probed."""
    own = run.config.data
    if data is None:
        return own
    statistics = {"mean": overall_statistics(own.mean), "std": overall_statistics(own.std)}
    if isinstance(data, Dataset):
        return parse(DataConfig, {"source": own.source.model_dump(mode="json"), **statistics}, "data")
    path = Path(data).expanduser().absolute()
    if path.is_dir():
        source: dict[str, Any] = {"name": "folder", "path": str(path), **_picture(columns)}
        return parse(DataConfig, {"source": source, **statistics}, "data")
    if path.suffix == ".npz":
        return parse(DataConfig, {"source": {"name": "npz", "path": str(path)}, **statistics}, "data")
    if not is_file(path.name):
        raise ConfigError("--data", str(data), "a folder of pictures, an .npz file, or a YAML file with a section data")
    raw = read_yaml(path)
    found = raw.get("data", raw)
    if not isinstance(found, Mapping):
        raise ConfigError("--data", str(data), "a YAML file with a section data", "see docs/probes.md")
    look_for_modules(raw, path.parent)
    there = placed({"data": {**statistics, **found}}, lambda key: path.parent)
    return parse(DataConfig, there["data"], "data")


def _picture(columns: Mapping[str, Any]) -> dict[str, int]:
    """Settings of the source folder for pictures as the run's networks take them.

    Raises:
        DataError: the run had no pictures, or none of equal height and width.
    """
    shape = tuple(columns["image"][1]) if "image" in columns else ()
    if len(shape) != 3 or shape[1] != shape[2] or shape[0] not in (1, 3):
        fix = "write a YAML file with a section data, and give it to --data"
        raise DataError("--data", f"a run on samples of shape {shape or 'other than pictures'}", "square pictures", fix)
    return {"channels": shape[0], "size": shape[1]}


def _sets(dataset: Dataset, section: DataConfig, one: ConfiguredProbe) -> dict[str, Samples]:
    """The sets that a probe asks for, images normalized; a set of the server comes before the clients' of its name."""
    every = {TRAIN: dataset.train, TEST: dataset.test, **dataset.server}
    wanted = {one.settings.fit, one.settings.test}
    sets: dict[str, Samples] = {}
    for name, samples in every.items():
        if "image" in samples.columns and name in wanted:
            check_statistics(section, samples["image"].shape[1], samples.domain_names)
            domains = samples.columns.get("domain")
            images = normalize(samples["image"], domains, samples.domain_names, section)
            samples = samples.with_columns({**samples.columns, "image": images})
        sets[name] = samples
    return sets


def _check_shapes(sets: Mapping[str, Samples], columns: Mapping[str, Any]) -> None:
    """Refuse samples that the run's networks cannot take.

    Raises:
        DataError: a column is missing or has another shape.
    """
    train = sets[TRAIN]
    for name, (_, shape) in columns.items():
        if name in ANNOTATIONS or not shape:
            continue
        found = train.columns[name].shape[1:] if name in train.columns else None
        if found != tuple(shape):
            value = f"no column {name!r}" if found is None else f"{name}s of shape {found}"
            fix = "set data.source.size and data.source.channels to those of the run"
            raise DataError("--data", value, f"{name}s of shape {tuple(shape)}, as in the run", fix)


def _as_option(error: InputError) -> InputError:
    """An error about a setting as one about the option of the command that gives it."""
    name = error.key.removeprefix("probes.0.") if error.key.startswith("probes.0.") else None
    if name is None:
        return error
    key = "--kind" if name == "name" else f"--{name}" if name in _OPTIONS else f"--set {name}"
    return type(error)(key, error.value, error.expected, error.fix)


def _append(run: Run, result: ProbeResult, one: ConfiguredProbe, dataset: Dataset) -> None:
    """Append a result to the file of probes in the run folder, as one line of JSON."""
    settings = one.settings.model_dump(mode="json")
    record = {
        "time": time.time(),
        "round": result.round,
        "kind": result.kind,
        "part": result.part,
        "settings": settings,
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint},
        "fit": result.fit,
        "test": result.test,
        "values": plain(dict(result.values)),
    }
    with run.folder.probes.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a crash has cut the last line short, and this one must not continue it
                file.write(b"\n")
        file.write(json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def earlier_probes(run: Run) -> tuple[list[ProbeResult], list[int]]:
    """The results that `probe_run` has appended to a run folder, and the numbers of the lines that are none, from 1."""
    found: list[ProbeResult] = []
    damaged: list[int] = []
    lines = read_plain(run.folder.probes).splitlines() if run.folder.probes.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            r = json.loads(line)
            fit = None if r["fit"] is None else (str(r["fit"][0]), int(r["fit"][1]))
            test = (str(r["test"][0]), int(r["test"][1]))
            found.append(ProbeResult(r["kind"], r["round"], r["part"], fit, test, r["data"]["name"], r["values"]))
        except (ValueError, LookupError, TypeError, RecursionError, AttributeError):
            damaged.append(number)
    return found, damaged
