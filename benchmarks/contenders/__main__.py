"""``python -m benchmarks.contenders NAME WORK [ARGUMENT …]``: one contender, whose code workers can import."""

from __future__ import annotations

import importlib
import sys

from benchmarks.work import Work

if __name__ == "__main__":
    name, work, *rest = sys.argv[1:]
    importlib.import_module(f"benchmarks.contenders.{name}").main(Work.from_json(work), *rest)
