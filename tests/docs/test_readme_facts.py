"""Tables, numbers, names and links of the README agree with the code and with the other pages."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

import fedlab
from fedlab.config import EngineConfig
from fedlab.data.partition.partition import PARTITIONERS
from fedlab.method import Method
from fedlab.report.grids import Rows, to_markdown
from fedlab.server.strategies import STRATEGIES
from fedlab.studies.recorded import methods_table, outcomes_table
from fedlab.studies.rehearsed import comparison_table, rehearsals_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
    *ROOT.glob("methods/*/README.md"),
]
DEMO = re.compile(
    r"mean accuracy ([\d.]+) % over the five\s+clients \((.+?)\), ([\d.]+) MB sent down and ([\d.]+) MB\s+up", re.DOTALL
)


def table(header: str, text: str = README) -> list[list[str]]:
    """Cells of the rows below a header line."""
    found = re.search(rf"^{re.escape(header)}\n\|[-|: ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, f"no table {header!r}"
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in found[1].splitlines()]


def plain(cell: str) -> list[str]:
    return re.sub(r"\[(.+?)\]\(.+?\)|`", r"\1", cell).split(", ")


def test_every_make_target_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [text for pair in re.findall(r"`(make [^`\n]+)`|^(make .+)$", README, re.M) for text in pair]
    named = {target for text in texts for target in re.findall(r"\bmake ([a-z-]+)", text)}
    assert {"demo", "test", "help", "reproduce"} <= named
    assert not [target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    assert re.search(r"^make test$", README, re.MULTILINE)
    assert re.search(r"^\s*make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_into_the_repository_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place) if place else page
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_contributing_names_every_hook_of_a_method() -> None:
    hooks = {name for name in vars(Method) if not name.startswith("_")} - {
        "title",
        "paper",
        "modality",
        "learns_from",
        "about",
        "overrides",
        "promises",
    }
    cells = re.findall(r"^ *\| (`.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert hooks <= {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("page", "tables"),
    [
        (ROOT / "README.md", (methods_table, outcomes_table)),
        (ROOT / "docs" / "methods.md", (comparison_table, rehearsals_table)),
    ],
    ids=["README", "methods"],
)
def test_the_tables_of_methods_are_those_that_the_command_prints(
    request: pytest.FixtureRequest, page: Path, tables: tuple[Callable[[], Rows], ...]
) -> None:
    text = page.read_text(encoding="utf-8")
    for rows in (make() for make in tables):
        lines = "".join(f"{line}\n" for line in to_markdown(rows))
        head = lines.partition("\n")[0]
        shown = re.search(rf"^{re.escape(head)}\n(?:\|.*\n)+", text, re.MULTILINE)
        assert shown, f"no table {head!r}"
        if request.config.getoption("--update-readme"):
            text = text.replace(shown[0], lines)
            page.write_text(text, encoding="utf-8")
        else:
            assert shown[0] == lines, "`make readme` writes it anew"


def test_the_table_of_partition_steps_names_them_all() -> None:
    names = [name for row in table("| step | what a client gets |") for name in plain(row[0])]
    assert sorted(names) == sorted(PARTITIONERS.builtin)


def test_the_table_of_engines_names_them_all() -> None:
    names = [name for row in table("| `engine.name` | where clients run |") for name in plain(row[0])]
    assert sorted(names) == sorted(get_args(EngineConfig.model_fields["name"].annotation))


def test_the_strategies_of_the_prose_are_those_there_are() -> None:
    sentence = re.search(r"`federation\.strategy` is one of (.+?)\.\s", README, re.DOTALL)
    assert sentence
    own = {name for name in STRATEGIES.builtin if not name.startswith("flower.")}
    assert set(re.findall(r"`(\w+)`", sentence[1])) == own


def test_the_pages_of_the_documentation_are_all_listed() -> None:
    listed = {name for row in table("| page | about |") for name in re.findall(r"\((docs/.+?)\)", row[0])}
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert listed == pages - {"docs/index.md"}  # the start page of the site, which is a list itself


def test_the_table_of_algorithms_is_that_of_its_page() -> None:
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    header = "| algorithm | Dirichlet(0.1): mean over clients | worst client | five domains: mean over clients |"
    whole = table(f"{header} worst client | traffic |", page)
    short = table("| algorithm | digits, Dirichlet(0.1), 5 clients | five domains |")
    assert [[row[0], row[1], row[3]] for row in whole] == short


def test_the_numbers_of_the_demo_can_be_read() -> None:
    found = DEMO.search(README)
    assert found
    assert len(found[2].split(", ")) == 5


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_numbers_of_the_demo_are_those_of_the_demo(tmp_path: Path) -> None:
    found = DEMO.search(README)
    assert found
    run = fedlab.run("fedlgd", overrides=["tracking.console=quiet", f"tracking.folder={tmp_path}"])
    mean, clients, down, up = found.groups()
    assert 100 * run.metrics["mean"]["accuracy"] == pytest.approx(float(mean), abs=2)
    for client in clients.split(", "):
        name, value = client.split()
        assert 100 * run.metrics["clients"][name]["accuracy"] == pytest.approx(float(value), abs=4)
    assert [round(count / 1e6, 1) for count in run.history.bytes_total()] == [float(down), float(up)]
