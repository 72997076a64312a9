"""Flower's ServerApp for a deployment. It runs the same round loop as a simulation."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlab.assembly import Assembly
from fedlab.callbacks import check_callbacks, make_callbacks
from fedlab.config.modules import search
from fedlab.data.normalize import denormalizer
from fedlab.engine.cgroup import free_memory
from fedlab.engine.device import choose_device, use_deterministic_kernels
from fedlab.engine.machine import settle_process
from fedlab.protocol.runconfig import unpack
from fedlab.report.page import report_quietly
from fedlab.server.asynchronous import make_loop
from fedlab.server.deployed import server_data
from fedlab.server.deployed_folder import begin
from fedlab.server.ledger import payload_bytes
from fedlab.server.messaging.link import watch_link
from fedlab.server.messaging.room import check_room
from fedlab.server.participation.samplers import make_sampler
from fedlab.server.participation.selection import check_min_clients, make_rules
from fedlab.server.setup import ServerSetup
from fedlab.server.strategies import check_participants, make_strategy
from fedlab.tracking.recording import open_session
from fedlab.tracking.stream import StreamSink
from fedlab.tracking.trackers import check_trackers, make_trackers

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run on the nodes of a deployment. The run folder is written on the machine of the ServerApp."""
    submitted = unpack(context.run_config)
    config = submitted.config
    search([*config.modules, Path.cwd()])
    settle_process(config.engine.threads)
    components, strategy = Assembly(config).components(), make_strategy(config.federation.strategy)
    callbacks, trackers = make_callbacks(config), make_trackers(config.tracking)
    warnings = [*check_callbacks(config, callbacks), *check_trackers(trackers)]
    rules = make_rules(config, make_sampler(config.federation.sampler, config.seed))
    device = choose_device(config.engine.device)
    use_deterministic_kernels(device)
    held = server_data(submitted)
    begun = begin(submitted, context.run_id, components.privacy)
    begun.check_data(held.data_fingerprint)
    folder, model = begun.folder, components.method.own_model
    with folder.writing():
        told = begun.take_back()
        try:
            with open_session(
                config,
                folder,
                engine="deployment",
                workers=0,
                model=model,
                resumed=begun.resumed,
                display=StreamSink(),
                trackers=trackers,
            ) as tracker:
                for warning in (*told, *(warnings if begun.start is None else ())):
                    tracker.emit("warning", message=warning)
                setup = ServerSetup(
                    components=components,
                    strategy=strategy,
                    rules=rules,
                    device=device,
                    tracker=tracker,
                    folder=folder,
                    denormalize=denormalizer(config.data),
                    callbacks=callbacks,
                    expected_clients=submitted.expected or len(held.names),
                    client_names=held.names,
                    members={client: held.names[client] for client in begun.members},
                    **held.given(config, device),
                )
                if begun.start is None:
                    held.tell(tracker)
                watch_link(grid, config.federation.timeout, lambda told: tracker.emit("warning", message=told))
                loop = make_loop(grid, setup)
                held.write_partition(folder, loop.directory.profiles(loop.directory.clients))
                check_participants(strategy, len(loop.participants))
                check_min_clients(config.federation, len(loop.participants))
                check_room(
                    down=payload_bytes({name: loop.state.network[name] for name in loop.exchange.down}),
                    up=sum(loop.uploads[name] for name in loop.exchange.up),
                    clients=rules.sampler.size(len(loop.participants)),
                    free=free_memory(),
                )
                loop.run(start=begun.start)
        finally:
            if config.tracking.report:
                report_quietly(folder)
