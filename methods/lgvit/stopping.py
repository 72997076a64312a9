"""Inference that stops: layer by layer, a sample leaves at the first exit that its rule lets it leave at (§3.6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedlab.method import network
from fedlab.methods.lgvit.networks import Backbone, Exits, LastClassifier
from fedlab.methods.lgvit.settings import LGViTSettings, Rule


class Left(NamedTuple):
    """How n samples left the network.

    Args:
        logits: of the exit, or of the last classifier, (n, K).
        places: (n,) number of the exit among those that were there, from 0; the number of exits for samples that went
            through all layers.
    """

    logits: Tensor
    places: Tensor


def entropy(logits: Tensor) -> Tensor:
    """−Σ p ln p of softmaxes over the last dimension, in nats."""
    logs = logits.log_softmax(-1)
    found: Tensor = -(logs.exp() * logs).sum(-1)
    return found


def decides(seen: Tensor, rule: Rule, threshold: float) -> Tensor:
    """Which samples leave at the exit that they have just passed, (n,) truth values.

    Args:
        seen: logits (n, e, K) of the e exits that they have passed, in order.
        rule: see `LGViTSettings.rule`.
        threshold: τ.
    """
    none = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
    match rule:
        case "confidence":
            return seen[:, -1].softmax(-1).amax(-1) > threshold
        case "entropy":
            return entropy(seen[:, -1]) < threshold
        case "patience":
            guesses = seen.argmax(-1)[:, -int(threshold) :]
            return (guesses == guesses[:, -1:]).all(1) if seen.shape[1] >= threshold else none
        case "patient_and_confident":
            return (entropy(seen[:, -2:]) < threshold).all(1) if seen.shape[1] > 1 else none


def first_exit(seen: Tensor, rule: Rule, threshold: float) -> Tensor:
    """The exit at which each sample would leave, (n,) as in `Left.places`, given the logits of all exits (n, E, K)."""
    places = torch.full((len(seen),), seen.shape[1], device=seen.device)
    for place in reversed(range(seen.shape[1])):
        places[decides(seen[:, : place + 1], rule, threshold)] = place
    return places


def leave(networks: nn.ModuleDict, x: Tensor, layers: Sequence[int], rule: Rule, threshold: float) -> Left:
    """Run images until they leave. Layers after a sample's exit are not computed for it.

    Args:
        networks: the networks by role.
        x: (n, channels, H, W).
        layers: those after which there is an exit to leave at, in order.
        rule: see `LGViTSettings.rule`; it looks at every sample by itself.
        threshold: τ.
    """
    backbone, heads = network(networks, "backbone", Backbone), network(networks, "heads", Exits)
    final, grid = network(networks, "final", LastClassifier), backbone.grid_of(x)
    logits = x.new_empty(len(x), final.classes, dtype=torch.float32)
    places = torch.full((len(x),), len(layers), device=x.device)
    tokens, done, going = backbone.embed(x), 0, torch.arange(len(x), device=x.device)
    seen = logits[:, None][:, :0]
    for place, layer in enumerate(layers):
        tokens, done = backbone.run(tokens, slice(done, layer)), layer
        seen = torch.cat([seen, heads.after(layer, tokens, grid).logits.float()[:, None]], dim=1)
        out = decides(seen, rule, threshold)
        if out.any():
            logits[going[out]], places[going[out]] = seen[out, -1], place
            tokens, seen, going = tokens[~out], seen[~out], going[~out]
            if not len(going):
                return Left(logits, places)
    logits[going] = final(backbone.norm(backbone.run(tokens, slice(done, None)))).float()
    return Left(logits, places)


class Costs(NamedTuple):
    """Multiply–accumulate operations (MACs) of one sample. Activations, normalizations and softmaxes are not counted.

    Args:
        layers: of the patch embedding and all layers up to each one, from layer 0, which is the embedding alone.
        exits: of each exit, by its layer.
        final: of the last classifier.
    """

    layers: tuple[int, ...]
    exits: dict[int, int]
    final: int

    @property
    def whole(self) -> int:
        """Of a network without exits."""
        return self.layers[-1] + self.final

    def of(self, layers: Sequence[int]) -> list[int]:
        """Of a sample that leaves at each of some exits, all of which it asks, and at last of one that never leaves."""
        heads, found = 0, []
        for layer in layers:
            heads += self.exits[layer]
            found.append(self.layers[layer] + heads)
        return [*found, self.whole + heads]


@lru_cache(maxsize=8)
def costs(settings: LGViTSettings, shape: tuple[int, int, int], classes: int) -> Costs:
    """The costs of one image (channels, H, W), counted on networks without memory."""
    with torch.device("meta"), torch.no_grad():
        backbone = Backbone(settings, shape[0], (shape[1], shape[2])).eval()
        heads, final = Exits(settings, classes).eval(), LastClassifier(settings, classes)
        x = torch.empty(1, *shape)
        # only the plain form of attention consists of operations that are counted on every device
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            tokens = backbone.embed(x)
            spent = [counter.get_total_flops()]
            asked = {}
            for layer in range(1, settings.depth + 1):
                before = counter.get_total_flops()
                tokens = backbone.run(tokens, slice(layer - 1, layer))
                spent.append(spent[-1] + counter.get_total_flops() - before)
                if layer in settings.exits:
                    before = counter.get_total_flops()
                    heads.after(layer, tokens, backbone.grid_of(x))
                    asked[layer] = (counter.get_total_flops() - before) // 2
            before = counter.get_total_flops()
            final(backbone.norm(tokens))
            last = (counter.get_total_flops() - before) // 2
    return Costs(tuple(value // 2 for value in spent), asked, last)
