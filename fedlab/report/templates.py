"""The HTML templates of reports, whose pages need no other files."""

from __future__ import annotations

import importlib.resources
from typing import Any

from markupsafe import Markup


def fill(name: str, content: dict[str, Any]) -> str:
    """A page, with the style of all reports.

    Args:
        name: of the template.
        content: its variables; what is no `Markup` is text, whatever it looks like.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    here = importlib.resources.files(__package__)
    environment = Environment(
        loader=FunctionLoader(lambda file: (here / file).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((here / "style.css").read_text(encoding="utf-8"))  # ours, and CSS knows no entities
    return environment.get_template(name).render(style=style, **content)
