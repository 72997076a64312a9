"""Pictures of PAT's results: ranked lists and attention maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab.method import Batch, FigureContext, ImageGrid, Picture, network, shown_of
from fedlab.methods.pat.evaluation import extract
from fedlab.methods.pat.networks import PartViT
from fedlab.metrics.retrieval import ranking

_QUERIES, _SHOWN = 6, 5
_ASKED, _RIGHT, _WRONG = (0.25, 0.25, 0.25), (0.1, 0.65, 0.2), (0.85, 0.15, 0.1)


def ranked_lists(ctx: FigureContext) -> dict[str, Picture]:
    """Some queries of the unseen domain and the nearest gallery images of each; correct ones have a green frame."""
    if not {"query", "gallery"} <= ctx.data.keys():
        return {}
    query, gallery = _some(ctx.data["query"]), ctx.data["gallery"]
    backbone = ctx.networks["backbone"]
    asked, held = (extract(backbone, _batches(columns, ctx.batch_size)) for columns in (query, gallery))
    order = ranking(asked["feature"], held["feature"])
    tiles: list[Tensor] = []
    for row, image in enumerate(ctx.denormalize(query["image"])):
        match = gallery["label"] == query["label"][row]
        same_camera = gallery["camera"] == query["camera"][row] if "camera" in gallery else torch.zeros_like(match)
        shown = [place for place in order[row].tolist() if not (match[place] and same_camera[place])][:_SHOWN]
        tiles.append(_framed(image, _ASKED))
        found = ctx.denormalize(gallery["image"][shown])
        tiles += [_framed(one, _RIGHT if match[place] else _WRONG) for one, place in zip(found, shown, strict=True)]
        tiles += [torch.ones_like(tiles[0])] * (_SHOWN - len(shown))
    return {
        "ranked-lists": ImageGrid(
            torch.stack(tiles),
            columns=1 + _SHOWN,
            title=f"Nearest in the unseen domain, {ctx.when}",
            caption="Gray: the query. Green: the same person under another camera. Red: another person."
            + shown_of(len(query["image"]), len(ctx.data["query"]["image"]), "queries", "an even choice of"),
            column_labels=("query", *(str(rank) for rank in range(1, _SHOWN + 1))),
        )
    }


@torch.no_grad()
def attention(ctx: FigureContext) -> dict[str, Picture]:
    """What cls and each part attend to in the last layer; a part sees nothing outside its band."""
    columns = ctx.data.get("query") or ctx.client_test(0)
    if not columns or not len(columns["image"]):
        return {}
    images = _some(columns)["image"]
    maps = network(ctx.networks, "backbone", PartViT).attention_maps(images)
    strength = maps / maps.amax(dim=(2, 3), keepdim=True)
    shown = ctx.denormalize(images)
    shown = shown.expand(-1, 3, -1, -1) if shown.shape[1] == 1 else shown
    heat = torch.as_tensor(F.interpolate(strength.float(), size=images.shape[2:], mode="nearest"), device=shown.device)
    hot = torch.tensor([1.0, 0.75, 0.0])[:, None, None]
    overlays = 0.3 * shown[:, None] + 0.7 * heat[:, :, None] * hot
    tiles = torch.cat([shown[:, None], overlays], dim=1)
    names = ("image", "cls", *(f"part {part}" for part in range(1, maps.shape[1])))
    return {
        "attention": ImageGrid(
            tiles.flatten(0, 1),
            columns=len(names),
            title=f"Attention in the last layer, {ctx.when}",
            caption="Attention as the mean over heads, each map scaled to its largest value. A part only sees its band."
            + shown_of(len(images), len(columns["image"]), "images", "an even choice of"),
            column_labels=names,
        )
    }


def _some(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A few samples, evenly spread."""
    count = len(columns["image"])
    chosen = torch.linspace(0, count - 1, min(_QUERIES, count)).long().tolist()
    return {name: values[chosen] for name, values in columns.items()}


def _batches(columns: Mapping[str, Tensor], size: int) -> Iterator[Batch]:
    for start in range(0, len(columns["image"]), size):
        yield {name: values[start : start + size] for name, values in columns.items()}


def _framed(image: Tensor, color: tuple[float, float, float]) -> Tensor:
    """An image (C, H, W) inside a colored frame, (3, H', W')."""
    edge = max(2, image.shape[1] // 16)
    canvas = torch.tensor(color)[:, None, None].expand(3, image.shape[1] + 2 * edge, image.shape[2] + 2 * edge).clone()
    canvas[:, edge:-edge, edge:-edge] = image
    return canvas
