"""What clients measure on their test images: both losses, and whether a sentence matches its own image only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedlab.method import EvaluationContext, network
from fedlab.methods.isa.losses import contrastive_distillation, local_alignment
from fedlab.methods.isa.retrieval import learn, look
from fedlab.methods.isa.settings import ISASettings
from fedlab.models.blip import Blip, match_probability

_SUMS, _PAIRS = ("gcd_loss",), ("lar_loss", "match_own", "match_other")


@torch.no_grad()
def client_sums(ctx: EvaluationContext, s: ISASettings) -> dict[str, np.ndarray]:
    """Sums over a client's test images, in batches of ``evaluation.batch_size``.

    The other image of a pair is the next one of the batch, so that all models are asked for the same pairs.
    """
    vl, totals, counts = network(ctx.networks, "vl", Blip), np.zeros(len(_SUMS + _PAIRS)), np.zeros(2)
    for batch in ctx.batches():
        images = batch["image"]
        with ctx.autocast():
            seen = look(ctx.networks, images)
            sentence = vl.sentence(learn(s, ctx.networks, images, seen.tokens).sentence)
            own, other = vl.match(sentence, seen.tokens), vl.match(sentence, seen.tokens.roll(-1, dims=0))
            gcd = contrastive_distillation(vl.read(sentence), seen.vectors, s.temperature)
        n, pairs = len(images), len(images) if len(images) > 1 else 0
        found = [match_probability(logits).mean() for logits in (own, other)]
        means = [float(value) for value in (gcd, local_alignment(own, other), *found)]
        totals += np.array(means) * np.array([n, pairs, pairs, pairs])
        counts += np.array([n, pairs])
    return {"totals": totals, "counts": counts}


def client_values(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """``gcd_loss`` and ``lar_loss`` on held-out images; ``match_own`` and ``match_other``, the mean probability that a
    sentence matches its own and another image; ``match_margin``, their difference.
    """
    images, pairs = sums["counts"].tolist()
    totals = dict(zip((*_SUMS, *_PAIRS), sums["totals"].tolist(), strict=True))
    values = {name: totals[name] / images for name in _SUMS if images}
    if pairs:
        values |= {name: totals[name] / pairs for name in _PAIRS}
        values["match_margin"] = values["match_own"] - values["match_other"]
    return values
