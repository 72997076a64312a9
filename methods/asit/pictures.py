"""Pictures of the reconstruction: the spectrogram, what is corrupted, the student's input, and its output."""

from __future__ import annotations

import torch

from fedlab.method import FigureContext, Picture, heatmaps, network, shown_of
from fedlab.methods.asit import views
from fedlab.methods.asit.networks import Student
from fedlab.methods.asit.settings import ASiTSettings

_CLIPS = 4


@torch.no_grad()
def repairs(ctx: FigureContext, s: ASiTSettings) -> dict[str, Picture]:
    """Four columns by clip, of the server's test clips or of the first client's."""
    columns = ctx.samples("test")
    if not columns:
        return {}
    batch = {name: values[:_CLIPS] for name, values in columns.items()}
    student = network(ctx.networks, "student", Student)
    clean = ctx.networks["normalizer"](views.fixed_windows(s, batch, s.window, 1)[0])
    drawn = views.corruption(s, clean, len(clean), ctx.generator("corruption"))
    seen = views.corrupted(clean, drawn)
    shown = torch.stack([clean, drawn["mask"].float() * clean.abs().max(), seen, student.reconstruct(seen)], dim=1)
    names = [ctx.task.class_names[int(c)] for c in batch["label"]] if "label" in batch else [""] * len(clean)
    return {
        "repairs": heatmaps(
            shown.transpose(2, 3).flip(2),
            title="Clips the student repairs",
            caption="Time runs to the right, frequency upwards. White in the mask is corrupted: zeroed or from another "
            "clip. Held-out clips; the reconstruction is shown in whole, though only corrupted pixels count."
            + shown_of(len(clean), len(columns["audio"]), "clips"),
            row_labels=tuple(names),
            column_labels=("clean", "mask", "corrupted", "reconstruction"),
        )
    }
