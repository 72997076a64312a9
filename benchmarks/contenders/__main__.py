"""``python -m benchmarks.contenders NAME WORK [ARGUMENT …]``: one contender, whose code workers can import."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from benchmarks.work import Work

if __name__ == "__main__":
    name, work, *rest = sys.argv[1:]
    try:
        importlib.import_module(f"benchmarks.contenders.{name}").main(Work.from_json(work), *rest)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # threads that a library has left behind would keep the process, and everybody waits for it
