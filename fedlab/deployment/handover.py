"""The one file that the organizer gives to the operator of a site: ``SITE.fedlab``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from fedlab.config import Section, parse, read_yaml
from fedlab.config.yamltree import dump_yaml
from fedlab.deployment.private import write_private
from fedlab.errors import ConfigError, ConfigErrors

_HEAD = """\
# For the operator of site {site}, and for nobody else: this file holds the site's private key.
# Keep it secret (chmod 600), run `fedlab deploy node {site}.fedlab --data PATH`, and delete it afterwards.
"""


class HandOver(Section):
    """All that a site needs to take part in a federation."""

    site: str = Field(description="name of the site")
    superlink: str = Field(description="address of the federation's server")
    image: str = Field(description="image of the containers")
    data: dict[str, Any] = Field(description="the site's source of data, to which its own path is added")
    agreed: dict[str, Any] = Field(default_factory=dict, description="what all sites have agreed on for their data")
    ca: str = Field(description="certificate of the federation's authority")
    key: str = Field(description="private key of the site's node")


def write_hand_over(path: Path, content: HandOver) -> None:
    """Write a site's file; one that is there is replaced, because all of it can be made again."""
    path.unlink(missing_ok=True)
    write_private(path, _HEAD.format(site=content.site) + dump_yaml(content.model_dump(mode="json")))


def read_hand_over(path: Path) -> HandOver:
    """Read a site's file.

    Raises:
        ConfigError: it is not such a file.
    """
    try:
        return parse(HandOver, read_yaml(path))
    except ConfigErrors as error:
        fix = "ask the organizer of the federation for the file, and do not edit it"
        raise ConfigError(
            "FILE", str(path), f"a site's file as `fedlab deploy init` writes it: {error}", fix
        ) from error
