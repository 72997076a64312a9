"""The data of several sites, each of which is one client of a federation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from fedlab.config import Component, ComponentField, DataConfig, Section, parse
from fedlab.config.node import SiteName
from fedlab.data.classes import plausible
from fedlab.data.files.spelling import one_form
from fedlab.data.samples import Dataset, Samples
from fedlab.data.sources import Source, build_source
from fedlab.data.sources.agreed import Agreement, joint_classes, other_classes, recoded
from fedlab.data.sources.given import GIVEN
from fedlab.data.sources.joining import (
    check_alike,
    column_names,
    join,
    left_out_of,
    load_part,
    missing_parts,
    warnings_of,
)
from fedlab.data.stand_in import Wanted, loaded_or_random
from fedlab.errors import ConfigError, ConfigErrors, DataError, InputError, NoClientError, did_you_mean

NAME = "sites"
STEP = "site"
_KEY = "data.source"
_SPLITS = ("train", "test")
_Names = tuple[str, ...]


def _different(names: _Names) -> _Names:
    if len({one_form(name) for name in names}) < len(names):
        raise ValueError("different names, each once")
    return names


class SitesSettings(Section):
    """Settings of the sites source."""

    sites: dict[SiteName, ComponentField] | Annotated[tuple[SiteName, ...], AfterValidator(_different)] = Field(
        min_length=1,
        description="name of each site → source of its samples, in the order of client ids; a list of the names if the "
        "run is deployed, because every node has a source of its own",
    )
    classes: Annotated[_Names, AfterValidator(_different)] | None = Field(
        default=None,
        description="names of the classes that all sites agree on, in the order of their codes; a site may lack some. "
        "Default: all classes of all sites, which a deployed run cannot know",
    )
    columns: dict[str, tuple[int, ...]] = Field(
        default={},
        description="agreed shape of a sample by column, such as {image: [3, 28, 28]}; columns of single numbers, such "
        "as label, can be left out",
    )
    vocabulary: _Names | str | None = Field(
        default=None,
        description="agreed words that the numbers of a text column stand for, in their order, or their hash",
    )
    server: dict[str, ComponentField] | Annotated[_Names, AfterValidator(_different)] = Field(
        default={},
        description="sets of samples that the server holds: name of each set → source, all of whose samples are taken; "
        "a list of the names if the run is deployed, because the server has sources of its own",
    )

    @property
    def names(self) -> _Names:
        """Names of the sites, in the order of client ids."""
        return tuple(self.sites)


class Sites:
    """The data of several sites, each of which is one client; the same file also runs deployed on the sites."""

    Settings = SitesSettings

    def __init__(self, settings: SitesSettings) -> None:
        self.settings = settings
        self._sources = _built(settings.sites, f"{_KEY}.sites")
        self._server = _built(settings.server, f"{_KEY}.server")

    @property
    def held_out_classes(self) -> bool:
        return any(getattr(source, "held_out_classes", False) for source in self._sources.values())

    def missing(self) -> str | None:
        for key, given in (("sites", self.settings.sites), ("server", self.settings.server)):
            if given and not isinstance(given, dict):
                return f"data.source.{key} lists names only, so the data is on other machines; write the source of each"
        told = (missing_parts(self._sources, f"{_KEY}.sites"), missing_parts(self._server, f"{_KEY}.server"))
        return "\n".join(filter(None, told)) or None

    def load(self, seed: int) -> Dataset:
        self._check_here()
        found = {name: load_part(source, f"{_KEY}.sites.{name}", seed) for name, source in self._sources.items()}
        return self._joined(found, seed)

    def stand_in(self, wanted: Wanted) -> Dataset:
        """Random samples instead of those that are not here; all others are loaded, and so are the server's."""
        self._check_here()
        sources = self._sources.items()
        places = {name: f"{_KEY}.sites.{name}" for name in self._sources}
        return self._joined({name: loaded_or_random(one, name, places[name], wanted, 0) for name, one in sources}, 0)

    def _check_here(self) -> None:
        """Refuse to load the data of sites that are only named."""
        for key, given in (("sites", self.settings.sites), ("server", self.settings.server)):
            if given and not isinstance(given, dict):
                example = f"{_KEY}.{key}: {{{given[0]}: {{name: folder, path: …}}}}"
                expected = "a source for each, because this machine is to load the data"
                raise DataError(f"{_KEY}.{key}", list(given), expected, f"write {example}, or deploy the run")

    def _joined(self, found: Mapping[str, Dataset], seed: int) -> Dataset:
        classes = self.settings.classes or joint_classes(data.train for data in found.values())
        agreed = replace(agreement(self.settings), classes=classes)
        parts = {name: agreed.applied(dataset, f"{_KEY}.sites.{name}") for name, dataset in found.items()}
        first_name, first = next(iter(parts.items()))
        for name, dataset in parts.items():
            key, advice = f"{_KEY}.sites.{name}", "change its settings: all sites need data of one kind"
            check_alike(key, dataset, first_name, first, advice)
            _check_types(key, dataset, first_name, first, advice)
        return replace(_united(parts, self.settings.names), server=server_sets(self._server, classes, seed))


class OneSite:
    """The samples of one site, on the node that holds them.

    Args:
        settings: what the sites have agreed on.
        site: name of the node's site.
        component: the node's own source.

    Raises:
        NoClientError: the site is not listed.
        ConfigError, ConfigErrors: the source is unknown or has wrong settings.
    """

    def __init__(self, settings: SitesSettings, site: str, component: Component) -> None:
        if site not in settings.names:
            expected = f"one of the sites of this run: {', '.join(settings.names)}"
            fix = f"correct it or add the site to the run's {_KEY}.sites; {did_you_mean(site, settings.names)}"
            raise NoClientError("site", site, expected, fix)
        self.settings, self.site = settings, site
        self._source = build_source(component, "data")

    @property
    def held_out_classes(self) -> bool:
        return bool(getattr(self._source, "held_out_classes", False))

    @cached_property
    def client(self) -> int:
        """The client's id, which is the site's place in the list."""
        return self.settings.names.index(self.site)

    def load(self, seed: int) -> Dataset:
        """The node's samples, coded as those of all sites are.

        Args:
            seed: the run's seed.

        Raises:
            DataError: the data is missing or unreadable, or contradicts what was agreed.
        """
        part = agreement(self.settings).applied(load_part(self._source, "data", seed), "data")
        return plausible(_united({self.site: part}, self.settings.names), self.held_out_classes)


def agreement(settings: SitesSettings) -> Agreement:
    """What the settings say that all sites must have in common."""
    return Agreement(settings.classes, settings.columns, settings.vocabulary)


def server_sets(
    sources: Mapping[str, Source], classes: _Names | None, seed: int, place: str = f"{_KEY}.server"
) -> dict[str, Samples]:
    """Sets of samples that the server holds: all samples, training and test, of each source.

    Labels are coded as those of the sites if all classes of a set are among theirs. A set of wholly other classes keeps
    its own.

    Args:
        sources: by the name of the set.
        classes: of the sites' samples; None if they have none.
        seed: the run's seed.
        place: configuration key below which the sources are, for errors.

    Raises:
        DataError: data is missing or unreadable, or only some of its classes are among those of the sites.
    """
    sets = {}
    for name, source in sources.items():
        dataset = load_part(source, f"{place}.{name}", seed)
        both = join({split: getattr(dataset, split) for split in _SPLITS}, _SPLITS)
        columns = {column: both[column] for column in column_names(both)}
        samples = Samples({**columns, "domain": np.zeros(len(both), np.int64)}, both.class_names, (name,))
        strange = other_classes(samples, classes or ())
        if not strange and classes:
            samples = recoded(samples, classes)
        elif classes and len(other_classes(samples, ())) > len(strange):
            expected = f"classes that are all among those of the sites ({', '.join(classes)}), or none of them"
            fix = "remove the other classes from the set, or rename the classes that mean something else"
            raise DataError(f"{place}.{name}", f"classes {', '.join(strange)}", expected, fix)
        sets[name] = samples
    return sets


def by_site(data: DataConfig) -> bool:
    """Whether every client of a run is a site with samples of its own."""
    return any(step.name == STEP for step in data.partition)


def own_data_settings(data: DataConfig) -> SitesSettings:
    """Settings of the source of a run in which every node has data of its own.

    Raises:
        ConfigError: the partition divides a source, which no node has.
        ConfigErrors: as `check_sites`, or wrong settings.
    """
    if not by_site(data):
        steps = [step.name for step in data.partition]
        expected = "[site], because in a deployment every node has data of its own, which is not divided"
        fix = (
            "list the sites in data.source {name: sites, sites: [NAME, …]}; for a demonstration, in which every node "
            "loads the configured data and takes its part, use --simulate-partition"
        )
        raise ConfigError("data.partition", steps, expected, fix)
    check_sites(data)
    return parse(SitesSettings, data.source.settings, _KEY)


def check_sites(data: DataConfig) -> None:
    """Refuse what cannot be the same on a node, which knows the samples of its own site only.

    Raises:
        ConfigErrors: the source is not `sites`, or sets of the server are to be drawn from the sites' samples.
    """
    if not by_site(data):
        return
    errors: list[InputError] = []
    if data.source.name not in (NAME, GIVEN):
        fix = "use the source sites, or the step domain for a source with several domains"
        errors.append(ConfigError("data.source.name", data.source.name, "sites, as data.partition is [site]", fix))
    if data.held:
        expected = "no set that is drawn from the sites' samples, because these never leave their site"
        fix = "give the server samples of its own with data.source.server; data.validation stays on the sites"
        errors.append(ConfigError("data.held", list(data.held), expected, fix))
    if errors:
        raise ConfigErrors(errors)


def _built(given: Mapping[str, Component] | _Names, place: str) -> dict[str, Source]:
    if not isinstance(given, Mapping):
        return {}
    return {name: build_source(component, f"{place}.{name}") for name, component in given.items()}


def _united(parts: Mapping[str, Dataset], sites: _Names) -> Dataset:
    """The samples of all sites, or of some, each site a domain."""
    first = next(iter(parts.values()))
    train, test = (join({name: getattr(data, split) for name, data in parts.items()}, sites) for split in _SPLITS)
    return Dataset(NAME, train, test, {}, first.vocabulary, left_out_of(parts), sites, warnings=warnings_of(parts))


def _check_types(key: str, dataset: Dataset, first_name: str, first: Dataset, advice: str) -> None:
    """Refuse other types of numbers: a node, which does not know the other sites' types, could not convert its own."""
    for column in column_names(first.train):
        ours, theirs = dataset.train[column].dtype, first.train[column].dtype
        if ours != theirs:
            raise DataError(key, f"{column}s of type {ours}", f"{theirs}, as in {first_name!r}", advice)
