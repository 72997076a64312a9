"""Runs in a federation: submit one, follow its progress, resume and stop it, and fetch its run folder."""

from __future__ import annotations

import json
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from fedlab.config import Config, parse
from fedlab.deployment import containers
from fedlab.deployment.flower import DeploymentError, Status, Tell
from fedlab.deployment.operate import connection, is_healthy, tls_problem
from fedlab.deployment.project import CONNECTION, Federation, Folder
from fedlab.deployment.submit import submit
from fedlab.errors import ConfigError, did_you_mean
from fedlab.experiment.configuration import configure
from fedlab.storage.runfolder import RunFolder, write_atomic
from fedlab.tracking import Sink
from fedlab.tracking.stream import EventStream

_AGAIN = 2.0  # seconds before a log that has broken off is asked for again


@dataclass(frozen=True)
class Submitted:
    """A run as it was submitted.

    Args:
        run: Flower's id of it.
        name: name of its run folder.
        token: tells it from all others; a run that is resumed keeps its token.
        config: its configuration.
        simulate_partition: whether every node takes its part of one data set.
        clients: nodes that the start waits for; 0 is every client.
        resumed: whether it continues an earlier run.
    """

    run: int
    name: str
    token: str
    config: dict[str, Any]
    simulate_partition: bool = False
    clients: int = 0
    resumed: bool = False


def start(
    folder: Folder, source: str, overrides: list[str], *, clients: int = 0, simulate_partition: bool = False
) -> Submitted:
    """Submit a run to the federation.

    Args:
        folder: the federation's folder.
        source: a method's name or a configuration file.
        overrides: changes, as ``dotted.key=value``.
        clients: nodes that the start waits for; 0 is every client.
        simulate_partition: asks for what only the nodes of a demonstration can do.

    Raises:
        ConfigError, ConfigErrors: the configuration cannot be used here; nothing was sent.
        DeploymentError: the SuperLink cannot be reached.
    """
    settings = folder.federation()
    if simulate_partition and not settings.simulate_partition:
        raise ConfigError(
            "--simulate-partition",
            True,
            "a federation made with `fedlab deploy init --simulate-partition`",
            "the nodes of this one have data of their own; leave the option out",
        )
    # paths and modules mean something elsewhere only if elsewhere is this machine
    config = configure(source, overrides, here=settings.form == "processes" and settings.local)
    name = _free_name(folder, config)
    config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"name": name})})
    plan = Submitted(0, name, uuid4().hex, config.model_dump(mode="json"), settings.simulate_partition, clients)
    return _submit(folder, settings, plan)


def resume(folder: Folder, before: Submitted, rounds: int | None) -> Submitted:
    """Submit a run again, which goes on after its last complete checkpoint.

    Args:
        folder: the federation's folder.
        before: the run as it was submitted last.
        rounds: new total number of rounds; None leaves it.

    Raises:
        DeploymentError: the run is not over, or the SuperLink cannot be reached.
    """
    settings = folder.federation()
    _refuse_silence(folder, settings)
    try:
        now = connection(folder).status(before.run)
    except DeploymentError:  # a SuperLink that has lost its database does not know the run
        now = Status("finished:failed", "")
    if not now.finished:
        fix = f"end it with `fedlab deploy stop {before.name}`, or watch it with `fedlab deploy run --follow`"
        raise ConfigError("RUN", before.name, f"a run that is over; it is {now.status}", fix)
    config = before.config
    if rounds is not None:
        config = {**config, "federation": {**config["federation"], "rounds": rounds}}
    return _submit(folder, settings, replace(before, config=config, resumed=True))


def find(folder: Folder, text: str) -> Submitted:
    """The run that a user means: by Flower's id, by the name of its run folder, or by the folder's path.

    Raises:
        ConfigError: no such run was submitted from this folder.
    """
    known = _known(folder)
    by_id = {str(one.run): one for one in known}
    by_name = {one.name: one for one in known}  # the last one wins: a run that was resumed
    found = by_id.get(text) or by_name.get(Path(text).name)
    if found is None:
        hint = did_you_mean(text, by_name) if by_name else "submit one with `fedlab deploy run CONFIG`"
        raise ConfigError("RUN", text, "a run that was submitted from this folder", hint)
    return found


def follow(folder: Folder, submitted: Submitted, display: Sink | None, tell: Tell) -> tuple[Status, int]:
    """Show the progress of a run until it ends.

    Args:
        folder: the federation's folder.
        submitted: the run.
        display: receives the events of the run; None shows nothing.
        tell: is told within a minute when the SuperLink has stopped answering, and when it answers again.

    Returns:
        How the run ended, and how many of its events were lost on the way here.

    Raises:
        DeploymentError: the SuperLink has not answered for ten minutes.
    """
    link, stream = connection(folder), EventStream()
    with closing(display) if display is not None else nullcontext():
        while True:
            with link.log(submitted.run) as lines:
                for line in lines:
                    event = stream.read(line)
                    if event is not None and display is not None:
                        display.write(event)
            now = link.patient_status(submitted.run, tell)
            if now.finished:
                return now, stream.missed
            time.sleep(_AGAIN)


def fetch(folder: Folder, name: str) -> Path | None:
    """The run folder of a run, copied to this folder where it is not; None if the run never got that far."""
    settings = folder.federation()
    if settings.form == "containers":
        try:
            return containers.fetch(folder, name)
        except DeploymentError:
            return None
    path = folder.runs / name
    return path if RunFolder(path).config.is_file() else None


def not_connected(folder: Folder) -> list[str]:
    """Sites whose nodes are not connected now."""
    from fedlab.deployment.operate import status

    return [site.site for site in status(folder, folder.federation()).sites if site.state != "connected"]


def names(folder: Folder) -> dict[str, str]:
    """Names of the run folders, by Flower's ids of the runs."""
    return {str(one.run): one.name for one in _known(folder)}


def _submit(folder: Folder, settings: Federation, plan: Submitted) -> Submitted:
    _refuse_silence(folder, settings)
    run = submit(
        parse(Config, plan.config),
        CONNECTION,
        clients=plan.clients,
        simulate_partition=plan.simulate_partition,
        token=plan.token,
        resume=plan.name if plan.resumed else "",
        home=folder.flower,
    )
    done = replace(plan, run=run)
    write_atomic(folder.submitted / f"{run}.json", json.dumps({**asdict(done), "time": time.time()}, indent=1))
    return done


def _refuse_silence(folder: Folder, settings: Federation) -> None:
    if not is_healthy(folder, settings.control_port):
        if problem := tls_problem(folder, settings.control_port):
            raise DeploymentError(f"the SuperLink of {folder.path} answers, but {problem}")
        raise DeploymentError(f"the SuperLink of {folder.path} does not answer: start it with `fedlab deploy up`")


def _known(folder: Folder) -> list[Submitted]:
    """All runs that were submitted from a folder, in the order of submission."""
    found = []
    for path in folder.submitted.glob("*.json"):
        raw = json.loads(path.read_text(encoding="utf-8"))
        found.append((raw.pop("time"), Submitted(**raw)))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _free_name(folder: Folder, config: Config) -> str:
    """The name of a new run's folder, which is chosen here so that the folder is found again.

    Raises:
        ConfigError: the configuration asks for a name that is taken.
    """
    taken = {one.name for one in _known(folder)}
    if wanted := config.tracking.name:
        if wanted in taken or (folder.runs / wanted).exists():
            raise ConfigError("tracking.name", wanted, "a name that no run of this federation has", "choose another")
        return wanted
    base = f"{config.method.name.rpartition(':')[2]}-seed{config.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    numbered = (base if number == 1 else f"{base}-{number}" for number in range(1, 1000))
    return next(name for name in numbered if name not in taken and not (folder.runs / name).exists())
