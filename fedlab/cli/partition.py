"""`fedlab partition`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedlab.cli.arguments import Sets, Source
from fedlab.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_SKEW = {
    "size_min": "samples of the smallest client",
    "size_median": "samples of the median client",
    "size_max": "samples of the largest client",
    "size_gini": "Gini index of the sizes (0 = all equal, 1 = one client has all)",
    "label_entropy_mean": "label entropy of a client, mean over clients (bits)",
    "label_entropy_min": "label entropy of a client, smallest (bits)",
    "label_entropy_global": "label entropy of all samples together (bits)",
    "label_emd_mean": "distance of a client's labels to all labels, mean (0 to 2)",
    "label_emd_max": "distance of a client's labels to all labels, largest",
}


def partition(
    source: Source,
    sets: Sets = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder or file (.png, .svg, .pdf) to write the chart to. A chart of the drift is written beside it, "
            "with -drift added to the name.",
            show_default="partition.png",
        ),
    ] = Path("partition.png"),
) -> None:
    """Draw and print how the data is divided among the clients and how it drifts, without training."""
    from rich.console import Console

    from fedlab.data.federated import FederatedData
    from fedlab.data.partition.drift import make_drifts
    from fedlab.data.partition.partition import make_steps
    from fedlab.data.sources import load_source
    from fedlab.data.sources.agreed import vocabulary_hash
    from fedlab.experiment.checks import left_out
    from fedlab.experiment.start import configure
    from fedlab.report.partition import partition_table, plot_drift, plot_partition

    path = _chart_path(out)
    config = configure(source, sets or ())
    steps, drifts = make_steps(config.data.partition), make_drifts(config.data.drift)
    dataset = load_source(config.data.source, config.seed)
    federated = FederatedData(dataset, config.data, config.seed, steps=steps, drifts=drifts)
    parts = federated.summary(config.federation.rounds)
    _draw(plot_partition(parts), path)
    Console().print(partition_table(parts))
    for key, meaning in _SKEW.items():
        typer.echo(f"{meaning:<64} {parts['skew'][key]:>10.4g}")
    if federated.vocabulary:
        words = federated.vocabulary
        typer.echo(f"vocabulary: {len(words):,} words, hash {vocabulary_hash(words)}")
    for line in federated.held_back:
        typer.echo(line)
    for warning in federated.warnings:
        typer.echo(f"warning: {warning}")
    for left in left_out(config, federated):
        typer.echo(left.notice)
    typer.echo(f"chart: {path}")
    if "drift" in parts:
        moving = path.with_stem(f"{path.stem}-drift")
        _draw(plot_drift(parts), moving)
        _tell_drift(parts["drift"])
        typer.echo(f"chart of the drift: {moving}")


def _chart_path(out: Path) -> Path:
    if out.is_dir() or not out.suffix:
        return out / "partition.png"
    if out.suffix.lower() not in _FORMATS:
        raise ConfigError("--out", str(out), f"a folder, or a file that ends in {', '.join(_FORMATS)}")
    return out


def _tell_drift(moments: list[dict[str, Any]]) -> None:
    for moment in moments:
        corruption = "; ".join(sorted({text or "clean" for text in moment["corruption"]}))
        entropy, distance = moment["skew"]["label_entropy_mean"], moment["skew"]["label_emd_mean"]
        typer.echo(
            f"round {moment['round']}: label entropy {entropy:.4g} bits, EMD {distance:.4g}, images {corruption}"
        )


def _draw(figure: Figure, path: Path) -> None:
    import io

    from fedlab.storage.runfolder import write_atomic

    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:].lower(), dpi=150)
    try:
        write_atomic(path, picture.getvalue())
    except OSError as error:
        raise ConfigError("--out", str(path), "a place that can be written to", str(error)) from error
