"""An app that says what process it works in, and a folder whose path is short enough for sockets."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedlab.engine.execution import set_task_identity

APP = """
import os
import pathlib
import sys
import threading

from flwr.app import ConfigRecord, Message, RecordDict


def app(message, context):
    asked = message.content["asked"]
    if asked["do"] == "die":
        print("about to die", file=sys.stderr, flush=True)
        os._exit(3)
    if asked["do"] == "leave":
        sys.exit("no more")
    if asked["do"] == "hang":
        pathlib.Path(asked["marker"]).write_text(str(os.getpid()))
        threading.Event().wait()
    count = context.state["count"]["count"] + 1 if "count" in context.state else 1
    context.state["count"] = ConfigRecord({"count": count})
    facts = {"pid": os.getpid(), "count": count, "type": message.metadata.message_type, **context.node_config}
    arrays = {key: record for key, record in message.content.items() if key == "arrays"}
    return Message(RecordDict({"facts": ConfigRecord(facts), **arrays}), reply_to=message)
"""


@pytest.fixture(autouse=True)
def _identity() -> None:
    set_task_identity()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path. Workers that listen below it end a second after it has been removed."""
    folder = Path(tempfile.mkdtemp(prefix="fl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def working(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The reference of the app; workers find it, and meet with messages below `short`."""
    (tmp_path / "told_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    monkeypatch.delenv("FEDLAB_RESIDENT", raising=False)
    monkeypatch.delenv("FEDLAB_RESIDENT_RUNS", raising=False)
    yield "told_app:app"
    sys.modules.pop("told_app", None)


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    """Makes the context of a run on a node."""

    def make(run: int = 1, node: int = 7, state: RecordDict | None = None) -> Context:
        config = {"partition-id": node, "state-dir": str(tmp_path / f"state{node}")}
        return Context(run, node, config, RecordDict() if state is None else state, {"config-json": "{}"})

    return make
