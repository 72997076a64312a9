"""Networks by name."""

from __future__ import annotations

from fedlab.models.base import FeatureClassifier, seeded_init
from fedlab.models.registry import MODELS, build_model, check_model

__all__ = ["MODELS", "FeatureClassifier", "build_model", "check_model", "seeded_init"]
