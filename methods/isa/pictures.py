"""Pictures of ISA: what composed queries find, and where the tokens of a sentence look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.blocks.pictures import attention_maps, ranked_images, spread_out
from fedlab.data.files.captions import decode
from fedlab.method import FigureContext, Picture, network, shown_of
from fedlab.methods.isa.retrieval import INDEX, compose, learn
from fedlab.methods.isa.settings import GALLERY, QUERIES, ISASettings
from fedlab.models.blip import Blip

_QUERIES, _FOUND, _IMAGES = 6, 5, 6


@torch.no_grad()
def figures(ctx: FigureContext, s: ISASettings) -> dict[str, Picture]:
    """Retrieved images with the composed sentence, if the server holds queries, and the attention of the tokens."""
    return {**_retrieved(ctx, s), **_attention(ctx, s)}


def _retrieved(ctx: FigureContext, s: ISASettings) -> dict[str, Picture]:
    queries, index = ctx.data.get(QUERIES), ctx.private.get(INDEX)
    if not queries or index is None or not len(queries["reference"]):
        return {}
    vl, gallery = network(ctx.networks, "vl", Blip), ctx.data[GALLERY]
    chosen = spread_out(queries, _QUERIES)
    references = gallery["image"][chosen["reference"]]
    sentence = learn(s, ctx.networks, references).sentence
    similarity = compose(vl, sentence, chosen["text"]) @ torch.as_tensor(index, device=references.device).T
    order = similarity.masked_fill(~_ranked(chosen, gallery, similarity), -torch.inf).argsort(dim=1, descending=True)
    found = order[:, :_FOUND]
    right = (found[..., None] == chosen["targets"][:, None]).any(dim=2).tolist()
    texts = [_told(wordings, ctx.task.vocabulary) for wordings in chosen["text"]]
    nearest = _nearest_words(vl, sentence, ctx.task.vocabulary)
    said = [f"{words}, then “{text}”" for words, text in zip(nearest, texts, strict=True)]
    composed = "; ".join(f"{row}: {one}" for row, one in enumerate(said, 1))
    grid = ranked_images(
        ctx.denormalize(references),
        [ctx.denormalize(gallery["image"][row]) for row in found],
        right,
        _FOUND,
        title=f"Retrieved images {ctx.when}",
        caption="Each row: the reference image of a query and the images found for it with the text beside it; green "
        f"frames are targets. The composed sentence of each, its tokens by the nearest words: {composed}."
        + shown_of(len(texts), len(queries["reference"]), "queries", "some"),
    )
    return {"retrieved": replace(grid, row_labels=tuple(texts))}


def _ranked(queries: Mapping[str, Tensor], gallery: Mapping[str, Tensor], similarity: Tensor) -> Tensor:
    """Which images are ranked for each query (n, m) bool, as `ComposedRetrieval` ranks them."""
    ranked = torch.ones_like(similarity, dtype=torch.bool)
    if "removed" in queries:
        for row, numbers in enumerate(queries["removed"].tolist()):
            ranked[row, [number for number in numbers if number >= 0]] = False
    if "label" in gallery:
        ranked &= gallery["label"][None] == queries["label"][:, None]
    return ranked


def _told(wordings: Tensor, vocabulary: tuple[str, ...]) -> str:
    """All wordings (V, M) of a text."""
    return " / ".join(filter(None, (decode(ids.tolist(), vocabulary) for ids in wordings)))


def _nearest_words(vl: Blip, sentence: Tensor, vocabulary: tuple[str, ...]) -> list[str]:
    """Sentences (n, L, d_w) as the words whose embeddings have the largest cosine with each token."""
    said = [number for number, word in enumerate(vocabulary) if not word.startswith("[")]
    words = F.normalize(vl.word_embeddings[said], dim=1)
    numbers = (F.normalize(sentence, dim=2) @ words.T).argmax(dim=2)
    return ["·".join(vocabulary[said[number]] for number in row) for row in numbers.tolist()]


def _attention(ctx: FigureContext, s: ISASettings) -> dict[str, Picture]:
    samples = ctx.samples(GALLERY)
    if not samples or s.learner.kind == "pooled":
        return {}
    images = spread_out({"image": samples["image"]}, _IMAGES)["image"]
    attention = learn(s, ctx.networks, images).attention
    side = round(attention.shape[2] ** 0.5)
    if side**2 != attention.shape[2]:  # maps are drawn for square images
        return {}
    maps = attention_maps(
        ctx.denormalize(images),
        attention.reshape(*attention.shape[:2], side, side),
        tuple(f"token {number + 1}" for number in range(attention.shape[1])),
        title=f"Where the tokens of a sentence look {ctx.when}",
        caption="Attention of each token over the image, scaled to its largest value."
        + shown_of(len(images), len(samples["image"]), "images", "some"),
    )
    return {"attention": maps}
