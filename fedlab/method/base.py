"""The interface that every method implements. A method holds the ideas of one paper; FedLab does the rest.

A method object must not keep anything from one call to the next, because one object serves many clients, in any order.
What lasts from round to round is in the networks, in ``ctx.state`` (a client's own tensors), in ``ctx.shared`` (tensors
that the server writes and of which every client gets a copy) and in ``ctx.private`` (tensors that never leave the
server).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, cast

import numpy as np
from torch import Tensor, nn
from typing_extensions import TypeVar

from fedlab.config import Section
from fedlab.errors import ConfigError
from fedlab.method.assets import Asset
from fedlab.method.columns import model_input
from fedlab.method.features import Features
from fedlab.method.types import Batch, BatchSpec, Group, Plan, Step, Task

if TYPE_CHECKING:
    from fedlab.method.context import FitContext, ServerContext
    from fedlab.method.evaluation import EvaluationContext
    from fedlab.method.figures import FigureContext
    from fedlab.method.pictures import ImageGrid, Picture

S = TypeVar("S", bound=Section, default=Any)
N = TypeVar("N", bound=nn.Module)


def network(networks: nn.ModuleDict, role: str, kind: type[N]) -> N:
    """Return the network of a role, typed as its own class, so that its methods and attributes can be used.

    Args:
        networks: the networks by role.
        role: a name that `Method.build` returned.
        kind: the class that the network is expected to be an instance of.

    Raises:
        KeyError: there is no such role.
        TypeError: the network is an instance of another class.
    """
    found = networks[role]
    if not isinstance(found, kind):
        raise TypeError(f"the network {role!r} is a {type(found).__name__}, not a {kind.__name__}")
    return found


Promise = Literal["per_example_loss", "functional_loss"]
"""The promises that a method's class can make about its `Method.loss`: it sets the attribute of that name to True."""


class NoSettings(Section):
    """Settings of a method that has none."""


class Method(ABC, Generic[S]):
    """Base class of all methods. A subclass must define `build`, and `loss` unless it replaces `fit`.

    A method with settings names their class twice: as ``class FedLGD(Method[FedLGDSettings])`` for the type checker and
    as ``Settings = FedLGDSettings`` for the configuration. Without the first, its settings have the type ``Any``.

    Args:
        settings: an instance of the class's `Settings`; default: one in which every setting has its default.
    """

    Settings: ClassVar[type[Section]] = NoSettings

    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    modality: ClassVar[str] = "images"
    """The kind of data, as a noun."""
    learns_from: ClassVar[str] = ""
    """What the clients learn from, as a phrase for the table of methods."""
    own_model: ClassVar[str] = ""
    """Name of the network of a method that never calls ``task.model()``, because it builds a network of its own. It is
    shown in place of ``model.name``, which such a method ignores. Empty for all other methods."""
    headline: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Metrics that the paper's claim is about, the most important first, each with the part of an evaluation that holds
    it: ``server`` for the server's own data, or ``mean`` for the mean over the clients. Reports, comparisons and sweeps
    show them first, where a run has them. Without any, they show the clients' accuracy or the metric that takes its
    place."""
    evaluation_unit: ClassVar[str] = "test samples"
    """The things that `evaluation_count` counts, as a plural noun."""
    feature_parts: ClassVar[tuple[str, ...]] = ("model",)
    """The networks, or parts of networks, whose features `features` can return. The first is the default of probes."""
    per_example_loss: ClassVar[bool] = False
    """Whether `loss` is the mean, over the samples of a batch, of terms that each depend on one sample and the networks
    only, and whether nothing derived from a client's data leaves it except through one call of ``ctx.train`` in each
    round. Example-level differential privacy (DP-SGD) needs this promise. A subclass does not inherit it."""
    functional_loss: ClassVar[bool] = False
    """Whether `loss` is a pure function of the networks' state, the batch, ``step.round``, ``step.plan`` and
    ``step.shared``. Such a loss does not branch on the value of a tensor, logs nothing, leaves nothing in
    ``step.scratch`` and uses neither the step counters nor assets. Clients can then be trained as one batch
    (``engine.vectorize``). A subclass does not inherit the promise."""
    augments: ClassVar[bool] = False
    """Whether the images of training batches are changed as ``data.augment`` says. A method that makes views of its own
    leaves it at False, and a configuration with ``data.augment`` is then refused."""

    def __init__(self, settings: S | None = None) -> None:
        self.settings: S = settings if settings is not None else cast(S, self.Settings())

    # networks and exchange

    @abstractmethod
    def build(self, task: Task) -> dict[str, nn.Module]:
        """Build the method's networks and return them by role, initialized.

        Before each call, torch's global CPU generator is seeded from the run's seed, so that the server and all clients
        start from equal weights.
        """

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """Return the exchange groups of a round with this plan.

        By default all state is in one group, which is averaged with the weights of `examples`. State in a group with a
        mode other than ``average`` and ``local`` is not trained: its parameters require no gradients, and a network
        that has no other state is in evaluation mode.
        """
        return (Group("model"),)

    def assets(self, task: Task) -> Mapping[str, Asset]:
        """Return what only some participants hold, by name, such as a licensed expert network.

        Each is a function that builds a network, or None for something else that a participant has or lacks, such as
        the memory for a larger network. ``data.holds`` says which client holds what; ``ctx.holds`` and ``ctx.asset``
        give a client what it holds. Networks are built when they are first asked for, once in a process, with the
        global generators seeded from the run's seed and the name. They are in evaluation mode, without gradients, and
        are neither sent nor written to checkpoints. Equal names must stand for equal weights on all participants.

        Args:
            task: the task; ``task.asset_paths`` says where files of assets are on this machine.
        """
        return {}

    def lacks(self, holds: Sequence[str]) -> str:
        """Return which assets a training client needs and does not hold, as in ``a teacher (clip or mae)``.

        Args:
            holds: names of the assets that the client holds.

        Returns:
            The empty string if the client holds enough. By default no asset is needed.
        """
        return ""

    def check(self, config: Any) -> list[str]:
        """Return warnings about a configuration that works but is probably not intended.

        Raises:
            ConfigError: the method cannot run with this configuration.
        """
        return []

    # before the first round

    def prepare(self, ctx: FitContext) -> dict[str, Tensor]:
        """Return a client's answer to the query before round 1, such as statistics of its data.

        The server sends the query only if the method replaces this hook.
        """
        return {}

    def server_prepare(self, ctx: ServerContext) -> None:
        """Do the server's work before round 1, such as making shared tensors or training a teacher on server data.

        ``ctx.results`` holds what each client returned from `prepare`; ``ctx.before`` is empty.
        """

    # on the client, every round

    def plan(self, round: int, rounds: int) -> Plan:
        """Return what the server asks of the clients in a round, such as the stage, as names with scalar values.

        Args:
            round: the round, from 1.
            rounds: number of rounds of the run.
        """
        return {}

    def training(self, plan: Plan) -> Mapping[str, Any]:
        """Return the keys of the section ``training`` that have other values in a round with this plan.

        An example is the learning rate of a stage.
        """
        return {}

    def batch_spec(self, plan: Plan) -> BatchSpec:
        """Return the sampler and the collate function of local training in a round with this plan."""
        return BatchSpec()

    def examples(self, columns: Mapping[str, Tensor]) -> int:
        """Return a client's weight in averages by examples; default: its number of training samples.

        Args:
            columns: the client's training columns.
        """
        return len(next(iter(columns.values()), ()))

    def param_groups(self, networks: nn.ModuleDict, plan: Plan) -> list[dict[str, Any]]:
        """Return the parameter groups of the optimizer. By default one holds all parameters that require gradients.

        A group may set its own ``lr``, or an ``lr_factor`` by which the run's is multiplied, its own ``weight_decay``,
        and a ``clip_norm`` to which its gradient is clipped apart from that of all others. Groups with the same name
        as ``clip_with`` are clipped together.
        """
        return [{"params": [p for p in networks.parameters() if p.requires_grad]}]

    def schedule(self, step: Step, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Return the optimizer's values for a parameter group in the step that is about to be taken.

        Args:
            step: the step.
            group: the settings of the group at the start of local training, without its parameters: those that
                `param_groups` returned, and the run's values for all others.

        Returns:
            New values of ``lr``, ``weight_decay`` or ``momentum``. If ``lr`` is missing, it follows the run's
            ``training.schedule``. Any other value that is missing stays as it is.
        """
        return {}

    def set_modes(self, networks: nn.ModuleDict, plan: Plan) -> None:
        """Change which modules are in training or evaluation mode, before local training.

        When this is called, networks that are not trained are in evaluation mode already, and all others in training
        mode.
        """

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Return the terms of the loss by name, as tensors with one element. Their sum is minimized.

        An empty mapping skips the batch.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither loss() nor fit()")

    def after_step(self, networks: nn.ModuleDict, step: Step) -> None:
        """Update what follows the trained weights, such as an EMA teacher, a center or a queue.

        This is called after each optimizer step, and not for a batch that `loss` skipped.
        """

    def fit(self, ctx: FitContext) -> None:
        """Do one client's work in one round; default: the training loop `FitContext.train`."""
        ctx.train()

    def contributes(self, ctx: FitContext, group: str) -> bool:
        """Return whether this client sends an averaged group after `fit`. A group that no client sends does not change.

        This is not asked for the groups of assets that the client does not hold; see `Group`.

        Args:
            ctx: the client's round.
            group: name of the group.
        """
        return True

    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        """Return tensors that the client sends beside the weights.

        They are not averaged: `server_update` finds them in ``ctx.results``, by client id.
        """
        return {}

    # on the server, every round

    def server_update(self, ctx: ServerContext) -> None:
        """Do the server's work after aggregation.

        ``ctx.before`` is the state that was sent to the clients, and ``ctx.after`` the aggregated one. This hook may
        change the networks, in place, and the shared and private tensors.
        """

    # evaluation and pictures

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Return predictions for a batch, which are logits of shape (n, K) in classification.

        By default they are the output of the method's only network for the samples' main column; see
        `fedlab.method.columns.main_column`.
        """
        (network,) = networks.values()
        output: Tensor = network(model_input(batch))
        return output

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """Return the features of a batch, which probes look at; the networks are in evaluation mode.

        By default they are what the classification head of the method's network receives for the samples' main column.

        Args:
            networks: the networks by role.
            batch: columns as tensors.
            part: one of `feature_parts`; by default the role of a network.

        Raises:
            ConfigError: there is no such network, or it has no features.
        """
        model = networks[part] if part in networks else next(iter(networks.values()))
        compute = getattr(model, "features", None)
        if (part not in networks and len(networks) > 1) or compute is None:
            raise ConfigError(
                "probes",
                f"features of {part!r}",
                f"a method that defines features(), or a network {part!r} with features(x); this one has "
                + ", ".join(f"{role} ({type(network).__name__})" for role, network in networks.items()),
                "choose another model, define Method.features, or remove the probes",
            )
        return Features(compute(model_input(batch)))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        """Return sufficient statistics of a client's test samples, which the server adds up over the clients.

        Names and shapes must be the same on every client that has test samples. A client that differs from most
        others counts as one that has failed. By default they are those of classification, with the logits that
        `predict` returns.
        """
        return ctx.classification(lambda batch: self.predict(ctx.networks, batch))

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        """Compute metric values from statistics of `evaluate`, either those of one client or the sum over several."""
        from fedlab.metrics import Classification

        metric = Classification(task.num_classes)
        metric.merge(sums)
        return {name: value for name, value in metric.compute().items() if isinstance(value, float)}

    def evaluation_count(self, sums: Mapping[str, np.ndarray], samples: int) -> int:
        """Return how many things a client's metric values are computed from; the number is shown beside the values.

        By default these are its test samples. `evaluation_unit` names what is counted.

        Args:
            sums: the statistics that `evaluate` returned.
            samples: the client's number of test samples.
        """
        return samples

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        """Return metric values on samples that the server holds (``ctx.data``), such as those of a held-out domain."""
        return {}

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        """Return pictures for the report, by name.

        It is called before round 1, after it and after the last round, and as often as ``tracking.figures_every`` says.
        """
        return {}

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Mapping[str, Tensor] | ImageGrid | nn.Module]:
        """Return what the run folder keeps beside the weights, by name, after the last round.

        Mappings of tensors are written as safetensors, image grids as PNG, and models of transformers as folders for
        their ``from_pretrained``.
        """
        return {}

    @classmethod
    def promises(cls, promise: Promise) -> bool:
        """Whether this class itself makes a promise about its `loss`. A promise of a base class does not count."""
        return bool(vars(cls).get(promise, False))

    @classmethod
    def about(cls) -> dict[str, Any]:
        """Return what the record of a run says of the method: its title, its paper, and the metrics of its claim."""
        return {"title": cls.title, "paper": cls.paper, "headline": cls.headline}

    def overrides(self, hook: str) -> bool:
        """Whether this method's class replaces a hook of `Method`, given by name."""
        return getattr(type(self), hook) is not getattr(Method, hook)
