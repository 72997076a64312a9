"""Skeletons of a user's own method, strategy or project: the templates beside this file, filled in with a name."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from fedlab.errors import ConfigError
from fedlab.storage.runfolder import why_unwritable, write_atomic

Kind = Literal["method", "strategy", "project"]

_FILES: Mapping[Kind, Mapping[str, str]] = {
    "method": {
        "{name}.py": "method.py.j2",
        "{name}.yaml": "method.yaml.j2",
        "test_{name}.py": "test_method.py.j2",
    },
    "strategy": {
        "{name}.py": "strategy.py.j2",
        "{name}.yaml": "strategy.yaml.j2",
        "test_{name}.py": "test_strategy.py.j2",
    },
    "project": {
        "{name}/README.md": "project.md.j2",
        "{name}/config.yaml": "project.yaml.j2",
        "{name}/{name}_data.py": "data.py.j2",
        "{name}/{name}_method.py": "method.py.j2",
        "{name}/test_{name}_data.py": "test_data.py.j2",
        "{name}/test_{name}_method.py": "test_method.py.j2",
        "{name}/.gitignore": "gitignore.j2",
    },
}
"""The files of each skeleton, relative to the folder in which it is made, and their templates."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def write(kind: Kind, name: str, folder: Path) -> list[Path]:
    """Write a skeleton, all of its files or none.

    Args:
        kind: what it is a skeleton of.
        name: name of the module, or of a project's folder, such as ``mean_teacher``. Classes are called
            ``MeanTeacher`` and so on.
        folder: where it is made.

    Returns:
        The files, in the order in which a reader should look at them.

    Raises:
        ConfigError: the name cannot be one, something of that name is there already, or the folder cannot be written
            to.
    """
    _check_name(name)
    texts = {
        folder / place.format(name=name): _filled(template, kind, name) for place, template in _FILES[kind].items()
    }
    for path, text in texts.items():
        if path.suffix == ".py":
            _check_module(name, path, text)
    for path in [folder / name] if kind == "project" else texts:
        if os.path.lexists(path):
            expected = f"a name of which nothing is there yet; there is {path}"
            raise ConfigError("NAME", name, expected, "choose another name, or move it away; nothing was written")
    if reason := why_unwritable(folder):
        raise ConfigError("folder", str(folder), "a folder that can be written to", reason)
    for path, text in texts.items():
        write_atomic(path, text)
    return list(texts)


def class_name(module: str) -> str:
    """The class of a module: ``mean_teacher`` → ``MeanTeacher``."""
    return "".join(part.capitalize() for part in module.split("_"))


def _filled(template: str, kind: Kind, name: str) -> str:
    """The text of a file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    module, data = (f"{name}_method", f"{name}_data") if kind == "project" else (name, "")
    return environment.get_template(template).render(
        name=name,
        title=name.replace("_", " ").strip().capitalize(),
        module=module,
        class_name=class_name(module),
        data_module=data,
        data_class=class_name(data),
        config="config.yaml" if kind == "project" else f"{name}.yaml",
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        expected = "the name of a Python module: lower-case letters, digits and underscores, beginning with a letter"
        raise ConfigError("NAME", name, expected, f"e.g. {_as_name(name)}")
    if name.startswith("test_"):
        expected = "a name that does not begin with test_, because pytest takes such files for tests"
        raise ConfigError("NAME", name, expected, "choose another name")
    if keyword.iskeyword(name) or keyword.iskeyword(class_name(name)):
        raise ConfigError("NAME", name, "a name that is no word of the Python language", "choose another name")


def _as_name(text: str) -> str:
    """A name that is like a text: ``Mean-Teacher`` → ``mean_teacher``."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    plain = re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_").lstrip("0123456789_")
    return plain if plain and not keyword.iskeyword(plain) else "my_method"


def _check_module(name: str, path: Path, text: str) -> None:
    """Refuse a module that would take the place of another one, or whose class would be hidden by an import."""
    tree = ast.parse(text)
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    if hidden := sorted(defined & set(_imported(tree))):
        expected = f"a name whose class is not called {hidden[0]}, because FedLab has a class of that name"
        raise ConfigError("NAME", name, expected, f"e.g. my_{name}")
    if place := _taken(path):
        expected = f"another name, because there is a module {path.stem!r} already: {place}"
        raise ConfigError("NAME", name, expected, "a file of yours would hide it, or be hidden by it")


def _taken(path: Path) -> str:
    """Where the module is that a new file would have to compete with; "" if there is none."""
    if path.stem in sys.stdlib_module_names:
        return "in the standard library"
    found = importlib.util.find_spec(path.stem)
    if found is None or found.origin is None or Path(found.origin).parent == path.parent.absolute():
        return ""
    return found.origin


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
