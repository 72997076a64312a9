"""Listens to Flower's strategies: what they aggregate and what the server measures, which no message tells.

A ServerApp keeps the result of its strategy to itself. So while it runs, the functions that carry out a strategy's
rounds are replaced by ones that tell a `RoundBook` what the strategy computes, and do the same otherwise.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import flwr.server.compat.app
from flwr.app import ArrayRecord
from flwr.common import parameters_to_ndarrays
from flwr.serverapp.strategy import Strategy

from fedlab.flowerapp.book import RoundBook
from fedlab.protocol.messages import to_record

Call = Callable[..., Any]


@contextmanager
def listening(book: RoundBook) -> Iterator[None]:
    """A context in which every strategy that carries out its rounds tells the book what it computes.

    Args:
        book: the record.
    """
    legacy: Any = flwr.server.compat.app
    with ExitStack() as stack:
        for kind in _kinds(Strategy):
            if "start" in vars(kind):
                stack.enter_context(_replaced(kind, "start", _start(kind.start, book)))
        stack.enter_context(_replaced(legacy, "run_fl", _run_fl(legacy.run_fl, book)))
        yield


def _start(original: Call, book: RoundBook) -> Call:
    """`Strategy.start`, which also tells the book."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def start(self: Strategy, *arguments: Any, **named: Any) -> Any:
        try:
            bound = signature.bind(self, *arguments, **named)
        except TypeError:
            return original(self, *arguments, **named)  # raises the error that the app should see
        if "aggregate_train" in vars(self):  # a start that calls the one of its base class
            return original(self, *arguments, **named)
        bound.apply_defaults()
        given = bound.arguments
        if callable(evaluate := given.get("evaluate_fn")):
            given["evaluate_fn"] = _told(evaluate, book, book.measured)
        first = given.get("initial_arrays")
        book.begun(int(given.get("num_rounds") or 0), first if isinstance(first, ArrayRecord) else None)
        listeners: dict[str, Call] = {
            "aggregate_train": lambda number, found: book.trained(number, *found),
            "aggregate_evaluate": book.tested,
        }
        with _methods(self, book, listeners):
            result = original(*bound.args, **bound.kwargs)
        book.check()
        if isinstance(last := getattr(result, "arrays", None), ArrayRecord) and len(last):
            book.arrays = last
        return result

    return start


def _run_fl(original: Call, book: RoundBook) -> Call:
    """The loop of Flower's older interface, which also tells the book."""

    def trained(number: int, found: Any) -> None:
        parameters, metrics = found
        book.trained(number, _numbered(parameters), metrics)

    def measured(record: Callable[[int, Mapping[str, Any]], None], number: int, found: Any) -> None:
        if found is not None and found[0] is not None:
            record(number, {"loss": found[0], **(found[1] or {})})

    @functools.wraps(original)
    def run_fl(server: Any, config: Any) -> Any:
        book.begun(int(config.num_rounds), None)
        listeners: dict[str, Call] = {
            "aggregate_fit": trained,
            "aggregate_evaluate": functools.partial(measured, book.tested),
            "evaluate": functools.partial(measured, book.measured),
        }
        with _methods(server.strategy, book, listeners):
            history = original(server, config)
        book.check()
        return history

    return run_fl


@contextmanager
def _methods(strategy: object, book: RoundBook, listeners: Mapping[str, Call]) -> Iterator[None]:
    """Let methods of one strategy tell listeners of the round and of what they return."""
    with ExitStack() as stack:
        for name, listener in listeners.items():
            stack.enter_context(_replaced(strategy, name, _told(getattr(strategy, name), book, listener)))
        yield


def _told(original: Call, book: RoundBook, listener: Call) -> Call:
    """A function whose first argument is the number of a round, and of whose results a listener is told."""

    @functools.wraps(original)
    def call(*arguments: Any, **named: Any) -> Any:
        book.check()
        with book.on_server():
            found = original(*arguments, **named)
        number = arguments[0] if arguments else named.get("server_round")
        if isinstance(number, int):
            listener(number, found)
        return found

    return call


@contextmanager
def _replaced(owner: Any, name: str, new: Call) -> Iterator[None]:
    """Replace an attribute inside the block; one that the owner only inherits is removed afterwards."""
    own = vars(owner).get(name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _kinds(kind: type[Any]) -> list[type[Any]]:
    """A class and all that derive from it, each once."""
    found = [kind]
    for known in found:
        found += [derived for derived in known.__subclasses__() if derived not in found]
    return found


def _numbered(parameters: Any) -> ArrayRecord | None:
    """Parameters of the older interface, which have no names, under their numbers."""
    if parameters is None or parameters.tensor_type != "numpy.ndarray" or not parameters.tensors:
        return None
    return to_record({str(number): values for number, values in enumerate(parameters_to_ndarrays(parameters))})
