"""FedLab: federated-learning simulation with local distillation over heterogeneous clients."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedlab._environment import prepare, refuse_foreign_install

prepare()
refuse_foreign_install()

if TYPE_CHECKING:
    from fedlab.callbacks import Callback as Callback
    from fedlab.config import Config as Config
    from fedlab.data.adapters import as_dataset as as_dataset
    from fedlab.data.samples import Dataset as Dataset
    from fedlab.data.samples import Samples as Samples
    from fedlab.data.sources.arrays import from_arrays as from_arrays
    from fedlab.errors import FedLabError as FedLabError
    from fedlab.experiment.configuration import load_config as load_config
    from fedlab.experiment.result import Run as Run
    from fedlab.experiment.result import load as load
    from fedlab.experiment.start import resume as resume
    from fedlab.experiment.start import run as run
    from fedlab.method import Method as Method
    from fedlab.studies.compare import Comparison as Comparison
    from fedlab.studies.compare import compare as compare

# imported on first use: `import fedlab` in a worker or a shell completion must not pay for flwr and the data stack
_PUBLIC = {
    "Callback": "fedlab.callbacks",
    "Comparison": "fedlab.studies.compare",
    "Config": "fedlab.config",
    "Dataset": "fedlab.data.samples",
    "FedLabError": "fedlab.errors",
    "Method": "fedlab.method",
    "Run": "fedlab.experiment.result",
    "Samples": "fedlab.data.samples",
    "as_dataset": "fedlab.data.adapters",
    "compare": "fedlab.studies.compare",
    "from_arrays": "fedlab.data.sources.arrays",
    "load": "fedlab.experiment.result",
    "load_config": "fedlab.experiment.configuration",
    "resume": "fedlab.experiment.start",
    "run": "fedlab.experiment.start",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'fedlab' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
