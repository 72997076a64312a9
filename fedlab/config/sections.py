"""The run configuration: typed sections, strict keys, dotted overrides.

A component (method, model, source, partition step, strategy, sampler) is a mapping with a ``name``; its other
keys are that component's own settings and are validated by its ``Settings`` class once the registry has found it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedlab.config.problems import explain
from fedlab.config.yamltree import dump_yaml, load_yaml, unshared
from fedlab.errors import ConfigError, ConfigErrors
from fedlab.storage.paths import HubPath as HubPath
from fedlab.storage.paths import InputPath as InputPath
from fedlab.storage.paths import MadePath, OutputPath, UriOrPath, WeightsPath

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """Base of every configuration class: unknown keys are refused, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Component(BaseModel):
    """A named component with settings of its own, e.g. ``{name: dirichlet, alpha: 0.5}``."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    name: str = Field(min_length=1)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _switched(value: Any) -> Any:
    return "off" if value is False else value  # what YAML makes of a bare off


Vectorize = Annotated[Literal["auto", "off"] | Annotated[int, Field(ge=2)], BeforeValidator(_switched)]
ComponentField = Annotated[Component, BeforeValidator(_named)]


class DataConfig(Section):
    """Where samples come from and how clients share them."""

    source: ComponentField = Field(description="data source; see `fedlab list sources`")
    partition: tuple[ComponentField, ...] = Field(
        default=(Component(name="iid", clients=5),),
        description="partition steps, each splitting every part of the one before; client counts multiply",
    )
    drift: tuple[ComponentField, ...] = Field(
        default=(), description="how what a client sees of its samples changes over rounds; see `fedlab list drifts`"
    )
    test_clients: Fraction = Field(
        default=1.0, description="share of the training clients that keep their test samples; the others hold none"
    )
    unseen: ProperFraction | tuple[str, ...] = Field(
        default=(), description="clients that never train and are evaluated apart: a share, or patterns of their names"
    )
    mean: tuple[float, ...] | dict[str, tuple[float, ...]] = Field(
        default=(0.5,), description="subtracted per channel from images in [0, 1]; one tuple, or one per domain"
    )
    std: tuple[float, ...] | dict[str, tuple[float, ...]] = Field(
        default=(0.5,), description="divisor per channel after `mean`; one tuple, or one per domain"
    )


class TrainingConfig(Section):
    """Local training of a client between two exchanges."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    betas: tuple[ProperFraction, ProperFraction] = Field(default=(0.9, 0.999), description="of adam and adamw")
    eps: float = Field(default=1e-8, gt=0, description="of adam and adamw")
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: Positive = 32
    local_epochs: Positive = 1
    local_steps: Positive | None = Field(default=None, description="stop a client's round after so many steps")
    drop_last: bool = False
    clip_norm: float | None = Field(default=None, gt=0, description="largest L2 norm of the gradient")
    clip: Literal["global", "tensor"] = Field(
        default="global", description="clip_norm bounds the whole gradient, or each parameter tensor's by itself"
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="bfloat16 is autocast")
    channels_last: bool = Field(
        default=False, description="memory layout of convolutions' weights: faster on most GPUs"
    )
    compile: bool = Field(default=False, description="torch.compile the networks; needs a C++ compiler on the CPU")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="learning rate over the global step: constant, or falling to 0 at the run's end"
    )
    warmup_steps: int = Field(default=0, ge=0, description="linear warm-up of the schedule, in global steps")


class AvailabilityConfig(Section):
    """When clients can take part: intervals from a file, or generated days and nights."""

    csv: InputPath | None = Field(default=None, description="file with the columns client, from, to: from ≤ time < to")
    period: float | None = Field(default=None, gt=0, description="length of a generated day; each client its own phase")
    share: ProperFraction = Field(default=0.5, description="part of a generated day in which a client is available")
    unit: Literal["rounds", "seconds"] = Field(
        default="rounds", description="what time is counted in; seconds are those of the virtual clock"
    )


class DevicesConfig(Section):
    """Speed and links of the clients' devices, from a file or log-normal across clients: the virtual clock."""

    csv: InputPath | None = Field(default=None, description="file with the columns client, speed, down, up")
    speed: float = Field(default=100.0, gt=0, description="median training speed, samples a second")
    speed_spread: float = Field(default=1.0, ge=0, description="standard deviation of the speed's logarithm")
    down: float = Field(default=1e6, gt=0, description="median bandwidth to the client, bytes a second")
    up: float = Field(default=2.5e5, gt=0, description="median bandwidth from the client, bytes a second")
    link_spread: float = Field(default=1.0, ge=0, description="standard deviation of the bandwidths' logarithm")


class AsynchronousConfig(Section):
    """Buffered asynchronous training (FedBuff, Nguyen et al. 2022); a round is one update of the server."""

    concurrency: Positive = Field(default=4, description="clients at work at any time")
    buffer: Positive = Field(default=2, description="K, client updates that make one server update")
    server_lr: float = Field(default=1.0, gt=0, description="η_g")


class FederationConfig(Section):
    """Rounds, participation and aggregation."""

    rounds: Positive = 10
    strategy: ComponentField = Component(name="fedavg")
    sampler: ComponentField = Component(name="uniform")
    mode: Literal["synchronous", "asynchronous"] = Field(
        default="synchronous", description="asynchronous is FedBuff on the virtual clock; needs `devices`"
    )
    asynchronous: AsynchronousConfig = AsynchronousConfig()
    availability: AvailabilityConfig | None = Field(
        default=None, description="which clients the sampler may choose from; default: all, always"
    )
    devices: DevicesConfig | None = Field(
        default=None, description="devices of a virtual clock; default: no such clock"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="probability that a chosen client does not answer")
    over_selection: float = Field(
        default=1.0, ge=1, description="choose so many times the clients wanted; the first on the virtual clock count"
    )
    deadline: float | None = Field(default=None, gt=0, description="length of a round at most, in virtual seconds")
    late: Literal["partial", "drop"] = Field(
        default="partial", description="a client too slow for the deadline does the steps that fit, or does not count"
    )
    on_client_error: Literal["stop", "skip"] = Field(
        default="stop", description="stop: end the run with the client's traceback; skip: average who remains"
    )
    timeout: float = Field(default=3600.0, gt=0, description="seconds the server waits for a phase's replies")


class ExchangeConfig(Section):
    """Changes to what the method exchanges."""

    local: tuple[str, ...] = Field(
        default=(),
        description="shell patterns of state names that stay on the client (FedPer: model.head.*); "
        "'norm' stands for every normalization layer (FedBN)",
    )
    compression: tuple[ComponentField, ...] = Field(
        default=(),
        description="stages that make the clients' updates smaller, in order: topk, then quantize or fp16",
    )


class EvaluationConfig(Section):
    """Federated evaluation on the clients' test samples."""

    every: Positive = Field(default=1, description="rounds between evaluations; the last round always counts")
    clients: Positive | Fraction | None = Field(
        default=None,
        description="clients evaluated, a number or a share: the same in every round, drawn among those with test "
        "samples, of unseen clients as large a share; default: all",
    )
    batch_size: Positive = 256


class EngineConfig(Section):
    """Where client work runs."""

    name: Literal["ray", "inline", "flower"] = "ray"
    workers: Positive | None = Field(default=None, description="ray and flower: client processes; default: one a core")
    threads: Positive = Field(default=1, description="torch threads of each process, the server's too")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gpus_per_worker: float | None = Field(default=None, gt=0, description="fraction of a GPU each worker may use")
    address: str | None = Field(default=None, description="address of a running Ray cluster")
    chunk: Positive | None = Field(default=None, description="clients per dispatch; default: adapts to the cohort")
    retries: int = Field(default=1, ge=0, description="how often a client whose worker died is repeated")
    vectorize: Vectorize = Field(
        default="off",
        description="train so many clients as one batch, where the method allows it; auto: if that is faster here. "
        "Results then equal those without it to float tolerance only, so a run cannot change it when it is resumed",
    )
    resident: int | None = Field(
        default=None,
        ge=0,
        description="MiB of clients' data a worker keeps on its GPU; default: a quarter of its memory",
    )


class TrackingConfig(Section):
    """What a run writes."""

    folder: OutputPath = Field(
        default="runs", description="parent of the run folder; relative to the folder the command is given in"
    )
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    console: Literal["auto", "live", "plain", "quiet"] = "auto"
    tensorboard: bool = True
    mlflow: UriOrPath | None = Field(
        default=None, description="MLflow tracking URI; needs the extra fedlab-sim[mlflow]"
    )
    checkpoint_every: Positive = Field(default=10, description="rounds between checkpoints; the last is always kept")
    cache: MadePath | None = Field(
        default=None, description="folder for reusable results; default: the user's cache folder"
    )


class Config(Section):
    """One run, completely. Two runs with equal configurations give equal results."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    method: ComponentField
    model: ComponentField = Component(name="convnet")
    init: dict[str, WeightsPath] = Field(
        default={},
        description="role → where its weights start from: a .safetensors file, or a run folder, with #ROLE for another",
    )
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    federation: FederationConfig = FederationConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    privacy: ComponentField | None = Field(default=None, description="differential privacy; see `fedlab list privacy`")
    evaluation: EvaluationConfig = EvaluationConfig()
    engine: EngineConfig = EngineConfig()
    tracking: TrackingConfig = TrackingConfig()
    modules: tuple[InputPath, ...] = Field(
        default=(),
        description="folders in which the module of a module:Class is looked for, after the installed ones; the folder "
        "of the configuration file and the current one always are, and what was found there is recorded here",
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


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A YAML file as it is written, with ``dotted.key=value`` overrides.

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
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigErrors([ConfigError("config", str(path), "a readable YAML file", str(error))]) from error
    except ValueError as error:
        raise ConfigErrors([ConfigError("config", str(path), "a valid YAML file", str(error))]) from error
    if not isinstance(raw, dict):
        raise ConfigErrors(
            [ConfigError("config", str(path), "a YAML mapping at the top", f"found {type(raw).__name__}")]
        )
    return raw


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with ``dotted.key=value`` strings applied; values are read as YAML, lists addressed by index.

    Raises:
        ConfigErrors: an override without a key, or one whose key leads nowhere.
    """
    try:
        changed: dict[str, Any] = unshared(raw)
    except ValueError as error:
        raise ConfigErrors(
            [ConfigError("configuration", raw, "a configuration of sensible size", str(error))]
        ) from None
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigErrors([ConfigError("--set", override, "dotted.key=value", "e.g. --set training.lr=0.1")])
        try:
            value = load_yaml(text)
        except ValueError:  # Windows paths, patterns: text that only looks like YAML
            value = text
        set_dotted(changed, key.strip(), value)
    return changed


def set_dotted(raw: dict[str, Any], key: str, value: object) -> None:
    """Set ``a.b.0.c`` inside nested mappings and lists of a configuration.

    What is not there on the way is what it stands for by default: a component, a list, or else an empty mapping.

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
            raise ConfigErrors([ConfigError(inner, child, "a section with keys below it", f"set {inner} itself")])
        here = child
    here[_index(here, last, key) if isinstance(here, list) else last] = value


def _default(parts: Sequence[str]) -> Any:
    """What a key of a configuration stands for where nothing is set, as raw values; nothing is an empty mapping."""
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
        raise ConfigErrors([ConfigError(key, part, "a list that has items: this one is empty", "set the whole list")])
    raise ConfigErrors([ConfigError(key, part, f"an index below {len(items)}", "lists are addressed by number")])
