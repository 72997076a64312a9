"""The README and docs/ do what they say: their files are written, their commands and programs run as they stand.

A section's blocks run one after the other in an empty folder. ``make`` targets are looked up in the Makefile: .ci/run
calls them itself.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedlab.method import Method

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """All fenced blocks, in order."""
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)]


def targets(text: str) -> list[str]:
    """What ``make`` is asked for."""
    return re.findall(r"\bmake ([a-z-]+)", text)


SECTIONS = {title: blocks(body) for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.M | re.S)}
FRAGMENTS = ("communication", "gpu", "participation")  # pages of fragments, which tests of their own complete and run
PAGES = {
    f"{page.stem}: {title}": blocks(body)
    for page in sorted((ROOT / "docs").glob("*.md"))
    if page.stem not in FRAGMENTS
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page.read_text(encoding="utf-8"), re.M | re.S)
}
EXECUTED = {
    title: found
    for title, found in {**SECTIONS, **PAGES}.items()
    if any(not block.text.startswith("make ") for block in found)
}


def test_every_block_is_of_a_kind_that_is_executed_or_shown_as_output() -> None:
    assert sum(len(found) for found in SECTIONS.values()) == len(blocks(README)) == README.count("```") // 2
    assert {block.language for block in blocks(README)} <= {"sh", "python", "yaml", "text"}


def test_every_make_target_the_readme_names_exists() -> None:
    named = [
        target
        for text in re.findall(r"`(make [^`\n]+)`|^(make .+)$", README, re.M)
        for target in targets(" ".join(text))
    ]
    assert {"demo", "test", "help", "reproduce"} <= set(named)
    assert not [target for target in named if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)]


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    assert re.search(r"^make test$", README, re.MULTILINE)
    assert re.search(r"^\s*make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_link_into_the_repository_leads_somewhere() -> None:
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / link.split("#")[0]).exists()]


def test_contributing_names_every_hook_of_a_method() -> None:
    hooks = {name for name in vars(Method) if not name.startswith("_")} - {"title", "paper", "modality", "overrides"}
    table = re.findall(r"^ *\| (`.+?) \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert hooks <= {name for cell in table for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("title", EXECUTED)
def test_the_blocks_of_a_section_run(title: str, tmp_path: Path) -> None:
    for block in EXECUTED[title]:
        if block.language == "yaml":
            name = re.match(r"# (\S+\.yaml)\n", block.text)
            assert name is not None, f"a YAML block starts with its file's name:\n{block.text}"
            (tmp_path / name[1]).write_text(block.text, encoding="utf-8")
        elif block.language == "sh" and not targets(block.text):
            execute(["bash", "-euo", "pipefail", "-c", block.text], block, tmp_path)
        elif block.language == "python":
            program = tmp_path / "program.py"
            program.write_text(block.text, encoding="utf-8")
            execute([sys.executable, str(program)], block, tmp_path)


def execute(command: list[str], block: Block, folder: Path) -> None:
    """Run a block with this environment's `fedlab`, its cache in a folder of its own."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FEDLAB_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
