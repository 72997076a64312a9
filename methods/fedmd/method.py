"""FedMD: clients with models of their own agree on the scores of public samples, and exchange nothing else.

Li and Wang, "FedMD: Heterogenous Federated Learning via Model Distillation", 2019, arXiv 1910.03581. Symbols: f_k the
class scores (logits) of client k, D_0 the public samples, D_k the client's own, D ⊂ D_0 the public samples of a round.

The algorithm (the paper's algorithm 1), in the order in which it runs, and the hook that does each line::

    before round 1, the server:  D_0 to every client, once; draw D                  server_prepare
    a client's first round:  train on D_0, then on D_k (transfer learning)          fit
    its later rounds:        train f_k towards the consensus on D (digest)          fit → loss (digest)
                             train on D_k (revisit)                                 fit → loss (ce)
    every round, last:       send f_k(x) for every x of the next D (communicate)    client_result
    server: consensus ← mean of the clients' f_k(x); draw the next D (aggregate)    server_update
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.client_models import build_models, role_of
from fedlab.config import ComponentField, Positive, Section
from fedlab.errors import ConfigError
from fedlab.method import Batch, EvaluationContext, FitContext, Group, Method, Plan, ServerContext, Step, Task

PUBLIC, LABELS = "public", "public_labels"
ASKED, DIGESTED, CONSENSUS = "asked", "digested", "consensus"
SCORES = "scores"
_ROLE, _STARTED = "role", "started"


class FedMDSettings(Section):
    """Settings. A pass has ``training.local_epochs`` epochs, or ``training.local_steps`` steps."""

    public: str = Field(
        default="public", description="name of the sample set of the server that all clients may see; see data.held"
    )
    models: tuple[ComponentField, ...] = Field(
        default=(),
        description="models of the clients, in turn: client i has number i modulo their count; default: every client "
        "has the run's model",
    )
    public_passes: int = Field(
        default=1, ge=0, description="passes over the public samples and their labels in a client's first round"
    )
    private_passes: Positive = Field(
        default=5, description="passes over the client's own samples in its first round, after those over public ones"
    )
    digest_passes: Positive = Field(
        default=1, description="passes over the public samples of a round, towards the consensus on their scores"
    )
    subset: Positive | None = Field(
        default=None, description="public samples that are scored in a round, drawn anew in each; default: all"
    )


class FedMD(Method[FedMDSettings]):
    """Federated learning by distillation on public samples. All weights stay on the clients."""

    title = "FedMD"
    paper = "Li & Wang 2019, arXiv 1910.03581"
    learns_from = "labels, and the mean scores of all clients on public samples"

    Settings = FedMDSettings

    def check(self, config: Any) -> list[str]:
        few = "federation.rounds = 1: the clients learn nothing of each other before the second round"
        return [few] if config.federation.rounds == 1 else []

    def build(self, task: Task) -> dict[str, nn.Module]:
        return build_models(task, self.settings.models)

    def plan(self, round: int, rounds: int) -> Plan:
        """Rounds before and after there is a consensus, so that both kinds are tried before a run."""
        return {"consensus": round > 1}

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """All weights stay; scores are results of the clients, and the consensus a shared tensor of the server."""
        return (Group("models", mode="local"),)

    def server_prepare(self, ctx: ServerContext) -> None:
        s, public = self.settings, ctx.data.get(self.settings.public, {})
        needed = ("image", "label") if s.public_passes else ("image",)
        if any(name not in public for name in needed):
            raise ConfigError(
                "method.public",
                s.public,
                f"a sample set of the server with the columns {' and '.join(needed)}; the server holds "
                + (", ".join(ctx.data) or "none"),
                f"add data.held: {{{s.public}: {{share: 0.1}}}}, or name another set",
            )
        ctx.shared[PUBLIC] = public["image"]
        if s.public_passes:
            ctx.shared[LABELS] = public["label"]
        self._ask(ctx)

    def _ask(self, ctx: ServerContext) -> None:
        """Draw the public samples that clients are to score next, or take all of them."""
        count, subset = len(ctx.shared[PUBLIC]), self.settings.subset
        if subset is not None and subset < count:
            drawn = torch.randperm(count, generator=ctx.generator("public samples"))[:subset]
            ctx.shared[ASKED] = ctx.place(drawn.sort().values)
        elif ASKED not in ctx.shared:
            ctx.shared[ASKED] = ctx.place(torch.arange(count))

    def fit(self, ctx: FitContext) -> None:
        s, shared, public = self.settings, ctx.shared, ctx.shared[PUBLIC]
        ctx.scratch[_ROLE] = role_of(ctx.client, s.models)
        first = _STARTED not in ctx.state
        if first:
            for _ in ctx.steps(s.public_passes):
                ctx.train({"image": public, "label": shared[LABELS]})
            for _ in ctx.steps(s.private_passes):
                ctx.train()
            ctx.state[_STARTED] = torch.ones(())
        if CONSENSUS in shared:
            for _ in ctx.steps(s.digest_passes):
                ctx.train({"image": public[shared[DIGESTED]], "consensus": shared[CONSENSUS]})
            ctx.train()

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Cross-entropy, or on public samples of a digest the mean absolute difference from the consensus."""
        logits: Tensor = networks[step.scratch[_ROLE]](batch["image"])
        if "consensus" in batch:
            return {"digest": F.l1_loss(logits.float(), batch["consensus"])}
        return {"ce": F.cross_entropy(logits, batch["label"])}

    @torch.no_grad()
    def client_result(self, ctx: FitContext) -> dict[str, Tensor]:
        """The client's class scores (logits) of the public samples that were asked for, (m, K)."""
        model, asked = ctx.networks[ctx.scratch[_ROLE]].eval(), ctx.shared[PUBLIC][ctx.shared[ASKED]]
        return {SCORES: ctx.computed({"image": asked}, lambda batch: model(batch["image"]).float())}

    def server_update(self, ctx: ServerContext) -> None:
        """Make the consensus of the clients' scores, each with equal weight, and draw the next samples."""
        scores = [found[SCORES].double() for found in ctx.results.values() if SCORES in found]
        if not scores:
            return
        ctx.shared[CONSENSUS] = torch.stack(scores).mean(0).float()
        if DIGESTED not in ctx.shared or self.settings.subset is not None:
            ctx.shared[DIGESTED] = ctx.shared[ASKED]
        self._ask(ctx)

    def predict(self, networks: nn.ModuleDict, batch: Batch) -> Tensor:
        """Logits of the first of the clients' models."""
        logits: Tensor = next(iter(networks.values()))(batch["image"])
        return logits

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        """Classification by the client's own model."""
        model = ctx.networks[role_of(ctx.client, self.settings.models)]
        return ctx.classification(lambda batch: model(batch["image"]))


METHOD = FedMD
