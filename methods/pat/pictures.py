"""Pictures of PAT's results: ranked lists and attention maps."""

from __future__ import annotations

import torch

from fedlab.blocks.pictures import attention_maps, in_batches, ranked_images, spread_out
from fedlab.method import FigureContext, Picture, network, shown_of
from fedlab.methods.pat.evaluation import extract
from fedlab.methods.pat.networks import PartViT
from fedlab.metrics.retrieval import ranking

_QUERIES, _SHOWN = 6, 5


def ranked_lists(ctx: FigureContext) -> dict[str, Picture]:
    """Some queries of the unseen domain and the nearest gallery images of each; correct ones have a green frame."""
    if not {"query", "gallery"} <= ctx.data.keys():
        return {}
    query, gallery = spread_out(ctx.data["query"], _QUERIES), ctx.data["gallery"]
    backbone = ctx.networks["backbone"]
    asked, held = (extract(backbone, in_batches(columns, ctx.batch_size)) for columns in (query, gallery))
    found, right = [], []
    for row, order in enumerate(ranking(asked["feature"], held["feature"])):
        match = gallery["label"] == query["label"][row]
        same_camera = gallery["camera"] == query["camera"][row] if "camera" in gallery else torch.zeros_like(match)
        places = [place for place in order.tolist() if not (match[place] and same_camera[place])][:_SHOWN]
        found.append(ctx.denormalize(gallery["image"][places]))
        right.append(match[places].tolist())
    caption = "Gray: the query. Green: the same person under another camera. Red: another person." + shown_of(
        len(query["image"]), len(ctx.data["query"]["image"]), "queries", "an even choice of"
    )
    title = f"Nearest in the unseen domain, {ctx.when}"
    return {
        "ranked-lists": ranked_images(ctx.denormalize(query["image"]), found, right, _SHOWN, title, caption),
    }


@torch.no_grad()
def attention(ctx: FigureContext) -> dict[str, Picture]:
    """What cls and each part attend to in the last layer; a part sees nothing outside its band."""
    columns = ctx.samples("query")
    if not columns:
        return {}
    images = spread_out(columns, _QUERIES)["image"]
    maps = network(ctx.networks, "backbone", PartViT).attention_maps(images)
    names = ("cls", *(f"part {part}" for part in range(1, maps.shape[1])))
    caption = (
        "Attention as the mean over heads, each map scaled to its largest value. A part only sees its band."
        + shown_of(len(images), len(columns["image"]), "images", "an even choice of")
    )
    title = f"Attention in the last layer, {ctx.when}"
    return {"attention": attention_maps(ctx.denormalize(images), maps, names, title, caption)}
