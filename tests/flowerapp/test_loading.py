"""The import of an app: what is found, and what is told where it is not."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedlab.engine.execution import set_task_identity
from fedlab.errors import ConfigError
from fedlab.flowerapp.loading import (
    ClientAppLoader,
    FlowerAppError,
    SeededApp,
    importable,
    load_components,
    round_of,
)
from fedlab.flowerapp.project import read_project

Write = Callable[..., Path]


def test_both_components_are_found_and_forgotten_afterwards(write_app: Write) -> None:
    folder, path = write_app(), list(sys.path)
    with importable(folder):
        server, client = load_components(read_project(folder))
        assert isinstance(server, ServerApp)
        assert isinstance(client, ClientApp)
        assert "numbers_app.task" in sys.modules
    assert not [name for name in sys.modules if name.startswith("numbers_app")]
    assert sys.path == path


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        ({"server_app": "x = 1"}, ConfigError, r"components\.serverapp = .*\n.*an attribute of the module"),
        ({"server_app": "app = 1"}, ConfigError, "a ServerApp of Flower(.|\n)*it is a int"),
        ({"client_app": "from numbers_app.server_app import app"}, ConfigError, "it is a ServerApp"),
        ({"task": "import no_such_package.inner"}, ConfigError, "its code imports no_such_package"),
        ({"task": "import numbers_app.missing"}, FlowerAppError, r"importing numbers_app\.client_app(.|\n)*missing"),
        ({"task": "1 / 0"}, FlowerAppError, "failed, importing numbers_app(.|\n)*ZeroDivisionError"),
        ({"task": "object().nothing"}, FlowerAppError, "'object' object has no attribute 'nothing'"),
        ({"task": "import sys; sys.exit(4)"}, FlowerAppError, "SystemExit: 4"),
    ],
)
def test_what_cannot_be_imported_is_told(
    files: dict[str, str], kind: type[Exception], message: str, write_app: Write
) -> None:
    folder = write_app(**files)
    with importable(folder), pytest.raises(kind, match=message):
        load_components(read_project(folder))


def test_a_module_that_is_not_there_is_told(write_app: Write) -> None:
    file = write_app() / "pyproject.toml"
    file.write_text(file.read_text().replace("server_app:app", "sever_app:app"))
    with importable(file.parent), pytest.raises(ConfigError, match=r"no module numbers_app\.sever_app"):
        load_components(read_project(file.parent))


def test_a_hidden_module_of_the_right_kind_is_told(write_app: Write, tmp_path: Path) -> None:
    one, other = write_app(package="same_app"), tmp_path / "other"
    (other / "same_app").mkdir(parents=True)
    for name in ("pyproject.toml", "same_app/client_app.py", "same_app/server_app.py", "same_app/task.py"):
        (other / name).write_text((one / name).read_text())
    with importable(one):
        load_components(read_project(one))
        with pytest.raises(ConfigError, match="has the same name and hides it"):
            load_components(read_project(other))


def test_a_worker_gets_the_app_by_its_name(write_app: Write) -> None:
    folder = write_app()
    loader = pickle.loads(pickle.dumps(ClientAppLoader(str(folder), "numbers_app.client_app:app", 0)))
    with importable(folder):
        assert isinstance(loader(), SeededApp)


def draws(seed: int, client: int, kind: str, number: int | None, group: str = "") -> tuple[float, ...]:
    """What an app draws while it handles a message."""
    found: list[float] = []

    def app(message: Message, context: Context) -> Message:
        found.extend([random.random(), float(np.random.rand()), float(torch.rand(()))])
        return message

    set_task_identity()
    records = {} if number is None else {"config": ConfigRecord({"server-round": number})}
    message = Message(RecordDict(records), 1000 + client, kind, group_id=group)
    context = Context(1, 1000 + client, {"partition-id": client}, RecordDict(), {})
    SeededApp(app, seed)(message, context)  # type: ignore[arg-type]  # it is only called
    return tuple(found)


def test_draws_depend_on_seed_client_type_and_round_and_on_nothing_else() -> None:
    first = draws(0, 1, "train", 2)
    random.seed(5)
    before = random.getstate()
    assert draws(0, 1, "train", 2) == first
    assert random.getstate() == before
    others = [draws(1, 1, "train", 2), draws(0, 2, "train", 2), draws(0, 1, "evaluate", 2), draws(0, 1, "train", 3)]
    assert len({first, *others}) == 5
    assert len(set(first)) == 3


def test_the_round_of_a_message_is_where_flowers_strategies_write_it() -> None:
    set_task_identity()

    def message(group: str = "", **config: int | str) -> Message:
        content = RecordDict({"any": ConfigRecord(dict(config))})
        return Message(content, 1000, "train", group_id=group)

    assert round_of(message(**{"server-round": 4})) == 4
    assert round_of(message("3")) == 3
    assert round_of(message("3", **{"server-round": 4})) == 4
    assert round_of(message("a")) is None
    assert round_of(message(**{"server-round": "4"})) is None
    assert round_of(message()) is None
