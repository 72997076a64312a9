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
_FEW_DOMAINS = 8
_STRIP_CELLS = 24
_LEGEND = 88  # characters of a line of a legend
# told apart by color-blind readers too: Petroff 2021, arXiv 2107.02270
PALETTE = (
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

    If there are several domains, a strip beside the clients shows the domains of their samples.

    Args:
        summary: the result of `fedlab.data.partition.partition.summary`.
    """
    from matplotlib.figure import Figure

    counts = np.array([client["train"] for client in summary["clients"]])
    clients, classes = counts.shape
    height = float(np.clip(1.3 + 0.28 * min(clients, _SOME), 2.4, 16))
    figure = Figure(figsize=(8, height if clients <= _SOME else 5), layout="constrained")
    several = len(summary.get("domains", ())) > 1
    grid = figure.add_gridspec(1, 2, width_ratios=(1, 28)) if several else figure.add_gridspec(1, 1)
    axes = figure.add_subplot(grid[0, -1])
    if several:
        _domain_strip(figure, figure.add_subplot(grid[0, 0], sharey=axes), summary, _order(counts))
    if clients <= _FEW and classes <= _MANY_CLASSES:
        _bars(axes, summary, counts)
    else:
        _matrix(figure, axes, summary, counts)
    skew = summary["skew"]
    amount = f"{_counted(clients, skew['clients'])}, {skew['samples']:,} training samples"
    if "label_emd_mean" in skew:
        entropy = f"label entropy {skew['label_entropy_mean']:.2f} of {skew['label_entropy_global']:.2f} bits"
        amount = f"{amount} · {entropy} · EMD {skew['label_emd_mean']:.2f}"
    axes.set_title(amount, fontsize=9, loc="left")
    return figure


def _bars(axes: Axes, summary: dict[str, Any], counts: np.ndarray) -> None:
    from matplotlib import colormaps

    classes = counts.shape[1]
    few = classes <= len(PALETTE)
    colors = PALETTE if few else [colormaps["viridis"](index / (classes - 1)) for index in range(classes)]
    rows = np.arange(len(counts))
    left = np.zeros(len(counts))
    bars = []
    for index in range(classes):
        bars.append(axes.barh(rows, counts[:, index], left=left, color=colors[index], height=0.78))
        left += counts[:, index]
    axes.set_yticks(rows, [shorten(_label(client)) for client in summary["clients"]], fontsize=8)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xlabel("training samples")
    axes.spines[["top", "right"]].set_visible(False)
    # labels of their own would be left out where they start with an underscore
    names = [wrapped(name, 24) for name in summary["classes"]]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(bars, names, title="class", fontsize=7, title_fontsize=8, frameon=False, **place)


def _order(counts: np.ndarray) -> np.ndarray:
    """Order of the clients from top to bottom.

    Many clients leave no room for names, so they are sorted by their most frequent class.
    """
    if len(counts) <= _SOME:
        return np.arange(len(counts))
    return np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))


def _shares(counts: np.ndarray) -> np.ndarray:
    shares: np.ndarray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def _domain_strip(figure: Figure, axes: Axes, summary: dict[str, Any], order: np.ndarray) -> None:
    """A row for each client, colored by the domains of its samples; each color is as wide as the domain's share."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    names = summary["domains"]
    few = len(names) <= _FEW_DOMAINS
    palette = colormaps["Dark2"] if few else colormaps["turbo"].resampled(len(names))
    shares = _shares(np.array([client["domains"] for client in summary["clients"]])[order])
    ends = np.cumsum(shares, axis=1)
    cells = (np.arange(_STRIP_CELLS) + 0.5) / _STRIP_CELLS
    domains = (cells[None, :, None] > ends[:, None, :]).sum(axis=2).clip(max=len(names) - 1)
    axes.imshow(palette(domains), aspect="auto", interpolation="nearest")
    axes.set_xticks([])
    axes.tick_params(axis="y", left=False, labelleft=False)
    if not few:
        axes.set_ylabel(f"{len(names)} domains", fontsize=8)
    else:
        keys, labels = [Patch(color=palette(index)) for index in range(len(names))], [wrapped(n, 24) for n in names]
        longest = max(len(line) for label in labels for line in label.split("\n"))
        figure.legend(
            keys,
            labels,
            title="domain",
            loc="outside lower center",
            ncols=max(1, min(5, _LEGEND // (longest + 5))),
            fontsize=7,
            title_fontsize=8,
            frameon=False,
        )


def plot_drift(summary: dict[str, Any]) -> Figure:
    """The label mix of every client in the first, the middle and the last round, as clients × classes.

    Args:
        summary: the result of `fedlab.data.federated.FederatedData.summary` for data that drifts.
    """
    from matplotlib.figure import Figure

    moments = summary["drift"]
    shares = [_shares(np.array(moment["train"])) for moment in moments]
    order, most = _order(np.array(moments[0]["train"])), _brightest(np.concatenate(shares))
    clients = len(order)
    height = float(np.clip(1.6 + 0.22 * min(clients, _SOME), 2.4, 16)) if clients <= _SOME else 5
    figure = Figure(figsize=(9, height), layout="constrained")
    for axes, share, moment in zip(
        figure.subplots(1, len(moments), sharey=True, squeeze=False)[0], shares, moments, strict=True
    ):
        picture = axes.imshow(share[order], aspect="auto", cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
        axes.set_title(f"round {moment['round']}{_severities(moment['corruption'])}", fontsize=9)
        _class_axis(axes, summary["classes"], 16)
    first = figure.axes[0]
    if clients <= _SOME:
        first.set_yticks(np.arange(clients), [shorten(_label(client)) for client in summary["clients"]], fontsize=7)
    else:
        first.set_ylabel(f"{clients:,} clients, by their most frequent class in round {moments[0]['round']}")
    _color_bar(figure, picture, figure.axes, np.concatenate(shares), most)
    return figure


def _severities(corruptions: list[str]) -> str:
    found = sorted({int(text.rsplit(" ", 1)[1]) if text else 0 for text in corruptions})
    return f", severity {' or '.join(map(str, found))}" if found != [0] else ""


def _class_axis(axes: Axes, classes: list[str], most: int) -> None:
    """Names of the classes below a picture, at most so many."""
    shown = np.arange(0, len(classes), -(-len(classes) // most))
    names = [shorten(classes[index]) for index in shown]
    axes.set_xticks(shown, names, fontsize=8, rotation=0 if len(names) <= 12 and max(map(len, names)) <= 6 else 90)
    axes.set_xlabel("class")


def _brightest(shares: np.ndarray) -> float:
    """The share that gets the brightest color.

    A client with a single sample has all of its samples in one class. If few clients are like that, a scale up to their
    share would leave all others dark, so it ends where nine of ten clients have their largest share.
    """
    largest = shares.max(axis=1)
    most, usual = float(largest.max()), float(np.quantile(largest[largest > 0], 0.9)) if largest.any() else 0.0
    return usual if most > 1.25 * usual > 0 else most or 1.0


def _color_bar(figure: Figure, picture: Any, axes: Any, shares: np.ndarray, most: float) -> None:
    above = float(shares.max()) > most
    bar = figure.colorbar(picture, ax=axes, extend="max" if above else "neither")
    more = f" (pointed end: up to {shares.max():.2g})" if above else ""
    bar.set_label(f"share of the client's samples{more}", fontsize=8)


def _matrix(figure: Figure, axes: Axes, summary: dict[str, Any], counts: np.ndarray) -> None:
    many = len(counts) > _SOME
    shares = _shares(counts[_order(counts)])
    most = _brightest(shares)
    picture = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=most, interpolation="nearest")
    _color_bar(figure, picture, axes, shares, most)
    _class_axis(axes, summary["classes"], 50)
    if many:
        axes.set_ylabel(f"{len(counts):,} clients, by their most frequent class")
    else:
        axes.set_yticks(np.arange(len(counts)), [shorten(_label(client)) for client in summary["clients"]], fontsize=7)


def shorten(label: str, most: int = 24) -> str:
    """A label of at most `most` characters; both ends are kept, because names often differ in their last characters.

    ``$`` is escaped, because matplotlib would read it as the start of a formula.
    """
    kept = (most - 1) // 2
    text = label if len(label) <= most else f"{label[: most - 1 - kept]}…{label[-kept:]}"
    return text.replace("$", r"\$")


def wrapped(label: str, width: int = 20, most: int = 2) -> str:
    """A label in at most so many lines, broken at spaces and separators; what does not fit is cut in the middle.

    ``$`` is escaped as in `shorten`.
    """
    lines, rest = list[str](), label
    while len(rest) > width and len(lines) < most - 1:
        breaks = [place + 1 for place, char in enumerate(rest[:width]) if char in " _-./,="]
        at = max((place for place in breaks if place > width // 3), default=width)
        lines.append(rest[:at].rstrip())
        rest = rest[at:]
    return "\n".join([shorten(line, width) for line in (*lines, rest)])


def _label(client: dict[str, Any]) -> str:
    name, domain = client["name"], client["domain"]
    told = [] if domain in ("all", "mixed", name) or domain in name else [domain]
    told += ["unseen"] if client.get("unseen") else []
    return f"{name} ({', '.join(told)})" if told else str(name)


def _counted(shown: int, held: int) -> str:
    """How many clients there are, and how many of them the picture shows."""
    return f"{held} client{'s' if held > 1 else ''}" + (f", {shown} of them shown" if shown < held else "")


def partition_table(summary: dict[str, Any], limit: int = 60) -> Table:
    """Training samples as a table of clients × classes, at most `limit` clients.

    If there are many classes, the table only says how many of them each client holds.
    """
    from rich.table import Table
    from rich.text import Text  # names are text, whatever brackets they have

    clients, classes = summary["clients"], summary["classes"]
    by_class = len(classes) <= _MANY_CLASSES
    held = summary["skew"]["clients"]
    shown = f"the first {limit}" if len(clients) == held else f"{limit} of them"
    table = Table(title=f"Training samples of {held} clients{f', {shown} shown' if len(clients) > limit else ''}")
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
