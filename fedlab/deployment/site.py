"""`fedlab deploy node`: prepares the machine of a site, from the one file that the organizer hands over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab.config import apply_overrides, parse, set_dotted
from fedlab.config.node import NodeConfig
from fedlab.data.own import located_node
from fedlab.data.samples import Dataset
from fedlab.data.sources.sites import OneSite, SitesSettings
from fedlab.deployment.handover import HandOver, read_hand_over
from fedlab.deployment.nodefile import mounted, operators_own, write_node_file
from fedlab.deployment.private import private_folder, write_private
from fedlab.deployment.processes import check_machine
from fedlab.deployment.project import Folder, Form, Site, new_name
from fedlab.errors import ConfigError
from fedlab.storage.paths import PathKind
from fedlab.storage.runfolder import write_atomic

_SEED = 0  # sources that draw which samples are for tests draw them anew in every run


@dataclass(frozen=True)
class Prepared:
    """The folder of a site, and what was found in its data.

    Args:
        folder: the site's folder.
        settings: what it is.
        found: lines that say how many samples there are, of which classes, and what was left out.
    """

    folder: Folder
    settings: Site
    found: tuple[str, ...]


def prepare(
    file: Path, path: Path | None, data: str | None, overrides: Sequence[str], form: Form | None, image: str | None
) -> Prepared:
    """Make the folder of a site, after its data was loaded once and compared with what the sites have agreed on.

    In a folder that exists, the key stays, and the data is taken from the new options.

    Args:
        file: the file that the organizer handed over.
        path: the folder to make; None takes the site's name.
        data: folder or file of the site's samples, for sources that have a ``path``.
        overrides: settings of the source, as ``data.key=value``, and files of the method's assets, as
            ``assets.name=path``.
        form: how the node runs; None keeps what the folder has, or is containers.
        image: image of the containers; None is the organizer's.

    Raises:
        ConfigError, ConfigErrors: the file or an option cannot be used.
        DataError: the data cannot be loaded, or contradicts what was agreed; no key was written.
    """
    given = read_hand_over(file)
    folder = Folder((path or Path(given.site)).absolute())
    before = folder.begun("fedlab deploy node")
    if before is not None and not (isinstance(before, Site) and before.site == given.site):
        raise ConfigError("FOLDER", str(folder.path), f"a folder of site {given.site}", "choose another folder")
    chosen: Form = form or (before.form if before is not None else "containers")
    if chosen == "processes":
        check_machine()
    own = _own(given, data, overrides)
    source = own["data"]
    found = _report(given, source)
    private_folder(folder.path)
    _write(folder, given)
    settings = Site(
        name=before.name if before is not None else new_name(folder.path),
        form=chosen,
        site=given.site,
        superlink=given.superlink,
        image=image or given.image,
        data=_mount(own, chosen),
    )
    _write_node(folder, settings, own)
    folder.write(settings)
    if chosen == "containers":
        from fedlab.deployment.containers import write_compose

        write_compose(folder)
    return Prepared(folder, settings, found)


def _own(given: HandOver, data: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """What the site's file says of its own: ``data``, the organizer's with the site's changes, and ``assets``.

    Paths are absolute.
    """
    raw: dict[str, Any] = {"data": dict(given.data), "assets": {}}
    if data is not None:
        set_dotted(raw, "data.path", PathKind("hub").absolute(data, Path.cwd()))
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key != "data" and not key.startswith(("data.", "assets.")):
            raise ConfigError("--set", override, "a key below data or assets, such as data.size=28")
    own = apply_overrides(raw, overrides)
    assets = parse(NodeConfig, {"site": given.site, "data": "digits", "assets": own["assets"]}).assets
    placed = {name: PathKind("hub").absolute(path, Path.cwd()) for name, path in assets.items()}
    return {"data": dict(own["data"]), "assets": placed}


def _report(given: HandOver, source: dict[str, Any]) -> tuple[str, ...]:
    """Load the data as a run will, and say what was found.

    Raises:
        DataError: it cannot be loaded, or contradicts what was agreed.
    """
    agreed = parse(SitesSettings, {**given.agreed, "sites": [given.site]}, "agreed")
    node = parse(NodeConfig, {"site": given.site, "data": source})
    dataset = OneSite(agreed, given.site, node.data).load(_SEED)
    lines = [f"data: {len(dataset.train):,} training and {len(dataset.test):,} test samples of {dataset.name}"]
    lines += _classes(dataset)
    lines += [left.notice for left in dataset.left_out]
    what = [name for name in ("classes", "columns", "vocabulary") if given.agreed.get(name)]
    told = (
        f"fits what the sites have agreed on: {', '.join(what)}"
        if what
        else "the sites have agreed on nothing to check"
    )
    return (*lines, told)


def _classes(dataset: Dataset) -> list[str]:
    if "label" not in dataset.train.columns:
        return []
    names = dataset.train.class_names
    counts = Counter(int(code) for code in dataset.train["label"])
    told = ", ".join(f"{name} {counts[code]:,}" for code, name in enumerate(names))
    lacking = [name for code, name in enumerate(names) if not counts[code]]
    return [f"training samples by class: {told}"] + (
        [f"note: this site has no training samples of {', '.join(lacking)}; it keeps the class"] if lacking else []
    )


def _write(folder: Folder, given: HandOver) -> None:
    write_atomic(folder.path / "ca.crt", given.ca)
    key = folder.path / "key"
    if key.is_file() and key.read_text(encoding="ascii") != given.key:
        key.unlink()  # the organizer has made the site's keys anew
    if not key.is_file():
        write_private(key, given.key)


def _mount(own: dict[str, Any], form: Form) -> str | None:
    from fedlab.deployment.containers import DATA

    place = mounted({"data": own["data"]}, own["assets"], DATA).folder if form == "containers" else None
    return None if place is None else str(place)


def _write_node(folder: Folder, settings: Site, own: dict[str, Any]) -> None:
    from fedlab.deployment.containers import DATA, STATE

    path = folder.path / "node.yaml"
    decided = operators_own(path) if path.is_file() else {}
    if settings.form == "containers":
        seen = mounted({"data": own["data"]}, own["assets"], DATA)
        write_node_file(path, settings.site, seen.sources["data"], STATE, seen.assets, decided)
    else:
        write_node_file(path, settings.site, own["data"], folder.state, own["assets"], decided)
        located_node(path)  # as the node will read it
