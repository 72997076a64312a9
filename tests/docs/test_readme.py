"""The README and docs/ do what they say: files are written, commands run, outputs are what is printed.

Every file, command, program and output is a test of its own. Those of a section happen one after the other in one
folder, each once: a test first does what stands before it, so that any of them can run alone. The first command of all
runs in a fresh process, the others in forks of one that has imported FedLab (tests/forks.py), and they write no
reports. ``make`` targets are looked up in the Makefile: .ci/run calls them itself. `make readme` writes the outputs
anew.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.docs.outputs import difference, renewed, tail
from tests.forks import Forks

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
# pages that tests of their own look at
FRAGMENTS = ("architecture", "communication", "from-flower", "gpu", "installation", "participation")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COLUMNS = 120


@dataclass(frozen=True)
class Step:
    """A file, a command, a program, or the output of the command before it."""

    kind: str
    text: str

    @property
    def name(self) -> str:
        first = self.text.strip().splitlines()[0]
        return f"{self.kind}: {first[:60]}"


def steps(markdown: str) -> list[Step]:
    """What a section says, in order; each command of a block is a step. Blocks of kind ``console`` are only shown."""
    found: list[Step] = []
    for language, text in FENCE.findall(markdown):
        if language == "sh":
            found += [Step("sh", line) for line in text.splitlines() if line.strip()]
        elif language != "console":
            found.append(Step(language, text))
    return [step for step in found if not step.text.startswith("make ")]


def sections(page: Path) -> dict[str, str]:
    return dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


PAGES = {"README": README, **{p.stem: p for p in sorted((ROOT / "docs").rglob("*.md")) if p.stem not in FRAGMENTS}}
SECTIONS = {
    f"{name}: {title}": found
    for name, page in PAGES.items()
    for title, body in sections(page).items()
    if (found := steps(body))
}
STEPS = [
    pytest.param(title, index, id=f"{title} {index} {step.name}")
    for title, found in SECTIONS.items()
    for index, step in enumerate(found)
]
FIRST = "README: First steps"  # the section whose first command starts Python anew, as a user does


@dataclass
class Section:
    """A section that is being carried out, as far as it has been needed."""

    steps: list[Step]
    folder: Path
    forks: Forks
    fresh: int  # how many of its steps run in fresh processes
    outputs: list[str] = field(default_factory=list)
    failed: str = ""

    def output(self, index: int) -> str:
        """What a step printed; the steps before it are done first."""
        while len(self.outputs) <= index:
            assert not self.failed, f"a step before this one failed:\n{self.failed}"
            self.outputs.append(self._do(self.steps[len(self.outputs)]))
        return self.outputs[index]

    def _do(self, step: Step) -> str:
        if step.kind == "text":
            return self.outputs[-1]
        name = re.match(r"# (\S+\.(?:yaml|py))\n", step.text)  # a module of the user's own is a file, too
        if name is not None or step.kind == "yaml":
            assert name is not None, f"a YAML block starts with its file's name:\n{step.text}"
            (self.folder / name[1]).write_text(step.text, encoding="utf-8")
            return ""
        done = self._run(step)
        if done.returncode:
            self.failed = f"{step.text}\n{done.stdout}\n{done.stderr}"
        assert not done.returncode, self.failed
        return done.stdout

    def _run(self, step: Step) -> subprocess.CompletedProcess[str]:
        program = self.folder / "program.py"
        program.write_text(step.text, encoding="utf-8")
        scripts = Path(sys.executable).parent
        env = {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": str(COLUMNS),
        }
        name, *arguments = shlex.split(step.text) if step.kind == "sh" else [""]
        if len(self.outputs) >= self.fresh and (name == "fedlab" or step.kind == "python"):
            command = [scripts / "fedlab", *arguments] if name else [program]
            return self.forks.run(command, cwd=self.folder, env=env, reports=False)
        shell = ["bash", "-euo", "pipefail", "-c", step.text]
        command = shell if step.kind == "sh" else [sys.executable, program]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Callable[[str], Section]:
    known: dict[str, Section] = {}

    def find(title: str) -> Section:
        if title not in known:
            folder = tmp_path_factory.mktemp("section")
            known[title] = Section(SECTIONS[title], folder, forks, fresh=1 if title == FIRST else 0)
        return known[title]

    return find


# a page's commands start Ray and train: on a busy machine that takes as long as it takes
@pytest.mark.programs
@pytest.mark.timeout(0)
@pytest.mark.parametrize(("title", "index"), STEPS)
def test_it_does_what_it_says(
    title: str, index: int, section: Callable[[str], Section], request: pytest.FixtureRequest
) -> None:
    step, printed = SECTIONS[title][index], section(title).output(index)
    if step.kind != "text":
        return
    found = tail(printed, step.text)
    if request.config.getoption("--update-readme"):
        fresh = renewed(step.text, found)
        page = PAGES[title.partition(": ")[0]]
        page.write_text(page.read_text(encoding="utf-8").replace(step.text, fresh), encoding="utf-8")
        return
    assert not difference(step.text, found), f"`make readme` writes it anew; printed now:\n{found}"


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("│ svhn │ 40.4 % │ 1.925 │", "│ svhn    │ 41.2 % │ 1.930 │", True),
        ("│ svhn │ 40.4 % │ 1.925 │", "│ svhn │ 44.4 % │ 1.925 │", False),
        ("│ svhn │ 40.4 % │ 1.925 │", "│ mnist │ 40.4 % │ 1.925 │", False),
        ("traffic  86.8 kB down", "traffic  86.9 kB down", False),
        ("server 1 ms, train 0.95 s", "server 13 ms, train 1 min 05 s", True),
        ("completed after 1.28 s, 2 of 2 rounds", "completed after 9.1 s, 1 of 2 rounds", False),
        ("report: file:///…/runs/first/report.html", "report: file:///tmp/x/runs/first/report.html", True),
        ("report: file:///…/runs/first/report.html", "report: file:///tmp/x/runs/other/report.html", False),
        ("accuracy on 200 test samples", "accuracy on 250 test samples", False),
    ],
)
def test_only_what_is_declared_may_vary(shown: str, printed: str, same: bool) -> None:
    assert (not difference(shown, printed)) is same


def test_an_output_is_renewed_where_it_differs() -> None:
    shown = "Results\n│ svhn │ 40.4 % │\ntime  server 1 ms\nreport: file:///…/runs/first/report.html\n"
    printed = "Results  \n│ svhn │ 41.4 % │ 200 │\ntime  server 9 s\nreport: file:///tmp/x/runs/first/report.html\n"
    assert renewed(shown, printed) == shown.replace("40.4 % │", "41.4 % │ 200 │")


def test_some_outputs_are_compared() -> None:
    shown = [(title, index) for title, found in SECTIONS.items() for index, s in enumerate(found) if s.kind == "text"]
    assert shown
    for title, index in shown:
        before = SECTIONS[title][:index][-1:]
        assert [step.kind for step in before] in (["sh"], ["python"]), "an output follows its command"


def test_every_block_is_of_a_kind_that_is_executed_or_compared() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(FENCE.findall(text)) == text.count("```") // 2
    assert {language for language, _ in FENCE.findall(text)} <= {"sh", "python", "yaml", "text"}
