"""Attacks that measure how much released images and models reveal about the samples they were made from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FALSE_POSITIVE_RATES = (0.01, 0.001)


def membership_inference(member_losses: Tensor, other_losses: Tensor) -> dict[str, float]:
    """Membership inference by a threshold on the loss: samples with a low loss are classified as training samples.

    Args:
        member_losses: (n,) losses of training samples.
        other_losses: (m,) losses of samples that were not trained on; preferably m = n.

    Returns:
        ``auroc``, the area under the ROC curve (0.5 means that the attack learns nothing), and ``tpr_at_1%`` and
        ``tpr_at_0.1%``, the largest true-positive rates at false-positive rates of at most 1 % and 0.1 %. A
        false-positive rate below 1 / m means that none of the m other samples is classified as a training sample.

    Raises:
        ValueError: there are no member losses or no other losses.

    Source: Yeom et al. 2018, arXiv 1709.01604 (threshold); Carlini et al. 2022, arXiv 2112.03570 (rates).
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    if not len(member_losses) or not len(other_losses):
        raise ValueError(f"{len(member_losses)} member and {len(other_losses)} other losses, expected some of each")
    scores = -torch.cat([member_losses, other_losses]).detach().cpu().double().numpy()
    truth = np.repeat([1, 0], [len(member_losses), len(other_losses)])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    rates = {f"tpr_at_{100 * rate:g}%": float(true[false <= rate].max()) for rate in FALSE_POSITIVE_RATES}
    return {"auroc": float(roc_auc_score(truth, scores)), **rates}


def memorization(virtual: Tensor, private: Tensor, held_out: Tensor) -> Tensor:
    """The distance of each virtual image to the nearest private image, divided by that to the nearest held-out image.

    A ratio near 1 means that a virtual image is as near to other images as to those it was made from. A ratio of 0
    means that it is a copy of a private image. Distances are Euclidean.

    Args:
        virtual: (m, …).
        private: (n, …), the images that the virtual images were made from.
        held_out: (n, …), other images of the same kind. They must be equally many, because the distance to the nearest
            of several images falls with their number.

    Returns:
        (m,) float64; 1 where both distances are 0.

    Raises:
        ValueError: the numbers of private and held-out images differ, or there are none.
    """
    if len(private) != len(held_out) or not len(private):
        raise ValueError(f"{len(private)} private and {len(held_out)} held-out images, expected as many of each")
    near, far = _nearest(virtual, private), _nearest(virtual, held_out)
    return torch.where((near == 0) & (far == 0), torch.ones_like(near), near / far)


def _nearest(points: Tensor, candidates: Tensor) -> Tensor:
    x, y = points.flatten(1).double(), candidates.flatten(1).double()
    nearest = (y.square().sum(1) - 2 * x @ y.T).argmin(1)
    distance: Tensor = torch.linalg.vector_norm(x - y[nearest], dim=1)  # exactly 0 for a copy, unlike x @ y.T
    return distance
