"""MOON: a local model's features stay close to those of the global model and away from those of earlier models.

Li, He and Song, "Model-Contrastive Federated Learning", arXiv 2103.16257. Symbols: z a representation after the
projection, μ the weight of the model-contrastive loss ℓ_con.

The algorithm, in the order in which it runs, and the hook that does each line::

    every round, every client:
        z_glob ← received model on all own samples; z_prev ← own last models                     fit → _representations
        for every batch:  z ← model(x)                                                           loss
            ℓ_con = −log e^{cos(z, z_glob)/T} / (e^{cos(z, z_glob)/T} + Σ e^{cos(z, z_prev)/T})  loss
            step on CE(head(z), y) + μ ℓ_con                                                     loss
        keep the trained model as one of the last `buffer`                                       fit
    server: average by numbers of samples                                                        exchange
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.config import Section
from fedlab.distill.model_contrast import model_contrastive
from fedlab.method import Batch, FitContext, Group, Method, Plan, Step, Task, model_input, network
from fedlab.methods.moon.networks import ProjectionNetwork
from fedlab.models import headless

_PREVIOUS = "previous/"


class MoonSettings(Section):
    """Settings; defaults are the authors' CIFAR-10 example."""

    mu: float = Field(
        default=5.0,
        ge=0,
        description="weight of the contrastive loss ℓ_con, μ; the paper tunes it between 0.001 and 10",
    )
    temperature: float = Field(default=0.5, gt=0, description="temperature of ℓ_con, T")
    projection_dim: int = Field(default=256, ge=1, description="width of the projection z")
    buffer: int = Field(
        default=1,
        ge=1,
        description="number of the client's earlier models that are used as negatives; the oldest is dropped first",
    )


class Moon(Method[MoonSettings]):
    """Model-contrastive federated learning.

    A client keeps its last local models in ``ctx.state``, one tensor (M, …) per name of the network's state, oldest
    first. The features that the frozen models compute do not change during a round, so they are computed once, beside
    the samples, rather than for every batch of every epoch.
    """

    title = "MOON"
    paper = "Li, He & Song 2021, arXiv 2103.16257"
    learns_from = "their own models of earlier rounds"
    # each sample is contrasted with what frozen models make of itself, never with other samples
    per_example_loss = True

    Settings = MoonSettings

    def check(self, config: Any) -> list[str]:
        rounds, s = config.federation.rounds, self.settings
        warnings = {
            "method.mu = 0 is plain training of a network with a projection head": s.mu == 0,
            "federation.rounds = 1: ℓ_con is 0 in a client's first round, so it never acts": s.mu and rounds == 1,
            f"method.buffer = {s.buffer} is never filled in {rounds} rounds": s.mu and 1 < rounds <= s.buffer,
        }
        return [text for text, holds in warnings.items() if holds]

    def build(self, task: Task) -> dict[str, nn.Module]:
        encoder, width = headless(task.model(), task.model_name)
        return {"model": ProjectionNetwork(encoder, width, self.settings.projection_dim, task.num_classes)}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """The whole network, projection head included; previous models stay in the client's state."""
        return (Group("model", members=("model",)),)

    def fit(self, ctx: FitContext) -> None:
        if not self.settings.mu:
            ctx.train()
            return
        ctx.train({**ctx.data, **self._representations(ctx)})
        for name, value in ctx.networks["model"].state_dict().items():
            held = [ctx.state[_PREVIOUS + name]] if _PREVIOUS + name in ctx.state else []
            ctx.state[_PREVIOUS + name] = torch.cat([*held, value[None]])[-self.settings.buffer :]

    @torch.no_grad()
    def _representations(self, ctx: FitContext) -> dict[str, Tensor]:
        """z of the client's samples by the received model, (n, d), and by its own previous ones, (n, M, d)."""
        models = [network(ctx.networks, "model", ProjectionNetwork), *self._previous(ctx)]
        every = [model.eval() for model in models]

        def stacked(batch: Batch) -> Tensor:
            with ctx.autocast():
                return torch.stack([model.features(model_input(batch)).float() for model in every], dim=1)

        z = ctx.computed(ctx.data, stacked)
        return {"z_global": z[:, 0], "z_previous": z[:, 1:]}

    @staticmethod
    def _previous(ctx: FitContext) -> list[ProjectionNetwork]:
        held = {n.removeprefix(_PREVIOUS): v for n, v in ctx.state.items() if n.startswith(_PREVIOUS)}
        models = []
        for m in range(len(next(iter(held.values()), ()))):
            model = copy.deepcopy(network(ctx.networks, "model", ProjectionNetwork))
            model.load_state_dict({name: values[m] for name, values in held.items()})
            models.append(model)
        return models

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """CE + μ·ℓ_con."""
        s, model = self.settings, network(networks, "model", ProjectionNetwork)
        z = model.features(model_input(batch))
        terms = {"ce": F.cross_entropy(model.head(z), batch["label"])}
        if s.mu:
            ℓ_con = model_contrastive(z, batch["z_global"], batch["z_previous"], s.temperature)
            terms["contrastive"] = s.mu * ℓ_con
        return terms


METHOD = Moon
