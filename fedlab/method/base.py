"""The interface every method implements: one paper's ideas, no plumbing.

A method is stateless: what lasts lives in the networks, in ``ctx.state`` (a client's own tensors) and in
``ctx.tensors`` (the server's). The same object may serve many clients in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from fedlab.config import Section

if TYPE_CHECKING:
    from fedlab.method.context import EvaluationContext, FigureContext, FitContext, ServerContext
    from fedlab.method.pictures import ImageGrid, Picture

S = TypeVar("S", bound=Section, default=Any)
N = TypeVar("N", bound=nn.Module)
Batch = dict[str, Any]
Plan = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class Task:
    """What a method may know of the job before it sees a sample.

    Args:
        num_classes: number of classes, 0 where there are none.
        input_shape: shape of one sample's main column, (C, H, W) for images.
        class_names: one per class.
        vocabulary: the words a text column's numbers stand for, empty where there is none.
        num_clients: registered clients.
        model_name: the run's ``model.name``.
        columns: every column's dtype and shape per sample, ``{"image": ("float32", (3, 28, 28))}``.
        make_model: builds a model by component name with the configured (default) settings, initialised from a seed.
        mean: subtracted per channel from images in [0, 1]; averaged where the statistics differ by domain.
        std: divisor per channel after that, likewise.
    """

    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    num_clients: int
    model_name: str
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    make_model: Callable[..., nn.Module] = field(repr=False)
    vocabulary: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def model(self, name: str | None = None, *, seed: int | None = None, **settings: Any) -> nn.Module:
        """The configured model, or the one called `name`.

        Args:
            name: a model of the registry; None is the run's ``model`` section.
            seed: initialisation seed; None draws from the generator in force, which inside `Method.build` is the run's.
            settings: the named model's settings.
        """
        return self.make_model(name, seed, settings)


@dataclass(frozen=True)
class Step:
    """Where training stands when a batch is used.

    Args:
        round: federated round, from 1.
        epoch: local epoch, from 0.
        index: step within this round, from 0.
        per_round: steps of this client in one round.
        global_step: step over the whole run, ``(round - 1) * per_round + index``, so that schedules go on across
            rounds.
        total_steps: ``rounds * per_round``.
        plan: what the server asked of this round.
        shared: tensors the server holds and every client has a copy of.
        scratch: whatever `fit` left in ``ctx.scratch`` for this round: a memory bank, a teacher's last outputs.
        log: records a value, as ``ctx.log`` does.
    """

    round: int
    epoch: int
    index: int
    per_round: int
    global_step: int
    total_steps: int
    plan: Plan
    shared: Mapping[str, Tensor]
    scratch: dict[str, Any]
    log: Callable[[str, float], None]


@dataclass(frozen=True)
class Group:
    """State that is exchanged in one way.

    Args:
        name: shown in the communication table.
        members: shell patterns over state names, which are ``<role>.<name in the network's state_dict>``. The first
            group that matches a name owns it.
        mode: ``average`` is sent down and up and averaged. ``server`` is sent down every round, only the server
            changes it (in `Method.server_update`). ``once`` is sent down when a client first needs it, kept there and
            not trained: teachers, codebooks, a backbone after its stage. ``local`` stays in the client's state,
            starting from the weights `Method.build` made. ``frozen`` never travels: every participant builds it from
            the same checkpoint, which is checked by hash.
        weight: how clients count in the average.
        buffers: ``average`` treats floating-point buffers as parameters, ``local`` keeps them on the client. Integer
            buffers never travel.
    """

    name: str
    members: tuple[str, ...] = ("*",)
    mode: Literal["average", "server", "once", "local", "frozen"] = "average"
    weight: Literal["examples", "uniform"] = "examples"
    buffers: Literal["average", "local"] = "average"


@dataclass(frozen=True)
class Batches:
    """How a method wants its batches.

    Args:
        sampler: (columns, batch size, generator) → index arrays, one per batch, for one epoch; default: shuffled.
        collate: (batch, generator) → batch, e.g. several crops of each sample or hard negatives of each caption.
    """

    sampler: Callable[[Mapping[str, Tensor], int, torch.Generator], Iterable[Tensor]] | None = None
    collate: Callable[[Batch, torch.Generator], Batch] | None = None


def network(networks: nn.ModuleDict, role: str, kind: type[N]) -> N:
    """The network of a role as the class that `Method.build` made it of, for its own methods and attributes.

    Args:
        networks: by role.
        role: as `Method.build` named it.
        kind: its class.

    Raises:
        TypeError: it is of another class.
    """
    found = networks[role]
    if not isinstance(found, kind):
        raise TypeError(f"the network {role!r} is a {type(found).__name__}, not a {kind.__name__}")
    return found


class NoSettings(Section):
    """A method without settings."""


class Method(ABC, Generic[S]):
    """Base of all methods. Required: `build`, and `loss` unless `fit` is replaced.

    A method with settings names their class twice, ``class FedLGD(Method[FedLGDSettings])`` for the type checker and
    ``Settings = FedLGDSettings`` for the configuration; one that leaves out the first has settings of type ``Any``.

    Args:
        settings: an instance of the class's `Settings`; default: all defaults.
    """

    Settings: ClassVar[type[Section]] = NoSettings

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    modality: ClassVar[str] = "image"
    own_model: ClassVar[str] = ""
    """What a method builds that never asks for ``task.model()``: named in place of ``model.name``, which it ignores."""
    evaluation_unit: ClassVar[str] = "test samples"
    """What `evaluation_count` counts, in the plural."""
    per_example_loss: ClassVar[bool] = False
    """Whether `loss` is the mean over a batch of what each sample and the networks give alone, and a client's data
    reaches the outside only through one ``ctx.train`` a round. Privacy of single examples needs this promise, which a
    subclass does not inherit."""
    functional_loss: ClassVar[bool] = False
    """Whether `loss` is a pure function of the networks' state, the batch and ``step.round``, ``plan`` and ``shared``:
    no branch on a tensor's value, nothing logged or left in ``scratch``, no step counters. Clients may then be trained
    as one batch (``engine.vectorise``). A subclass does not inherit the promise."""

    def __init__(self, settings: S | None = None) -> None:
        self.settings: S = settings if settings is not None else cast(S, self.Settings())

    # networks and exchange

    @abstractmethod
    def build(self, task: Task) -> dict[str, nn.Module]:
        """Networks by role, initialised. Called under the run's initialisation seed: equal on every client."""

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """What travels in a round with this plan; default: everything, averaged by number of samples.

        State of groups that are neither averaged nor local is not trained: no gradients, evaluation mode.
        """
        return (Group("model"),)

    def check(self, config: Any) -> list[str]:
        """Warnings about a configuration this method can run but probably should not; raise ConfigError to refuse."""
        return []

    # before the first round

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        """A client's answer to the one query before round 1 (statistics, counts); {} asks nothing."""
        return {}

    def server_prepare(self, ctx: ServerContext) -> None:
        """Set up server tensors, or train a teacher on server data; ``ctx.results`` holds the `prepare` answers."""

    # on the client, every round

    def plan(self, round: int, rounds: int) -> Plan:
        """What the server asks of the clients in a round: stages, flags, numbers. Scalars only."""
        return {}

    def training(self, plan: Plan) -> Mapping[str, Any]:
        """Changes to the run's ``training`` section in a round with this plan, e.g. a stage's learning rate."""
        return {}

    def batches(self, plan: Plan) -> Batches:
        """Sampler and collate of local training."""
        return Batches()

    def examples(self, columns: Mapping[str, Tensor]) -> int:
        """A client's weight in averages by examples; default: its number of training samples."""
        return len(next(iter(columns.values()), ()))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        """Optimiser parameter groups, each with its own ``lr`` or ``weight_decay`` if need be; default: all in one."""
        return [{"params": [p for p in networks.parameters() if p.requires_grad]}]

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Optimiser values of a parameter group for the step about to be taken.

        Args:
            step: which step.
            group: what `param_groups` returned, with the run's values where it named none.

        Returns:
            ``lr``, ``weight_decay`` or ``momentum``; what is missing follows the run's ``training.schedule``.
        """
        return {}

    def set_modes(self, networks: nn.ModuleDict, plan: Plan) -> None:
        """Change training or evaluation mode before local training; roles that are not trained evaluate already."""

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Named scalar terms; their sum is minimised. {} skips the batch."""
        raise NotImplementedError(f"{type(self).__name__} defines neither loss() nor fit()")

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        """EMA, centre or queue updates after an optimiser step."""

    def fit(self, ctx: FitContext) -> None:
        """One client's work in one round."""
        ctx.train()

    def contributes(self, ctx: FitContext, group: str) -> bool:
        """Whether this client sends an averaged group after `fit`; groups nobody sends stay as they are."""
        return True

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        """Tensors sent up beside the weights, unaveraged, for `server_update`."""
        return {}

    # on the server, every round

    def server_update(self, ctx: ServerContext) -> None:
        """Server-side work after aggregation: ``ctx.before`` → ``ctx.after``; may change networks and tensors."""

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Predictions for a batch, logits (n, K) for classification; default: the only network's output."""
        (network,) = networks.values()
        output: Tensor = network(batch["image"])
        return output

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        """Sufficient statistics on a client's test samples, merged by addition; default: classification."""
        return ctx.classification(lambda batch: self.predict(ctx.networks, batch))

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        """Metric values from (merged) statistics of `evaluate`."""
        from fedlab.metrics import Classification

        metric = Classification(task.num_classes)
        metric.merge(sums)
        return {name: value for name, value in metric.compute().items() if isinstance(value, float)}

    def evaluation_count(self, sums: Mapping[str, np.ndarray], samples: int) -> int:
        """How many things a client's metric values stand on, shown beside them; default: its test samples.

        Args:
            sums: what `evaluate` returned.
            samples: the client's test samples.
        """
        return samples

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        """Metric values on data the server holds (``ctx.data``): query and gallery, held-out domains, probes."""
        return {}

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        """Named pictures for the report, drawn before round 1, after it, and at the end."""
        return {}

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Mapping[str, Tensor] | ImageGrid]:
        """What the run leaves behind besides weights, by name: tensors (safetensors) and image sheets (PNG)."""
        return {}

    def overrides(self, hook: str) -> bool:
        """Whether this method replaces the base class's `hook`."""
        return getattr(type(self), hook) is not getattr(Method, hook)
