"""A teacher that follows its student as an exponential moving average."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Set θ_t ← m θ_t + (1 − m) θ_s for every parameter of the teacher, in place. Buffers do not change.

    Args:
        teacher: the module to update. The student has a parameter of the same name and shape for each of its own.
        student: the module that the teacher follows; it may have further parameters.
        momentum: m in [0, 1]; 1 does not change the teacher, 0 copies the student.

    Raises:
        KeyError: the student lacks a parameter of the teacher.

    Source: Tarvainen & Valpola 2017, arXiv 1703.01780.
    """
    followed = dict(student.named_parameters())
    for name, parameter in teacher.named_parameters():
        # not lerp_, whose rounding changes a parameter even if m = 1
        parameter.mul_(momentum).add_(followed[name], alpha=1 - momentum)
