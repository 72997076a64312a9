"""`fedlab deploy up`, `down` and `status`, for the folder of a federation and for that of a site."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedlab.deployment import certificates, containers, processes, supervisor
from fedlab.deployment.create import write_connection
from fedlab.deployment.flower import Connection, DeploymentError, is_up
from fedlab.deployment.private import check_private
from fedlab.deployment.processes import registered, remember
from fedlab.deployment.project import CONNECTION, Federation, Folder, Site
from fedlab.errors import ConfigError, MachineError

_LOOK = 0.2  # seconds between two looks at a SuperLink that is starting
_MOST_STARTS = 3  # of a program that ends at once, before it is given up
_SOON = timedelta(days=30)  # a certificate that expires within this time is warned of


@dataclass(frozen=True)
class SiteStatus:
    """How the node of a site stands.

    Args:
        site: its name.
        state: ``connected``, ``not connected``, ``never connected`` or ``not registered``.
        since: when this began; None if it is not known.
    """

    site: str
    state: str
    since: datetime | None


@dataclass(frozen=True)
class FederationStatus:
    """How a federation stands.

    Args:
        up: whether its SuperLink answers.
        programs: state of each program or container on this machine, by name.
        sites: the nodes in the order of client ids; empty if the SuperLink does not answer.
        runs: what Flower tells of each run, the newest first.
        expiry: when the server's certificate expires.
        names: names and addresses for which it is valid.
    """

    up: bool
    programs: Mapping[str, str]
    sites: tuple[SiteStatus, ...]
    runs: tuple[Mapping[str, Any], ...]
    expiry: datetime
    names: tuple[str, ...]


def connection(folder: Folder) -> Connection:
    """The way to the SuperLink of a federation on this machine."""
    return Connection(CONNECTION, folder.flower)


def up(folder: Folder) -> list[str]:
    """Start everything of a project that runs on this machine; what runs already is left alone.

    A federation's SuperLink is up and knows the keys of all nodes when this returns.

    Returns:
        Names of the sites whose nodes were registered just now.

    Raises:
        ConfigError: a key can be read by others, or the server's certificate has expired.
        MachineError: a port is taken, or there is no container engine.
        DeploymentError: the SuperLink did not start.
    """
    settings = folder.settings()
    if settings.form == "containers":
        containers.check_engine()
    if isinstance(settings, Site):
        check_private(folder.path / "key")
        if settings.form == "containers":
            containers.up(folder)
        else:
            supervisor.start(folder)
        return []
    _check_server(folder, settings)
    write_connection(folder, settings)
    if settings.form == "containers":
        containers.up(folder, server_only=True)
        new = register(folder, settings)
        containers.up(folder)
        return new
    _check_ports(folder, settings)
    supervisor.start(folder)
    _await_superlink(folder, settings)
    new = register(folder, settings)
    supervisor.start(folder)  # nodes are started as soon as the SuperLink knows them
    return new


def use_image(folder: Folder, image: str) -> None:
    """Have the containers of a project use another image from their next start on.

    Raises:
        ConfigError: the project has no containers.
    """
    settings = folder.settings()
    if settings.form != "containers":
        raise ConfigError("--image", image, "a project in containers", "leave the option out: this one has processes")
    folder.write(settings.model_copy(update={"image": image}))
    containers.write_compose(folder)


def down(folder: Folder) -> int:
    """End everything of a project that runs on this machine and return how many processes or containers there were."""
    settings = folder.settings()
    if settings.form == "containers":
        containers.check_engine()
        return containers.down(folder)
    return supervisor.stop(folder)


def register(folder: Folder, settings: Federation) -> list[str]:
    """Make the keys of all nodes known to the SuperLink and return the sites that are new to it."""
    link, known = connection(folder), registered(folder)
    there = link.nodes()
    new = []
    for site in settings.sites:
        if site in known and there.get(known[site], {}).get("status") in ("online", "offline", "registered"):
            continue
        try:
            known[site] = link.register(folder.public_key(site), site)
        except DeploymentError as error:
            error.add_note(f"the key of {site} could not be registered; see docs/deployment.md, section Problems")
            raise
        new.append(site)
        remember(folder, known)
    return new


def unregister(folder: Folder, site: str) -> None:
    """Have the SuperLink refuse a node from now on, if it knows it."""
    known = registered(folder)
    if site in known:
        connection(folder).unregister(known.pop(site))
        remember(folder, known)


def status(folder: Folder, settings: Federation) -> FederationStatus:
    """How a federation stands."""
    healthy = is_healthy(folder, settings.control_port)
    link = connection(folder)
    nodes = link.nodes() if healthy else {}
    known = registered(folder)
    return FederationStatus(
        up=healthy,
        programs=programs(folder),
        sites=tuple(_site(site, nodes.get(known.get(site, ""))) for site in settings.sites) if healthy else (),
        runs=tuple(link.runs()) if healthy else (),
        expiry=certificates.expiry(folder.server_certificate),
        names=tuple(certificates.names(folder.server_certificate)),
    )


def programs(folder: Folder) -> dict[str, str]:
    """State of each program or container of a project on this machine, by name."""
    if folder.settings().form == "containers":
        containers.check_engine()
        return containers.standings(folder)
    told = {}
    for name, one in supervisor.standings(folder).items():
        since = datetime.fromtimestamp(one.since).strftime("%Y-%m-%d %H:%M:%S")
        state = f"running since {since}" if one.pid is not None else f"ended at {since}, will be started again"
        again = f", started {one.starts} times, last ended with {one.ended}" if one.ended else ""
        told[name] = f"{state}{again}; log: {one.log}"
    return told


def expires_soon(expiry: datetime) -> bool:
    """Whether a certificate must be renewed within a month."""
    return expiry - datetime.now(UTC) < _SOON


def is_healthy(folder: Folder, port: int) -> bool:
    """Whether a SuperLink, or the gateway in front of it, answers on a port of this machine."""
    return is_up(f"127.0.0.1:{port}", folder.authority)


def tls_problem(folder: Folder, port: int) -> str:
    """Why no encrypted connection can be made to a port of this machine on which something listens; "" if one can."""
    trusted = ssl.create_default_context(cafile=str(folder.authority))
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            trusted.wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            return ""
    except ssl.SSLError as error:
        return (
            f"the encrypted connection (TLS) fails: {error.reason or error}. Its certificate must be signed by "
            f"{folder.authority} and not have expired: `fedlab deploy renew`, then `fedlab deploy down` and `up`"
        )
    except OSError:
        return ""


def _check_server(folder: Folder, settings: Federation) -> None:
    for path in (folder.authority_key, folder.server_key, *map(folder.key, settings.sites)):
        check_private(path)
    expiry = certificates.expiry(folder.server_certificate)
    if expiry < datetime.now(UTC):
        raise ConfigError(
            str(folder.server_certificate),
            f"expired on {expiry:%Y-%m-%d}",
            "a valid certificate",
            "fedlab deploy renew",
        )


def _check_ports(folder: Folder, settings: Federation) -> None:
    if supervisor.running(folder) is not None:
        return
    for key, port in (("port", settings.port), ("control_port", settings.control_port)):
        if processes.is_taken(port):
            fix = "end the program that listens there, or make the project with another --port"
            raise MachineError(key, port, "a port on which no other program listens", fix)


def _await_superlink(folder: Folder, settings: Federation) -> None:
    """Wait until the SuperLink and the gateway answer.

    Raises:
        DeploymentError: one of them ends again and again, or was ended by somebody else.
    """
    for name, port in ((processes.SUPERLINK, settings.control_port), (processes.GATEWAY, settings.port)):
        while not is_healthy(folder, port):
            if supervisor.running(folder) is None:
                raise DeploymentError(f"the supervisor has ended; see {folder.state / 'logs' / 'supervisor.log'}")
            one = supervisor.standings(folder).get(name)
            if one is not None and one.pid is None and one.starts >= _MOST_STARTS:
                said = Path(one.log).read_text(encoding="utf-8", errors="replace")[-2000:].strip()
                supervisor.stop(folder)
                raise DeploymentError(f"the {name} ended {one.starts} times, the last time with {one.ended}\n{said}")
            time.sleep(_LOOK)


def _site(site: str, node: Mapping[str, Any] | None) -> SiteStatus:
    if node is None or node["status"] == "unregistered":
        return SiteStatus(site, "not registered", None)
    if node["status"] == "online":
        return SiteStatus(site, "connected", _time(node["online-at"]))
    if node["status"] == "offline":
        return SiteStatus(site, "not connected", _time(node["offline-at"]))
    return SiteStatus(site, "never connected", None)


def _time(text: str) -> datetime | None:
    """A time as Flower writes it, ``2026-01-31 12:00:00Z``; None for ``N/A``."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
