"""Networks by name."""

from __future__ import annotations

from fedlab.models.base import FeatureClassifier, check_features, feature_classifier, headless, seeded_init
from fedlab.models.given import GivenNetwork
from fedlab.models.registry import MODELS, build_model, check_model, is_default_model

__all__ = [
    "MODELS",
    "FeatureClassifier",
    "GivenNetwork",
    "build_model",
    "check_features",
    "check_model",
    "feature_classifier",
    "headless",
    "is_default_model",
    "seeded_init",
]
