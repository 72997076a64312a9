"""Which small changes of the code are tried: Cosmic Ray's operators, and one for what formulas are made of here."""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator

# of the hundreds of replacements those whose result can pass for the original; a shift of floats only ever raises
_BINARY = ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "Pow_Mul", "FloorDiv_Div", "Mod_FloorDiv", "BitAnd_BitOr")
_COMPARISON = ("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Lt_Gt", "Gt_Lt", "Is_IsNot", "IsNot_Is")
_UNARY = ("Delete_USub", "Delete_Invert", "Delete_Not")
_OTHERS = (
    "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue", "NumberReplacer", "RemoveDecorator", "ZeroIterationForLoop",
)  # fmt: skip
NAMES = (
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in _BINARY),
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in _COMPARISON),
    *(f"core/ReplaceUnaryOperator_{pair}" for pair in _UNARY),
    *(f"core/{name}" for name in _OTHERS),
)


class DropCall(Operator):  # type: ignore[misc]  # Cosmic Ray has no types
    """``x.clamp(0).mean()`` → ``x.mean()`` and ``x.clamp(0)``: a step of a formula is left out."""

    def mutation_positions(self, node: Any) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        return [(node.children[place].start_pos, node.children[place + 1].end_pos) for place in self._places(node)]

    def mutate(self, node: Any, index: int) -> Any:
        place = list(self._places(node))[index]
        del node.children[place : place + 2]
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()

    @staticmethod
    def _places(node: Any) -> Iterator[int]:
        """Where ``.name`` is followed by ``(…)``; the first such pair after a module is its function, not a method."""
        if node.type not in ("atom_expr", "power"):
            return
        kinds = [child.children[0].value if child.type == "trailer" else "" for child in node.children]
        modules = ("F", "torch", "nn", "np", "math", "self", "super")
        for place in range(1, len(kinds) - 1):
            of_module = place == 1 and getattr(node.children[0], "value", "") in modules
            if kinds[place : place + 2] == [".", "("] and not of_module:
                yield place


@dataclass(frozen=True)
class Mutant:
    """A file with one change.

    Args:
        file: relative to the repository.
        line: of the change, from 1.
        operator: its name.
        diff: the lines it changes, before and after.
        source: of the whole file, changed.
    """

    file: Path
    line: int
    operator: str
    diff: str
    source: str


def mutants_of(file: Path) -> list[Mutant]:
    """All changes of a file that mean something: annotations and docstrings do nothing when the code runs."""
    source = file.read_text(encoding="utf-8")
    meaning = _meaning(source)
    found = []
    operators = [(name.removeprefix("core/"), get_operator(name)()) for name in NAMES]
    for name, operator in [*operators, ("DropCall", DropCall())]:
        places = [place for node in ast_nodes(get_ast(source)) for place in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(places):
            changed = mutate_code(source, operator, occurrence)
            if changed is None or _meaning(changed) in (None, meaning):
                continue
            shown = difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm="")
            diff = "\n".join(f"  {line}" for line in list(shown)[3:])
            found.append(Mutant(file, start[0], name, diff, changed))
    return found


def sample(files: dict[Path, list[Mutant]], seed: int) -> list[Mutant]:
    """All mutants in a seeded order in which every file has its turn, so that any beginning is a sample of all."""
    draw = random.Random(seed)
    shuffled = [draw.sample(mutants, len(mutants)) for _, mutants in sorted(files.items())]
    draw.shuffle(shuffled)
    longest = max(map(len, shuffled), default=0)
    return [mutants[turn] for turn in range(longest) for mutants in shuffled if turn < len(mutants)]


class _Bare(ast.NodeTransformer):
    """Without annotations."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)


def _meaning(source: str) -> str | None:
    """What is left of a file when it runs; None where it is no Python."""
    try:
        return ast.dump(_Bare().visit(ast.parse(source)))
    except SyntaxError:
        return None
