"""All that a method's author sees."""

from __future__ import annotations

from fedlab.method.assets import (
    Asset,
)
from fedlab.method.base import (
    Method,
    NoSettings,
    network,
)
from fedlab.method.charts import (
    Curve,
    Point,
    curve_with_marks,
    curves,
    percentages,
)
from fedlab.method.clouds import (
    point_clouds,
)
from fedlab.method.columns import (
    model_input,
)
from fedlab.method.context import (
    FitContext,
    ServerContext,
    WorkContext,
    loss_not_finite,
)
from fedlab.method.evaluation import (
    EvaluationContext,
)
from fedlab.method.features import Features
from fedlab.method.figures import FigureContext
from fedlab.method.optimizer import (
    NotFiniteError,
    Optimizer,
)
from fedlab.method.pictures import (
    Bar,
    ImageGrid,
    Picture,
    Plot,
    bar_chart,
    heatmaps,
    images_with_bars,
    instance_overlay,
    label_overlay,
    save_picture,
    save_sheet,
    shown_of,
)
from fedlab.method.state import (
    ClientState,
)
from fedlab.method.types import (
    Batch,
    BatchSpec,
    Group,
    Plan,
    Step,
    Task,
)

__all__ = [
    "Asset",
    "Bar",
    "Batch",
    "BatchSpec",
    "ClientState",
    "Curve",
    "EvaluationContext",
    "Features",
    "FigureContext",
    "FitContext",
    "Group",
    "ImageGrid",
    "Method",
    "NoSettings",
    "NotFiniteError",
    "Optimizer",
    "Picture",
    "Plan",
    "Plot",
    "Point",
    "ServerContext",
    "Step",
    "Task",
    "WorkContext",
    "bar_chart",
    "curve_with_marks",
    "curves",
    "heatmaps",
    "images_with_bars",
    "instance_overlay",
    "label_overlay",
    "loss_not_finite",
    "model_input",
    "network",
    "percentages",
    "point_clouds",
    "save_picture",
    "save_sheet",
    "shown_of",
]
