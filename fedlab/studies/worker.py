"""A process that makes runs, one after the other, for a study that makes several side by side.

It is started as ``python -m fedlab.studies.worker``. Each line of its standard input asks for a run, as a JSON object:
``config``, the run's complete configuration, and ``command``, how to repeat it. Each line of its standard output is a
JSON object with a ``kind``, which is ``announce``, ``done`` or ``failed``, and a ``text``: a line to be shown, the run
folder, or why the run failed. What the runs print goes to standard error.

SIGTERM interrupts the run, which records its end. So does the end of standard input while there is a run, because then
nobody waits for it any more.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import traceback
from functools import partial

from fedlab.config import Config, parse
from fedlab.errors import FedLabError
from fedlab.experiment.configuration import configure
from fedlab.studies.plan import made, reason

INTERRUPTED = 130


def main() -> int:
    """Answer requests until standard input ends; returns the exit status."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a method prints is no answer

        def tell(kind: str, text: str) -> None:
            answers.write(json.dumps({"kind": kind, "text": text}) + "\n")
            answers.flush()

        requests: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        busy = threading.Event()
        threading.Thread(target=_read, args=(requests, busy), daemon=True).start()
        while (request := requests.get()) is not None:
            busy.set()
            try:
                asked = json.loads(request)
                run = made(configure(parse(Config, asked["config"])), asked["command"], partial(tell, "announce"))
            except KeyboardInterrupt:
                return INTERRUPTED
            except Exception as error:
                if not isinstance(error, FedLabError):
                    traceback.print_exc()
                tell("failed", reason(error))
            else:
                tell("done", str(run.path))
            finally:
                busy.clear()
    return 0


def _read(requests: queue.SimpleQueue[str | None], busy: threading.Event) -> None:
    for line in sys.stdin:
        requests.put(line)
    requests.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
