"""`fedlab deploy init`, `renew` and `remove`: makes and changes the folder of a federation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedlab.config import Config
from fedlab.data.sources.sites import NAME as SITES
from fedlab.deployment import certificates
from fedlab.deployment.handover import HandOver, write_hand_over
from fedlab.deployment.nodefile import write_node_file, write_server_file
from fedlab.deployment.private import check_private, private_folder
from fedlab.deployment.processes import check_machine
from fedlab.deployment.project import (
    CONNECTION,
    DEFAULT_IMAGE,
    DEFAULT_PORT,
    Federation,
    Folder,
    Form,
    check_host,
    check_site,
    new_name,
)
from fedlab.errors import ConfigError, ConfigErrors, InputError, did_you_mean
from fedlab.storage.runfolder import write_atomic

_KEYS = "data.source.sites"


@dataclass(frozen=True)
class Asked:
    """What `fedlab deploy init` was given; None where an option was left out.

    Args:
        sites: names of sites; empty takes those of the configuration.
        nodes: number of nodes of a demonstration.
        hosts: names and addresses under which sites reach the server.
        port: port that sites connect to.
        image: image of the containers.
        form: how everything runs on this machine.
        simulate_partition: whether the nodes divide one data set.
    """

    sites: tuple[str, ...] = ()
    nodes: int | None = None
    hosts: tuple[str, ...] = ()
    port: int | None = None
    image: str | None = None
    form: Form | None = None
    simulate_partition: bool = False


def init(config: Config, path: Path, asked: Asked) -> tuple[Folder, list[str]]:
    """Make the folder of a federation, or add sites to one.

    What is in the folder stays as it is, keys and certificates above all.

    Args:
        config: the configuration whose sites take part, with absolute paths.
        path: the folder.
        asked: the command's options.

    Returns:
        The folder, and the names of the sites that are new in it.

    Raises:
        ConfigError, ConfigErrors: something cannot be used, or contradicts what is in the folder; nothing was written.
    """
    folder = Folder(path.absolute())
    before = None if folder.begun("fedlab deploy init") is None else folder.federation()
    _check(asked)
    settings = _settings(config, asked, before, folder.path)
    new = [site for site in settings.sites if before is None or site not in before.sites]
    private_folder(folder.path)
    _keys(folder, settings, new)
    for site in settings.sites:
        _site_files(folder, settings, site, config)
    if settings.server and settings.form == "processes":
        write_server_file(folder.server_file, settings.server)
    folder.write(settings)
    write_connection(folder, settings)
    if settings.form == "containers":
        from fedlab.deployment.containers import write_compose

        write_compose(folder)
    return folder, new


def renew(folder: Folder, hosts: Sequence[str]) -> None:
    """Write a new server certificate for the key that is there, and add names under which sites reach the server.

    The authority stays, so that no site notices.

    Raises:
        ConfigErrors: a host cannot be one.
    """
    _raise(_found(partial(check_host, host)) for host in hosts)
    settings = folder.federation()
    settings = settings.model_copy(update={"hosts": tuple(dict.fromkeys([*settings.hosts, *hosts]))})
    _server_certificate(folder, settings)
    folder.write(settings)


def remove(folder: Folder, site: str) -> None:
    """Take a site out of the federation's folder: its keys, its node and the file for its operator.

    The other sites keep their client ids only if it was the last one; the run's configuration says which they are.

    Raises:
        ConfigError: there is no such site.
    """
    settings = folder.federation()
    known_site(settings, site)
    kept = {name: data for name, data in settings.sites.items() if name != site}
    if not kept:
        raise ConfigError("SITE", site, "not the only site", "remove the whole folder after `fedlab deploy down`")
    folder.write(settings.model_copy(update={"sites": kept}))
    for path in (folder.key(site), folder.public_key(site), folder.hand_over(site), folder.node_file(site)):
        path.unlink(missing_ok=True)
    if settings.form == "containers":
        from fedlab.deployment.containers import write_compose

        write_compose(folder)


def known_site(settings: Federation, site: str) -> None:
    """Refuse the name of a site that is not in the federation.

    Raises:
        ConfigError: there is no such site.
    """
    if site not in settings.sites:
        raise ConfigError("SITE", site, "a site of this federation", did_you_mean(site, settings.sites))


def write_connection(folder: Folder, settings: Federation) -> None:
    """Write Flower's configuration with the connection to this federation's SuperLink."""
    lines = (
        "[superlink]",
        f'default = "{CONNECTION}"',
        f"[superlink.{CONNECTION}]",
        f'address = "127.0.0.1:{settings.control_port}"',
        f'root-certificates = "{folder.authority}"',
    )
    write_atomic(folder.flower / "config.toml", "".join(f"{line}\n" for line in lines))


def sites_of(config: Config) -> dict[str, dict[str, Any] | None]:
    """The sites that a configuration names, with the data of those for which it says where that is."""
    if config.data.source.name != SITES:
        return {}
    named = config.data.source.settings.get("sites") or {}
    if isinstance(named, Mapping):
        return {str(name): _plain(source) for name, source in named.items()}
    return {str(name): None for name in named}


def _plain(source: Any) -> dict[str, Any] | None:
    return {"name": source} if isinstance(source, str) else dict(source) if source else None


def _check(asked: Asked) -> None:
    """Refuse options that cannot be used, all at once."""
    found = [_found(partial(check_host, host)) for host in asked.hosts]
    found += [_found(partial(check_site, site, "--site")) for site in asked.sites]
    if asked.sites and asked.nodes is not None:
        found.append(ConfigError("--nodes", asked.nodes, "either --site or --nodes", "sites have names of their own"))
    if asked.form == "processes":
        found.append(_found(check_machine))
    _raise(found)


def _settings(config: Config, asked: Asked, before: Federation | None, path: Path) -> Federation:
    sites = _sites(config, asked)
    form: Form = asked.form or (before.form if before else "containers")
    port = asked.port or (before.port if before else DEFAULT_PORT)
    image = asked.image or (before.image if before else DEFAULT_IMAGE)
    hosts = asked.hosts or (before.hosts if before else ())
    made = Federation(
        name=before.name if before else new_name(path),
        form=form,
        hosts=hosts,
        port=port,
        control_port=port + 1 if port < 65535 else port - 1,
        image=image,
        simulate_partition=asked.simulate_partition,
        sites=sites,
        server=_server_sets(config),
    )
    if before is None:
        return made
    for key, option, fix in (
        ("form", "--processes or --containers", "make another folder"),
        ("port", "--port", "make another folder"),
        ("hosts", "--host", "add names of the server with `fedlab deploy renew --host NAME`"),
        ("simulate_partition", "--simulate-partition", "make another folder"),
    ):
        if (now := getattr(made, key)) != (then := getattr(before, key)):
            raise ConfigError(option, _told(now), f"{_told(then)}, as this folder was made with", fix)
    return made.model_copy(update={"sites": {**before.sites, **sites}, "server": {**before.server, **made.server}})


def _sites(config: Config, asked: Asked) -> dict[str, dict[str, Any] | None]:
    listed = sites_of(config)
    if asked.simulate_partition:
        if listed:
            raise ConfigError(
                "--simulate-partition", True, f"a source that is divided, not {SITES!r}", "leave the option out"
            )
        names = asked.sites or tuple(f"node-{number}" for number in range(asked.nodes or 0))
        if not names:
            raise ConfigError("--nodes", asked.nodes, "the number of nodes of the demonstration, one for each client")
        return dict.fromkeys(names)
    if not listed:
        raise ConfigError(
            "data.source",
            config.data.source.name,
            f"{SITES!r}, in which every site has its own data",
            "list the sites there, or demonstrate a deployment in which the nodes divide one data set with "
            "--simulate-partition --nodes N",
        )
    if asked.nodes is not None:
        raise ConfigError("--nodes", asked.nodes, f"no number: the configuration lists {len(listed)} sites")
    _raise(_found(partial(check_site, site, _KEYS)) for site in listed)
    _raise(
        ConfigError("--site", site, f"a site of {_KEYS}", did_you_mean(site, listed))
        for site in asked.sites
        if site not in listed
    )
    chosen = {site: listed[site] for site in asked.sites or listed}
    if not asked.hosts:
        _raise(
            ConfigError(
                f"{_KEYS}.{site}", None, "the site's data, because its node runs on this machine",
                "name the folder of its samples, or give the name of this server with --host if sites run elsewhere",
            )
            for site, data in chosen.items()
            if data is None
        )  # fmt: skip
    return chosen


def _server_sets(config: Config) -> dict[str, dict[str, Any]]:
    """The server's own sets of samples for which the configuration says where they are."""
    named = config.data.source.settings.get("server") if config.data.source.name == SITES else None
    given = {str(name): _plain(source) for name, source in named.items()} if isinstance(named, Mapping) else {}
    return {name: source for name, source in given.items() if source is not None}


def _keys(folder: Folder, settings: Federation, new: Sequence[str]) -> None:
    private_folder(folder.certificates)
    private_folder(folder.path / "keys")
    private_folder(folder.path / "hand-over")
    if not folder.authority.is_file():
        certificates.make_authority(folder.authority, folder.authority_key)
    if not folder.server_certificate.is_file():
        _server_certificate(folder, settings)
    for site in new:
        if not folder.key(site).is_file():
            certificates.make_node_key(folder.key(site), folder.public_key(site))
    for path in (folder.authority_key, folder.server_key, *map(folder.key, settings.sites)):
        check_private(path)


def _server_certificate(folder: Folder, settings: Federation) -> None:
    certificates.make_server(
        folder.authority, folder.authority_key, folder.server_certificate, folder.server_key, settings.hosts
    )


def _site_files(folder: Folder, settings: Federation, site: str, config: Config) -> None:
    """Write what the node of a site needs, here or, in one file, elsewhere."""
    data = settings.sites[site]
    if settings.simulate_partition:
        return
    if settings.local:
        if data is not None and settings.form == "processes":
            write_node_file(folder.node_file(site), site, data, folder.state / "nodes" / site)
        return
    if config.data.source.name != SITES or site not in sites_of(config):
        return  # a site of an earlier configuration has its file already
    agreed = {key: value for key, value in config.data.source.settings.items() if key not in ("sites", "server")}
    content = HandOver(
        site=site,
        superlink=settings.address,
        image=settings.image,
        data={"name": "folder", **(data or {})},
        agreed=agreed,
        ca=folder.authority.read_text(encoding="ascii"),
        key=folder.key(site).read_text(encoding="ascii"),
    )
    write_hand_over(folder.hand_over(site), content)


def _found(check: Callable[[], None]) -> InputError | None:
    try:
        check()
    except InputError as error:
        return error
    return None


def _raise(errors: Iterable[InputError | None]) -> None:
    found = [error for error in errors if error is not None]
    if found:
        raise ConfigErrors(found) if len(found) > 1 else found[0]


def _told(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value
