"""Results by class: the confusion matrix of the last evaluation, and the accuracy of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from fedlab.metrics.classification import MOST_CLASSES
from fedlab.report.blocks import Chart, Table
from fedlab.report.partition import shorten
from fedlab.report.record import RunRecord
from fedlab.report.svg import GRID, inline_svg, page_style
from fedlab.tracking import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DRAWN = 40
_MOST_NUMBERS = 12  # classes for which the cells have room for numbers
_NONE = "–"


@dataclass(frozen=True)
class ByClass:
    """The last evaluation by class, over the test samples of all clients that may train.

    Args:
        round: after which it was.
        names: of the K classes.
        samples: test samples of each class, (K,).
        correct: those of them that are classified correctly, (K,).
        confusion: the test samples by label (row) and prediction (column), (K, K); None if there are more than
            `fedlab.metrics.classification.MOST_CLASSES` classes.
    """

    round: int
    names: Sequence[str]
    samples: np.ndarray
    correct: np.ndarray
    confusion: np.ndarray | None

    @property
    def accuracy(self) -> dict[str, float | None]:
        """The share of each class's test samples that is classified correctly, by name; None without samples."""
        counts = zip(self.names, self.correct.tolist(), self.samples.tolist(), strict=True)
        return {name: correct / samples if samples else None for name, correct, samples in counts}

    def mistaken(self, index: int) -> tuple[str, float] | None:
        """The other class that a class is most often taken for, and the share of its samples that are.

        None if there is no such sample or no confusion matrix.
        """
        if self.confusion is None:
            return None
        others = self.confusion[index].copy()
        others[index] = 0
        most = int(others.argmax())
        return (self.names[most], float(others[most] / self.samples[index])) if others[most] else None


def by_class(history: History) -> ByClass | None:
    """The last evaluation by class; None if the method measures no classification, or an older version did not record
    it.
    """
    event = history.evaluations[-1] if history.evaluations else {}
    counts = event.get("per_class") or {}
    if not counts:
        return None
    samples, correct = (np.array(counts[name], np.int64) for name in ("samples", "correct"))
    names = [str(name) for name in history.start.get("classes") or ()]
    if len(names) != len(samples):
        names = [str(index) for index in range(len(samples))]
    matrix = np.array(event.get("confusion") or (), np.int64)
    square = matrix.shape == (len(samples), len(samples))
    return ByClass(int(event["round"]), names, samples, correct, matrix if square else None)


def lowest_classes(history: History, most: int = 5) -> str:
    """The classes with the lowest accuracy, in one line; empty if there are no results by class."""
    found = by_class(history)
    known = [] if found is None else [(name, value) for name, value in found.accuracy.items() if value is not None]
    if found is None or not known:
        return ""
    worst = sorted(known, key=lambda one: one[1])[:most]
    told = ", ".join(f"{name} {100 * value:.1f} %" for name, value in worst)
    return f"{told} (accuracy of the lowest {len(worst)} of {len(found.names):,} classes, pooled)"


def classes_section(record: RunRecord) -> tuple[Chart | None, Table] | None:
    """The heat map of the confusion matrix, if there are few enough classes, and the table of the classes."""
    found = by_class(record.history)
    if found is None or not found.samples.sum():
        return None
    return _chart(found), _table(found)


def _table(found: ByClass) -> Table:
    rows = []
    for index, (name, accuracy) in enumerate(found.accuracy.items()):
        mistaken = found.mistaken(index)
        told = _NONE if mistaken is None else f"{mistaken[0]} ({100 * mistaken[1]:.1f} %)"
        share = _NONE if accuracy is None else f"{100 * accuracy:.1f} %"
        rows.append([name, told, share, f"{found.samples[index]:,}"])
    note = "Over the test samples of all clients that may train."
    if found.confusion is None:
        note += f" Confusion matrices of more than {MOST_CLASSES} classes are not recorded."
    return Table(("Class", "Most often taken for", "Accuracy", "Test samples"), rows, note=note, text_columns=1)


def _chart(found: ByClass) -> Chart | None:
    matrix, count = found.confusion, len(found.names)
    if matrix is None or count > MOST_DRAWN:
        return None
    what = "Numbers are test samples, and colors" if count <= _MOST_NUMBERS else "Colors"
    note = f"{what} are shares of the samples of a class, so that every row adds up to 100 %."
    return Chart("Confusion matrix", _heat_map(matrix, found), note)


def _heat_map(matrix: np.ndarray, found: ByClass) -> Markup:
    from matplotlib.figure import Figure

    count = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    size = float(np.clip(2.6 + 0.14 * count, 3.6, 6.0))
    with page_style():
        figure = Figure(figsize=(size + 0.6, size), layout="constrained")
        axes = figure.add_subplot()
        picture = axes.imshow(100 * shares, cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        labels = [shorten(name, 14) for name in found.names]
        upright = count <= _MOST_NUMBERS and max(map(len, labels)) <= 3
        small = 9 if count <= _MOST_NUMBERS else 6.5
        axes.set_xticks(range(count), labels, rotation=0 if upright else 90, fontsize=small)
        axes.set_yticks(range(count), labels, fontsize=small)
        axes.set(xlabel="predicted class", ylabel="class")
        if count <= _MOST_NUMBERS:
            _numbers(axes, matrix, shares)
        bar = figure.colorbar(picture, ax=axes, shrink=0.85)
        bar.set_label("share of the class (%)")
        bar.outline.set_edgecolor(GRID)
        right = 100 * found.correct.sum() / max(1, found.samples.sum())
        alt = f"Confusion matrix of {count} classes after round {found.round}; {right:.1f} % are on the diagonal."
        return inline_svg(figure, "confusion", alt)


def _numbers(axes: Axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if value:  # white on the dark half of the colors
            color = "#ffffff" if shares[row, column] < 0.5 else "#000000"
            axes.text(column, row, f"{value:,}", ha="center", va="center", fontsize=7, color=color)
