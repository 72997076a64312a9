"""The folder of a federation: what `fedlab deploy init` was asked for, and where everything lies.

======================  =============================================================================
``deployment.yaml``     what was asked for; `Federation`
``compose.yml, .env``   containers, if the federation runs in containers
``certificates/``       ``ca.crt``, ``ca.key``, ``server.pem``, ``server.key``
``keys/``               the keys of each site's node: ``SITE`` and ``SITE.pub``
``nodes/SITE/``         ``node.yaml`` of each node that runs on this machine
``hand-over/``          ``SITE.fedlab``: all that the operator of a site needs, in one file
``server.yaml``         sample sets that the server holds itself, if the configuration names any
``flower/``             Flower's folder; its ``config.toml`` names the connection `CONNECTION`
``submitted/``          one file for each submitted run
``runs/``               run folders
``state/``              the SuperLink's database, logs, process ids, states of the nodes
======================  =============================================================================
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fedlab.config import Section, parse, read_yaml
from fedlab.config.yamltree import dump_yaml
from fedlab.deployment.certificates import address
from fedlab.errors import ConfigError
from fedlab.storage.runfolder import write_atomic

CONNECTION = "fedlab"
"""Name of the connection to the project's SuperLink, for Flower's own commands."""
DEFAULT_FOLDER = "deployment"
DEFAULT_PORT = 8443
DEFAULT_IMAGE = "fedlab:latest"
FILE = "deployment.yaml"
TOLD = "# written by `fedlab deploy`; change it with its commands\n"
"""First line of the files that the commands write."""
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*")

Form = Literal["processes", "containers"]


class Federation(Section):
    """What the organizer's project is: ``deployment.yaml``."""

    kind: Literal["federation"] = "federation"
    name: str = Field(description="name of the project for docker compose, which no other folder has")
    form: Form = Field(description="how everything runs on this machine")
    hosts: tuple[str, ...] = Field(default=(), description="names and addresses under which sites reach the server")
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535, description="port that the sites connect to")
    control_port: int = Field(ge=1, le=65535, description="port for commands on this machine; closed to others")
    image: str = Field(default=DEFAULT_IMAGE, min_length=1, description="image of all containers")
    simulate_partition: bool = Field(default=False, description="a demonstration, whose nodes divide one data set")
    sites: dict[str, dict[str, Any] | None] = Field(
        description="sites in the order of their client ids, with the data of those whose node runs on this machine"
    )
    server: dict[str, dict[str, Any]] = Field(
        default={}, description="sets of samples that the server holds itself: the source of each by its name"
    )
    assets: dict[str, str] = Field(
        default={},
        description="files of the method's assets on this machine, for the server and the nodes that run here",
    )

    @property
    def local(self) -> bool:
        """Whether all nodes run on this machine: there is no name under which others could reach the server."""
        return not self.hosts

    @property
    def address(self) -> str:
        """Where nodes connect to."""
        host = self.hosts[0] if self.hosts else "127.0.0.1"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class Site(Section):
    """What the folder of one site's node is, on the site's own machine."""

    kind: Literal["site"] = "site"
    name: str = Field(description="name of the project for docker compose, which no other folder has")
    form: Form = Field(description="how the node runs on this machine")
    site: str = Field(description="name of the site")
    superlink: str = Field(description="address of the federation's server")
    image: str = Field(default=DEFAULT_IMAGE, min_length=1, description="image of all containers")
    data: str | None = Field(default=None, description="folder or file that containers are given read-only")


@dataclass(frozen=True)
class Folder:
    """Places in the folder of a federation or of a site.

    Args:
        path: the folder, absolute.
    """

    path: Path

    @property
    def file(self) -> Path:
        return self.path / FILE

    @property
    def certificates(self) -> Path:
        return self.path / "certificates"

    @property
    def authority(self) -> Path:
        return self.certificates / "ca.crt"

    @property
    def authority_key(self) -> Path:
        return self.certificates / "ca.key"

    @property
    def server_certificate(self) -> Path:
        return self.certificates / "server.pem"

    @property
    def server_key(self) -> Path:
        return self.certificates / "server.key"

    def key(self, site: str) -> Path:
        return self.path / "keys" / site

    def public_key(self, site: str) -> Path:
        return self.path / "keys" / f"{site}.pub"

    def node_file(self, site: str) -> Path:
        return self.path / "nodes" / site / "node.yaml"

    def hand_over(self, site: str) -> Path:
        return self.path / "hand-over" / f"{site}.fedlab"

    @property
    def server_file(self) -> Path:
        return self.path / "server.yaml"

    @property
    def flower(self) -> Path:
        return self.path / "flower"

    @property
    def submitted(self) -> Path:
        return self.path / "submitted"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def programs(self) -> Path:
        """Programs that take the place of Flower's of the same names."""
        return self.state / "bin"

    @property
    def compose(self) -> Path:
        return self.path / "compose.yml"

    def write(self, settings: Federation | Site) -> None:
        """Write ``deployment.yaml``."""
        write_atomic(self.file, TOLD + dump_yaml(settings.model_dump(mode="json")))

    def settings(self) -> Federation | Site:
        """What this folder is.

        Raises:
            ConfigError, ConfigErrors: it is neither the folder of a federation nor that of a site.
        """
        if not self.file.is_file():
            raise ConfigError(
                "--folder",
                str(self.path),
                f"a folder with a {FILE}",
                "make one with `fedlab deploy init CONFIG`, at a site with `fedlab deploy node FILE`",
            )
        raw = read_yaml(self.file)
        return parse(Site, raw) if raw.get("kind") == "site" else parse(Federation, raw)

    def begun(self, maker: str) -> Federation | Site | None:
        """What this folder is already; None if nothing is in it.

        Args:
            maker: the command that makes such a folder, for the error.

        Raises:
            ConfigError, ConfigErrors: other things are in it.
        """
        if self.file.is_file():
            return self.settings()
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigError("FOLDER", str(self.path), f"an empty folder or one made by `{maker}`")
        return None

    def federation(self) -> Federation:
        """What this folder is, which must be an organizer's.

        Raises:
            ConfigError, ConfigErrors: it is not.
        """
        settings = self.settings()
        if isinstance(settings, Federation):
            return settings
        raise ConfigError("--folder", str(self.path), "the folder of a federation", "ask its organizer to do this")


def find(folder: Path | None) -> Folder:
    """The folder that a command works in: the given one, else the current one or `DEFAULT_FOLDER` in it.

    Raises:
        ConfigError: there is no such folder of a federation or site.
    """
    here = [Path.cwd(), Path.cwd() / DEFAULT_FOLDER] if folder is None else [folder.absolute()]
    found = Folder(next((place for place in here if (place / FILE).is_file()), here[0]))
    found.settings()
    return found


def new_name(path: Path) -> str:
    """A name for docker compose: volumes belong to a name, and another folder of the same name must not share them."""
    kept = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in path.name.lower())
    return f"fedlab-{kept.strip('-') or 'project'}-{secrets.token_hex(3)}"


def check_site(name: str, key: str) -> None:
    """Refuse a name that cannot name files, containers and clients.

    Raises:
        ConfigError: the name has other characters, or is too long.
    """
    if not _SITE.fullmatch(name):
        raise ConfigError(
            key, name, "up to 40 letters, digits, points, dashes or underscores, the first a letter or digit"
        )


def check_host(text: str, key: str = "--host") -> None:
    """Refuse what is neither a host's name nor an IP address.

    Raises:
        ConfigError: it is neither, for example because it names a port.
    """
    numbers = re.fullmatch(r"[0-9.]+", text)  # looks like an address, and must then be one
    if address(text) is None and (numbers or not _HOST.fullmatch(text)):
        raise ConfigError(key, text, "the name or IP address of a host", "leave out protocol and port; see --port")
