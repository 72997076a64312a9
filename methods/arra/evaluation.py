"""How well ARRA's model writes images, and how much of the external encoder's vector its early states tell."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab.method import EvaluationContext, ServerContext, network
from fedlab.methods.arra.llm import TokenLLM
from fedlab.methods.arra.losses import next_token_loss
from fedlab.methods.arra.settings import ARRASettings
from fedlab.methods.arra.vision import ImageEncoder, WordReader, word_targets
from fedlab.metrics.generation import exact_matches, f1, frechet_distance, kernel_distance
from fedlab.models.image_codes import ImageCodes

PROBED = 8
"""Positions, evenly spread over an image, at which hidden states are probed."""
_FITTED = 1000  # images to which the probe is fitted
_RIDGE = 1e-3  # strength of its penalty, in units of the states' mean variance


@torch.no_grad()
def token_sums(ctx: EvaluationContext) -> dict[str, np.ndarray]:
    """Sums over a client's test samples: of L_AR, and the number of predicted tokens."""
    llm, tokenizer = network(ctx.networks, "llm", TokenLLM), network(ctx.networks, "tokenizer", ImageCodes)
    total, count = 0.0, 0
    for batch in ctx.batches():
        ids = llm.layout.sequences(batch["text"], tokenizer.encode(ctx.networks["pixels"](batch["image"])))
        predicted = llm.layout.predicted_positions(ids)
        with ctx.autocast():
            logits = llm(ids, 0).logits
        tokens = int(predicted.sum())
        total, count = total + tokens * float(next_token_loss(logits, ids, predicted)), count + tokens
    return {"ar": np.array(total), "tokens": np.array(float(count))}


def token_values(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """L_AR per predicted token, in nats, of the sums of `token_sums`."""
    return {"ar_loss": float(sums["ar"] / max(float(sums["tokens"]), 1.0))}


@torch.no_grad()
def alignment_errors(ctx: ServerContext, s: ARRASettings) -> Tensor:
    """1 − cos of what a fresh linear map makes of states after the probed block and f_GF, by position.

    The map is a ridge regression, one for all positions, fitted to the server's public images. The projector is not
    used, so that a model without one can be compared.

    Returns:
        (`PROBED`,) means over the held-out images, from the first position of the image to the last.
    """
    public = {name: values[:_FITTED] for name, values in ctx.data[s.public].items()}
    fit, target = _states(ctx, s, public)
    test, expected = _states(ctx, s, ctx.data[s.held])
    weights = ridge(fit.flatten(0, 1).double(), F.normalize(target, dim=1).repeat_interleave(PROBED, 0).double())
    ones = test.new_ones(*test.shape[:2], 1)
    found = torch.cat([test, ones], dim=2).double() @ weights
    return (1 - F.cosine_similarity(found, expected[:, None].double(), dim=2)).mean(dim=0)


def ridge(x: Tensor, y: Tensor, strength: float = _RIDGE) -> Tensor:
    """Weights (d + 1, D) of the ridge regression from x (n, d) to y (n, D); the last row is the intercept.

    Args:
        x: inputs.
        y: outputs.
        strength: penalty of the weights, in units of the mean variance of the inputs.
    """
    mean, target = x.mean(dim=0), y.mean(dim=0)
    centered = x - mean
    moments = centered.T @ centered
    penalty = strength * moments.diagonal().mean()
    weights = torch.linalg.solve(
        moments + penalty * torch.eye(len(moments), dtype=x.dtype, device=x.device), centered.T @ (y - target)
    )
    return torch.cat([weights, (target - mean @ weights)[None]])


def _states(ctx: ServerContext, s: ARRASettings, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Hidden states at `PROBED` positions (n, PROBED, d), and f_GF (n, D)."""
    states, targets = [], []
    for batch in ctx.iterate(columns, ctx.batch_size):
        pixels = ctx.networks["pixels"](batch["image"])
        with ctx.autocast():
            found = image_states(ctx.networks.eval(), s.probed, batch["text"], pixels)
        states.append(found[:, torch.linspace(0, found.shape[1] - 1, PROBED).long()].float())
        targets.append(network(ctx.networks, "encoder", ImageEncoder).features(pixels).float())
    return torch.cat(states), torch.cat(targets)


def image_states(networks: nn.ModuleDict, layer: int, text: Tensor, pixels: Tensor) -> Tensor:
    """States after a block at the positions from which the image's codes are predicted (n, cells, d).

    Args:
        networks: the networks.
        layer: number of the block, from 1.
        text: captions (n, L).
        pixels: images (n, C, H, W) in [0, 1].
    """
    llm, tokenizer = network(networks, "llm", TokenLLM), network(networks, "tokenizer", ImageCodes)
    ids = llm.layout.sequences(text, tokenizer.encode(pixels))
    hidden: Tensor = llm(ids, layer).hidden
    return hidden[llm.layout.image_positions(ids)].reshape(len(ids), llm.layout.cells, -1)


def generate(ctx: ServerContext, s: ARRASettings, text: Tensor, purpose: str) -> Tensor:
    """Codes (n, cells) drawn for captions (n, L)."""
    llm, g = network(ctx.networks, "llm", TokenLLM).eval(), s.generation
    return llm.generate(text, ctx.generator(purpose), temperature=g.temperature, top_k=g.top_k, guidance=g.guidance)


@torch.no_grad()
def generation_values(ctx: ServerContext, s: ARRASettings) -> dict[str, float]:
    """How near images that are generated for the captions of held-out images are to these, as the judge sees them.

    ``fid`` and ``kid`` compare the judge's features, ``fid_floor`` those of one half of the real images with the other.
    If the judge reads words: ``caption_accuracy`` is the share of generated images in which it finds exactly the words
    of the caption, and ``caption_f1`` counts the words; ``real_caption_accuracy`` and ``decoded_caption_accuracy`` are
    those of the real images and of what the tokenizer makes of them, which are limits.
    """
    tokenizer, judge = (
        network(ctx.networks, "tokenizer", ImageCodes),
        network(ctx.networks, "judge", ImageEncoder).eval(),
    )
    count = 4 if ctx.preflight else s.generation.samples
    held = {name: values[:count] for name, values in ctx.data[s.held].items()}
    real: list[Tensor] = []
    seen: dict[str, list[Tensor]] = {"real": [], "decoded": [], "generated": []}
    for number, batch in enumerate(ctx.iterate(held, ctx.batch_size)):
        image = ctx.networks["pixels"](batch["image"])
        drawn = tokenizer.decode(generate(ctx, s, batch["text"], f"images {number}"))
        real.append(batch["text"])
        for name, shown in (
            ("real", image),
            ("decoded", tokenizer.decode(tokenizer.encode(image))),
            ("generated", drawn),
        ):
            seen[name].append(shown)
    images = {name: torch.cat(found) for name, found in seen.items()}
    features = {name: _in_parts(judge, found, ctx.batch_size) for name, found in images.items()}
    half = len(features["real"]) // 2
    values = (
        {
            "fid": frechet_distance(features["real"], features["generated"]),
            "kid": kernel_distance(features["real"], features["generated"]),
            "decoded_fid": frechet_distance(features["real"], features["decoded"]),
            "fid_floor": frechet_distance(features["real"][:half], features["real"][half:]),
        }
        if half > 1
        else {}
    )
    if isinstance(judge, WordReader):
        asked = word_targets(torch.cat(real), network(ctx.networks, "llm", TokenLLM).layout, judge.words.out_features)
        for name, prefix in (("generated", ""), ("real", "real_"), ("decoded", "decoded_")):
            found = judge.words(features[name]) > 0
            values[f"{prefix}caption_accuracy"] = exact_matches(found, asked)
            if not prefix:
                values["caption_f1"] = f1(found, asked)
    return values


def _in_parts(judge: ImageEncoder, images: Tensor, size: int) -> Tensor:
    """The judge's features (n, D) of images."""
    return torch.cat([judge.features(images[start : start + size]).float() for start in range(0, len(images), size)])


def server_values(ctx: ServerContext, s: ARRASettings) -> dict[str, float]:
    """All that the server measures, if it holds images to evaluate on."""
    if s.held not in ctx.data:
        return {}
    values: dict[str, float] = {}
    if s.public in ctx.data:
        errors = alignment_errors(ctx, s)
        values = {
            "alignment_error": float(errors.mean()),
            "alignment_error_first": float(errors[0]),
            "alignment_error_last": float(errors[-1]),
            "alignment_spread": float(errors[-1] / errors[0].clamp(min=1e-12)),
        }
    return {**values, **(generation_values(ctx, s) if s.generation.samples else {})}
