"""Pictures and tables of a partition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

_FEW, _SOME = 30, 120
_MANY_CLASSES = 20
# told apart by colour-blind readers too: Petroff 2021, arXiv 2107.02270
_PALETTE = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)


def plot_partition(summary: dict[str, Any]) -> Figure:
    """Clients × classes: stacked bars for a few clients, a matrix for some, a sorted picture for many.

    Args:
        summary: what `fedlab.data.partition.summary` returns.
    """
    from matplotlib.figure import Figure

    counts = np.array([client["train"] for client in summary["clients"]])
    clients, classes = counts.shape
    height = float(np.clip(1.3 + 0.28 * min(clients, _SOME), 2.4, 16))
    figure = Figure(figsize=(8, height if clients <= _SOME else 5), layout="constrained")
    axes = figure.add_subplot()
    if clients <= _FEW and classes <= _MANY_CLASSES:
        _bars(axes, summary, counts)
    else:
        _matrix(figure, axes, summary, counts)
    skew = summary["skew"]
    amount = f"{clients} client{'s' if clients > 1 else ''}, {skew['samples']:,} training samples"
    entropy = f"label entropy {skew['label_entropy_mean']:.2f} of {skew['label_entropy_global']:.2f} bits"
    axes.set_title(f"{amount} · {entropy} · EMD {skew['label_emd_mean']:.2f}", fontsize=9, loc="left")
    return figure


def _bars(axes: Axes, summary: dict[str, Any], counts: np.ndarray) -> None:
    from matplotlib import colormaps

    classes = counts.shape[1]
    few = classes <= len(_PALETTE)
    colours = _PALETTE if few else [colormaps["viridis"](index / (classes - 1)) for index in range(classes)]
    rows = np.arange(len(counts))
    left = np.zeros(len(counts))
    bars = []
    for index in range(classes):
        bars.append(axes.barh(rows, counts[:, index], left=left, color=colours[index], height=0.78))
        left += counts[:, index]
    axes.set_yticks(rows, [shorten(_label(client)) for client in summary["clients"]], fontsize=8)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlabel("training samples")
    axes.spines[["top", "right"]].set_visible(False)
    # labels of their own would be left out where they start with an underscore
    names = [shorten(name) for name in summary["classes"]]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(bars, names, title="class", fontsize=7, title_fontsize=8, frameon=False, **place)


def _matrix(figure: Figure, axes: Axes, summary: dict[str, Any], counts: np.ndarray) -> None:
    many = len(counts) > _SOME
    # beyond that clients have no room for names; sorting by their commonest class shows the structure instead
    order = np.lexsort((-counts.max(axis=1), counts.argmax(axis=1))) if many else np.arange(len(counts))
    shares = counts[order] / np.maximum(counts[order].sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=shares.max(), interpolation="nearest")
    bar = figure.colorbar(picture, ax=axes)
    bar.set_label("share of the client's samples", fontsize=8)
    classes = counts.shape[1]
    shown = np.arange(0, classes, -(-classes // 50))  # 50 names fit side by side
    names = [shorten(summary["classes"][index]) for index in shown]
    axes.set_xticks(shown, names, fontsize=8, rotation=0 if classes <= 12 and max(map(len, names)) <= 6 else 90)
    axes.set_xlabel("class")
    if many:
        axes.set_ylabel(f"{len(counts):,} clients, by their commonest class")
    else:
        axes.set_yticks(np.arange(len(counts)), [shorten(_label(client)) for client in summary["clients"]], fontsize=7)


def shorten(label: str, most: int = 24) -> str:
    """A label that leaves room for the picture, its ends kept, as names often differ in their ends; no formulas."""
    kept = (most - 1) // 2
    text = label if len(label) <= most else f"{label[: most - 1 - kept]}…{label[-kept:]}"
    return text.replace("$", r"\$")


def _label(client: dict[str, Any]) -> str:
    name, domain = client["name"], client["domain"]
    return name if domain in ("all", "mixed", name) or domain in name else f"{name} ({domain})"


def partition_table(summary: dict[str, Any], limit: int = 60) -> Table:
    """Clients × classes as a table, the first `limit` clients; many classes are only counted."""
    from rich.table import Table
    from rich.text import Text  # names are text, whatever brackets they have

    clients, classes = summary["clients"], summary["classes"]
    by_class = len(classes) <= _MANY_CLASSES
    more = f", the first {limit} shown" if len(clients) > limit else ""
    table = Table(title=f"Training samples of {len(clients)} clients{more}")
    table.add_column("client")
    for name in classes if by_class else ["classes held"]:
        table.add_column(Text(name), justify="right")
    table.add_column("train", justify="right", style="bold")
    table.add_column("test", justify="right")
    for client in clients[:limit]:
        counts = client["train"] if by_class else [sum(count > 0 for count in client["train"])]
        cells = [str(count) if count else "·" for count in counts]
        table.add_row(Text(_label(client)), *cells, str(sum(client["train"])), str(sum(client["test"])))
    return table
