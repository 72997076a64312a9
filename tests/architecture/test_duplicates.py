"""No method repeats another: what two papers share is in fedlab/distill or fedlab/blocks."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

METHODS = Path(__file__).resolve().parents[2] / "methods"
LINES = 6


def lines_of(path: Path) -> list[tuple[int, str]]:
    """Lines of a file with their numbers, without indentation, blank lines and imports, which may be the same."""
    text = path.read_text(encoding="utf-8")
    imports = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    numbered = enumerate((line.strip() for line in text.splitlines()), start=1)
    return [(number, line) for number, line in numbered if line and number not in imports]


def repeated(folder: Path, count: int) -> list[str]:
    """Where so many successive lines of one method stand in another one."""
    places: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
    for path in sorted(folder.glob("*/*.py")):
        lines = lines_of(path)
        for start in range(len(lines) - count + 1):
            window = lines[start : start + count]
            shown = f"{path.relative_to(folder).as_posix()}:{window[0][0]}"
            places[tuple(line for _, line in window)].append((path.parent.name, shown))
    return [
        " = ".join(shown for _, shown in found) for found in places.values() if len({method for method, _ in found}) > 1
    ]


def test_no_method_repeats_six_lines_of_another() -> None:
    assert repeated(METHODS, LINES) == []


def test_a_repetition_is_found(tmp_path: Path) -> None:
    for method, indent in (("one", ""), ("two", "    ")):
        body = "\n\n".join(f"{indent}x{number} = {number}" for number in range(6))
        (tmp_path / method).mkdir()
        head = "from math import (\n    pi,\n)\n" + ("if True:\n" if indent else "")
        (tmp_path / method / "method.py").write_text(head + body + f"\ny = '{method}'\n", encoding="utf-8")
    assert repeated(tmp_path, 6) == ["one/method.py:4 = two/method.py:5"]
    assert repeated(tmp_path, 7) == []
