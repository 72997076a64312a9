"""What is made once: the frozen networks on the server, and the image codes and target vectors of each client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.blocks.once import kept_by_client
from fedlab.blocks.pretrain import train_on_server
from fedlab.errors import ConfigError
from fedlab.method import Batch, FitContext, ServerContext, network
from fedlab.methods.arra.llm import TokenLLM
from fedlab.methods.arra.settings import ARRASettings
from fedlab.methods.arra.vision import ImageEncoder, word_targets
from fedlab.models.image_codes import ImageCodes, PatchCodes


def prepare(ctx: ServerContext, s: ARRASettings) -> None:
    """Make what no checkpoint gives from the server's captioned images: codebook, encoder and judge.

    Raises:
        ConfigError: the server has no such images, or not the set on which it is asked to evaluate.
    """
    made = [role for role, one in s.frozen.items() if one.pretrained is None]
    if made and not {"image", "text"} <= set(ctx.data.get(s.public, ())):
        expected = (
            f"a set of captioned images that the server holds, of which {', '.join(made)} are made; it holds "
            + (", ".join(ctx.data) or "none")
        )
        fix = "name one, make one with data.held, or set pretrained for each of these"
        raise ConfigError("method.public", s.public, expected, fix)
    if s.held not in ctx.data and s.held != ARRASettings().held:
        held = ", ".join(ctx.data) or "none"
        expected = f"a set that the server holds, on which it evaluates; it holds {held}"
        raise ConfigError("method.held", s.held, expected, "name one, make one with data.held, or leave it out")
    if "tokenizer" in made:
        _fit_codebook(ctx, s)
    for role, one in {"encoder": s.encoder, "judge": s.judge}.items():
        if role in made:
            _train_reader(ctx, ctx.data[s.public], role, steps=one.steps, batch_size=one.batch_size, lr=one.lr)


def _fit_codebook(ctx: ServerContext, s: ARRASettings) -> None:
    tokenizer = network(ctx.networks, "tokenizer", PatchCodes)

    def fit() -> dict[str, Tensor]:
        tokenizer.fit(ctx.networks["pixels"](ctx.data[s.public]["image"][: s.tokenizer.images]), ctx.seed)
        return {"codebook": tokenizer.codebook}

    found = ctx.cached("arra-codebook", s.tokenizer.model_dump(mode="json"), fit)
    tokenizer.codebook.copy_(found["codebook"])


def _train_reader(ctx: ServerContext, public: Mapping[str, Tensor], role: str, **training: Any) -> None:
    """Train an encoder to tell the words of a caption from its image."""
    layout, pixels = network(ctx.networks, "llm", TokenLLM).layout, ctx.networks["pixels"]

    def loss(reader: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = reader(pixels(batch["image"]))
        targets = word_targets(batch["text"], layout, logits.shape[1]).float()
        return {f"{role}_bce": F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)}

    columns = {name: public[name] for name in ("image", "text")}
    train_on_server(ctx, ctx.networks[role], columns, loss, name=f"arra-{role}", key={}, **training)


def precomputed(ctx: FitContext, aligns: bool) -> dict[str, Tensor]:
    """A client's training columns: captions, image codes and, if they are aligned to, the encoder's vectors f_GF.

    Codes and vectors are computed when they are first needed and kept in the client's state, from which nothing is
    sent. They are computed again only if the client has other samples.
    """

    def compute() -> dict[str, Tensor]:
        tokenizer, encoder = (
            network(ctx.networks, "tokenizer", ImageCodes),
            network(ctx.networks, "encoder", ImageEncoder),
        )
        images, pixels = {"image": ctx.data["image"]}, ctx.networks["pixels"]
        made = {"codes": ctx.computed(images, lambda batch: tokenizer.encode(pixels(batch["image"])))}
        if aligns:
            with torch.no_grad():
                target = ctx.computed(images, lambda batch: encoder.features(pixels(batch["image"])).float())
            made["target"] = target
        return made

    return {"text": ctx.data["text"], **kept_by_client(ctx, compute)}
