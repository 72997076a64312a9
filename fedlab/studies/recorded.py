"""Recorded outcomes: what a method's acceptance experiment has shown, kept as a file beside ``acceptance.yaml``."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedlab.assembly import METHODS
from fedlab.errors import InputError
from fedlab.experiment.start import method_folder
from fedlab.report.grids import Rows
from fedlab.studies.acceptance import load_acceptance
from fedlab.studies.outcome import Outcome

FILE = "outcome.json"
_FOLLOWED = tuple(f"fedlab.{name}." for name in ("blocks", "distill", "methods", "metrics", "models", "probes"))
_DIGITS = 6


class RecordedOutcome(NamedTuple):
    """The contents of an ``outcome.json``.

    Args:
        method: name of the method.
        values: the file's contents.
    """

    method: str
    values: Mapping[str, Any]

    @property
    def is_of_this_experiment(self) -> bool:
        """Whether ``acceptance.yaml`` still says what it said then."""
        return bool(self.values["experiment"] == load_acceptance(self.method).fingerprint)

    @property
    def is_of_this_code(self) -> bool:
        """Whether the method, and the mathematics that it uses, are still the code that was run."""
        return bool(self.values["code"] == method_code(self.method))

    def gates(self, met: bool) -> list[str]:
        """Names of the gates that are met, or of those that are missed."""
        return [gate["name"] for gate in self.values["gates"] if gate["met"] is met]


def recorded(method: str) -> RecordedOutcome | None:
    """The recorded outcome of a method; None if there is none."""
    path = _folder(method) / FILE
    return RecordedOutcome(method, json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def record(outcome: Outcome, method: str) -> Path:
    """Write the outcome of a whole experiment into the method's folder.

    Raises:
        InputError: runs are missing or failed, or the folder cannot be written to.
    """
    spec = outcome.spec
    missing = [
        f"{arm}, seed {seed}"
        for arm in spec.arms
        for seed in spec.seeds_of.get(arm, spec.seeds)
        if seed not in outcome.results.get(arm, {})
    ]
    if missing:
        expected = f"runs of all arms with all seeds; missing are {len(missing)}: {'; '.join(missing[:5])}"
        raise InputError("--record", method, expected, "give the same command again without --arms and --seeds")
    now, told = datetime.now(UTC), outcome.to_json()
    values = {
        "method": method,
        "recorded": f"{now:%Y-%m-%d}",
        "experiment": load_acceptance(method).fingerprint,
        "code": method_code(method),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "seeds": told["seeds"],
        "seeds_of": {arm: list(seeds) for arm, seeds in spec.seeds_of.items()},
        "gates": [
            {
                "name": verdict.gate.name,
                "required": verdict.gate.required,
                "excludes": verdict.gate.excludes,
                "seeds": {str(seed): value for seed, value in verdict.by_seed.items()},
                "seen": verdict.seen,
                "std": verdict.std,
                "met": verdict.met,
            }
            for verdict in outcome.verdicts
        ],
        "arms": {arm: told["arms"][arm]["metrics"] for arm in told["arms"]},
    }
    path = _folder(method) / FILE
    try:
        path.write_text(json.dumps(rounded(values), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        expected = f"a method whose folder can be written to: {error}"
        raise InputError("--record", method, expected, "install FedLab from a clone: pip install -e .") from error
    return path


def method_code(method: str) -> str:
    """Hash of the code that is a method: docstrings and comments do not count.

    It covers the Python files of the method's folder, every module of FedLab that they import, and the modules that
    those import in turn if they belong to the shared mathematics: blocks, losses, metrics, models and probes.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tree in sorted(_Modules(METHODS.find(method).__module__).found.items()):
        digest.update(f"{name}:{ast.dump(tree)}".encode())
    return digest.hexdigest()


def methods_table() -> Rows:
    """Header and one row for each of FedLab's methods: what it is."""
    rows = [["name", "paper", "data", "what the clients learn from"]]
    for name in METHODS.builtin:
        method = METHODS.find(name)
        rows.append([_linked(name), method.paper.partition(", arXiv")[0], method.modality, method.learns_from])
    return rows


def outcomes_table() -> Rows:
    """Header and one row for each of FedLab's methods that has an acceptance experiment: what it has shown."""
    rows = [["method", "gates met", "missed", "seeds", "recorded"]]
    for name in METHODS.builtin:
        if not (_folder(name) / "acceptance.yaml").is_file():
            continue
        if (found := recorded(name)) is None:
            rows.append([name, f"see [its README](methods/{name}/README.md#acceptance)", "", "", "not yet"])
            continue
        met, missed = found.gates(met=True), found.gates(met=False)
        seeds = _span(found.values["seeds"]) + (", fewer for some arms" if found.values["seeds_of"] else "")
        rows.append(
            [name, f"{len(met)} of {len(met) + len(missed)}", "; ".join(missed), seeds, found.values["recorded"]]
        )
    return rows


def stale() -> list[str]:
    """The methods whose code has changed since their outcome was recorded."""
    return [name for name in METHODS.builtin if (found := recorded(name)) is not None and not found.is_of_this_code]


class _Modules:
    """The syntax trees of a method's modules and of those they import, by module name and without docstrings."""

    def __init__(self, module: str) -> None:
        self.found: dict[str, ast.Module] = {}
        package = module.rpartition(".")[0]
        spec = importlib.util.find_spec(package) if package else None
        folders = spec.submodule_search_locations if spec else None
        own = [f"{package}.{file.stem}" for folder in folders or () for file in Path(folder).glob("*.py")]
        self._own = frozenset(own or [module])
        for name in sorted(self._own):
            self._add(name)

    def _add(self, name: str) -> None:
        path = _file(name)
        if name in self.found or path is None:
            return
        self.found[name] = tree = _bare(path)
        if name in self._own or name.startswith(_FOLLOWED):
            for imported in _imported(tree):
                self._add(imported)


def _imported(tree: ast.Module) -> Iterator[str]:
    """Names of FedLab's modules that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("fedlab."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedlab."):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _file(name: str) -> Path | None:
    """The file of a module; None for a name that is no module, such as that of a class."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # what would hold it is no package
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _bare(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return tree


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def _folder(method: str) -> Path:
    return method_folder(method, "METHOD")


def _linked(name: str) -> str:
    return f"[{name}](methods/{name}/README.md)"


def _span(seeds: list[int]) -> str:
    """Seeds as text; three or more that follow one another are shown as a span."""
    ordered = sorted(seeds)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))


def rounded(value: Any) -> Any:
    """Plain values in which numbers keep six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list | tuple) else value
