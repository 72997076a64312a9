"""Reproduces an acceptance experiment: runs every arm with every seed, and judges the gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedlab.config import apply_overrides
from fedlab.errors import InputError, did_you_mean
from fedlab.experiment.result import Run
from fedlab.storage.runfolder import write_atomic
from fedlab.studies.acceptance import Acceptance
from fedlab.studies.gates import LOCAL_ONLY
from fedlab.studies.outcome import Outcome, judge
from fedlab.studies.plan import Results, RunPlan, made_before, with_own_cache
from fedlab.studies.queue import RunQueue


def reproduce(
    spec: Acceptance,
    folder: Path,
    *,
    seeds: Sequence[int] = (),
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    keep_going: bool = False,
    command: str | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Run every arm with every seed, judge the gates, and write ``acceptance.json`` and ``acceptance.md``.

    Finished runs of the same configuration in `folder` are not repeated. The outcome covers all finished runs
    of the experiment in `folder`, including those that earlier calls made for other arms and seeds.

    Args:
        spec: the experiment.
        folder: where runs, their shared cache and the outcome go.
        seeds: instead of the specified ones.
        arms: run only these arms; default: all.
        overrides: ``dotted.key=value`` strings of the sections ``engine`` and ``tracking``.
        keep_going: continue with the other runs when one fails.
        command: how to repeat it, recorded in every run.
        announce: called with a line when a run starts and when it ends.

    Raises:
        InputError, ConfigErrors: unknown arm, or a configuration that is wrong; nothing was run.
        Exception: whatever a run raises, unless `keep_going`.
    """
    shared = list(spec.arms)
    if spec.local_only:
        spec = spec.with_local_arms(_clients(spec, folder, overrides))
    alone = [arm for arm in spec.arms if arm not in shared]
    names = [*spec.arms, *([LOCAL_ONLY] if alone else [])]
    for arm in arms:
        if arm not in names:
            raise InputError("--arms", arm, "an arm of the experiment", did_you_mean(arm, names))
    seeds = tuple(dict.fromkeys(seeds)) or spec.seeds
    wanted = {*arms, *(alone if LOCAL_ONLY in arms else [])}
    chosen = [arm for arm in spec.arms if not arms or arm in wanted]
    raws = {arm: partial(_raw, spec, arm, folder, overrides) for arm in chosen}
    # seeds asked for by hand are meant for every arm
    only = spec.seeds_of if seeds == spec.seeds else {}
    batch = RunQueue(RunPlan.make(raws, seeds, folder, kind="arm", only=only))
    batch.run(keep_going=keep_going, command=command, announce=announce)
    kept = _kept(spec, folder, overrides, batch)
    every = tuple(dict.fromkeys([*spec.seeds, *seeds]))
    results: Results = {
        arm: {seed: found[seed] for seed in every if seed in found}
        for arm in spec.arms
        for found in [{**batch.results.get(arm, {}), **kept.get(arm, {})}]
    }
    shown = {seed for runs in results.values() for seed in runs} | set(seeds)
    seeds = tuple(seed for seed in every if seed in shown)
    failures = {f"{arm}, seed {seed}": reason for (arm, seed), reason in batch.failures.items()}
    verdicts = tuple(judge(gate, results) for gate in spec.gates)
    outcome = Outcome(spec, seeds, results, failures, verdicts, {arm: list(runs) for arm, runs in kept.items()})
    write_atomic(folder / "acceptance.json", json.dumps(outcome.to_json(), indent=1, ensure_ascii=False))
    write_atomic(folder / "acceptance.md", outcome.to_markdown())
    return outcome


def _clients(spec: Acceptance, folder: Path, overrides: Sequence[str]) -> list[int]:
    """The clients that train in the arm that `local_only` names."""
    arm, seed = spec.local_only, spec.seeds[0]
    plan = RunPlan.make({arm: partial(_raw, spec, arm, folder, overrides)}, [seed], folder, kind="arm")
    data = plan.data[arm, seed]
    return [client for client in range(data.clients) if client not in data.unseen]


def _raw(spec: Acceptance, arm: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    # a cache of their own: arms share what they start from, and nothing comes from an earlier version of the code
    raw = with_own_cache(spec.config(arm, spec.seeds[0]).model_dump(mode="json"), folder)
    return apply_overrides(raw, overrides)


def _kept(spec: Acceptance, folder: Path, overrides: Sequence[str], batch: RunQueue) -> Results:
    """Finished runs of the experiment that were not asked for this time."""
    kept: dict[str, Mapping[int, Run]] = {}
    for arm in spec.arms:
        specified = spec.seeds_of.get(arm, spec.seeds)
        others = [seed for seed in specified if (arm, seed) not in batch.plan.configs]
        kept |= made_before({arm: partial(_raw, spec, arm, folder, overrides)}, others, folder) if others else {}
    return {arm: runs for arm, runs in kept.items() if runs}
