"""What clients measure on their test images: both losses, and whether a sentence matches its own image only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from fedlab.method import EvaluationContext, network
from fedlab.methods.isa.losses import contrastive_distillation, hard_negatives, local_alignment
from fedlab.methods.isa.retrieval import learn, look
from fedlab.methods.isa.settings import ISASettings
from fedlab.models.blip import Blip, match_probability


@torch.no_grad()
def client_sums(ctx: EvaluationContext, s: ISASettings) -> dict[str, np.ndarray]:
    """Sums over a client's test images, in batches of ``evaluation.batch_size``.

    Other images are drawn as in training, from the vectors of the frozen encoder, so that models with equal seeds are
    asked for the same pairs.
    """
    vl, generator = network(ctx.networks, "vl", Blip), ctx.generator("negatives")
    own_sums, other_sums = np.zeros(4), np.zeros(3)
    for batch in ctx.batches():
        with ctx.autocast():
            seen = look(ctx.networks, batch["image"])
            sentence = vl.sentence(learn(s, ctx.networks, batch["image"], seen.tokens).sentence)
            gcd = contrastive_distillation(vl.read(sentence), seen.vectors, s.temperature)
            numbers, there = hard_negatives(seen.vectors, s.temperature, s.duplicates, generator)
            own, other = vl.match(sentence, seen.tokens), vl.match(sentence, seen.tokens[numbers])
        n, pairs, matched = len(there), int(there.sum()), match_probability(own)
        aligned = local_alignment(own)
        own_sums += n * np.array([float(gcd), float(aligned), float(matched.mean()), 1.0])
        if pairs:
            apart = 2 * local_alignment(own, other, there) - aligned
            wrong = (match_probability(other) * there).sum() / pairs
            other_sums += pairs * np.array([float(apart), float(wrong), 1.0])
    return {"own": own_sums, "other": other_sums}


def client_values(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """``gcd_loss`` and ``lar_loss`` on held-out images; ``match_own`` and ``match_other``, the mean probability that a
    sentence matches its own image and a similar one; ``match_margin``, their difference.
    """
    gcd, aligned, own, images = sums["own"].tolist()
    apart, other, pairs = sums["other"].tolist()
    values = {"gcd_loss": gcd / images, "match_own": own / images} if images else {}
    if pairs:
        values |= {"lar_loss": (aligned / images + apart / pairs) / 2, "match_other": other / pairs}
        values["match_margin"] = values["match_own"] - values["match_other"]
    return values
