"""The mutation tester finds a change that tests let pass, and no other."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_cosmic_ray = pytest.mark.skipif(
    importlib.util.find_spec("cosmic_ray") is None, reason="pip install 'fedlab-sim[mutation]'"
)


@needs_cosmic_ray
def test_changes_are_of_what_runs_and_are_shown(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from operators import mutants_of, sample
file = Path(sys.argv[2])
mutants = mutants_of(file)
for mutant in mutants:
    print(mutant.line, mutant.operator, mutant.diff.splitlines()[1].strip())
assert sample({file: mutants}, 3) == sample({file: mutants}, 3) != sample({file: mutants}, 4)
"""
    formula = tmp_path / "formula.py"
    formula.write_text(
        """from __future__ import annotations

def f(x: int | None) -> float | None:
    '''1 + 1.'''
    return -x.exp().sum()
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(formula)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "5 DropCall +    return -x.exp()",
        "5 DropCall +    return -x.sum()",
        "5 ReplaceUnaryOperator_Delete_USub +    return x.exp().sum()",
    ]


@pytest.mark.slow
@needs_cosmic_ray
def test_the_whole_way_on_one_file(tmp_path: Path) -> None:
    command = [sys.executable, "tests/mutation", "--minutes", "30", "--out", str(tmp_path), "soft_labels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "noticed, 0 not tried (seed 0)" in done.stdout
    assert (tmp_path / "survivors.txt").is_file()
