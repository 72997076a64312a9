"""Metrics as sums that can be merged exactly (update → state → merge → compute), so that no averages are averaged."""

from __future__ import annotations

from fedlab.metrics.captions import CaptionChoice
from fedlab.metrics.classification import Classification
from fedlab.metrics.heterogeneity import client_distance
from fedlab.metrics.retrieval import Retrieval
from fedlab.metrics.segmentation import Segmentation
from fedlab.metrics.sums import SumMetrics
from fedlab.metrics.tagging import TagPrecision

__all__ = [
    "CaptionChoice",
    "Classification",
    "Retrieval",
    "Segmentation",
    "SumMetrics",
    "TagPrecision",
    "client_distance",
]
