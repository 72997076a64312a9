"""Metrics as sums that merge exactly: update → state → merge → compute, never averages of averages."""

from __future__ import annotations

from fedlab.metrics.captions import CaptionChoice
from fedlab.metrics.classification import Classification
from fedlab.metrics.heterogeneity import client_distance
from fedlab.metrics.privacy import membership_inference, memorisation
from fedlab.metrics.sums import SumMetrics

__all__ = ["CaptionChoice", "Classification", "SumMetrics", "client_distance", "membership_inference", "memorisation"]
