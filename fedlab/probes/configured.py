"""The probes that a configuration names: made, checked and given the names of their metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedlab.config import Component
from fedlab.config.held import HeldSet
from fedlab.errors import ConfigError, DataError, InputError, Mistakes, did_you_mean
from fedlab.probes.base import Labels, MergeableProbe, Probe, ProbeSettings
from fedlab.registry import Registry

PROBES = Registry(
    "probe",
    {
        "few_shot": "fedlab.probes.few_shot:FewShot",
        "knn": "fedlab.probes.knn:NearestNeighbors",
        "linear": "fedlab.probes.linear:Linear",
        "prompt_segmentation": "fedlab.probes.prompt_segmentation:PromptSegmentationProbe",
        "retrieval": "fedlab.probes.retrieval:RetrievalProbe",
        "ridge": "fedlab.probes.ridge:Ridge",
        "svm": "fedlab.probes.svm:SVM",
    },
    "fedlab.probes",
)

_TEST = "test"
_ON_CLIENTS = ("train", "validation")


@dataclass(frozen=True)
class ConfiguredProbe:
    """A probe of a configuration.

    Args:
        key: configuration key, such as ``probes.0``.
        metric: name of the metric of its main value.
        part: part of the method whose features it looks at.
        probe: the probe object, with its settings.
    """

    key: str
    metric: str
    part: str
    probe: Probe

    @property
    def settings(self) -> ProbeSettings:
        """The probe's settings."""
        settings: ProbeSettings = self.probe.settings
        return settings

    @property
    def mergeable(self) -> MergeableProbe | None:
        """The probe if it works on the clients' own samples, otherwise None."""
        probe = self.probe
        return probe if isinstance(probe, MergeableProbe) and probe.on_clients else None

    def named(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values of `Probe.run` by the names of their metrics."""
        return {self.metric if name == "score" else f"{self.metric}_{name}": value for name, value in values.items()}


def make_probes(
    components: Sequence[Component], parts: Sequence[str] | None, held: Mapping[str, HeldSet] | None = None
) -> tuple[ConfiguredProbe, ...]:
    """Make the probes of the section ``probes``, and check all that can be known without data.

    Args:
        components: names and settings.
        parts: the method's `feature_parts`; None if the method is not known, because its own settings are wrong.
        held: settings of the held-out sets, which tell test sets from others.

    Raises:
        ConfigErrors: every mistake that was found.
    """
    mistakes, made = Mistakes(), list[tuple[str, str, Probe]]()
    for index, component in enumerate(components):
        key = f"probes.{index}"
        with mistakes.collected():
            found, settings = PROBES.configured(component, key)
            if not (issubclass(found, Probe) and isinstance(settings, ProbeSettings)):
                expected = "a subclass of fedlab.probes.Probe, with Settings that are a subclass of ProbeSettings"
                raise ConfigError(f"{key}.name", component.name, expected)
            probe = found(settings)
            mistakes.errors += _mistakes(key, probe, parts, held or {})
            made.append((key, component.name.rpartition(":")[2], probe))
    first = parts[0] if parts else ""
    names, twice = _metrics(made, first)
    mistakes.errors += twice
    mistakes.settle()
    return tuple(
        ConfiguredProbe(key, metric, probe.settings.part or first, probe)
        for (key, _, probe), metric in zip(made, names, strict=True)
    )


def _mistakes(key: str, probe: Probe, parts: Sequence[str] | None, held: Mapping[str, HeldSet]) -> list[InputError]:
    """What is wrong with the common settings of a probe."""
    s, found = probe.settings, list[InputError]()
    if parts is not None and not parts:
        fix = "choose another method, or remove the probes"
        found.append(ConfigError(key, type(probe).__name__, "a method whose features can be probed", fix))
    elif s.part is not None and parts is not None and s.part not in parts:
        expected = f"a part of the method: {', '.join(parts)}"
        found.append(ConfigError(f"{key}.part", s.part, expected, did_you_mean(s.part, parts)))
    if isinstance(probe, MergeableProbe) and probe.on_clients:
        if s.fit not in _ON_CLIENTS:
            expected = "train or validation, the clients' own samples"
            found.append(ConfigError(f"{key}.fit", s.fit, expected, f"set it to train, or set {key}.on: server"))
        if s.test != _TEST:
            expected = "test, the clients' own test samples"
            found.append(ConfigError(f"{key}.test", s.test, expected, f"set it to test, or set {key}.on: server"))
        return found
    if s.fit is None and probe.fits:
        found.append(ConfigError(f"{key}.fit", None, "a set to fit on", "name a set of samples that the server holds"))
    if s.fit is not None and s.fit == s.test:
        expected = f"another set than {key}.test, because a score on samples that were fitted says nothing"
        found.append(ConfigError(f"{key}.fit", s.fit, expected, "hold out two sets with data.held"))
    elif s.fit is not None and (s.fit == _TEST or (s.fit in held and held[s.fit].split == "test")):
        expected = "a set that does not come from test samples: nothing may be fitted to or chosen on these"
        found.append(ConfigError(f"{key}.fit", s.fit, expected, "hold out training samples with data.held"))
    return found


def _metrics(made: Sequence[tuple[str, str, Probe]], first: str) -> tuple[list[str], list[InputError]]:
    """A metric's name for each probe. Those of one name are told apart by the settings in which they differ."""

    def told(settings: ProbeSettings, name: str) -> str:
        value = getattr(settings, name)
        return str(first if name == "part" and value is None else value)

    names: list[str] = []
    for _, kind, probe in made:
        s = probe.settings
        same = [other.settings for _, another, other in made if another == kind]
        suffixes = [told(s, name) for name in _TELLING if len({told(other, name) for other in same}) > 1]
        suffixes = [s.suffix] if s.suffix is not None else suffixes
        names.append("_".join(["probe", kind, *suffixes]))
    twice = {name for name, count in Counter(names).items() if count > 1}
    errors: list[InputError] = [
        ConfigError(f"{key}.suffix", None, f"metrics of different names: several are called {name}", "set a suffix")
        for (key, _, _), name in zip(made, names, strict=True)
        if name in twice
    ]
    return names, errors


_TELLING = ("part", "label", "fit", "test")


def check_sets(
    probes: Sequence[ConfiguredProbe], sets: Mapping[str, Mapping[str, Any]], classes: int | None = None
) -> None:
    """Check that the samples which probes ask for are there and have the labels.

    Args:
        probes: the probes.
        sets: columns of the sets that the server holds, by name, as arrays or tensors.
        classes: number of classes of the clients' data; None leaves the clients' data unchecked.

    Raises:
        ConfigErrors: every mistake that was found.
    """
    mistakes = Mistakes()
    for one in probes:
        with mistakes.collected():
            if one.mergeable is None:
                fit = None if one.settings.fit is None else _labels(one, "fit", sets)
                one.probe.check(fit, _labels(one, "test", sets))
            elif classes is not None and classes < 2:
                fix = "choose a labeled source, or remove the probe"
                raise DataError(one.key, f"{classes} classes", "clients' data with at least two classes", fix)
    mistakes.settle()


def check_set_names(probes: Sequence[ConfiguredProbe], names: Collection[str]) -> None:
    """Check that the sets which probes ask for are among those that the server will hold.

    Args:
        probes: the probes.
        names: of the sets.

    Raises:
        ConfigErrors: every mistake that was found.
    """
    mistakes = Mistakes()
    for one in probes:
        for side in ("fit", "test") if one.mergeable is None else ():
            with mistakes.collected():
                _set_name(one, side, names)
    mistakes.settle()


def _set_name(one: ConfiguredProbe, side: str, names: Collection[str]) -> str | None:
    """Name of the set that a probe is fitted to or tested on."""
    name: str | None = getattr(one.settings, side)
    if name is not None and name not in names:
        there = f"a set that the server holds: {', '.join(sorted(names))}" if names else "samples that the server holds"
        fix = did_you_mean(name, names) if names else "hold samples out with data.held, or use the probe ridge"
        raise ConfigError(f"{one.key}.{side}", name, there, fix)
    return name


def _labels(one: ConfiguredProbe, side: str, sets: Mapping[str, Mapping[str, Any]]) -> Labels:
    name, column = _set_name(one, side, sets), one.settings.label
    assert name is not None
    columns = sets[name]
    if column not in columns:
        expected = f"a column of the set {name!r}: {', '.join(sorted(columns))}"
        raise ConfigError(f"{one.key}.label", column, expected, did_you_mean(column, list(columns)))
    values = columns[column]
    if not len(values):
        raise ConfigError(f"{one.key}.{side}", name, "a set with samples", "hold out more samples")
    return Labels(name, np.asarray(values.cpu() if hasattr(values, "cpu") else values))
