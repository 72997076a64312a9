"""The interface every method implements: one paper's ideas, no plumbing.

A method object keeps nothing. What lasts from round to round lives in the networks, in ``ctx.state`` (a client's own
tensors), in ``ctx.shared`` (tensors that the server writes and every client has a copy of) and in ``ctx.private``
(tensors that never leave the server). The same object may serve many clients in any order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, cast

import numpy as np
from torch import Tensor, nn
from typing_extensions import TypeVar

from fedlab.config import Section
from fedlab.method.types import Batch, BatchSpec, Group, Plan, Step, Task

if TYPE_CHECKING:
    from fedlab.method.context import EvaluationContext, FigureContext, FitContext, ServerContext
    from fedlab.method.pictures import ImageGrid, Picture

S = TypeVar("S", bound=Section, default=Any)
N = TypeVar("N", bound=nn.Module)


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


Promise = Literal["per_example_loss", "functional_loss"]
"""What a method's class may promise about its `Method.loss`, as an attribute that is true."""


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
    as one batch (``engine.vectorize``). A subclass does not inherit the promise."""

    def __init__(self, settings: S | None = None) -> None:
        self.settings: S = settings if settings is not None else cast(S, self.Settings())

    # networks and exchange

    @abstractmethod
    def build(self, task: Task) -> dict[str, nn.Module]:
        """Networks by role, initialized. Called under the run's initialization seed: equal on every client."""

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

    def batch_spec(self, plan: Plan) -> BatchSpec:
        """Sampler and collate of local training."""
        return BatchSpec()

    def examples(self, columns: Mapping[str, Tensor]) -> int:
        """A client's weight in averages by examples; default: its number of training samples."""
        return len(next(iter(columns.values()), ()))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        """Optimizer parameter groups, each with its own ``lr`` or ``weight_decay`` if need be; default: all in one."""
        return [{"params": [p for p in networks.parameters() if p.requires_grad]}]

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Optimizer values of a parameter group for the step about to be taken.

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
        """Named scalar terms; their sum is minimized. {} skips the batch."""
        raise NotImplementedError(f"{type(self).__name__} defines neither loss() nor fit()")

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        """EMA, center or queue updates after an optimizer step."""

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

    @classmethod
    def promises(cls, promise: Promise) -> bool:
        """Whether this very class makes a promise about its `loss`; that of a base class says nothing about it."""
        return bool(vars(cls).get(promise, False))

    def overrides(self, hook: str) -> bool:
        """Whether this method replaces the base class's `hook`."""
        return getattr(type(self), hook) is not getattr(Method, hook)
