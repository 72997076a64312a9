"""Probes: simple models fitted to frozen features, to measure what the features contain."""

from __future__ import annotations

from fedlab.probes.base import (
    SCORE,
    Labels,
    MergeableProbe,
    MergeableSettings,
    Probe,
    Probed,
    ProbeSettings,
    check_classes,
)
from fedlab.probes.configured import PROBES, ConfiguredProbe, check_set_names, check_sets, make_probes
from fedlab.probes.service import client_sums, run_probes, try_probes

__all__ = [
    "PROBES",
    "SCORE",
    "ConfiguredProbe",
    "Labels",
    "MergeableProbe",
    "MergeableSettings",
    "Probe",
    "ProbeSettings",
    "Probed",
    "check_classes",
    "check_set_names",
    "check_sets",
    "client_sums",
    "make_probes",
    "run_probes",
    "try_probes",
]
