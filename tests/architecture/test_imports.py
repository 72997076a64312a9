"""Who may import whom."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pytest

Sources = list[Any]

# Lowest first. A part may import parts of lower rows and itself; a part is what follows ``fedlab.`` in a module's name.
LAYERS = (
    ("errors", "seeding", "_environment", "distill", "metrics"),
    ("storage",),
    ("config",),
    ("registry", "method"),
    ("callbacks", "models", "privacy", "probes", "protocol"),
    ("engine",),
    ("tracking",),
    ("data", "report"),
    ("blocks",),
    ("methods",),
    ("assembly",),
    ("clients",),
    ("server",),
    ("experiment",),
    ("studies", "deployment", "doctor", "flowerapp"),
    ("cli",),
)
RANK = {part: rank for rank, row in enumerate(LAYERS) for part in row}

# files that belong to no package
LOOSE = {"__init__", "_environment", "assembly", "doctor", "errors", "registry", "seeding"}

# where a simulated client's state lies on this machine, for pictures
SERVER_MAY_KNOW = {"fedlab.clients.state"}

FLOWER_ALLOWED = (
    "fedlab.clients.app", "fedlab.clients.resident.*", "fedlab.clients.sent", "fedlab.server", "fedlab.server.*",
    "fedlab.engine", "fedlab.engine.*", "fedlab.protocol.*", "fedlab.flowerapp.*",
)  # fmt: skip

# pure computation: a method reads no file, starts nothing, prints nothing
METHOD_LIBRARIES = {"torch", "numpy", "pydantic", "transformers"}
METHOD_STANDARD = {
    "__future__", "abc", "collections", "copy", "dataclasses", "enum", "functools", "itertools", "math", "operator",
    "typing",
}  # fmt: skip
METHOD_PARTS = {"blocks", "config", "data", "distill", "errors", "method", "metrics", "models", "privacy", "probes"}
METHOD_MAY_KNOW = {"fedlab.storage.hashing"}  # reads nothing, writes nothing

# each costs a second or more, so what needs one imports it when it needs it
HEAVY = {
    "datasets", "dp_accounting", "flwr_datasets", "matplotlib", "mlflow", "mlxtend", "optuna", "pandas", "seaborn",
    "sklearn", "tensorboard", "torchmetrics", "transformers", "trimesh", "wandb",
}  # fmt: skip


def part_of(module: str) -> str:
    """``fedlab.data.files.images`` → ``data``; the package itself is ''."""
    return module.split(".")[1] if "." in module else ""


def offences(sources: Sources, wrong: Callable[[Any, Any], bool]) -> list[str]:
    """Every import for which `wrong(source, import)` holds."""
    return [
        f"{source.shown}:{found.line}: {found.module} {found.name}"
        for source in sources
        for found in source.imports
        if wrong(source, found)
    ]


def inside(source: Any, top: str) -> bool:
    return str(source.module).startswith(f"fedlab.{top}.")


def test_imports_are_absolute_and_never_by_a_bare_folder_name(sources: Sources) -> None:
    bare = {"clients", "server", "methods", "tests"}
    assert not offences(sources, lambda _, found: found.module.startswith(".") or found.module.split(".")[0] in bare)


def test_every_part_has_a_layer(sources: Sources) -> None:
    parts = {part_of(source.module) for source in sources} - {""}
    assert not parts - set(RANK), "give each of these a row in LAYERS"
    assert not set(RANK) - parts, "these no longer exist"


def test_imports_point_down(sources: Sources) -> None:
    def upward(source: Any, found: Any) -> bool:
        mine, theirs = part_of(source.module), part_of(found.module)
        if found.module == "fedlab" or not found.module.startswith("fedlab.") or mine == theirs or not mine:
            return False
        return RANK[theirs] >= RANK[mine]

    assert not offences(sources, upward)


def test_only_these_files_belong_to_no_package(sources: Sources) -> None:
    assert {source.path.stem for source in sources if source.path.parent.name == "fedlab"} == LOOSE


def test_no_file_imports_itself_through_others(sources: Sources) -> None:
    """Imports for annotations count: two files that need each other's types are one subject."""
    modules = {source.module for source in sources}
    imports = {
        source.module: {found.module for found in source.imports} & modules - {source.module} for source in sources
    }
    order = graphlib.TopologicalSorter(imports)
    try:
        order.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_the_package_itself_is_never_imported_from_inside(sources: Sources) -> None:
    """``from fedlab import run`` inside the package would depend on its lazy attributes."""
    assert not offences(sources, lambda _, found: found.module == "fedlab")


def test_the_server_knows_of_clients_only_where_their_state_lies(sources: Sources) -> None:
    assert not offences(
        sources,
        lambda source, found: (
            inside(source, "server")
            and found.module.startswith("fedlab.clients")
            and found.module not in SERVER_MAY_KNOW
        ),
    )


def test_flower_is_imported_only_at_its_edges(sources: Sources) -> None:
    def strays(source: Any, found: Any) -> bool:
        if found.module.split(".")[0] != "flwr" or any(fnmatchcase(source.module, name) for name in FLOWER_ALLOWED):
            return False
        # annotations of the public API may name Flower's types; nothing is loaded for them
        return not (source.module == "fedlab.experiment.start" and not found.top_level)

    assert not offences(sources, strays)


def test_ray_is_imported_only_by_the_engine(sources: Sources) -> None:
    assert not offences(
        sources, lambda source, found: found.module.split(".")[0] == "ray" and part_of(source.module) != "engine"
    )


def test_heavy_libraries_are_imported_only_inside_functions(sources: Sources) -> None:
    assert not offences(sources, lambda _, found: found.top_level and found.module.split(".")[0] in HEAVY)


def test_methods_import_nothing_but_mathematics(sources: Sources) -> None:
    def foreign(source: Any, found: Any) -> bool:
        top = found.module.split(".")[0]
        if not inside(source, "methods"):
            return False
        if top == "fedlab":
            folder = ".".join(source.module.split(".")[:3])
            own = found.module == folder or found.module.startswith(f"{folder}.")
            return not (own or found.module in METHOD_MAY_KNOW) and part_of(found.module) not in METHOD_PARTS
        if top in sys.stdlib_module_names:
            return top not in METHOD_STANDARD
        return top not in METHOD_LIBRARIES

    assert not offences(sources, foreign)


def test_no_method_imports_another(sources: Sources) -> None:
    def other(source: Any, found: Any) -> bool:
        if not (inside(source, "methods") and found.module.startswith("fedlab.methods")):
            return False
        return found.module.split(".")[2:3] != source.module.split(".")[2:3]

    assert not offences(sources, other)


def test_methods_never_choose_a_device(sources: Sources) -> None:
    found = [
        f"{source.shown}:{call.lineno}: {ast.unparse(call)}"
        for source in sources
        if inside(source, "methods")
        for call in ast.walk(source.tree)
        if isinstance(call, ast.Call) and _moves(call)
    ]
    assert not found, "use ctx.place"


def _moves(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr in ("cuda", "cpu"):
        return True
    asked = " ".join(ast.unparse(argument) for argument in [*call.args, *call.keywords])
    return call.func.attr == "to" and any(word in asked for word in ("device", "cuda", "cpu"))
