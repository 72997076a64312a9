"""ISA: images become sentences for a frozen vision-language model, by a small network that phones could run.

Du et al., "Image2Sentence based Asymmetrical Zero-shot Composed Image Retrieval", arXiv 2403.01431, ICLR 2024. No code
of the authors was found and the paper's body was not available: README.md says what is reconstructed. Symbols: φ light
encoder, S sentence of L tokens in the space of word embeddings, E_V, E_T, E_M frozen encoders of images, of text and of
both together (BLIP), v and H what E_V makes of an image, u what E_T makes of a sentence.

The algorithm, in the order in which it runs, and the hook that does each line::

    before round 1, the server:  index ← E_V(gallery), for all rounds                        server_prepare
    every client, once:          v, H ← E_V(its photos, which have no text)                  fit → kept_by_client
    every round, every client, for every batch of photos x, v and H:
        j(i) ← a photo like i, drawn with exp(v_i · v_j / τ)                                 batch_spec
        S ← learner(φ(x));  u ← E_T([CLS] S [SEP])                                           loss
        L_GCD = −mean_i log softmax_j(u_i · v_j / τ)[i]                                      loss
        L_LAR = ½ (−log E_M(S_i | H_i) − log(1 − E_M(S_i | H_j(i))))                         loss
        AdamW step of φ and learner on L_GCD + λ L_LAR, through the frozen E_T and E_M
    server: average φ and the learner; nothing else travels                                  exchange
    every evaluation: does u of [CLS] S "but blue" [SEP] find the edited image in the index? server_evaluate
        does S match its own photo and no other, on held-out photos of the clients?          evaluate
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedlab.blocks.once import kept_by_client
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
from fedlab.methods.isa import evaluation, retrieval
from fedlab.methods.isa.losses import contrastive_distillation, hard_negatives, local_alignment
from fedlab.methods.isa.networks import make_encoder, make_learner
from fedlab.methods.isa.pictures import figures
from fedlab.methods.isa.settings import ISASettings, check, check_task
from fedlab.models.blip import TINY, Blip, load_blip
from fedlab.models.pixels import Pixels

_NEGATIVE, _COUNTS = "negative", "negative_counts"


class ISA(Method[ISASettings]):
    """Zero-shot composed image retrieval, with a light network for queries and a frozen large one for the gallery."""

    title, paper = "ISA", "Du et al. 2024, arXiv 2403.01431"
    headline = (("recall@1", "server"),)
    modality, own_model = "images, and texts that edit them", "light encoder and token learner"
    learns_from = "a frozen vision-language model, for which a light network learns to write photos as sentences"
    Settings, feature_parts = ISASettings, ("query", "gallery")

    def check(self, config: Any) -> list[str]:
        return check(self.settings, config)

    def build(self, task: Task) -> dict[str, nn.Module]:
        s = self.settings
        vl = load_blip(s.vl.pretrained or TINY, "method.vl.pretrained")
        check_task(s, task, vl)
        networks: dict[str, nn.Module] = {"vl": vl, "pixels": Pixels(task.mean, task.std)}
        features = vl.vision_width
        if s.query == "light":
            networks["encoder"] = encoder = make_encoder(s.encoder)
            features = encoder.num_features
        networks["learner"] = make_learner(s.learner, features, vl.word_width, s.encoder.norm)
        return networks

    def exchange(self, plan: Plan) -> tuple[Group, ...]:
        """φ and the learner travel, with running statistics; every participant loads the frozen model by itself."""
        return Group("query", ("encoder", "learner")), Group("vl", ("vl",), mode="frozen")

    # before the first round

    def server_prepare(self, ctx: ServerContext) -> None:
        retrieval.prepare(ctx, self.settings)

    # a client's round

    def batch_spec(self, plan: Plan) -> BatchSpec:
        return BatchSpec(collate=self._with_negatives if self.settings.contrasts else None)

    def _with_negatives(self, batch: Batch, generator: torch.Generator) -> Batch:
        s = self.settings
        numbers, count = hard_negatives(batch["v"], s.temperature, s.duplicates, generator)
        return {**batch, _NEGATIVE: numbers, _COUNTS: count}

    def fit(self, ctx: FitContext) -> None:
        kept = kept_by_client(ctx, lambda: self._seen(ctx))
        ctx.train({"image": ctx.data["image"], **kept})

    def _seen(self, ctx: FitContext) -> dict[str, Tensor]:
        """v and, where they are kept, H of the client's photos."""
        photos, s = {"image": ctx.data["image"]}, self.settings
        seen = {"v": ctx.computed(photos, lambda batch: retrieval.look(ctx.networks, batch["image"]).vectors)}
        if s.needs_tokens and s.keep_tokens:
            seen["tokens"] = ctx.computed(photos, lambda batch: retrieval.look(ctx.networks, batch["image"]).tokens)
        return seen

    def loss(self, networks: nn.ModuleDict, batch: Batch, step: Step) -> dict[str, Tensor]:
        """L = L_GCD + λ L_LAR; gradients pass through the frozen encoders of text into the sentence."""
        s, vl, tokens = self.settings, network(networks, "vl", Blip), batch.get("tokens")
        if tokens is None and s.needs_tokens:
            tokens = retrieval.look(networks, batch["image"]).tokens
        sentence = vl.sentence(retrieval.learn(s, networks, batch["image"], tokens).sentence)
        terms = {
            "gcd": contrastive_distillation(
                vl.read(sentence),
                batch["v"],
                s.temperature,
                contrast=s.contrast,
                symmetric=s.symmetric,
                anchors=step.shared.get(retrieval.ANCHORS),
            )
        }
        if s.lambda_lar and tokens is not None:
            own, other = vl.match(sentence, tokens), None
            if s.contrasts:
                other = vl.match(sentence, tokens[batch[_NEGATIVE]])
            terms["lar"] = s.lambda_lar * local_alignment(own, other, batch.get(_COUNTS))
        return terms

    # evaluation and pictures

    def features(self, networks: nn.ModuleDict, batch: Batch, part: str) -> Features:
        """u of an image's sentence, without any text, or v of the image."""
        if part == "gallery":
            return Features(retrieval.look(networks, batch["image"]).vectors)
        vl = network(networks, "vl", Blip)
        return Features(vl.read(vl.sentence(retrieval.learn(self.settings, networks, batch["image"]).sentence)))

    def evaluate(self, ctx: EvaluationContext) -> Mapping[str, np.ndarray]:
        return evaluation.client_sums(ctx, self.settings)

    def evaluation_values(self, sums: Mapping[str, np.ndarray], task: Task) -> dict[str, float]:
        return evaluation.client_values(sums)

    def server_evaluate(self, ctx: ServerContext) -> Mapping[str, float]:
        return retrieval.server_values(ctx, self.settings)

    def figures(self, ctx: FigureContext) -> dict[str, Picture]:
        return figures(ctx, self.settings)

    def artifacts(self, ctx: FigureContext) -> Mapping[str, Mapping[str, Tensor] | ImageGrid | nn.Module]:
        """What a device needs for queries, φ and the learner, and the gallery's vectors."""
        state = ctx.networks.state_dict()
        query = {name: value for name, value in state.items() if name.startswith(("encoder.", "learner."))}
        index = ctx.private.get(retrieval.INDEX)
        return {"query": query} if index is None else {"query": query, "index": {"vectors": index}}


METHOD = ISA
