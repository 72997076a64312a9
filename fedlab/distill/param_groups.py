"""Parameter groups: which parameters decay, and how fast each layer of a transformer learns."""

from __future__ import annotations

from typing import Any

from torch import nn


def decayed(module: nn.Module, *, tokens: bool = True) -> list[dict[str, Any]]:
    """Two groups of the parameters that require gradients: matrices, which decay, and all others, which do not.

    Biases, scales and all other parameters of fewer than two dimensions have a weight decay of 0. The weight decay of
    the matrices is the run's.

    Args:
        module: the module whose parameters are grouped.
        tokens: whether learned tokens and positions decay as well, that is, parameters of two and more dimensions whose
            name does not end in ``weight``.

    Returns:
        One or two groups with ``params`` and ``decays``, in this order; a group without parameters is left out.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in module.named_parameters():
        if p.requires_grad:
            groups[_decays(name, p, tokens)].append(p)
    return [_group(params, decays) for decays, params in groups.items() if params]


def layerwise(vit: nn.Module, decay: float, patch_factor: float = 1.0, *, tokens: bool = True) -> list[dict[str, Any]]:
    """Groups of a vision transformer whose learning rates fall from layer to layer towards the input.

    With L blocks, the parameters of block l = 1 … L learn at ``decay ** (L + 1 - l)`` times the run's rate. Patch
    projection, tokens and positions count as layer 0, and everything after the blocks learns at the run's rate. Within
    each layer, biases and scales have a weight decay of 0, as with `decayed`.

    Args:
        vit: a transformer with its blocks in ``vit.blocks``, its patch projection in a module called ``patch`` or
            ``patches``, and modules that follow the blocks whose names begin with ``norm`` or ``head``.
        decay: factor from one layer to the one below it, in (0, 1].
        patch_factor: further factor of the patch projection.
        tokens: see `decayed`.

    Returns:
        Groups with ``params``, ``lr_factor`` and ``decays``, from the input to the output.

    Raises:
        ValueError: the module has no blocks.

    Source: Clark et al. 2020, arXiv 2003.10555; numbering of the layers and `patch_factor` as in DINOv2 (Oquab et al.
    2023, arXiv 2304.07193).
    """
    blocks = getattr(vit, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise ValueError(f"a {type(vit).__name__} has no blocks to tell apart")
    last, grouped = len(blocks) + 1, dict[tuple[int, bool, bool], list[nn.Parameter]]()
    for name, p in vit.named_parameters():
        if p.requires_grad:
            layer, patch = _layer(name, last), name.startswith(("patch.", "patches."))
            grouped.setdefault((layer, not patch, _decays(name, p, tokens)), []).append(p)
    return [
        {"lr_factor": decay ** (last - layer) * (1.0 if other else patch_factor), **_group(params, decays)}
        for (layer, other, decays), params in sorted(grouped.items(), key=lambda item: item[0])
    ]


def faster_biases(module: nn.Module, factor: float) -> list[dict[str, Any]]:
    """Two groups of the parameters that require gradients: all but biases, and biases, which learn at another rate.

    Args:
        module: the module whose parameters are grouped.
        factor: the ``lr_factor`` of the biases, by which their learning rate is multiplied.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if not name.endswith("bias")]},
        {"params": [p for name, p in named if name.endswith("bias")], "lr_factor": factor},
    ]


def _decays(name: str, p: nn.Parameter, tokens: bool) -> bool:
    return p.ndim > 1 and not name.endswith("bias") and (tokens or name.endswith("weight"))


def _layer(name: str, last: int) -> int:
    top, *below = name.split(".")
    if top == "blocks":
        return 1 + int(below[0])
    return last if top.startswith(("norm", "head")) else 0


def _group(params: list[nn.Parameter], decays: bool) -> dict[str, Any]:
    return {"params": params, "decays": decays, **({} if decays else {"weight_decay": 0.0})}
