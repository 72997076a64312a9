"""How figures are written: names of metrics, percentages, bytes, seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fedlab.metrics.direction import ranked

_NAMES = {
    "f1_macro": "F1 (macro)",
    "personalized_f1_macro": "Personalized F1 (macro)",
    "auroc": "AUROC",
    "map": "mAP",
    "miou": "mIoU",
    "rmse": "RMSE",
    "mae": "MAE",
}


def metric_names(values: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of all metrics that have a number in any of the mappings: accuracy first, losses last."""
    return ranked(name for found in values for name, value in found.items() if is_number(value))


def is_number(value: object) -> bool:
    """Whether `value` can be shown and compared; NaN and infinity cannot."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_share(name: str) -> bool:
    """Whether a metric is shown in percent."""
    return name.endswith("accuracy") or name.startswith("accuracy_")


def metric_label(name: str) -> str:
    """A metric's name in words."""
    return _NAMES.get(name) or words(name)


def metric_phrase(name: str) -> str:
    """A metric's name inside a phrase: ``mean accuracy``, ``mean F1 (macro)``."""
    label = metric_label(name)
    return label if name in _NAMES or not name.islower() else label[:1].lower() + label[1:]


def words(name: str) -> str:
    """An identifier as a phrase: ``virtual-global`` → ``Virtual global``."""
    text = name.replace("_", " ").replace("-", " ").strip()
    return text[:1].upper() + text[1:] if text.islower() else text


def metric_value(name: str, value: Any) -> str:
    """A metric's value, accuracies in percent, a dash where there is none."""
    if not is_number(value):
        return "–"
    return f"{100 * value:.1f} %" if is_share(name) else number(value)


def number(value: float) -> str:
    """Three or four significant digits."""
    if value == 0 or 0.01 <= abs(value) < 10:
        return f"{value:.3f}"
    if 10 <= abs(value) < 1e5:
        return f"{value:,.1f}"
    return f"{value:.2e}"


def human_bytes(count: float) -> str:
    """Bytes in decimal units, as in papers on communication cost."""
    unit, factor = byte_unit(count)
    return f"{count / factor:.0f} B" if unit == "B" else f"{count / factor:.{_digits(count / factor)}f} {unit}"


def byte_unit(largest: float) -> tuple[str, float]:
    """The unit that suits values up to `largest`, and its size in bytes."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if largest >= 999.5 * 1000.0 ** (power - 1):
            return unit, 1000.0**power
    return "B", 1.0


def _digits(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0


def moment(time: Any) -> str:
    """Seconds since the epoch as date and time; UTC, so that a report is the same wherever it is written."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC" if is_number(time) else ""


def plural(count: int, noun: str) -> str:
    """``1 round``, ``1,000 rounds``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def byte_cells(values: Sequence[float | None]) -> tuple[str, list[str]]:
    """A column of byte counts in one unit, that of the largest: the unit, and three digits of each; None is a dash."""
    unit, factor = byte_unit(max((value for value in values if value is not None), default=0.0))
    return unit, ["–" if value is None else _three(value / factor) for value in values]


def time_cells(values: Sequence[float | None]) -> tuple[str, list[str]]:
    """A column of seconds in one unit, that of the largest: the unit, and three digits of each; None is a dash."""
    largest = max((value for value in values if value is not None), default=0.0)
    unit, size, _ = next((one for one in _TIMES if largest >= one[1] * one[2]), _TIMES[-1])
    return unit, ["–" if value is None else _three(value / size) for value in values]


_TIMES = (("h", 3600.0, 2.0), ("min", 60.0, 5.0), ("s", 1.0, 1.0), ("ms", 1e-3, 1.0))
"""Units with their seconds, and how many of them there must be."""


def _three(value: float) -> str:
    return f"{value:,.{_digits(value)}f}" if value == 0 or value >= 1 else f"{value:#.3g}"
