"""A node imports only what its own configuration allows."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict

from fedlab.assembly import METHODS
from fedlab.clients import app as client_side
from fedlab.config import Config, parse
from fedlab.config.modules import only
from fedlab.config.node import allowed_references
from fedlab.engine.execution import set_task_identity
from fedlab.errors import ConfigError
from fedlab.protocol.runconfig import Submission, pack

OWN = """
from pathlib import Path
from fedlab.methods.supervised.method import Supervised
Path(__file__).with_name("imported").touch()

class Mine(Supervised):
    pass
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that leaves a trace when it is imported."""
    (tmp_path / "strange_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("strange_method", None)


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        (None, True),
        ((), False),
        (("strange_method:Mine",), True),
        (("strange_method",), True),
        (("strange_method.*",), True),
        (("*",), True),
        (("strange_method:Other",), False),
        (("strange",), False),
        (("strange.*",), False),
    ],
)
def test_patterns(patterns: Sequence[str] | None, allowed: bool, module: Path) -> None:
    with only(patterns):
        if allowed:
            assert METHODS.find("strange_method:Mine").__name__ == "Mine"
            return
        with pytest.raises(
            ConfigError, match=r"method\.name = 'strange_method:Mine'[\s\S]*allow: \['strange_method:Mi"
        ):
            METHODS.find("strange_method:Mine")
    assert not module.exists(), "nothing of it was executed"


def test_fedlabs_own_components_can_be_named_in_both_ways() -> None:
    with only(()):
        assert METHODS.find("supervised") is METHODS.find(METHODS.builtin["supervised"])


def answer(submitted: Config, node_config: dict[str, Any]) -> Message:
    """What a node says when it is asked who it is."""
    set_task_identity()
    client_side._deployed.clear()
    message = Message(RecordDict(), 7000, "query.profile")
    context = Context(1, 7000, node_config, RecordDict(), pack(Submission(submitted, simulate_partition=True)))
    return client_side.app(message, context)


def run(**changes: Any) -> Config:
    raw = {
        "method": "supervised",
        "model": "logistic",
        "data": {
            "source": {"name": "shifted_digits", "train_per_class": 2, "test_size": 20},
            "partition": [{"name": "iid", "clients": 2}],
        },
    }
    return parse(Config, raw).with_overrides(changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": {"name": "strange_method:Mine"}},
        {"model": {"name": "strange_method:Mine"}},
        {"data.source": {"name": "strange_method:Mine"}},
        {"data.source": {"name": "union", "sources": {"a": {"name": "strange_method:Mine"}}}},
        {"data.partition": [{"name": "strange_method:Mine"}]},
        {"exchange.compression": [{"name": "strange_method:Mine"}]},
        {"probes": [{"name": "strange_method:Mine"}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_submitted_run_cannot_choose_what_a_node_imports(
    changes: dict[str, Any], module: Path, tmp_path: Path
) -> None:
    node = {"partition-id": 0, "state-dir": str(tmp_path / "state")}
    submitted = run(**changes, modules=[str(tmp_path)])
    reply = answer(submitted, node)
    assert reply.has_error()
    assert not module.exists(), "nothing of it was executed"
    assert "strange_method:Mine" in reply.error.reason


def test_a_node_that_allows_it_takes_part(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLAB_ALLOW", "other, strange_method:Mine")
    node = {"partition-id": 0, "state-dir": str(tmp_path / "state")}
    reply = answer(run(method={"name": "strange_method:Mine"}), node)
    assert not reply.has_error(), reply.error.reason
    assert module.exists()


def test_the_nodes_file_and_its_environment_say_what_it_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node.yaml").write_text("site: berlin\ndata: digits\nallow: ['lab.methods:Mine', 'lab.models.*']\n")
    assert allowed_references({"node-file": str(tmp_path / "node.yaml")}) == ("lab.methods:Mine", "lab.models.*")
    (tmp_path / "other.yaml").write_text("site: berlin\ndata: digits\n")
    assert allowed_references({"node-file": str(tmp_path / "other.yaml")}) == ()
    assert allowed_references({}) == ()
    monkeypatch.setenv("FEDLAB_ALLOW", " lab:X ,")
    assert allowed_references({"node-file": str(tmp_path / "node.yaml")})[-1] == "lab:X"
    assert allowed_references({}) == ("lab:X",)


def test_the_source_of_a_node_is_its_own_choice(module: Path, tmp_path: Path) -> None:
    """Only what the run names is limited: the node's file may name a source of the operator's own."""
    source = tmp_path / "own_source.py"
    source.write_text("from fedlab.data.sources.digits import *\nfrom fedlab.data.sources import SOURCES\n"
                      "Mine = SOURCES.find('digits')\n")  # fmt: skip
    (tmp_path / "node.yaml").write_text("site: berlin\ndata: {name: 'own_source:Mine'}\n")
    config = run(**{
        "data.source": {"name": "sites", "sites": ["berlin", "lyon"], "classes": [str(k) for k in range(10)]},
        "data.partition": [{"name": "site"}],
    })  # fmt: skip
    set_task_identity()
    client_side._deployed.clear()
    message = Message(RecordDict(), 7000, "query.profile")
    node = {"node-file": str(tmp_path / "node.yaml")}
    reply = client_side.app(message, Context(1, 7000, node, RecordDict(), pack(Submission(config))))
    sys.modules.pop("own_source", None)
    assert not reply.has_error(), reply.error.reason
