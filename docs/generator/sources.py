"""Pages that show files of the repository which are no pages themselves, and what is in its folders."""

from __future__ import annotations

import ast
from pathlib import Path

_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".csv": "text", ".json": "json"}


def page(root: Path, place: str) -> str:
    """The page of a file or folder, as Markdown.

    Args:
        root: top of the repository.
        place: the file or folder, from there.
    """
    path = root / place
    if path.is_dir():
        return f"# {place}/\n\n" + "\n".join(f"- {_about(child)}" for child in _children(path)) + "\n"
    text = path.read_text(encoding="utf-8")
    fence = "````" if "```" in text else "```"
    return f"# {place}\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _children(folder: Path) -> list[Path]:
    hidden = ("__pycache__", "__init__.py")
    return sorted(child for child in folder.iterdir() if child.name not in hidden and not child.name.startswith("."))


def _about(path: Path) -> str:
    """Name of a file, and the first line of the docstring of a module."""
    if path.suffix != ".py":
        return f"`{path.name}{'/' if path.is_dir() else ''}`"
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    return f"`{path.name}`" + (f": {lines[0]}" if lines else "")
