"""Pictures of ARRA: images generated for the same captions, over the rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from fedlab.data.files.captions import decode
from fedlab.method import FigureContext, ImageGrid, Picture, ServerContext, network, shown_of
from fedlab.methods.arra.evaluation import generate
from fedlab.methods.arra.settings import ARRASettings
from fedlab.models.image_codes import ImageCodes

GALLERY, GALLERY_TEXT, GALLERY_ROUNDS = "gallery", "gallery_text", "gallery_rounds"
"""The server's private tensors: codes (rounds, n, cells), captions (n, L), and the number of each round."""
_ROWS = 8


def extend_gallery(ctx: ServerContext, s: ARRASettings) -> None:
    """Draw images for the same captions after each round; the server keeps their codes."""
    held = ctx.data.get(s.held, {}).get("text")
    if held is None or not s.generation.gallery:
        return
    text = held[: s.generation.gallery]
    drawn, number = generate(ctx, s, text, "gallery")[None].int(), torch.tensor([ctx.round], device=ctx.device)
    for name, value in ((GALLERY, drawn), (GALLERY_ROUNDS, number)):
        earlier = [ctx.place(ctx.private[name])] if name in ctx.private else []
        ctx.private[name] = torch.cat([*earlier, value])
    ctx.private[GALLERY_TEXT] = text


def gallery(ctx: FigureContext) -> dict[str, Picture]:
    """Images generated after some rounds, one row for each round and one column for each caption."""
    if GALLERY not in ctx.private:
        return {}
    codes, rounds, text = (ctx.private[name] for name in (GALLERY, GALLERY_ROUNDS, GALLERY_TEXT))
    tokenizer = network(ctx.networks, "tokenizer", ImageCodes)
    chosen = torch.unique(torch.linspace(0, len(codes) - 1, min(_ROWS, len(codes))).round().long())
    tokens = codes[chosen].flatten(0, 1).to(next(ctx.networks.parameters())).long()
    images: Tensor = tokenizer.decode(tokens).to(codes.float())  # where pictures are drawn
    captions = tuple(decode(row.tolist(), ctx.task.vocabulary) for row in text)
    listed = "; ".join(f"{number}: {caption}" for number, caption in enumerate(captions, start=1))
    labels = tuple(f"round {int(rounds[row])}" if rounds[row] else "untrained" for row in chosen)
    grid = ImageGrid(
        images,
        columns=len(text),
        title=f"Generated images {ctx.when}",
        caption=f"One column for each caption. {listed}." + shown_of(len(chosen), len(codes), "rounds", "some"),
        row_labels=labels,
        column_labels=tuple(str(number) for number in range(1, len(text) + 1)),
    )
    return {"generated": grid}
