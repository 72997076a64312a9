"""The notebooks run from top to bottom, print what they show, and hold nothing but text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.docs.outputs import difference, renewed

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LONGEST = 2000  # characters that a cell may print


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def printed(cell: dict[str, Any]) -> str:
    """What a cell has written to standard output."""
    outputs = [output for output in cell.get("outputs", []) if output["output_type"] == "stream"]
    return "".join("".join(output["text"]) for output in outputs if output["name"] == "stdout")


def displayed(cell: dict[str, Any], kind: str) -> list[str]:
    """What a cell shows beside that, in HTML."""
    return [output["data"].get("text/html", "") for output in cell["outputs"] if output["output_type"] == kind]


def test_there_is_a_notebook_for_each_first_question() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["comparing_algorithms", "first_run", "own_data", "own_method"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_text_and_nothing_of_the_machine_it_was_run_on(path: Path) -> None:
    for cell in cells(path):
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["execution_count"] is None
            assert {(output["output_type"], output["name"]) for output in cell["outputs"]} <= {("stream", "stdout")}
            assert len(printed(cell)) <= LONGEST
            assert not re.search(r"/(tmp|home|root|Users)/", printed(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_links_of_a_notebook_lead_somewhere(path: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)\s#]+)", text)
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.programs
@pytest.mark.timeout(0)  # as long as it takes on a busy machine
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nbclient
    import nbformat

    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))  # not the settings of whoever runs the tests
    shown = nbformat.read(path, as_version=4)
    done = nbformat.read(path, as_version=4)
    (tmp_path / "work").mkdir()
    nbclient.NotebookClient(done, timeout=None, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
    if request.config.getoption("--update-readme"):
        for before, cell in zip(shown.cells, done.cells, strict=True):
            if cell.cell_type == "code":
                text = renewed(printed(before), printed(cell))
                before.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)] if text else []
        path.write_text(nbformat.writes(shown) + "\n", encoding="utf-8")
        return
    wrong = {
        index: differing
        for index, (before, cell) in enumerate(zip(shown.cells, done.cells, strict=True))
        if (differing := difference(printed(before), printed(cell)))
    }
    assert not wrong, "`make readme` writes the outputs anew"
    # a run has one line of progress, which ends with its outcome, and everything shown as a table is one
    progress = [line for cell in done.cells if cell.cell_type == "code" for line in displayed(cell, "display_data")]
    assert all(line.count("<progress") == 1 and "completed after" in line for line in progress)
    assert progress or "quiet" in path.read_text(encoding="utf-8")
    results = [page for cell in done.cells if cell.cell_type == "code" for page in displayed(cell, "execute_result")]
    assert results
    assert all("<table>" in page for page in results)
