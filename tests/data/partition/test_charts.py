from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fedlab.config import Component, DataConfig, parse
from fedlab.data.federated import FederatedData
from fedlab.data.partition.partition import make_steps, partition, summary
from fedlab.data.samples import Dataset
from fedlab.report.partition import partition_table, plot_drift, plot_partition

pytestmark = pytest.mark.usefixtures("drawn_charts")

Make = Callable[..., Dataset]
ALL = [
    {"name": "iid", "clients": 6},
    {"name": "dirichlet", "clients": 6, "alpha": 0.3},
    {"name": "pathological", "clients": 6},
    {"name": "shard", "clients": 6},
    {"name": "size", "clients": 6},
    {"name": "quantity", "clients": 6},
    {"name": "natural"},
    {"name": "domain"},
    {"name": "corruption"},
]


def told(make_dataset: Make, *steps: dict[str, Any], classes: int = 10, samples: int = 1200) -> dict[str, Any]:
    dataset = make_dataset(np.arange(samples) % classes, domains=5, groups=7, images=(1, 2, 2))
    return summary(partition(dataset, make_steps([Component(**step) for step in steps]), 0), dataset)


def drawn(figure: Any) -> np.ndarray:
    """The picture's pixels as matplotlib's Agg writes them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer).convert("RGB"))


def shown(figure: Any) -> list[str]:
    axes = figure.axes[0]
    return [label.get_text() for label in axes.get_yticklabels()]


@pytest.mark.parametrize("step", ALL, ids=lambda step: step["name"])
def test_every_partition_is_charted_and_tabulated(make_dataset: Make, step: dict[str, Any]) -> None:
    facts = told(make_dataset, step)
    figure = plot_partition(facts)
    assert shown(figure)[0].startswith(facts["clients"][0]["name"])
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(partition_table(facts))
    assert facts["clients"][-1]["name"] in console.export_text()


@pytest.mark.parametrize(("clients", "classes"), [(1, 10), (1, 1), (30, 20), (31, 3), (120, 10), (500, 10), (60, 150)])
def test_pictures_keep_a_sensible_size(make_dataset: Make, clients: int, classes: int) -> None:
    width, height = plot_partition(
        told(make_dataset, {"name": "iid", "clients": clients}, classes=classes)
    ).get_size_inches()
    assert width == 8
    assert 100 / 60 < height <= 16


@pytest.mark.parametrize(("clients", "classes"), [(1, 1), (31, 3), (500, 150)])
def test_pictures_have_the_size_that_was_asked_for(make_dataset: Make, clients: int, classes: int) -> None:
    figure = plot_partition(told(make_dataset, {"name": "iid", "clients": clients}, classes=classes))
    picture = drawn(figure)
    assert picture.std() > 5
    assert picture.shape[1::-1] == pytest.approx(60 * figure.get_size_inches(), abs=1)


def test_bars_are_the_counts(make_dataset: Make) -> None:
    facts = told(make_dataset, {"name": "dirichlet", "clients": 4, "alpha": 0.5})
    axes = plot_partition(facts).axes[0]
    widths = np.array([[bar.get_width() for bar in container] for container in axes.containers]).T
    assert widths.tolist() == [client["train"] for client in facts["clients"]]


def test_many_clients_are_sorted_by_their_commonest_class(make_dataset: Make) -> None:
    facts = told(make_dataset, {"name": "pathological", "clients": 200, "classes": 1})
    shares = np.asarray(plot_partition(facts).axes[0].images[0].get_array())
    assert shares.shape == (200, 10)
    assert (np.diff(shares.argmax(axis=1)) >= 0).all()
    assert (shares.sum(axis=1) == 1).all()


def strip(facts: dict[str, Any]) -> np.ndarray:
    """Colors of the domain strip, (clients, cells, 4)."""
    return np.asarray(plot_partition(facts).axes[1].images[0].get_array())


def test_a_strip_shows_every_clients_domains(make_dataset: Make) -> None:
    apart = strip(told(make_dataset, {"name": "domain"}))
    assert (apart == apart[:, :1]).all()
    assert len({tuple(row[0]) for row in apart}) == 5
    for mixed in strip(told(make_dataset, {"name": "iid", "clients": 4})):
        colors, counts = np.unique(mixed, axis=0, return_counts=True)
        assert len(colors) == 5
        assert counts.max() - counts.min() <= 2


def test_the_strip_has_the_order_of_sorted_clients(make_dataset: Make) -> None:
    facts = told(make_dataset, {"name": "dirichlet", "clients": 80, "alpha": 0.1}, {"name": "domain"})
    counts = np.array([client["train"] for client in facts["clients"]])
    order = np.lexsort((-counts.max(axis=1), counts.argmax(axis=1)))
    seen = {(facts["clients"][i]["domain"], tuple(row[0])) for i, row in zip(order, strip(facts), strict=True)}
    assert len(counts) > 120
    assert len(seen) == 5


def test_one_domain_needs_no_strip(make_dataset: Make) -> None:
    dataset = make_dataset(np.arange(60) % 3)
    assert len(plot_partition(summary(partition(dataset, make_steps([]), 0), dataset)).axes) == 1


@pytest.mark.parametrize(("clients", "classes"), [(4, 10), (200, 3), (60, 150)])
def test_the_drift_chart_shows_the_label_mix_by_round(make_dataset: Make, clients: int, classes: int) -> None:
    dataset = make_dataset(np.arange(2400) % classes)
    spec = {"partition": [{"name": "iid", "clients": clients}], "drift": [{"name": "labels", "rounds": 8}]}
    facts = FederatedData(dataset, parse(DataConfig, {"source": "none", **spec}), 0).summary(9)
    figure = plot_drift(facts)
    assert drawn(figure).std() > 5
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == ["round 1", "round 5", "round 9"]
    shares = [np.asarray(axes.images[0].get_array()) for axes in panels]
    assert all(share.shape == (clients, classes) for share in shares)
    assert all(share.sum(axis=1) == pytest.approx(1) for share in shares)
    assert np.abs(shares[0] - shares[2]).sum() > np.abs(shares[0] - shares[1]).sum()


def test_long_names_leave_room_for_the_picture(make_dataset: Make) -> None:
    facts = told(make_dataset, {"name": "domain"})
    for client in facts["clients"]:
        client["name"] = "a hospital with a very long name indeed, department of ophthalmology " + client["name"]
    facts["classes"] = [f"a class of plants with a long Latin name, number {c}" for c in range(10)]
    figure = plot_partition(facts)
    drawn(figure)
    axes = figure.axes[0]
    assert axes.get_position().width > 0.35


def test_names_with_dollars_are_no_formulas(make_dataset: Make) -> None:
    facts = told(make_dataset, {"name": "domain"})
    facts["clients"][0]["name"], facts["classes"][0] = "$\\frac{1}$", "_$x^"
    drawn(plot_partition(facts))


def test_many_classes_are_counted_in_the_table(make_dataset: Make) -> None:
    table = partition_table(told(make_dataset, {"name": "iid", "clients": 3}, classes=150))
    assert [str(column.header) for column in table.columns] == ["client", "classes held", "train", "test"]


def test_names_are_no_markup_in_the_table(make_dataset: Make) -> None:
    facts = told(make_dataset, {"name": "domain"})
    facts["clients"][0]["name"] = "[red]a[/]"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(partition_table(facts))
    assert "[red]a[/]" in console.export_text()


def test_a_table_of_many_clients_is_cut(make_dataset: Make) -> None:
    table = partition_table(told(make_dataset, {"name": "iid", "clients": 100}), limit=7)
    assert table.row_count == 7
    assert "100 clients, the first 7 shown" in str(table.title)
