"""Notebooks as pages: their texts, their code, and what the code prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def page(notebook: Path) -> str:
    """The page of a notebook, as Markdown."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def with_download(markdown: str, name: str) -> str:
    """The page with a line below its title that leads to the notebook itself, which lies beside the page."""
    title, _, rest = markdown.partition("\n")
    return f"{title}\n\n*This page is a notebook: [download it]({name}) and run it on your machine.*\n{rest}"


def _parts(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"]).strip("\n")
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    printed = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
    if printed.strip():
        yield f"```text\n{printed.rstrip()}\n```"
