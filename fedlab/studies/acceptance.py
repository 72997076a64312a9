"""Acceptance experiments: what a method's ``acceptance.yaml`` says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, model_validator

from fedlab.config import Config, Section, UnfitValue, parse, read_yaml
from fedlab.errors import InputError, did_you_mean
from fedlab.experiment.configuration import look_for_modules, placed
from fedlab.experiment.start import method_folder
from fedlab.studies.gates import LOCAL_ONLY, AnyGate, Scope
from fedlab.studies.plan import with_dotted


class Shown(Section):
    """A column of values in the table of arms."""

    metric: str
    scope: Scope = "mean"
    percent: bool = True

    @property
    def label(self) -> str:
        """The metric, with its scope unless it is the mean over the clients."""
        return self.metric if self.scope == "mean" else f"{self.metric} ({self.scope})"


class Acceptance(Section):
    """An acceptance experiment, as described in ``methods/<method>/acceptance.yaml``."""

    source: str = Field(description="what is run and where the gates come from, in one sentence")
    base: dict[str, Any] = Field(description="configuration that all arms share")
    seeds: tuple[int, ...] = Field(min_length=1)
    arms: dict[str, dict[str, Any]] = Field(
        min_length=1, description="name of the arm → dotted keys of `base` that it changes"
    )
    gates: tuple[AnyGate, ...] = Field(min_length=1)
    show: tuple[Shown, ...] = Field(
        default=(), description="further metrics that the table shows besides those of the gates"
    )
    seeds_of: dict[str, tuple[int, ...]] = Field(
        default={}, description="name of the arm → its seeds, if it does not run with all seeds"
    )
    local_only: str = Field(
        default="",
        description="an arm, each client of which also trains alone, in arms local_0, local_1, …; seeds_of and gates "
        "can mean all of them by the name local_only",
    )

    @model_validator(mode="after")
    def _arms_exist(self) -> Acceptance:
        known = [*self.arms, *([LOCAL_ONLY] if self.local_only else [])]
        named = [("seeds_of", arm) for arm in self.seeds_of]
        named += [("local_only", self.local_only)] if self.local_only else []
        named += [(f"gates.{number}", arm) for number, gate in enumerate(self.gates) for arm in gate.arms]
        for key, arm in named:
            if arm not in known:
                raise UnfitValue(key, arm, "the name of an arm", did_you_mean(arm, known))
        for number, gate in enumerate(self.gates):
            if getattr(gate, "arm", None) == LOCAL_ONLY:
                raise UnfitValue(f"gates.{number}.arm", LOCAL_ONLY, "a single arm; this name stands for several")
        return self

    _folder: Path = PrivateAttr(default_factory=Path.cwd)

    def of(self, folder: Path) -> Acceptance:
        """The same, with relative paths that start from a folder."""
        self._folder = folder
        return self

    def config(self, arm: str, seed: int) -> Config:
        """The configuration of one run.

        Raises:
            ConfigErrors: base and arm do not make a valid configuration.
        """
        raw = with_dotted(self.base, {**self.arms[arm], "seed": seed})
        look_for_modules(raw, self._folder)
        return parse(Config, placed(raw, lambda key: self._folder))

    def with_local_arms(self, clients: Sequence[int]) -> Acceptance:
        """The same experiment with an arm for each client that trains alone, in place of the name ``local_only``.

        Args:
            clients: the clients of the arm that `local_only` names.

        Raises:
            InputError: an arm has the name of one of the new ones.
        """
        alone = {
            f"local_{client}": {
                **self.arms[self.local_only],
                "federation.sampler": {"name": "fixed", "clients": [client]},
            }
            for client in clients
        }
        if taken := sorted(alone.keys() & self.arms.keys()):
            raise InputError("arms", taken[0], "a name that is not one of those that local_only makes", "rename it")
        seeds_of = {name: seeds for name, seeds in self.seeds_of.items() if name != LOCAL_ONLY}
        if LOCAL_ONLY in self.seeds_of:
            seeds_of |= dict.fromkeys(alone, self.seeds_of[LOCAL_ONLY])
        gates = tuple(gate.with_arms(LOCAL_ONLY, tuple(alone)) for gate in self.gates)
        return self.model_copy(
            update={"arms": {**self.arms, **alone}, "seeds_of": seeds_of, "gates": gates, "local_only": ""}
        )

    @property
    def fingerprint(self) -> str:
        """Hash of all that the experiment says."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load_acceptance(source: str) -> Acceptance:
    """The acceptance experiment of a method, or of a YAML file.

    Raises:
        InputError, ConfigErrors: there is no such method or file, it has no experiment, or the experiment is invalid.
    """
    if source.endswith((".yaml", ".yml")):
        return parse(Acceptance, _read(Path(source))).of(Path(source).absolute().parent)
    packaged = method_folder(source, "METHOD") / "acceptance.yaml"
    if not packaged.is_file():
        raise InputError("METHOD", source, "a method with an acceptance.yaml", "give the path of one of your own")
    return parse(Acceptance, _read(packaged))


def _read(path: Path) -> Mapping[str, Any]:
    """The file's contents; a `base` that is the name of another file is replaced by its contents with `changes`."""
    raw = dict(read_yaml(path))
    if isinstance(raw.get("base"), str):
        base = read_yaml(path.parent / raw["base"])
        changes = raw.pop("changes", None) or {}
        if not isinstance(changes, Mapping):
            raise InputError("changes", changes, "a mapping of dotted keys of `base` to their new values")
        raw["base"] = with_dotted(base, changes)
    return raw
