"""ARRA: a language model that writes images as tokens, whose early states learn to tell the image as a whole.

Xie et al., "Unleashing the Potential of Large Language Models for Text-to-Image Generation through Autoregressive
Representation Alignment", arXiv 2503.07334. Symbols: x tokens, h_t state after block i at position t, A_φ projector,
f_GF global vector of an external encoder, P the positions whose next token is an image code.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1, the server:  fit the codebook; train encoder and judge             server_prepare
    every client, once:          q ← codes of its images;  f_GF ← encoder(images)      fit → precomputed
    every round, every client, for every batch of captions, q and f_GF:
        x ← caption, BOI, q, EOI; the caption is left out of some                      loss
        h, logits ← M_θ(x)                                                             loss
        L = L_AR + λ mean_{t ∈ P} (1 − cos(A_φ(h_t), f_GF)) + 1e-5 L_z                 loss
    server: average θ and φ; draw images for some captions                             exchange, server_update
    every evaluation: L_AR on the clients; what do states tell of f_GF, and what       evaluate
        does the judge see in images drawn, on the server                              server_evaluate
    after the last round: θ alone, as transformers saves it                            artifacts
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.method import (
    Batch,
    BatchSpec,
    EvaluationContext,
    Features,
    FigureContext,
    FitContext,
    Group,
    ImageGrid,
    Method,
    Picture,
    Plan,
    ServerContext,
    Step,
    Task,
    network,
)
from fedlab.methods.arra import evaluation
from fedlab.methods.arra.llm import Projector, TokenLLM, make_llm
from fedlab.methods.arra.losses import alignment_loss, next_token_loss, z_loss
from fedlab.methods.arra.pictures import extend_gallery, gallery
from fedlab.methods.arra.preparation import precomputed, prepare
from fedlab.methods.arra.settings import ARRASettings, check, check_task
from fedlab.methods.arra.vision import ImageEncoder, make_encoder
from fedlab.models.image_codes import ImageCodes, JanusCodes, PatchCodes
from fedlab.models.pixels import Pixels

_DROPPED = "dropped"


class ARRA(Method[ARRASettings]):
    """Text-to-image generation by an autoregressive language model, aligned with a vision model."""

    title, paper = "ARRA", "Xie et al. 2025, arXiv 2503.07334"
    headline = (("alignment_error", "server"),)
    modality, own_model = "images with captions", "causal language model"
    learns_from = "the global vector of a frozen image encoder, which early states of a language model learn to tell"
    Settings, feature_parts = ARRASettings, ("llm", "encoder")

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        """Build the projector last: all other networks start alike, whether there is a projector or not."""
        s, shape, words = self.settings, task.input_shape, len(task.vocabulary)
        check_task(s, task)
        t, key = s.tokenizer, "method.tokenizer.pretrained"
        tokenizer: ImageCodes = (
            PatchCodes(t.codes, t.patch, shape) if t.pretrained is None else JanusCodes(t.pretrained, shape, key)
        )
        llm = make_llm(s, task.vocabulary, task.columns["text"][1][-1], tokenizer)
        encoder = make_encoder(s.encoder, shape, words, "method.encoder")
        judge = make_encoder(s.judge, shape, words, "method.judge")
        networks: dict[str, nn.Module] = {"llm": llm, "tokenizer": tokenizer, "encoder": encoder, "judge": judge}
        networks["pixels"] = Pixels(task.mean, task.std)
        if s.aligns:
            networks["projector"] = Projector(llm.width, encoder.num_features)
        return networks

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """θ and φ are averaged; what is frozen is sent once if the server makes it; the judge never leaves it."""
        s = self.settings
        fixed: dict[str, Literal["once", "frozen"]] = {
            role: "once" if one.pretrained is None else "frozen" for role, one in s.frozen.items()
        }
        groups = (Group("llm", ("llm",)), Group("tokenizer", ("tokenizer",), mode=fixed["tokenizer"]))
        if not s.aligns:  # clients need no encoder
            return *groups, Group("encoder", ("encoder", "judge"), mode="rest")
        encoder = Group("encoder", ("encoder",), mode=fixed["encoder"])
        return *groups, Group("projector", ("projector",), mode=s.projector), encoder, Group("judge", mode="rest")

    # before the first round

    def server_prepare(self, ctx: ServerContext) -> None:
        prepare(ctx, self.settings)
        extend_gallery(ctx, self.settings)

    # the client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=self._drop_captions if self.settings.drop_prompt else None)

    def _drop_captions(self, batch: Batch, generator: torch.Generator) -> Batch:
        draws = torch.rand(len(batch["text"]), generator=generator)
        return {**batch, _DROPPED: (draws < self.settings.drop_prompt).to(batch["text"])}

    def fit(self, ctx: FitContext) -> None:
        ctx.train(precomputed(ctx, self.settings.aligns))

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_AR + λ L_GVA + w_z L_z."""
        s, llm = self.settings, network(networks, "llm", TokenLLM)
        ids = llm.layout.sequences(batch["text"], batch["codes"], batch.get(_DROPPED))
        predicted = llm.layout.predicted_positions(ids)
        answer = llm(ids, s.layer)
        terms = {"ar": next_token_loss(answer.logits, ids, predicted)}
        if s.z_weight:
            terms["z"] = s.z_weight * z_loss(answer.logits, predicted)
        if s.aligns:
            aligned = llm.layout.aligned_positions(ids, s.positions)
            projected = networks["projector"](answer.hidden)
            terms["gva"] = s.lambda_gva * alignment_loss(projected, batch["target"], aligned)
        return terms

    # the server's round

    def server_update(self, ctx: ServerContext) -> None:
        extend_gallery(ctx, self.settings)

    # evaluation and pictures

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """The mean of the probed block's states over the image, or the encoder's vector."""
        pixels = networks["pixels"](batch["image"])
        if part == "encoder":
            return Features(network(networks, "encoder", ImageEncoder).features(pixels))
        states = evaluation.image_states(networks, self.settings.probed, batch["text"], pixels)
        return Features(states.mean(dim=1))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return evaluation.token_sums(ctx)

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return evaluation.token_values(sums)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        return evaluation.server_values(ctx, self.settings)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return gallery(ctx)

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Mapping[str, Tensor] | ImageGrid | nn.Module]:
        """The language model alone, for `from_pretrained`, and the fitted codebook."""
        found: dict[str, Mapping[str, Tensor] | ImageGrid | nn.Module] = {}
        found["llm"] = network(ctx.networks, "llm", TokenLLM).model
        if isinstance(ctx.networks["tokenizer"], PatchCodes):
            found["codebook"] = {"codebook": ctx.networks["tokenizer"].codebook}
        return found


METHOD = ARRA
