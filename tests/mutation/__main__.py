"""Change one small thing in a formula at a time and see whether the tests notice: `make mutation`.

Cosmic Ray makes the changes. Each is tried in a fork of this process, which has imported the large libraries once; the
changed module is put in place of its file at import, so that no file is ever written and tests may run beside it.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

from operators import Mutant, mutants_of, sample  # noqa: E402  # beside this file, which is no package

ALGORITHMS = ("average", "feddyn", "fednova", "fedopt", "scaffold")
# of the files whose tests run whole experiments, those that do not
REFUSALS = (
    "tests/server/strategies/test_strategies.py::test_wrong_arguments_are_named",
    "tests/server/strategies/test_strategies.py::test_wrapped_strategies_are_looked_into",
    "tests/server/strategies/test_algorithms.py::test_senseless_combinations_are_refused",
)
# files by pattern, and the tests that are to notice; {stem} and {parent} are the file's own
TARGETS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fedlab/distill/precision.py", ("tests/distill/test_mmd.py", "tests/distill/test_matching.py")),
    ("fedlab/distill/*.py", ("tests/distill/test_{stem}.py",)),
    ("methods/transkd/losses.py", ("tests/methods/transkd/test_method.py",)),
    ("methods/*/losses.py", ("tests/methods/test_{parent}_losses.py",)),
    ("clients/corrections.py", ("tests/server/strategies/test_algorithm_steps.py",)),
    *((f"server/strategies/{name}.py", ("tests/server/strategies/test_algorithm_steps.py",)) for name in ALGORITHMS),
    ("server/strategies/*.py", REFUSALS),
)
WITHOUT_RAY = [
    "-m",
    "not slow and not browser and not deployment and not drill and not programs",
    "-k",
    "not engines and not script",
]


class Changed(importlib.machinery.SourceFileLoader):
    """A module of other source than its file's."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


class InItsPlace:
    """Finds a mutant where its module is looked for."""

    def __init__(self, mutant: Mutant) -> None:
        parts = mutant.file.with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        self.name = ".".join(parts if parts[0] == "fedlab" else ("fedlab", *parts))
        self.mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        loader = Changed(name, str(ROOT / self.mutant.file))
        loader.source = self.mutant.source
        return importlib.util.spec_from_file_location(name, loader.path, loader=loader)


def targets(wanted: Sequence[str]) -> dict[Path, tuple[str, ...]]:
    """Files to change and the tests of each; all, or those whose path holds one of the words."""
    found: dict[Path, tuple[str, ...]] = {}
    for pattern, tests in TARGETS:
        for path in sorted(ROOT.glob(pattern)):
            file = path.relative_to(ROOT)
            named = [test.format(stem=path.stem, parent=path.parent.name) for test in tests]
            present = tuple(test for test in named if (ROOT / test.partition("::")[0]).is_file())
            if present and (not wanted or any(word in str(file) for word in wanted)):
                found.setdefault(file, present)
    return found


def attempt(tests: Sequence[str], mutant: Mutant | None, cpu_seconds: int, log: Path) -> tuple[int, float]:
    """Run tests in a fork; returns pytest's exit status, negative where a signal ended it, and the CPU seconds."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            with log.open("w") as output, tempfile.TemporaryDirectory(prefix="mutation") as folder:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                # CPU and not wall time, which depends on who else is at work; a mutant may never end
                resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
                if mutant is not None:
                    sys.meta_path.insert(0, InItsPlace(mutant))  # type: ignore[arg-type]  # older finders have more
                import pytest

                plain = ["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--basetemp", folder]
                status = int(pytest.main([*plain, *WITHOUT_RAY, *tests]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, ended, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(ended), usage.ru_utime + usage.ru_stime


def preload() -> None:
    """Import what takes seconds, but nothing that is changed."""
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import fedlab  # noqa: F401  # its settings for the environment come before the libraries

    for name in ("torch", "torchmetrics", "sklearn", "pydantic", "pytest", "hypothesis", "scipy.stats", "ray", "flwr"):
        importlib.import_module(name)
    for name in ("flwr.app", "flwr.clientapp", "flwr.serverapp.strategy", "transformers", "torch._dynamo"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def main() -> None:
    """Try mutants until the time is over; print and store those that no test notices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="words of the paths of the files to change; all by default")
    parser.add_argument("--minutes", type=float, default=20.0, help="no mutant is begun after that")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which mutants are tried")
    parser.add_argument("--out", type=Path, default=ROOT / ".mutation", help="folder of survivors.txt and of logs")
    asked = parser.parse_args()
    ends = time.monotonic() + 60 * asked.minutes
    asked.out.mkdir(parents=True, exist_ok=True)
    preload()
    chosen = targets(asked.only)
    log = asked.out / "tests.log"
    limits: dict[tuple[str, ...], int] = {}
    mutants = sample({file: mutants_of(file) for file in chosen}, asked.seed)
    tried, killed, survivors = Counter[Path](), Counter[Path](), list[str]()
    for mutant in mutants:
        if time.monotonic() > ends:
            break
        tests = chosen[mutant.file]
        if tests not in limits:
            status, seconds = attempt(tests, None, 3600, log)
            if status != 0:
                sys.exit(f"{' '.join(tests)} fail without any change:\n{log.read_text(encoding='utf-8')[-4000:]}")
            limits[tests] = int(30 + 5 * seconds)
        status, _ = attempt(tests, mutant, limits[tests], log)
        tried[mutant.file] += 1
        killed[mutant.file] += status != 0
        if status == 0:
            survivors.append(f"{mutant.file}:{mutant.line} {mutant.operator}\n{mutant.diff}")
            say(survivors[-1])
    (asked.out / "survivors.txt").write_text("\n".join([*survivors, ""]), encoding="utf-8")
    for file in sorted(tried):
        say(f"{file}: {killed[file]} of {tried[file]} noticed")
    say(f"{killed.total()} of {tried.total()} noticed, {len(mutants) - tried.total()} not tried (seed {asked.seed})")
    say(f"survivors: {asked.out / 'survivors.txt'}")


def say(line: str) -> None:
    """Print now: a run takes minutes and may be interrupted."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
