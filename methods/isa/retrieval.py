"""What the server does: the gallery's vectors, composed queries, and how well these find their targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.errors import ConfigError
from fedlab.method import Batch, ServerContext, network
from fedlab.methods.isa.networks import Learned
from fedlab.methods.isa.settings import GALLERY, QUERIES, ISASettings
from fedlab.metrics.composed import ComposedRetrieval
from fedlab.models.blip import Blip, Seen

INDEX, CONTROLS, ANCHORS = "index", "controls", "anchors"
"""The server's private vectors of the gallery and what simpler queries reach there; the shared anchors."""
_CONTROLS = ("image_only", "text_only", "mean_of_both", "oracle")
_GAINS = {"gain_over_mean": "mean_of_both", "gain_over_image": "image_only", "gain_over_text": "text_only"}
Encode = Callable[[Batch], Tensor]
"""Vectors (n, d) of a batch of queries."""


@torch.no_grad()
def look(networks: nn.ModuleDict, images: Tensor) -> Seen:
    """What the frozen encoder E_V sees in normalized images (n, 3, H, W)."""
    return network(networks, "vl", Blip).look(networks["pixels"](images))


def learn(s: ISASettings, networks: nn.ModuleDict, images: Tensor, tokens: Tensor | None = None) -> Learned:
    """Sentences of normalized images (n, 3, H, W).

    Args:
        s: settings.
        networks: the networks.
        images: the images.
        tokens: what E_V makes of them (n, 1 + N, d_v), if it is known; only needed without a light encoder.
    """
    if s.query == "light":
        features = networks["encoder"](networks["pixels"](images))
    else:
        patches = (look(networks, images).tokens if tokens is None else tokens)[:, 1:]
        features = patches.transpose(1, 2).reshape(*patches.shape[::2], *network(networks, "vl", Blip).grid)
    learned: Learned = networks["learner"](features)
    return learned


def compose(vl: Blip, sentence: Tensor, text: Tensor) -> Tensor:
    """u of sentences (n, L, d_w) followed by the words of texts (n, V, M): the mean over the wordings, (n, d).

    Vectors have length 1 before and after the mean, as in SEARLE's evaluation of FashionIQ. Rows of padding, which fill
    up texts with fewer wordings, do not count.
    """
    there = (text != vl.pad).any(dim=2, keepdim=True)
    wordings = torch.stack([vl.read(vl.sentence(sentence, ids)) for ids in text.unbind(dim=1)], dim=1)
    return F.normalize((wordings * there).sum(dim=1), dim=1)


def prepare(ctx: ServerContext, s: ISASettings) -> None:
    """Compute the gallery's vectors, which no round changes, what simpler queries reach, and the anchors.

    Raises:
        ConfigError: anchors without a gallery, or texts that are too long for the model.
    """
    if GALLERY not in ctx.data:
        if s.anchors:
            held = ", ".join(ctx.data) or "none"
            raise ConfigError("method.anchors", s.anchors, f"a set {GALLERY!r} of the server, which holds {held}")
        return
    pictures = {"image": ctx.data[GALLERY]["image"]}
    with ctx.timed("gallery, large encoder"):
        index = ctx.computed(pictures, lambda batch: look(ctx.networks, batch["image"]).vectors, ctx.batch_size)
    ctx.private[INDEX] = index
    if s.anchors:
        chosen = torch.linspace(0, len(index) - 1, min(s.anchors, len(index))).long().tolist()
        ctx.shared[ANCHORS] = index[chosen]
    if QUERIES in ctx.data:
        _check_length(ctx, s)
        found = [_measured(ctx, encode).compute().get("recall@1", torch.nan) for encode in _simple(ctx).values()]
        ctx.private[CONTROLS] = ctx.place(torch.tensor(found, dtype=torch.float64))


def _check_length(ctx: ServerContext, s: ISASettings) -> None:
    vl, queries = network(ctx.networks, "vl", Blip), ctx.data[QUERIES]
    tokens = 1 if s.learner.kind == "pooled" else s.learner.tokens
    longest = max(int((queries[name] != vl.pad).sum(dim=-1).max()) for name in ("text", "oracle") if name in queries)
    if tokens + longest > vl.positions:
        expected = (
            f"at most {vl.positions - longest}, since a text takes {longest} of the model's {vl.positions} places"
        )
        raise ConfigError("method.learner.tokens", tokens, expected, "or shorten the texts by data.source.length")


def _simple(ctx: ServerContext) -> dict[str, Encode]:
    """Queries without any training, by name, in the order of `_CONTROLS`; the oracle as far as there are true words."""
    vl, index = network(ctx.networks, "vl", Blip), ctx.private[INDEX]

    def text(batch: Batch) -> Tensor:
        return compose(vl, _nothing(vl, batch), batch["text"])

    def image(batch: Batch) -> Tensor:
        return ctx.place(index)[batch["reference"]]

    def mean(batch: Batch) -> Tensor:
        return F.normalize(image(batch) + text(batch), dim=1)

    def oracle(batch: Batch) -> Tensor:
        return compose(vl, _nothing(vl, batch), batch["oracle"][:, None])

    simple = dict(zip(_CONTROLS, (image, text, mean, oracle), strict=True))
    return {name: encode for name, encode in simple.items() if name != "oracle" or "oracle" in ctx.data[QUERIES]}


def _nothing(vl: Blip, batch: Batch) -> Tensor:
    """Sentences without a token."""
    return vl.word_embeddings.new_zeros(len(batch["reference"]), 0, vl.word_width)


@torch.no_grad()
def _measured(ctx: ServerContext, encode: Encode) -> ComposedRetrieval:
    """How well encoded queries find their targets among the gallery's vectors."""
    queries, index = ctx.data[QUERIES], ctx.place(ctx.private[INDEX])
    kinds = 1 + int(queries["label"].max()) if "label" in queries else 1
    metric = ComposedRetrieval(kinds=kinds)
    for batch in ctx.iterate(queries, ctx.batch_size):
        with ctx.autocast():
            vectors = encode(batch).float()
        metric.update(
            vectors @ index.T,
            batch["targets"],
            removed=batch.get("removed"),
            group=batch.get("members"),
            kind=batch.get("label"),
            gallery_kind=ctx.data[GALLERY].get("label"),
        )
    return metric


@torch.no_grad()
def server_values(ctx: ServerContext, s: ISASettings) -> dict[str, float]:
    """Recall and mAP of composed queries, beside those of simpler queries that need no training."""
    if INDEX not in ctx.private or QUERIES not in ctx.data:
        return {}
    vl, networks, images = network(ctx.networks, "vl", Blip), ctx.networks.eval(), ctx.data[GALLERY]["image"]

    def encode(batch: Batch) -> Tensor:
        with ctx.timed(f"queries, {s.query} encoder"):
            sentence = learn(s, networks, images[batch["reference"]]).sentence
        return compose(vl, sentence, batch["text"])

    metric = _measured(ctx, encode)
    names = ctx.task.class_names
    values = metric.compute(names if len(names) == metric.kinds > 1 else ())
    if metric.skipped:
        values["skipped_queries"] = float(metric.skipped)
    return values | _beside(values, ctx.private.get(CONTROLS))


def _beside(values: Mapping[str, float], controls: Tensor | None) -> dict[str, float]:
    """What simpler queries reach, and by how much the composed ones are better."""
    if controls is None or "recall@1" not in values:
        return {}
    simple = dict(zip(_CONTROLS, controls.tolist(), strict=False))
    told = {f"recall@1_{name}": value for name, value in simple.items()}
    return told | {gain: values["recall@1"] - simple[name] for gain, name in _GAINS.items()}
