"""The run configuration: typed sections, strict keys, dotted overrides.

A component (method, model, source, partition step, strategy, sampler) is a mapping with a ``name``; its other
keys are that component's own settings and are validated by its ``Settings`` class once the registry has found it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from fedlab.config.base import (
    AssetNames,
    Component,
    ComponentField,
    Fraction,
    Positive,
    ProperFraction,
    Section,
    Vectorize,
)
from fedlab.config.federation import FederationConfig, TrainingConfig
from fedlab.config.held import HeldSet, ValidationField, check_held
from fedlab.config.overrides import Overrides, changes
from fedlab.config.problems import explain
from fedlab.config.yamltree import dump_yaml, load_yaml, unshared
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.storage.paths import HubPath as HubPath
from fedlab.storage.paths import InputPath as InputPath
from fedlab.storage.paths import MadePath, OutputPath, UriOrPath, WeightsPath
from fedlab.storage.plain import read_plain_text

LARGEST = 1_000_000
"""Bytes that the file of a configuration may have: it may be a stranger's, and reading YAML takes long."""


class DataConfig(Section):
    """Where samples come from and how clients share them."""

    source: ComponentField = Field(description="where the samples come from; see `fedlab list sources`")
    partition: tuple[ComponentField, ...] = Field(
        default=(Component(name="iid", clients=5),),
        description="steps that divide the samples among the clients; each step divides every part that the step "
        "before it made, so the numbers of parts multiply; see `fedlab list partitions`",
    )
    drift: tuple[ComponentField, ...] = Field(
        default=(), description="changes of the clients' data over the rounds; see `fedlab list drifts`"
    )
    test_clients: Fraction = Field(
        default=1.0, description="share of the training clients that keep their test samples; the others have none"
    )
    unseen: ProperFraction | tuple[str, ...] = Field(
        default=(),
        description="clients that never train and are evaluated separately: a share of the clients, or patterns of "
        "their names",
    )
    mean: tuple[float, ...] | dict[str, tuple[float, ...]] = Field(
        default=(0.5,),
        description="value subtracted from each channel of images in [0, 1]: one list, or one list for each domain",
    )
    std: tuple[float, ...] | dict[str, tuple[float, ...]] = Field(
        default=(0.5,),
        description="value by which each channel is divided after `mean` is subtracted: one list, or one for each "
        "domain",
    )
    held: dict[str, HeldSet] = Field(
        default={},
        description="sets of samples that the server holds, by name, such as probe: {split: train, share: 0.1}",
    )
    validation: ValidationField | None = Field(
        default=None,
        description="share of its training samples that each client holds back as validation samples, on which it "
        "never trains; or {share, by, seed}",
    )
    augment: tuple[ComponentField, ...] = Field(
        default=(),
        description="random changes of the images in training batches, in this order, for methods that train on them, "
        "such as supervised; see `fedlab list augmentations`",
    )

    holds: dict[str, AssetNames] = Field(
        default={},
        description="which client holds which assets of the method: pattern of clients' names → names of assets. The "
        "first pattern that matches a client counts, and a client that none matches holds nothing. Default: every "
        "client holds all assets",
    )
    server_holds: AssetNames = Field(default=(), description="names of the assets that the server holds")
    assets: dict[str, HubPath] = Field(
        default={},
        description="name of an asset → the file or folder from which the method loads it; a deployed node or server "
        "takes it from a file of its own",
    )

    @field_validator("held")
    @classmethod
    def _sets_fit(cls, held: dict[str, HeldSet]) -> dict[str, HeldSet]:
        check_held(held)
        return held


class ExchangeConfig(Section):
    """Changes to what the method exchanges."""

    local: tuple[str, ...] = Field(
        default=(),
        description="parameters and buffers that stay on each client and are not averaged, as shell patterns of their "
        "names (FedPer: model.head.*); 'norm' stands for all normalization layers (FedBN)",
    )
    compression: tuple[ComponentField, ...] = Field(
        default=(),
        description="steps that make the clients' updates smaller, in this order: topk, then quantize or fp16; see "
        "`fedlab list compressions`",
    )


class EvaluationConfig(Section):
    """Federated evaluation on the clients' test samples."""

    every: Positive = Field(
        default=1, description="number of rounds from one evaluation to the next; the last round is always evaluated"
    )
    clients: Positive | Fraction | None = Field(
        default=None,
        description="number or share of the clients that are evaluated; they are drawn once, among the clients with "
        "test samples, and the same share of the unseen clients is evaluated; default: all clients",
    )
    validation: bool = Field(
        default=True,
        description="evaluate on the clients' validation samples as well, if data.validation holds any back",
    )
    batch_size: Positive = Field(default=256, description="samples in a batch of evaluation")
    personalized: bool = Field(
        default=False,
        description="evaluate each client a second time, after local training on its own samples; the weights of this "
        "training are neither kept nor sent",
    )


class EngineConfig(Section):
    """Where and how the clients run."""

    name: Literal["ray", "inline", "flower"] = Field(
        default="ray",
        description="ray: clients run in worker processes; inline: one after the other in this process; flower: in "
        "Flower's own simulation",
    )
    workers: Positive | None = Field(
        default=None, description="number of worker processes of ray and flower; default: one per core"
    )
    threads: Positive = Field(default=1, description="torch threads of each process, including the server's")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: a GPU if there is one, otherwise the CPU"
    )
    gpus_per_worker: float | None = Field(
        default=None, gt=0, description="share of a GPU that each worker may use; default: chosen by FedLab"
    )
    address: str | None = Field(
        default=None, description="address of a running Ray cluster; default: FedLab starts Ray on this machine"
    )
    chunk: Positive | None = Field(
        default=None, description="number of clients that a worker is given at once; default: chosen by FedLab"
    )
    retries: int = Field(default=1, ge=0, description="how many times a client is run again after its worker has died")
    vectorize: Vectorize = Field(
        default="off",
        description="train this many clients as one batch, if the method allows it; auto: only if this is faster on "
        "this machine. Results then agree only up to float tolerance with those of off, so this key cannot be changed "
        "when a run is resumed",
    )
    resident: int | None = Field(
        default=None,
        ge=0,
        description="MiB of client data that a worker keeps on its GPU; default: a quarter of the worker's memory",
    )


class TrackingConfig(Section):
    """What a run writes."""

    folder: OutputPath = Field(
        default="runs", description="folder in which the run folder is made; relative to the current folder"
    )
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run folder; default: method, seed and time",
    )
    console: Literal["auto", "live", "plain", "quiet"] = Field(
        default="auto",
        description="live: progress that is redrawn in place; plain: progress as lines; quiet: none; auto: live on a "
        "terminal and in a notebook, otherwise plain",
    )
    tensorboard: bool = Field(default=True, description="short for a tracker {name: tensorboard}")
    trackers: tuple[ComponentField, ...] = Field(
        default=(),
        description="where metrics and pictures are sent while the run goes on, beside the files of the run folder; "
        "see `fedlab list trackers`",
    )
    report: bool = Field(
        default=True,
        description="write the report at the end of the run, which takes seconds; `fedlab report` writes it later",
    )
    mlflow: UriOrPath | None = Field(
        default=None,
        description="short for a tracker {name: mlflow, uri: …}: the tracking URI of MLflow",
    )
    checkpoint_every: Positive = Field(
        default=10, description="number of rounds from one checkpoint to the next; the last round always has one"
    )
    figures_every: int = Field(
        default=0,
        ge=0,
        description="number of rounds from one set of pictures to the next, beside those before round 1, after it and "
        "after the last round; 0 draws no others",
    )
    cache: MadePath | None = Field(
        default=None,
        description="folder for results that later runs can use again, such as trained teachers; default: the user's "
        "cache folder",
    )


class Config(Section):
    """The complete configuration of one run. Two runs with equal configurations give equal results."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="number that all random draws of the run depend on")
    method: ComponentField = Field(description="the method that is trained; see `fedlab list methods`")
    model: ComponentField = Field(
        default=Component(name="convnet"), description="network that the method trains; see `fedlab list models`"
    )
    init: dict[str, WeightsPath] = Field(
        default={},
        description="network of the method → its initial weights: a .safetensors file or a run folder; RUN#NAME takes "
        "another network of that run",
    )
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    federation: FederationConfig = FederationConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    privacy: ComponentField | None = Field(default=None, description="differential privacy; see `fedlab list privacy`")
    evaluation: EvaluationConfig = EvaluationConfig()
    probes: tuple[ComponentField, ...] = Field(
        default=(),
        description="simple models that are fitted to the method's features before round 1 and at every evaluation, to "
        "measure what the features contain; see `fedlab list probes`",
    )
    callbacks: tuple[ComponentField, ...] = Field(
        default=(),
        description="objects that follow the run on the server and may end it early; see `fedlab list callbacks`",
    )
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()
    modules: tuple[InputPath, ...] = Field(
        default=(),
        description="folders in which FedLab looks for the module of a module:Class that is not installed. It always "
        "looks in the folder of the configuration file and in the current folder, and records here where it found one",
    )

    def to_yaml(self) -> str:
        """The configuration as YAML. `fedlab.experiment.components.complete` adds the components' own defaults."""
        return dump_yaml(self.model_dump(mode="json"))

    def with_overrides(self, overrides: Mapping[str, Any]) -> Config:
        """A copy with dotted keys replaced, e.g. ``{"method.lambda_reg": 5}``."""
        raw = self.model_dump(mode="json")
        for key, value in overrides.items():
            set_dotted(raw, key, value)
        return parse(Config, raw)


S = TypeVar("S", bound=BaseModel)


def parse(section: type[S], raw: object, prefix: str = "") -> S:
    """Validate `raw` as `section`.

    Raises:
        ConfigErrors: every wrong key and value found, with dotted names and suggestions.
    """
    if not isinstance(raw, Mapping):
        raise ConfigErrors([ConfigError(prefix or "configuration", raw, "a mapping of keys to values")])
    try:
        return section.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigErrors(explain(section, error.errors(include_url=False), prefix)) from None


def load_config(path: str | Path, overrides: Overrides = ()) -> Config:
    """The configuration in a YAML file, with overrides applied; see `fedlab.config.overrides.changes`.

    `fedlab.experiment.configuration.configure`, which users know as `fedlab.load_config`, also makes its paths absolute
    and adds the components' defaults.

    Raises:
        ConfigErrors: unreadable file, YAML error, unknown key or bad value.
    """
    return parse(Config, apply_overrides(read_yaml(path), overrides))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigErrors: unreadable file, YAML error, or something else than a mapping.
    """
    path = Path(path).absolute()
    try:
        raw = load_yaml(read_plain_text(path, LARGEST))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigErrors([ConfigError("config", str(path), "a readable YAML file", str(error))]) from error
    except ValueError as error:
        raise ConfigErrors([ConfigError("config", str(path), "a valid YAML file", str(error))]) from error
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds a {type(raw).__name__}"
        fix = f"write keys with values, such as method: fedlgd; the file {found}"
        raise ConfigErrors([ConfigError("config", str(path), "a YAML mapping at the top", fix)])
    return raw


def apply_overrides(raw: Mapping[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of `raw` with overrides applied; see `fedlab.config.overrides.changes`. Lists are addressed by index.

    Raises:
        ConfigErrors: an override without a key, or one whose key leads nowhere.
    """
    try:
        changed: dict[str, Any] = unshared(raw)
    except ValueError as error:
        raise ConfigErrors(
            [ConfigError("configuration", raw, "a configuration that is not too large or too deep", str(error))]
        ) from None
    for key, value in changes(overrides, Config):
        set_dotted(changed, key, value)
    return changed


def set_dotted(raw: dict[str, Any], key: str, value: object) -> None:
    """Set ``a.b.0.c`` inside nested mappings and lists of a configuration.

    A section on the way that is not there yet begins with its default: a component, a list, or an empty mapping.

    Raises:
        ConfigErrors: an index outside its list, or a key below something that has none.
    """
    *parents, last = key.split(".")
    here: Any = raw
    for depth, part in enumerate(parents):
        where: Any = _index(here, part, key) if isinstance(here, list) else part
        child = here[where] if isinstance(here, list) else here.get(part)
        if child is None:
            child = here[where] = _default(parents[: depth + 1])
        elif isinstance(child, str):  # a component written by its bare name
            child = here[where] = {"name": child}
        elif not isinstance(child, (dict, list)):
            inner = ".".join(parents[: depth + 1])
            expected = f"a section that has keys, which {inner} is not: it is a single value"
            raise ConfigErrors([ConfigError(inner, child, expected, f"set {inner} itself")])
        here = child
    here[_index(here, last, key) if isinstance(here, list) else last] = value


def _default(parts: Sequence[str]) -> Any:
    """The default of a key of the configuration as raw values; an empty mapping if it has none."""
    section: Any = Config
    value: Any = None
    for part in parts:
        field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, Section) else None
        if field is None:
            return {}
        value, section = None if field.is_required() else field.get_default(), field.annotation
    if isinstance(value, Component):
        return value.model_dump(mode="json")
    if isinstance(value, tuple):
        return [item.model_dump(mode="json") if isinstance(item, Component) else item for item in value]
    return {}


def _index(items: list[Any], part: str, key: str) -> int:
    # not int() on whatever looks like a number: it takes neither superscripts nor thousands of digits
    if part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(items):
        return int(part)
    if not items:
        raise ConfigErrors([ConfigError(key, part, "a list with items, but this list is empty", "set the whole list")])
    fix = "write the number of the item, counted from 0"
    raise ConfigErrors([ConfigError(key, part, f"a number below {len(items)}, because the key is a list", fix)])
