"""Process-wide switches that must be set before flwr, ray or torch are imported."""

from __future__ import annotations

import importlib.metadata
import os
import sys

DISTRIBUTION = "fedlab-sim"

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # cuBLAS needs a fixed workspace for repeatable matrix products
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def prepare() -> None:
    """Switch telemetry and update checks off unless the user has set them explicitly."""
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    # Flower reads this one at import time; a program may have imported it before fedlab
    for name in ("flwr.supercore.telemetry", "flwr_datasets.common.telemetry"):
        telemetry = sys.modules.get(name)
        if telemetry is not None and os.environ["FLWR_TELEMETRY_ENABLED"] == "0":
            telemetry.FLWR_TELEMETRY_ENABLED = "0"  # type: ignore[attr-defined]  # module constant, not in its stubs


def refuse_foreign_install() -> None:
    """Raise ImportError when the unrelated distribution ``fedlab`` shares this environment.

    It imports under the same name, so whichever was installed last has overwritten files of the other.
    """
    try:
        foreign = importlib.metadata.version("fedlab")
    except importlib.metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"the unrelated distribution 'fedlab' {foreign} is installed here and imports under the same name. "
        f"Remove it and install this one again: pip uninstall fedlab && pip install --force-reinstall {DISTRIBUTION}"
    )
