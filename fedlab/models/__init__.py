"""Networks by name."""

from __future__ import annotations

from fedlab.models.base import FeatureClassifier, headless, seeded_init
from fedlab.models.registry import MODELS, build_model, check_model

__all__ = ["MODELS", "FeatureClassifier", "build_model", "check_model", "headless", "seeded_init"]
