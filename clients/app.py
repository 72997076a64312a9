"""The Flower ClientApp, which turns messages into calls of `ClientRuntime` and its results into replies."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode

from fedlab.clients.deployed import setup_from_context
from fedlab.clients.runtime import ClientRuntime
from fedlab.clients.sent import record_sent
from fedlab.clients.setup import ClientSetup
from fedlab.clients.vectorized.runtime import VectorizedRuntime
from fedlab.clients.work import MissingError, Trained, WorkRequest
from fedlab.config.modules import SearchPath, only
from fedlab.config.node import allowed_references
from fedlab.engine.device import choose_device, use_deterministic_kernels
from fedlab.engine.execution import VectorizingApp
from fedlab.engine.machine import settle_process
from fedlab.errors import ConfigErrors, InputError, NoClientError
from fedlab.method.timing import Timings
from fedlab.protocol.encoding import attach
from fedlab.protocol.instructions import Instructions
from fedlab.protocol.messages import (
    ARRAYS,
    CONFIG,
    EFFORT,
    EXTRAS,
    FITTED,
    INSTRUCTIONS,
    METRICS,
    MISSING,
    NO_CLIENT,
    NUM_EXAMPLES,
    PERSONALIZED,
    REDUCE,
    SPENT,
    STATE,
    SUMS,
    TIMING,
    VALIDATED,
    VALIDATION,
    WITHHELD,
    array_record,
    config_record,
    required,
    to_numpy,
    to_record,
)


@dataclass(frozen=True)
class ClientAppFactory:
    """Builds the ClientApp in the process that will run it. The factory can be pickled.

    The setup brings the components of the run as the driver made them. Only the device is chosen again in every worker,
    because a worker may be on another machine.

    Args:
        setup: the components of the run, and the data and folders of its clients.
    """

    setup: ClientSetup

    def __reduce__(self) -> tuple[Any, ...]:
        # the search path is unpickled before the setup, so that a method in one of the user's own modules is found
        return ClientAppFactory._unpickled, (SearchPath(self.setup.config.modules), self.setup)

    @classmethod
    def _unpickled(cls, path: SearchPath, setup: ClientSetup) -> ClientAppFactory:
        return cls(setup)

    def __call__(self) -> ClientApp:
        device = choose_device(self.setup.config.engine.device)
        use_deterministic_kernels(device)
        if isinstance(self.setup.config.engine.vectorize, int):
            vectorized = VectorizedRuntime(self.setup, device)
            return serve(VectorizingApp(partial(_vectorize, vectorized)), lambda context: vectorized)
        runtime = ClientRuntime(self.setup, device)
        return serve(ClientApp(), lambda context: runtime)


def serve(app: ClientApp, runtime_for: Callable[[Context], ClientRuntime]) -> ClientApp:
    """Register the functions with which an app answers FedLab's messages.

    Args:
        app: a new app.
        runtime_for: returns the runtime that serves a context.

    Returns:
        The same app.
    """

    @app.query("profile")
    def profile(message: Message, context: Context) -> Message:
        runtime = runtime_for(context)
        client = _client(runtime, context)
        data = runtime.setup.federated
        hashes = runtime.holding(client).hashes()
        facts = ConfigRecord(
            {
                **({"assets": json.dumps(hashes)} if hashes else {}),
                "client": client,
                "name": data.partition[client].name,
                "train": runtime.examples(client),
                "test": data.num_test(client),
                "unseen": client in data.unseen,
                "columns": json.dumps(runtime.task.columns),
                "classes": list(runtime.task.class_names),
                "vocabulary": list(runtime.task.vocabulary),
                "clients": data.num_clients,
                "device": runtime.device.type,
            }
        )
        return Message(RecordDict({CONFIG: facts}), reply_to=message)

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        runtime, instructions = runtime_for(context), _instructions(message.content)
        try:
            answer = runtime.prepare(_client(runtime, context), instructions, _version(context, instructions))
        except MissingError as missing:
            return _missing(message, missing)
        return _reply(message, context, answer, instructions, copy=True)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        runtime = runtime_for(context)
        settings = dict(required(config_record, message.content, CONFIG))
        request = _request(message.content, settings)
        try:
            answer = runtime.train(_client(runtime, context), request, _version(context, request.instructions))
        except MissingError as missing:
            return _missing(message, missing)
        # the engine adds a reply to its sum before the next client changes the resident model; a reply that is not
        # summed is kept longer, and so its arrays are copied
        return _reply(message, context, answer, request.instructions, copy=REDUCE not in settings)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        runtime, request = runtime_for(context), _request(message.content)
        try:
            answer = runtime.evaluate(_client(runtime, context), request, _version(context, request.instructions))
        except MissingError as missing:
            return _missing(message, missing)
        metrics = MetricRecord({**answer.values, NUM_EXAMPLES: answer.count})
        content = RecordDict({SUMS: to_record(answer.sums), METRICS: metrics})
        if answer.validated:
            content[VALIDATION] = to_record(answer.validation)
            content[VALIDATED] = MetricRecord({NUM_EXAMPLES: answer.validated})
        if answer.personalized:
            content[PERSONALIZED] = to_record(answer.personalized)
        _attach_timings(content, answer.timings)
        return Message(content, reply_to=message)

    @app.query("probe")
    def probe(message: Message, context: Context) -> Message:
        runtime, record = runtime_for(context), array_record(message.content, FITTED)
        fitted, request = None if record is None else to_numpy(record), _request(message.content)
        try:
            sums = runtime.probe(_client(runtime, context), request, _version(context, request.instructions), fitted)
        except MissingError as missing:
            return _missing(message, missing)
        return Message(RecordDict({SUMS: to_record(sums)}), reply_to=message)

    return app


def _vectorize(runtime: VectorizedRuntime, content: RecordDict, contexts: Sequence[Context]) -> None:
    request = _request(content, dict(required(config_record, content, CONFIG)))
    runtime.vectorize(
        {_client(runtime, context): _version(context, request.instructions) for context in contexts}, request
    )


def reply_without_state(message: Message, answer: Trained, instructions: Instructions) -> Message:
    """The reply that a client's round of training becomes, but for what the client keeps."""
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    return _reply(message, context, answer, instructions, copy=False)


def _reply(message: Message, context: Context, answer: Trained, instructions: Instructions, *, copy: bool) -> Message:
    arrays = {name: value.detach().clone() if copy else value for name, value in answer.arrays.items()}
    content = RecordDict({METRICS: MetricRecord({**answer.metrics, NUM_EXAMPLES: answer.examples})})
    if arrays:
        content[ARRAYS] = to_record(arrays)
    if answer.encoded is not None:
        attach(content, answer.encoded)
    if answer.results:
        content[EXTRAS] = to_record({name: value.detach().clone() for name, value in answer.results.items()})
    if answer.withheld:
        content[WITHHELD] = ConfigRecord({"groups": list(answer.withheld)})
    if answer.spent is not None:
        content[SPENT] = ConfigRecord({**answer.spent})
    if answer.effort is not None and not answer.effort.whole:
        content[EFFORT] = ConfigRecord(answer.effort.fields())
    _attach_timings(content, answer.timings)
    if answer.version is not None:
        holder = context.state if instructions.kept is None else content
        holder[STATE] = ConfigRecord({"version": answer.version})
    return Message(content, reply_to=message)


def _attach_timings(content: RecordDict, timings: Timings) -> None:
    if timings:
        content[TIMING] = MetricRecord({name: [seconds, float(count)] for name, (seconds, count) in timings.items()})


def _client(runtime: ClientRuntime, context: Context) -> int:
    known = runtime.setup.client
    return int(context.node_config["partition-id"]) if known is None else known


def _instructions(content: RecordDict) -> Instructions:
    return Instructions.from_json(str(required(config_record, content, INSTRUCTIONS)["instructions"]))


def _request(content: RecordDict, settings: Mapping[str, object] | None = None) -> WorkRequest:
    shared = array_record(content, EXTRAS)
    return WorkRequest(
        _instructions(content),
        to_numpy(required(array_record, content, ARRAYS)),
        to_numpy(shared) if shared is not None else {},
        settings or {},
    )


def _missing(message: Message, missing: MissingError) -> Message:
    return Message(RecordDict({MISSING: ConfigRecord({missing.what: True})}), reply_to=message)


def _version(context: Context, instructions: Instructions) -> int | None:
    """The version of its state from which a client goes on."""
    if instructions.kept is not None:
        return instructions.kept if instructions.kept >= 0 else None
    record = context.state.get(STATE)
    return int(record["version"]) if isinstance(record, ConfigRecord) else None  # type: ignore[arg-type]  # an int was stored


_deployed: dict[str, ClientRuntime] = {}
"""Runtimes of this process. The key holds all that a runtime is made of: configurations of run and node, run id."""


def _deployed_runtime(context: Context) -> ClientRuntime:
    key = repr((sorted(context.run_config.items()), sorted(context.node_config.items()), context.run_id))
    if key not in _deployed:
        setup = setup_from_context(context.run_config, context.node_config, context.run_id)
        settle_process(setup.config.engine.threads)
        device = choose_device(setup.config.engine.device)
        use_deterministic_kernels(device)
        _deployed[key] = ClientRuntime(setup, device)
    return _deployed[key]


def _with_traceback(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Reply to a message with the traceback if the client fails: a SuperNode would send the exception without it.

    What is wrong with the configuration or the data is told without one.
    """
    code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    try:
        return call_next(message, context)
    except NoClientError as error:
        code, reason = NO_CLIENT, str(error)
    except (InputError, ConfigErrors) as error:
        reason = str(error)
    except Exception:
        reason = traceback.format_exc()
    return Message(Error(code, reason), reply_to=message)


def _as_the_node_allows(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer a message without importing what the node's own configuration does not allow."""
    with only(allowed_references(context.node_config)):
        return call_next(message, context)


app = serve(ClientApp(mods=[record_sent, _with_traceback, _as_the_node_allows]), _deployed_runtime)
